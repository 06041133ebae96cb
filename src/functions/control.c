/*-------------------------------------------------------------------------
 *
 * control.c
 *	  SQL functions that start and stop the stack, and what the ends of
 *	  transactions and sessions have to do with that.
 *
 * They run in a user's session, put requests into the stack's entry, wake the
 * launcher, and wait until what they asked for is so (await.c).  Shared memory
 * has no transactions, so a request takes effect at once, before the caller's
 * commit, while the stack's row in the table follows that commit.  If the
 * transaction is rolled back, a callback takes the request back.
 *
 * CREATE EXTENSION is the other way round: its stack is wanted only once the
 * transaction has committed, so the request is made by a callback then.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/stack_catalog.h"
#include "base/table_writer.h"
#include "base/wait_event.h"
#include "functions/await.h"
#include "functions/check.h"
#include "functions/control.h"
#include "slot/slot.h"
#include "slot/slot_name.h"

/* How long electric_cm_stop() waits for the slot's walsender to go. */
#define SLOT_RELEASE_TIMEOUT	5000	/* ms */
#define SLOT_RELEASE_POLL		10	/* ms */

/* Functions without arguments still get a fcinfo. */
#define NO_ARGUMENTS	FunctionCallInfo fcinfo pg_attribute_unused()

PG_FUNCTION_INFO_V1(electric_cm_start);
PG_FUNCTION_INFO_V1(electric_cm_stop);
PG_FUNCTION_INFO_V1(electric_cm_restart);
PG_FUNCTION_INFO_V1(electric_cm_drop_replication_slot_on_stop);
PG_FUNCTION_INFO_V1(electric_cm_register);

/* Tasks of the callbacks at the end of the current transaction and of the session. */
static struct
{
	bool		callbacks_registered;	/* for transactions ... */
	bool		exit_callback_registered;	/* ... and for the session */

	/* at commit, after CREATE EXTENSION: this database gets a stack */
	bool		register_pending;
	char		datname[NAMEDATALEN];
	bool		restoring;		/* the stack waits for the session's end */
	char	   *no_room;		/* why it may have to wait, or NULL; both are
								 * of this transaction */
	char	   *no_room_fix;	/* what makes room */

	/*
	 * at abort: electric_cm_stop() is undone that was called in this
	 * subtransaction (or in one that has become part of it); invalid: none
	 */
	SubTransactionId stop_subid;

	/* at the session's end: the stack is started, if nobody has by then */
	bool		start_at_exit;
}			at_end =

{
	.stop_subid = InvalidSubTransactionId
};

/*
 * Waits until the stack has a manager that has found it wanted, and is not one of
 * the first 'runs' managers of this entry.  ERROR if the stack is stopped, or if
 * no background worker is free for it.
 */
static void
await_run(uint64 runs)
{
	EcmStack   *stack = palloc(sizeof(EcmStack));

	for (;;)
	{
		int			index = ecm_own_stack_head(stack);

		if (index < 0)
			ecm_report_stack_gone();
		if (stack->manager.runs > runs && ecm_stack_is_running(stack))
			break;
		if (ecm_stack_is_stopped(stack))
			ecm_report_stopped(stack);
		if (stack->lifecycle.no_worker)
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("the stack of database \"%s\" cannot be started: no background worker slot is free",
							stack->datname),
					 errdetail("The launcher goes on trying."),
					 errhint("Raise max_worker_processes and restart the server.")));
		(void) ecm_sleep_until_change(index, 0);
	}
	ConditionVariableCancelSleep();
	pfree(stack);
}

/*
 * At the end of the transaction
 */

/*
 * Registers a stack for this database, after CREATE EXTENSION, and wakes the
 * launcher to start it.  Past the commit an ERROR would end the whole server, so
 * nothing here may fail.
 */
static void
register_at_commit(void)
{
	int			index;

	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_alloc(MyDatabaseId, at_end.datname);
	if (index >= 0)
	{
		EcmStack   *stack = ecm_stack_at(index);

		stack->registered = true;
		ecm_stack_set_request(stack, ECM_REQUEST_UNSTOP);
	}
	else
		ecm_shared->reprobe_all_requested = true;
	ecm_unlock();

	if (index < 0)
		ecm_event_in(MyDatabaseId, at_end.datname, ECM_EVENT_TOO_MANY_STACKS,
					 "Raise electric_cm.max_managers and restart the server; the stack starts by itself then.",
					 "no stack is started: all %d are taken",
					 ecm_stack_count());
	ecm_launcher_wake();
}

/*
 * Within SPI: has this session switched electric_cm.enabled off for itself only?
 * Then no other process knows.  If the database's settings have it off, the
 * manager sees that by itself.
 */
static bool
is_disabled_in_session(void)
{
	if (ecm_enabled)
		return false;
	if (SPI_execute("SELECT FROM pg_catalog.pg_settings"
					" WHERE name = 'electric_cm.enabled' AND source NOT IN"
					" ('default', 'configuration file', 'command line',"
					" 'global', 'database')", true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the source of electric_cm.enabled");
	return SPI_processed > 0;
}

/*
 * CREATE EXTENSION is about to commit.  Usually the stack starts at once.  While a
 * dump is being restored it must not: the stack would create the publication that
 * the dump has, too, and the restore would fail.  A session that restores can be
 * told by check_function_bodies, which pg_dump's scripts and pg_restore switch
 * off.  CREATE EXTENSION switches it off as well while it runs, so the session's
 * own value can't be seen before the end of the transaction.
 */
static void
register_before_commit(void)
{
	EcmSpiState spi;
	bool		disabled;

	at_end.restoring = false;
	if (!OidIsValid(get_extension_oid("electric_cm", true)))
		return;					/* it has been dropped again */

	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	ecm_spi_begin(&spi);
	disabled = is_disabled_in_session();
	at_end.restoring = !disabled && !check_function_bodies && ecm_shared != NULL;
	if (disabled || at_end.restoring)
		ecm_stack_row_stopped();
	ecm_spi_end(&spi);
	PopActiveSnapshot();

	if (disabled)
		ereport(NOTICE,
				(errmsg("no stack is started, since electric_cm.enabled is off in this session"),
				 errhint("Start it with electric_cm_start().")));
	else if (at_end.restoring)
		ereport(NOTICE,
				(errmsg("the stack starts when this session ends, since check_function_bodies is off, as while restoring a dump"),
				 errhint("To start it earlier, use electric_cm_start().")));
	else if (at_end.no_room != NULL)
		ereport(NOTICE,
				(errmsg("the stack may have to wait: %s", at_end.no_room),
				 errhint("%s", at_end.no_room_fix)));
}

/*
 * before_shmem_exit callback, after a restore: starts the stack, unless somebody
 * has started or stopped it meanwhile.
 */
static void
start_at_exit(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	int			index;

	if (!at_end.start_at_exit)
		return;
	at_end.start_at_exit = false;

	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0)
	{
		EcmStack   *stack = ecm_stack_at(index);

		if (!stack->requests.stop &&
			(stack->manager.probe == ECM_PROBE_UNKNOWN ||
			 stack->manager.probe == ECM_PROBE_NOT_STARTED))
			ecm_stack_set_request(stack, ECM_REQUEST_START);
	}
	ecm_unlock();
	ecm_launcher_wake();
}

/* The transaction that has stopped the stack has not happened. */
static void
undo_stop(void)
{
	int			index;

	at_end.stop_subid = InvalidSubTransactionId;

	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0 && ecm_stack_at(index)->requests.stop)
		ecm_stack_set_request(ecm_stack_at(index),
							  ecm_stack_at(index)->requests.upgrade ?
							  ECM_REQUEST_START :	/* the table says
													 * otherwise */
							  ECM_REQUEST_UNSTOP);
	ecm_unlock();
	ecm_launcher_wake();
}

static void
at_xact_end(XactEvent event, void *arg pg_attribute_unused())
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (at_end.register_pending)
				register_before_commit();
			break;
		case XACT_EVENT_COMMIT:
			if (at_end.register_pending && ecm_shared != NULL)
			{
				register_at_commit();
				at_end.start_at_exit |= at_end.restoring;
			}
			at_end.register_pending = false;
			at_end.stop_subid = InvalidSubTransactionId;
			break;
		case XACT_EVENT_ABORT:
			at_end.register_pending = false;
			if (at_end.stop_subid != InvalidSubTransactionId)
				undo_stop();
			break;
		case XACT_EVENT_PRE_PREPARE:

			/*
			 * COMMIT PREPARED runs no callbacks of ours, so nobody would tell
			 * the launcher.
			 */
			if (at_end.register_pending || at_end.stop_subid != InvalidSubTransactionId)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot PREPARE a transaction that has created the extension electric_cm or stopped its stack")));
			break;
		default:
			break;
	}
}

static void
at_subxact_end(SubXactEvent event, SubTransactionId subid,
			   SubTransactionId parent, void *arg pg_attribute_unused())
{
	if (at_end.stop_subid != subid)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
		undo_stop();
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		at_end.stop_subid = parent;
}

static void
register_callbacks(void)
{
	if (at_end.callbacks_registered)
		return;
	RegisterXactCallback(at_xact_end, NULL);
	RegisterSubXactCallback(at_subxact_end, NULL);
	at_end.callbacks_registered = true;
}

/*
 * Looks whether the server has room for another stack: an entry, workers, a slot.
 * The NOTICE about that is left to register_before_commit(), since CREATE EXTENSION
 * suppresses all messages below WARNING while its script runs.
 */
static void
look_for_room(void)
{
	char	   *detail;
	char	   *fix;

	at_end.no_room = NULL;
	if (ecm_shared == NULL || RecoveryInProgress() || ecm_check_room(&detail, &fix))
		return;
	at_end.no_room = MemoryContextStrdup(TopTransactionContext, detail);
	at_end.no_room_fix = MemoryContextStrdup(TopTransactionContext, fix ? fix : "");
}

/*
 * electric_cm_register() -> void
 *
 * Last line of the extension's script: gives this database a stack when the
 * transaction commits, or, if that is a restore, when the session ends; not
 * before electric_cm_start() if electric_cm.enabled is off in this session
 * (only).  Only warns when the library isn't preloaded, so that CREATE
 * EXTENSION (and a restore) works before postgresql.conf is right.
 */
Datum
electric_cm_register(NO_ARGUMENTS)
{
	if (IsBinaryUpgrade)
		PG_RETURN_VOID();

	if (ecm_shared == NULL)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("electric_cm does nothing until it is loaded via shared_preload_libraries"),
				 errhint("%s", ecm_preload_hint())));
	else if (!at_end.exit_callback_registered)
	{
		before_shmem_exit(start_at_exit, 0);
		at_end.exit_callback_registered = true;
	}

	register_callbacks();
	look_for_room();
	strlcpy(at_end.datname, get_database_name(MyDatabaseId), sizeof(at_end.datname));
	at_end.register_pending = true;
	PG_RETURN_VOID();
}

/*
 * Control
 */

/*
 * Keeps the commit of the caller's transaction from waiting for a synchronous
 * standby, which may be dead.  The transaction has changed the stack's row, which is
 * about this server only, and a manager that starts waits for that change.
 */
void
ecm_commit_locally(void)
{
	if (synchronous_commit > SYNCHRONOUS_COMMIT_LOCAL_FLUSH)
		(void) set_config_option("synchronous_commit", "local", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/*
 * The transaction of somebody else that has changed the stack's row and is not
 * committed yet; invalid: there is none.
 */
static TransactionId
find_row_changer(void)
{
	Relation	rel = table_open(get_relname_relid("stack",
												   get_namespace_oid(ECM_SCHEMA, false)),
								 AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TransactionId changer = InvalidTransactionId;
	SnapshotData dirty;
	TableScanDesc scan;

	InitDirtySnapshot(dirty);
	scan = ecm_table_beginscan(rel, &dirty);
	while (!TransactionIdIsValid(changer) &&
		   table_scan_getnextslot(scan, ForwardScanDirection, slot))
		changer = TransactionIdIsValid(dirty.xmin) ? dirty.xmin : dirty.xmax;
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return changer;
}

/*
 * Waits for somebody else's electric_cm_stop() that has not been committed yet.  A
 * manager that is started before would wait for that commit itself, and then find
 * that it is stopped.  Here the wait can be seen and cancelled, and holds nothing
 * that the stack needs.
 */
static void
await_row_changers(void)
{
	TransactionId changer;

	while (TransactionIdIsValid(changer = find_row_changer()))
		XactLockTableWait(changer, NULL, NULL, XLTW_None);
}

/*
 * electric_cm_start() -> void
 *
 * Starts the stack, also one that was stopped, has failed, or belongs to a
 * copied database; returns when its manager runs.  It will start with the
 * server from now on.
 *
 * 55000: electric_cm.enabled is off, or the database is not listed in
 * electric_cm.databases; else as electric_cm_await_active().
 * 53400: no free background worker slot.  25006: read-only transaction.
 */
Datum
electric_cm_start(NO_ARGUMENTS)
{
	EcmStack   *stack;
	uint64		runs;
	int			index;

	ecm_check_may_wait("electric_cm_start()");
	PreventCommandIfReadOnly("electric_cm_start()");
	ecm_ensure_own_stack();
	await_row_changers();

	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index < 0)
	{
		ecm_unlock();
		ecm_report_stack_gone();
	}
	stack = ecm_stack_at(index);
	runs = stack->manager.runs;
	if (ecm_stack_is_running(stack) && stack->report.status != ECM_STATUS_FAILED)
		runs--;					/* the current manager will do */
	else if (ecm_stack_is_running(stack))
		ecm_stack_set_request(stack, ECM_REQUEST_RESTART);
	else
	{
		ecm_stack_set_request(stack, ECM_REQUEST_START);
		if (stack->manager.pid != 0 && stack->manager.probe == ECM_PROBE_UNKNOWN)
			runs--;				/* the current manager has not decided yet,
								 * and will see the request: it may do, too */
	}
	ecm_unlock();
	ecm_launcher_wake();

	await_run(runs);

	if (ecm_stack_row_started())
		ecm_commit_locally();
	PG_RETURN_VOID();
}

bool
ecm_slot_is_own(const char *name, EcmSlotFacts *facts)
{
	return ecm_slot_lookup(name, facts) &&
		ecm_slot_is_of_our_kind(facts, MyDatabaseId);
}

/*
 * Waits, for SLOT_RELEASE_TIMEOUT at most, until nobody uses the slot: the
 * manager's walsender may still be about to notice that its client has gone.  With
 * a pid, only until that process does not use it any more.
 */
static void
await_slot_release(const char *name, int pid)
{
	EcmSlotFacts facts;

	for (int waited = 0; waited < SLOT_RELEASE_TIMEOUT; waited += SLOT_RELEASE_POLL)
	{
		if (!ecm_slot_is_own(name, &facts) || facts.active_pid == 0 ||
			(pid != 0 && facts.active_pid != pid))
			break;
		ecm_sleep(SLOT_RELEASE_POLL, ECM_WAIT_SLOT_RELEASE);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Drops the slot, if it can be ours.  ERROR 55006 if somebody uses it. */
static void
drop_own_slot(const char *name)
{
	EcmSlotFacts facts;

	await_slot_release(name, 0);
	if (ecm_slot_is_own(name, &facts))
		ReplicationSlotDrop(name, true);
}

/*
 * Waits until no manager runs for this database.  ERROR if the request to stop has
 * been taken back by somebody else's electric_cm_start().
 */
static void
await_stopped(void)
{
	EcmStack   *stack = palloc(sizeof(EcmStack));

	for (;;)
	{
		int			index = ecm_own_stack_head(stack);

		if (index < 0)
			break;
		if (!stack->requests.stop)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the stack of database \"%s\" was started by another session while it was being stopped",
							stack->datname)));
		/* the launcher sets STOPPED only while there is no manager */
		if (stack->report.status == ECM_STATUS_STOPPED && stack->manager.pid == 0 &&
			stack->lifecycle.stopped_runs == stack->manager.runs)
			break;
		(void) ecm_sleep_until_change(index, 0);
	}
	ConditionVariableCancelSleep();
	pfree(stack);
}

char *
ecm_stop_own_stack(bool drop_slot, bool for_upgrade)
{
	char	   *datname = get_database_name(MyDatabaseId);
	char	   *slot_name = ecm_own_slot_name(NULL);
	int			walsender = 0;
	int			index;

	register_callbacks();

	/* without room for an entry no manager can be running or be started */
	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_alloc(MyDatabaseId, datname);
	if (index >= 0)
	{
		EcmStack   *stack = ecm_stack_at(index);

		if (!stack->requests.stop)
			at_end.stop_subid = GetCurrentSubTransactionId();
		walsender = stack->manager.pid != 0 ? stack->conns[0].backend_pid : 0;
		stack->registered = true;
		ecm_stack_set_request(stack, ECM_REQUEST_STOP);
		stack->requests.drop_slot = drop_slot;
		stack->requests.upgrade = for_upgrade;
	}
	ecm_unlock();
	ecm_launcher_wake();

	if (index >= 0)
	{
		EcmStack   *stack = palloc(sizeof(EcmStack));

		await_stopped();
		if (ecm_own_stack_head(stack) >= 0)
			slot_name = ecm_own_slot_name(stack);
		if (walsender != 0 && !drop_slot)
			await_slot_release(slot_name, walsender);
	}
	return slot_name;
}

/*
 * electric_cm_stop(drop_slot bool) -> void
 *
 * Stops the stack and returns when its manager has gone, and its walsender has
 * let go of the slot, which others may wait for.  It stays stopped, also after
 * a restart of the server, until electric_cm_start().  With drop_slot, slot and
 * publication are dropped, at once: that can't be rolled back.  Without, a
 * WARNING says so if a slot stays behind and goes on retaining WAL.  If the
 * transaction is rolled back, the stack starts again.  Its commit does not wait
 * for synchronous standbys, and neither does that of electric_cm_start().
 *
 * 55006: somebody else uses the slot.  25006: read-only transaction.
 * 55000: the caller's transaction has made changes or is above READ COMMITTED;
 * another session started the stack again meanwhile; recovery; not preloaded.
 */
Datum
electric_cm_stop(PG_FUNCTION_ARGS)
{
	bool		drop_slot = PG_GETARG_BOOL(0);
	EcmSpiState spi;
	EcmSlotFacts facts;
	char	   *slot_name;

	ecm_check_may_wait("electric_cm_stop()");
	PreventCommandIfReadOnly("electric_cm_stop()");
	slot_name = ecm_stop_own_stack(drop_slot, false);

	ecm_stack_row_stopped();
	if (drop_slot)
	{
		ecm_stack_row_forget_created();
		ecm_spi_begin(&spi);
		ecm_drop_own_publications();
		ecm_spi_end(&spi);
	}
	ecm_commit_locally();

	/* last, since it can't be undone */
	if (drop_slot)
		drop_own_slot(slot_name);
	else if (ecm_slot_is_own(slot_name, &facts))
		ereport(WARNING,
				(errmsg("replication slot \"%s\" stays behind and retains WAL",
						slot_name),
				 ecm_idle_slot_timeout_s() == 0 ? 0 :
				 errdetail("If the stack is stopped for longer than idle_replication_slot_timeout (%s), the slot is lost, and all shapes are compared with their tables at the next start.",
						   GetConfigOptionByName("idle_replication_slot_timeout", NULL, false)),
				 errhint("electric_cm_start() goes on from there. To drop it, after which a start compares all shapes with their tables: SELECT electric_cm_stop(drop_slot => true)")));
	PG_RETURN_VOID();
}

/*
 * electric_cm_restart() -> void
 *
 * Ends the stack's manager and returns when a new one runs.
 *
 * 55000: the stack is stopped; else as electric_cm_await_active().
 * 53400: no free background worker slot.
 */
Datum
electric_cm_restart(NO_ARGUMENTS)
{
	EcmStack   *copy = palloc(sizeof(EcmStack));
	uint64		runs = 0;
	int			index;

	ecm_check_may_wait("electric_cm_restart()");
	ecm_ensure_own_stack();

	if (ecm_own_stack_head(copy) >= 0 && ecm_stack_is_stopped(copy) &&
		(copy->requests.stop || copy->manager.probe == ECM_PROBE_STOPPED ||
		 copy->manager.probe == ECM_PROBE_UPGRADE ||
		 copy->manager.probe == ECM_PROBE_NOT_STARTED ||
		 copy->manager.probe == ECM_PROBE_CLONED))
		ecm_report_stopped(copy);

	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0)
	{
		runs = ecm_stack_at(index)->manager.runs;
		ecm_stack_set_request(ecm_stack_at(index), ECM_REQUEST_RESTART);
	}
	ecm_unlock();
	if (index < 0)
		ecm_report_stack_gone();
	ecm_launcher_wake();

	await_run(runs);
	PG_RETURN_VOID();
}

/*
 * electric_cm_drop_replication_slot_on_stop(enable bool) -> void
 *
 * Waits until the stack is active; then the end of this manager, by
 * electric_cm_stop(), disabling or server shutdown, drops slot and
 * publication.  The flag ends with the manager.
 *
 * Errors are those of electric_cm_await_active().
 */
Datum
electric_cm_drop_replication_slot_on_stop(PG_FUNCTION_ARGS)
{
	bool		enable = PG_GETARG_BOOL(0);
	bool		done = false;

	ecm_check_may_wait("electric_cm_drop_replication_slot_on_stop()");
	while (!done)
	{
		int			index;

		ecm_await_active(0);

		/* unless it has ended since */
		ecm_lock(LW_EXCLUSIVE);
		index = ecm_stack_find_locked(MyDatabaseId);
		if (index >= 0 && ecm_stack_is_running(ecm_stack_at(index)))
		{
			ecm_stack_at(index)->requests.drop_on_stop = enable;
			done = true;
		}
		ecm_unlock();
	}
	PG_RETURN_VOID();
}
