/*-------------------------------------------------------------------------
 *
 * manager.c
 *	  The manager of one database's stack: one loop that never blocks.
 *
 * A round is a list of parts.  Each makes progress on something, and may return
 * an input for the state machine (state.c).  The machine is stepped with that in
 * one place, its action is carried out, and the next part goes by the state as it
 * is then.  After the last part the state is shown, and there is one wait: for
 * sockets, the latch and the next deadline.
 *
 * The manager writes no table while it runs, since a local commit can wait
 * for a synchronous standby and a lock for ever; pool sessions and consumers
 * do that.  Only at its end, when loopback connections may be refused already,
 * it cleans up by itself, with bounded waits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/bgworker.h"
#include "base/clock.h"
#include "base/errors.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/state.h"
#include "connection/conn.h"
#include "connection/pool.h"
#include "manager/consumer_queues.h"
#include "manager/event_delivery.h"
#include "manager/manager.h"
#include "manager/shape_creation.h"
#include "manager/shape_expiry.h"
#include "manager/shape_retention.h"
#include "manager/stack_report.h"
#include "manager/waitset.h"

void
ecm_manager_event(const Manager *m, EcmEventName name,
				  const char *detail, const char *message)
{
	ecm_event(m->stack, name, detail, "%s", message);
}

/* -------------------------------------------------------------- actions -- */

/*
 * Closes the replication connection, and forgets all that came by its stream:
 * consumers are told to forget the transaction that was coming in, and shapes in
 * creation are looked up anew at the start of the next stream.  A step's pool job
 * is cancelled, as its result would be of the state before.
 */
static void
close_replication(Manager *m)
{
	ecm_replication_close(&m->replication);
	ecm_queues_stream_lost();
	ecm_creations_forget();
	ecm_retention_stream_lost();
	ecm_expiry_stream_lost();
	ecm_manager_forget_marker(m);
	if (m->job.id != 0)
		ecm_pool_cancel(m->job.id);
	m->job.id = 0;
	ecm_manager_forget_stream(m);
	ecm_manager_forget_wait(m);
}

/*
 * Closes everything but the lock: consumers, pool and connection start from the
 * beginning, so that nothing which may be wrong with them is kept.
 */
static void
close_everything(Manager *m)
{
	close_replication(m);
	ecm_queues_stop();
	ecm_manager_forget_stalled(m);
	ecm_pool_close();
	ecm_events_forget();
	ecm_pool_init(m->stack->datname);
}

/* Carries out an action of the state machine. */
static void
act(Manager *m, EcmAction action)
{
	switch (action)
	{
		case ECM_ACTION_NONE:
			break;
		case ECM_ACTION_RUN_STEP:
			ecm_manager_run_step(m);
			break;
		case ECM_ACTION_CLOSE_REPLICATION:
			close_replication(m);
			break;
		case ECM_ACTION_RECREATE:
			close_replication(m);
			m->replication.creation.drop_first = true;
			break;
		case ECM_ACTION_RESTART:
			close_everything(m);
			ecm_manager_event(m, ECM_EVENT_STACK_RESTARTING,
							  "Its consumers keep dying. The server log has their reasons.",
							  "the stack restarts from the beginning");
			break;
		case ECM_ACTION_FAIL:
			close_everything(m);
			break;
	}
}

/* ------------------------------------------------------------- failures -- */

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
 * Shows a failure, and records an event about it.  A failure that is repeated, as a
 * step is tried again, makes one event, unless the stack was active in between.
 */
void
ecm_manager_report_failure(Manager *m, const EcmStepFailure *failure)
{
	const EcmError *err = &failure->err;
	bool		fatal = failure->kind == ECM_ERROR_FATAL;

	ecm_report_error(err);
	ecm_report_connections(m->replication.conn);	/* while the one that
													 * failed is still there */
	if (!fatal && strcmp(err->sqlstate, m->last_reported.sqlstate) == 0 &&
		says_the_same(err->message, m->last_reported.message))
		return;
	m->last_reported = *err;
	ecm_manager_event(m, fatal ? ECM_EVENT_CONFIG_ERROR :
					  m->state.step == ECM_STEP_ACQUIRE_LOCK ?
					  ECM_EVENT_FAILED_TO_ACQUIRE_CONNECTION_LOCK :
					  ECM_EVENT_CONNECTION_ERROR,
					  err->hint[0] ? err->hint : err->detail,
					  psprintf("%s: %s", ecm_step_name(m->state.step), err->message));
}

/*
 * The slot would have to be made anew once more than the limit allows, which is
 * there because each time all shapes are compared with their tables.  The stack fails, with a hint.
 */
static void
report_too_many_recreations(Manager *m, const EcmError *last)
{
	EcmStepFailure failure = {.kind = ECM_ERROR_FATAL};

	ecm_error_set(&failure.err, last->sqlstate,
				  psprintf("the replication slot had to be made anew more than %d times within an hour, the last time because: %s",
						   ECM_MAX_RECREATIONS_PER_HOUR, last->message),
				  last->detail,
				  "See electric_cm_events for what happened. Remove the cause, then run electric_cm_start() or reload the configuration.");
	ecm_manager_report_failure(m, &failure);
	m->too_many_recreations = true;
}

/*
 * The walsender fails at the same place each time.  The stream can go on only behind
 * that place, with a new slot, and all shapes are resynced; an event says why.
 */
static void
report_stuck(Manager *m, const EcmError *err)
{
	ecm_manager_event(m, ECM_EVENT_STREAM_GIVEN_UP,
					  psprintf("%s%sAll shapes of this database are compared with their tables.",
							   err->hint, err->hint[0] != '\0' ? " " : ""),
					  psprintf("the stream fails again and again at the same place, after %X/%X, and begins anew behind it: %s",
							   LSN_FORMAT_ARGS(m->loss.at), err->message));
}

/*
 * Steps the state machine with the input that a part of the round has found, and
 * carries out the action.  How far a lost stream had come is noted first, since the
 * machine's step forgets that it was up.
 */
static void
step_machine(Manager *m, const RoundInput *in)
{
	const EcmStepFailure *failure = in->failed ? &in->failure : NULL;
	EcmInput	input = {.type = in->type, .kind = failure ? failure->kind : ECM_ERROR_RETRY,
	.no_consumers = in->no_consumers};
	EcmAction	action;

	if (failure != NULL)
		ecm_manager_report_failure(m, failure);
	if (in->type == ECM_INPUT_REPLICATION_LOST && failure != NULL)
		input.stuck = !ecm_error_may_pass(&failure->err);
	if (failure != NULL && m->state.streaming_up)
	{
		ecm_manager_note_loss(m);
		if (input.kind == ECM_ERROR_RETRY && in->type != ECM_INPUT_POOL_LOST)
			(void) ecm_manager_may_catch_up(m, ecm_now());
	}
	action = ecm_state_step(&m->state, input, ecm_now());
	if (input.kind == ECM_ERROR_RECREATE || action == ECM_ACTION_RECREATE)
		m->wal.sample_at = 0;	/* take a last look at the slot */
	if (action == ECM_ACTION_FAIL && input.kind != ECM_ERROR_FATAL)
		report_too_many_recreations(m, &failure->err);
	if (action == ECM_ACTION_RECREATE && input.kind == ECM_ERROR_RETRY)
		report_stuck(m, &failure->err);
	act(m, action);
}

/* Records the event "ready" when the stack has become active. */
static void
note_active(Manager *m)
{
	bool		active = ecm_state_status(&m->state) == ECM_STATUS_ACTIVE;

	if (active && !m->was_active)
	{
		memset(&m->last_reported, 0, sizeof(m->last_reported)); /* news again */
		ecm_manager_event(m, ECM_EVENT_READY, "", "streaming");
	}
	m->was_active = active;
}

/* ---------------------------------------------------------------- round -- */

static bool
poll_pool(Manager *m pg_attribute_unused(), EcmTime now,
		  RoundInput *in pg_attribute_unused())
{
	ecm_pool_poll(now);
	return false;
}

/* Tells the machine the time: a retry may be due. */
static bool
tick(Manager *m pg_attribute_unused(), EcmTime now pg_attribute_unused(),
	 RoundInput *in)
{
	in->type = ECM_INPUT_TICK;
	return true;
}

/*
 * Goes on telling consumers that the stream is lost.  A consumer whose queue was
 * full then has not been told yet.  It may have a large transaction open, for which
 * the creation of a new slot would wait.
 */
static bool
tell_of_loss(Manager *m, EcmTime now pg_attribute_unused(),
			 RoundInput *in pg_attribute_unused())
{
	if (!m->state.streaming_up)
		(void) ecm_queues_flush();
	return false;
}

static bool
poll_shapes(Manager *m, EcmTime now, RoundInput *in pg_attribute_unused())
{
	if (m->state.streaming_up)
	{
		ecm_creations_poll(now, ecm_queues_received_lsn(), ecm_queues_applied_lsn());
		ecm_retention_poll(now);
		ecm_expiry_poll(now);
	}
	return false;
}

/*
 * Has events delivered, by a pool session.  Not before step start_pool has made sure
 * that the pool leads to this database; not while a step's job needs the session;
 * and not while a command has the stack paused, since delivery writes a table.
 */
static bool
poll_events(Manager *m, EcmTime now, RoundInput *in pg_attribute_unused())
{
	if (m->state.pool_up && m->job.id == 0 && m->stack->pause.count == 0)
		ecm_events_poll(m->stack_index, now);
	return false;
}

/*
 * The parts of a round, in order.  Losses are found before the step and the stream
 * are polled, so that neither uses a part that is gone.  The stream is read before
 * feedback is given, and sampled WAL comes behind the feedback that may shorten it.
 */
static const RoundPart parts[] = {
	ecm_manager_reload,
	poll_pool,
	ecm_manager_find_dead_consumer,
	ecm_manager_poll_idle_replication,
	ecm_manager_find_dead_pool,
	ecm_manager_check_alive,
	tick,
	tell_of_loss,
	ecm_manager_poll_step,
	ecm_manager_show_blocker,
	ecm_manager_read_stream,
	ecm_manager_note_progress,
	ecm_manager_mark_position,
	ecm_manager_give_feedback,
	ecm_manager_renew_stream,
	poll_shapes,
	ecm_manager_show_lock_blocker,
	ecm_manager_check_status,
	ecm_manager_sample_wal,
	ecm_manager_after_sample,
	poll_events,
};

void
ecm_manager_wake_at(Manager *m, EcmTime at)
{
	m->deadline = ecm_earlier(m->deadline, at);
}

/* The deadlines of the modules that don't call ecm_manager_wake_at(). */
static void
collect_deadlines(Manager *m)
{
	ecm_manager_wake_at(m, ecm_pool_deadline());
	ecm_manager_wake_at(m, ecm_creations_deadline());
	ecm_manager_wake_at(m, ecm_state_deadline(&m->state));
	ecm_manager_wake_at(m, m->replication.step.deadline);
	ecm_manager_wake_at(m, m->flow.pause_until);
	if (m->state.step == ECM_STEP_ACQUIRE_LOCK && m->state.running)
		ecm_manager_wake_at(m, ecm_exclusive_lock_deadline(&m->lock));
	if (m->replication.conn != NULL)
		ecm_manager_wake_at(m, ecm_conn_deadline(m->replication.conn));
}

/*
 * Shows the state as it is after a round.  The event "ready" is recorded before
 * the status is shown: whoever sees that the stack is active finds the event.
 */
static void
show_state(Manager *m)
{
	ecm_manager_show_doubt(m);
	note_active(m);
	ecm_report_state(&m->state, m->waiting.text, m->waiting.pid);
	if (m->flow.pause_until == 0)
		ecm_report_connections(m->replication.conn);
}

/*
 * One time round, up to the wait.
 */
static void
do_round(Manager *m)
{
	EcmTime		now = ecm_now();
	RoundInput	in;

	m->stack->manager.alive_at = now;
	m->deadline = 0;
	ecm_queues_begin_round();
	for (int i = 0; i < (int) lengthof(parts); i++)
	{
		do
		{
			in.failed = in.again = false;
			if (!parts[i] (m, now, &in))
				break;
			step_machine(m, &in);
		} while (in.again);
	}
	if (!m->state.streaming_up)
		ecm_queues_expect_progress();
	collect_deadlines(m);
	show_state(m);
}

static void
wait_for_something(Manager *m)
{
	EcmConn    *replication = m->replication.conn;

	ecm_waitset_begin();

	/*
	 * A stream that is not to be read now must not wake us: its socket would
	 * be ready all the time.
	 */
	if (m->state.streaming_up && m->flow.congested)
		ecm_waitset_add_end(replication);
	else if (!m->state.streaming_up || m->flow.pause_until == 0)
		ecm_waitset_add(replication);
	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
		ecm_waitset_add(ecm_pool_session(i));
	m->flow.closed_unread = ecm_waitset_wait(m->deadline);
}

/*
 * Main function of a manager.  The argument is the index of its entry, which the
 * launcher may have given to another manager meanwhile; then this one ends without
 * touching it.  at_exit is registered after the database is known, as its clean-up
 * needs transactions.
 */
void
ecm_manager_main(Datum arg)
{
	Manager    *m = MemoryContextAllocZero(TopMemoryContext, sizeof(Manager));

	m->stack_index = DatumGetInt32(arg);
	m->stack = ecm_stack_at(m->stack_index);
	if (!ecm_stack_claim(m->stack_index))
		proc_exit(0);			/* the launcher has changed its mind */

	ecm_worker_init(m->stack->dboid);
	before_shmem_exit(ecm_manager_at_exit, PointerGetDatum(m));
	pgstat_report_appname(MyBgworkerEntry->bgw_type);
	m->loop_context = AllocSetContextCreate(TopMemoryContext, "electric_cm manager",
											ALLOCSET_DEFAULT_SIZES);
	CurrentResourceOwner = NULL;
	MemoryContextSwitchTo(m->loop_context);
	ecm_manager_start_up(m);

	for (;;)
	{
		if (ecm_got_sigterm)
		{
			ecm_manager_clean_up(m);
			proc_exit(0);
		}
		CHECK_FOR_INTERRUPTS();
		do
		{
			MemoryContextSwitchTo(m->loop_context);
			MemoryContextReset(m->loop_context);
			do_round(m);
		} while (!ecm_queues_end_round());
		wait_for_something(m);
	}
}
