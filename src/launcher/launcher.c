/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  The launcher, the one static worker: which managers should run.
 *
 * It knows no more of a database than its name.  Whether a stack is wanted
 * there only a process inside the database can see, so that is a manager's
 * first act: it leaves its verdict in the entry ("probe"), and runs or exits.
 * Looking at a database thus means starting a manager.  The databases without
 * the extension are remembered and left alone until somebody says CREATE
 * EXTENSION there.
 *
 * What other processes want is in each entry's request fields; they set them
 * and wake us.  Each time round, everything due is done for each entry:
 *
 *		entry				manager runs				no manager
 *		-----				------------				----------
 *		database dropped	end it						free the entry
 *		not wanted (*)		end it						stopped (+)
 *		stop requested		end it						stopped
 *		a command in its way	end it					stopped
 *		restart requested	end it						start
 *		reprobe requested	-							start
 *		verdict: don't run	(it ends by itself)			stopped
 *		otherwise			-							start, with backoff
 *
 *		(*) not listed in electric_cm.databases, a template, no connections
 *		(+) but if it is only not listed, a reprobe finds out what is there
 *
 * A manager needs consumers, which are background workers, too.  It is started
 * only if there are enough of them, or they would all wait for each other.
 *
 * The slots that a dropped extension has left are dropped here, too, as soon as
 * nobody uses them: a slot needs no process in its database for that.
 *
 * Managers survive the launcher.  The next one finds their pids in the
 * entries, and hears of their end by the latch, not by the postmaster.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/backoff.h"
#include "base/compat.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/wait_event.h"
#include "launcher/launcher.h"
#include "launcher/unattended_slots.h"
#include "launcher/worker_budget.h"
#include "slot/slot.h"
#include "slot/slot_notes.h"

/* Times in microseconds, as EcmTime. */
#define RESCAN_INTERVAL		(INT64CONST(60) * USECS_PER_SEC)
#define STABLE_RUN			(INT64CONST(60) * USECS_PER_SEC)

/* a database that could not be looked at is left alone for so long */
#define PROBE_RETRY_DELAY	(INT64CONST(60) * USECS_PER_SEC)

/* how often a slot that is to be dropped, but in use, is looked at */
#define ABANDONED_INTERVAL	(INT64CONST(1) * USECS_PER_SEC)
/* ... and when that is worth a warning */
#define ABANDONED_PATIENCE	(INT64CONST(10) * USECS_PER_SEC)

/* a manager that hangs for so long is asked to end */
#define HANG_PATIENCE_MS	60000

#define LAUNCHER_RESTART_TIME	5	/* seconds */

/* A database, as of the last look at pg_database. */
typedef struct Database
{
	Oid			dboid;
	NameData	datname;
	const char *unwanted;		/* why no stack may run there, or NULL */
	bool		may_look;		/* if so: a manager can say what is there */
} Database;

/* A database that needs no look (key: OID). */
typedef struct Known
{
	Oid			dboid;
	EcmTime		again_at;		/* 0: no extension; else the last try failed */
} Known;

/* What the launcher alone knows about an entry. */
typedef struct Supervised
{
	Oid			dboid;			/* the entry's when last seen; or InvalidOid */
	BackgroundWorkerHandle *handle; /* NULL: no worker, or not started by us */
	bool		running;		/* a manager, or what is to be one */
	bool		asked_to_end;
	uint64		runs_before;	/* entry's "runs" when we started it */
	EcmTime		started_at;
	EcmTime		retry_at;		/* 0: at once */
	EcmBackoff	backoff;
	const char *announced;		/* why it is stopped, if an event said so */
	bool		short_reported; /* an event said that workers are lacking */
	EcmTime		hangs_since;	/* that a manager does, 0: it does not */
	bool		paused;			/* a command needed it out of the way ... */
	bool		stepped_aside;	/* ... and a manager has ended for it */
} Supervised;

/* The part of an entry that decisions are made from. */
typedef struct Entry
{
	bool		in_use;
	Oid			dboid;
	char		datname[NAMEDATALEN];
	bool		registered;
	bool		stop_requested;
	bool		restart_requested;
	bool		reprobe_requested;
	int			pauses;
	char		paused_for[32];
	bool		aside;
	EcmProbe	probe;
	EcmEndReason end_reason;
	EcmStatus	status;
	int			shape_workers;
	bool		look_only;
	bool		gave_way;
	int			pid;
	uint64		runs;
} Entry;

static MemoryContext loop_context;
static MemoryContext databases_context;
static List *databases = NIL;	/* of Database */
static EcmTime scanned_at = 0;
static HTAB *known;
static Supervised *supervised;	/* one per entry */
static EcmTime probe_retry_at = 0;	/* no free worker when last tried */
static bool probe_postponed = false;	/* ... and it has been said */
static bool entries_exhausted = false;
static EcmTime abandoned_at = 0;	/* look again for slots to drop; 0: none */
static EcmTime unattended_at = 0;	/* a slot without a manager is due; 0: none */

void
ecm_launcher_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = LAUNCHER_RESTART_TIME;
	strlcpy(worker.bgw_library_name, ECM_LIBRARY_NAME, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "ecm_launcher_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "electric_cm launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "electric_cm launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/*
 * The databases
 */

static const char *
why_unwanted(Form_pg_database form)
{
	if (form->datistemplate)
		return "a template database has no stack";
	if (!form->datallowconn)
		return "the database does not allow connections";
	if (form->datconnlimit == ECM_CONNLIMIT_INVALID_DB)
		return "the database is what an interrupted DROP DATABASE has left";
	if (!ecm_database_is_listed(NameStr(form->datname)))
		return "not listed in electric_cm.databases";
	return NULL;
}

static Database *
find_database(Oid dboid)
{
	ListCell   *lc;

	foreach(lc, databases)
	{
		Database   *database = lfirst(lc);

		if (database->dboid == dboid)
			return database;
	}
	return NULL;
}

/* Forgets what is known about databases that don't exist any more. */
static void
forget_dropped_databases(void)
{
	HASH_SEQ_STATUS status;
	Known	   *item;

	hash_seq_init(&status, known);
	while ((item = hash_seq_search(&status)) != NULL)
		if (find_database(item->dboid) == NULL)
			hash_search(known, &item->dboid, HASH_REMOVE, NULL);
}

static void
scan_databases(void)
{
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->rescan_requested = false;
	ecm_unlock();

	MemoryContextReset(databases_context);
	databases = NIL;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old = MemoryContextSwitchTo(databases_context);
		Database   *database = palloc0(sizeof(Database));

		database->dboid = form->oid;
		database->datname = form->datname;
		database->unwanted = why_unwanted(form);
		database->may_look = form->datconnlimit != ECM_CONNLIMIT_INVALID_DB;
		databases = lappend(databases, database);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(loop_context);

	scanned_at = ecm_now();
	forget_dropped_databases();
}

/*
 * Entries
 */

static void
read_entry(int index, Entry *entry)
{
	EcmStack   *stack = &ecm_shared->stacks[index];

	ecm_lock(LW_SHARED);
	entry->in_use = stack->in_use;
	entry->dboid = stack->dboid;
	strlcpy(entry->datname, stack->datname, NAMEDATALEN);
	entry->registered = stack->registered;
	entry->stop_requested = stack->requests.stop;
	entry->restart_requested = stack->requests.restart;
	entry->reprobe_requested = stack->requests.reprobe;
	entry->pauses = stack->pause.count;
	strlcpy(entry->paused_for, stack->pause.command, sizeof(entry->paused_for));
	entry->aside = stack->lifecycle.paused;
	entry->probe = stack->manager.probe;
	entry->end_reason = stack->lifecycle.end_reason;
	entry->status = stack->report.status;
	entry->shape_workers = stack->manager.shape_workers;
	entry->look_only = stack->lifecycle.look_only;
	entry->gave_way = stack->manager.gave_way;
	entry->pid = stack->manager.pid;
	entry->runs = stack->manager.runs;
	ecm_unlock();
}

/*
 * Notes that no manager runs, and why (a constant).  An event says so unless
 * that has been the reason since a manager last ran.
 */
static void
mark_stopped(int index, const Entry *entry, const char *reason)
{
	Supervised *sup = &supervised[index];
	EcmStack   *stack = &ecm_shared->stacks[index];
	bool		changed;

	ecm_lock(LW_EXCLUSIVE);
	if ((stack->requests.reprobe && !entry->reprobe_requested) ||
		(stack->requests.restart && !entry->restart_requested))
	{
		/* somebody has asked for a manager since we looked */
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
	if (sup->announced != reason)
	{
		sup->announced = reason;
		ecm_event(entry->dboid, entry->datname, "manager_stopped",
				  ECM_SEVERITY_LOG, NULL,
				  "stopped: %s", reason);
	}
}

/*
 * Frees an entry, unless somebody has just asked for something; the next time
 * round sees to that then.
 */
static void
free_entry(int index, bool database_exists)
{
	EcmStack   *stack = &ecm_shared->stacks[index];

	ecm_lock(LW_EXCLUSIVE);
	if (!database_exists ||
		!(stack->requests.reprobe || stack->requests.restart ||
		  stack->requests.stop || stack->pause.count > 0))
		ecm_stack_free(index);
	ecm_unlock();
	ConditionVariableBroadcast(&stack->cv);
	entries_exhausted = false;
}

static void
note_known(Oid dboid, EcmTime again_at)
{
	Known	   *item = hash_search(known, &dboid, HASH_ENTER, NULL);

	item->again_at = again_at;
}

/*
 * A session could not allocate its entry: look at every database again as soon
 * as entries are free.
 */
static void
forget_known_if_requested(void)
{
	HASH_SEQ_STATUS status;
	Known	   *item;
	bool		requested;

	ecm_lock(LW_EXCLUSIVE);
	requested = ecm_shared->reprobe_all_requested;
	ecm_shared->reprobe_all_requested = false;
	ecm_unlock();
	if (!requested)
		return;

	hash_seq_init(&status, known);
	while ((item = hash_seq_search(&status)) != NULL)
		hash_search(known, &item->dboid, HASH_REMOVE, NULL);
}

/*
 * One where no stack may run (any more) gets none.  But if there is a slot that
 * may be ours, somebody has to find out, so that it does not go unattended.
 */
static bool
needs_probe(const Database *database, EcmTime now)
{
	Known	   *item;

	if (database->unwanted != NULL &&
		!(database->may_look && ecm_database_has_slot(database->dboid)))
		return false;
	item = hash_search(known, &database->dboid, HASH_FIND, NULL);
	return item == NULL || (item->again_at != 0 && item->again_at <= now);
}

/* The next database to look into; with_slot: of those that have a slot. */
static Database *
next_to_look_into(EcmTime now, bool with_slot)
{
	ListCell   *lc;

	foreach(lc, databases)
	{
		Database   *database = lfirst(lc);

		if (needs_probe(database, now) && ecm_stack_find(database->dboid) < 0 &&
			(!with_slot || ecm_database_has_slot(database->dboid)))
			return database;
	}
	return NULL;
}

/* How many workers must stay free for looking into other databases? */
static int
worker_reserve(EcmTime now)
{
	return !entries_exhausted && next_to_look_into(now, false) != NULL ? 1 : 0;
}

/*
 * Starting and ending managers
 */

/*
 * Schedules the next start.  Only the first, second, fourth, eighth ... failure
 * in a row is an event: a manager that cannot run at all would flood the log.
 */
static void
restart_with_backoff(int index, const Entry *entry, const char *event,
					 const char *waiting_for, const char *detail,
					 const char *message)
{
	Supervised *sup = &supervised[index];
	EcmStack   *stack = &ecm_shared->stacks[index];
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

	if (event != NULL && (retries & (retries - 1)) == 0)
		ecm_event(entry->dboid, entry->datname, event, ECM_SEVERITY_WARNING,
				  detail, "%s", message);
}

/* The background workers that a stack needs: its manager and its consumers. */
static int
workers_of(const Entry *entry)
{
	return 1 + (entry->shape_workers > 0 ? entry->shape_workers : ecm_shape_workers);
}

/*
 * How many are free, when all stacks that run have theirs.  *looking: how many
 * have one only for a moment.
 */
static int
free_workers(int *looking)
{
	int			reserved = 0;

	*looking = 0;

	for (int i = 0; i < ecm_shared->nstacks; i++)
	{
		Entry		entry;

		read_entry(i, &entry);
		if (!entry.in_use || (!supervised[i].running && entry.pid == 0))
			continue;
		reserved += entry.look_only ? 1 : workers_of(&entry);
		*looking += entry.look_only ? 1 : 0;
	}
	return ecm_free_workers(reserved);
}

/* Too few workers are free.  Said once, until a manager has been started. */
static void
report_no_worker(int index, const Entry *entry, int nfree)
{
	Supervised *sup = &supervised[index];

	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->stacks[index].lifecycle.no_worker = true;
	ecm_unlock();
	if (sup->short_reported)
		return;
	sup->short_reported = true;
	ecm_event(entry->dboid, entry->datname, "no_free_worker",
			  ECM_SEVERITY_WARNING,
			  "Raise max_worker_processes and restart the server. It is tried again until then.",
			  "could not start a manager: it needs %d background workers, with its consumers, and %d of %d are free",
			  workers_of(entry), Max(nfree, 0), max_worker_processes);
}

/*
 * Starts a manager.  A request to stop or to step aside that has come in
 * meanwhile wins.  look_only: it is to end when it has seen what is there.
 * Returns false if there was no free worker slot.
 */
static bool
start_manager(int index, const Entry *entry, bool look_only)
{
	Supervised *sup = &supervised[index];
	EcmStack   *stack = &ecm_shared->stacks[index];
	BackgroundWorker worker;
	MemoryContext old;
	bool		registered;

	ecm_lock(LW_EXCLUSIVE);
	if (stack->requests.stop || stack->pause.count > 0 || stack->manager.pid != 0)
	{
		ecm_unlock();
		SetLatch(MyLatch);		/* have another look at it */
		return true;
	}
	stack->requests.restart = false;
	stack->requests.reprobe = false;
	stack->manager.probe = ECM_PROBE_UNKNOWN;
	stack->lifecycle.end_reason = ECM_END_NONE;
	stack->lifecycle.paused = false;
	stack->lifecycle.no_worker = false;
	stack->manager.gave_way = false;
	stack->lifecycle.look_only = look_only;
	stack->report.next_retry_at = 0;
	ecm_stack_set_status(stack, ECM_STATUS_WAITING, "start of the manager");
	sup->runs_before = stack->manager.runs;
	ecm_unlock();
	ConditionVariableBroadcast(&stack->cv);

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, ECM_LIBRARY_NAME, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "ecm_manager_main", BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "electric_cm manager %s",
			 entry->datname);
	strlcpy(worker.bgw_type, "electric_cm manager", BGW_MAXLEN);
	worker.bgw_main_arg = Int32GetDatum(index);
	worker.bgw_notify_pid = MyProcPid;

	old = MemoryContextSwitchTo(TopMemoryContext);
	registered = RegisterDynamicBackgroundWorker(&worker, &sup->handle);
	MemoryContextSwitchTo(old);
	if (!registered)
	{
		report_no_worker(index, entry, 0);
		return false;
	}

	if (!look_only)
		sup->short_reported = false;
	sup->running = true;
	sup->asked_to_end = false;
	sup->started_at = ecm_now();
	return true;
}

/* How often it is tried again is no failure of the manager's. */
static void
wait_for_workers(int index, const Entry *entry, int nfree)
{
	EcmStack   *stack = &ecm_shared->stacks[index];

	/* what was asked for is done when there are */
	ecm_lock(LW_EXCLUSIVE);
	stack->requests.restart = false;
	stack->requests.reprobe = false;
	if (stack->manager.probe != ECM_PROBE_RUN && stack->manager.probe != ECM_PROBE_LOOKED)
		stack->manager.probe = ECM_PROBE_UNKNOWN;
	ecm_unlock();
	report_no_worker(index, entry, nfree);
	restart_with_backoff(index, entry, NULL,
						 psprintf("a free background worker slot (max_worker_processes): %d are needed, %d of %d are free",
								  workers_of(entry), Max(nfree, 0), max_worker_processes),
						 NULL, NULL);
}

/*
 * Starts an entry's manager, now or, with too few workers, later.  One of them is
 * left free for a look into the next database that nothing is known of; and if
 * there is one for that only, at least this database is looked into.
 */
static void
start_or_retry(int index, const Entry *entry, EcmTime now)
{
	int			looking;
	int			nfree = free_workers(&looking);
	bool		unseen = entry->probe == ECM_PROBE_UNKNOWN;
	bool		enough = nfree >= workers_of(entry) + worker_reserve(now);

	if (!enough && !unseen && nfree + looking >= workers_of(entry))
		return;					/* next time round: each look wakes us */
	else if (!enough && !(unseen && nfree >= 1))
		wait_for_workers(index, entry, nfree);
	else if (!start_manager(index, entry, !enough))
		wait_for_workers(index, entry, 0);
}

/* Asks a manager to end, once; again if it was only since it hangs. */
static void
end_manager(int index, EcmEndReason reason)
{
	Supervised *sup = &supervised[index];
	EcmStack   *stack = &ecm_shared->stacks[index];

	if (sup->asked_to_end && stack->lifecycle.end_reason != ECM_END_NONE)
		return;
	sup->asked_to_end = true;

	ecm_lock(LW_EXCLUSIVE);
	stack->lifecycle.end_reason = reason;
	if (reason == ECM_END_RESTART)
		stack->requests.restart = false;

	/*
	 * A manager that an earlier launcher started: its pid is good as long as
	 * it is in the entry.
	 */
	if (sup->handle == NULL && stack->manager.pid != 0)
		kill(stack->manager.pid, SIGTERM);
	ecm_unlock();

	if (sup->handle != NULL)
		TerminateBackgroundWorker(sup->handle);
}

/* Has the manager that we thought to be running ended? */
static bool
has_ended(Supervised *sup, const Entry *entry)
{
	pid_t		pid;

	/*
	 * The worker may have exited because an earlier launcher's had claimed
	 * the entry before it: that one is the manager then.
	 */
	if (sup->handle != NULL &&
		GetBackgroundWorkerPid(sup->handle, &pid) == BGWH_STOPPED)
	{
		pfree(sup->handle);
		sup->handle = NULL;
	}
	return sup->handle == NULL && entry->pid == 0;
}

/*
 * A manager has ended: takes its traces out of the entry and decides whether
 * and when the next one starts.
 */
static void
manager_ended(int index, Entry *entry)
{
	Supervised *sup = &supervised[index];
	EcmStack   *stack = &ecm_shared->stacks[index];
	EcmTime		now = ecm_now();
	int			looking;

	sup->running = false;
	sup->asked_to_end = false;
	sup->retry_at = 0;
	ecm_unattended_forget(index);

	ecm_lock(LW_EXCLUSIVE);
	stack->lifecycle.hangs = false;
	stack->lifecycle.stopped_runs = stack->manager.runs;
	stack->lifecycle.look_only = false;
	stack->report.lock_acquired = false;
	if (entry->end_reason != ECM_END_PAUSE)
		stack->requests.drop_on_stop = false;
	stack->requests.drop_slot = false;
	stack->report.phase[0] = '\0';
	stack->report.step[0] = '\0';
	stack->report.blocking_pid = 0;
	memset(stack->conns, 0, sizeof(stack->conns));
	memset(stack->creations, 0, sizeof(stack->creations));
	if (stack->requests.restart || entry->end_reason == ECM_END_RESTART)
		stack->lifecycle.restarts++;
	ecm_unlock();
	ConditionVariableBroadcast(&stack->cv);
	read_entry(index, entry);

	if (entry->end_reason == ECM_END_PAUSE)
	{
		sup->stepped_aside = true;
		ecm_event(entry->dboid, entry->datname, "stepping_aside",
				  ECM_SEVERITY_LOG, NULL, "the stack steps aside for %s",
				  entry->paused_for);
	}

	if (entry->stop_requested || entry->reprobe_requested)
		return;					/* supervise() knows what to do */

	/* no failure, and none is forgotten for it */
	if (entry->end_reason == ECM_END_PAUSE)
		return;

	if (entry->end_reason == ECM_END_UNWANTED)
		return;

	/* electric_cm_stop() that was undone is no failure either */
	if (entry->restart_requested || entry->end_reason != ECM_END_NONE)
	{
		ecm_backoff_reset(&sup->backoff, now);
		ecm_event(entry->dboid, entry->datname, "manager_restarting",
				  ECM_SEVERITY_LOG, NULL,
				  "the manager is restarted by request");
		return;
	}

	if (entry->gave_way)
	{
		wait_for_workers(index, entry, free_workers(&looking));
		return;
	}

	switch (entry->probe)
	{
		case ECM_PROBE_NO_EXTENSION:
			ecm_slot_notes_abandon(entry->dboid, entry->datname);
			note_known(entry->dboid, 0);
			free_entry(index, true);
			return;
		case ECM_PROBE_LOOKED:
			return;				/* there may be enough workers by now */
		case ECM_PROBE_CLOSED:
		case ECM_PROBE_UNLISTED:
		case ECM_PROBE_DISABLED:
		case ECM_PROBE_STOPPED:
		case ECM_PROBE_NOT_STARTED:
		case ECM_PROBE_CLONED:
			return;
		case ECM_PROBE_UNKNOWN:
			if (entry->registered)
				break;
			note_known(entry->dboid, now + PROBE_RETRY_DELAY);
			free_entry(index, true);
			return;
		case ECM_PROBE_RUN:
			break;
	}

	/* it should have run on, if the database hasn't just been dropped */
	scan_databases();
	if (find_database(entry->dboid) == NULL)
		return;
	if (entry->runs > sup->runs_before && now - sup->started_at > STABLE_RUN)
		ecm_backoff_reset(&sup->backoff, now);
	ecm_lock(LW_EXCLUSIVE);
	stack->lifecycle.restarts++;
	ecm_unlock();
	restart_with_backoff(index, entry, "manager_restarting",
						 "restart of the manager",
						 "The server log says why. It is started again.",
						 entry->runs > sup->runs_before ?
						 "the manager ended unexpectedly" :
						 "the manager could not be started");
}

/* The verdict of a manager that did not want to run, or NULL. */
static const char *
verdict_reason(EcmProbe probe)
{
	switch (probe)
	{
		case ECM_PROBE_DISABLED:
			return "electric_cm.enabled is off";
		case ECM_PROBE_STOPPED:
			return "electric_cm_stop() was called";
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

/* An entry that we see for the first time, or with another database. */
static void
meet_entry(int index, const Entry *entry)
{
	Supervised *sup = &supervised[index];

	if (sup->handle != NULL)
		pfree(sup->handle);
	memset(sup, 0, sizeof(Supervised));
	ecm_unattended_forget(index);
	sup->dboid = entry->dboid;
	sup->paused = entry->pauses > 0;
	ecm_backoff_init(&sup->backoff, ecm_reconnect_initial_delay,
					 ecm_reconnect_max_delay);

	/* its manager was started by an earlier launcher */
	if (entry->pid != 0)
	{
		sup->running = true;
		sup->runs_before = entry->runs - 1;
		sup->started_at = ecm_now();
	}

	/* a session may have allocated it in a database that is newer than this */
	if (find_database(entry->dboid) == NULL)
		scan_databases();

	/* somebody cares for this database now */
	hash_search(known, &entry->dboid, HASH_REMOVE, NULL);
}

/* ALTER DATABASE ... RENAME */
static void
follow_rename(int index, Entry *entry, const char *datname)
{
	if (strcmp(entry->datname, datname) == 0)
		return;
	strlcpy(entry->datname, datname, NAMEDATALEN);
	ecm_lock(LW_EXCLUSIVE);
	strlcpy(ecm_shared->stacks[index].datname, datname, NAMEDATALEN);
	ecm_unlock();
}

/*
 * A command needs the stack out of the way, and no manager runs.  A stack that
 * was stopped anyway stays what it is.
 */
static void
mark_aside(int index, const Entry *entry)
{
	EcmStack   *stack = &ecm_shared->stacks[index];
	char		reason[ECM_TEXT_LEN];

	supervised[index].paused = true;
	if (entry->aside)
		return;
	snprintf(reason, sizeof(reason), "stepping aside for %s", entry->paused_for);

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
 * The last command that needed the stack out of the way is over.  What it did
 * to the database is committed, or not, by now.
 */
static void
pause_is_over(int index, const Entry *entry)
{
	Supervised *sup = &supervised[index];
	Database   *database;

	sup->paused = false;
	scan_databases();
	database = find_database(entry->dboid);
	if (sup->stepped_aside && database != NULL)
		ecm_event(entry->dboid, NameStr(database->datname), "stepping_back",
				  ECM_SEVERITY_LOG, NULL, "%s is over: the stack comes back",
				  entry->paused_for);
	sup->stepped_aside = false;
}

/* Does what is due for one entry: the table at the top of this file. */
static void
supervise(int index, EcmTime now)
{
	Supervised *sup = &supervised[index];
	Database   *database;
	Entry		entry;
	const char *verdict;

	read_entry(index, &entry);
	if (!entry.in_use)
	{
		sup->dboid = InvalidOid;
		return;
	}
	if (entry.dboid != sup->dboid)
		meet_entry(index, &entry);

	if (sup->running && has_ended(sup, &entry))
	{
		manager_ended(index, &entry);
		read_entry(index, &entry);
		if (!entry.in_use)
			return;
		if (entry.probe == ECM_PROBE_LOOKED)
		{
			SetLatch(MyLatch);	/* those who have waited longer come first */
			return;
		}
	}
	else if (!sup->running && entry.pid != 0)
	{
		sup->running = true;	/* an earlier launcher's, late */
		sup->asked_to_end = false;
		sup->runs_before = entry.runs - 1;
		sup->started_at = now;
	}

	if (sup->paused && entry.pauses == 0)
		pause_is_over(index, &entry);
	database = find_database(entry.dboid);
	if (database != NULL)
		follow_rename(index, &entry, NameStr(database->datname));
	verdict = verdict_reason(entry.probe);

	if (sup->running)
	{
		if (entry.probe == ECM_PROBE_RUN)
			sup->announced = NULL;
		if (entry.stop_requested)
			end_manager(index, ECM_END_STOP);
		else if (entry.pauses > 0)
			end_manager(index, ECM_END_PAUSE);
		else if (database == NULL ||
				 (database->unwanted != NULL &&
				  (entry.probe == ECM_PROBE_RUN || !database->may_look)))
			end_manager(index, ECM_END_UNWANTED);
		else if (entry.restart_requested)
			end_manager(index, ECM_END_RESTART);
		else if (entry.reprobe_requested && entry.probe == ECM_PROBE_RUN &&
				 !sup->asked_to_end)
		{
			/* what was asked for is the case */
			ecm_lock(LW_EXCLUSIVE);
			ecm_shared->stacks[index].requests.reprobe = false;
			ecm_unlock();
		}
	}
	else if (database == NULL)
		free_entry(index, false);
	else if (entry.pauses > 0)
	{
		if (entry.stop_requested)
			mark_stopped(index, &entry, verdict_reason(ECM_PROBE_STOPPED));
		mark_aside(index, &entry);
	}
	else if (database->unwanted != NULL && !entry.registered)
		free_entry(index, true);
	else if (entry.stop_requested)
		mark_stopped(index, &entry, verdict_reason(ECM_PROBE_STOPPED));
	else if (database->unwanted != NULL &&
			 !(database->may_look && entry.reprobe_requested))
		mark_stopped(index, &entry, database->unwanted);
	else if (entry.restart_requested || entry.reprobe_requested)
		start_or_retry(index, &entry, now);
	else if (verdict != NULL)
		mark_stopped(index, &entry, verdict);
	else if (sup->retry_at <= now)
		start_or_retry(index, &entry, now);
}

/*
 * Says so, once, until entries are free again.  The slots of those databases
 * may be ours, and nobody looks after them.
 */
static void
report_too_many_stacks(const Database *first, EcmTime now)
{
	StringInfoData slots;
	EcmSlotRow *rows;
	int			n;

	if (entries_exhausted)
		return;
	entries_exhausted = true;

	initStringInfo(&slots);
	rows = palloc(sizeof(EcmSlotRow) * Max(max_replication_slots, 1));
	n = ecm_slots_read(rows);
	for (int i = 0; i < n; i++)
	{
		Database   *database = find_database(rows[i].database);

		if (database != NULL && strcmp(rows[i].plugin, "pgoutput") == 0 &&
			ecm_stack_find(database->dboid) < 0 && needs_probe(database, now))
			appendStringInfo(&slots, "%s\"%s\"", slots.len > 0 ? ", " : "",
							 rows[i].name);
	}
	ecm_event(InvalidOid, NULL, "too_many_stacks", ECM_SEVERITY_WARNING,
			  psprintf("%sRaise electric_cm.max_managers and restart the server, or list the databases that need a stack in electric_cm.databases.",
					   slots.len == 0 ? "" :
					   psprintf("No limit on retained WAL is watched for slots %s. ",
								slots.data)),
			  "all %d stacks are taken: database \"%s\" is not looked at, nor any after it",
			  ecm_shared->nstacks, NameStr(first->datname));
}

/* Is there a stack that is to run as soon as it can?  It was here first. */
static bool
somebody_waits(void)
{
	for (int i = 0; i < ecm_shared->nstacks; i++)
	{
		Entry		entry;

		read_entry(i, &entry);
		if (entry.in_use && entry.registered && !supervised[i].running &&
			entry.pid == 0 && entry.status == ECM_STATUS_WAITING)
			return true;
	}
	return false;
}

/*
 * Looks at the next database that we know nothing about.  One at a time, so
 * that a server with a hundred databases needs neither a hundred workers nor a
 * hundred entries for it.
 */
static void
start_next_probe(EcmTime now)
{
	Database   *database;
	Entry		entry;
	int			index;
	int			nfree;
	int			reserve;
	int			looking;
	bool		rescan;

	if (probe_retry_at > now)
		return;
	probe_retry_at = 0;

	for (int i = 0; i < ecm_shared->nstacks; i++)
	{
		read_entry(i, &entry);
		if (entry.in_use && !entry.registered)
			return;				/* one is on its way */
	}

	/* what holds back WAL first, so that somebody looks after it */
	database = next_to_look_into(now, true);
	if (database == NULL)
		database = next_to_look_into(now, false);
	if (database == NULL)
		return;

	ecm_lock(LW_EXCLUSIVE);
	if (ecm_stack_find_locked(database->dboid) >= 0)
	{
		ecm_unlock();
		SetLatch(MyLatch);		/* supervise() looks after it */
		return;
	}
	rescan = ecm_shared->rescan_requested;
	index = ecm_stack_alloc(database->dboid, NameStr(database->datname));
	ecm_shared->rescan_requested = rescan;
	ecm_unlock();

	if (index < 0)
	{
		report_too_many_stacks(database, now);
		return;
	}

	read_entry(index, &entry);
	meet_entry(index, &entry);
	/* nobody has asked for a stack there yet, unless there is a slot */
	supervised[index].short_reported = probe_postponed ||
		!ecm_database_has_slot(database->dboid);
	nfree = free_workers(&looking);
	reserve = worker_reserve(now);
	if (nfree < 1 ||
		!start_manager(index, &entry, somebody_waits() ||
					   nfree < workers_of(&entry) + reserve))
	{
		probe_postponed |= !supervised[index].short_reported;
		report_no_worker(index, &entry, nfree);
		free_entry(index, true);
		probe_retry_at = now + ecm_reconnect_max_delay * INT64CONST(1000);
	}
	else
		probe_postponed = false;
}

/*
 * Slots that a dropped extension has left
 */

/* When was the manager of that database started?  0: there is none. */
static EcmTime
manager_started_at(Oid dboid)
{
	for (int i = 0; i < ecm_shared->nstacks; i++)
		if (supervised[i].dboid == dboid && supervised[i].running)
			return supervised[i].started_at;
	return 0;
}

/*
 * Drops a slot if it can be.  Returns false if it must be tried again.  A stack
 * that was made since may have a slot of the same name: that one is younger.
 */
static bool
drop_abandoned_slot(EcmLeftSlot *item, EcmTime now)
{
	EcmSlotFacts facts;
	EcmError	err;
	EcmTime		started_at = manager_started_at(item->dboid);
	Database   *database = find_database(item->dboid);

	if (!ecm_slot_lookup(item->slot_name, &facts) || !facts.logical ||
		facts.temporary || facts.database != item->dboid ||
		strcmp(facts.plugin, "pgoutput") != 0)
		return true;
	if (started_at != 0 && facts.restart_lsn >= item->lsn)
		return started_at > item->at;	/* else the old one is about to end */
	if (facts.active_pid != 0 ||
		!ecm_slot_drop(item->slot_name, &err))
	{
		if (!item->reported && now - item->at > ABANDONED_PATIENCE)
		{
			item->reported = true;
			ecm_event(item->dboid, database != NULL ? NameStr(database->datname) : NULL,
					  "replication_slot_left", ECM_SEVERITY_WARNING,
					  "It goes on holding back WAL, and is dropped as soon as nobody uses it.",
					  "replication slot \"%s\" of the extension that has been dropped is still used by PID %d",
					  item->slot_name, facts.active_pid);
		}
		return false;
	}
	ecm_event(item->dboid, database != NULL ? NameStr(database->datname) : NULL,
			  "replication_slot_dropped",
			  ECM_SEVERITY_WARNING, "The extension has been dropped.",
			  "dropped replication slot \"%s\"", item->slot_name);
	return true;
}

static void
drop_abandoned_slots(EcmTime now)
{
	EcmLeftSlot items[ECM_MAX_LEFT_SLOTS];
	bool		done[ECM_MAX_LEFT_SLOTS];
	int			nitems;
	int			kept = 0;

	ecm_lock(LW_SHARED);
	nitems = ecm_shared->nleft_slots;
	memcpy(items, ecm_shared->left_slots, sizeof(items));
	ecm_unlock();
	if (nitems == 0)
		return;

	for (int i = 0; i < nitems; i++)
		done[i] = drop_abandoned_slot(&items[i], now);

	/* others only add, or make one younger */
	ecm_lock(LW_EXCLUSIVE);
	for (int i = 0; i < ecm_shared->nleft_slots; i++)
	{
		EcmLeftSlot *item = &ecm_shared->left_slots[i];

		if (i < nitems && item->at == items[i].at)
			item->reported = items[i].reported;
		if (i >= nitems || !done[i] || item->at != items[i].at)
			ecm_shared->left_slots[kept++] = *item;
	}
	ecm_shared->nleft_slots = kept;
	ecm_unlock();
	abandoned_at = kept > 0 ? now + ABANDONED_INTERVAL : 0;
}

/*
 * Main loop
 */

static void
launcher_exit(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->launcher_pid = 0;
	ecm_shared->launcher_latch = NULL;
	ecm_unlock();
}

static void
reload_settings(void)
{
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	scanned_at = 0;				/* electric_cm.databases may have changed */
	for (int i = 0; i < ecm_shared->nstacks; i++)
		ecm_unattended_forget(i);

	/* ... and electric_cm.enabled of a database */
	ecm_lock(LW_EXCLUSIVE);
	for (int i = 0; i < ecm_shared->nstacks; i++)
	{
		EcmStack   *stack = &ecm_shared->stacks[i];

		if (stack->in_use && stack->manager.pid == 0 &&
			stack->manager.probe == ECM_PROBE_DISABLED)
			stack->requests.reprobe = true;
	}
	ecm_unlock();
}

static bool
scan_is_due(EcmTime now)
{
	bool		requested;

	ecm_lock(LW_SHARED);
	requested = ecm_shared->rescan_requested;
	ecm_unlock();
	return requested || now - scanned_at >= RESCAN_INTERVAL;
}

/*
 * A manager that hangs: says so, once, and asks it to end when that has lasted,
 * since another one may do better.  One that is stopped, or hangs in the kernel,
 * ends when it goes on.
 */
static void
note_hang(int index, const Entry *entry, EcmTime now)
{
	Supervised *sup = &supervised[index];
	EcmStack   *stack = &ecm_shared->stacks[index];
	bool		hangs;
	bool		news;
	int			seconds = (int) ((now - stack->manager.alive_at) / USECS_PER_SEC);

	ecm_lock(LW_EXCLUSIVE);
	hangs = stack->manager.pid == entry->pid && ecm_manager_hangs(stack);
	news = hangs != stack->lifecycle.hangs;
	stack->lifecycle.hangs = hangs;
	if (hangs && sup->hangs_since == 0)
		sup->hangs_since = now;
	if (hangs && !sup->asked_to_end && ecm_has_passed(sup->hangs_since, now, HANG_PATIENCE_MS))
	{
		sup->asked_to_end = true;
		kill(stack->manager.pid, SIGTERM);
	}
	ecm_unlock();
	if (!hangs)
		sup->hangs_since = 0;
	if (!news)
		return;
	ConditionVariableBroadcast(&stack->cv);
	ecm_unattended_forget(index);
	if (hangs)
		ecm_event(entry->dboid, entry->datname, "manager_hangs",
				  ECM_SEVERITY_WARNING,
				  psprintf("Its slot is watched without it. If it is stopped, kill -CONT %d lets it go on; don't kill -9 it: that would restart the whole server.",
						   entry->pid),
				  "manager PID %d has not moved for %d s", entry->pid, seconds);
	else
		ecm_event(entry->dboid, entry->datname, "manager_resumed",
				  ECM_SEVERITY_LOG, NULL, "manager PID %d goes on", entry->pid);
}

/* Slots whose stacks have no manager, or one that hangs. */
static void
watch_unattended(EcmTime now)
{
	unattended_at = 0;
	for (int i = 0; i < ecm_shared->nstacks; i++)
	{
		EcmTime		due;
		Entry		entry;

		read_entry(i, &entry);
		if (entry.in_use && entry.pid != 0)
			note_hang(i, &entry, now);
		else
			supervised[i].hangs_since = 0;
		if (!entry.in_use ||
			((entry.pid != 0 || supervised[i].running) &&
			 !ecm_shared->stacks[i].lifecycle.hangs))
			continue;
		due = ecm_unattended_watch(i, now);
		if (due != 0 && (unattended_at == 0 || due < unattended_at))
			unattended_at = due;
	}
}

/* How long may we sleep, in milliseconds? */
static long
sleep_time(void)
{
	EcmTime		now = ecm_now();
	EcmTime wake_at = Min(scanned_at + RESCAN_INTERVAL,
						  ecm_later(now, ECM_LAUNCHER_ROUND_MS));

	if (probe_retry_at != 0)
		wake_at = Min(wake_at, probe_retry_at);
	if (abandoned_at != 0)
		wake_at = Min(wake_at, abandoned_at);
	if (unattended_at != 0)
		wake_at = Min(wake_at, unattended_at);
	for (int i = 0; i < ecm_shared->nstacks; i++)
	{
		Supervised *sup = &supervised[i];

		if (OidIsValid(sup->dboid) && !sup->running && sup->retry_at > now)
			wake_at = Min(wake_at, sup->retry_at);
	}
	return ecm_ms_until(now, wake_at);
}

static void
launcher_startup(void)
{
	HASHCTL		hash_info;

	/*
	 * die, not a flag, lest a lock on pg_database makes us deaf; the main
	 * loop looks first, so that a normal shutdown is silent.
	 */
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->launcher_pid = MyProcPid;
	ecm_shared->launcher_alive_at = ecm_now();
	ecm_shared->launcher_latch = MyLatch;
	if (XLogRecPtrIsInvalid(ecm_shared->first_lsn))
		ecm_shared->first_lsn = GetXLogInsertRecPtr();
	ecm_unlock();
	before_shmem_exit(launcher_exit, 0);

	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	/* settings of the whole server apply to us as well */
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_SUSET, PGC_S_OVERRIDE);
	pgstat_report_appname("electric_cm launcher");
	pgstat_report_activity(STATE_IDLE, "supervising the stacks of this server");

	loop_context = AllocSetContextCreate(TopMemoryContext,
										 "electric_cm launcher",
										 ALLOCSET_DEFAULT_SIZES);
	databases_context = AllocSetContextCreate(TopMemoryContext,
											  "electric_cm databases",
											  ALLOCSET_DEFAULT_SIZES);
	memset(&hash_info, 0, sizeof(hash_info));
	hash_info.keysize = sizeof(Oid);
	hash_info.entrysize = sizeof(Known);
	known = hash_create("electric_cm known databases", 64, &hash_info,
						HASH_ELEM | HASH_BLOBS);
	supervised = MemoryContextAllocZero(TopMemoryContext,
										ecm_shared->nstacks * sizeof(Supervised));
	ecm_slot_notes_load();
}

/*
 * Exits only by SIGTERM or an error, with code 1 in both cases: with 0 the
 * postmaster would never start a launcher again.
 */
void
ecm_launcher_main(Datum arg pg_attribute_unused())
{
	launcher_startup();

	for (;;)
	{
		EcmTime		now;

		if (ProcDiePending)
			proc_exit(1);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
			reload_settings();

		MemoryContextSwitchTo(loop_context);
		MemoryContextReset(loop_context);
		now = ecm_now();
		ecm_shared->launcher_alive_at = now;

		if (scan_is_due(now))
			scan_databases();
		drop_abandoned_slots(now);	/* before a new stack needs the name */
		for (int i = 0; i < ecm_shared->nstacks; i++)
			supervise(i, now);
		forget_known_if_requested();
		start_next_probe(now);
		watch_unattended(now);
		ecm_slot_notes_update();

		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 sleep_time(), ecm_wait_event(ECM_WAIT_LAUNCHER_MAIN));
		ResetLatch(MyLatch);
	}
}
