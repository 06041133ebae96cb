/*-------------------------------------------------------------------------
 *
 * stack_decision.c
 *	  Should a database have a stack now, and if not, why not?
 *
 * Other processes put requests into an entry, and wake the launcher.  In each round
 * it does for each entry what these tables say; of several lines that apply, the first
 * one counts.  A decision is made anew each time from the facts, so that a launcher
 * that was restarted goes on where the last one has ended.
 *
 *		while a manager runs
 *		--------------------
 *		stop requested				end it
 *		a command in its way		end it
 *		database dropped			end it
 *		database not wanted (*)		end it, unless it is only having a look
 *		restart requested			end it
 *		reprobe requested			granted, if its verdict is to run
 *		otherwise					leave it: with another verdict it ends by itself
 *
 *		while there is none
 *		-------------------
 *		database dropped			free the entry
 *		a command in its way		paused; stopped, too, if that is requested
 *		database not wanted (*)		free the entry, if nobody asked for a stack
 *		stop requested				stopped
 *		database not wanted (*)		stopped, but a requested reprobe finds out what
 *									is there, if that can be done
 *		restart or reprobe requested	start
 *		verdict: don't run			stopped
 *		otherwise					start, with backoff
 *
 *		(*) not listed in electric_cm.databases, a template, no connections
 *
 * A manager that was asked to end is not asked again.  If it was asked only since it
 * hangs, and there is a reason by now, it is asked again, as it should know the reason.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>

#include "launcher/stack_decision.h"

/* A manager that has run for so long has left its earlier failures behind. */
#define STABLE_RUN_US	INT64_C(60000000)

const char *
ecm_probe_reason(EcmProbe probe)
{
	switch (probe)
	{
		case ECM_PROBE_DISABLED:
			return "electric_cm.enabled is off";
		case ECM_PROBE_OUTDATED:
			return "the extension in this database is too old for the library that the server has loaded: "
				"ALTER EXTENSION electric_cm UPDATE";
		case ECM_PROBE_UNKNOWN_VERSION:
			return "the library that the server has loaded does not know this version of the extension: "
				"install a newer one and restart the server";
		case ECM_PROBE_STOPPED:
			return "electric_cm_stop() was called";
		case ECM_PROBE_UPGRADE:
			return "prepared for pg_upgrade: electric_cm_start() starts it";
		case ECM_PROBE_NOT_STARTED:
			return "not started yet: electric_cm_start() starts it";
		case ECM_PROBE_CLONED:
			return "this database is a copy of another one: "
				"electric_cm_start() starts a stack of its own";
		case ECM_PROBE_UNKNOWN:
		case ECM_PROBE_RUN:
		case ECM_PROBE_LOOKED:
		case ECM_PROBE_NO_EXTENSION:
		case ECM_PROBE_CLOSED:	/* that may have changed ... */
		case ECM_PROBE_UNLISTED:	/* ... and that */
			break;
	}
	return NULL;
}

bool
ecm_probe_is_of_version(EcmProbe probe)
{
	return probe == ECM_PROBE_OUTDATED || probe == ECM_PROBE_UNKNOWN_VERSION;
}

/* An action that needs nothing else. */
static EcmStackDecision
act(EcmStackAction action)
{
	EcmStackDecision decision = {action, ECM_END_NONE, NULL};

	return decision;
}

static EcmStackDecision
stopped(const char *reason)
{
	EcmStackDecision decision = {ECM_STACK_STOPPED, ECM_END_NONE, reason};

	return decision;
}

static EcmStackDecision
end(const EcmStackFacts *f, EcmEndReason reason)
{
	EcmStackDecision decision = {ECM_STACK_END, reason, NULL};

	if (f->asked_to_end && f->end_reason != ECM_END_NONE)
		return act(ECM_STACK_LEAVE);
	return decision;
}

static EcmStackDecision
decide_with_manager(const EcmStackFacts *f)
{
	if (f->stop_requested)
		return end(f, ECM_END_STOP);
	if (f->paused)
		return end(f, ECM_END_PAUSE);
	if (!f->database_exists)
		return end(f, ECM_END_UNWANTED);

	/* a manager that only looks, for the sake of a slot, ends by itself */
	if (f->unwanted != NULL && (f->probe == ECM_PROBE_RUN || !f->may_look))
		return end(f, ECM_END_UNWANTED);
	if (f->restart_requested)
		return end(f, ECM_END_RESTART);
	if (f->reprobe_requested && f->probe == ECM_PROBE_RUN && !f->asked_to_end)
		return act(ECM_STACK_GRANT);
	return act(ECM_STACK_LEAVE);
}

static const char *
stop_reason(const EcmStackFacts *f)
{
	return ecm_probe_reason(f->for_upgrade ? ECM_PROBE_UPGRADE : ECM_PROBE_STOPPED);
}

static EcmStackDecision
decide_without_manager(const EcmStackFacts *f)
{
	EcmStackDecision paused = {ECM_STACK_PAUSED, ECM_END_NONE, NULL};
	const char *verdict = ecm_probe_reason(f->probe);

	if (!f->database_exists)
		return act(ECM_STACK_FREE);
	if (f->paused)
	{
		if (f->stop_requested)
			paused.reason = stop_reason(f);
		return paused;
	}
	if (f->unwanted != NULL && !f->registered)
		return act(ECM_STACK_FREE);
	if (f->stop_requested)
		return stopped(stop_reason(f));
	if (f->unwanted != NULL && !(f->may_look && f->reprobe_requested))
		return stopped(f->unwanted);
	if (f->restart_requested || f->reprobe_requested)
		return act(ECM_STACK_START);
	if (verdict != NULL)
		return stopped(verdict);
	return act(f->retry_at <= f->now ? ECM_STACK_START : ECM_STACK_WAIT);
}

EcmStackDecision
ecm_stack_decide(const EcmStackFacts *facts)
{
	return facts->running ? decide_with_manager(facts) :
		decide_without_manager(facts);
}

/*
 * A manager is started only if its consumers can be, too: managers without consumers
 * would all wait for each other.  One worker is left free for the next look, as long
 * as there is a database of which nothing is known.  If this is such a database, and
 * the workers do for a look only, it gets that.
 */
EcmStartAction
ecm_start_decide(const EcmStartFacts *facts)
{
	if (facts->free >= facts->needed + facts->reserve)
		return ECM_START_RUN;
	if (facts->unseen)
		return facts->free >= 1 ? ECM_START_LOOK : ECM_START_LATER;
	return facts->free + facts->looking >= facts->needed ? ECM_START_SOON :
		ECM_START_LATER;
}

/*
 * Requests come first, as the manager has ended for them.  An end that nobody has
 * asked for is judged by what the manager has left behind.
 */
static EcmEndAction
end_action(const EcmEndFacts *f)
{
	if (f->stop_requested || f->reprobe_requested)
		return ECM_ENDED_AS_WANTED;

	/* no failure, and none is forgotten for it */
	if (f->end_reason == ECM_END_PAUSE || f->end_reason == ECM_END_UNWANTED)
		return ECM_ENDED_AS_WANTED;

	/* electric_cm_stop() that was undone is no failure either */
	if (f->restart_requested || f->end_reason != ECM_END_NONE)
		return ECM_ENDED_BY_REQUEST;
	if (f->gave_way)
		return ECM_ENDED_WITHOUT_WORKERS;

	switch (f->probe)
	{
		case ECM_PROBE_NO_EXTENSION:
			return ECM_ENDED_NO_EXTENSION;
		case ECM_PROBE_LOOKED:	/* there may be enough workers by now */
		case ECM_PROBE_CLOSED:
		case ECM_PROBE_UNLISTED:
		case ECM_PROBE_DISABLED:
		case ECM_PROBE_OUTDATED:
		case ECM_PROBE_UNKNOWN_VERSION:
		case ECM_PROBE_STOPPED:
		case ECM_PROBE_UPGRADE:
		case ECM_PROBE_NOT_STARTED:
		case ECM_PROBE_CLONED:
			return ECM_ENDED_AS_WANTED;
		case ECM_PROBE_UNKNOWN:
			return f->registered ? ECM_ENDED_FAILED : ECM_ENDED_UNSEEN;
		case ECM_PROBE_RUN:
			break;
	}
	return ECM_ENDED_FAILED;
}

EcmEndDecision
ecm_end_decide(const EcmEndFacts *facts)
{
	EcmEndDecision decision = {end_action(facts), false};

	if (decision.action == ECM_ENDED_BY_REQUEST)
		decision.forget_failures = true;
	if (decision.action == ECM_ENDED_FAILED)
		decision.forget_failures = facts->has_run && facts->ran_for > STABLE_RUN_US;
	return decision;
}

EcmHangDecision
ecm_hang_decide(const EcmHangFacts *facts)
{
	EcmHangDecision decision = {facts->hangs != facts->reported, false, 0};

	if (!facts->hangs)
		return decision;
	decision.since = facts->since != 0 ? facts->since : facts->now;
	decision.end = !facts->asked_to_end &&
		facts->now - decision.since >= ECM_HANG_PATIENCE_US;
	return decision;
}
