/*-------------------------------------------------------------------------
 *
 * exclusive_lock.c
 *	  The lock by which one consumer owns the slot.
 *
 * It is a session-level advisory lock of the manager's own session, so it can
 * neither be orphaned nor outlive the process.  It is tried and never waited
 * for: a wait inside the lock manager would block the manager's loop.
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
event(const SlotLock *lock, const char *name, EcmSeverity severity,
	  const char *detail, const char *message)
{
	ecm_event(MyDatabaseId, lock->datname, name, severity, detail, "%s", message);
}

/*
 * Electric's key, so that an Electric service on the same slot and we exclude
 * each other.  A session lock: it can't outlive this process.
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

/* The condition on pg_locks for whoever holds that lock. */
static char *
holds_lock(const SlotLock *lock)
{
	return psprintf("l.locktype = 'advisory' AND l.granted"
					" AND l.database = %u AND l.classid = %u"
					" AND l.objid = %u AND l.objsubid = 1",
					MyDatabaseId, (uint32) (lock->key >> 32), (uint32) lock->key);
}

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
		event(lock, "connection_lock_acquired", ECM_SEVERITY_LOG, "",
			  "exclusive lock acquired");
		return ECM_RESULT_DONE;
	}
	if (lock->retry_at == 0)
		event(lock, "waiting_for_connection_lock", ECM_SEVERITY_LOG, "",
			  "waiting for the exclusive lock");
	(void) ecm_worker_try(find_lock_holder, lock, &err);
	lock->retry_at = ecm_later(now, LOCK_POLL_MS);
	return ECM_RESULT_PENDING;
}

/*
 * Looks who holds the lock, as a process that can be told from a later one
 * with the same number.  A prepared transaction has none.
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
 * Ends the holder.  The statement that sends the signal also looks whether that
 * very process still holds that very lock.
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
 * At each status check while we wait for the lock.  A slot that is neither
 * active nor moved on since the last check is not being used; one that isn't
 * there may be about to be created.  So the second check decides.
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
		return;					/* a check that somebody has asked for */

	lock->terminated[0] = '\0';
	if (ecm_worker_try(terminate_lock_holder, lock, &err) &&
		lock->terminated[0] != '\0')
		event(lock, "lock_holder_terminated", ECM_SEVERITY_WARNING,
			  "It held the exclusive lock and did not use the slot.",
			  psprintf("lock holder terminated: %s",
					   lock->terminated));
	lock->holder_pid = 0;
}
