/*-------------------------------------------------------------------------
 *
 * test_stack_decision.c
 *	  Whether a database has a stack: each line of the tables at the top of
 *	  stack_decision.c, and what the end of a manager comes to.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>
#include <string.h>

#include "unit.h"
#include "launcher/stack_decision.h"

#define SECOND		INT64_C(1000000)
#define NOW			(1000 * SECOND)
#define UNLISTED	"not listed in electric_cm.databases"

#define lengthof(a)	(sizeof(a) / sizeof((a)[0]))

static EcmStackFacts facts;

/* A stack that is wanted, in a database that is there. */
static void
begin(bool running, EcmProbe probe)
{
	memset(&facts, 0, sizeof(facts));
	facts.database_exists = true;
	facts.may_look = true;
	facts.registered = true;
	facts.running = running;
	facts.probe = probe;
	facts.now = NOW;
}

static bool
does(EcmStackAction action)
{
	return ecm_stack_decide(&facts).action == action;
}

static bool
ends(EcmEndReason reason)
{
	EcmStackDecision decision = ecm_stack_decide(&facts);

	return decision.action == ECM_STACK_END && decision.end_reason == reason;
}

static bool
stops(const char *reason)
{
	EcmStackDecision decision = ecm_stack_decide(&facts);

	return decision.action == ECM_STACK_STOPPED && decision.reason != NULL &&
		strcmp(decision.reason, reason) == 0;
}

/* ------------------------------------------------- while a manager runs -- */

static void
test_running(void)
{
	begin(true, ECM_PROBE_RUN);
	ok(does(ECM_STACK_LEAVE), "a manager that nobody wants anything of is left alone");

	begin(true, ECM_PROBE_RUN);
	facts.stop_requested = true;
	ok(ends(ECM_END_STOP), "stop requested: end it");
	facts.paused = facts.restart_requested = facts.reprobe_requested = true;
	facts.database_exists = false;
	ok(ends(ECM_END_STOP), "... whatever else is wanted");

	begin(true, ECM_PROBE_RUN);
	facts.paused = true;
	ok(ends(ECM_END_PAUSE), "a command in its way: end it");
	facts.restart_requested = facts.reprobe_requested = true;
	facts.unwanted = UNLISTED;
	ok(ends(ECM_END_PAUSE), "... also if it is to be restarted, or not wanted");

	begin(true, ECM_PROBE_RUN);
	facts.database_exists = false;
	ok(ends(ECM_END_UNWANTED), "database dropped: end it");

	begin(true, ECM_PROBE_RUN);
	facts.unwanted = UNLISTED;
	ok(ends(ECM_END_UNWANTED), "database not wanted: end it");
	facts.restart_requested = true;
	ok(ends(ECM_END_UNWANTED), "... rather than restart it");
	facts.restart_requested = false;
	facts.probe = ECM_PROBE_UNKNOWN;
	ok(does(ECM_STACK_LEAVE), "... but one that is only having a look may do so");
	facts.may_look = false;
	ok(ends(ECM_END_UNWANTED), "... if that can be done at all");

	begin(true, ECM_PROBE_RUN);
	facts.restart_requested = true;
	ok(ends(ECM_END_RESTART), "restart requested: end it");
	facts.reprobe_requested = true;
	ok(ends(ECM_END_RESTART), "... also if a reprobe is requested as well");

	begin(true, ECM_PROBE_RUN);
	facts.reprobe_requested = true;
	ok(does(ECM_STACK_GRANT), "reprobe requested: a manager that runs grants that");
	facts.asked_to_end = true;
	facts.end_reason = ECM_END_PAUSE;
	ok(does(ECM_STACK_LEAVE), "... but not one that is about to end");
	facts.asked_to_end = false;
	facts.probe = ECM_PROBE_UNKNOWN;
	ok(does(ECM_STACK_LEAVE), "... nor one that has not said yet whether it runs");
	facts.probe = ECM_PROBE_DISABLED;
	ok(does(ECM_STACK_LEAVE), "a manager with another verdict ends by itself");
}

static void
test_asked_once(void)
{
	static const EcmEndReason reasons[] = {
		ECM_END_STOP, ECM_END_RESTART, ECM_END_PAUSE, ECM_END_UNWANTED
	};

	begin(true, ECM_PROBE_RUN);
	facts.asked_to_end = true;
	for (size_t i = 0; i < lengthof(reasons); i++)
	{
		facts.end_reason = reasons[i];
		facts.stop_requested = true;
		CHECK(does(ECM_STACK_LEAVE));
		facts.stop_requested = false;
		facts.restart_requested = true;
		CHECK(does(ECM_STACK_LEAVE));
		facts.restart_requested = false;
		facts.database_exists = false;
		CHECK(does(ECM_STACK_LEAVE));
		facts.database_exists = true;
	}
	checked("a manager that was asked to end is not asked again");

	facts.end_reason = ECM_END_NONE;
	facts.stop_requested = true;
	ok(ends(ECM_END_STOP), "... unless that was only since it hangs");
}

/* --------------------------------------------------- while there is none -- */

static void
test_not_running(void)
{
	EcmStackDecision decision;

	begin(false, ECM_PROBE_RUN);
	facts.database_exists = false;
	ok(does(ECM_STACK_FREE), "database dropped: free the entry");
	facts.stop_requested = facts.restart_requested = facts.paused = true;
	ok(does(ECM_STACK_FREE), "... whatever is requested");

	begin(false, ECM_PROBE_RUN);
	facts.paused = true;
	decision = ecm_stack_decide(&facts);
	ok(decision.action == ECM_STACK_PAUSED && decision.reason == NULL,
	   "a command in its way: paused");
	facts.restart_requested = facts.reprobe_requested = true;
	ok(does(ECM_STACK_PAUSED), "... also if a start is requested");
	facts.unwanted = UNLISTED;
	facts.registered = false;
	ok(does(ECM_STACK_PAUSED), "... or the database is not wanted");
	facts.stop_requested = true;
	decision = ecm_stack_decide(&facts);
	ok(decision.action == ECM_STACK_PAUSED &&
	   decision.reason == ecm_probe_reason(ECM_PROBE_STOPPED),
	   "... and stopped, too, if that is requested");

	begin(false, ECM_PROBE_UNKNOWN);
	facts.unwanted = UNLISTED;
	facts.registered = false;
	ok(does(ECM_STACK_FREE), "database not wanted, and nobody asked for a stack: free the entry");
	facts.reprobe_requested = facts.stop_requested = true;
	ok(does(ECM_STACK_FREE), "... whatever is requested");

	begin(false, ECM_PROBE_RUN);
	facts.stop_requested = true;
	ok(stops("electric_cm_stop() was called"), "stop requested: stopped");
	facts.restart_requested = facts.reprobe_requested = true;
	facts.unwanted = UNLISTED;
	ok(stops("electric_cm_stop() was called"), "... whatever else is requested, or not wanted");
	facts.for_upgrade = true;
	ok(stops("prepared for pg_upgrade: electric_cm_start() starts it"), "... for pg_upgrade: it says so");

	begin(false, ECM_PROBE_RUN);
	facts.unwanted = UNLISTED;
	ok(stops(UNLISTED), "database not wanted: stopped, and that is why");
	facts.restart_requested = true;
	ok(stops(UNLISTED), "... also if a restart is requested");
	facts.restart_requested = false;
	facts.reprobe_requested = true;
	ok(does(ECM_STACK_START), "... but a requested reprobe finds out what is there");
	facts.may_look = false;
	ok(stops(UNLISTED), "... if that can be done");
}

static void
test_start(void)
{
	begin(false, ECM_PROBE_RUN);
	ok(does(ECM_STACK_START), "a stack that is wanted is started");
	facts.retry_at = NOW + SECOND;
	ok(does(ECM_STACK_WAIT), "... not before it may be, after a failure");
	facts.now = NOW + SECOND;
	ok(does(ECM_STACK_START), "... but then");

	begin(false, ECM_PROBE_RUN);
	facts.retry_at = NOW + SECOND;
	facts.restart_requested = true;
	ok(does(ECM_STACK_START), "restart requested: start, whenever it was to be");
	facts.restart_requested = false;
	facts.reprobe_requested = true;
	ok(does(ECM_STACK_START), "reprobe requested: likewise");
}

/* All verdicts: does a stack with it start by itself? */
static void
test_verdicts(void)
{
	static const struct
	{
		EcmProbe	probe;
		const char *stopped;	/* NULL: it starts */
	}			cases[] = {
		{ECM_PROBE_UNKNOWN, NULL},
		{ECM_PROBE_RUN, NULL},
		{ECM_PROBE_LOOKED, NULL},
		{ECM_PROBE_NO_EXTENSION, NULL},
		{ECM_PROBE_CLOSED, NULL},
		{ECM_PROBE_UNLISTED, NULL},
		{ECM_PROBE_DISABLED, "electric_cm.enabled is off"},
		{ECM_PROBE_OUTDATED, "the extension in this database is too old for the library that the server has loaded: "
		"ALTER EXTENSION electric_cm UPDATE"},
		{ECM_PROBE_UNKNOWN_VERSION, "the library that the server has loaded does not know this version of the extension: "
		"install a newer one and restart the server"},
		{ECM_PROBE_STOPPED, "electric_cm_stop() was called"},
		{ECM_PROBE_UPGRADE, "prepared for pg_upgrade: electric_cm_start() starts it"},
		{ECM_PROBE_NOT_STARTED, "not started yet: electric_cm_start() starts it"},
		{ECM_PROBE_CLONED, "this database is a copy of another one: "
		"electric_cm_start() starts a stack of its own"}
	};

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		begin(false, cases[i].probe);
		CHECK(cases[i].stopped ? stops(cases[i].stopped) : does(ECM_STACK_START));
		facts.retry_at = NOW + SECOND;
		CHECK(cases[i].stopped ? stops(cases[i].stopped) : does(ECM_STACK_WAIT));
		facts.reprobe_requested = true;
		CHECK(does(ECM_STACK_START));
		facts.reprobe_requested = false;
		facts.restart_requested = true;
		CHECK(does(ECM_STACK_START));
	}
	checked("a verdict not to run stops the stack, until somebody asks for it");
}

/* Whatever the facts are, no request is lost sight of. */
static void
test_all_facts(void)
{
	for (unsigned bits = 0; bits < 1 << 11; bits++)
		for (int probe = ECM_PROBE_UNKNOWN; probe <= ECM_PROBE_CLONED; probe++)
			for (int reason = ECM_END_NONE; reason <= ECM_END_UNWANTED; reason++)
			{
				EcmStackDecision decision;

				begin(bits & 1, probe);
				facts.database_exists = bits & 2;
				facts.unwanted = bits & 4 ? UNLISTED : NULL;
				facts.may_look = bits & 8;
				facts.registered = bits & 16;
				facts.stop_requested = bits & 32;
				facts.restart_requested = bits & 64;
				facts.reprobe_requested = bits & 128;
				facts.paused = bits & 256;
				facts.asked_to_end = bits & 512;
				facts.retry_at = bits & 1024 ? NOW + SECOND : 0;
				facts.end_reason = reason;
				decision = ecm_stack_decide(&facts);

				/* one who runs is ended, one who does not is started */
				CHECK(!facts.running || decision.action == ECM_STACK_LEAVE ||
					  decision.action == ECM_STACK_END ||
					  decision.action == ECM_STACK_GRANT);
				CHECK(facts.running || decision.action != ECM_STACK_END);
				CHECK(facts.running || decision.action != ECM_STACK_LEAVE);
				CHECK((decision.action == ECM_STACK_END) ==
					  (decision.end_reason != ECM_END_NONE));
				CHECK(decision.action != ECM_STACK_STOPPED || decision.reason != NULL);
				/* nothing starts that is stopped, or in somebody's way */
				CHECK(decision.action != ECM_STACK_START ||
					  !(facts.stop_requested || facts.paused));
			}
	checked("2,048 combinations of facts, all verdicts, all reasons: no contradiction");
}

/* -------------------------------------------------------------- workers -- */

static EcmStartAction
start(int nfree, int looking, int reserve, bool unseen)
{
	EcmStartFacts f = {.needed = 3, .free = nfree, .looking = looking,
	.reserve = reserve, .unseen = unseen};

	return ecm_start_decide(&f);
}

static void
test_workers(void)
{
	ok(start(3, 0, 0, false) == ECM_START_RUN, "enough workers: it is started");
	ok(start(3, 0, 1, false) == ECM_START_SOON, "one stays free for the next look, which comes first");
	ok(start(4, 0, 1, false) == ECM_START_RUN, "... besides those that are needed");
	ok(start(2, 0, 0, false) == ECM_START_LATER, "too few workers: it waits");
	ok(start(2, 1, 0, false) == ECM_START_SOON,
	   "... but not for long if a look is about to leave one");
	ok(start(3, 0, 0, true) == ECM_START_RUN,
	   "a database of which nothing is known: started likewise");
	ok(start(2, 0, 0, true) == ECM_START_LOOK, "... with too few workers it is looked into");
	ok(start(1, 5, 1, true) == ECM_START_LOOK, "... with one, too");
	ok(start(0, 5, 0, true) == ECM_START_LATER, "... but not with none");
	ok(start(-2, 0, 0, false) == ECM_START_LATER, "fewer than none are none");
}

/* ------------------------------------------------------ end of a manager -- */

static EcmEndFacts ended;

static void
begin_end(EcmProbe probe, EcmEndReason reason)
{
	memset(&ended, 0, sizeof(ended));
	ended.registered = true;
	ended.probe = probe;
	ended.end_reason = reason;
	ended.has_run = true;
	ended.ran_for = SECOND;
}

static bool
comes_to(EcmEndAction action)
{
	return ecm_end_decide(&ended).action == action;
}

static bool
forgets(void)
{
	return ecm_end_decide(&ended).forget_failures;
}

static void
test_end_reasons(void)
{
	begin_end(ECM_PROBE_RUN, ECM_END_STOP);
	ended.stop_requested = true;
	ok(comes_to(ECM_ENDED_AS_WANTED) && !forgets(), "ended to stop: it stays so");
	ended.stop_requested = false;
	ok(comes_to(ECM_ENDED_BY_REQUEST), "... a stop that was undone is no failure");

	begin_end(ECM_PROBE_RUN, ECM_END_RESTART);
	ok(comes_to(ECM_ENDED_BY_REQUEST) && forgets(),
	   "ended to restart: the next one starts at once, and failures are forgotten");
	begin_end(ECM_PROBE_RUN, ECM_END_NONE);
	ended.restart_requested = true;
	ok(comes_to(ECM_ENDED_BY_REQUEST) && forgets(),
	   "... likewise if it went by itself when a restart was requested");

	begin_end(ECM_PROBE_RUN, ECM_END_PAUSE);
	ok(comes_to(ECM_ENDED_AS_WANTED) && !forgets(),
	   "ended for a command: no failure, and none is forgotten for it");
	ended.restart_requested = true;
	ok(comes_to(ECM_ENDED_AS_WANTED), "... also with a restart requested");

	begin_end(ECM_PROBE_RUN, ECM_END_UNWANTED);
	ok(comes_to(ECM_ENDED_AS_WANTED) && !forgets(), "ended as not wanted: likewise");

	begin_end(ECM_PROBE_RUN, ECM_END_NONE);
	ok(comes_to(ECM_ENDED_FAILED), "ended by itself, though it should run: a failure");
	ended.reprobe_requested = true;
	ok(comes_to(ECM_ENDED_AS_WANTED), "... unless a reprobe is requested");

	begin_end(ECM_PROBE_RUN, ECM_END_NONE);
	ended.gave_way = true;
	ok(comes_to(ECM_ENDED_WITHOUT_WORKERS) && !forgets(),
	   "it had no workers for its consumers: the next one waits for them");
	ended.end_reason = ECM_END_RESTART;
	ok(comes_to(ECM_ENDED_BY_REQUEST), "... unless it was to be restarted");
}

static void
test_end_verdicts(void)
{
	static const EcmProbe wanted[] = {
		ECM_PROBE_LOOKED, ECM_PROBE_CLOSED, ECM_PROBE_UNLISTED,
		ECM_PROBE_DISABLED, ECM_PROBE_OUTDATED, ECM_PROBE_UNKNOWN_VERSION,
		ECM_PROBE_STOPPED, ECM_PROBE_UPGRADE, ECM_PROBE_NOT_STARTED, ECM_PROBE_CLONED
	};

	for (size_t i = 0; i < lengthof(wanted); i++)
	{
		begin_end(wanted[i], ECM_END_NONE);
		CHECK(comes_to(ECM_ENDED_AS_WANTED));
		ended.registered = false;
		CHECK(comes_to(ECM_ENDED_AS_WANTED));
	}
	checked("a manager that did not want to run has not failed");

	begin_end(ECM_PROBE_NO_EXTENSION, ECM_END_NONE);
	ok(comes_to(ECM_ENDED_NO_EXTENSION), "no extension: there is nothing to look after");
	begin_end(ECM_PROBE_UNKNOWN, ECM_END_NONE);
	ok(comes_to(ECM_ENDED_FAILED), "no verdict is a failure if somebody wants a stack");
	ended.registered = false;
	ok(comes_to(ECM_ENDED_UNSEEN), "... and else a look that is to be repeated");
}

static void
test_backoff_of_managers(void)
{
	begin_end(ECM_PROBE_RUN, ECM_END_NONE);
	ended.ran_for = 60 * SECOND;
	ok(!forgets(), "a failure after 60 s counts together with earlier ones");
	ended.ran_for++;
	ok(comes_to(ECM_ENDED_FAILED) && forgets(), "... one after a longer run is the first");
	ended.has_run = false;
	ok(!forgets(), "... but not if the manager never got to run");
}

/* ---------------------------------------------------------------- hangs -- */

static void
test_hangs(void)
{
	EcmHangFacts f = {.now = NOW};
	EcmHangDecision d = ecm_hang_decide(&f);

	ok(!d.report && !d.end && d.since == 0, "a manager that goes round: nothing");
	f.hangs = true;
	d = ecm_hang_decide(&f);
	ok(d.report && !d.end && d.since == NOW, "one that hangs is reported");
	f.reported = true;
	f.since = d.since;
	f.now += ECM_HANG_PATIENCE_US - 1;
	d = ecm_hang_decide(&f);
	ok(!d.report && !d.end && d.since == NOW, "... once");
	f.now++;
	d = ecm_hang_decide(&f);
	ok(d.end, "... and asked to end after a minute");
	f.asked_to_end = true;
	d = ecm_hang_decide(&f);
	ok(!d.end, "... once");
	f.hangs = false;
	d = ecm_hang_decide(&f);
	ok(d.report && !d.end && d.since == 0, "one that goes on is reported, and has its time again");
}

void
test_stack_decision(void)
{
	test_running();
	test_asked_once();
	test_not_running();
	test_start();
	test_verdicts();
	test_all_facts();
	test_workers();
	test_end_reasons();
	test_end_verdicts();
	test_backoff_of_managers();
	test_hangs();
}
