/*-------------------------------------------------------------------------
 *
 * database_commands.c
 *	  Commands that a running stack would be in the way of.
 *
 * DROP DATABASE, with FORCE and without, refuses to run while a logical slot
 * in the database is active; RENAME, SET TABLESPACE and use as a TEMPLATE want
 * to be alone in the database; DROP EXTENSION could meet a consumer in a
 * deadlock.  So the stack concerned is asked to end before such a command runs
 * ("pause"), and comes back when the command's transaction is over: after a
 * failure, or because the database is still there.
 *
 * The session that runs the command counts the pause in the stack's entry; the launcher
 * ends the manager, and starts none while the count is above zero.
 *
 * A utility hook runs before the command has checked anything.  A user who could
 * not run the command must not be able to disturb a stack by trying to, so the
 * checks that matter for that are made here first: ownership, rights, and whether the
 * command may run in this transaction.  Other reasons for its failure (another session
 * in the database, say) are for the command to find out.
 *
 * A pause is undone in the callbacks at the end of its transaction, or
 * subtransaction.  They are called at an ERROR as well as at a FATAL, so no
 * backend can leave a stack paused.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "replication/logical.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/backend_status.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "base/wait_event.h"
#include "hooks/database_commands.h"
#include "slot/slot.h"
#include "slot/slot_moved.h"
#include "slot/slot_owner.h"

/* The longest wait for a stack to end, which usually takes two seconds at most. */
#define PAUSE_TIMEOUT_MS		10000
#define PAUSE_POLL_MS			10

/* The server itself waits so long for other sessions to leave a database. */
#define OTHERS_TIMEOUT_MS		5000

/* A stack that this backend has asked to make way. */
typedef struct Pause
{
	Oid			dboid;
	SubTransactionId subid;		/* the pause lasts until this one ends */
} Pause;

static List *pauses = NIL;		/* of Pause, in TopMemoryContext */
static bool commits_midway = false; /* the running command commits before it
									 * is over */
static bool exit_callback_registered = false;

static ProcessUtility_hook_type next_process_utility = NULL;

/* A copy of the facts about a stack that a command needs. */
typedef struct View
{
	int			index;			/* of its entry, for its condition variable */
	Oid			dboid;
	int			manager_pid;	/* 0: no manager */
	bool		paused;			/* the launcher has seen the pause, and starts
								 * no manager before it is over */
	EcmStatus	status;
	XLogRecPtr	flushed_lsn;
	XLogRecPtr	await_lsn;
	char		slot_name[NAMEDATALEN];
	int			npids;			/* of its processes and sessions */
	int			pids[1 + ECM_MAX_SHAPE_WORKERS + 1 + ECM_MAX_POOL_SIZE];
} View;

/* ---------------------------------------------------------------- pauses -- */

/* Takes back a pause that pause_stack() has made. */
static void
resume_stack(Oid dboid)
{
	int			index;

	/* first: after a pause the launcher must not go by the old pg_database */
	ecm_launcher_request_scan();
	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_find_locked(dboid);
	if (index >= 0 && ecm_stack_at(index)->pause.count > 0)
		ecm_stack_at(index)->pause.count--;
	ecm_unlock();
	if (index >= 0)
		ConditionVariableBroadcast(&ecm_stack_at(index)->cv);
	ecm_launcher_wake();
}

/* Ends this backend's pauses: all of them (InvalidSubTransactionId), or some. */
static void
end_pauses(SubTransactionId subid)
{
	ListCell   *lc;

	foreach(lc, pauses)
	{
		Pause	   *pause = lfirst(lc);

		if (subid != InvalidSubTransactionId && pause->subid != subid)
			continue;
		resume_stack(pause->dboid);
		pauses = foreach_delete_current(pauses, lc);
		pfree(pause);
	}
}

/* before_shmem_exit callback, in case that an abort has failed half-way */
static void
at_exit(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	end_pauses(InvalidSubTransactionId);
}

static bool
is_paused_by_us(Oid dboid)
{
	ListCell   *lc;

	foreach(lc, pauses)
	{
		if (((Pause *) lfirst(lc))->dboid == dboid)
			return true;
	}
	return false;
}

/*
 * Pauses a database's stack, for the rest of this subtransaction; once, however often
 * it is called.  drained: see EcmStackPause.  False: the database has no stack.
 */
static bool
pause_stack(Oid dboid, const char *command, bool drained)
{
	MemoryContext old;
	Pause	   *pause;
	int			index;

	if (is_paused_by_us(dboid))
		return true;
	if (ecm_stack_find(dboid) < 0)
		return false;

	if (!exit_callback_registered)
	{
		before_shmem_exit(at_exit, 0);
		exit_callback_registered = true;
	}
	old = MemoryContextSwitchTo(TopMemoryContext);
	pause = palloc(sizeof(Pause));
	pause->dboid = dboid;
	pause->subid = GetCurrentSubTransactionId();
	pauses = lappend(pauses, pause);
	MemoryContextSwitchTo(old);

	/* nothing can fail in here, so that list and entry agree */
	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_find_locked(dboid);
	if (index >= 0)
	{
		EcmStack   *stack = ecm_stack_at(index);

		/* a second command must not take away what the first one relies on */
		stack->pause.drained = drained || (stack->pause.count > 0 && stack->pause.drained);
		stack->pause.count++;
		strlcpy(stack->pause.command, command, sizeof(stack->pause.command));
	}
	else
	{
		pauses = list_delete_ptr(pauses, pause);
		pfree(pause);
	}
	ecm_unlock();
	ecm_launcher_wake();
	return index >= 0;
}

/* ---------------------------------------------------------------- waiting -- */

static void
add_pid(View *view, int pid)
{
	if (pid != 0)
		view->pids[view->npids++] = pid;
}

/*
 * Copies what matters here of a database's stack.  A manager that hangs is not active,
 * whatever it has shown last.  False: the database has no stack.
 */
static bool
view_stack(Oid dboid, View *view)
{
	memset(view, 0, sizeof(*view));
	ecm_lock(LW_SHARED);
	view->index = ecm_stack_find_locked(dboid);
	if (view->index >= 0)
	{
		const EcmStack *stack = ecm_stack_at(view->index);

		view->dboid = dboid;
		view->manager_pid = stack->manager.pid;
		view->paused = stack->lifecycle.paused;
		view->status = stack->report.status;
		if (view->status == ECM_STATUS_ACTIVE && ecm_manager_hangs(stack))
			view->status = ECM_STATUS_STARTING;
		view->flushed_lsn = stack->progress.flushed_lsn;
		view->await_lsn = stack->requests.await_lsn;
		strlcpy(view->slot_name, stack->slot.name, NAMEDATALEN);
		add_pid(view, stack->manager.pid);
		for (int i = 0; i < ECM_MAX_SHAPE_WORKERS; i++)
			add_pid(view, stack->consumers[i].pid);
		for (int i = 0; i < (int) lengthof(stack->conns); i++)
			if (stack->conns[i].used)
				add_pid(view, stack->conns[i].backend_pid);
	}
	ecm_unlock();
	return view->index >= 0;
}

/*
 * Sleeps until the stack has changed, or for a moment.  Returns false, at once,
 * if it is time to give up.
 */
static bool
sleep_on_stack(const View *view, EcmTime give_up)
{
	if (ecm_now() >= give_up)
		return false;
	(void) ConditionVariableTimedSleep(&ecm_stack_at(view->index)->cv,
									   PAUSE_POLL_MS,
									   ecm_wait_event(ECM_WAIT_STACK_PAUSE));
	return true;
}

/*
 * Adds the stack's present processes and sessions.  Those that were seen before stay:
 * a process leaves the entry before it leaves the database.
 */
static List *
note_pids(List *pids, const View *view)
{
	for (int i = 0; i < view->npids; i++)
		pids = list_append_unique_int(pids, view->pids[i]);
	return pids;
}

/* Is one of these processes still in the database? */
static bool
anybody_there(const List *pids, Oid dboid)
{
	ListCell   *lc;

	foreach(lc, pids)
	{
		PGPROC	   *proc = BackendPidGetProc(lfirst_int(lc));

		if (proc != NULL && proc->databaseId == dboid)
			return true;
	}
	return false;
}

/*
 * Adds the walsender that uses the stack's slot, by its application name.  The stack
 * may have opened and lost this connection between two looks of ours.  Any other
 * process that uses the slot is left out: it does not end with the stack.
 */
static List *
note_slot_user(List *pids, const View *view)
{
	EcmSlotFacts facts;
	int			nbackends;

	if (!ecm_slot_lookup(view->slot_name, &facts) || facts.active_pid == 0 ||
		facts.database != view->dboid || list_member_int(pids, facts.active_pid))
		return pids;
	pgstat_clear_snapshot();
	nbackends = pgstat_fetch_stat_numbackends();
	for (int i = 1; i <= nbackends; i++)
	{
		PgBackendStatus *backend = ecm_backend_status(i);

		if (backend->st_procpid == facts.active_pid &&
			strcmp(backend->st_appname, "electric_cm replication") == 0)
			return lappend_int(pids, facts.active_pid);
	}
	return pids;
}

/*
 * Waits, PAUSE_TIMEOUT_MS at most, until no process of the stack is in the database, and
 * the launcher starts none.  (If no launcher runs, none will be started.)  To wait for
 * the slot alone would not do: a walsender gives it up before it leaves the database.
 */
static void
await_pause(Oid dboid)
{
	EcmTime		give_up = ecm_later(ecm_now(), PAUSE_TIMEOUT_MS);
	List	   *pids = NIL;
	View		view;

	while (view_stack(dboid, &view))
	{
		bool		launcher_runs = ecm_launcher_pid() != 0;

		pids = note_slot_user(note_pids(pids, &view), &view);
		if (view.manager_pid == 0 && (view.paused || !launcher_runs) &&
			!anybody_there(pids, dboid))
			break;
		if (!sleep_on_stack(&view, give_up))
			break;
	}
	ConditionVariableCancelSleep();
	list_free(pids);
}

/* --------------------------------------------------------- SET TABLESPACE -- */

/*
 * A change in the WAL names the file that it is of.  SET TABLESPACE gives every file of
 * the database another name, so changes from before can't be decoded afterwards: a
 * slot that has not consumed them is lost, and all shapes have to be resynced.  Hence,
 * before the command: nobody may write any more; the stack consumes all there is, and
 * ends; and its slot is moved beyond what it has written itself while it ended.
 */

/* Is anybody in the database but the stack itself (and autovacuum)? */
static bool
others_there(const View *view)
{
	List	   *pids = note_pids(NIL, view);
	bool		found = false;

	for (uint32 i = 0; i < ProcGlobal->allProcCount && !found; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];
		int			pid = proc->pid;

		found = pid != 0 && proc->databaseId == view->dboid &&
			!(proc->statusFlags & PROC_IS_AUTOVACUUM) &&
			!list_member_int(pids, pid) && BackendPidGetProc(pid) == proc;
	}
	list_free(pids);
	return found;
}

/* As view_stack(), but false also if the stack is not active. */
static bool
view_active_stack(Oid dboid, View *view)
{
	return view_stack(dboid, view) && view->manager_pid != 0 &&
		view->status == ECM_STATUS_ACTIVE;
}

/*
 * Has the stack consumed everything before that position?  If not, makes sure that it
 * has been asked to say so soon.
 */
static bool
has_consumed(const View *view, XLogRecPtr target)
{
	if (view->flushed_lsn >= target)
		return true;
	if (view->await_lsn < target)
		ecm_stack_request_flush(view->dboid, target);
	return false;
}

/*
 * Locks new sessions out of the database, as the command is about to do anyway, waits
 * until all others have left, and has the stack consume what has been written.  False:
 * it did not come to that, so if the command succeeds, the stack has to begin anew.
 * *hopeless: others stay in the database, so the command will fail, and the stack need
 * not be disturbed.
 */
static bool
drain_stack(Oid dboid, bool *hopeless)
{
	EcmTime		give_up;
	EcmTime		alone_at = 0;
	View		view;
	XLogRecPtr	target = InvalidXLogRecPtr;
	bool		drained = false;

	*hopeless = false;
	LockSharedObject(DatabaseRelationId, dboid, 0, AccessExclusiveLock);
	give_up = ecm_later(ecm_now(), OTHERS_TIMEOUT_MS);
	while (view_active_stack(dboid, &view))
	{
		if (alone_at == 0 && !others_there(&view))
		{
			alone_at = ecm_now();
			give_up = ecm_later(alone_at, PAUSE_TIMEOUT_MS);
			target = ecm_end_of_wal();
			XLogFlush(target);
		}
		drained = alone_at != 0 && has_consumed(&view, target);
		if (drained)
			break;
		if (!sleep_on_stack(&view, give_up))
		{
			*hopeless = alone_at == 0;
			break;
		}
	}
	ConditionVariableCancelSleep();
	return drained;
}

/*
 * Moves the slot to the end of WAL, once the stack has ended.  Since it was drained,
 * nobody but the stack itself has written anything.
 */
static void
skip_own_changes(Oid dboid)
{
	EcmTime		give_up = ecm_later(ecm_now(), OTHERS_TIMEOUT_MS);
	EcmSlotFacts facts;
	XLogRecPtr	lsn;
	View		view;

	/*
	 * a consumer that has left the entry, but not the database yet, counts
	 * here
	 */
	while (view_stack(dboid, &view) && others_there(&view) &&
		   sleep_on_stack(&view, give_up))
		;
	ConditionVariableCancelSleep();

	lsn = ecm_end_of_wal();
	if (view_stack(dboid, &view) && view.manager_pid == 0 && view.paused &&
		!others_there(&view) &&
		ecm_slot_lookup(view.slot_name, &facts) && facts.logical &&
		facts.database == dboid && facts.active_pid == 0 &&
		facts.invalidation == NULL && facts.confirmed_flush_lsn < lsn)
	{
		ecm_slot_acquire(view.slot_name);
		lsn = ecm_slot_move_mark(dboid, MyReplicationSlot->data.confirmed_flush);
		ecm_slot_owner_moved(view.index, dboid, lsn);
		LogicalConfirmReceivedLocation(lsn);
		ReplicationSlotMarkDirty();
		ReplicationSlotSave();
		ReplicationSlotRelease();
	}
}

/*
 * Has the stack of a database make way for a command.  moves: the command is SET
 * TABLESPACE.
 */
static void
make_way(Oid dboid, const char *command, bool moves)
{
	bool		drained = false;
	bool		hopeless = false;

	if (ecm_stack_find(dboid) < 0)
		return;
	if (moves)
		drained = drain_stack(dboid, &hopeless);
	if (hopeless || !pause_stack(dboid, command, drained))
		return;
	await_pause(dboid);
	if (drained)
		skip_own_changes(dboid);
}

/* --------------------------------------------------------------- commands -- */

/*
 * The functions below return the database whose stack a command may disturb, or
 * InvalidOid if the command is bound to fail, or concerns no stack.
 */

/* The database of that name, if the user owns it. */
static Oid
owned_database(const char *name)
{
	Oid			dboid = get_database_oid(name, true);

	if (!OidIsValid(dboid) || !ecm_database_is_owned(dboid, GetUserId()))
		return InvalidOid;
	return dboid;
}

/* The same, but not for the current database, where such a command fails. */
static Oid
other_owned_database(const char *name)
{
	Oid			dboid = owned_database(name);

	return dboid == MyDatabaseId ? InvalidOid : dboid;
}

static bool
may_create_databases(void)
{
	HeapTuple	tuple;
	bool		result;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
	ReleaseSysCache(tuple);
	return result;
}

static Oid
database_to_rename(const RenameStmt *stmt)
{
	if (stmt->renameType != OBJECT_DATABASE || !may_create_databases() ||
		OidIsValid(get_database_oid(stmt->newname, true)))
		return InvalidOid;
	return other_owned_database(stmt->subname);
}

/* ALTER DATABASE ... SET TABLESPACE; other ALTER DATABASE disturb nobody. */
static Oid
database_to_move(const AlterDatabaseStmt *stmt)
{
	DefElem    *option;

	if (list_length(stmt->options) != 1)
		return InvalidOid;
	option = linitial_node(DefElem, stmt->options);
	return strcmp(option->defname, "tablespace") == 0 ?
		other_owned_database(stmt->dbname) : InvalidOid;
}

/*
 * CREATE DATABASE ... TEMPLATE.  A database that is marked as a template may be copied
 * by others than its owner, too, but such a one has no stack.
 */
static Oid
database_to_copy(const CreatedbStmt *stmt)
{
	ListCell   *lc;

	if (!may_create_databases() ||
		OidIsValid(get_database_oid(stmt->dbname, true)))
		return InvalidOid;
	foreach(lc, stmt->options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
			return owned_database(defGetString(option));
	}
	return owned_database("template1");
}

static Oid
extension_schema(Oid extension)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			result = InvalidOid;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		result = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * Does the statement drop our extension, or the schema that it is in, by a user who may
 * do that?  (Without the pause it may meet a deadlock; hooks.c sees to all else.)
 */
static bool
drops_extension(const DropStmt *stmt)
{
	Oid			extension;
	ListCell   *lc;

	if (stmt->removeType != OBJECT_EXTENSION &&
		!(stmt->removeType == OBJECT_SCHEMA && stmt->behavior == DROP_CASCADE))
		return false;
	extension = get_extension_oid("electric_cm", true);
	if (!OidIsValid(extension))
		return false;

	foreach(lc, stmt->objects)
	{
		const char *name = strVal(lfirst(lc));
		Oid			schema;

		if (stmt->removeType == OBJECT_EXTENSION)
		{
			if (strcmp(name, "electric_cm") == 0)
				return ecm_extension_is_owned(extension, GetUserId());
			continue;
		}
		schema = get_namespace_oid(name, true);
		if (OidIsValid(schema) && schema == extension_schema(extension))
			return ecm_schema_is_owned(schema, GetUserId());
	}
	return false;
}

/* The same for DROP OWNED. */
static bool
drops_extension_owned(const DropOwnedStmt *stmt)
{
	Oid			extension = get_extension_oid("electric_cm", true);
	ListCell   *lc;

	if (!OidIsValid(extension))
		return false;
	foreach(lc, stmt->roles)
	{
		Oid			role = get_rolespec_oid(lfirst(lc), true);

		if (OidIsValid(role) && ecm_extension_is_owned(extension, role) &&
			has_privs_of_role(GetUserId(), role))
			return true;
	}
	return false;
}

/*
 * The database whose stack would be in the statement's way, or InvalidOid; *command: the
 * statement's name for users.
 */
static Oid
database_concerned(Node *stmt, bool top_level, const char **command)
{
	bool		alone;

	if (XactReadOnly || RecoveryInProgress())
		return InvalidOid;

	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
		case T_AlterDatabaseStmt:
		case T_CreatedbStmt:
			alone = !IsInTransactionBlock(top_level);
			break;
		default:
			alone = false;
			break;
	}

	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
			*command = "DROP DATABASE";
			return alone ? other_owned_database(((DropdbStmt *) stmt)->dbname) : InvalidOid;
		case T_AlterDatabaseStmt:
			*command = "ALTER DATABASE SET TABLESPACE";
			return alone ? database_to_move((AlterDatabaseStmt *) stmt) : InvalidOid;
		case T_CreatedbStmt:
			*command = "CREATE DATABASE";
			return alone ? database_to_copy((CreatedbStmt *) stmt) : InvalidOid;
		case T_RenameStmt:
			*command = "ALTER DATABASE RENAME";
			return database_to_rename((RenameStmt *) stmt);
		case T_DropStmt:
			*command = "DROP EXTENSION";
			return drops_extension((DropStmt *) stmt) ? MyDatabaseId : InvalidOid;
		case T_DropOwnedStmt:
			*command = "DROP OWNED";
			return drops_extension_owned((DropOwnedStmt *) stmt) ? MyDatabaseId : InvalidOid;
		default:
			return InvalidOid;
	}
}

static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *query_env, DestReceiver *dest,
				QueryCompletion *completion)
{
	Node	   *stmt = pstmt->utilityStmt;
	const char *command = NULL;
	Oid			dboid = InvalidOid;

	if (ecm_shared != NULL && IsUnderPostmaster)
		dboid = database_concerned(stmt, context == PROCESS_UTILITY_TOPLEVEL,
								   &command);
	if (OidIsValid(dboid))
		make_way(dboid, command, IsA(stmt, AlterDatabaseStmt));

	commits_midway = IsA(stmt, AlterDatabaseStmt);
	if (next_process_utility)
		next_process_utility(pstmt, query, read_only_tree, context, params,
							 query_env, dest, completion);
	else
		standard_ProcessUtility(pstmt, query, read_only_tree, context, params,
								query_env, dest, completion);
	commits_midway = false;
}

/* -------------------------------------------------- end of a transaction -- */

static void
on_xact_event(XactEvent event, void *arg pg_attribute_unused())
{
	ListCell   *lc;

	switch (event)
	{
		case XACT_EVENT_COMMIT:

			/*
			 * SET TABLESPACE commits in the middle, and still has to remove
			 * the old files.  The pause goes on in its next transaction.
			 */
			if (commits_midway)
			{
				foreach(lc, pauses)
					((Pause *) lfirst(lc))->subid = TopSubTransactionId;
				break;
			}
			pg_fallthrough;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			commits_midway = false;
			end_pauses(InvalidSubTransactionId);
			break;
		default:
			break;
	}
}

static void
on_subxact_event(SubXactEvent event, SubTransactionId subid,
				 SubTransactionId parent, void *arg pg_attribute_unused())
{
	ListCell   *lc;

	if (event == SUBXACT_EVENT_ABORT_SUB)
		end_pauses(subid);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		foreach(lc, pauses)
	{
		Pause	   *pause = lfirst(lc);

		if (pause->subid == subid)
			pause->subid = parent;
	}
}

void
ecm_database_commands_init(void)
{
	next_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	RegisterXactCallback(on_xact_event, NULL);
	RegisterSubXactCallback(on_subxact_event, NULL);
}
