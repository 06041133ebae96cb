/*-------------------------------------------------------------------------
 *
 * status.c
 *	  SQL functions that say how the stack is, and wait until it is active or
 *	  has consumed what was written.
 *
 * They run in a user's session, and read copies of the stack's entry.  How they wait
 * is in await.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "base/shmem.h"
#include "base/stack_catalog.h"
#include "functions/await.h"
#include "shape/shape_rights.h"
#include "slot/slot.h"
#include "slot/slot_name.h"

/* How long electric_cm_report_retained_wal_size() waits for a sample. */
#define SAMPLE_TIMEOUT			1000	/* ms */

/* Functions without arguments still get a fcinfo. */
#define NO_ARGUMENTS	FunctionCallInfo fcinfo pg_attribute_unused()

PG_FUNCTION_INFO_V1(electric_cm_status);
PG_FUNCTION_INFO_V1(electric_cm_await_active);
PG_FUNCTION_INFO_V1(electric_cm_pg_version);
PG_FUNCTION_INFO_V1(electric_cm_exclusive_connection_lock_acquired);
PG_FUNCTION_INFO_V1(electric_cm_report_retained_wal_size);
PG_FUNCTION_INFO_V1(electric_cm_await_flushed);
PG_FUNCTION_INFO_V1(electric_cm_shape_waiting_for);

/*
 * electric_cm_status() -> text
 *
 * Returns "waiting", "starting", "active", "stopped" or "failed".
 *
 * 55000: not preloaded.
 */
Datum
electric_cm_status(NO_ARGUMENTS)
{
	EcmStatus	status = ECM_STATUS_STOPPED;
	int			index;

	ecm_require_shared();

	ecm_lock(LW_SHARED);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0)
	{
		const EcmStack *stack = ecm_stack_at(index);

		status = stack->report.status;
		if (status == ECM_STATUS_ACTIVE && ecm_manager_hangs(stack))
			status = ECM_STATUS_STARTING;
	}
	ecm_unlock();

	PG_RETURN_TEXT_P(cstring_to_text(ecm_status_name(status)));
}

/*
 * electric_cm_await_active(timeout interval) -> void
 *
 * Returns when the stack is active.  A NULL timeout means: as long as it takes.
 *
 * 57014: the timeout has passed; DETAIL says what the stack is waiting for.
 * 55000: the stack has failed or is stopped (DETAIL: last error); the caller's
 * transaction has made changes or is above READ COMMITTED; recovery; not
 * preloaded.
 * 22023: negative timeout.  53400: no room for this database's stack.
 */
Datum
electric_cm_await_active(PG_FUNCTION_ARGS)
{
	ecm_check_may_wait("electric_cm_await_active()");
	ecm_await_active(ecm_await_until(PG_ARGISNULL(0) ? NULL : PG_GETARG_INTERVAL_P(0)));
	PG_RETURN_VOID();
}

/*
 * electric_cm_pg_version() -> int4
 *
 * The server's version as the stack looked it up, like server_version_num.
 *
 * 55000: not looked up yet; not preloaded.
 */
Datum
electric_cm_pg_version(NO_ARGUMENTS)
{
	EcmStack   *stack;

	ecm_require_shared();
	stack = palloc(sizeof(EcmStack));
	if (ecm_own_stack_head(stack) < 0 || stack->server.version_num == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the stack of database \"%s\" has not looked up the server version yet",
						get_database_name(MyDatabaseId)),
				 errhint("Wait for it with electric_cm_await_active().")));
	PG_RETURN_INT32(stack->server.version_num);
}

/*
 * electric_cm_exclusive_connection_lock_acquired() -> bool
 *
 * Does this database's stack hold its exclusive lock?
 *
 * 55000: not preloaded.
 */
Datum
electric_cm_exclusive_connection_lock_acquired(NO_ARGUMENTS)
{
	bool		acquired = false;
	int			index;

	ecm_require_shared();

	ecm_lock(LW_SHARED);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0)
		acquired = ecm_stack_at(index)->manager.pid != 0 &&
			ecm_stack_at(index)->report.lock_acquired;
	ecm_unlock();

	PG_RETURN_BOOL(acquired);
}

/*
 * Requests a sample of the stack's slot and waits for it, SAMPLE_TIMEOUT at most: the
 * manager, or the launcher in its place, may be busy or hang.  True: there is one that
 * was taken since, in *stack.
 */
static bool
await_sample(EcmStack *stack)
{
	EcmTime		asked_at = ecm_now();
	EcmTime		deadline = ecm_later(asked_at, SAMPLE_TIMEOUT);
	int			index = ecm_own_stack_head(stack);

	if (index < 0 || stack->slot.name[0] == '\0')
		return false;
	(void) ecm_stack_request(MyDatabaseId, ECM_REQUEST_SAMPLE);

	do
		index = ecm_own_stack_head(stack);
	while (index >= 0 && stack->slot.sample.taken_at < asked_at &&
		   !ecm_sleep_until_change(index, deadline));
	ConditionVariableCancelSleep();
	return index >= 0 && stack->slot.sample.taken_at >= asked_at;
}

/*
 * electric_cm_report_retained_wal_size() -> int8
 *
 * The bytes of WAL that the stack's slot retains now; NULL without a slot.
 * Works in every status.  If the slot is lost: what it retained when last
 * seen, NULL if nobody has.  electric_cm_stat_replication shows that sample.
 *
 * 55000: not preloaded.
 */
Datum
electric_cm_report_retained_wal_size(PG_FUNCTION_ARGS)
{
	EcmStack   *stack;
	EcmWalSample sample;
	bool		has_entry;

	ecm_require_shared();

	stack = palloc(sizeof(EcmStack));
	has_entry = ecm_own_stack_head(stack) >= 0;
	if (has_entry && await_sample(stack))
		sample = stack->slot.sample;
	else
	{
		memset(&sample, 0, sizeof(sample));
		if (has_entry)
			sample = stack->slot.sample;
		(void) ecm_slot_sample(ecm_own_slot_name(has_entry ? stack : NULL), &sample);
	}
	if (!sample.slot_exists || !sample.sizes_known)
		PG_RETURN_NULL();
	PG_RETURN_INT64(sample.retained_wal_bytes);
}

/*
 * electric_cm_await_flushed(lsn pg_lsn, timeout interval) -> pg_lsn
 *
 * Returns when every transaction that committed before the LSN (NULL: before
 * now) is in the shape logs it belongs to, durably.  Returns the position up
 * to which that is so.  A NULL timeout means: as long as it takes.
 *
 * Errors are those of electric_cm_await_active().
 */
Datum
electric_cm_await_flushed(PG_FUNCTION_ARGS)
{
	EcmStack   *stack;
	XLogRecPtr	target;
	XLogRecPtr	inserted;
	EcmTime		deadline;

	ecm_check_may_wait("electric_cm_await_flushed()");
	deadline = ecm_await_until(PG_ARGISNULL(1) ? NULL : PG_GETARG_INTERVAL_P(1));
	inserted = ecm_end_of_wal();
	target = PG_ARGISNULL(0) ? inserted : PG_GETARG_LSN(0);

	/* only flushed WAL is streamed, and the last commits may be asynchronous */
	if (target <= inserted)
		XLogFlush(target);

	ecm_ensure_own_stack();
	stack = palloc(sizeof(EcmStack));
	for (;;)
	{
		int			index = ecm_own_stack_head(stack);

		if (index < 0)
			ecm_report_stack_gone();
		if (stack->progress.flushed_lsn >= target)
			break;
		ecm_check_stack_alive(stack);

		/* in each round: managers forget the request now and then */
		if (stack->requests.await_lsn < target)
			ecm_stack_request_flush(MyDatabaseId, target);

		if (ecm_sleep_until_change(index, deadline))
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("timed out while waiting for %X/%X to be flushed to the shape logs",
							LSN_FORMAT_ARGS(target)),
					 errdetail_internal("They are flushed up to %X/%X. %s",
										LSN_FORMAT_ARGS(stack->progress.flushed_lsn),
										ecm_describe_wait(stack))));
	}
	ConditionVariableCancelSleep();

	PG_RETURN_LSN(stack->progress.flushed_lsn);
}

/*
 * electric_cm_shape_waiting_for(shape int8, relation oid) -> text
 *
 * What the creation of a shape waits for; NULL if for nothing.
 *
 * 55000: not preloaded.
 */
Datum
electric_cm_shape_waiting_for(PG_FUNCTION_ARGS)
{
	char	   *waiting_for;

	ecm_require_shared();
	if (!ecm_shape_may_know(PG_GETARG_INT64(0)))
		PG_RETURN_NULL();
	waiting_for = ecm_creation_waiting_for(PG_GETARG_INT64(0), PG_GETARG_OID(1));
	if (waiting_for == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(waiting_for));
}
