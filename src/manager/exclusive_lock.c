/*-------------------------------------------------------------------------
 *
 * exclusive_lock.c
 *	  The lock by which one stack, or one Electric service, owns the slot.
 *
 * It is an advisory lock of the manager's own process, held outside of transactions
 * and released at the latest when the process ends.  The manager tries it every
 * half second and never waits for it: a wait inside the lock manager would block
 * the manager's loop.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/bgworker.h"
#include "base/clock.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "manager/exclusive_lock.h"
#include "slot/slot.h"

/* How often the lock is tried while somebody else has it. */
#define LOCK_POLL_MS			500

void
ecm_exclusive_lock_init(SlotLock *lock, const char *datname,
						const char *slot_name)
{
	memset(lock, 0, sizeof(*lock));
	lock->datname = MemoryContextStrdup(TopMemoryContext, datname);
	lock->slot = MemoryContextStrdup(TopMemoryContext, slot_name);
}

static void
event(const SlotLock *lock, EcmEventName name, const char *detail, const char *message)
{
	ecm_event_in(MyDatabaseId, lock->datname, name, detail, "%s", message);
}

/*
 * In a transaction, which the lock outlives: tries to get the lock.  The key is that
 * of Electric, so that an Electric service on the same slot and we exclude each
 * other.
 */
static void
try_lock(void *arg)
{
	SlotLock   *lock = arg;
	int32		hash =
	DatumGetInt32(DirectFunctionCall1Coll(hashtext, C_COLLATION_OID,
										  CStringGetTextDatum(lock->slot)));

	lock->key = hash;
	lock->held =
		DatumGetBool(DirectFunctionCall1(pg_try_advisory_lock_int8,
										 Int64GetDatum(lock->key)));
}

/* The condition on pg_locks, as l, for the holder of the lock. */
static char *
holds_lock(const SlotLock *lock)
{
	return psprintf("l.locktype = 'advisory' AND l.granted"
					" AND l.database = %u AND l.classid = %u"
					" AND l.objid = %u AND l.objsubid = 1",
					MyDatabaseId, (uint32) (lock->key >> 32), (uint32) lock->key);
}

/* In a transaction: finds out who has the lock, for waiting_for. */
static void
find_lock_holder(void *arg)
{
	SlotLock   *lock = arg;
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	if (SPI_execute(psprintf("SELECT l.pid, coalesce(a.application_name, '')"
							 " FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)"
							 " WHERE %s", holds_lock(lock)),
					true, 1) == SPI_OK_SELECT && SPI_processed > 0)
	{
		char	   *pid = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);

		lock->blocking_pid = pid ? atoi(pid) : 0;
		if (pid == NULL)
			strlcpy(lock->waiting_for, "the exclusive lock, held by a prepared transaction",
					sizeof(lock->waiting_for));
		else
			snprintf(lock->waiting_for, sizeof(lock->waiting_for),
					 "the exclusive lock, held by PID %s (application \"%s\")", pid,
					 SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2));
	}
	ecm_spi_end(&spi);
}

void
ecm_exclusive_lock_start(SlotLock *lock)
{
	lock->retry_at = 0;
	lock->holder_pid = 0;
	lock->waiting_for[0] = '\0';
	lock->blocking_pid = 0;
}

EcmTime
ecm_exclusive_lock_deadline(const SlotLock *lock)
{
	return lock->retry_at;
}

const char *
ecm_exclusive_lock_waiting_for(const SlotLock *lock, int *pid)
{
	*pid = lock->blocking_pid;
	return lock->waiting_for[0] != '\0' ? lock->waiting_for : NULL;
}

EcmStepResult
ecm_exclusive_lock_poll(SlotLock *lock, EcmStepFailure *failure)
{
	EcmError	err;
	EcmTime		now = ecm_now();

	if (now < lock->retry_at)
		return ECM_RESULT_PENDING;
	if (!ecm_worker_try(try_lock, lock, &failure->err))
	{
		failure->kind = ECM_ERROR_RETRY;
		return ECM_RESULT_FAILED;
	}
	if (lock->held)
	{
		lock->waiting_for[0] = '\0';
		event(lock, ECM_EVENT_CONNECTION_LOCK_ACQUIRED, "",
			  "exclusive lock acquired");
		return ECM_RESULT_DONE;
	}
	if (lock->retry_at == 0)
		event(lock, ECM_EVENT_WAITING_FOR_CONNECTION_LOCK, "",
			  "waiting for the exclusive lock");
	(void) ecm_worker_try(find_lock_holder, lock, &err);
	lock->retry_at = ecm_later(now, LOCK_POLL_MS);
	return ECM_RESULT_PENDING;
}

/*
 * In a transaction: notes who holds the lock, by PID and start, since the system may
 * give the PID to another process.  A prepared transaction has no process, and is
 * never ended.
 */
static void
identify_lock_holder(void *arg)
{
	SlotLock   *lock = arg;
	EcmSpiState spi;
	int			pid = 0;
	TimestampTz started = 0;

	ecm_spi_begin(&spi);
	if (SPI_execute(psprintf("SELECT a.pid, a.backend_start FROM pg_stat_activity a"
							 " WHERE EXISTS (SELECT FROM pg_locks l"
							 " WHERE l.pid = a.pid AND %s)"
							 " ORDER BY a.backend_start, a.pid LIMIT 1",
							 holds_lock(lock)),
					true, 1) == SPI_OK_SELECT && SPI_processed > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		bool		isnull;
		Datum		value = SPI_getbinval(row, SPI_tuptable->tupdesc, 1, &isnull);

		if (!isnull)
			pid = DatumGetInt32(value);
		value = SPI_getbinval(row, SPI_tuptable->tupdesc, 2, &isnull);
		if (!isnull)
			started = DatumGetTimestampTz(value);
	}
	ecm_spi_end(&spi);

	if (pid != lock->holder_pid || started != lock->holder_started)
		lock->idle_since = 0;
	lock->holder_pid = pid;
	lock->holder_started = started;
}

/*
 * In a transaction: ends the holder.  The statement that sends the signal also looks
 * whether the same process still holds the lock, so that no other one is hit.
 */
static void
terminate_lock_holder(void *arg)
{
	SlotLock   *lock = arg;
	EcmSpiState spi;
	char	   *started =
	DatumGetCString(DirectFunctionCall1(timestamptz_out,
										TimestampTzGetDatum(lock->holder_started)));

	ecm_spi_begin(&spi);
	if (SPI_execute(psprintf("SELECT a.application_name, pg_terminate_backend(a.pid)"
							 " FROM pg_stat_activity a WHERE a.pid = %d"
							 " AND a.backend_start = '%s'"
							 " AND EXISTS (SELECT FROM pg_locks l"
							 " WHERE l.pid = a.pid AND %s)",
							 lock->holder_pid, started, holds_lock(lock)),
					true, 1) == SPI_OK_SELECT && SPI_processed > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		char	   *application = SPI_getvalue(row, SPI_tuptable->tupdesc, 1);
		char	   *sent = SPI_getvalue(row, SPI_tuptable->tupdesc, 2);

		if (sent != NULL && sent[0] == 't')
			snprintf(lock->terminated, sizeof(lock->terminated),
					 "PID %d, application \"%s\"",
					 lock->holder_pid, application ? application : "");
	}
	ecm_spi_end(&spi);
}

/*
 * A holder that starts, or reconnects, has the lock and does not use the slot for a
 * moment.  So it takes two checks, and between them the slot is neither active nor
 * moves on.  While there is no slot the holder may be about to create it, and is left
 * alone.
 */
void
ecm_exclusive_lock_check(SlotLock *lock, EcmTime now)
{
	EcmSlotFacts facts;
	EcmError	err;

	if (!ecm_break_abandoned_lock ||
		!ecm_slot_lookup(lock->slot, &facts) || facts.active_pid != 0 ||
		!facts.logical || facts.database != MyDatabaseId ||
		!ecm_worker_try(identify_lock_holder, lock, &err) ||
		lock->holder_pid == 0)
	{
		lock->holder_pid = 0;
		return;
	}
	if (lock->idle_since == 0 || facts.confirmed_flush_lsn != lock->idle_lsn)
	{
		lock->idle_since = now;
		lock->idle_lsn = facts.confirmed_flush_lsn;
		return;
	}
	if (!ecm_has_passed(lock->idle_since, now, ecm_status_check_interval))
		return;					/* too soon: somebody has asked for this check */

	lock->terminated[0] = '\0';
	if (ecm_worker_try(terminate_lock_holder, lock, &err) &&
		lock->terminated[0] != '\0')
		event(lock, ECM_EVENT_LOCK_HOLDER_TERMINATED,
			  "It held the exclusive lock and did not use the slot.",
			  psprintf("lock holder terminated: %s",
					   lock->terminated));
	lock->holder_pid = 0;
}
