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

static const char *lock_datname;
static const char *lock_slot;
static int64 lock_key;
static EcmTime retry_at;
static char waiting_for[ECM_TEXT_LEN];
static int	blocking_pid;

/* somebody who holds it and does nothing with the slot */
static int	holder_pid;			/* 0: nobody */
static TimestampTz holder_started;	/* tells it from a later namesake */
static EcmTime idle_since;	/* seen so at a status check */
static XLogRecPtr idle_lsn;		/* the slot's confirmed_flush_lsn then */

void
ecm_exclusive_lock_init(const char *datname, const char *slot_name)
{
	lock_datname = MemoryContextStrdup(TopMemoryContext, datname);
	lock_slot = MemoryContextStrdup(TopMemoryContext, slot_name);
}

static void
event(const char *name, EcmSeverity severity, const char *detail,
	  const char *message)
{
	ecm_event(MyDatabaseId, lock_datname, name, severity, detail, "%s", message);
}

/*
 * Electric's key, so that an Electric service on the same slot and we exclude
 * each other.  A session lock: it can't outlive this process.
 */
static void
try_lock(void *arg)
{
	bool	   *acquired = arg;
	int32		hash =
		DatumGetInt32(DirectFunctionCall1Coll(hashtext, C_COLLATION_OID,
											  CStringGetTextDatum(lock_slot)));

	lock_key = hash;
	*acquired =
		DatumGetBool(DirectFunctionCall1(pg_try_advisory_lock_int8,
										 Int64GetDatum(lock_key)));
}

/* The condition on pg_locks for whoever holds that lock. */
static char *
holds_lock(void)
{
	return psprintf("l.locktype = 'advisory' AND l.granted"
					" AND l.database = %u AND l.classid = %u"
					" AND l.objid = %u AND l.objsubid = 1",
					MyDatabaseId, (uint32) (lock_key >> 32), (uint32) lock_key);
}

static void
find_lock_holder(void *arg pg_attribute_unused())
{
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	if (SPI_execute(psprintf("SELECT l.pid, coalesce(a.application_name, '')"
							 " FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)"
							 " WHERE %s", holds_lock()),
					true, 1) == SPI_OK_SELECT && SPI_processed > 0)
	{
		char	   *pid = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);

		blocking_pid = pid ? atoi(pid) : 0;
		if (pid == NULL)
			strlcpy(waiting_for, "the exclusive lock, held by a prepared transaction",
					sizeof(waiting_for));
		else
			snprintf(waiting_for, sizeof(waiting_for),
					 "the exclusive lock, held by PID %s (application \"%s\")", pid,
					 SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2));
	}
	ecm_spi_end(&spi);
}

void
ecm_exclusive_lock_start(void)
{
	retry_at = 0;
	holder_pid = 0;
	waiting_for[0] = '\0';
	blocking_pid = 0;
}

EcmTime
ecm_exclusive_lock_deadline(void)
{
	return retry_at;
}

const char *
ecm_exclusive_lock_waiting_for(int *pid)
{
	*pid = blocking_pid;
	return waiting_for[0] != '\0' ? waiting_for : NULL;
}

EcmStepResult
ecm_exclusive_lock_poll(EcmStepFailure *failure)
{
	bool		acquired = false;
	EcmError	err;
	EcmTime		now = ecm_now();

	if (now < retry_at)
		return ECM_RESULT_PENDING;
	if (!ecm_worker_try(try_lock, &acquired, &failure->err))
	{
		failure->kind = ECM_ERROR_RETRY;
		return ECM_RESULT_FAILED;
	}
	if (acquired)
	{
		waiting_for[0] = '\0';
		event("connection_lock_acquired", ECM_SEVERITY_LOG, "",
			  "exclusive lock acquired");
		return ECM_RESULT_DONE;
	}
	if (retry_at == 0)
		event("waiting_for_connection_lock", ECM_SEVERITY_LOG, "",
			  "waiting for the exclusive lock");
	(void) ecm_worker_try(find_lock_holder, NULL, &err);
	retry_at = ecm_later(now, LOCK_POLL_MS);
	return ECM_RESULT_PENDING;
}

/*
 * Looks who holds the lock, as a process that can be told from a later one
 * with the same number.  A prepared transaction has none.
 */
static void
identify_lock_holder(void *arg pg_attribute_unused())
{
	EcmSpiState spi;
	int			pid = 0;
	TimestampTz started = 0;

	ecm_spi_begin(&spi);
	if (SPI_execute(psprintf("SELECT a.pid, a.backend_start FROM pg_stat_activity a"
							 " WHERE EXISTS (SELECT FROM pg_locks l"
							 " WHERE l.pid = a.pid AND %s)"
							 " ORDER BY a.backend_start, a.pid LIMIT 1",
							 holds_lock()),
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

	if (pid != holder_pid || started != holder_started)
		idle_since = 0;
	holder_pid = pid;
	holder_started = started;
}

/*
 * One statement looks whether that very process still holds that very lock,
 * and sends the signal.
 */
static void
terminate_lock_holder(void *arg)
{
	EcmSpiState spi;
	char	   *started =
		DatumGetCString(DirectFunctionCall1(timestamptz_out,
											TimestampTzGetDatum(holder_started)));

	ecm_spi_begin(&spi);
	if (SPI_execute(psprintf("SELECT a.application_name, pg_terminate_backend(a.pid)"
							 " FROM pg_stat_activity a WHERE a.pid = %d"
							 " AND a.backend_start = '%s'"
							 " AND EXISTS (SELECT FROM pg_locks l"
							 " WHERE l.pid = a.pid AND %s)",
							 holder_pid, started, holds_lock()),
					true, 1) == SPI_OK_SELECT && SPI_processed > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		char	   *application = SPI_getvalue(row, SPI_tuptable->tupdesc, 1);
		char	   *sent = SPI_getvalue(row, SPI_tuptable->tupdesc, 2);

		if (sent != NULL && sent[0] == 't')
			snprintf(arg, ECM_TEXT_LEN, "PID %d, application \"%s\"",
					 holder_pid, application ? application : "");
	}
	ecm_spi_end(&spi);
}

/*
 * At each status check while we wait for the lock.  A slot that is neither
 * active nor moved on since the last check is not being used; one that isn't
 * there may be about to be created.  So the second check decides.
 */
void
ecm_exclusive_lock_check(EcmTime now)
{
	EcmSlotFacts facts;
	EcmError	err;
	char		holder[ECM_TEXT_LEN] = "";

	if (!ecm_break_abandoned_lock ||
		!ecm_slot_lookup(lock_slot, &facts) || facts.active_pid != 0 ||
		!facts.logical || facts.database != MyDatabaseId ||
		!ecm_worker_try(identify_lock_holder, NULL, &err) ||
		holder_pid == 0)
	{
		holder_pid = 0;
		return;
	}
	if (idle_since == 0 || facts.confirmed_flush_lsn != idle_lsn)
	{
		idle_since = now;
		idle_lsn = facts.confirmed_flush_lsn;
		return;
	}
	if (!ecm_has_passed(idle_since, now, ecm_status_check_interval))
		return;					/* a check that somebody has asked for */

	if (ecm_worker_try(terminate_lock_holder, holder, &err) && holder[0] != '\0')
		event("lock_holder_terminated", ECM_SEVERITY_WARNING,
			  "It held the exclusive lock and did not use the slot.",
			  psprintf("lock holder terminated: %s", holder));
	holder_pid = 0;
}
