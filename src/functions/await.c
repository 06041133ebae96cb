/*-------------------------------------------------------------------------
 *
 * await.c
 *	  What all functions that wait for this database's stack have in common.
 *
 * These functions sleep on the condition variable of the stack's entry.  They refuse
 * to wait in a transaction that has written something: the stack may be waiting for
 * that very transaction, which neither of them would notice.  Nor do they wait for a
 * stack that has failed or is stopped, and would not come.
 *
 * An entry may be freed, and given to another database, during a sleep.  So each look
 * starts from the database's OID.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/settings.h"
#include "base/wait_event.h"
#include "functions/await.h"

/* The longest timeout for a wait that holds a snapshot. */
#define MAX_WAIT_MS		(INT64CONST(60) * 60 * 1000)

static char *
own_datname(void)
{
	return get_database_name(MyDatabaseId);
}

bool
ecm_stack_is_running(const EcmStack *stack)
{
	return stack->manager.pid != 0 && stack->manager.probe == ECM_PROBE_RUN &&
		stack->lifecycle.end_reason == ECM_END_NONE &&
		!stack->requests.stop && !stack->requests.restart;
}

bool
ecm_stack_is_stopped(const EcmStack *stack)
{
	return stack->report.status == ECM_STATUS_STOPPED && stack->manager.pid == 0 &&
		!stack->requests.reprobe && !stack->requests.restart &&
		stack->pause.count == 0;
}

/* How to start a stack that is stopped; NULL: there is nothing to be done here. */
static const char *
stopped_hint(const EcmStack *stack)
{
	if (stack->requests.stop)
		return "Start it with electric_cm_start().";

	switch (stack->manager.probe)
	{
		case ECM_PROBE_CLOSED:
			return "See ALTER DATABASE ... IS_TEMPLATE and ALLOW_CONNECTIONS.";
		case ECM_PROBE_UNLISTED:
			return "Add the database to electric_cm.databases and reload the configuration.";
		case ECM_PROBE_DISABLED:
			return "Set electric_cm.enabled to on for this database and reload the configuration.";
		case ECM_PROBE_STOPPED:
		case ECM_PROBE_UPGRADE:
		case ECM_PROBE_NOT_STARTED:
		case ECM_PROBE_CLONED:
			return "Start it with electric_cm_start().";
		case ECM_PROBE_OUTDATED:
			return "ALTER EXTENSION electric_cm UPDATE";
		case ECM_PROBE_UNKNOWN_VERSION:
			return "Install the library of that version, or a newer one, and restart the server.";
		case ECM_PROBE_UNKNOWN:
		case ECM_PROBE_RUN:
		case ECM_PROBE_LOOKED:
		case ECM_PROBE_NO_EXTENSION:
			break;
	}
	return NULL;
}

/*
 * May the current user see the stack's last error?  Any role that has a shape may wait
 * for the stack; but the error may tell about connections and files of the server,
 * which only members of pg_monitor may see.
 */
static bool
shows_error(const EcmStack *stack)
{
	return stack->report.last_error[0] != '\0' &&
		has_privs_of_role(GetUserId(), ROLE_PG_MONITOR);
}

void
ecm_report_stopped(const EcmStack *stack)
{
	const char *hint = stopped_hint(stack);

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the stack of database \"%s\" is stopped: %s",
					stack->datname, stack->report.waiting_for),
			 shows_error(stack) ?
			 errdetail("The last error was: %s", stack->report.last_error) : 0,
			 hint != NULL ? errhint("%s", hint) : 0));
}

void
ecm_check_stack_alive(const EcmStack *stack)
{
	if (stack->report.status == ECM_STATUS_FAILED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the stack of database \"%s\" has failed",
						stack->datname),
				 shows_error(stack) ?
				 errdetail_internal("%s", stack->report.last_error) : 0,
				 shows_error(stack) && stack->report.last_error_hint[0] != '\0' ?
				 errhint("%s", stack->report.last_error_hint) : 0));
	if (ecm_stack_is_stopped(stack))
		ecm_report_stopped(stack);
}

void
ecm_report_stack_gone(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("database \"%s\" has no stack any more", own_datname()),
			 errdetail("The extension electric_cm has been dropped.")));
}

static void
report_no_entry(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("all %d stacks of this server are taken",
					ecm_stack_count()),
			 errhint("Raise electric_cm.max_managers and restart the server.")));
}

void
ecm_check_may_wait(const char *function)
{
	ecm_require_shared();
	if (!IsUnderPostmaster)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s cannot be used in single-user mode", function),
				 errdetail("No stack runs there, so it would wait for ever."),
				 errhint("Start the server.")));

	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s cannot be executed during recovery", function),
				 errhint("A standby has no stack; it starts at promotion.")));
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s cannot be executed in a transaction that has made changes",
						function),
				 errdetail("The stack may be waiting for this very transaction."),
				 errhint("Commit first.")));
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s cannot be executed in a transaction above READ COMMITTED",
						function),
				 errhint("Use the isolation level READ COMMITTED.")));
}

/*
 * Makes sure that the launcher looks after this database: at server start it
 * may not have come here yet, and a database copied from one with the
 * extension has never registered.
 */
void
ecm_ensure_own_stack(void)
{
	char	   *datname = own_datname();
	int			index;

	if (!ecm_database_is_listed(datname))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the stack of database \"%s\" is stopped: %s",
						datname, "not listed in electric_cm.databases"),
				 errhint("Add the database to electric_cm.databases and reload the configuration.")));

	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_alloc(MyDatabaseId, datname);
	if (index >= 0)
		ecm_stack_at(index)->registered = true;
	ecm_unlock();
	if (index < 0)
		report_no_entry();
	ecm_launcher_wake();
}

int64
ecm_bounded_timeout_ms(const Interval *timeout)
{
	EcmTime		until = ecm_await_until(timeout);
	int64		ms = until == 0 ? 0 : ecm_ms_until(ecm_now(), until);

	if (until == 0 || ms > MAX_WAIT_MS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 until == 0 ? errmsg("timeout must not be null or infinite") :
				 errmsg("timeout must not exceed one hour"),
				 errdetail("While a statement waits, VACUUM cannot remove what has died since it began."),
				 errhint("Wait for a shorter time, and again.")));
	return ms;
}

EcmTime
ecm_await_until(const Interval *timeout)
{
	TimestampTz now = ecm_wall_clock();
	TimestampTz until;

	if (timeout == NULL)
		return 0;

	/* by the calendar: how long a month is depends on the month */
	until = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													TimestampTzGetDatum(now),
													IntervalPGetDatum(timeout)));
	if (until < now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative")));
	return TIMESTAMP_IS_NOEND(until) ? 0 : ecm_now() + (until - now);
}

/* How often a standby looks whether WAL was replayed, if nobody says so. */
#define REPLAY_POLL_MS		100
/* How often it looks, if somebody does, whether its client is still there. */
#define CLIENT_POLL_MS		1000

/*
 * Uses FeBeWaitSet, the server's own set of events for talking to the client.  (Its
 * other users set the events before they wait, too, so nothing has to be restored.)
 * On platforms that can't tell that the client is gone, the session notices only when
 * it has something to send.
 */
void
ecm_sleep(long timeout_ms, EcmWaitEvent what_for)
{
	WaitEvent	events[ECM_CLIENT_NEVENTS];
	int			n;

	if (MyProcPort == NULL || FeBeWaitSet == NULL || !WaitEventSetCanReportClosed())
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH |
						 (timeout_ms >= 0 ? WL_TIMEOUT : 0),
						 timeout_ms, ecm_wait_event(what_for));
		return;
	}

	ModifyWaitEvent(FeBeWaitSet, ECM_CLIENT_SOCKET_POS, WL_SOCKET_CLOSED, NULL);
	n = WaitEventSetWait(FeBeWaitSet, timeout_ms, events, lengthof(events),
						 ecm_wait_event(what_for));
	for (int i = 0; i < n; i++)
	{
		if (events[i].events & WL_POSTMASTER_DEATH)
			proc_exit(1);
		if (events[i].events & WL_SOCKET_CLOSED)
		{
			ClientConnectionLost = true;
			InterruptPending = true;
		}
	}
	CHECK_FOR_INTERRUPTS();
}

void
ecm_sleep_for_replay(XLogRecPtr replayed, long timeout_ms, long pause_ms, EcmWaitEvent what_for)
{
	long		rest = Min(timeout_ms - pause_ms, CLIENT_POLL_MS);

	ecm_sleep(Min(timeout_ms, pause_ms), what_for);
	if (rest > 0 && !ecm_wait_for_replay(replayed, rest) && pause_ms < REPLAY_POLL_MS)
		ecm_sleep(Min(timeout_ms, REPLAY_POLL_MS) - pause_ms, what_for);
}

/*
 * As ConditionVariableTimedSleep(), but notices that the client is gone.  The server's
 * function is called with a timeout of 0, to learn whether there was a signal; the
 * sleep itself is ecm_sleep().
 */
static void
sleep_on(ConditionVariable *cv, long timeout_ms)
{
	instr_time	began;
	uint32		event = ecm_wait_event(ECM_WAIT_STACK);

	INSTR_TIME_SET_CURRENT(began);
	while (ConditionVariableTimedSleep(cv, 0, event))
	{
		long		left = timeout_ms;

		if (timeout_ms >= 0)
		{
			instr_time	now;

			INSTR_TIME_SET_CURRENT(now);
			INSTR_TIME_SUBTRACT(now, began);
			left -= (long) INSTR_TIME_GET_MILLISEC(now);
			if (left <= 0)
				return;
		}
		ecm_sleep(left, ECM_WAIT_STACK);
	}
}

bool
ecm_sleep_until_change(int index, EcmTime deadline)
{
	long		timeout = -1;

	if (deadline != 0)
	{
		EcmTime		now = ecm_now();

		if (now >= deadline)
			return true;
		timeout = ecm_ms_until(now, deadline);
	}
	sleep_on(&ecm_stack_at(index)->cv, timeout);
	return false;
}

char *
ecm_describe_wait(const EcmStack *stack)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "Its status is \"%s\"",
					 ecm_status_name(stack->report.status));
	if (stack->report.step[0] != '\0')
		appendStringInfo(&buf, ", its step \"%s\"", stack->report.step);
	if (stack->report.waiting_for[0] != '\0')
		appendStringInfo(&buf, "; it waits for: %s", stack->report.waiting_for);
	if (stack->report.blocking_pid != 0)
		appendStringInfo(&buf, " (process %d)", stack->report.blocking_pid);
	appendStringInfoChar(&buf, '.');
	if (shows_error(stack))
		appendStringInfo(&buf, " The last error was: %s", stack->report.last_error);
	return buf.data;
}

char *
ecm_creation_waiting_for(int64 shape, Oid relation)
{
	EcmCreation nearest = {0};
	int			index = ecm_stack_find(MyDatabaseId);

	if (index < 0)
		return NULL;

	ecm_lock(LW_SHARED);
	for (int i = 0; i < ECM_MAX_CREATIONS; i++)
	{
		EcmCreation *creation = &ecm_stack_at(index)->creations[i];

		if (creation->used && creation->relation == relation &&
			shape >= creation->first && shape <= creation->last &&
			(!nearest.used ||
			 creation->last - creation->first < nearest.last - nearest.first))
			nearest = *creation;
	}
	ecm_unlock();
	return nearest.used && nearest.waiting_for[0] != '\0' ?
		pstrdup(nearest.waiting_for) : NULL;
}

void
ecm_await_active(EcmTime deadline)
{
	EcmStack   *stack = palloc(sizeof(EcmStack));

	ecm_ensure_own_stack();
	for (;;)
	{
		int			index = ecm_own_stack_head(stack);

		if (index < 0)
			ecm_report_stack_gone();
		if (stack->report.status == ECM_STATUS_ACTIVE && ecm_stack_is_running(stack))
			break;
		ecm_check_stack_alive(stack);
		if (ecm_sleep_until_change(index, deadline))
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("timed out while waiting for the stack of database \"%s\" to become active",
							stack->datname),
					 errdetail_internal("%s", ecm_describe_wait(stack))));
	}
	ConditionVariableCancelSleep();
	pfree(stack);
}
