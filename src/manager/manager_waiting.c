/*-------------------------------------------------------------------------
 *
 * manager_waiting.c
 *	  Who or what the stack waits for, in words.
 *
 * electric_cm_stack.waiting_for names the process that a user has to end, or to
 * wait for, if a start takes long: "PID 123, query started at ...".  The texts are
 * found in system views, in short transactions of the manager's own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/procarray.h"
#include "storage/standby.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/bgworker.h"
#include "base/compat.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "connection/conn.h"
#include "connection/pool.h"
#include "manager/manager.h"
#include "slot/retained_wal.h"
#include "slot/slot_holder.h"

void
ecm_manager_forget_wait(Manager *m)
{
	Waiting    *w = &m->waiting;

	w->text[0] = '\0';
	w->pid = 0;
	w->blocker_shown = w->doubt_shown = w->lock_shown = w->standby_shown = w->marker_shown = false;
}

/*
 * In a transaction: puts the oldest transaction that runs, or is prepared, into the
 * manager's waiting text.  The text stays as it is if there is none.
 */
static void
find_slot_blocker(void *arg)
{
	Manager    *m = arg;
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	if (SPI_execute("SELECT pid, who || ', open for ' || date_trunc('second', clock_timestamp() - since)"
					" FROM (SELECT pid, backend_xid, xact_start,"
					"   format('PID %s, query started at %s', pid, query_start)"
					"  FROM pg_stat_activity WHERE backend_xid IS NOT NULL"
					"  UNION ALL SELECT 0, transaction, prepared,"
					"   format('prepared transaction %L', gid)"
					"  FROM pg_prepared_xacts) t(pid, xid, since, who)"
					" ORDER BY age(xid) DESC LIMIT 1",
					true, 1) == SPI_OK_SELECT && SPI_processed > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		char	   *pid = SPI_getvalue(row, SPI_tuptable->tupdesc, 1);
		char	   *who = SPI_getvalue(row, SPI_tuptable->tupdesc, 2);

		m->waiting.pid = pid ? atoi(pid) : 0;
		snprintf(m->waiting.text, sizeof(m->waiting.text),
				 "the end of older transactions; the oldest is %s",
				 who ? who : "unknown");
	}
	ecm_spi_end(&spi);
}

/*
 * The creation of a slot waits for every transaction that was running, and then for
 * the next record of running transactions in the WAL.  On an idle server that may be
 * far away, so one is written here.
 */
void
ecm_manager_help_slot_creation(Manager *m)
{
	EcmError	err;

	ecm_manager_forget_wait(m);
	(void) ecm_worker_try(find_slot_blocker, m, &err);
	if (!m->waiting.creation_reported && m->waiting.text[0] != '\0')
	{
		ecm_manager_event(m, ECM_EVENT_REPLICATION_SLOT_CREATION_BLOCKED,
						  "The slot is created when all transactions that run now have ended.",
						  psprintf("waiting for %s", m->waiting.text));
		m->waiting.creation_reported = true;
	}
	LogStandbySnapshot();
}

/*
 * After a slot was dropped, or its creation was ended, for the sake of a limit on
 * retained WAL: do transactions still run that ran then?  The creation of a new slot
 * would wait for them, and all the while retain WAL up to the limit again.
 */
static bool
must_wait_for_transactions(Manager *m)
{
	if (!TransactionIdIsValid(m->wal.slot_horizon))
		return false;
	if (!TransactionIdPrecedes(ecm_oldest_active_xid(), m->wal.slot_horizon))
		m->wal.slot_horizon = InvalidTransactionId;
	return TransactionIdIsValid(m->wal.slot_horizon);
}

void
ecm_manager_hold_slot(Manager *m)
{
	const char *why = ecm_retained_wal_no_room(m->stack_index);
	EcmError	err;
	int			pid = 0;

	if (why == NULL && must_wait_for_transactions(m))
	{
		ecm_manager_forget_wait(m);
		if (!ecm_worker_try(find_slot_blocker, m, &err) || m->waiting.text[0] == '\0')
			strlcpy(m->waiting.text, "the end of older transactions", sizeof(m->waiting.text));
		why = psprintf("%s: a slot that is made meanwhile would pass a limit of WAL again",
					   m->waiting.text);
		pid = m->waiting.pid;
	}
	ecm_replication_hold_slot(&m->replication, why, pid);
}

/*
 * Part of the round: shows who has the stack's lock, or uses the slot that step
 * create_slot is about to take.
 */
bool
ecm_manager_show_blocker(Manager *m, EcmTime now pg_attribute_unused(),
						 RoundInput *in pg_attribute_unused())
{
	int			pid;
	const char *text;

	if (m->state.step == ECM_STEP_ACQUIRE_LOCK)
		text = ecm_exclusive_lock_waiting_for(&m->lock, &pid);
	else
		text = ecm_replication_waiting_for(&m->replication, &pid);

	if (text != NULL)
	{
		strlcpy(m->waiting.text, text, sizeof(m->waiting.text));
		m->waiting.pid = pid;
	}
	else if (m->waiting.blocker_shown)
		ecm_manager_forget_wait(m);
	m->waiting.blocker_shown = text != NULL;
	return false;
}

/*
 * In a transaction: puts the process into the waiting text that has a lock which one
 * of our sessions waits for, and does not wait for a lock itself.
 */
static void
find_lock_blocker(void *arg)
{
	Manager    *m = arg;
	EcmSpiState spi;
	StringInfoData pids;

	initStringInfo(&pids);
	if (m->replication.conn != NULL)
		appendStringInfo(&pids, "%d", ecm_conn_backend_pid(m->replication.conn));
	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
		if (ecm_pool_session(i) != NULL)
			appendStringInfo(&pids, "%s%d", pids.len > 0 ? "," : "",
							 ecm_conn_backend_pid(ecm_pool_session(i)));
	ecm_spi_begin(&spi);

	/*
	 * pg_blocking_pids() also names processes that wait before us in the same
	 * queue.  They are not to blame, so their blockers are looked for in
	 * turn.
	 */
	if (SPI_execute(psprintf("WITH RECURSIVE ours(pid) AS (SELECT unnest('{%s}'::int[])),"
							 " queue(pid) AS (SELECT pid FROM ours"
							 "  UNION SELECT unnest(pg_blocking_pids(pid)) FROM queue WHERE pid <> 0)"
							 " SELECT q.pid, CASE WHEN q.pid = 0 THEN 'a prepared transaction'"
							 " ELSE format('PID %%s (application \"%%s\"), in a transaction since %%s',"
							 "  q.pid, a.application_name, date_trunc('second', a.xact_start)) END"
							 " FROM queue q LEFT JOIN pg_stat_activity a USING (pid)"
							 " WHERE q.pid NOT IN (SELECT pid FROM ours)"
							 " AND (q.pid = 0 OR cardinality(pg_blocking_pids(q.pid)) = 0)"
							 " ORDER BY a.xact_start LIMIT 1", pids.data),
					true, 1) == SPI_OK_SELECT && SPI_processed > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		char	   *pid = SPI_getvalue(row, SPI_tuptable->tupdesc, 1);
		char	   *who = SPI_getvalue(row, SPI_tuptable->tupdesc, 2);

		m->waiting.pid = pid ? atoi(pid) : 0;
		snprintf(m->waiting.text, sizeof(m->waiting.text), "a lock that is held by %s",
				 who ? who : "nobody any more");
	}
	ecm_spi_end(&spi);
}

/*
 * Part of the round: shows whose lock the running step waits for, once the step has
 * taken a second.  The text stays while the same step is tried again, else it would
 * flicker, as each attempt is ended by lock_timeout.
 */
bool
ecm_manager_show_lock_blocker(Manager *m, EcmTime now,
							  RoundInput *in pg_attribute_unused())
{
	Waiting    *w = &m->waiting;
	EcmError	err;

	if (w->lock_shown && w->lock_step != m->state.step)
		ecm_manager_forget_wait(m);
	if (!m->state.running ||
		(m->job.id == 0 && m->state.step != ECM_STEP_CREATE_PUBLICATION))
	{
		w->lock_look_at = 0;
		return false;
	}

	if (w->lock_look_at == 0)
		w->lock_look_at = now + USECS_PER_SEC;	/* most steps are over by then */
	else if (now >= w->lock_look_at)
	{
		w->text[0] = '\0';
		(void) ecm_worker_try(find_lock_blocker, m, &err);
		if (w->text[0] == '\0')
			ecm_manager_forget_wait(m);
		w->lock_shown = w->text[0] != '\0';
		w->lock_step = m->state.step;
		w->lock_look_at = now + USECS_PER_SEC;
	}
	ecm_manager_wake_at(m, w->lock_look_at);
	return false;
}

/*
 * The stream runs, but its walsender sends nothing before a standby has it, too.
 */
void
ecm_manager_show_standby(Manager *m, EcmTime now)
{
	Waiting    *w = &m->waiting;
	char		text[ECM_TEXT_LEN];
	bool		waits = m->state.streaming_up &&
	ecm_slot_holder_standby(m->replication.stream.pid, now, text, sizeof(text)) != 0;

	if (waits)
	{
		strlcpy(w->text, text, sizeof(w->text));
		w->pid = 0;
	}
	else if (w->standby_shown)
		ecm_manager_forget_wait(m);
	w->standby_shown = waits;
}

/*
 * End of the round: shows that the stream runs, but is not beyond the place where it
 * was lost.  It counts as active only after that.
 */
void
ecm_manager_show_doubt(Manager *m)
{
	bool		doubtful = ecm_state_is_doubtful(&m->state);

	if (doubtful)
		snprintf(m->waiting.text, sizeof(m->waiting.text),
				 "the stream to get beyond %X/%X, where it was lost%s%s",
				 LSN_FORMAT_ARGS(m->loss.at), m->stack->report.last_error[0] != '\0' ? ": " : "",
				 m->stack->report.last_error);
	else if (m->waiting.doubt_shown)
		ecm_manager_forget_wait(m);
	m->waiting.doubt_shown = doubtful;
}
