/*-------------------------------------------------------------------------
 *
 * prepare_upgrade.c
 *	  SQL function that stops the stack for pg_upgrade.
 *
 * From 17 on pg_upgrade refuses a cluster in which a logical slot has not consumed
 * every transaction of its database.  So the stack consumes what there is, its
 * manager puts down that it is stopped, and moves the slot past that (see
 * slot_tail.c).  Whether it has worked is asked of the server, in the way that
 * pg_upgrade will.  Others may write meanwhile, then all of it is done again; what
 * they write later, nobody can foresee.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "replication/logical.h"
#include "replication/slot.h"
#include "tcop/utility.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/stack_catalog.h"
#include "functions/await.h"
#include "functions/control.h"
#include "slot/slot.h"
#include "slot/slot_name.h"

PG_FUNCTION_INFO_V1(electric_cm_prepare_upgrade);

/* How often it is tried while others go on writing. */
#define MAX_ROUNDS		3
/* ... and so often the stack is to consume what came while it did so. */
#define MAX_DRAINS		5
#define POLL_MS			10

/* Nobody uses it now, and the stack doesn't. */
static bool
has_pending_wal(const char *slot_name)
{
	XLogRecPtr	end = ecm_end_of_wal();
	volatile bool result = true;

	XLogFlush(end);
	PG_TRY();
	{
		ecm_slot_acquire(slot_name);
		result = ecm_slot_has_pending_wal(end);
	}
	PG_FINALLY();
	{
		if (MyReplicationSlot != NULL)
			ReplicationSlotRelease();
	}
	PG_END_TRY();
	return result;
}

/* What the manager has put down since this statement began, too. */
static bool
is_recorded(void)
{
	EcmStackRow row;

	PushActiveSnapshot(GetLatestSnapshot());
	ecm_stack_row_read(&row);
	PopActiveSnapshot();
	return row.stopped_for_upgrade;
}

/* The stack is stopped, and says that it is for this, and its slot is done. */
static bool
is_prepared(const char *slot_name)
{
	EcmStack   *stack = palloc(sizeof(EcmStack));
	EcmSlotFacts facts;
	bool		result;

	result = (ecm_own_stack_head(stack) < 0 || stack->manager.pid == 0) &&
		is_recorded() && ecm_slot_is_own(slot_name, &facts) &&
		facts.active_pid == 0 && !has_pending_wal(slot_name);
	pfree(stack);
	return result;
}

/* Has a stack that is stopped, for whatever reason, started again. */
static void
start(void)
{
	int			index;

	ecm_ensure_own_stack();
	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0 && !ecm_stack_is_running(ecm_stack_at(index)))
		ecm_stack_set_request(ecm_stack_at(index), ECM_REQUEST_START);
	ecm_unlock();
	ecm_launcher_wake();
	ecm_await_active(0);
}

/* Waits until everything before that is in the logs. */
static void
await_flushed(XLogRecPtr target)
{
	EcmStack   *stack = palloc(sizeof(EcmStack));

	for (;;)
	{
		ecm_await_active(0);
		if (ecm_own_stack_head(stack) < 0)
			ecm_report_stack_gone();
		if (stack->progress.flushed_lsn >= target)
			break;
		if (stack->requests.await_lsn < target)
			ecm_stack_request_flush(MyDatabaseId, target);
		ecm_sleep(POLL_MS, ECM_WAIT_STACK);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	pfree(stack);
}

/* A consumer that has something to do writes it down afterwards. */
static void
drain(void)
{
	for (int i = 0; i < MAX_DRAINS; i++)
	{
		XLogRecPtr	target = ecm_end_of_wal();

		XLogFlush(target);
		await_flushed(target);
		if (ecm_end_of_wal() == target)
			break;
	}
}

/* Those who will be aborted when the server stops, which pg_upgrade counts. */
static char *
find_open_transactions(void)
{
	EcmSpiState spi;
	char	   *result = NULL;
	MemoryContext context = CurrentMemoryContext;

	ecm_spi_begin(&spi);
	if (SPI_execute("SELECT string_agg('PID ' || pid || coalesce(' (' || nullif(application_name, '') || ')', ''),"
					" ', ' ORDER BY xact_start)"
					" FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL", true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not read pg_stat_activity");
	result = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (result != NULL)
		result = MemoryContextStrdup(context, result);
	ecm_spi_end(&spi);
	return result;
}

static void
say_what_remains(const char *datname, const char *slot_name, XLogRecPtr lsn)
{
	char	   *open = find_open_transactions();

	ereport(NOTICE,
			(errmsg("database \"%s\" is ready for pg_upgrade", datname),
			 open == NULL ?
			 errdetail("Replication slot \"%s\" has nothing to consume before %X/%X.",
					   slot_name, LSN_FORMAT_ARGS(lsn)) :
			 errdetail("Replication slot \"%s\" has nothing to consume before %X/%X. But transactions are open: %s.",
					   slot_name, LSN_FORMAT_ARGS(lsn), open),
			 errhint("Prepare every database that has a stack, then stop the server before anybody writes. If pg_upgrade finds that the slot has not consumed everything, start the server and call this again. Without an upgrade: electric_cm_start().")));
}

/*
 * electric_cm_prepare_upgrade() -> pg_lsn
 *
 * Stops the stack so that its slot has consumed all that was written in this
 * database, and stays stopped until electric_cm_start(), or until the cluster has
 * been upgraded.  Returns the slot's position, NULL if there is no slot.  A NOTICE
 * says what remains to be done.  A stack that is stopped is started for it.  If
 * it fails, or is cancelled, the stack runs on.
 *
 * 25001: in a transaction block.  55006: others go on writing.  25006: read-only.
 * 55000: the stack can't run, see electric_cm_await_active(); recovery.
 */
Datum
electric_cm_prepare_upgrade(PG_FUNCTION_ARGS)
{
	char	   *datname;
	char	   *slot_name;
	EcmSlotFacts facts;

	ecm_check_may_wait("electric_cm_prepare_upgrade()");
	PreventCommandIfReadOnly("electric_cm_prepare_upgrade()");
	if (IsTransactionBlock())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("electric_cm_prepare_upgrade() cannot run inside a transaction block"),
				 errdetail("Its commit would come after what the slot has consumed.")));

	datname = get_database_name(MyDatabaseId);
	slot_name = ecm_own_slot_name(NULL);
	for (int round = 1; !is_prepared(slot_name); round++)
	{
		if (round > MAX_ROUNDS)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("others go on writing while database \"%s\" is prepared for pg_upgrade",
							datname),
					 errdetail("Each time replication slot \"%s\" had consumed everything, there was something new, or a transaction was aborted.",
							   slot_name),
					 errhint("End these sessions, keep autovacuum away by \"ALTER SYSTEM SET autovacuum = off; SELECT pg_reload_conf()\", and call this again.")));
		if (ecm_slot_is_own(slot_name, &facts))
		{
			start();
			drain();
		}
		slot_name = ecm_stop_own_stack(false, true);
		if (!ecm_slot_is_own(slot_name, &facts))
		{
			ecm_stack_row_stopped_for_upgrade();
			ecm_commit_locally();
			ereport(NOTICE,
					(errmsg("database \"%s\" is ready for pg_upgrade", datname),
					 errdetail("Its stack has no replication slot.")));
			PG_RETURN_NULL();
		}
	}
	if (!ecm_slot_lookup(slot_name, &facts))
		elog(ERROR, "replication slot \"%s\" has been dropped", slot_name);
	say_what_remains(datname, slot_name, facts.confirmed_flush_lsn);
	PG_RETURN_LSN(facts.confirmed_flush_lsn);
}
