/*-------------------------------------------------------------------------
 *
 * test_state.c
 *	  The manager's state machine, walked with a fake clock.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <string.h>

#include "base/state.h"
#include "unit.h"

#define SECOND	INT64_C(1000000)
#define HOUR	(3600 * SECOND)

#define RETRY		ECM_ERROR_RETRY
#define RECREATE	ECM_ERROR_RECREATE
#define FATAL		ECM_ERROR_FATAL

#define NONE		ECM_ACTION_NONE
#define RUN_STEP	ECM_ACTION_RUN_STEP
#define CLOSE		ECM_ACTION_CLOSE_REPLICATION

static EcmState s;
static int64_t now;
static bool healthy = true;		/* a stream that runs gets beyond where it was
								 * lost */

static EcmAction
raw_input(EcmInputType type, EcmErrorKind kind, bool stuck)
{
	EcmInput	in = {.type = type, .kind = kind, .stuck = stuck};

	return ecm_state_step(&s, in, now);
}

static EcmAction
input(EcmInputType type, EcmErrorKind kind)
{
	EcmAction	action = raw_input(type, kind, false);

	if (healthy && s.streaming_up && s.behind)
		CHECK(raw_input(ECM_INPUT_PROGRESS, RETRY, false) == NONE);
	return action;
}

static EcmAction
done(void)
{
	return input(ECM_INPUT_STEP_DONE, RETRY);
}

static EcmAction
failed(void)
{
	return input(ECM_INPUT_STEP_FAILED, RETRY);
}

static EcmAction
replication_lost(void)
{
	return input(ECM_INPUT_REPLICATION_LOST, RETRY);
}

static EcmAction
consumer_lost(void)
{
	return input(ECM_INPUT_CONSUMER_LOST, RETRY);
}

static EcmAction
pool_lost(void)
{
	return input(ECM_INPUT_POOL_LOST, RETRY);
}

static EcmAction
tick(void)
{
	return input(ECM_INPUT_TICK, RETRY);
}

static EcmAction
tick_after(int64_t us)
{
	now += us;
	return tick();
}

/* A new machine, asked to run its first step. */
static void
start(void)
{
	ecm_state_init(&s, 1000, 10000);
	now = 100000 * SECOND;
	tick();
}

/* A new machine, walked to a step, which is running. */
static void
start_at(EcmStep step)
{
	start();
	while (s.step < step)
		done();
}

/* A machine that has been streaming for a while. */
static void
start_streaming(void)
{
	start_at(ECM_STEP_STREAMING);
	tick_after(10 * SECOND);
}

/* The names of the steps that run from here on when all goes well. */
static const char *
path(void)
{
	static char text[512];
	EcmAction	action;

	text[0] = '\0';
	do
	{
		strcat(text, text[0] ? " " : "");
		strcat(text, ecm_step_name(s.step));
		action = done();
	} while (action == RUN_STEP);
	CHECK(action == NONE && s.step == ECM_STEP_STREAMING);
	return text;
}

#define FROM_CONNECT \
	"connect_replication identify_system pg_info create_publication" \
	" create_slot set_display_settings"
#define ALL_FROM_CONNECT \
	FROM_CONNECT " start_pool check_timeline start_consumers start_streaming"

static const char *
status(void)
{
	return ecm_status_name(ecm_state_status(&s));
}

static bool
waits_for(EcmStep step, int64_t us)
{
	return s.step == step && !s.running && s.next_retry_at == now + us &&
		ecm_state_deadline(&s) == now + us;
}

static void
test_names(void)
{
	static const char *const steps[] = {
		"acquire_lock", "connect_replication", "identify_system", "pg_info",
		"create_publication", "create_slot", "set_display_settings",
		"ready_to_stream", "start_pool", "check_timeline", "start_consumers",
		"start_streaming", "streaming"
	};
	int			i;

	for (i = 0; i < ECM_NUM_STEPS; i++)
		CHECK(strcmp(ecm_step_name((EcmStep) i), steps[i]) == 0);
	checked("steps have the names that the views show");

	is_str(ecm_status_name(ECM_STATUS_STOPPED), "stopped", "status stopped");
	is_str(ecm_status_name(ECM_STATUS_WAITING), "waiting", "status waiting");
	is_str(ecm_status_name(ECM_STATUS_STARTING), "starting", "status starting");
	is_str(ecm_status_name(ECM_STATUS_ACTIVE), "active", "status active");
	is_str(ecm_status_name(ECM_STATUS_FAILED), "failed", "status failed");
	is_int(ECM_STATUS_STOPPED, 0, "zeroed shared memory says stopped");
}

static void
test_happy_path(void)
{
	static const EcmStep steps[] = {
		ECM_STEP_CONNECT_REPLICATION, ECM_STEP_IDENTIFY_SYSTEM,
		ECM_STEP_PG_INFO, ECM_STEP_CREATE_PUBLICATION, ECM_STEP_CREATE_SLOT,
		ECM_STEP_SET_DISPLAY_SETTINGS, ECM_STEP_START_POOL,
		ECM_STEP_CHECK_TIMELINE, ECM_STEP_START_CONSUMERS,
		ECM_STEP_START_STREAMING
	};
	size_t		i;

	ecm_state_init(&s, 1000, 10000);
	now = 100000 * SECOND;
	is_str(status(), "waiting", "without the lock the status is waiting");
	is_str(ecm_state_phase(&s), "connection_setup",
		   "the first phase is connection_setup");
	ok(!s.running && ecm_state_deadline(&s) == 0, "nothing runs by itself");
	ok(tick() == RUN_STEP && s.running && s.step == ECM_STEP_ACQUIRE_LOCK,
	   "the first tick starts acquire_lock");
	ok(tick_after(HOUR) == NONE && s.backoff.retries == 0 &&
	   ecm_state_deadline(&s) == 0,
	   "waiting for the lock for an hour is no failure");
	is_str(status(), "waiting", "and the status is still waiting");

	for (i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
	{
		char		name[64];

		snprintf(name, sizeof(name), "next comes %s", ecm_step_name(steps[i]));
		CHECK(done() == RUN_STEP && s.step == steps[i] && s.running);
		CHECK(strcmp(status(), "starting") == 0);
		CHECK(strcmp(ecm_state_phase(&s), "connection_setup") == 0);
		CHECK(s.lock_held);
		CHECK(s.replication_up == (steps[i] > ECM_STEP_CONNECT_REPLICATION));
		CHECK(s.pool_up == (steps[i] > ECM_STEP_START_POOL));
		CHECK(s.consumers_up == (steps[i] > ECM_STEP_START_CONSUMERS));
		CHECK(!s.streaming_up && s.streaming_since == 0);
		CHECK(tick() == NONE);
		checked(name);
		now += SECOND;
	}
	is_int(done(), NONE, "when streaming there is nothing to do");
	ok(s.step == ECM_STEP_STREAMING && s.streaming_up &&
	   s.streaming_since == now, "it knows since when it streams");
	is_str(status(), "active", "the status is active");
	is_str(ecm_state_phase(&s), "running", "the phase is running");
	is_int(ecm_state_deadline(&s), 0, "without a failure no tick is needed");
	ok(done() == NONE && tick() == NONE && tick_after(HOUR) == NONE &&
	   s.step == ECM_STEP_STREAMING, "and so it stays");
	is_int(input(ECM_INPUT_RELOAD, RETRY), NONE,
		   "a reload changes nothing while all is well");
	is_int(ecm_backoff_total(&s.backoff, now), 0, "no time was lost");
}

static void
test_step_failures(void)
{
	static const int expected[] = {1, 2, 4, 8, 10, 10};
	EcmStep		step;

	for (step = ECM_STEP_ACQUIRE_LOCK; step < ECM_STEP_STREAMING; step++)
	{
		char		name[64];
		int			i;

		if (step == ECM_STEP_READY_TO_STREAM)
			continue;
		start_at(step);
		for (i = 0; i < 6; i++)
		{
			CHECK(failed() == NONE);
			CHECK(waits_for(step, expected[i] * SECOND));
			CHECK(s.backoff.retries == i + 1);
			CHECK(done() == NONE && s.step == step);	/* too late */
			CHECK(tick_after(expected[i] * SECOND - 1) == NONE);
			CHECK(tick_after(1) == RUN_STEP && s.step == step);
			CHECK(s.running && s.next_retry_at == 0);
		}
		CHECK(done() == (step == ECM_STEP_START_STREAMING ? NONE : RUN_STEP));
		CHECK(ecm_backoff_total(&s.backoff, now) == 35 * SECOND);
		snprintf(name, sizeof(name), "%s is retried after 1, 2, 4, 8, 10, 10 s",
				 ecm_step_name(step));
		checked(name);
	}

	start_at(ECM_STEP_CREATE_SLOT);
	failed();
	tick_after(SECOND);
	done();
	failed();
	ok(waits_for(ECM_STEP_SET_DISPLAY_SETTINGS, 2 * SECOND),
	   "one step's success doesn't reset the backoff");

	start_at(ECM_STEP_CREATE_SLOT);
	failed();
	now += SECOND / 2;
	ok(failed() == NONE && s.next_retry_at == now + SECOND / 2 &&
	   s.backoff.retries == 1, "a failure that is reported twice counts once");
	is_int(input(ECM_INPUT_RELOAD, RETRY), RUN_STEP,
		   "a reload makes a pending retry due at once");
	ok(s.running && s.next_retry_at == 0, "and then it isn't pending any more");
}

/* A step may end the consumers of a stream that is not continued. */
static void
test_consumers_ended(void)
{
	EcmInput	in = {.type = ECM_INPUT_STEP_DONE, .kind = RETRY, .no_consumers = true};

	start_streaming();
	replication_lost();
	tick();
	while (s.step != ECM_STEP_CHECK_TIMELINE)
		done();
	is_int(ecm_state_step(&s, in, now), RUN_STEP, "a step that has ended the consumers is done");
	is_int(s.step, ECM_STEP_START_CONSUMERS, "and they are not passed over");
}

static void
test_replication_lost(void)
{
	EcmStep		step;

	start_streaming();
	is_int(replication_lost(), CLOSE, "a lost stream closes the connection");
	is_str(status(), "starting", "the status goes back to starting at once");
	is_str(ecm_state_phase(&s), "running", "the phase stays running");
	ok(waits_for(ECM_STEP_CONNECT_REPLICATION, 0) && s.backoff.retries == 0,
	   "after 5 s of streaming the first reopening is immediate");
	ok(!s.replication_up && !s.streaming_up && s.streaming_since == 0 &&
	   s.pool_up && s.consumers_up && s.lock_held, "what is up stays up");
	is_int(tick(), RUN_STEP, "a tick at the same instant runs it");
	is_str(path(), FROM_CONNECT " check_timeline start_streaming",
		   "pool and consumers are passed over");
	is_str(status(), "active", "then the status is active again");

	start_at(ECM_STEP_STREAMING);
	is_int(replication_lost(), CLOSE, "a stream lost as soon as it runs");
	ok(waits_for(ECM_STEP_CONNECT_REPLICATION, 0),
	   "is reopened at once, too, the first time");
	tick();
	path();
	now += 5 * SECOND - 1;
	replication_lost();
	ok(waits_for(ECM_STEP_CONNECT_REPLICATION, SECOND),
	   "lost again before 5 s are over, it waits for 1 s");
	tick_after(SECOND);
	path();
	now += 5 * SECOND - 1;
	replication_lost();
	ok(waits_for(ECM_STEP_CONNECT_REPLICATION, 2 * SECOND), "and then for 2 s");
	tick_after(2 * SECOND);
	path();
	is_int(ecm_state_deadline(&s), now + 5 * SECOND,
		   "a tick is asked for when the backoff is to be reset");
	tick_after(5 * SECOND - 1);
	is_int(s.backoff.retries, 2, "streaming for a bit less than 5 s isn't enough");
	tick_after(1);
	ok(s.backoff.retries == 0 && ecm_state_deadline(&s) == 0,
	   "streaming for 5 s resets it");
	is_int(replication_lost(), CLOSE, "the next loss");
	ok(waits_for(ECM_STEP_CONNECT_REPLICATION, 0), "is mended at once again");

	tick();
	failed();
	ok(waits_for(ECM_STEP_CONNECT_REPLICATION, SECOND),
	   "an immediate reopening that fails waits for 1 s");

	start_at(ECM_STEP_START_POOL);
	failed();
	tick_after(SECOND);
	path();
	is_int(replication_lost(), CLOSE, "a first loss after another failure");
	ok(waits_for(ECM_STEP_CONNECT_REPLICATION, 2 * SECOND),
	   "waits for the backoff");
	tick_after(2 * SECOND);
	path();
	now += 5 * SECOND;
	replication_lost();
	ok(waits_for(ECM_STEP_CONNECT_REPLICATION, 0) && s.backoff.retries == 0,
	   "5 s count even if no tick came in between");

	for (step = ECM_STEP_IDENTIFY_SYSTEM; step < ECM_STEP_STREAMING; step++)
	{
		if (step == ECM_STEP_READY_TO_STREAM)
			continue;
		start_at(step);
		CHECK(replication_lost() == CLOSE);
		CHECK(waits_for(ECM_STEP_CONNECT_REPLICATION, SECOND));
		CHECK(!s.replication_up);
		CHECK(s.pool_up == (step > ECM_STEP_START_POOL));
		CHECK(replication_lost() == NONE && s.backoff.retries == 1);
		CHECK(tick_after(SECOND) == RUN_STEP);
		path();
	}
	checked("lost during any later step, it goes back to connect_replication");

	start_at(ECM_STEP_CREATE_SLOT);
	failed();
	now += SECOND / 4;
	ok(replication_lost() == CLOSE && s.backoff.retries == 1 &&
	   waits_for(ECM_STEP_CONNECT_REPLICATION, SECOND * 3 / 4),
	   "a failed step whose connection turns out to be lost is one failure");

	start_at(ECM_STEP_CONNECT_REPLICATION);
	ok(replication_lost() == CLOSE &&
	   waits_for(ECM_STEP_CONNECT_REPLICATION, SECOND),
	   "a connection lost while it is opened is a failed attempt");

	start();
	ok(replication_lost() == NONE && s.running && s.step == ECM_STEP_ACQUIRE_LOCK,
	   "without a connection there is none to lose");

	start_streaming();
	ok(failed() == CLOSE && waits_for(ECM_STEP_CONNECT_REPLICATION, 0),
	   "a failure while streaming is a lost stream");
}

static void
test_consumer_lost(void)
{
	static const int expected[] = {0, 1, 2, 4, 8, 10, 10};
	int64_t		began;
	int			runs;
	size_t		i;

	start_streaming();
	ok(consumer_lost() == CLOSE && !s.consumers_up && !s.streaming_up,
	   "a lost consumer costs the stream");
	is_str(status(), "starting", "and the status active");
	ok(waits_for(ECM_STEP_CONNECT_REPLICATION, 0),
	   "the first time it is mended at once");
	ok(consumer_lost() == NONE && waits_for(ECM_STEP_CONNECT_REPLICATION, 0),
	   "a second one that dies with it makes no difference");
	ok(replication_lost() == NONE && waits_for(ECM_STEP_CONNECT_REPLICATION, 0),
	   "nor does the connection that dies with it");
	tick();
	is_str(path(), FROM_CONNECT " check_timeline start_consumers start_streaming",
		   "consumers are started again, the pool is passed over");

	start_streaming();
	for (i = 0; i < sizeof(expected) / sizeof(expected[0]); i++)
	{
		CHECK(consumer_lost() == CLOSE);
		CHECK(waits_for(ECM_STEP_CONNECT_REPLICATION, expected[i] * SECOND));
		CHECK(tick_after(expected[i] * SECOND) == RUN_STEP);
		path();
		now += 4 * SECOND;
	}
	checked("a consumer that keeps dying waits for 0, 1, 2, 4, 8, 10, 10 s");

	start_at(ECM_STEP_START_CONSUMERS);
	ok(consumer_lost() == NONE && waits_for(ECM_STEP_START_CONSUMERS, SECOND) &&
	   s.replication_up,
	   "one that dies while it is started is a failed step");
	ok(consumer_lost() == NONE && s.backoff.retries == 1,
	   "two that die while they are started are one failure");
	start_at(ECM_STEP_START_STREAMING);
	ok(consumer_lost() == CLOSE &&
	   waits_for(ECM_STEP_CONNECT_REPLICATION, SECOND),
	   "one that dies while streaming is started costs the connection");

	start_streaming();
	replication_lost();
	tick();
	done();
	ok(consumer_lost() == NONE && s.step == ECM_STEP_IDENTIFY_SYSTEM &&
	   s.running && !s.consumers_up,
	   "one that dies while the connection is opened again is only noted");
	is_str(path(), "identify_system pg_info create_publication create_slot"
		   " set_display_settings check_timeline start_consumers"
		   " start_streaming", "and started when its turn comes");

	start_streaming();
	pool_lost();
	is_int(s.step, ECM_STEP_START_POOL, "while the pool is started again");
	ok(consumer_lost() == CLOSE &&
	   waits_for(ECM_STEP_CONNECT_REPLICATION, SECOND),
	   "a lost consumer costs the stream that goes on");

	/* its fourth death within 5 s: waits of 0, 1 and 2 s lie between them */
	start_streaming();
	for (i = 0; i < 3; i++)
	{
		CHECK(consumer_lost() == CLOSE);
		CHECK(s.pool_up && s.lock_held);
		now = ecm_state_deadline(&s);
		tick();
		path();
	}
	checked("three deaths within 5 s cost the stream only");
	is_int(consumer_lost(), ECM_ACTION_RESTART, "the fourth restarts the stack");
	ok(!s.pool_up && !s.consumers_up && !s.replication_up && s.lock_held &&
	   waits_for(ECM_STEP_ACQUIRE_LOCK, 4 * SECOND),
	   "from the beginning, with backoff, but with its lock");
	is_str(status(), "starting", "the status is starting");
	is_int(tick_after(4 * SECOND), RUN_STEP, "then it starts");
	is_str(path(), ALL_FROM_CONNECT, "everything but the lock");
	now += SECOND;
	is_int(consumer_lost(), CLOSE, "counting starts afresh");

	start_streaming();
	for (i = 0; i < 20; i++)
	{
		CHECK(consumer_lost() == CLOSE);
		now = ecm_state_deadline(&s);
		tick();
		path();
		now += 2 * SECOND;
	}
	checked("deaths further apart never do");

	/* an hour of a consumer that dies as soon as it is fed */
	start_streaming();
	began = now;
	for (runs = 0; now < began + HOUR; runs++)
	{
		consumer_lost();
		now = ecm_state_deadline(&s);
		tick();
		path();
	}
	ok(runs > 300 && runs < 370, "in an hour that is about 360 attempts");
}

static void
test_pool_lost(void)
{
	EcmStep		step;

	start_streaming();
	is_int(pool_lost(), RUN_STEP, "a lost pool is started again at once");
	ok(s.step == ECM_STEP_START_POOL && s.streaming_up && s.replication_up &&
	   s.consumers_up && !s.pool_up, "the stream goes on");
	is_str(status(), "starting", "the status goes back to starting");
	is_str(path(), "start_pool check_timeline",
		   "the stream and the consumers are passed over");
	is_str(status(), "active", "and then to active");
	ok(pool_lost() == NONE && waits_for(ECM_STEP_START_POOL, SECOND) &&
	   s.streaming_up, "lost again at once, it waits for 1 s");
	is_int(tick_after(SECOND), RUN_STEP, "then it is tried");
	failed();
	ok(waits_for(ECM_STEP_START_POOL, 2 * SECOND), "failing, it waits for 2 s");
	is_int(pool_lost(), NONE, "more sessions may be lost");
	ok(waits_for(ECM_STEP_START_POOL, 2 * SECOND) && s.backoff.retries == 2,
	   "without a difference");
	tick_after(2 * SECOND);
	failed();
	now += 4 * SECOND - 1;
	is_int(s.backoff.retries, 3, "a stream of more than 5 s without a pool");
	is_int(tick(), NONE, "doesn't reset the backoff");
	is_int(s.backoff.retries, 3, "of the pool");
	is_int(tick_after(1), RUN_STEP, "it is tried after 4 s");
	path();
	is_int(ecm_state_deadline(&s), now + 5 * SECOND, "5 s from now");
	tick_after(5 * SECOND);
	is_int(s.backoff.retries, 0, "the backoff is reset");

	for (step = ECM_STEP_CONNECT_REPLICATION; step < ECM_STEP_START_POOL; step++)
	{
		if (step == ECM_STEP_READY_TO_STREAM)
			continue;
		start_at(step);
		CHECK(pool_lost() == NONE && s.step == step && s.running);
		CHECK(s.backoff.retries == 0);
	}
	checked("before start_pool, there is no pool to lose");

	start_streaming();
	replication_lost();
	tick();
	ok(pool_lost() == NONE && s.running && !s.pool_up,
	   "a pool that is lost while the connection is opened is noted");
	is_str(path(), FROM_CONNECT " start_pool check_timeline start_streaming",
		   "and started when its turn comes");

	start_at(ECM_STEP_START_POOL);
	ok(pool_lost() == NONE && waits_for(ECM_STEP_START_POOL, SECOND),
	   "lost while it is started, it is a failed step");
	start_at(ECM_STEP_CHECK_TIMELINE);
	ok(pool_lost() == NONE && waits_for(ECM_STEP_START_POOL, SECOND),
	   "lost during check_timeline, it goes back to start_pool");
	start_at(ECM_STEP_START_CONSUMERS);
	ok(pool_lost() == NONE && waits_for(ECM_STEP_START_POOL, SECOND),
	   "likewise during start_consumers");
	start_at(ECM_STEP_START_STREAMING);
	ok(pool_lost() == CLOSE && waits_for(ECM_STEP_CONNECT_REPLICATION, SECOND),
	   "lost while streaming is started, it costs the connection");
	tick_after(SECOND);
	is_str(path(), FROM_CONNECT " start_pool check_timeline start_streaming",
		   "as nobody knows whether the stream runs");
	start_at(ECM_STEP_START_STREAMING);
	failed();
	ok(pool_lost() == NONE && waits_for(ECM_STEP_START_POOL, SECOND) &&
	   s.replication_up, "but not while it waits for a retry");

	start_streaming();
	pool_lost();
	is_int(replication_lost(), CLOSE,
		   "a stream that is lost while the pool is started");
	ok(waits_for(ECM_STEP_CONNECT_REPLICATION, SECOND),
	   "is not worth a second immediate attempt");
	tick_after(SECOND);
	is_str(path(), FROM_CONNECT " start_pool check_timeline start_streaming",
		   "both are brought up again");
}

static void
test_recreate(void)
{
	int			i;

	start_streaming();
	is_int(input(ECM_INPUT_REPLICATION_LOST, RECREATE), ECM_ACTION_RECREATE,
		   "a lost slot is made again");
	ok(waits_for(ECM_STEP_CONNECT_REPLICATION, SECOND) && !s.replication_up &&
	   !s.streaming_up && s.pool_up && s.consumers_up,
	   "after the backoff, not at once");
	is_str(status(), "starting", "the status goes back to starting");
	is_int(input(ECM_INPUT_REPLICATION_LOST, RECREATE), NONE,
		   "an echo of it does nothing");
	ok(s.recreations == 1 && s.backoff.retries == 1, "and isn't counted");
	is_int(tick_after(SECOND), RUN_STEP, "then it connects");
	is_str(path(), FROM_CONNECT " check_timeline start_streaming",
		   "and sets up everything");

	for (i = 2; i <= 3; i++)
	{
		now += 1200 * SECOND;
		CHECK(input(ECM_INPUT_REPLICATION_LOST, RECREATE) ==
			  ECM_ACTION_RECREATE);
		CHECK(s.recreations == i);
		tick_after(SECOND);
		path();
	}
	checked("three within an hour are allowed");
	now = s.recreated_at[0] + HOUR - 1;
	is_int(input(ECM_INPUT_REPLICATION_LOST, RECREATE), ECM_ACTION_FAIL,
		   "the fourth within an hour fails");
	is_str(status(), "failed", "the status is failed");
	is_int(input(ECM_INPUT_RELOAD, RETRY), RUN_STEP, "until a reload");
	path();
	is_int(input(ECM_INPUT_REPLICATION_LOST, RECREATE), ECM_ACTION_RECREATE,
		   "which starts counting afresh");

	start_streaming();
	for (i = 0; i < 3; i++)
	{
		input(ECM_INPUT_REPLICATION_LOST, RECREATE);
		now = ecm_state_deadline(&s);
		tick();
		path();
	}
	now = s.recreated_at[0] + HOUR;
	is_int(input(ECM_INPUT_REPLICATION_LOST, RECREATE), ECM_ACTION_RECREATE,
		   "a fourth is allowed when the hour is over");

	start_streaming();
	for (i = 0; i < 20; i++)
	{
		CHECK(input(ECM_INPUT_REPLICATION_LOST, RECREATE) ==
			  ECM_ACTION_RECREATE);
		tick_after(SECOND);
		path();
		now += 1200 * SECOND;
	}
	checked("one in twenty minutes goes on for ever");

	start_at(ECM_STEP_CREATE_SLOT);
	ok(input(ECM_INPUT_STEP_FAILED, RECREATE) == ECM_ACTION_RECREATE &&
	   waits_for(ECM_STEP_CONNECT_REPLICATION, SECOND),
	   "a step can find out, too");
	start_streaming();
	ok(input(ECM_INPUT_CONSUMER_LOST, RECREATE) == ECM_ACTION_RECREATE &&
	   !s.consumers_up, "or a consumer");
	start_streaming();
	ok(input(ECM_INPUT_POOL_LOST, RECREATE) == ECM_ACTION_RECREATE &&
	   !s.pool_up && !s.streaming_up, "or the pool");
	start();
	ok(input(ECM_INPUT_STEP_FAILED, RECREATE) == NONE &&
	   waits_for(ECM_STEP_ACQUIRE_LOCK, SECOND) && s.recreations == 0,
	   "but without the lock, the slot isn't ours to drop");
}

static void
test_fatal(void)
{
	static const EcmInputType types[] = {
		ECM_INPUT_STEP_FAILED, ECM_INPUT_REPLICATION_LOST,
		ECM_INPUT_CONSUMER_LOST, ECM_INPUT_POOL_LOST
	};
	EcmStep		step;
	size_t		i;

	for (step = ECM_STEP_ACQUIRE_LOCK; step < ECM_NUM_STEPS; step++)
		for (i = 0; i < 4; i++)
		{
			EcmInputType type;
			bool		had_lock;

			if (step == ECM_STEP_READY_TO_STREAM)
				continue;
			start_at(step);
			had_lock = s.lock_held;
			CHECK(input(types[i], FATAL) == ECM_ACTION_FAIL);
			CHECK(strcmp(status(), "failed") == 0);
			CHECK(s.step == step);
			CHECK(s.lock_held == had_lock);
			CHECK(!s.replication_up && !s.pool_up && !s.consumers_up &&
				  !s.streaming_up && !s.running);
			CHECK(ecm_state_deadline(&s) == 0);
			for (type = ECM_INPUT_STEP_DONE; type <= ECM_INPUT_TICK; type++)
			{
				if (type == ECM_INPUT_RELOAD)
					continue;
				now += HOUR;
				CHECK(input(type, FATAL) == NONE);
				CHECK(input(type, RECREATE) == NONE);
				CHECK(input(type, RETRY) == NONE);
			}
			CHECK(strcmp(status(), "failed") == 0 && s.step == step);
			CHECK(input(ECM_INPUT_RELOAD, RETRY) == RUN_STEP);
			CHECK(s.step == (had_lock ? ECM_STEP_CONNECT_REPLICATION :
							 ECM_STEP_ACQUIRE_LOCK));
			CHECK(s.backoff.retries == 0);
			CHECK(strcmp(path(), had_lock ? ALL_FROM_CONNECT :
						 "acquire_lock " ALL_FROM_CONNECT) == 0);
			CHECK(strcmp(status(), "active") == 0);
		}
	checked("a fatal error at any step lasts until a reload, which starts over");

	start_at(ECM_STEP_CREATE_SLOT);
	failed();
	ok(input(ECM_INPUT_REPLICATION_LOST, FATAL) == ECM_ACTION_FAIL &&
	   s.next_retry_at == 0, "a fatal error ends a pending retry");
	now += HOUR;
	ok(s.backoff.retries == 0 &&
	   ecm_backoff_total(&s.backoff, now) == 0,
	   "time spent in failed isn't time spent retrying");
}

/* A stream that runs for a while each time, and fails where it failed before. */
static void
test_stuck(void)
{
	int			i;

	healthy = false;
	start_streaming();
	is_int(raw_input(ECM_INPUT_REPLICATION_LOST, RETRY, true), CLOSE,
		   "a stream that has met an error");
	tick();
	path();
	is_str(status(), "active", "is believed in once more");
	is_int(ecm_state_deadline(&s), now + 5 * SECOND, "for 5 s");
	tick_after(5 * SECOND);
	is_str(status(), "starting", "then, without progress, it is not active");
	ok(ecm_state_is_doubtful(&s) && ecm_state_deadline(&s) == 0,
	   "but streams, for as long as it takes");
	now += 20 * SECOND;
	tick();
	ok(s.reopened && s.behind, "that it lasts does not count as health");
	is_int(raw_input(ECM_INPUT_REPLICATION_LOST, RETRY, true), CLOSE,
		   "lost again after 25 s");
	ok(waits_for(ECM_STEP_CONNECT_REPLICATION, SECOND), "it waits for the backoff");
	tick_after(SECOND);
	path();
	is_str(status(), "starting", "and is not active when it streams again");
	tick_after(10 * SECOND);
	is_int(s.backoff.retries, 1, "nor does that reset the backoff");
	is_int(raw_input(ECM_INPUT_PROGRESS, RETRY, false), NONE,
		   "having got beyond that place");
	is_str(status(), "active", "it is active at once");
	is_int(ecm_state_deadline(&s), now + 5 * SECOND, "and well");
	tick_after(5 * SECOND);
	ok(s.backoff.retries == 0 && !s.reopened, "after 5 s");

	/* no error of its own, such as a connection that is cut */
	start_streaming();
	for (i = 0; i < 50; i++)
	{
		CHECK(replication_lost() == CLOSE);
		now = ecm_state_deadline(&s);
		tick();
		path();
		now += 20 * SECOND;
	}
	ok(s.recreations == 0 && s.backoff.retries == 49,
	   "a connection that is cut again and again costs no slot");
	is_str(status(), "starting", "but its status says so");

	start_streaming();
	for (i = 0; i < ECM_MAX_STUCK - 1; i++)
	{
		CHECK(raw_input(ECM_INPUT_REPLICATION_LOST, RETRY, true) == CLOSE);
		now = ecm_state_deadline(&s);
		tick();
		path();
		now += 20 * SECOND;
	}
	checked("four times at the same place it is tried again");
	is_int(raw_input(ECM_INPUT_REPLICATION_LOST, RETRY, true), ECM_ACTION_RECREATE,
		   "the fifth time, after a minute, the slot is given up");
	ok(s.recreations == 1 && s.stuck == 0 && !s.behind, "which counts as others do");
	tick_after(10 * SECOND);
	path();
	is_str(status(), "active", "behind that place it is active");

	start_streaming();
	for (i = 0; i < 20; i++)
	{
		CHECK(raw_input(ECM_INPUT_REPLICATION_LOST, RETRY, true) == CLOSE);
		now = ecm_state_deadline(&s);
		tick();
		path();
		if (i % 4 == 3)
			CHECK(raw_input(ECM_INPUT_PROGRESS, RETRY, false) == NONE);
		now += 20 * SECOND;
	}
	checked("with progress in between it is not the same place");

	start_streaming();
	for (i = 0; i < 8; i++)
	{
		CHECK(raw_input(ECM_INPUT_REPLICATION_LOST, RETRY, true) == CLOSE);
		now = ecm_state_deadline(&s);
		tick();
		path();
	}
	ok(s.stuck > ECM_MAX_STUCK && now - s.stuck_since < 60 * SECOND,
	   "many failures within a minute are not enough");

	start_streaming();
	consumer_lost();
	tick();
	path();
	tick_after(5 * SECOND);
	is_str(status(), "starting", "a consumer that dies before it has got on is no progress");
	pool_lost();
	is_str(status(), "starting", "nor does the pool make a difference");
	done();
	done();
	is_str(status(), "starting", "when it is back");
	healthy = true;
}

/* What must hold after any input. */
static void
check_invariants(EcmAction action)
{
	EcmStatus	st = ecm_state_status(&s);
	int64_t		deadline = ecm_state_deadline(&s);

	CHECK((st == ECM_STATUS_ACTIVE) ==
		  (!s.failed && s.lock_held && s.replication_up && s.pool_up &&
		   s.consumers_up && s.streaming_up && !s.doubtful &&
		   s.step == ECM_STEP_STREAMING));
	CHECK((st == ECM_STATUS_FAILED) == s.failed);
	CHECK((s.streaming_since != 0) ==
		  (st == ECM_STATUS_ACTIVE || ecm_state_is_doubtful(&s)));
	CHECK(!s.doubtful || s.behind);
	CHECK(!s.streaming_up ||
		  (s.lock_held && s.replication_up && s.consumers_up));
	CHECK(s.step != ECM_STEP_READY_TO_STREAM);

	if (s.failed)
	{
		CHECK(!s.running && s.next_retry_at == 0 && deadline == 0);
		CHECK(action == NONE || action == ECM_ACTION_FAIL);
	}
	else
	{
		/* something always goes on, or will: never stuck */
		CHECK(s.running != (s.next_retry_at != 0));
		CHECK(s.lock_held == (s.step > ECM_STEP_ACQUIRE_LOCK));
		CHECK(s.replication_up == (s.step > ECM_STEP_CONNECT_REPLICATION));
		CHECK(s.pool_up || s.step <= ECM_STEP_START_POOL);
		CHECK(s.consumers_up || s.step <= ECM_STEP_START_CONSUMERS);
		CHECK(action != ECM_ACTION_FAIL);
	}
	if (action == RUN_STEP)
		CHECK(s.running && s.step < ECM_STEP_STREAMING);
	if (action == CLOSE || action == ECM_ACTION_RECREATE)
		CHECK(!s.running && s.next_retry_at != 0 && !s.streaming_up);
	CHECK(s.next_retry_at <= now + 10 * SECOND);
	CHECK(s.recreations <= ECM_MAX_RECREATIONS_PER_HOUR);
}

/*
 * Any input at any time, likely or not; now and then the world is well for a
 * while, and then the stack must become active in bounded time.
 */
static void
test_random_walk(void)
{
	int64_t		last_recreated[3] = {0, 0, 0};
	int			actives = 0;
	int			fails = 0;
	int			closes = 0;
	int			recreates = 0;
	int			i;

	ecm_state_init(&s, 1000, 10000);
	now = 1;
	random_start(17);
	tick();
	for (i = 0; i < 100000; i++)
	{
		static const int64_t pauses[] = {
			0, 1, SECOND / 10, SECOND, 5 * SECOND, 20 * SECOND, 600 * SECOND
		};
		EcmInputType type = (EcmInputType) random_below(ECM_INPUT_TICK + 1);
		EcmErrorKind kind = RETRY;
		EcmState	before;
		EcmAction	action;

		now += pauses[random_below(random_below(4) == 0 ? 7 : 4)];
		if (random_below(2) == 0)
			type = random_below(4) == 0 ? ECM_INPUT_TICK : ECM_INPUT_STEP_DONE;
		if (random_below(40) == 0)
			kind = RECREATE;
		else if (random_below(200) == 0)
			kind = FATAL;

		before = s;
		healthy = random_below(2) == 0;
		action = raw_input(type, kind, random_below(2) == 0);
		check_invariants(action);

		if (before.failed && type != ECM_INPUT_RELOAD)
			CHECK(s.failed && action == NONE);
		if (action == ECM_ACTION_FAIL)
		{
			fails++;
			CHECK(!before.failed);
		}
		if (action == CLOSE)
			closes++;
		if (type == ECM_INPUT_RELOAD && before.failed)
			memset(last_recreated, 0, sizeof(last_recreated));
		if (action == ECM_ACTION_RECREATE)
		{
			CHECK(last_recreated[0] == 0 || now - last_recreated[0] >= HOUR);
			memmove(last_recreated, last_recreated + 1, 2 * sizeof(int64_t));
			last_recreated[2] = now;
			recreates++;
		}
		if (ecm_state_status(&s) == ECM_STATUS_ACTIVE)
			actives++;

		/* a tick at the deadline always makes progress: no busy loop */
		if (random_below(3) == 0 && ecm_state_deadline(&s) != 0)
		{
			int64_t		deadline = ecm_state_deadline(&s);

			if (now < deadline)
				now = deadline;
			check_invariants(tick());
			CHECK(ecm_state_deadline(&s) == 0 ||
				  ecm_state_deadline(&s) > now);
		}

		/* the world is well */
		if (random_below(50) == 0)
		{
			int64_t		began = now;
			int			n = 0;

			if (s.failed)
			{
				check_invariants(input(ECM_INPUT_RELOAD, RETRY));
				memset(last_recreated, 0, sizeof(last_recreated));
			}
			healthy = true;
			while (ecm_state_status(&s) != ECM_STATUS_ACTIVE && n++ < 20)
			{
				if (ecm_state_is_doubtful(&s))
					check_invariants(input(ECM_INPUT_PROGRESS, RETRY));
				else if (s.running)
					check_invariants(done());
				else
				{
					CHECK(ecm_state_deadline(&s) != 0);
					if (now < ecm_state_deadline(&s))
						now = ecm_state_deadline(&s);
					check_invariants(tick());
				}
			}
			CHECK(ecm_state_status(&s) == ECM_STATUS_ACTIVE);
			CHECK(now - began <= 10 * SECOND);
		}
	}
	checked("100,000 random inputs: the invariants hold, and it always recovers");
	ok(actives > 1000 && fails > 100 && closes > 1000 && recreates > 100,
	   "and the walk has been everywhere");
	printf("# active %d, failed %d, closed %d, recreated %d times\n",
		   actives, fails, closes, recreates);
}

void
test_state(void)
{
	test_names();
	test_happy_path();
	test_step_failures();
	test_replication_lost();
	test_consumers_ended();
	test_consumer_lost();
	test_pool_lost();
	test_recreate();
	test_fatal();
	test_stuck();
	test_random_walk();
	checked("every walk has ended in streaming");
}
