/*-------------------------------------------------------------------------
 *
 * manager_steps.c
 *	  The steps that bring a stack up, one after the other.
 *
 * A step is started by the state machine's action, then polled in each round until
 * it is done or has failed; none blocks.  The steps of the replication connection
 * are in replication_setup.c, the lock's in exclusive_lock.c, the consumers' in
 * consumer_queues.c.  The pool's two are here: what they have to do runs as a job in
 * a pool session, since it writes tables.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"

#include "base/bgworker.h"
#include "base/clock.h"
#include "base/errors.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/stack_catalog.h"
#include "base/text.h"
#include "connection/conn.h"
#include "connection/pool.h"
#include "connection/server_identity.h"
#include "manager/consumer_queues.h"
#include "manager/manager.h"
#include "manager/shape_creation.h"
#include "manager/stack_report.h"
#include "shape/shape_epoch.h"
#include "slot/server_runs.h"
#include "slot/slot.h"
#include "slot/slot_name.h"
#include "slot/slot_owner.h"

/* A manager gives way after so many attempts in vain to get workers for consumers. */
#define MAX_WORKER_FAILURES		2

static void
start_lock(Manager *m)
{
	ecm_exclusive_lock_start(&m->lock);
}

static EcmStepResult
poll_lock(Manager *m, EcmStepFailure *failure)
{
	return ecm_exclusive_lock_poll(&m->lock, failure);
}

/* ----------------------------------------------------- pool and timeline -- */

/* The step's pool job has ended; err NULL: it has succeeded. */
static void
step_job_done(void *arg,
			  EcmConn *conn pg_attribute_unused(), const EcmError *err)
{
	Manager    *m = arg;

	m->job.id = 0;
	if (err == NULL)
	{
		m->job.result = ECM_RESULT_DONE;
		return;
	}
	ecm_failure_set(&m->job.failure, err, ECM_CONTEXT_POOL);

	/*
	 * A pool that has worked in this stream is likely to come back, and the
	 * stream goes on without it.  So its error, such as a role that may not
	 * log in, does not fail the stack.
	 */
	if (m->state.streaming_up && m->job.failure.kind == ECM_ERROR_FATAL)
		m->job.failure.kind = ECM_ERROR_RETRY;
	m->job.result = ECM_RESULT_FAILED;
}

static void
start_step_job(Manager *m, const char *sql, int timeout_ms)
{
	m->job.result = ECM_RESULT_PENDING;
	m->job.id = ecm_pool_submit(sql, timeout_ms, step_job_done, m);
}

static EcmStepResult
poll_step_job(Manager *m, EcmStepFailure *failure)
{
	*failure = m->job.failure;
	return m->job.result;
}

/* The first pool session has answered; does it lead to this very database? */
static void
pool_answered(void *arg, EcmConn *conn, const EcmError *err)
{
	Manager    *m = arg;

	step_job_done(arg, conn, err);
	if (err == NULL && !ecm_leads_here(conn, &m->job.failure))
		m->job.result = ECM_RESULT_FAILED;
}

/*
 * Step start_pool: opens a session, which is done when it has answered a query, and
 * the answer shows that it is in this database of this server.
 */
static void
start_pool(Manager *m)
{
	m->job.result = ECM_RESULT_PENDING;
	m->job.id = ecm_pool_submit(ecm_whereabouts_sql(), ECM_MANAGER_JOB_MS,
								pool_answered, m);
}

bool
ecm_manager_slot_is_recorded(const Manager *m)
{
	return m->remembered.owns_slot &&
		strcmp(NameStr(m->remembered.slot_name), m->stack->slot.name) == 0;
}

/* In a transaction.  arg: int64, the number of shapes. */
static void
count_shapes(void *arg)
{
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	if (SPI_execute("SELECT count(*) FROM _electric_cm.shape", true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not count shapes");
	*(int64 *) arg = strtoi64(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1),
							  NULL, 10);
	ecm_spi_end(&spi);
}

/* Reports that the stream does not continue what the logs have. */
static void
report_resync(Manager *m, const char *reason)
{
	int64		n = -1;
	EcmError	err;

	(void) ecm_worker_try(count_shapes, &n, &err);
	if (n == 0)
		ecm_manager_event(m, ECM_EVENT_NO_SHAPES_RESYNCING, reason, "there are no shapes");
	else
		ecm_manager_event(m, ECM_EVENT_SHAPES_RESYNCING, reason,
						  n < 0 ? "all shapes of this database are compared with their tables" :
						  n == 1 ? "the one shape of this database is compared with its table" :
						  psprintf("all " INT64_FORMAT " shapes of this database are compared with their tables", n));
}

/* Reports that the shapes go on, on another timeline or in another cluster than they were made in. */
static void
report_survival(Manager *m)
{
	int64		n = -1;
	EcmError	err;

	(void) ecm_worker_try(count_shapes, &n, &err);
	ecm_manager_event(m, ECM_EVENT_SHAPES_KEPT,
					  m->compared.upgraded ?
					  "The cluster has been upgraded by pg_upgrade, which has taken the replication slot along." :
					  psprintf("Timeline %u was left at %X/%X; the server is on timeline %u now.",
							   m->remembered.timeline_id, LSN_FORMAT_ARGS(m->compared.switch_lsn),
							   m->replication.info.timeline_id),
					  n < 0 ? "the shapes of this database go on" :
					  n == 0 ? "the stream goes on; there are no shapes" :
					  n == 1 ? "the one shape of this database goes on" :
					  psprintf("all " INT64_FORMAT " shapes of this database go on", n));
}

/*
 * The slot that pg_upgrade has made for the old cluster's is the stack's own, if that
 * was: what the row says of its position is about the other one.
 */
static void
adopt_upgraded_slot(Manager *m)
{
	if (ecm_manager_slot_is_recorded(m))
		(void) ecm_report_slot(m->stack_index, m->stack->slot.name, true,
							   m->replication.info.confirmed_flush_lsn, false);
}

/*
 * Step check_timeline: compares what the row of _electric_cm.stack remembers with
 * this server, this database and the slot.  If the stream can't continue what the
 * shape logs have, all shapes are resynced.  Has a pool session
 *
 *	- look, where the WAL may tell, whether the server ran without us meanwhile;
 *	- record the new circumstances, begin an epoch, and have the shapes resynced if they
 *	  do not survive that;
 *	- share the shapes among consumers, before any consumer runs;
 *	- record that the logs have everything before the slot's position, since the other
 *	  two delete the rows that said so;
 *	- take down that the slot is not ours any more, if somebody else has made it.
 *
 * All of that is one statement string, and so one transaction.
 */
static void
start_timeline(Manager *m)
{
	const char *mismatch;
	char	   *sql;
	char	   *assign_sql;
	char	   *disown_sql;
	char	   *runs_sql;
	bool		switched;
	XLogRecPtr	logged = m->replication.info.confirmed_flush_lsn;
	EcmError	err;

	m->compared.mismatch = m->compared.marked = m->compared.upgraded = false;
	m->compared.switch_lsn = InvalidXLogRecPtr;

	m->job.result = ECM_RESULT_FAILED;
	m->job.failure.kind = ECM_ERROR_RETRY;
	if (!ecm_manager_compare_slot(m, &mismatch, &err))
	{
		m->job.failure.err = err;
		return;
	}
	sql = ecm_stack_row_record_sql(&m->remembered, &m->replication.info,
								   MyDatabaseId, mismatch);
	if (mismatch != NULL && m->remembered.known)
		report_resync(m, mismatch);
	if (m->compared.upgraded)
		adopt_upgraded_slot(m);
	/* what they follow, and how far they are, is not so any more */
	if (mismatch != NULL)
		ecm_queues_stop();
	assign_sql = ecm_queues_assign_sql();
	disown_sql = ecm_manager_slot_is_recorded(m) && !ecm_slot_owner_look(m->stack_index, false) ?
		ecm_stack_row_disown_slot_sql(m->stack->slot.name) : NULL;
	runs_sql = mismatch == NULL && !ecm_runs_seen(m->remembered.seen_lsn) ?
		psprintf("SELECT _electric_cm.check_runs(%s)",
				 ecm_quote_literal(m->stack->slot.name)) : NULL;
	m->compared.mismatch = mismatch != NULL;

	/*
	 * A clean stop says that the logs have everything before where it has put
	 * the slot.  It is about to be forgotten, and the slot that is here may
	 * be behind that.  The one of the server that has stopped may be there,
	 * when that takes over again, with nothing to log in between.
	 */
	switched = !XLogRecPtrIsInvalid(m->compared.switch_lsn);
	if (switched && mismatch == NULL)
		logged = Max(logged, m->remembered.clean_stop_lsn);
	m->compared.marked = mismatch != NULL || assign_sql != NULL || runs_sql != NULL || switched;
	if (sql != NULL || assign_sql != NULL || disown_sql != NULL || runs_sql != NULL)
		start_step_job(m, psprintf("%s;%s;%s;%s;%s;%s",
								   switched ?
								   ecm_stack_begin_epoch_sql(m->compared.switch_lsn, ecm_new_epoch()) : "",
								   runs_sql ? runs_sql : "", sql ? sql : "",
								   assign_sql ? assign_sql : "",
								   m->compared.marked ? ecm_stack_mark_sql(logged) : "",
								   disown_sql ? disown_sql : ""),
					   runs_sql ? 0 : ECM_MANAGER_JOB_MS);	/* the WAL may be long */
	else
		m->job.result = ECM_RESULT_DONE;
}

/*
 * When the row is recorded, a request to run in spite of the row (adopt) is fulfilled:
 * the next start finds it in the row.
 */
static EcmStepResult
poll_timeline(Manager *m, EcmStepFailure *failure)
{
	EcmStepResult result = poll_step_job(m, failure);

	if (result == ECM_RESULT_DONE)
	{
		/* as the table has it by now */
		ecm_manager_slot_compared(m, m->compared.mismatch, m->compared.marked);
		if (!XLogRecPtrIsInvalid(m->compared.switch_lsn) && !m->compared.mismatch)
			report_survival(m);
		m->compared.switch_lsn = InvalidXLogRecPtr;
		m->compared.refused = ECM_CONTINUES;
		m->remembered.known = true;
		m->remembered.system_identifier = m->replication.info.system_identifier;
		m->remembered.timeline_id = m->replication.info.timeline_id;
		m->replication.info.slot_created = false;
		ecm_lock(LW_EXCLUSIVE);
		m->stack->requests.adopt = false;
		ecm_unlock();
	}
	return result;
}

/* ---------------------------------------------------------- former slot -- */

/* For a job whose failure does not matter, as it is tried again. */
static void
ignore_result(void *arg pg_attribute_unused(),
			  EcmConn *conn pg_attribute_unused(),
			  const EcmError *err pg_attribute_unused())
{
}

bool
ecm_manager_slot_is_usable(const char *name, EcmSlotFacts *facts)
{
	return ecm_slot_lookup(name, facts) && ecm_slot_is_of_our_kind(facts, MyDatabaseId);
}

/*
 * Drops the slot that was created under the former electric_cm.slot_name, which
 * no other process would look after.  The slot stays as long as it is in use, and
 * until the slot of the new name can be used: the setting may yet be taken back.
 * A former slot that turns out to be somebody else's is forgotten.
 */
void
ecm_manager_retire_former_slot(Manager *m)
{
	EcmSlotFacts facts;
	EcmError	err;
	char		name[NAMEDATALEN];

	strlcpy(name, m->stack->former.name, sizeof(name));
	if (name[0] == '\0')
		return;
	if (ecm_slot_owner_look(m->stack_index, true))
	{
		if (!ecm_slot_lookup(name, &facts) || facts.active_pid != 0)
			return;
		if (ecm_slot_lookup(m->stack->slot.name, &facts) &&
			!ecm_manager_slot_is_usable(m->stack->slot.name, &facts))
			return;
		if (!ecm_slot_drop(name, &err))
			return;
		ecm_report_former_slot(m->stack_index, "", InvalidXLogRecPtr);
		ecm_manager_event(m, ECM_EVENT_REPLICATION_SLOT_DROPPED,
						  psprintf("The stack uses replication slot \"%s\" now.", m->stack->slot.name),
						  psprintf("dropped replication slot \"%s\"", name));
	}
	else if (m->stack->former.name[0] != '\0')
		return;
	(void) ecm_pool_submit(ecm_stack_row_disown_slot_sql(name), ECM_MANAGER_JOB_MS, ignore_result,
						   NULL);
}

/*
 * A slot that is there though the history has changed was made by pg_upgrade, kept
 * in step by a standby, or copied with the data directory.  Unless the logs go on with
 * it, the shapes are resynced, and nothing says that the slot has the WAL that it needs.
 */
static void
replace_slot_of_other_history(Manager *m)
{
	SlotCreation *creation = &m->replication.creation;
	const EcmReplicationInfo *info = &m->replication.info;

	if (info->slot_created || creation->made_unheard || creation->drop_first ||
		!ecm_stack_row_is_of_other_history(&m->remembered, info) ||
		ecm_manager_slot_survives(m))
		return;
	creation->drop_first = true;
	if (m->remembered.system_identifier != info->system_identifier)
		strlcpy(creation->drop_why, "The server has been upgraded by pg_upgrade, or is a copy of the one that the shapes were made by.",
				sizeof(creation->drop_why));
	else
		snprintf(creation->drop_why, sizeof(creation->drop_why),
				 "The server has been promoted or recovered: its timeline is %u, and was %u when the shapes were made.",
				 info->timeline_id, m->remembered.timeline_id);
}

/* ---------------------------------------------------------------- steps -- */

static void
start_consumers(Manager *m pg_attribute_unused())
{
	ecm_queues_start();
}

static EcmStepResult
poll_consumers(Manager *m pg_attribute_unused(), EcmStepFailure *failure)
{
	return ecm_queues_poll_start(failure);
}

/*
 * A step's functions.  A step that is not in the table belongs to the
 * replication connection.
 */
typedef struct StepFunctions
{
	void		(*start) (Manager *m);
	EcmStepResult (*poll) (Manager *m, EcmStepFailure *failure);
} StepFunctions;

static const StepFunctions step_functions[ECM_NUM_STEPS] = {
	[ECM_STEP_ACQUIRE_LOCK] = {start_lock, poll_lock},
	[ECM_STEP_START_POOL] = {start_pool, poll_step_job},
	[ECM_STEP_CHECK_TIMELINE] = {start_timeline, poll_timeline},
	[ECM_STEP_START_CONSUMERS] = {start_consumers, poll_consumers},
};

void
ecm_manager_run_step(Manager *m)
{
	const StepFunctions *functions = &step_functions[m->state.step];

	ecm_manager_forget_wait(m);
	m->waiting.creation_reported = false;
	if (functions->start)
	{
		functions->start(m);
		return;
	}
	if (m->state.step == ECM_STEP_CONNECT_REPLICATION)
		ecm_replication_close(&m->replication); /* a failed attempt's */
	if (m->state.step == ECM_STEP_CREATE_SLOT)
	{
		ecm_manager_retire_former_slot(m);
		replace_slot_of_other_history(m);
		m->replication.creation.may_alter = ecm_manager_slot_is_recorded(m) &&
			ecm_slot_owner_look(m->stack_index, false);
		m->checks.status_at = ecm_later(ecm_now(), ECM_SLOT_HELP_MS);
	}
	ecm_replication_start_step(&m->replication, m->state.step, ecm_queues_start_lsn());
}

/*
 * Shows, after a step, what it has found out or made; after the last one, begins to
 * look after shapes and WAL.
 */
static void
step_completed(Manager *m, EcmStep step)
{
	if (step == ECM_STEP_PG_INFO)
	{
		ecm_report_lookup(&m->replication.info);
		ecm_manager_event(m, ECM_EVENT_PG_INFO_LOOKED_UP, "",
						  psprintf("server version %d, timeline %u",
								   m->replication.info.server_version_num,
								   m->replication.info.timeline_id));
	}
	else if (step == ECM_STEP_CREATE_SLOT && m->replication.info.slot_created)
	{
		(void) ecm_report_slot(m->stack_index, m->stack->slot.name, !ecm_slot_temporary,
							   m->replication.info.confirmed_flush_lsn, false);
		ecm_manager_event(m, ECM_EVENT_REPLICATION_SLOT_CREATED, "",
						  psprintf("created replication slot \"%s\"", m->stack->slot.name));
	}
	else if (step == ECM_STEP_START_CONSUMERS)
		m->worker_failures = 0;
	else if (step == ECM_STEP_START_STREAMING)
	{
		ecm_creations_scan();
		m->wal.sample_at = 0;	/* the slot is ours now: look at it */
		m->flow.ask_at = 0;
	}
}

/*
 * Counts attempts in vain to get workers for consumers, since others have taken them.
 * After MAX_WORKER_FAILURES the manager ends, so that its own worker is free for
 * another stack; else stacks that each lack one worker could wait for each other
 * for ever.  The launcher starts it again when enough workers are free.
 */
static void
give_way(Manager *m, const EcmStepFailure *failure)
{
	if (ecm_error_is_no_worker(failure->err.sqlstate))
		m->worker_failures++;
	else
		m->worker_failures = 0;
	if (m->worker_failures < MAX_WORKER_FAILURES)
		return;
	ecm_manager_report_failure(m, failure);
	ecm_manager_clean_up(m);
	ecm_lock(LW_EXCLUSIVE);
	m->stack->manager.gave_way = true;
	ecm_unlock();
	proc_exit(0);
}

/*
 * Has create_slot failed because the slot's default name is taken by another
 * database's slot?  Then the name is computed anew; if that gives another one, asks
 * the launcher for a new manager, which will use it, and returns true.
 */
static bool
takes_another_name(Manager *m, const EcmStepFailure *failure)
{
	const char *name;

	if (m->state.step != ECM_STEP_CREATE_SLOT || ecm_slot_name[0] != '\0' ||
		!ecm_error_is_name_taken(failure->err.sqlstate))
		return false;
	name = ecm_slot_name_of_stack(&m->remembered, m->stack->datname);
	if (strcmp(name, m->stack->slot.name) == 0)
		return false;
	if (m->stack->requests.restart)
		return true;
	ecm_manager_event(m, ECM_EVENT_SLOT_NAME_TAKEN, failure->err.message,
					  psprintf("the stack restarts to use replication slot \"%s\"", name));
	(void) ecm_stack_request(MyDatabaseId, ECM_REQUEST_RESTART);
	return true;
}

/*
 * The slot is ours from now on, also for the launcher and the next manager, though its
 * creation has not ended.
 */
static void
show_recorded_slot(Manager *m)
{
	if (!m->replication.creation.recorded)
		return;
	m->replication.creation.recorded = false;
	(void) ecm_report_slot(m->stack_index, m->stack->slot.name, !ecm_slot_temporary,
						   GetXLogInsertRecPtr(), false);
}

/*
 * Part of the round: polls the running step.  The part runs again when the step has
 * ended, so that the next one, which the machine has started, is polled at once.
 */
bool
ecm_manager_poll_step(Manager *m, EcmTime now pg_attribute_unused(),
					  RoundInput *in)
{
	EcmStep		step = m->state.step;
	const StepFunctions *functions = &step_functions[step];
	EcmStepResult result;

	if (!m->state.running || step == ECM_STEP_STREAMING)
		return false;
	result = functions->poll ? functions->poll(m, &in->failure) :
		ecm_replication_poll_step(&m->replication, step, &in->failure);
	show_recorded_slot(m);
	if (result == ECM_RESULT_PENDING)
		return false;
	in->again = true;
	if (result == ECM_RESULT_DONE && step == ECM_STEP_START_STREAMING &&
		!ecm_manager_slot_is_as_compared(m, &in->failure))
		return round_failed(in, ECM_INPUT_REPLICATION_LOST);
	if (result == ECM_RESULT_DONE)
	{
		step_completed(m, step);
		in->type = ECM_INPUT_STEP_DONE;
		in->no_consumers = !ecm_queues_any();
		return true;
	}

	if (takes_another_name(m, &in->failure))
		return false;
	if (step == ECM_STEP_START_CONSUMERS)
		give_way(m, &in->failure);

	/*
	 * if the connection has failed, too, repeating the step would be of no
	 * use
	 */
	if (step > ECM_STEP_CONNECT_REPLICATION && functions->poll == NULL &&
		ecm_conn_state(m->replication.conn) == ECM_CONN_FAILED)
		return round_failed(in, ECM_INPUT_REPLICATION_LOST);
	return round_failed(in, ECM_INPUT_STEP_FAILED);
}

/*
 * Part of the round: notices that the replication session has ended while nobody
 * reads from it, as steps of other parts run or a retry is pending.
 */
bool
ecm_manager_poll_idle_replication(Manager *m,
								  EcmTime now pg_attribute_unused(),
								  RoundInput *in)
{
	EcmConn    *conn = m->replication.conn;

	if (conn == NULL || !m->state.replication_up || m->state.streaming_up ||
		(m->state.running && step_functions[m->state.step].poll == NULL))
		return false;
	if (ecm_conn_poll(conn) != ECM_CONN_FAILED)
		return false;
	ecm_failure_set(&in->failure, ecm_conn_error(conn), ECM_CONTEXT_OTHER);
	return round_failed(in, ECM_INPUT_REPLICATION_LOST);
}
