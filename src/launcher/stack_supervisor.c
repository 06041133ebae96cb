/*-------------------------------------------------------------------------
 *
 * stack_supervisor.c
 *	  Starts, watches and ends managers.
 *
 * stack_decision.c decides what is to be done about a stack; this file collects the
 * facts, and carries the decision out.
 *
 * Decisions are made from a copy of the entry, without the lock.  A request may come
 * in meanwhile.  So whatever would override it (a start, a status, a free) looks again
 * under the lock, and leaves the rest to the next round.
 *
 * Managers survive the launcher.  The next launcher finds their PIDs in the entries,
 * and hears of their end by its latch (ecm_stack_claim()), not by the postmaster,
 * which tells only the process that has registered a worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "base/bgworker.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "launcher/databases.h"
#include "launcher/stack_decision.h"
#include "launcher/stack_supervisor.h"
#include "launcher/worker_budget.h"
#include "slot/slot_notes.h"

/* A database that could not be looked into is left alone for so long. */
#define PROBE_RETRY_DELAY	(INT64CONST(60) * USECS_PER_SEC)

/* -------------------------------------------------------------- entries -- */

/*
 * Shows that no manager runs, and why.  An event says so, unless the last one has given
 * the same reason and no manager has run since.
 */
static void
mark_stopped(int index, const EcmEntry *entry, const char *reason)
{
	EcmSupervised *sup = ecm_supervised(index);
	EcmStack   *stack = ecm_stack_at(index);
	bool		changed;

	ecm_lock(LW_EXCLUSIVE);
	if ((stack->requests.reprobe && !entry->requests.reprobe) ||
		(stack->requests.restart && !entry->requests.restart))
	{
		/* requested since the entry was copied: see to that first */
		ecm_unlock();
		SetLatch(MyLatch);
		return;
	}
	changed = stack->report.status != ECM_STATUS_STOPPED ||
		strcmp(stack->report.waiting_for, reason) != 0;
	ecm_stack_set_status(stack, ECM_STATUS_STOPPED, reason);
	stack->report.next_retry_at = 0;
	stack->requests.restart = false;
	stack->requests.reprobe = false;
	ecm_unlock();

	if (changed)
		ConditionVariableBroadcast(&stack->cv);
	if (strcmp(sup->announced, reason) != 0)
	{
		strlcpy(sup->announced, reason, sizeof(sup->announced));
		ecm_event_in(entry->dboid, entry->datname,
					 ecm_probe_is_of_version(entry->manager.probe) &&
					 reason == ecm_probe_reason(entry->manager.probe) ?
					 ECM_EVENT_VERSION_MISMATCH : ECM_EVENT_MANAGER_STOPPED, NULL,
					 "stopped: %s", reason);
	}
}

/*
 * Shows that the stack is out of the way of a command that has waited for that: no
 * manager runs.  A stack that was stopped anyway keeps its reason.
 */
static void
mark_paused(int index, const EcmEntry *entry)
{
	EcmStack   *stack = ecm_stack_at(index);
	char		reason[ECM_TEXT_LEN];

	ecm_supervised(index)->paused = true;
	if (entry->lifecycle.paused)
		return;
	snprintf(reason, sizeof(reason), "paused for %s", entry->pause.command);

	ecm_lock(LW_EXCLUSIVE);
	if (stack->in_use && stack->dboid == entry->dboid)
	{
		stack->lifecycle.paused = true;
		if (stack->report.status != ECM_STATUS_STOPPED)
			ecm_stack_set_status(stack, ECM_STATUS_STOPPED, reason);
		stack->report.next_retry_at = 0;
	}
	ecm_unlock();
	ConditionVariableBroadcast(&stack->cv);
}

/*
 * The last command that needed the stack out of its way is over, and has committed or
 * rolled back.  It may have dropped or renamed the database, so pg_database is read.
 */
static void
pause_is_over(int index, const EcmEntry *entry)
{
	EcmSupervised *sup = ecm_supervised(index);
	const char *datname;

	sup->paused = false;
	ecm_databases_scan();
	datname = ecm_database_name(entry->dboid);
	if (sup->made_way && datname != NULL)
		ecm_event_in(entry->dboid, datname, ECM_EVENT_STACK_RESUMED, NULL, "stack resumed after %s",
					 entry->pause.command);
	sup->made_way = false;
}

void
ecm_supervisor_free_entry(int index, bool database_exists)
{
	EcmStack   *stack = ecm_stack_at(index);

	ecm_lock(LW_EXCLUSIVE);
	if (!database_exists ||
		!(stack->requests.reprobe || stack->requests.restart ||
		  stack->requests.stop || stack->pause.count > 0))
		ecm_stack_free(index);
	ecm_unlock();
	ConditionVariableBroadcast(&stack->cv);
	ecm_entries_note_exhausted(false);
}

/* Puts the new name into the entry, after ALTER DATABASE ... RENAME. */
static void
follow_rename(int index, EcmEntry *entry, const char *datname)
{
	if (strcmp(entry->datname, datname) == 0)
		return;
	strlcpy(entry->datname, datname, NAMEDATALEN);
	ecm_lock(LW_EXCLUSIVE);
	strlcpy(ecm_stack_at(index)->datname, datname, NAMEDATALEN);
	ecm_unlock();
}

/*
 * Takes a manager over that an earlier launcher has started.  It has claimed the entry,
 * hence runs - 1.
 */
static void
adopt_manager(EcmSupervised *sup, const EcmEntry *entry)
{
	sup->running = true;
	sup->asked_to_end = false;
	sup->runs_before = entry->manager.runs - 1;
	sup->started_at = ecm_now();
}

void
ecm_supervisor_meet(int index, const EcmEntry *entry)
{
	EcmSupervised *sup = ecm_supervised(index);

	if (sup->handle != NULL)
		pfree(sup->handle);
	memset(sup, 0, sizeof(EcmSupervised));
	sup->dboid = entry->dboid;
	sup->paused = entry->pause.count > 0;
	ecm_backoff_init(&sup->backoff, ecm_reconnect_initial_delay,
					 ecm_reconnect_max_delay);

	/* a manager of an earlier launcher's? */
	if (entry->manager.pid != 0)
		adopt_manager(sup, entry);

	/*
	 * a session may have allocated the entry in a database newer than the
	 * scan
	 */
	if (ecm_database_find(entry->dboid) == NULL)
		ecm_databases_scan();

	/* somebody has asked for a stack there, or a look is about to start */
	ecm_database_forget_known(entry->dboid);
}

/* ---------------------------------------------------- start of a manager -- */

/*
 * Schedules the next start.  With a message, an event is recorded for the first,
 * second, fourth, eighth ... time in a row: a manager that cannot run at all would
 * flood the log otherwise.
 */
static void
restart_with_backoff(int index, const EcmEntry *entry, const char *waiting_for,
					 const char *detail, const char *message)
{
	EcmSupervised *sup = ecm_supervised(index);
	EcmStack   *stack = ecm_stack_at(index);
	int			retries;

	sup->backoff.initial_ms = ecm_reconnect_initial_delay;
	sup->backoff.max_ms = Max(ecm_reconnect_initial_delay,
							  ecm_reconnect_max_delay);
	sup->retry_at = ecm_backoff_fail(&sup->backoff, ecm_now());
	retries = sup->backoff.retries;

	ecm_lock(LW_EXCLUSIVE);
	ecm_stack_set_status(stack, ECM_STATUS_WAITING, waiting_for);
	stack->report.next_retry_at = ecm_shown_time(sup->retry_at);
	stack->report.retry_count = retries;
	ecm_unlock();
	ConditionVariableBroadcast(&stack->cv);

	if (message != NULL && (retries & (retries - 1)) == 0)
		ecm_event_in(entry->dboid, entry->datname, ECM_EVENT_MANAGER_RESTARTING_AFTER_FAILURE, detail, "%s", message);
}

void
ecm_supervisor_report_no_worker(int index, const EcmEntry *entry, int nfree)
{
	EcmSupervised *sup = ecm_supervised(index);

	ecm_lock(LW_EXCLUSIVE);
	ecm_stack_at(index)->lifecycle.no_worker = true;
	ecm_unlock();
	if (sup->short_reported)
		return;
	sup->short_reported = true;
	ecm_event_in(entry->dboid, entry->datname, ECM_EVENT_NO_FREE_WORKER,
				 "Raise max_worker_processes and restart the server. It is tried again until then.",
				 "could not start a manager: it needs %d background workers, with its consumers, and %d of %d are free",
				 ecm_workers_needed(entry), Max(nfree, 0), max_worker_processes);
}

/*
 * Clears in the entry what was about the last manager, and the requests that the start
 * fulfils.  False: none is to be started, as a stop or pause has been requested, or an
 * earlier launcher's manager has claimed the entry.
 */
static bool
prepare_start(int index, bool look_only)
{
	EcmStack   *stack = ecm_stack_at(index);

	ecm_lock(LW_EXCLUSIVE);
	if (stack->requests.stop || stack->pause.count > 0 || stack->manager.pid != 0)
	{
		ecm_unlock();
		SetLatch(MyLatch);		/* have another look at it */
		return false;
	}
	stack->requests.restart = false;
	stack->requests.reprobe = false;
	stack->lifecycle.end_reason = ECM_END_NONE;
	stack->lifecycle.paused = false;
	stack->lifecycle.no_worker = false;
	stack->lifecycle.look_only = look_only;
	stack->manager.probe = ECM_PROBE_UNKNOWN;
	stack->manager.gave_way = false;
	stack->report.next_retry_at = 0;
	ecm_stack_set_status(stack, ECM_STATUS_WAITING, "start of the manager");
	ecm_supervised(index)->runs_before = stack->manager.runs;
	ecm_unlock();
	ConditionVariableBroadcast(&stack->cv);
	return true;
}

bool
ecm_supervisor_start(int index, const EcmEntry *entry, bool look_only)
{
	EcmSupervised *sup = ecm_supervised(index);
	BackgroundWorker worker;

	if (!prepare_start(index, look_only))
		return true;

	ecm_bgworker_init(&worker, "ecm_manager_main", "electric_cm manager");
	snprintf(worker.bgw_name, BGW_MAXLEN, "electric_cm manager %s",
			 entry->datname);
	worker.bgw_main_arg = Int32GetDatum(index);
	sup->handle = ecm_bgworker_start(&worker, TopMemoryContext);
	if (sup->handle == NULL)
	{
		ecm_supervisor_report_no_worker(index, entry, 0);
		return false;
	}

	if (!look_only)
		sup->short_reported = false;
	sup->running = true;
	sup->asked_to_end = false;
	sup->started_at = ecm_now();
	return true;
}

/*
 * Shows that the stack waits for background workers, and tries again later.  Not an
 * event each time: ecm_supervisor_report_no_worker() has said it.
 */
static void
wait_for_workers(int index, const EcmEntry *entry, int nfree)
{
	EcmStack   *stack = ecm_stack_at(index);

	/*
	 * A start is due anyway, at retry_at.  With the requests still set it
	 * would be tried in each round.
	 */
	ecm_lock(LW_EXCLUSIVE);
	stack->requests.restart = false;
	stack->requests.reprobe = false;
	if (stack->manager.probe != ECM_PROBE_RUN && stack->manager.probe != ECM_PROBE_LOOKED)
		stack->manager.probe = ECM_PROBE_UNKNOWN;
	ecm_unlock();
	ecm_supervisor_report_no_worker(index, entry, nfree);
	restart_with_backoff(index, entry,
						 psprintf("a free background worker slot (max_worker_processes): %d are needed, %d of %d are free",
								  ecm_workers_needed(entry), Max(nfree, 0),
								  max_worker_processes),
						 NULL, NULL);
}

int
ecm_worker_reserve(EcmTime now)
{
	return !ecm_entries_are_exhausted() &&
		ecm_database_next_to_look(now, false) != NULL ? 1 : 0;
}

/* Starts an entry's manager, now or, with too few workers, later. */
static void
start_or_retry(int index, const EcmEntry *entry, EcmTime now)
{
	EcmStartFacts facts = {0};
	EcmStartAction action;

	facts.needed = ecm_workers_needed(entry);
	facts.free = ecm_workers_free(&facts.looking);
	facts.reserve = ecm_worker_reserve(now);
	facts.unseen = entry->manager.probe == ECM_PROBE_UNKNOWN;
	action = ecm_start_decide(&facts);

	if (action == ECM_START_SOON)
		return;					/* in the next round: each look's end wakes us */
	if (action == ECM_START_LATER)
		wait_for_workers(index, entry, facts.free);
	else if (!ecm_supervisor_start(index, entry, action == ECM_START_LOOK))
		wait_for_workers(index, entry, 0);
}

/* ------------------------------------------------------ end of a manager -- */

/*
 * Asks a manager to end.  The reason goes into the entry first, as the manager goes by
 * it when it cleans up.
 */
static void
end_manager(int index, EcmEndReason reason)
{
	EcmSupervised *sup = ecm_supervised(index);
	EcmStack   *stack = ecm_stack_at(index);

	sup->asked_to_end = true;

	ecm_lock(LW_EXCLUSIVE);
	stack->lifecycle.end_reason = reason;
	if (reason == ECM_END_RESTART)
		stack->requests.restart = false;

	/*
	 * A manager that an earlier launcher has started has no handle.  Its PID
	 * can't be another process's while the lock is held: a manager takes its
	 * PID out of the entry, under the lock, before it ends.
	 */
	if (sup->handle == NULL && stack->manager.pid != 0)
		kill(stack->manager.pid, SIGTERM);
	ecm_unlock();

	if (sup->handle != NULL)
		TerminateBackgroundWorker(sup->handle);
}

/* Has the manager ended that was running? */
static bool
has_ended(EcmSupervised *sup, const EcmEntry *entry)
{
	pid_t		pid;

	/*
	 * If our worker has ended, the entry may still have a manager: one of an
	 * earlier launcher's that has claimed it first.
	 */
	if (sup->handle != NULL &&
		GetBackgroundWorkerPid(sup->handle, &pid) == BGWH_STOPPED)
	{
		pfree(sup->handle);
		sup->handle = NULL;
	}
	return sup->handle == NULL && entry->manager.pid == 0;
}

/* Clears in the entry what a manager that has ended has shown. */
static void
clear_traces(int index, EcmEndReason end_reason)
{
	EcmStack   *stack = ecm_stack_at(index);

	ecm_lock(LW_EXCLUSIVE);
	stack->lifecycle.hangs = false;
	stack->lifecycle.stopped_runs = stack->manager.runs;
	stack->lifecycle.look_only = false;
	if (stack->requests.restart || end_reason == ECM_END_RESTART)
		stack->lifecycle.restarts++;
	if (end_reason != ECM_END_PAUSE)
		stack->requests.drop_on_stop = false;
	stack->requests.drop_slot = false;
	stack->report.lock_acquired = false;
	stack->report.phase[0] = '\0';
	stack->report.step[0] = '\0';
	stack->report.blocking_pid = 0;
	memset(stack->conns, 0, sizeof(stack->conns));
	memset(stack->creations, 0, sizeof(stack->creations));
	ecm_unlock();
	ConditionVariableBroadcast(&stack->cv);
}

/*
 * A manager has ended that should have run on.  Starts another one with backoff, unless
 * it has ended since the database was dropped.
 */
static void
restart_failed(int index, const EcmEntry *entry, bool has_run,
			   bool forget_failures)
{
	EcmStack   *stack = ecm_stack_at(index);

	ecm_databases_scan();
	if (ecm_database_find(entry->dboid) == NULL)
		return;
	if (forget_failures)
		ecm_backoff_reset(&ecm_supervised(index)->backoff, ecm_now());
	ecm_lock(LW_EXCLUSIVE);
	stack->lifecycle.restarts++;
	ecm_unlock();
	restart_with_backoff(index, entry, "restart of the manager",
						 "The server log says why. It is started again.",
						 has_run ? "the manager ended unexpectedly" :
						 "the manager could not be started");
}

/*
 * A manager has ended: reports that, and does what has to be done before the next one.
 * Whether and when that starts, supervise() decides afterwards.
 */
static void
manager_ended(int index, EcmEntry *entry)
{
	EcmSupervised *sup = ecm_supervised(index);
	EcmTime		now = ecm_now();
	EcmEndFacts facts = {0};
	EcmEndDecision decision;
	int			looking;

	sup->running = false;
	sup->asked_to_end = false;
	sup->retry_at = 0;
	sup->sample_at = 0;
	clear_traces(index, entry->lifecycle.end_reason);
	ecm_entry_read(index, entry);

	if (entry->lifecycle.end_reason == ECM_END_PAUSE)
	{
		sup->made_way = true;
		ecm_event_in(entry->dboid, entry->datname, ECM_EVENT_STACK_PAUSED, NULL, "stack paused for %s",
					 entry->pause.command);
	}

	facts.registered = entry->registered;
	facts.stop_requested = entry->requests.stop;
	facts.restart_requested = entry->requests.restart;
	facts.reprobe_requested = entry->requests.reprobe;
	facts.end_reason = entry->lifecycle.end_reason;
	facts.probe = entry->manager.probe;
	facts.gave_way = entry->manager.gave_way;
	facts.has_run = entry->manager.runs > sup->runs_before;
	facts.ran_for = now - sup->started_at;
	decision = ecm_end_decide(&facts);

	switch (decision.action)
	{
		case ECM_ENDED_AS_WANTED:
			break;
		case ECM_ENDED_BY_REQUEST:
			ecm_backoff_reset(&sup->backoff, now);
			ecm_event_in(entry->dboid, entry->datname, ECM_EVENT_MANAGER_RESTARTING, NULL,
						 "the manager is restarted by request");
			break;
		case ECM_ENDED_WITHOUT_WORKERS:
			wait_for_workers(index, entry, ecm_workers_free(&looking));
			break;
		case ECM_ENDED_NO_EXTENSION:
			ecm_slot_notes_leave(entry->dboid, entry->datname);
			ecm_database_note_known(entry->dboid, 0);
			ecm_supervisor_free_entry(index, true);
			break;
		case ECM_ENDED_UNSEEN:
			ecm_database_note_known(entry->dboid, now + PROBE_RETRY_DELAY);
			ecm_supervisor_free_entry(index, true);
			break;
		case ECM_ENDED_FAILED:
			restart_failed(index, entry, facts.has_run, decision.forget_failures);
			break;
	}
}

/* ---------------------------------------------------------- supervision -- */

static void
gather_facts(const EcmSupervised *sup, const EcmEntry *entry, EcmTime now,
			 EcmStackFacts *facts)
{
	const EcmDatabase *database = ecm_database_find(entry->dboid);

	memset(facts, 0, sizeof(*facts));
	facts->database_exists = database != NULL;
	facts->unwanted = database != NULL ? database->unwanted : NULL;
	facts->may_look = database != NULL && database->may_look;
	facts->registered = entry->registered;
	facts->stop_requested = entry->requests.stop;
	facts->for_upgrade = entry->requests.upgrade;
	facts->restart_requested = entry->requests.restart;
	facts->reprobe_requested = entry->requests.reprobe;
	facts->paused = entry->pause.count > 0;
	facts->running = sup->running;
	facts->asked_to_end = sup->asked_to_end;
	facts->end_reason = entry->lifecycle.end_reason;
	facts->probe = entry->manager.probe;
	facts->now = now;
	facts->retry_at = sup->retry_at;
}

/*
 * Notices that a manager has come or gone.  False: nothing more is to be done about
 * the entry in this round.
 */
static bool
note_manager(int index, EcmEntry *entry)
{
	EcmSupervised *sup = ecm_supervised(index);

	if (sup->running && has_ended(sup, entry))
	{
		manager_ended(index, entry);
		ecm_entry_read(index, entry);
		if (!entry->in_use)
			return false;
		if (entry->manager.probe == ECM_PROBE_LOOKED)
		{
			/* stacks that have waited for workers longer come first */
			SetLatch(MyLatch);
			return false;
		}
	}
	else if (!sup->running && entry->manager.pid != 0)
		adopt_manager(sup, entry);	/* an earlier launcher's, that was slow */
	return true;
}

/* Does what is due for one entry. */
static void
supervise(int index, EcmTime now)
{
	EcmSupervised *sup = ecm_supervised(index);
	const char *datname;
	EcmEntry	entry;
	EcmStackFacts facts;
	EcmStackDecision decision;

	ecm_entry_read(index, &entry);
	if (!entry.in_use)
	{
		sup->dboid = InvalidOid;
		return;
	}
	if (entry.dboid != sup->dboid)
		ecm_supervisor_meet(index, &entry);
	if (!note_manager(index, &entry))
		return;
	if (sup->paused && entry.pause.count == 0)
		pause_is_over(index, &entry);
	datname = ecm_database_name(entry.dboid);
	if (datname != NULL)
		follow_rename(index, &entry, datname);
	if (sup->running && entry.manager.probe == ECM_PROBE_RUN)
		sup->announced[0] = '\0';

	gather_facts(sup, &entry, now, &facts);
	decision = ecm_stack_decide(&facts);
	switch (decision.action)
	{
		case ECM_STACK_LEAVE:
		case ECM_STACK_WAIT:
			break;
		case ECM_STACK_START:
			start_or_retry(index, &entry, now);
			break;
		case ECM_STACK_END:
			end_manager(index, decision.end_reason);
			break;
		case ECM_STACK_GRANT:
			ecm_lock(LW_EXCLUSIVE);
			ecm_stack_at(index)->requests.reprobe = false;
			ecm_unlock();
			break;
		case ECM_STACK_STOPPED:
			mark_stopped(index, &entry, decision.reason);
			break;
		case ECM_STACK_PAUSED:
			if (decision.reason != NULL)
				mark_stopped(index, &entry, decision.reason);
			mark_paused(index, &entry);
			break;
		case ECM_STACK_FREE:
			ecm_supervisor_free_entry(index, facts.database_exists);
			break;
	}
}

void
ecm_supervise_all(EcmTime now)
{
	for (int i = 0; i < ecm_stack_count(); i++)
		supervise(i, now);
}

EcmTime
ecm_supervisor_next_start(EcmTime now)
{
	EcmTime		next = 0;

	for (int i = 0; i < ecm_stack_count(); i++)
	{
		const EcmSupervised *sup = ecm_supervised(i);

		if (OidIsValid(sup->dboid) && !sup->running && sup->retry_at > now &&
			(next == 0 || sup->retry_at < next))
			next = sup->retry_at;
	}
	return next;
}

/* ------------------------------------------------- managers that hang -- */

/*
 * A manager hangs that has not gone round for ECM_MANAGER_HANGS_MS.  The launcher
 * watches its slot meanwhile (unattended_slots.c).  When it has been asked to end, it
 * does so when it goes on; SIGKILL would restart the whole server.
 */
static void
watch_hang(int index, const EcmEntry *entry, EcmTime now)
{
	EcmSupervised *sup = ecm_supervised(index);
	EcmStack   *stack = ecm_stack_at(index);
	EcmHangFacts facts = {0};
	EcmHangDecision decision;
	int			seconds = (int) ((now - stack->manager.alive_at) / USECS_PER_SEC);

	ecm_lock(LW_EXCLUSIVE);
	facts.hangs = stack->manager.pid == entry->manager.pid && ecm_manager_hangs(stack);
	facts.reported = stack->lifecycle.hangs;
	facts.asked_to_end = sup->asked_to_end;
	facts.now = now;
	facts.since = sup->hangs_since;
	decision = ecm_hang_decide(&facts);
	stack->lifecycle.hangs = facts.hangs;
	sup->hangs_since = decision.since;
	if (decision.end)
	{
		sup->asked_to_end = true;
		kill(stack->manager.pid, SIGTERM);
	}
	ecm_unlock();
	if (!decision.report)
		return;
	ConditionVariableBroadcast(&stack->cv);
	sup->sample_at = 0;
	if (facts.hangs)
		ecm_event_in(entry->dboid, entry->datname, ECM_EVENT_MANAGER_HANGS,
					 psprintf("Its slot is watched without it. If it is stopped, kill -CONT %d lets it go on; don't kill -9 it: that would restart the whole server.",
							  entry->manager.pid),
					 "manager PID %d has not moved for %d s", entry->manager.pid, seconds);
	else
		ecm_event_in(entry->dboid, entry->datname, ECM_EVENT_MANAGER_RESUMED, NULL, "manager PID %d goes on",
					 entry->manager.pid);
}

void
ecm_supervisor_watch_hangs(EcmTime now)
{
	for (int i = 0; i < ecm_stack_count(); i++)
	{
		EcmEntry	entry;

		ecm_entry_read(i, &entry);
		if (entry.in_use && entry.manager.pid != 0)
			watch_hang(i, &entry, now);
		else
			ecm_supervised(i)->hangs_since = 0;
	}
}
