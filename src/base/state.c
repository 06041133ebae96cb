/*-------------------------------------------------------------------------
 *
 * state.c
 *	  The manager's state machine: (state, input) -> (state, action).
 *
 * Pure: no server, no I/O, the clock is passed in.  The rules:
 *
 * - Going forward, the machine passes over a step whose part is up already
 *	 (see brings_up()).  All other steps run again each time, so they must be
 *	 idempotent.
 * - Going back, the machine stops at the step that brings the lost part up.
 *	 So at any time, all parts that the steps before the current one bring up
 *	 are up.
 * - The first loss of a stream is mended at once, and so is each loss after
 *	 ECM_STREAMING_STABLE_US of undisturbed streaming.  Any other loss or
 *	 failure waits for the backoff.  So a part that keeps dying does not make a
 *	 hot loop.
 * - A stream that was lost counts as stable only once it has got beyond the
 *	 place where it was lost.  Otherwise a change that always ends the stream
 *	 (after half a minute of decoding, say) would reset the backoff each time.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "base/state.h"

#define HOUR_US		INT64_C(3600000000)

static const char *const step_names[ECM_NUM_STEPS] = {
	[ECM_STEP_ACQUIRE_LOCK] = "acquire_lock",
	[ECM_STEP_CONNECT_REPLICATION] = "connect_replication",
	[ECM_STEP_IDENTIFY_SYSTEM] = "identify_system",
	[ECM_STEP_PG_INFO] = "pg_info",
	[ECM_STEP_CREATE_PUBLICATION] = "create_publication",
	[ECM_STEP_CREATE_SLOT] = "create_slot",
	[ECM_STEP_SET_DISPLAY_SETTINGS] = "set_display_settings",
	[ECM_STEP_READY_TO_STREAM] = "ready_to_stream",
	[ECM_STEP_START_POOL] = "start_pool",
	[ECM_STEP_CHECK_TIMELINE] = "check_timeline",
	[ECM_STEP_START_CONSUMERS] = "start_consumers",
	[ECM_STEP_START_STREAMING] = "start_streaming",
	[ECM_STEP_STREAMING] = "streaming"
};

static const char *const status_names[] = {
	[ECM_STATUS_STOPPED] = "stopped",
	[ECM_STATUS_WAITING] = "waiting",
	[ECM_STATUS_STARTING] = "starting",
	[ECM_STATUS_ACTIVE] = "active",
	[ECM_STATUS_FAILED] = "failed"
};

/* The part that a step brings up, or NULL. */
static bool *
brings_up(EcmState *s, EcmStep step)
{
	switch (step)
	{
		case ECM_STEP_ACQUIRE_LOCK:
			return &s->lock_held;
		case ECM_STEP_CONNECT_REPLICATION:
			return &s->replication_up;
		case ECM_STEP_START_POOL:
			return &s->pool_up;
		case ECM_STEP_START_CONSUMERS:
			return &s->consumers_up;
		case ECM_STEP_START_STREAMING:
			return &s->streaming_up;
		default:
			return NULL;
	}
}

static bool
can_pass_over(EcmState *s, EcmStep step)
{
	const bool *up = brings_up(s, step);

	return step == ECM_STEP_READY_TO_STREAM || (up != NULL && *up);
}

/* Starts the first step, from the current one on, that has work to do. */
static EcmAction
run(EcmState *s, int64_t now)
{
	s->next_retry_at = 0;
	s->running = true;
	while (can_pass_over(s, s->step))
		s->step++;
	if (s->step != ECM_STEP_STREAMING)
		return ECM_ACTION_RUN_STEP;

	s->streaming_since = now;
	s->ever_streamed = true;
	return ECM_ACTION_NONE;
}

/*
 * Has everything been up for so long that the next failure is a new one,
 * rather than the last one once more?  Then that failure starts with the
 * backoff's initial delay.
 */
static bool
is_stable(const EcmState *s, int64_t now)
{
	return s->streaming_since != 0 && !s->behind &&
		now - s->streaming_since >= ECM_STREAMING_STABLE_US;
}

/* Has a failure of the current step, or a loss before it, been noted already? */
static bool
retry_pending(const EcmState *s)
{
	return s->next_retry_at != 0;
}

static void
schedule_retry(EcmState *s, int64_t now, bool at_once)
{
	s->running = false;
	if (!retry_pending(s))
		s->next_retry_at = at_once ? now : ecm_backoff_fail(&s->backoff, now);
}

static EcmAction
step_done(EcmState *s, int64_t now)
{
	bool	   *up = brings_up(s, s->step);

	if (retry_pending(s) || s->step == ECM_STEP_STREAMING)
		return ECM_ACTION_NONE;
	if (up != NULL)
		*up = true;
	s->step++;
	return run(s, now);
}

static EcmAction
step_failed(EcmState *s, int64_t now)
{
	schedule_retry(s, now, false);
	return ECM_ACTION_NONE;
}

static void
replication_down(EcmState *s, EcmStep back_to)
{
	s->replication_up = false;
	s->streaming_up = false;
	s->streaming_since = 0;
	s->step = back_to;
}

static void
everything_down_but_lock(EcmState *s)
{
	replication_down(s, s->step);
	s->pool_up = false;
	s->consumers_up = false;
}

/* A stream's first loss is mended at once, if nothing else has failed. */
static bool
may_reopen_at_once(const EcmState *s)
{
	return s->streaming_since != 0 && s->backoff.retries == 0 && !s->reopened;
}

/* Ends the replication connection, if there is one or one is being opened. */
static EcmAction
close_replication(EcmState *s, int64_t now)
{
	bool		at_once = may_reopen_at_once(s);

	if (s->step < ECM_STEP_CONNECT_REPLICATION ||
		(s->step == ECM_STEP_CONNECT_REPLICATION && retry_pending(s)))
		return ECM_ACTION_NONE;

	if (at_once)
		s->reopened = true;
	if (s->streaming_up)
	{
		s->doubtful = !at_once;
		s->behind = true;
	}
	replication_down(s, ECM_STEP_CONNECT_REPLICATION);
	schedule_retry(s, now, at_once);
	return ECM_ACTION_CLOSE_REPLICATION;
}

/* Notes a consumer's death: were there too many of them lately? */
static bool
dies_too_often(EcmState *s, int64_t now)
{
	int64_t    *at = s->consumer_lost_at;
	bool		too_often = at[0] != 0 && now - at[0] <= ECM_CONSUMER_DEATHS_US;

	memmove(&at[0], &at[1], (ECM_MAX_CONSUMER_DEATHS - 1) * sizeof(at[0]));
	at[ECM_MAX_CONSUMER_DEATHS - 1] = now;
	if (too_often)
		memset(at, 0, sizeof(s->consumer_lost_at));
	return too_often;
}

/*
 * Starts everything but the lock from the beginning, since starting the
 * consumer alone has not helped.
 */
static EcmAction
restart(EcmState *s, int64_t now)
{
	s->behind = s->doubtful = true;
	everything_down_but_lock(s);
	s->step = ECM_STEP_ACQUIRE_LOCK;
	schedule_retry(s, now, false);
	return ECM_ACTION_RESTART;
}

/*
 * A consumer's death costs the stream: the changes that were on their way to
 * that consumer would be lost if the stream did not start again from before
 * them.
 */
static EcmAction
consumer_lost(EcmState *s, int64_t now)
{
	if (s->streaming_up || s->step > ECM_STEP_START_CONSUMERS)
		return dies_too_often(s, now) ? restart(s, now) :
			close_replication(s, now);
	if (s->step == ECM_STEP_START_CONSUMERS)
		return step_failed(s, now);
	return ECM_ACTION_NONE;
}

/* The stream doesn't need the pool and goes on while the pool comes back. */
static EcmAction
pool_lost(EcmState *s, int64_t now)
{
	bool		stable = is_stable(s, now);

	if (s->step < ECM_STEP_START_POOL)
		return ECM_ACTION_NONE;

	/* A stream that is being started may or may not run. */
	if (s->step == ECM_STEP_START_STREAMING && s->running)
		return close_replication(s, now);

	s->step = ECM_STEP_START_POOL;
	s->streaming_since = 0;
	if (stable)
		return run(s, now);
	return step_failed(s, now);
}

/*
 * Fails for good, until a reload.  The step stays as it is, to show where it
 * failed.  The lock is kept, lest another stack take the slot.
 */
static EcmAction
fail(EcmState *s, int64_t now)
{
	everything_down_but_lock(s);
	s->failed = true;
	s->behind = s->doubtful = false;
	s->stuck = 0;
	s->running = false;
	s->next_retry_at = 0;
	ecm_backoff_reset(&s->backoff, now);
	return ECM_ACTION_FAIL;
}

/*
 * Has the slot made anew, which resyncs all shapes.  Because of that price,
 * there is a limit within an hour; if a new slot has not helped that often, a
 * further one will not, and the stack fails.
 */
static EcmAction
recreate(EcmState *s, int64_t now)
{
	int64_t    *at = s->recreated_at;

	if (s->recreations == ECM_MAX_RECREATIONS_PER_HOUR)
	{
		if (now - at[0] < HOUR_US)
			return fail(s, now);
		s->recreations--;
		memmove(&at[0], &at[1], s->recreations * sizeof(at[0]));
	}
	at[s->recreations++] = now;

	/* a new slot's stream begins elsewhere */
	s->behind = s->doubtful = false;
	s->stuck = 0;
	replication_down(s, ECM_STEP_CONNECT_REPLICATION);
	schedule_retry(s, now, false);
	return ECM_ACTION_RECREATE;
}

/*
 * The stream has got beyond the place where it was lost.  Only from here on
 * does the time count after which it is stable.
 */
static EcmAction
progress(EcmState *s, int64_t now)
{
	if (s->behind && s->streaming_since != 0)
		s->streaming_since = now;
	s->behind = s->doubtful = false;
	s->stuck = 0;
	return ECM_ACTION_NONE;
}

/*
 * Notes that the stream is stuck once more.  True: it has failed at the same
 * place so often, and for so long, that it always will.
 */
static bool
is_stuck_for_good(EcmState *s, int64_t now)
{
	if (s->stuck == 0)
		s->stuck_since = now;
	s->stuck++;
	return s->stuck >= ECM_MAX_STUCK && now - s->stuck_since >= ECM_STUCK_US;
}

/*
 * The configuration was reloaded, so the cause of a failure may be gone:
 * starts again after a fatal error, and does not wait for a retry that is due
 * later.
 */
static EcmAction
reload(EcmState *s, int64_t now)
{
	if (s->failed)
	{
		s->failed = false;
		s->recreations = 0;
		s->step = ECM_STEP_ACQUIRE_LOCK;
		return run(s, now);
	}
	return s->running ? ECM_ACTION_NONE : run(s, now);
}

static EcmAction
tick(EcmState *s, int64_t now)
{
	if (s->running || now < s->next_retry_at)
		return ECM_ACTION_NONE;
	return run(s, now);
}

/* An error that is worth a retry: goes back as far as the lost part requires. */
static EcmAction
retry(EcmState *s, EcmInputType type, int64_t now)
{
	switch (type)
	{
		case ECM_INPUT_STEP_FAILED:
			/* Streaming fails when its connection does. */
			if (s->step == ECM_STEP_STREAMING)
				return close_replication(s, now);
			return step_failed(s, now);
		case ECM_INPUT_REPLICATION_LOST:
			return close_replication(s, now);
		case ECM_INPUT_CONSUMER_LOST:
			return consumer_lost(s, now);
		case ECM_INPUT_POOL_LOST:
			return pool_lost(s, now);
		default:
			return ECM_ACTION_NONE;
	}
}

/*
 * A step has failed, or a part is lost.
 *
 * An error of kind RECREATE is heeded only while the lock is held: without the
 * lock, the slot may be in use by another stack.  Nor is it heeded while the
 * replication connection is down and a retry is pending.  It repeats an earlier
 * report then; and if it does not, step create_slot will meet the same error.
 */
static EcmAction
problem(EcmState *s, EcmInput input, int64_t now)
{
	if (input.type == ECM_INPUT_CONSUMER_LOST)
		s->consumers_up = false;
	if (input.type == ECM_INPUT_POOL_LOST)
		s->pool_up = false;

	if (input.kind == ECM_ERROR_FATAL)
		return fail(s, now);
	if (input.type == ECM_INPUT_REPLICATION_LOST && input.stuck &&
		s->streaming_up && is_stuck_for_good(s, now))
		return recreate(s, now);
	if (input.kind == ECM_ERROR_RECREATE && s->lock_held &&
		(s->replication_up || !retry_pending(s)))
		return recreate(s, now);
	return retry(s, input.type, now);
}

void
ecm_state_init(EcmState *s, int64_t reconnect_initial_ms,
			   int64_t reconnect_max_ms)
{
	memset(s, 0, sizeof(*s));
	s->step = ECM_STEP_ACQUIRE_LOCK;
	ecm_backoff_init(&s->backoff, reconnect_initial_ms, reconnect_max_ms);
}

EcmAction
ecm_state_step(EcmState *s, EcmInput input, int64_t now)
{
	if (s->streaming_since != 0 && s->behind &&
		now - s->streaming_since >= ECM_STREAMING_STABLE_US)
		s->doubtful = true;
	if (is_stable(s, now))
	{
		s->reopened = false;
		if (s->backoff.retries > 0)
			ecm_backoff_reset(&s->backoff, now);
	}

	/* a failed stack has nothing that could be lost, and waits for a reload */
	if (s->failed && input.type != ECM_INPUT_RELOAD)
		return ECM_ACTION_NONE;

	switch (input.type)
	{
		case ECM_INPUT_STEP_DONE:
			if (input.no_consumers)
				s->consumers_up = false;
			return step_done(s, now);
		case ECM_INPUT_STEP_FAILED:
		case ECM_INPUT_REPLICATION_LOST:
		case ECM_INPUT_CONSUMER_LOST:
		case ECM_INPUT_POOL_LOST:
			return problem(s, input, now);
		case ECM_INPUT_PROGRESS:
			return progress(s, now);
		case ECM_INPUT_RELOAD:
			return reload(s, now);
		case ECM_INPUT_TICK:
			return tick(s, now);
	}
	return ECM_ACTION_NONE;
}

int64_t
ecm_state_deadline(const EcmState *s)
{
	if (retry_pending(s))
		return s->next_retry_at;
	if (s->streaming_since != 0 &&
		(s->behind ? !s->doubtful : s->backoff.retries > 0))
		return s->streaming_since + ECM_STREAMING_STABLE_US;
	return 0;
}

EcmStatus
ecm_state_status(const EcmState *s)
{
	if (s->failed)
		return ECM_STATUS_FAILED;
	if (!s->lock_held)
		return ECM_STATUS_WAITING;
	if (s->step == ECM_STEP_STREAMING && s->streaming_up && s->pool_up &&
		s->consumers_up && !s->doubtful)
		return ECM_STATUS_ACTIVE;
	return ECM_STATUS_STARTING;
}

bool
ecm_state_is_doubtful(const EcmState *s)
{
	return s->doubtful && s->step == ECM_STEP_STREAMING && s->streaming_up;
}

const char *
ecm_status_name(EcmStatus status)
{
	return status_names[status];
}

const char *
ecm_step_name(EcmStep step)
{
	return step_names[step];
}

const char *
ecm_state_phase(const EcmState *s)
{
	return s->ever_streamed ? "running" : "connection_setup";
}
