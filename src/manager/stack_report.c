/*-------------------------------------------------------------------------
 *
 * stack_report.c
 *	  What the manager shows of itself.
 *
 * Views and functions read the entry, and sessions wait for changes of it by its
 * condition variable.  The manager is the only writer of these parts, so it may read
 * them without the lock; it takes the lock to write, and broadcasts afterwards.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "base/bgworker.h"
#include "base/text.h"
#include "connection/conn.h"
#include "connection/pool.h"
#include "manager/stack_report.h"

static EcmStack *stack;			/* the manager's entry */
static EcmTime shown_retry_at;	/* what report.next_retry_at was computed from */

/*
 * With the lock: shows which slot is watched.  The sample of another one is cleared.
 */
static void
set_watched(EcmWatchedSlot *slot, const char *name, bool owned,
			XLogRecPtr seen_lsn)
{
	if (strcmp(slot->name, name) != 0)
		memset(&slot->sample, 0, sizeof(slot->sample));
	ecm_copy_text(slot->name, sizeof(slot->name), name);
	slot->owned = owned;
	slot->seen_lsn = seen_lsn;
}

bool
ecm_report_slot(int stack_index, const char *slot_name, bool owned,
				XLogRecPtr seen_lsn, bool unique)
{
	EcmStack   *entry = ecm_stack_at(stack_index);

	ecm_lock(LW_EXCLUSIVE);
	for (int i = 0; unique && i < ecm_stack_count(); i++)
		if (i != stack_index && ecm_stack_at(i)->in_use &&
			strcmp(ecm_stack_at(i)->slot.name, slot_name) == 0)
		{
			ecm_unlock();
			return false;
		}
	set_watched(&entry->slot, slot_name, owned, seen_lsn);
	ecm_unlock();
	if (owned)
		ecm_launcher_wake();	/* it notes the slot in a file: slot_notes.c */
	return true;
}

void
ecm_report_former_slot(int stack_index, const char *slot_name,
					   XLogRecPtr seen_lsn)
{
	EcmWatchedSlot *former = &ecm_stack_at(stack_index)->former;

	ecm_lock(LW_EXCLUSIVE);
	if (strcmp(former->name, slot_name) != 0)
		memset(former, 0, sizeof(*former));
	set_watched(former, slot_name, slot_name[0] != '\0', seen_lsn);
	ecm_unlock();
}

void
ecm_report_init(int stack_index)
{
	char	   *stack_id;

	stack = ecm_stack_at(stack_index);
	stack_id = ecm_effective_stack_id(stack->datname);

	ecm_lock(LW_EXCLUSIVE);
	ecm_copy_text(stack->report.stack_id, sizeof(stack->report.stack_id), stack_id);
	ecm_copy_text(stack->report.publication_name, sizeof(stack->report.publication_name),
				  ecm_publication_name);
	stack->report.last_error[0] = '\0';
	stack->report.last_error_hint[0] = '\0';
	stack->report.last_error_sqlstate[0] = '\0';
	stack->report.last_error_at = 0;
	stack->progress.received_lsn = stack->progress.flushed_lsn = InvalidXLogRecPtr;
	stack->progress.acknowledged_lsn = InvalidXLogRecPtr;
	stack->progress.shape_log_bytes = -1;
	memset(stack->conns, 0, sizeof(stack->conns));
	memset(stack->creations, 0, sizeof(stack->creations));
	ecm_unlock();
}

/* ------------------------------------------------------------- settings -- */

void
ecm_report_options(void)
{
	const char *name;
	const char *source;
	char	   *value;
	int			n = 0;

	while (n < ECM_MAX_OPTIONS &&
		   ecm_setting_at(n, stack->datname, &name, &value, &source))
	{
		EcmOption  *option = &stack->options[n++];

		/*
		 * The default is made of the database's name, and stays when that
		 * changes, so the slot's name is shown as it is.
		 */
		if (strcmp(name, "electric_cm.slot_name") == 0)
			value = stack->slot.name;

		ecm_lock(LW_EXCLUSIVE);
		ecm_copy_text(option->name, sizeof(option->name), name);
		ecm_copy_text(option->setting, sizeof(option->setting), value);
		ecm_copy_text(option->source, sizeof(option->source), source);
		stack->noptions = Max(stack->noptions, n);
		ecm_unlock();
	}
}

/* ---------------------------------------------------------------- state -- */

void
ecm_report_state(const EcmState *state, const char *waiting_for,
				 int blocking_pid)
{
	EcmStatus	status = ecm_state_status(state);
	const char *step = ecm_step_name(state->step);
	bool		changed;

	changed = stack->report.status != status || strcmp(stack->report.step, step) != 0 ||
		strcmp(stack->report.waiting_for, waiting_for) != 0 ||
		shown_retry_at != state->next_retry_at ||
		stack->report.failing_at != state->backoff.first_failure ||
		stack->report.retry_count != state->backoff.retries ||
		stack->report.lock_acquired != state->lock_held ||
		stack->report.pool_up != state->pool_up ||
		stack->report.consumers_up != state->consumers_up ||
		stack->report.streaming_up != state->streaming_up;
	if (!changed)
		return;

	ecm_lock(LW_EXCLUSIVE);
	ecm_stack_set_status(stack, status, waiting_for);
	stack->report.blocking_pid = blocking_pid;
	strlcpy(stack->report.phase, ecm_state_phase(state), sizeof(stack->report.phase));
	strlcpy(stack->report.step, step, sizeof(stack->report.step));
	stack->report.retry_count = state->backoff.retries;
	stack->report.next_retry_at = ecm_shown_time(state->next_retry_at);
	shown_retry_at = state->next_retry_at;
	stack->report.failing_at = state->backoff.first_failure;
	stack->report.total_retry_us = ecm_backoff_total(&state->backoff, ecm_now());
	stack->report.lock_acquired = state->lock_held;
	stack->report.pool_up = state->pool_up;
	stack->report.consumers_up = state->consumers_up;
	stack->report.streaming_up = state->streaming_up;
	ecm_unlock();
	ConditionVariableBroadcast(&stack->cv);

	/* not as "active": we must not show up among long-running queries */
	pgstat_report_activity(STATE_IDLE,
						   psprintf("%s, step %s%s%s", ecm_status_name(status), step,
									waiting_for[0] ? ": waiting for " : "",
									waiting_for));
}

void
ecm_report_error(const EcmError *err)
{
	ecm_lock(LW_EXCLUSIVE);
	ecm_copy_text(stack->report.last_error, sizeof(stack->report.last_error), err->message);
	ecm_copy_text(stack->report.last_error_hint, sizeof(stack->report.last_error_hint), err->hint);
	strlcpy(stack->report.last_error_sqlstate, err->sqlstate,
			sizeof(stack->report.last_error_sqlstate));
	stack->report.last_error_at = ecm_wall_clock();
	ecm_unlock();
}

void
ecm_report_lookup(const EcmReplicationInfo *info)
{
	ecm_lock(LW_EXCLUSIVE);
	stack->server.version_num = info->server_version_num;
	stack->server.system_identifier = info->system_identifier;
	stack->server.timeline_id = info->timeline_id;
	stack->server.looked_up_at = info->looked_up_at;
	ecm_unlock();
}

/* ---------------------------------------------------------- connections -- */

static const char *
replication_state(const EcmConn *conn)
{
	switch (ecm_conn_state(conn))
	{
		case ECM_CONN_CONNECTING:
			return "connecting";
		case ECM_CONN_IDLE:
			return "idle";
		case ECM_CONN_BUSY:
			return "busy";
		case ECM_CONN_COPY_BOTH:
			return "streaming";
		case ECM_CONN_FAILED:
			break;
	}
	return "failed";
}

/*
 * With the lock: describes a connection; NULL: it is closed.  last_error stays as it
 * is until there is another one.
 */
static void
describe(EcmConnInfo *info, const EcmConn *conn, const char *state)
{
	info->used = true;
	strlcpy(info->state, state, sizeof(info->state));
	if (conn == NULL)
	{
		info->backend_pid = 0;
		info->connected_since = 0;
		return;
	}
	if (ecm_conn_state(conn) == ECM_CONN_FAILED)
		ecm_copy_text(info->last_error, sizeof(info->last_error),
					  ecm_conn_error(conn)->message);
	if (ecm_conn_state(conn) == ECM_CONN_CONNECTING)
		return;
	info->backend_pid = ecm_conn_backend_pid(conn);
	info->ssl = ecm_conn_ssl(conn);
	ecm_copy_text(info->address, sizeof(info->address), ecm_conn_address(conn));
	info->connected_since = ecm_conn_connected_since(conn);
}

void
ecm_report_connections(const EcmConn *replication)
{
	ecm_lock(LW_EXCLUSIVE);
	describe(&stack->conns[0], replication,
			 replication ? replication_state(replication) : "closed");
	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
	{
		EcmConn    *session = ecm_pool_session(i);
		const EcmError *err = ecm_pool_session_error(i);
		EcmConnInfo *info = &stack->conns[1 + i];

		/* places that were never used are not shown */
		if (session != NULL || err != NULL || info->used)
			describe(info, session, ecm_pool_session_state(i));

		/* a session that has failed is closed by now, so its error is apart */
		if (err != NULL)
			ecm_copy_text(info->last_error, sizeof(info->last_error),
						  err->message);
	}
	ecm_unlock();
}

/* ------------------------------------------------------------ positions -- */

void
ecm_report_positions(XLogRecPtr received, XLogRecPtr flushed,
					 XLogRecPtr acknowledged, TimestampTz last_commit_at)
{
	bool		flushed_moved = flushed > stack->progress.flushed_lsn;

	if (!flushed_moved && received <= stack->progress.received_lsn &&
		acknowledged <= stack->progress.acknowledged_lsn)
		return;
	ecm_lock(LW_EXCLUSIVE);
	stack->progress.received_lsn = Max(stack->progress.received_lsn, received);
	stack->progress.flushed_lsn = Max(stack->progress.flushed_lsn, flushed);
	stack->progress.acknowledged_lsn = Max(stack->progress.acknowledged_lsn, acknowledged);
	if (last_commit_at != 0)
		stack->progress.last_commit_at = last_commit_at;
	ecm_unlock();
	if (flushed_moved)
		ConditionVariableBroadcast(&stack->cv);
}

/* In a transaction.  arg: int64, the bytes; -1: somebody has the table locked. */
static void
measure_shape_log(void *arg)
{
	int64	   *bytes = arg;
	Oid			relation = get_relname_relid("shape_log",
											 get_namespace_oid("_electric_cm", false));

	*bytes = -1;
	if (!ConditionalLockRelationOid(relation, AccessShareLock))
		return;
	*bytes = DatumGetInt64(DirectFunctionCall1(pg_total_relation_size,
											   ObjectIdGetDatum(relation)));
}

/* The size of the shape logs on disk, with their index. */
void
ecm_report_shape_log_size(void)
{
	int64		bytes;
	EcmError	err;

	/* if the size can't be measured now, the last one is about right */
	if (!ecm_worker_try(measure_shape_log, &bytes, &err) || bytes < 0)
		return;
	ecm_lock(LW_EXCLUSIVE);
	stack->progress.shape_log_bytes = bytes;
	ecm_unlock();
}
