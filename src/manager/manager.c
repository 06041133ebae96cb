/*-------------------------------------------------------------------------
 *
 * manager.c
 *	  The manager of one database's stack: one loop that never blocks.
 *
 * Each time round: interrupts, reload, progress of whatever is in flight
 * (which yields events), the state machine (which yields an action), what is
 * shown of it all, and one wait for sockets, latch and the next deadline.
 *
 * The manager writes no table while it runs, since a local commit can wait
 * for a synchronous standby and a lock for ever; pool sessions and consumers
 * do that.  Only at its end, when loopback connections may be refused already,
 * it cleans up by itself, with bounded waits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_database.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "storage/standby.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pidfile.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/bgworker.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/stack_catalog.h"
#include "base/state.h"
#include "base/text.h"
#include "connection/conn.h"
#include "connection/pool.h"
#include "manager/consumer_queues.h"
#include "manager/event_delivery.h"
#include "manager/exclusive_lock.h"
#include "manager/manager.h"
#include "manager/replication.h"
#include "manager/shape_retention.h"
#include "manager/stack_report.h"
#include "manager/waitset.h"
#include "shape/shape.h"
#include "slot/retained_wal.h"
#include "slot/server_runs.h"
#include "slot/slot.h"
#include "slot/slot_name.h"
#include "slot/slot_owner.h"

/* How often a slot creation that waits for old transactions is helped. */
#define SLOT_HELP_MS			1000
/* So often does a manager try to get consumers when no worker is free. */
#define MAX_WORKER_FAILURES		2
/* Longest time for a pool job of the manager's own. */
#define JOB_TIMEOUT_MS			60000
/* A consumer without progress for so long does not save its slot any more. */
#define CONSUMER_HANGS_MS		3000
/* ... and for so long is shown. */
#define CONSUMER_STALLED_MS		10000
/* So much WAL without a change for us is progress, too. */
#define PROGRESS_BYTES			(16 * 1024 * 1024)
/* A stream that shall be given up for a limit has so long to say something. */
#define LAST_WORD_MS			2000
/* A slot that stays where it is for so long, though it could move on, is helped. */
#define SLOT_STANDS_MS			60000
/* A stream that is back from a silent loss has so long to catch up. */
#define CATCH_UP_MS				15000
/* Progress is acknowledged this soon. */
#define ACKNOWLEDGE_MS			500
/* Limits for asking the walsender how far it is, while somebody waits. */
#define ASK_MIN_MS				1
#define ASK_MAX_MS				100
/* Limits for looking whether the stream can begin behind a giant. */
#define RENEW_MIN_MS			1000
#define RENEW_MAX_MS			60000
/* ... and from one new stream to the next. */
#define RENEW_PAUSE_MS			15000
/* One round reads at most this much, then looks after everything else. */
#define ROUND_BYTES				(4 * 1024 * 1024)
/*
 * The walsender sends message by message, and waking up for each costs more
 * than decoding it.  So after a round that read a lot we let it run ahead.
 */
#define BUSY_BYTES				(32 * 1024)
#define BUSY_PAUSE_MS			1

static int	stack_index;
static EcmStack *stack;			/* our entry; read freely, write under lock */
static EcmState state;
static MemoryContext loop_context;	/* reset each time round */
static EcmRemembered remembered;

/* the running step */
static uint64 step_job;			/* pool job of the step, 0: none */
static EcmStepResult step_job_result;
static EcmStepFailure step_job_failure;
static char waiting_for[ECM_TEXT_LEN];
static int	blocking_pid;
static bool blocker_reported;	/* of the slot's creation */
static EcmError last_reported;
static bool too_many_recreations;	/* that is why it has failed */

/* timers */
static EcmTime status_check_at;
static EcmTime sample_at;
static EcmPin consumer_pin;		/* a consumer that holds the slot back */
static TransactionId slot_horizon;	/* no new slot while older ones run */
static EcmTime alive_check_at;
static EcmTime pause_until;		/* of reading the stream, 0: don't */
static EcmTime ask_at;
static int	ask_delay_ms;
static XLogRecPtr asked_for;	/* the highest await_lsn seen */
static bool congested;			/* a consumer's queue is full */
static bool closed_unread;		/* the stream's other side has gone meanwhile */

/* where the stream was lost; it counts again when it has got beyond that */
static XLogRecPtr lost_at;		/* the farthest that was acknowledged by then */
static XLogRecPtr lost_end;		/* the end of WAL, then */
static bool last_word;			/* ask for it */
static EcmTime last_word_asked; /* of this stream; 0: not yet */
static EcmTime catches_up_until;	/* no limit on retained WAL before; 0: none */

static char *settings_signature;
static bool reload_again;		/* the catalog could not be read */
static Oid	extension_oid;		/* another one means: dropped and created again */
static bool extension_gone = false;
static bool cleaned_up = false;

static void handle_event(EcmEventType type, const EcmStepFailure *failure);
static void report_failure(const EcmStepFailure *failure);
static void note_loss(void);
static bool may_catch_up(EcmTime now);
static void clean_up(void);

static void
forget_wait(void)
{
	waiting_for[0] = '\0';
	blocking_pid = 0;
}

static void
event(const char *name, EcmSeverity severity, const char *detail,
	  const char *message)
{
	ecm_event(MyDatabaseId, stack->datname, name, severity, detail, "%s", message);
}

/* ----------------------------------------------------- pool and timeline -- */

static void
step_job_done(void *arg pg_attribute_unused(),
			  EcmConn *conn pg_attribute_unused(), const EcmError *err)
{
	step_job = 0;
	if (err == NULL)
	{
		step_job_result = ECM_RESULT_DONE;
		return;
	}
	ecm_failure_set(&step_job_failure, err, ECM_CONTEXT_POOL);

	/* the stream goes on without a pool that has been there, and will be again */
	if (state.streaming_up && step_job_failure.kind == ECM_ERROR_FATAL)
		step_job_failure.kind = ECM_ERROR_RETRY;
	step_job_result = ECM_RESULT_FAILED;
}

static void
start_step_job(const char *sql, int timeout_ms)
{
	step_job_result = ECM_RESULT_PENDING;
	step_job = ecm_pool_submit(sql, timeout_ms, step_job_done, NULL);
}

static EcmStepResult
poll_step_job(EcmStepFailure *failure)
{
	*failure = step_job_failure;
	return step_job_result;
}

static void
pool_answered(void *arg, EcmConn *conn, const EcmError *err)
{
	step_job_done(arg, conn, err);
	if (err == NULL && !ecm_leads_here(conn, &step_job_failure))
		step_job_result = ECM_RESULT_FAILED;
}

/* The pool is initialised when a session has answered, from the right place. */
static void
start_pool(void)
{
	step_job_result = ECM_RESULT_PENDING;
	step_job = ecm_pool_submit(ecm_whereabouts_sql(), JOB_TIMEOUT_MS,
							   pool_answered, NULL);
}

static char *
disown_slot_sql(const char *name)
{
	return psprintf("UPDATE _electric_cm.stack SET slot_name = NULL"
					" WHERE slot_name = %s", ecm_quote_literal(name));
}

/* Does the table say that the slot is ours? */
static bool
slot_is_recorded(void)
{
	return remembered.owns_slot &&
		strcmp(NameStr(remembered.slot_name), stack->slot.name) == 0;
}

static void
read_remembered(void *arg)
{
	ecm_timeline_read(arg);
}

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

/*
 * Who had shapes has to create them again.  Not everybody sees an event, so
 * electric_cm_health() goes on saying so for a while.
 */
static void
report_lost_shapes(const char *reason)
{
	int64		n = -1;
	EcmError	err;

	(void) ecm_worker_try(count_shapes, &n, &err);
	if (n == 0)
		event("shapes_invalidated", ECM_SEVERITY_LOG, reason, "there were no shapes");
	else
		event("shapes_invalidated", ECM_SEVERITY_WARNING, reason,
			  n < 0 ? "all shapes of this database are gone: create them again" :
			  psprintf("all " INT64_FORMAT " shapes of this database are gone: create them again", n));
	if (n == 0)
		return;
	ecm_lock(LW_EXCLUSIVE);
	stack->lost.count = n;
	stack->lost.at = ecm_now();
	ecm_copy_text(stack->lost.reason, sizeof(stack->lost.reason), reason);
	ecm_unlock();
}

static void
start_timeline(void)
{
	const char *mismatch;
	char	   *sql;
	char	   *assign_sql;
	char	   *disown_sql;
	char	   *runs_sql;
	EcmError	err;

	step_job_result = ECM_RESULT_FAILED;
	step_job_failure.kind = ECM_ERROR_RETRY;
	if (!ecm_worker_try(read_remembered, &remembered, &err))
	{
		step_job_failure.err = err;
		return;
	}
	if (!ecm_replication_info()->slot_created &&
		ecm_timeline_left(&remembered, ecm_replication_info()))
	{
		ecm_error_set(&step_job_failure.err, "55000",
					  psprintf("replication slot \"%s\" is of another timeline",
							   stack->slot.name),
					  "It has come with a copy of the data directory.", "");
		step_job_failure.kind = ECM_ERROR_RECREATE;
		return;
	}
	mismatch = ecm_timeline_mismatch(&remembered, ecm_replication_info(), MyDatabaseId);
	sql = ecm_timeline_record_sql(&remembered, ecm_replication_info(),
								  MyDatabaseId, mismatch);
	if (mismatch != NULL && remembered.known)
		report_lost_shapes(mismatch);
	assign_sql = ecm_feed_assign_sql();
	disown_sql = slot_is_recorded() && !ecm_slot_owner_look(stack_index, false) ?
		disown_slot_sql(stack->slot.name) : NULL;
	runs_sql = mismatch == NULL && !ecm_runs_seen(remembered.seen_lsn) ?
		psprintf("SELECT _electric_cm.check_runs(%s)",
				 ecm_quote_literal(stack->slot.name)) : NULL;
	if (sql != NULL || assign_sql != NULL || disown_sql != NULL || runs_sql != NULL)
		start_step_job(psprintf("%s;%s;%s;%s", runs_sql ? runs_sql : "", sql ? sql : "",
								assign_sql ? assign_sql : "",
								disown_sql ? disown_sql : ""),
					   runs_sql ? 0 : JOB_TIMEOUT_MS);	/* the WAL may be long */
	else
		step_job_result = ECM_RESULT_DONE;
}

static EcmStepResult
poll_timeline(EcmStepFailure *failure)
{
	EcmStepResult result = poll_step_job(failure);

	if (result == ECM_RESULT_DONE)
	{
		ecm_replication_slot_settled();
		ecm_lock(LW_EXCLUSIVE);
		stack->requests.adopt = false;
		ecm_unlock();
	}
	return result;
}

/* ---------------------------------------------------------- former slot -- */

static void
ignore_result(void *arg pg_attribute_unused(),
			  EcmConn *conn pg_attribute_unused(),
			  const EcmError *err pg_attribute_unused())
{
}

/* Is there a slot of that name that the stack could use? */
static bool
slot_is_usable(const char *name, EcmSlotFacts *facts)
{
	return ecm_slot_lookup(name, facts) && facts->logical &&
		facts->database == MyDatabaseId && strcmp(facts->plugin, "pgoutput") == 0;
}

/*
 * electric_cm.slot_name was changed, and nobody else would look after the slot
 * that we have created under the former name.  It stays as long as somebody
 * uses it, or we don't get the new one.
 */
static void
retire_former_slot(void)
{
	EcmSlotFacts facts;
	EcmError	err;
	char		name[NAMEDATALEN];

	strlcpy(name, stack->former.name, sizeof(name));
	if (name[0] == '\0')
		return;
	if (ecm_slot_owner_look(stack_index, true))
	{
		if (!ecm_slot_lookup(name, &facts) || facts.active_pid != 0)
			return;
		if (ecm_slot_lookup(stack->slot.name, &facts) &&
			!slot_is_usable(stack->slot.name, &facts))
			return;
		if (!ecm_slot_drop(name, &err))
			return;
		ecm_publish_former_slot(stack_index, "", InvalidXLogRecPtr);
		event("replication_slot_dropped", ECM_SEVERITY_WARNING,
			  psprintf("The stack uses replication slot \"%s\" now.", stack->slot.name),
			  psprintf("dropped replication slot \"%s\"", name));
	}
	else if (stack->former.name[0] != '\0')
		return;
	(void) ecm_pool_submit(disown_slot_sql(name), JOB_TIMEOUT_MS, ignore_result,
						   NULL);
}

/* ---------------------------------------------------------------- steps -- */

/*
 * What runs a step.  Steps without functions of their own belong to the
 * replication connection.
 */
typedef struct StepFunctions
{
	void		(*start) (void);
	EcmStepResult (*poll) (EcmStepFailure *failure);
} StepFunctions;

static const StepFunctions step_functions[ECM_NUM_STEPS] = {
	[ECM_STEP_ACQUIRE_LOCK] = {ecm_exclusive_lock_start, ecm_exclusive_lock_poll},
	[ECM_STEP_START_POOL] = {start_pool, poll_step_job},
	[ECM_STEP_CHECK_TIMELINE] = {start_timeline, poll_timeline},
	[ECM_STEP_START_CONSUMERS] = {ecm_feed_start, ecm_feed_poll_start},
};

static void
run_step(void)
{
	const StepFunctions *functions = &step_functions[state.step];

	forget_wait();
	blocker_reported = false;
	if (functions->start)
	{
		functions->start();
		return;
	}
	if (state.step == ECM_STEP_CONNECT_REPLICATION)
		ecm_replication_close();	/* what a failed attempt has left */
	if (state.step == ECM_STEP_CREATE_SLOT)
	{
		retire_former_slot();
		status_check_at = ecm_later(ecm_now(), SLOT_HELP_MS);
	}
	ecm_replication_start_step(state.step, ecm_feed_start_lsn());
}

/*
 * The step that was just completed has told us something worth showing.
 */
static void
step_completed(EcmStep step)
{
	if (step == ECM_STEP_PG_INFO)
	{
		ecm_publish_lookup();
		event("pg_info_looked_up", ECM_SEVERITY_LOG, "",
			  psprintf("server version %d, timeline %u",
					   ecm_replication_info()->server_version_num,
					   ecm_replication_info()->timeline_id));
	}
	else if (step == ECM_STEP_CREATE_SLOT && ecm_replication_info()->slot_created)
	{
		(void) ecm_publish_slot(stack_index, stack->slot.name, !ecm_slot_temporary,
								ecm_replication_info()->confirmed_flush_lsn, false);
		event("replication_slot_created", ECM_SEVERITY_LOG, "",
			  psprintf("created replication slot \"%s\"", stack->slot.name));
	}
	else if (step == ECM_STEP_START_STREAMING)
	{
		ecm_creations_scan();
		sample_at = 0;			/* the slot is ours now: look at it */
		ask_at = 0;
	}
}

/*
 * Consumers get no background worker: others have been faster.  Rather than keep
 * one with which another stack could run, this one ends, and is started again
 * when there are enough.
 */
static void
give_way(const EcmStepFailure *failure)
{
	static int	failures = 0;

	failures = strcmp(failure->err.sqlstate, "53000") == 0 ? failures + 1 : 0;
	if (failures < MAX_WORKER_FAILURES)
		return;
	report_failure(failure);
	clean_up();
	ecm_lock(LW_EXCLUSIVE);
	stack->manager.gave_way = true;
	ecm_unlock();
	proc_exit(0);
}

/*
 * The default name of the slot turns out to be that of another database's: the
 * next manager computes it anew, and comes to another one.
 */
static bool
takes_another_name(const EcmStepFailure *failure)
{
	const char *name;

	if (state.step != ECM_STEP_CREATE_SLOT || ecm_slot_name[0] != '\0' ||
		strcmp(failure->err.sqlstate, "42710") != 0)
		return false;
	name = ecm_timeline_slot_name(&remembered, stack->datname);
	if (strcmp(name, stack->slot.name) == 0)
		return false;
	if (stack->requests.restart)
		return true;
	event("slot_name_taken", ECM_SEVERITY_LOG, failure->err.message,
		  psprintf("the stack restarts to use replication slot \"%s\"", name));
	(void) ecm_stack_request(MyDatabaseId, ECM_REQUEST_RESTART);
	return true;
}

/*
 * Polls the running step until it has to wait for something.
 */
static void
poll_step(void)
{
	while (state.running && state.step != ECM_STEP_STREAMING)
	{
		const StepFunctions *functions = &step_functions[state.step];
		EcmStepFailure failure;
		EcmStepResult result;
		EcmStep		step = state.step;

		result = functions->poll ? functions->poll(&failure) :
			ecm_replication_poll_step(step, &failure);
		if (result == ECM_RESULT_PENDING)
			return;
		if (result == ECM_RESULT_DONE)
		{
			step_completed(step);
			handle_event(ECM_EVENT_STEP_DONE, NULL);
			continue;
		}

		if (takes_another_name(&failure))
			return;
		if (step == ECM_STEP_START_CONSUMERS)
			give_way(&failure);

		/* a step that fails with its connection is a lost connection */
		if (step > ECM_STEP_CONNECT_REPLICATION && functions->poll == NULL &&
			ecm_conn_state(ecm_replication_conn()) == ECM_CONN_FAILED)
			handle_event(ECM_EVENT_REPLICATION_LOST, &failure);
		else
			handle_event(ECM_EVENT_STEP_FAILED, &failure);
	}
}

/*
 * While other steps run, or a retry is due, nobody else would notice that the
 * replication session has ended.
 */
static void
poll_idle_replication(void)
{
	EcmConn    *conn = ecm_replication_conn();
	EcmStepFailure failure;

	if (conn == NULL || !state.replication_up || state.streaming_up ||
		(state.running && step_functions[state.step].poll == NULL))
		return;
	if (ecm_conn_poll(conn) != ECM_CONN_FAILED)
		return;
	ecm_failure_set(&failure, ecm_conn_error(conn), ECM_CONTEXT_OTHER);
	handle_event(ECM_EVENT_REPLICATION_LOST, &failure);
}

/* -------------------------------------------------------------- actions -- */

/*
 * The stream is gone, and with it whatever was half received.
 */
static void
close_replication(void)
{
	ecm_replication_close();
	ecm_feed_stream_lost();
	ecm_creations_forget();
	ecm_retention_stream_lost();
	if (step_job != 0)
		ecm_pool_cancel(step_job);
	step_job = 0;
	pause_until = 0;
	congested = false;
	last_word_asked = 0;
	forget_wait();
}

/* From the beginning: whatever may be wrong with them, nothing is kept. */
static void
close_everything(void)
{
	close_replication();
	ecm_feed_stop();
	ecm_pool_close();
	ecm_events_forget();
	ecm_pool_init(stack->datname);
}

static void
act(EcmAction action)
{
	switch (action)
	{
		case ECM_ACTION_NONE:
			break;
		case ECM_ACTION_RUN_STEP:
			run_step();
			break;
		case ECM_ACTION_CLOSE_REPLICATION:
			close_replication();
			break;
		case ECM_ACTION_RECREATE:
			close_replication();
			ecm_replication_recreate_slot();
			break;
		case ECM_ACTION_RESTART:
			close_everything();
			event("stack_restarting", ECM_SEVERITY_WARNING,
				  "Its consumers keep dying. The server log has their reasons.",
				  "the stack restarts from the beginning");
			break;
		case ECM_ACTION_FAIL:
			close_everything();
			break;
	}
}

/* Do two texts differ in nothing but their numbers, such as PIDs? */
static bool
says_the_same(const char *a, const char *b)
{
	const char *digits = "0123456789";

	for (;;)
	{
		size_t		a_digits = strspn(a, digits);
		size_t		b_digits = strspn(b, digits);

		if ((a_digits > 0) != (b_digits > 0))
			return false;
		a += a_digits;
		b += b_digits;
		if (*a != *b)
			return false;
		if (*a == '\0')
			return true;
		a++;
		b++;
	}
}

/*
 * Shows a failure, and logs it unless it is the same one again.
 */
static void
report_failure(const EcmStepFailure *failure)
{
	const EcmError *err = &failure->err;
	bool		fatal = failure->kind == ECM_ERROR_FATAL;

	ecm_publish_error(err);
	ecm_publish_connections();	/* while the one that failed is still there */
	if (!fatal && strcmp(err->sqlstate, last_reported.sqlstate) == 0 &&
		says_the_same(err->message, last_reported.message))
		return;
	last_reported = *err;
	event(fatal ? "config_error" :
		  state.step == ECM_STEP_ACQUIRE_LOCK ?
		  "failed_to_acquire_connection_lock" : "connection_error",
		  fatal ? ECM_SEVERITY_ERROR : ECM_SEVERITY_WARNING,
		  err->hint[0] ? err->hint : err->detail,
		  psprintf("%s: %s", ecm_step_name(state.step), err->message));
}

/* Each one costs all shapes, so there is an end to it. */
static void
report_too_many_recreations(const EcmError *last)
{
	EcmStepFailure failure = {.kind = ECM_ERROR_FATAL};

	ecm_error_set(&failure.err, last->sqlstate,
				  psprintf("the replication slot had to be made anew more than %d times within an hour, the last time because: %s",
						   ECM_MAX_RECREATIONS_PER_HOUR, last->message),
				  last->detail,
				  "See electric_cm_events for what happened. Remove the cause, then run electric_cm_start() or reload the configuration.");
	report_failure(&failure);
	too_many_recreations = true;
}

/* There is no way past what the walsender fails at, but to begin behind it. */
static void
report_stuck(const EcmError *err)
{
	event("stream_given_up", ECM_SEVERITY_ERROR,
		  psprintf("%s%sAll shapes of this database have to be created again.",
				   err->hint, err->hint[0] != '\0' ? " " : ""),
		  psprintf("the stream fails again and again at the same place, after %X/%X, and begins anew behind it: %s",
				   LSN_FORMAT_ARGS(lost_at), err->message));
}

static void
handle_event(EcmEventType type, const EcmStepFailure *failure)
{
	EcmEvent	e = {type, failure ? failure->kind : ECM_ERROR_RETRY, false};
	EcmAction	action;

	if (failure != NULL)
		report_failure(failure);
	if (type == ECM_EVENT_REPLICATION_LOST && failure != NULL)
		e.stuck = !ecm_error_may_pass(&failure->err);
	if (failure != NULL && state.streaming_up)
	{
		note_loss();
		if (e.kind == ECM_ERROR_RETRY && type != ECM_EVENT_POOL_LOST)
			(void) may_catch_up(ecm_now());
	}
	action = ecm_state_step(&state, e, ecm_now());
	if (e.kind == ECM_ERROR_RECREATE || action == ECM_ACTION_RECREATE)
		sample_at = 0;			/* take a last look at the slot */
	if (action == ECM_ACTION_FAIL && e.kind != ECM_ERROR_FATAL)
		report_too_many_recreations(&failure->err);
	if (action == ECM_ACTION_RECREATE && e.kind == ECM_ERROR_RETRY)
		report_stuck(&failure->err);
	act(action);
}

/* The stack has become active, or is not any more. */
static void
note_active(void)
{
	static bool was_active = false;
	bool		active = ecm_state_status(&state) == ECM_STATUS_ACTIVE;

	if (active && !was_active)
	{
		memset(&last_reported, 0, sizeof(last_reported));	/* news again */
		event("ready", ECM_SEVERITY_LOG, "", "streaming");
	}
	was_active = active;
}

/* --------------------------------------------------------------- stream -- */

/*
 * What a loss, or a restart, has cost shall not cost the slot: the next stream
 * may catch up first.  But only if the slot has moved since the last time, for
 * one that is lost again and again would put off the limit for ever.  False: it
 * has not.
 */
static bool
may_catch_up(EcmTime now)
{
	static XLogRecPtr restart_lsn = InvalidXLogRecPtr;
	static XLogRecPtr confirmed_lsn = InvalidXLogRecPtr;
	EcmSlotFacts facts;

	if (!ecm_slot_lookup(stack->slot.name, &facts) ||
		(facts.restart_lsn == restart_lsn &&
		 facts.confirmed_flush_lsn == confirmed_lsn))
		return false;
	restart_lsn = facts.restart_lsn;
	confirmed_lsn = facts.confirmed_flush_lsn;
	catches_up_until = ecm_later(now, CATCH_UP_MS);
	return true;
}

/*
 * Notes how far the stream had come when it was lost.
 */
static void
note_loss(void)
{
	XLogRecPtr	flushed = ecm_feed_durable_lsn(ecm_replication_keepalive_lsn());

	flushed = Max(flushed, ecm_replication_acknowledged());
	if (!state.behind)
		lost_at = InvalidXLogRecPtr;
	lost_at = Max(lost_at, flushed);
	if (!state.behind)
		lost_end = Min(GetFlushRecPtr(NULL), ecm_end_of_wal());
}

/*
 * Reads what has come and hands it on, as long as there is room.
 */
static void
read_stream(EcmTime now)
{
	EcmStepFailure failure;
	Size		bytes = 0;
	bool		lost = false;

	if (!state.streaming_up)
		return;
	congested = !ecm_feed_flush();
	if (congested)
	{
		pause_until = 0;		/* the consumer wakes us, not the clock */
		ecm_replication_excuse_silence();
	}
	if (congested && closed_unread)
	{
		/* what is in the socket comes again */
		ecm_error_set(&failure.err, "08006", "the replication stream has ended",
					  "It was not read from, since a consumer was behind.", "");
		failure.kind = ECM_ERROR_RETRY;
		handle_event(ECM_EVENT_REPLICATION_LOST, &failure);
		return;
	}
	if (congested || now < pause_until)
		return;

	while (bytes < ROUND_BYTES)
	{
		const char *data;
		int			len;
		int			n = ecm_replication_next(&data, &len, &failure);

		if (n == 0)
		{
			/* the buffer is empty: is there more in the socket? */
			Size		before = bytes;

			if (!ecm_replication_read(&failure))
				n = -1;
			else
			{
				n = ecm_replication_next(&data, &len, &failure);
				if (n == 0 && before == bytes)
					break;
			}
		}
		if (n < 0)
		{
			lost = true;
			break;
		}
		bytes += len;
		if (!ecm_feed_message(data, len))
		{
			congested = true;
			break;
		}
	}
	if (lost)
	{
		handle_event(ECM_EVENT_REPLICATION_LOST, &failure);
		return;
	}
	if (!congested)
		congested = !ecm_feed_flush();
	pause_until = bytes >= BUSY_BYTES && !congested ?
		ecm_later(now, BUSY_PAUSE_MS) : 0;
}

/*
 * Somebody waits for a position that a silent stream would not reach by
 * itself: ask the walsender how far it is, gently.
 */
static bool
must_ask(EcmTime now, XLogRecPtr flushed)
{
	XLogRecPtr	target = ecm_stack_awaited_lsn(stack_index);

	if (state.behind)
		target = Max(target, lost_end);

	/* the target may lie in the future, and whoever set it may have left */
	if (Min(target, GetFlushRecPtr(NULL)) <= flushed)
	{
		ask_at = 0;
		return false;
	}
	if (target > asked_for || ask_at == 0)
	{
		asked_for = Max(asked_for, target);
		ask_delay_ms = ASK_MIN_MS;
		ask_at = now;
	}
	if (now < ask_at)
		return false;
	ask_at = ecm_later(now, ask_delay_ms);
	ask_delay_ms = Min(ask_delay_ms * 2, ASK_MAX_MS);
	return true;
}

static EcmTime
feedback_due(XLogRecPtr flushed)
{
	int			ms = ecm_replication_feedback_interval();

	if (flushed > ecm_replication_acknowledged())
		ms = Min(ms, ACKNOWLEDGE_MS);
	return ecm_later(ecm_replication_last_feedback(), ms);
}

/*
 * A stream with nothing in it sounds like one that is dead, so the walsender is
 * asked for an answer, as often as it wants to hear from us.
 */
static EcmTime
sign_of_life_due(void)
{
	return ecm_later(Max(ecm_replication_last_asked(),
						 ecm_conn_heard_at(ecm_replication_conn())),
					 ecm_replication_feedback_interval());
}

/* Who says something anyway can ask a little earlier. */
static bool
must_hear(EcmTime now, bool early)
{
	return now >= sign_of_life_due() -
		(early ? ecm_replication_feedback_interval() * INT64CONST(500) : 0);
}

/*
 * Has the stream got beyond where it was lost?  A keepalive that is a little
 * farther on says little: the walsender may fail a little later, as before.
 */
static bool
is_beyond_loss(XLogRecPtr flushed)
{
	XLogRecPtr	received = ecm_feed_received_lsn();

	return flushed >= lost_end || (received > lost_at && flushed >= received) ||
		flushed > lost_at + PROGRESS_BYTES;
}

/*
 * Tells the walsender what is durable, and everybody else, too.
 */
static EcmTime
give_feedback(EcmTime now)
{
	XLogRecPtr	keepalive = ecm_replication_keepalive_lsn();
	XLogRecPtr	flushed;
	XLogRecPtr	received;
	bool		due;
	bool		ask;
	EcmStepFailure failure;

	if (!state.streaming_up)
		return 0;
	flushed = Max(ecm_feed_durable_lsn(keepalive), ecm_replication_acknowledged());
	received = Max(ecm_feed_received_lsn(), keepalive);
	received = Max(received, flushed);
	if (state.behind && !congested && is_beyond_loss(flushed))
		handle_event(ECM_EVENT_PROGRESS, NULL);
	due = now >= feedback_due(flushed) || ecm_replication_reply_requested();
	ask = must_ask(now, flushed) || must_hear(now, due) || last_word;
	last_word = false;
	if (((ask || due) &&
		 !ecm_replication_feedback(received, flushed, ask, &failure)) ||
		ecm_replication_is_silent(now, &failure))
	{
		handle_event(ECM_EVENT_REPLICATION_LOST, &failure);
		return 0;
	}
	ecm_publish_positions(received, flushed, ecm_replication_acknowledged(),
						  ecm_feed_last_commit_at());
	return ecm_earlier(ecm_earlier(feedback_due(flushed), sign_of_life_due()),
					   ecm_earlier(ask_at, ecm_replication_silence_deadline()));
}

/*
 * A giant has left this process, or the walsender, with memory that only a new
 * connection gives back.  It begins behind the giant, or that would be decoded
 * again; what it needs for that is a standby snapshot, now and then.
 */
static EcmTime
renew_stream(EcmTime now)
{
	static XLogRecPtr renewing_for;
	static EcmTime look_at;
	static int	delay_ms;
	static EcmTime renewed_at;
	XLogRecPtr	giant = ecm_feed_giant_lsn();
	EcmSlotFacts facts;

	if (!state.streaming_up || XLogRecPtrIsInvalid(giant))
		return 0;
	if (giant != renewing_for)
	{
		renewing_for = giant;
		delay_ms = renewed_at != 0 && !ecm_has_passed(renewed_at, now, RENEW_PAUSE_MS) ?
			RENEW_PAUSE_MS : RENEW_MIN_MS;
		look_at = ecm_later(now, delay_ms);
	}
	if (now < look_at)
		return look_at;
	delay_ms = Min(delay_ms * 2, RENEW_MAX_MS);
	look_at = ecm_later(now, delay_ms);
	if (!ecm_slot_lookup(stack->slot.name, &facts) || facts.restart_lsn <= giant)
		(void) LogStandbySnapshot();
	else if (congested || ecm_feed_in_transaction())
		look_at = ecm_later(now, RENEW_MIN_MS / 10);
	else
	{
		ereport(LOG,
				(errmsg("electric_cm in database \"%s\": the replication connection is opened anew, since a row or message of more than %d MB has made it large",
						stack->datname, ECM_GIANT_BYTES / (1024 * 1024))));
		renewed_at = now;
		handle_event(ECM_EVENT_REPLICATION_LOST, NULL);
		return 0;
	}
	return look_at;
}

/* --------------------------------------------------------------- checks -- */

static void
find_slot_blocker(void *arg pg_attribute_unused())
{
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

		blocking_pid = pid ? atoi(pid) : 0;
		snprintf(waiting_for, sizeof(waiting_for),
				 "the end of older transactions; the oldest is %s",
				 who ? who : "unknown");
	}
	ecm_spi_end(&spi);
}

/*
 * A slot creation waits for every transaction that was running, and then for
 * the next standby snapshot, which on an idle server may be far away.
 */
static void
help_slot_creation(void)
{
	EcmError	err;

	forget_wait();
	(void) ecm_worker_try(find_slot_blocker, NULL, &err);
	if (!blocker_reported && waiting_for[0] != '\0')
	{
		event("replication_slot_creation_blocked_by_pending_transactions",
			  ECM_SEVERITY_WARNING,
			  "The slot is created when all transactions that run now have ended.",
			  psprintf("waiting for %s", waiting_for));
		blocker_reported = true;
	}
	LogStandbySnapshot();
}

/*
 * A slot that was dropped, or whose creation was ended, for the sake of a limit
 * is not made anew while transactions run that did then: its creation would wait
 * for them, and all the while hold WAL back again.
 */
static bool
must_wait_for_transactions(void)
{
	if (!TransactionIdIsValid(slot_horizon))
		return false;
	if (!TransactionIdPrecedes(GetOldestActiveTransactionId(), slot_horizon))
		slot_horizon = InvalidTransactionId;
	return TransactionIdIsValid(slot_horizon);
}

static void
hold_slot(void)
{
	const char *why = ecm_wal_no_room(stack_index);
	EcmError	err;
	int			pid = 0;

	if (why == NULL && must_wait_for_transactions())
	{
		forget_wait();
		if (!ecm_worker_try(find_slot_blocker, NULL, &err) || waiting_for[0] == '\0')
			strlcpy(waiting_for, "the end of older transactions", sizeof(waiting_for));
		why = psprintf("%s: a slot that is made meanwhile would pass a limit of WAL again",
					   waiting_for);
		pid = blocking_pid;
	}
	ecm_replication_hold_slot(why, pid);
}

/* Somebody else has the lock, or uses the slot that we are about to take. */
static void
show_blocker(void)
{
	static bool shown = false;
	int			pid;
	const char *text = state.step == ECM_STEP_ACQUIRE_LOCK ?
		ecm_exclusive_lock_waiting_for(&pid) : ecm_replication_waiting_for(&pid);

	if (text != NULL)
	{
		strlcpy(waiting_for, text, sizeof(waiting_for));
		blocking_pid = pid;
	}
	else if (shown)
		forget_wait();
	shown = text != NULL;
}

/* Who has locked what one of our sessions waits for? */
static void
find_lock_blocker(void *arg pg_attribute_unused())
{
	EcmSpiState spi;
	StringInfoData pids;

	initStringInfo(&pids);
	if (ecm_replication_conn() != NULL)
		appendStringInfo(&pids, "%d", ecm_conn_backend_pid(ecm_replication_conn()));
	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
		if (ecm_pool_session(i) != NULL)
			appendStringInfo(&pids, "%s%d", pids.len > 0 ? "," : "",
							 ecm_conn_backend_pid(ecm_pool_session(i)));
	ecm_spi_begin(&spi);
	/* whoever waits before us in the same queue is not to blame */
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

		blocking_pid = pid ? atoi(pid) : 0;
		snprintf(waiting_for, sizeof(waiting_for), "a lock that is held by %s",
				 who ? who : "nobody any more");
	}
	ecm_spi_end(&spi);
}

/*
 * A step that waits for somebody's lock says for whose, for as long as it is
 * tried again; returns when to look next (0: no need).
 */
static EcmTime
show_lock_blocker(EcmTime now)
{
	static EcmTime look_at = 0;
	static EcmStep shown = ECM_STEP_STREAMING;
	EcmError	err;

	if (shown != ECM_STEP_STREAMING && shown != state.step)
	{
		forget_wait();
		shown = ECM_STEP_STREAMING;
	}
	if (!state.running ||
		(step_job == 0 && state.step != ECM_STEP_CREATE_PUBLICATION))
		return look_at = 0;

	if (look_at == 0)
		look_at = now + USECS_PER_SEC;	/* most steps are over by then */
	else if (now >= look_at)
	{
		waiting_for[0] = '\0';
		(void) ecm_worker_try(find_lock_blocker, NULL, &err);
		if (waiting_for[0] == '\0')
			forget_wait();
		shown = state.step;
		look_at = now + USECS_PER_SEC;
	}
	return look_at;
}

/* It streams, but has not got beyond where it has failed before. */
static void
show_doubt(void)
{
	static bool shown = false;
	bool		doubtful = ecm_state_is_doubtful(&state);

	if (doubtful)
		snprintf(waiting_for, sizeof(waiting_for),
				 "the stream to get beyond %X/%X, where it was lost%s%s",
				 LSN_FORMAT_ARGS(lost_at), stack->report.last_error[0] != '\0' ? ": " : "",
				 stack->report.last_error);
	else if (shown)
		forget_wait();
	shown = doubtful;
}

typedef struct StalledArg
{
	EcmStalledConsumer consumer;
	char		text[ECM_TEXT_LEN];
} StalledArg;

/* Adds what can be found out about why it is stuck. */
static void
describe_stalled(void *arg)
{
	StalledArg *a = arg;
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	if (SPI_execute(psprintf("SELECT concat("
							 "(SELECT ', working on shape ' || handle FROM _electric_cm.shape WHERE id = " INT64_FORMAT "),"
							 " ', blocked by PID ' || nullif(array_to_string(pg_blocking_pids(%d), ', '), ''))",
							 a->consumer.shape, a->consumer.pid),
					true, 1) == SPI_OK_SELECT && SPI_processed == 1)
		strlcat(a->text, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1),
				sizeof(a->text));
	ecm_spi_end(&spi);
}

/*
 * A consumer that hangs pins the slot for all of them.  It is not ended: what
 * blocks it would block the next one, too, and a stopped process can't even be
 * ended.  But it is named.
 */
static void
check_consumers(EcmTime now)
{
	static EcmTime stalled_since = 0;	/* of the one that was reported */
	StalledArg	arg;
	EcmError	err;

	if (!ecm_feed_find_stalled(now, ecm_consumer_stall_timeout, &arg.consumer))
	{
		if (stalled_since != 0)
			event("consumer_resumed", ECM_SEVERITY_LOG, "",
				  "all consumers make progress again");
		if (consumer_pin.by[0] != '\0')
			sample_at = 0;		/* shows that it is over */
		stalled_since = 0;
		memset(&consumer_pin, 0, sizeof(consumer_pin));
		return;
	}
	snprintf(arg.text, sizeof(arg.text), "consumer %d (PID %d)",
			 arg.consumer.worker + 1, arg.consumer.pid);
	(void) ecm_worker_try(describe_stalled, &arg, &err);
	strlcpy(consumer_pin.by, arg.text, sizeof(consumer_pin.by));
	consumer_pin.since = ecm_shown_time(arg.consumer.since);
	consumer_pin.certain = true;
	sample_at = 0;				/* shows it */
	if (stalled_since != arg.consumer.since)
		event("consumer_stalled", ECM_SEVERITY_WARNING,
			  "It has work to do and pins the replication slot.",
			  psprintf("%s makes no progress since %s", arg.text,
					   timestamptz_to_str(consumer_pin.since)));
	stalled_since = arg.consumer.since;
}

/*
 * One that does not move is shown long before it counts as hanging, since its
 * readers get nothing.
 */
static void
show_stalled(EcmTime now)
{
	static EcmTime shown = 0;	/* since when the one that is shown stalls */
	StalledArg	arg;
	EcmError	err;

	if (!ecm_feed_find_stalled(now, CONSUMER_STALLED_MS, &arg.consumer))
		arg.consumer.since = 0;
	if (arg.consumer.since == shown)
		return;
	arg.text[0] = '\0';
	if (arg.consumer.since != 0)
	{
		snprintf(arg.text, sizeof(arg.text), "consumer %d (PID %d)",
				 arg.consumer.worker + 1, arg.consumer.pid);
		(void) ecm_worker_try(describe_stalled, &arg, &err);
	}
	shown = arg.consumer.since;
	ecm_lock(LW_EXCLUSIVE);
	ecm_copy_text(stack->stall.text, sizeof(stack->stall.text), arg.text);
	stack->stall.pid = shown != 0 ? arg.consumer.pid : 0;
	stack->stall.at = shown;
	ecm_unlock();
}

/*
 * Whoever waits for a position says so again when he is woken; who has left
 * does not, and nobody else would take his word back.
 */
static void
forget_await(void)
{
	bool		forget = ecm_stack_awaited_lsn(stack_index) > stack->progress.flushed_lsn;

	if (!forget)
		return;
	ecm_lock(LW_EXCLUSIVE);
	stack->requests.await_lsn = InvalidXLogRecPtr;
	ecm_unlock();
	asked_for = InvalidXLogRecPtr;
	ConditionVariableBroadcast(&stack->cv);
}

/*
 * Are those still there that we believe to be?  What hangs, or is cut off, does
 * not tell.
 */
static EcmTime
check_alive(EcmTime now)
{
	EcmStepFailure failure = {.kind = ECM_ERROR_RETRY};
	EcmError	err;

	stack->manager.alive_at = now;
	if (state.pool_up && ecm_pool_is_dead(&err))
	{
		ecm_error_set(&failure.err, err.sqlstate,
					  psprintf("no session of the pool can be opened: %s", err.message),
					  err.detail, err.hint);
		handle_event(ECM_EVENT_POOL_LOST, &failure);
	}
	if (now < alive_check_at)
		return alive_check_at;
	alive_check_at = ecm_later(now, ECM_MANAGER_ROUND_MS);
	ecm_pool_check();
	if (ecm_replication_conn() != NULL)
		ecm_conn_check(ecm_replication_conn());
	if (state.streaming_up && ecm_replication_has_lost_slot(false, &failure))
		handle_event(ECM_EVENT_REPLICATION_LOST, &failure);
	if (state.consumers_up)
		show_stalled(now);
	forget_await();
	SetLatch(MyLatch);			/* as a wait in here may have reset it */
	return alive_check_at;
}

static void
find_extension(void *arg)
{
	*(Oid *) arg = get_extension_oid("electric_cm", true);
}

/*
 * Ends the manager if the extension has been dropped.  What goes with it goes
 * without us; if it was created again, the next manager starts afresh.
 */
static void
check_extension(void)
{
	EcmError	err;
	Oid			present = extension_oid;

	if (!ecm_worker_try(find_extension, &present, &err) || present == extension_oid)
		return;
	extension_gone = true;
	clean_up();
	/* in this order, lest the launcher take us for what was asked for */
	ecm_stack_set_probe(stack_index, ECM_PROBE_NO_EXTENSION);
	if (OidIsValid(present))
		(void) ecm_stack_request(MyDatabaseId, ECM_REQUEST_REPROBE);
	proc_exit(0);
}

static EcmTime
check_status(EcmTime now)
{
	EcmStepFailure failure;
	bool		requested = ecm_stack_take_check(stack_index);

	if (now < status_check_at && !requested)
		return status_check_at;
	if (state.running && ecm_replication_creates_slot())
		help_slot_creation();
	else if (state.step == ECM_STEP_CREATE_SLOT)
		hold_slot();
	if (state.step == ECM_STEP_ACQUIRE_LOCK && state.running)
		ecm_exclusive_lock_check(now);
	check_extension();
	if (requested && state.failed && !too_many_recreations)
		handle_event(ECM_EVENT_RELOAD, NULL);	/* it may have been mended */
	check_consumers(now);
	if (state.streaming_up && !ecm_replication_publication_is_good(&failure))
		handle_event(ECM_EVENT_REPLICATION_LOST, &failure);
	if (state.streaming_up)
		retire_former_slot();
	ecm_publish_shape_log_size();
	if (reload_again)
		ConfigReloadPending = true;

	/* a wait for a lock, in here, resets the latch: look at everything again */
	SetLatch(MyLatch);
	status_check_at =
		ecm_later(now, state.step == ECM_STEP_CREATE_SLOT ?
				  SLOT_HELP_MS : ecm_status_check_interval);
	return status_check_at;
}

/*
 * A walsender that has been silent for a while gets a chance to answer; one that
 * is at work, to come to an end of it.  False: not yet (no error set), or not in
 * time.
 */
static bool
has_last_word(EcmTime now, EcmStepFailure *lost)
{
	EcmTime		asked = last_word_asked;

	if (asked == 0 || now - asked > 2 * LAST_WORD_MS * INT64CONST(1000))
	{
		last_word_asked = now;
		last_word = true;
		ecm_replication_look_at_walsender();
		SetLatch(MyLatch);		/* ask at once */
		return false;
	}
	if (ecm_conn_heard_at(ecm_replication_conn()) >= asked)
		return true;
	if (ecm_replication_may_be_silent())
		return !may_catch_up(now);
	if (ecm_has_passed(asked, now, LAST_WORD_MS))
		ecm_replication_set_silent(now - asked, lost);
	return false;
}

/*
 * The slot retains too much.  A stack that is connected makes a new one,
 * which counts as any other recreation does; else the old one is just dropped,
 * and the stack will find none when it comes to that.
 */
static void
enforce_wal_limit(EcmTime now, const EcmWalAction *order)
{
	EcmStepFailure failure = {order->reason, ECM_ERROR_RECREATE};
	EcmStepFailure lost = {.kind = ECM_ERROR_RETRY};

	if ((order->why & ECM_WAL_DROP_FREE) == 0 && now < catches_up_until)
		return;

	/* a stream that is cut off, or hangs, is put up again first, once */
	if (state.streaming_up &&
		(ecm_replication_has_lost_slot(true, &lost) ||
		 ((order->why & ECM_WAL_DROP_FREE) == 0 && !congested &&
		  !has_last_word(now, &lost))))
	{
		if (lost.err.sqlstate[0] == '\0')
			return;
		if (may_catch_up(now))
		{
			handle_event(ECM_EVENT_REPLICATION_LOST, &lost);
			return;
		}
	}
	if (!state.lock_held || !state.replication_up ||
		ecm_replication_slot_is_held_up())
	{
		ecm_wal_drop_slot(stack_index, order);
		return;
	}
	if (ecm_replication_recreates_slot())
		return;					/* it is about to be dropped */
	last_reported = order->reason;	/* the event says more */
	slot_horizon = ReadNextTransactionId();
	ecm_wal_slot_goes(stack_index, order);
	handle_event(ECM_EVENT_REPLICATION_LOST, &failure);
}

/*
 * The slot that is being made retains too much.  It goes with the session
 * that makes it.  No shape depends on it yet, so this is no recreation.
 */
static void
end_slot_creation(const EcmWalAction *order)
{
	EcmStepFailure failure = {order->reason, ECM_ERROR_RETRY};

	last_reported = order->reason;
	slot_horizon = ReadNextTransactionId();
	ecm_wal_creation_ends(stack_index, order);
	handle_event(ECM_EVENT_REPLICATION_LOST, &failure);
}

/*
 * A consumer that is behind may be what holds the slot back, long before it is
 * known to hang.
 */
static void
suspect_consumer(EcmTime now, EcmPin *pin)
{
	EcmStalledConsumer last;
	XLogRecPtr	durable;
	XLogRecPtr	end = GetXLogWriteRecPtr();
	char		idle[64] = "";

	*pin = consumer_pin;
	if (pin->by[0] != '\0' || !state.streaming_up ||
		!ecm_feed_find_last(now, &last, &durable) || durable >= end)
		return;
	if (ecm_has_passed(last.since, now, CONSUMER_HANGS_MS))
		snprintf(idle, sizeof(idle), ", which has made no progress for " INT64_FORMAT " s",
				 (now - last.since) / USECS_PER_SEC);
	/* it need not be fed what does not concern it */
	durable = Min(Max(durable, ecm_replication_acknowledged()), end);
	snprintf(pin->by, sizeof(pin->by), "consumer %d (PID %d)%s, with %s of WAL to come",
			 last.worker + 1, last.pid, idle, ecm_size_text((int64) (end - durable)));
	pin->since = ecm_shown_time(last.since);
	pin->certain = false;
}

/*
 * The server invalidates a slot in a checkpoint, after it has ended the
 * walsender; but a walsender can't end while it has something to send that we
 * don't read.  So that no checkpoint has to wait for a consumer that hangs, we
 * let go of the slot as soon as it is in danger.  (While the consumer makes
 * progress, so does the walsender, and to start over would only cost time.)
 */
static void
let_go_of_slot(EcmTime now)
{
	EcmStalledConsumer consumer;
	EcmStepFailure failure = {.kind = ECM_ERROR_RETRY};

	if (!ecm_feed_find_stalled(now, CONSUMER_HANGS_MS, &consumer))
		return;
	ecm_error_set(&failure.err, "55000",
				  psprintf("replication slot \"%s\" will be lost at the next checkpoint",
						   stack->slot.name),
				  "The stream is not read, since a consumer hangs.", "");
	handle_event(ECM_EVENT_REPLICATION_LOST, &failure);
}

/*
 * A slot moves on with each record of the running transactions.  The server
 * writes these by a clock that can be set back; then nobody but us does.
 */
static void
help_slot_on(EcmTime now)
{
	static XLogRecPtr seen = InvalidXLogRecPtr;
	static EcmTime seen_at = 0;
	const EcmWalSample *wal = &stack->slot.sample;

	if (wal->restart_lsn != seen)
	{
		seen = wal->restart_lsn;
		seen_at = now;
	}
	if (!state.streaming_up || !wal->slot_exists ||
		wal->retained_wal_bytes < wal_segment_size ||
		wal->retained_wal_bytes < 2 * wal->flush_lag_bytes ||
		!ecm_has_passed(seen_at, now, SLOT_STANDS_MS))
		return;
	seen_at = now;
	LogStandbySnapshot();
}

static EcmTime
sample_wal(EcmTime now)
{
	EcmWalAction order;
	EcmPin		pin;

	if (now < sample_at && !stack->requests.sample)
		return sample_at;
	ecm_publish_connections();	/* whose walsender it is */
	suspect_consumer(now, &pin);
	sample_at = ecm_wal_watch(stack_index, &pin, &order);
	if (order.why != 0 && ecm_replication_creates_slot())
		end_slot_creation(&order);
	else if (order.why != 0 && (stack->slot.owned || ecm_slot_temporary))
		enforce_wal_limit(now, &order);
	else if (order.why != 0)
		ecm_wal_drop_slot(stack_index, &order); /* says that it stays */
	else if (state.streaming_up && congested &&
			 strcmp(stack->slot.sample.wal_status, "unreserved") == 0)
		let_go_of_slot(now);
	hold_slot();
	help_slot_on(now);
	return sample_at;
}

/*
 * Changes that need a new manager are left to the launcher; all others take
 * effect by themselves.
 */
static void
reload(void)
{
	MemoryContext old;
	char	   *signature;

	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	signature = ecm_settings_signature();
	reload_again = signature == NULL;
	if (signature != NULL && strcmp(signature, settings_signature) != 0)
	{
		event("settings_changed", ECM_SEVERITY_LOG, "", "settings have changed: the stack restarts");
		old = MemoryContextSwitchTo(TopMemoryContext);
		settings_signature = pstrdup(signature);
		MemoryContextSwitchTo(old);
		(void) ecm_stack_request(MyDatabaseId, ECM_REQUEST_RESTART);
		return;
	}
	ecm_publish_options();
	ecm_wal_publish_settings(stack_index);
	sample_at = 0;
	too_many_recreations = false;
	handle_event(ECM_EVENT_RELOAD, NULL);
}

/* -------------------------------------------------------------- the end -- */

/*
 * Is the server shutting down?  Nothing in shared memory says so; the status
 * line of postmaster.pid does.
 */
static bool
server_is_stopping(void)
{
	FILE	   *file = AllocateFile("postmaster.pid", "r");
	char		line[256];
	bool		stopping = false;

	if (file == NULL)
		return false;
	for (int i = 1; fgets(line, sizeof(line), file) != NULL; i++)
		if (i == LOCK_FILE_LINE_PM_STATUS)
			stopping = strncmp(line, "stopping", 8) == 0;
	FreeFile(file);
	return stopping;
}

static void
record_stop(void *arg)
{
	ecm_timeline_record_stop(*(XLogRecPtr *) arg);
}

/* The slot that the table has is another one by now. */
static void
disown_slot(void *arg pg_attribute_unused())
{
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	if (SPI_execute(disown_slot_sql(stack->slot.name), false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not update _electric_cm.stack");
	ecm_spi_end(&spi);
}

static void
drop_publication(void *arg pg_attribute_unused())
{
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_timeline_drop_publications();
	(void) SPI_execute("UPDATE _electric_cm.stack SET publication_name = NULL,"
					   " slot_name = NULL, clean_stop_lsn = NULL", false, 0);
	ecm_spi_end(&spi);
}

/* The slot is free by now, unless somebody else uses it. */
static void
drop_slot(void)
{
	EcmSlotFacts facts;
	EcmError	err;

	if (!slot_is_usable(stack->slot.name, &facts) || facts.temporary)
		return;
	if (ecm_slot_drop(stack->slot.name, &err))
		event("replication_slot_dropped", ECM_SEVERITY_WARNING, "",
			  psprintf("dropped replication slot \"%s\"", stack->slot.name));
	else
		event("warning", ECM_SEVERITY_WARNING, err.message,
			  psprintf("could not drop replication slot \"%s\"", stack->slot.name));
}

/* The slot is free, as far as we are concerned. */
static void
leave_slot(bool drop, bool drained)
{
	EcmSlotFacts facts;
	EcmError	err;

	if (drop)
	{
		drop_slot();
		if (!ecm_worker_try(drop_publication, NULL, &err))
			event("warning", ECM_SEVERITY_WARNING, err.message,
				  "could not drop the publication");
	}
	else if (!drained && slot_is_usable(stack->slot.name, &facts))
	{
		if (!ecm_worker_try(record_stop, &facts.confirmed_flush_lsn, &err))
			event("warning", ECM_SEVERITY_WARNING, err.message,
				  "could not record the end of the stack");
	}
	if (!drop && slot_is_recorded() && !ecm_slot_owner_look(stack_index, false) &&
		!stack->slot.owned)
		(void) ecm_worker_try(disown_slot, NULL, &err);
}

/*
 * Leaves everything as the next manager, or nobody, should find it.  By now
 * the server may refuse connections, so all of it happens in this process.
 */
static void
clean_up(void)
{
	EcmEndReason reason;
	bool		drop;
	bool		drained;
	bool		disabled;
	EcmError	err;

	if (cleaned_up)
		return;
	cleaned_up = true;
	ecm_worker_leave();

	disabled = ecm_settings_disable();	/* by now; ecm_enabled is from our start */
	ecm_lock(LW_EXCLUSIVE);
	reason = stack->lifecycle.end_reason;
	drop = stack->requests.drop_on_stop &&
		(reason == ECM_END_STOP || reason == ECM_END_UNWANTED ||
		 (reason == ECM_END_RESTART && disabled) ||
		 (reason == ECM_END_NONE && server_is_stopping()));
	drop |= reason == ECM_END_STOP && stack->requests.drop_slot;
	if (reason != ECM_END_PAUSE)
		stack->requests.drop_on_stop = false;
	drained = reason == ECM_END_PAUSE && stack->pause.drained;
	ecm_unlock();

	ecm_pool_close();
	ecm_feed_stop();
	ecm_replication_close();

	/*
	 * The publication has gone with the extension.  The slot that is recorded
	 * is the launcher's task by now, but we may have made one since.
	 */
	if (extension_gone)
	{
		if (ecm_replication_info()->slot_created || ecm_slot_name[0] == '\0')
			ecm_leave_slot(MyDatabaseId, stack->slot.name);
		return;
	}

	ecm_worker_set("lock_timeout", "1s");
	if (state.lock_held && ecm_replication_wait_slot_free(1000))
		leave_slot(drop, drained);
	if (!drained && stack->manager.probe == ECM_PROBE_RUN && !ecm_events_store(&err))
		ereport(LOG,
				(errmsg("electric_cm in database \"%s\": could not store events: %s",
						stack->datname, err.message)));
}

/*
 * When something inside core was interrupted, the way out is a FATAL and ends
 * here; otherwise the main loop has cleaned up already.
 */
static void
at_exit(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	if (cleaned_up)
		return;
	AbortOutOfAnyTransaction();

	/* proc_exit() holds interrupts, and with them the bound on lock waits */
	RESUME_INTERRUPTS();
	clean_up();
	HOLD_INTERRUPTS();
}

/* ----------------------------------------------------------------- main -- */

typedef struct ProbeArg
{
	EcmProbe	result;
	bool		override;		/* electric_cm_start() has asked */
} ProbeArg;

/* The launcher has a look at those that aren't, too, for their slots' sake. */
static bool
database_is_open(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	Form_pg_database form;
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_database) GETSTRUCT(tuple);
	result = form->datallowconn && !form->datistemplate;
	ReleaseSysCache(tuple);
	return result;
}

/*
 * Is a stack wanted in this database?
 */
static void
probe(void *arg)
{
	ProbeArg   *p = arg;

	p->result = ECM_PROBE_NO_EXTENSION;
	extension_oid = get_extension_oid("electric_cm", true);
	if (!OidIsValid(extension_oid))
		return;
	p->result = ECM_PROBE_CLOSED;
	if (!database_is_open())
		return;
	p->result = ECM_PROBE_UNLISTED;
	if (!ecm_database_is_listed(stack->datname))
		return;
	p->result = ECM_PROBE_DISABLED;
	if (!ecm_enabled)
		return;
	ecm_timeline_read(&remembered);
	if (p->override)
		p->result = ECM_PROBE_RUN;
	else if (remembered.stopped)
		p->result = remembered.known ? ECM_PROBE_STOPPED : ECM_PROBE_NOT_STARTED;
	else if (remembered.database_oid != MyDatabaseId)
		p->result = ECM_PROBE_CLONED;
	else
		p->result = ECM_PROBE_RUN;
}

/*
 * Is the recorded slot ours still?  What has been seen since the server started
 * counts more than the table.
 */
static bool
recorded_slot_is_ours(XLogRecPtr *seen)
{
	const char *name = NameStr(remembered.slot_name);

	if (!remembered.owns_slot)
		return false;
	if (strcmp(stack->slot.name, name) == 0)
	{
		*seen = Max(stack->slot.seen_lsn, stack->progress.acknowledged_lsn);
		return stack->slot.owned;
	}
	if (strcmp(stack->former.name, name) == 0)
		*seen = stack->former.seen_lsn;
	else if (remembered.known &&
			 remembered.system_identifier != GetSystemIdentifier())
		*seen = InvalidXLogRecPtr;	/* positions there mean nothing here */
	else if (XLogRecPtrIsInvalid(remembered.clean_stop_lsn))
		*seen = ecm_first_lsn();
	else
		*seen = remembered.clean_stop_lsn + 1;	/* it may begin just there */
	return true;
}

/*
 * Which slot, and what may be done about it: also by others when we are gone.
 * A change of electric_cm.slot_name leaves another one behind.
 */
static void
publish_slot(void)
{
	const char *recorded = NameStr(remembered.slot_name);
	XLogRecPtr	seen = InvalidXLogRecPtr;
	bool		ours = recorded_slot_is_ours(&seen);
	int			attempts = 0;
	const char *name;
	bool		former;

	/* two stacks whose names would be the same may start at the same time */
	do
	{
		name = ecm_timeline_slot_name(&remembered, stack->datname);
		former = ours && strcmp(name, recorded) != 0;
	} while (!ecm_publish_slot(stack_index, name, ours && !former, seen,
							   ecm_slot_name[0] == '\0' && ++attempts < 3));

	if (former)
		ecm_publish_former_slot(stack_index, recorded, seen);
	else if (strcmp(stack->former.name, name) == 0)
		ecm_publish_former_slot(stack_index, "", InvalidXLogRecPtr);
	ecm_wal_publish_settings(stack_index);
}

static void
start_up(void)
{
	ProbeArg	arg;
	EcmError	err;
	bool		one_is_gone;

	/* nothing that the manager does itself may wait long for a lock */
	ecm_worker_set("lock_timeout", "100ms");

	/* first: what changes after this is found out by the next reload */
	settings_signature = ecm_settings_signature();
	settings_signature = MemoryContextStrdup(TopMemoryContext,
											 settings_signature ? settings_signature : "");

	arg.override = stack->requests.adopt;
	if (!ecm_settings_catch_up(&err, &one_is_gone) ||
		!ecm_worker_try(probe, &arg, &err))
		ereport(FATAL,
				(errmsg("could not look into database \"%s\": %s",
						stack->datname, err.message)));
	if (one_is_gone)
	{
		cleaned_up = true;
		(void) ecm_stack_request(MyDatabaseId, ECM_REQUEST_REPROBE);
		proc_exit(0);
	}
	if (arg.result != ECM_PROBE_RUN)
	{
		cleaned_up = true;

		/* for those who look after a stopped stack's slot */
		if (arg.result != ECM_PROBE_NO_EXTENSION &&
			ecm_worker_try(read_remembered, &remembered, &err))
			publish_slot();
		ecm_stack_set_probe(stack_index, arg.result);
		proc_exit(0);
	}

	/* before anybody can believe that we run, and change them */
	ecm_lock(LW_EXCLUSIVE);
	stack->manager.shape_workers = ecm_shape_workers;
	ecm_unlock();
	publish_slot();
	if (stack->lifecycle.look_only)
	{
		cleaned_up = true;
		ecm_stack_set_probe(stack_index, ECM_PROBE_LOOKED);
		proc_exit(0);
	}
	ecm_publish_init(stack_index);
	ecm_publish_options();
	ecm_stack_set_probe(stack_index, ECM_PROBE_RUN);

	ecm_exclusive_lock_init(stack->datname, stack->slot.name);
	ecm_replication_init(stack->datname, stack->slot.name, stack->report.publication_name);
	ecm_pool_init(stack->datname);
	ecm_feed_init(stack_index, stack->datname);
	ecm_feed_set_message_callback(remembered.message_prefix, ecm_creations_message);
	ecm_creations_init(stack_index);
	ecm_retention_init(stack_index);
	ecm_state_init(&state, ecm_reconnect_initial_delay, ecm_reconnect_max_delay);
	state.running = true;
	(void) may_catch_up(ecm_now());
	run_step();
}

/*
 * One time round, up to the wait.  Returns when it must be called again.
 */
static EcmTime
do_round(void)
{
	EcmTime		now = ecm_now();
	EcmTime		deadline;
	EcmStepFailure failure = {.kind = ECM_ERROR_RETRY};

	if (ConfigReloadPending)
		reload();
	ecm_pool_poll(now);
	if (state.consumers_up && ecm_feed_consumer_died(&failure.err))
		handle_event(ECM_EVENT_CONSUMER_LOST, &failure);
	poll_idle_replication();
	deadline = check_alive(now);
	handle_event(ECM_EVENT_TICK, NULL);

	/*
	 * A consumer whose queue was full when the stream was lost has not been
	 * told yet.  It may have a transaction open that a new slot waits for.
	 */
	if (!state.streaming_up)
		(void) ecm_feed_flush();
	poll_step();
	show_blocker();
	read_stream(now);
	deadline = ecm_earlier(deadline, give_feedback(now));
	deadline = ecm_earlier(deadline, renew_stream(now));

	if (state.streaming_up)
	{
		ecm_creations_poll(now, ecm_feed_received_lsn(), ecm_feed_applied_lsn());
		ecm_retention_poll(now);
	}
	deadline = ecm_earlier(deadline, show_lock_blocker(now));
	deadline = ecm_earlier(deadline, check_status(now));
	deadline = ecm_earlier(deadline, sample_wal(now));

	/*
	 * The pool has been seen to lead here, a start is not held up, and nobody
	 * wants us to be quiet.
	 */
	if (state.pool_up && step_job == 0 && stack->pause.count == 0)
		ecm_events_poll(stack_index, now);
	deadline = ecm_earlier(deadline, ecm_pool_deadline());
	deadline = ecm_earlier(deadline, ecm_creations_deadline());
	deadline = ecm_earlier(deadline, ecm_state_deadline(&state));
	deadline = ecm_earlier(deadline, ecm_replication_deadline());
	deadline = ecm_earlier(deadline, pause_until);
	if (state.step == ECM_STEP_ACQUIRE_LOCK && state.running)
		deadline = ecm_earlier(deadline, ecm_exclusive_lock_deadline());
	if (ecm_replication_conn() != NULL)
		deadline = ecm_earlier(deadline, ecm_conn_deadline(ecm_replication_conn()));

	show_doubt();
	ecm_publish_state(&state, waiting_for, blocking_pid);
	note_active();
	if (pause_until == 0)
		ecm_publish_connections();
	return deadline;
}

static void
wait_for_something(EcmTime deadline)
{
	EcmConn    *replication = ecm_replication_conn();

	ecm_waitset_begin();
	/* a stream that we can't, or don't want to, read from now must not wake us */
	if (state.streaming_up && congested)
		ecm_waitset_add_end(replication);
	else if (!state.streaming_up || pause_until == 0)
		ecm_waitset_add(replication);
	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
		ecm_waitset_add(ecm_pool_session(i));
	closed_unread = ecm_waitset_wait(deadline);
}

/*
 * Main function of a manager.  The argument is the index of its entry.
 */
void
ecm_manager_main(Datum arg)
{
	stack_index = DatumGetInt32(arg);
	stack = ecm_stack_at(stack_index);
	if (!ecm_stack_claim(stack_index))
		proc_exit(0);			/* the launcher has changed its mind */

	ecm_worker_init(stack->dboid);
	before_shmem_exit(at_exit, 0);
	pgstat_report_appname(MyBgworkerEntry->bgw_type);
	loop_context = AllocSetContextCreate(TopMemoryContext, "electric_cm manager",
										 ALLOCSET_DEFAULT_SIZES);
	CurrentResourceOwner = NULL;
	MemoryContextSwitchTo(loop_context);
	start_up();

	for (;;)
	{
		EcmTime		deadline;

		if (ecm_got_sigterm)
		{
			clean_up();
			proc_exit(0);
		}
		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(loop_context);
		MemoryContextReset(loop_context);
		deadline = do_round();
		wait_for_something(deadline);
	}
}
