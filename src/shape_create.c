/*-------------------------------------------------------------------------
 *
 * shape_create.c
 *	  The manager's part in creating a shape, without holes or doubles.
 *
 * prepare	 a pool session starts the next generation of the attempt
 * publish	 ALTER PUBLICATION ... ADD TABLE, unless it is published already
 * capture	 a message in the stream: from there on the consumer logs the
 *			 table's changes, unreadable yet, each transaction for itself;
 *			 when it meets the message it throws away what was there before,
 *			 so nothing may be written until it has
 * barrier	 wait for everybody who was writing to the table: half of what
 *			 those wrote may be missing from the stream
 * snapshot	 a pool session reads the table; its commit carries the message
 *			 that makes the shape live
 *
 * The order is the point.  Writers in flight when the table was published end
 * before the snapshot is taken, so it sees them whole; everything that it does
 * not see was captured.  A failure anywhere starts the next generation, whose
 * capture message throws away what the last one has left.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/twophase.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "miscadmin.h"
#include "lib/stringinfo.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "backoff.h"
#include "compat.h"
#include "conn.h"
#include "pool.h"
#include "settings.h"
#include "shape.h"
#include "shmem.h"
#include "worker.h"

#define JOB_TIMEOUT_MS		60000
#define BARRIER_POLL_MS		20

typedef enum CreationStep
{
	CREATION_QUEUED,			/* no place among those in progress yet */
	CREATION_PREPARE,
	CREATION_PUBLISH,
	CREATION_CAPTURE,
	CREATION_CAPTURED,			/* until the consumer has met the message */
	CREATION_BARRIER,
	CREATION_SNAPSHOT,
	CREATION_RETRY				/* waits for retry_at */
} CreationStep;

typedef struct Creation
{
	char		handle[64];
	TransactionId created_by;	/* invalid: long ago */
	CreationStep step;
	int			place;			/* index in the shared array, -1: none */
	uint64		job;			/* running pool job, 0: none */
	int64		id;
	Oid			relation;
	int			generation;
	XLogRecPtr	capture_lsn;	/* of the message */
	VirtualTransactionId *writers;	/* barrier: who is waited for */
	int			nwriters;
	EcmBackoff	backoff;
	TimestampTz retry_at;
} Creation;

/* A dropped shape's log, to be deleted once no consumer writes to it. */
typedef struct Purge
{
	int64		id;
	XLogRecPtr	lsn;			/* invalid: its transaction isn't complete */
} Purge;

static int	stack_index;
static const char *prefix;		/* of our messages */
static MemoryContext creations_context;
static List *creations = NIL;
static List *purges = NIL;
static uint64 scan_job = 0;
static uint64 purge_job = 0;	/* of the scan */
static TimestampTz scan_retry_at = 0;

/* Those whose end calls for another scan. */
static VirtualTransactionId *creators = NULL;
static int	ncreators = 0;
static TimestampTz creators_poll_at;

#define SCAN_RETRY_MS		1000
#define CREATORS_POLL_MS	1000

void
ecm_creations_init(int index, const char *message_prefix)
{
	stack_index = index;
	prefix = message_prefix;
	creations_context = AllocSetContextCreate(TopMemoryContext,
											  "electric_cm creations",
											  ALLOCSET_DEFAULT_SIZES);
}

/* -------------------------------------------------------- what is shown -- */

static void
show(Creation *c, const char *waiting_for)
{
	EcmCreation *shared;

	if (c->place < 0)
		return;
	ecm_lock(LW_EXCLUSIVE);
	shared = &ecm_shared->stacks[stack_index].creations[c->place];
	shared->used = true;
	strlcpy(shared->handle, c->handle, sizeof(shared->handle));
	strlcpy(shared->waiting_for, waiting_for, sizeof(shared->waiting_for));
	ecm_unlock();
}

static void
hide(Creation *c)
{
	if (c->place < 0)
		return;
	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->stacks[stack_index].creations[c->place].used = false;
	ecm_unlock();
	c->place = -1;
}

static bool
take_place(Creation *c)
{
	bool		taken[ECM_MAX_CREATIONS] = {false};
	ListCell   *lc;

	foreach(lc, creations)
	{
		int			place = ((Creation *) lfirst(lc))->place;

		if (place >= 0)
			taken[place] = true;
	}
	for (int i = 0; i < ECM_MAX_CREATIONS; i++)
		if (!taken[i])
		{
			c->place = i;
			return true;
		}
	return false;
}

/*
 * A place for everybody who moves.  Those that wait for another attempt, maybe
 * for ever, must not keep the others from being created.
 */
static void
make_place(Creation *c)
{
	ListCell   *lc;

	if (take_place(c))
		return;
	foreach(lc, creations)
	{
		Creation   *other = lfirst(lc);

		if (other->step == CREATION_RETRY && other->place >= 0)
		{
			hide(other);
			(void) take_place(c);
			return;
		}
	}
}

/* ---------------------------------------------------------------- steps -- */

static void
end_creation(Creation *c)
{
	hide(c);
	if (c->job != 0)
		ecm_pool_cancel(c->job);
	if (c->writers)
		pfree(c->writers);
	creations = list_delete_ptr(creations, c);
	pfree(c);
}

/*
 * Is it of no use to read the table once more?  Only what is wrong with the
 * table's rows, or with the owner's rights, is for ever; whoever mends that can
 * create the shape again.
 */
static bool
is_final(const Creation *c, const EcmError *err)
{
	return c->step == CREATION_SNAPSHOT &&
		(strncmp(err->sqlstate, "22", 2) == 0 ||
		 strncmp(err->sqlstate, "42", 2) == 0 ||
		 strncmp(err->sqlstate, "54", 2) == 0);
}

static void
give_up_done(void *arg pg_attribute_unused(),
			 EcmConn *conn pg_attribute_unused(), const EcmError *err)
{
	if (err != NULL)			/* the next stream's scan comes back to it */
		ecm_event(MyDatabaseId, ecm_shared->stacks[stack_index].datname,
				  "warning", ECM_SEVERITY_WARNING, err->message,
				  "could not mark a shape as errored");
}

/* Only the consumer changes a shape's state, so it is told by the stream. */
static void
give_up(Creation *c, const EcmError *err)
{
	char	   *text = psprintf("fail " INT64_FORMAT " %d %s", c->id, c->generation,
								err->message);

	ecm_event(MyDatabaseId, ecm_shared->stacks[stack_index].datname,
			  "shape_errored", ECM_SEVERITY_WARNING, err->message,
			  "could not create shape %s", c->handle);
	(void) ecm_pool_submit(psprintf("SELECT pg_catalog.pg_logical_emit_message(true, %s, %s)",
									ecm_quote_literal(prefix), ecm_quote_literal(text)),
						   JOB_TIMEOUT_MS, give_up_done, NULL);
	end_creation(c);
}

static void
fail(Creation *c, const EcmError *err)
{
	TimestampTz now = GetCurrentTimestamp();

	if (is_final(c, err))
	{
		give_up(c, err);
		return;
	}
	c->retry_at = ecm_backoff_fail(&c->backoff, now);
	c->step = CREATION_RETRY;
	show(c, err->message);
	if (c->backoff.retries == 1)
		ecm_event(MyDatabaseId, ecm_shared->stacks[stack_index].datname,
				  "shape_creation_failed", ECM_SEVERITY_WARNING, err->hint,
				  "could not create shape %s yet: %s", c->handle, err->message);
}

static void job_done(void *arg, EcmConn *conn, const EcmError *err);

static void
submit(Creation *c, CreationStep step, const char *sql, int timeout_ms,
	   const char *waiting_for)
{
	c->step = step;
	show(c, waiting_for);
	c->job = ecm_pool_submit(sql, timeout_ms, job_done, c);
}

static void
start_prepare(Creation *c)
{
	submit(c, CREATION_PREPARE,
		   psprintf("SELECT id, relation, generation, action, publish_sql FROM"
					" _electric_cm.prepare_shape(%s, %u)",
					ecm_quote_literal(c->handle), c->created_by),
		   JOB_TIMEOUT_MS, "a pool session");
}

/*
 * In a transaction of its own, after the one that published the table.
 */
static void
start_capture(Creation *c)
{
	char	   *text = psprintf("capture " INT64_FORMAT " %d", c->id, c->generation);

	submit(c, CREATION_CAPTURE,
		   psprintf("SELECT pg_catalog.pg_logical_emit_message(true, %s, %s)",
					ecm_quote_literal(prefix), ecm_quote_literal(text)),
		   JOB_TIMEOUT_MS, "the start of capturing");
}

static void
start_snapshot(Creation *c)
{
	submit(c, CREATION_SNAPSHOT,
		   psprintf("BEGIN ISOLATION LEVEL REPEATABLE READ;"
					"SELECT _electric_cm.take_snapshot(%s, %d); COMMIT",
					ecm_quote_literal(c->handle), c->generation),
		   0, "the snapshot of the table");
}

static void
prepared(Creation *c, EcmConn *conn)
{
	const char *action = ecm_conn_value(conn, 0, 3);

	if (action == NULL)
		action = "gone";		/* not one of our servers */
	if (strcmp(action, "publish") != 0 && strcmp(action, "capture") != 0)
	{
		end_creation(c);		/* gone, or nothing left to do */
		return;
	}
	c->id = strtoi64(ecm_conn_value(conn, 0, 0), NULL, 10);
	c->relation = strtoul(ecm_conn_value(conn, 0, 1), NULL, 10);
	c->generation = atoi(ecm_conn_value(conn, 0, 2));
	if (strcmp(action, "publish") == 0)
		submit(c, CREATION_PUBLISH, ecm_conn_value(conn, 0, 4), JOB_TIMEOUT_MS,
			   "the table to be added to the publication");
	else
		start_capture(c);
}

/*
 * The process that runs a virtual transaction.  NULL if it has left it: a
 * prepared transaction keeps the number that it was prepared under, while its
 * former process goes on to others.
 */
static PGPROC *
vxid_holder(VirtualTransactionId vxid)
{
	PGPROC	   *proc = ecm_vxid_is_prepared(vxid) ? NULL : ecm_vxid_proc(vxid);

	return proc != NULL && ecm_proc_lxid(proc) == vxid.localTransactionId ?
		proc : NULL;
}

/*
 * Collects everybody who holds a lock on the relation that a writer needs.
 * "Without vacuums": a VACUUM conflicts with the lock mode, but writes nothing
 * that a shape could miss, and may take hours.  So may autovacuum's ANALYZE.
 */
static void
collect_writers(void *arg)
{
	Creation   *c = arg;
	List	   *relids = find_all_inheritors(c->relation, NoLock, NULL);
	ListCell   *lc;
	int			size = 0;

	c->nwriters = 0;
	foreach(lc, relids)
	{
		LOCKTAG		tag;
		int			n;
		VirtualTransactionId *vxids;

		SET_LOCKTAG_RELATION(tag, MyDatabaseId, lfirst_oid(lc));
		vxids = GetLockConflicts(&tag, ShareLock, &n);
		for (int i = 0; i < n; i++)
		{
			PGPROC	   *proc = vxid_holder(vxids[i]);

			if (proc != NULL &&
				(proc->statusFlags & (PROC_IN_VACUUM | PROC_IS_AUTOVACUUM)) != 0)
				continue;
			if (c->nwriters >= size)
			{
				size = size ? size * 2 : 16;
				c->writers = c->writers ?
					repalloc(c->writers, size * sizeof(VirtualTransactionId)) :
					MemoryContextAlloc(creations_context,
									   size * sizeof(VirtualTransactionId));
			}
			c->writers[c->nwriters++] = vxids[i];
		}
	}
}

static void
show_writers(Creation *c)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, "transactions that were writing to the table:");
	for (int i = 0; i < c->nwriters && i < 8; i++)
	{
		PGPROC	   *proc = vxid_holder(c->writers[i]);
		bool		have_more;
		TransactionId xid;

		if (proc != NULL)
			appendStringInfo(&text, "%s PID %d", i ? "," : "", proc->pid);
		else
		{
			xid = ecm_vxid_is_prepared(c->writers[i]) ?
				c->writers[i].localTransactionId :
				TwoPhaseGetXidByVirtualXID(c->writers[i], &have_more);
			appendStringInfo(&text, "%s prepared transaction %u", i ? "," : "", xid);
		}
	}
	if (c->nwriters > 8)
		appendStringInfo(&text, ", and %d more", c->nwriters - 8);
	show(c, text.data);
}

/*
 * Looks who of the writers is still there; asks, but never waits.
 */
static void
poll_barrier(Creation *c)
{
	int			left = 0;

	for (int i = 0; i < c->nwriters; i++)
		if (!VirtualXactLock(c->writers[i], false))
			c->writers[left++] = c->writers[i];
	if (left == 0)
	{
		c->nwriters = 0;
		start_snapshot(c);
		return;
	}
	if (left != c->nwriters || c->retry_at == 0)
	{
		c->nwriters = left;
		show_writers(c);
	}
	c->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), BARRIER_POLL_MS);
}

static void
start_barrier(Creation *c)
{
	EcmError	err;

	c->step = CREATION_BARRIER;
	c->retry_at = 0;
	if (ecm_worker_try(collect_writers, c, &err))
		poll_barrier(c);
	else
		fail(c, &err);
}

static void
job_done(void *arg, EcmConn *conn, const EcmError *err)
{
	Creation   *c = arg;

	c->job = 0;
	if (err != NULL)
	{
		fail(c, err);
		return;
	}
	switch (c->step)
	{
		case CREATION_PREPARE:
			prepared(c, conn);
			break;
		case CREATION_PUBLISH:
			start_capture(c);
			break;
		case CREATION_CAPTURE:
			c->capture_lsn =
				DatumGetLSN(DirectFunctionCall1(pg_lsn_in,
												CStringGetDatum(ecm_conn_value(conn, 0, 0))));
			c->step = CREATION_CAPTURED;
			break;
		default:
			end_creation(c);	/* the consumer does the rest */
			break;
	}
}

/* ------------------------------------------------- what comes and goes --- */

static Creation *
find_creation(const char *handle)
{
	ListCell   *lc;

	foreach(lc, creations)
		if (strcmp(((Creation *) lfirst(lc))->handle, handle) == 0)
			return lfirst(lc);
	return NULL;
}

static void
add_creation(const char *handle, TransactionId created_by)
{
	MemoryContext old;
	Creation   *c;

	if (find_creation(handle) != NULL)
		return;
	old = MemoryContextSwitchTo(creations_context);
	c = palloc0(sizeof(Creation));
	strlcpy(c->handle, handle, sizeof(c->handle));
	c->created_by = created_by;
	c->place = -1;
	ecm_backoff_init(&c->backoff, ecm_reconnect_initial_delay,
					 ecm_reconnect_max_delay);
	creations = lappend(creations, c);
	MemoryContextSwitchTo(old);
}

static void
shape_dropped(int64 id, const char *handle, const char *reason)
{
	Creation   *c = find_creation(handle);
	MemoryContext old = MemoryContextSwitchTo(creations_context);
	Purge	   *purge = palloc0(sizeof(Purge));

	if (c != NULL)
		end_creation(c);
	purge->id = id;
	purges = lappend(purges, purge);
	MemoryContextSwitchTo(old);
	ecm_event(MyDatabaseId, ecm_shared->stacks[stack_index].datname,
			  "shape_invalidated", ECM_SEVERITY_LOG, reason,
			  "shape %s is gone: %s", handle, reason);
}

void
ecm_creations_message(const char *text, TransactionId xid)
{
	char		handle[64];
	int64		id;
	int			n = 0;

	if (sscanf(text, "create %63s", handle) == 1)
		add_creation(handle, xid);
	else if (sscanf(text, "drop " INT64_FORMAT " %63s %n", &id, handle, &n) == 2 &&
			 n > 0)
		shape_dropped(id, handle, text + n);
}

static void
scan_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	scan_job = 0;
	if (err != NULL)
	{
		/* without it shapes could stay "creating" unseen: try again */
		ecm_event(MyDatabaseId, ecm_shared->stacks[stack_index].datname,
				  "warning", ECM_SEVERITY_WARNING, err->hint,
				  "could not look for shapes to create: %s", err->message);
		scan_retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													SCAN_RETRY_MS);
		return;
	}
	for (int i = 0; i < ecm_conn_nrows(conn); i++)
		add_creation(ecm_conn_value(conn, i, 0), InvalidTransactionId);
}

/*
 * Everybody who may have written to the table of shapes.
 */
static void
collect_creators(void *arg pg_attribute_unused())
{
	Oid			relid = get_relname_relid("shape", get_namespace_oid(ECM_SCHEMA, false));
	LOCKTAG		tag;
	VirtualTransactionId *vxids;
	int			n;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, relid);
	vxids = GetLockConflicts(&tag, ShareLock, &n);
	creators = MemoryContextAlloc(creations_context,
								  (n + 1) * sizeof(VirtualTransactionId));
	memcpy(creators, vxids, n * sizeof(VirtualTransactionId));
	ncreators = n;
}

static void
forget_creators(void)
{
	if (creators != NULL)
		pfree(creators);
	creators = NULL;
	ncreators = 0;
}

static void
purge_done(void *arg, EcmConn *conn pg_attribute_unused(), const EcmError *err)
{
	if (arg == &purge_job)
		purge_job = 0;
	if (err != NULL)
		ecm_event(MyDatabaseId, ecm_shared->stacks[stack_index].datname,
				  "warning", ECM_SEVERITY_WARNING, err->hint,
				  "could not delete the log of a dropped shape: %s",
				  err->message);
}

/*
 * Frees what dropped shapes have left behind, those of dropped roles included.
 * The statement finds the logs' ids by skipping from one to the next in the
 * index.
 */
static void
purge_all(void)
{
	purge_job =
		ecm_pool_submit("SELECT _electric_cm.invalidate_ownerless();"
						"WITH RECURSIVE ids AS ("
						"(SELECT shape FROM _electric_cm.shape_log ORDER BY shape LIMIT 1)"
						" UNION ALL SELECT (SELECT l.shape FROM _electric_cm.shape_log l"
						" WHERE l.shape > ids.shape ORDER BY l.shape LIMIT 1)"
						" FROM ids WHERE ids.shape IS NOT NULL)"
						" SELECT _electric_cm.purge_shape(shape) FROM ids"
						" WHERE shape IS NOT NULL AND NOT EXISTS"
						" (SELECT FROM _electric_cm.shape s WHERE s.id = ids.shape);"
						"DELETE FROM _electric_cm.shape_state t WHERE NOT EXISTS"
						" (SELECT FROM _electric_cm.shape s WHERE s.id = t.shape)",
						0, purge_done, &purge_job);
}

static void
submit_scan(void)
{
	scan_retry_at = 0;
	scan_job =
		ecm_pool_submit("SELECT s.handle FROM _electric_cm.shape s"
						" LEFT JOIN _electric_cm.shape_state t ON t.shape = s.id"
						" WHERE coalesce(t.state, 'capturing') = 'capturing'"
						" ORDER BY s.id", 0, scan_done, NULL);
}

/*
 * A scan does not see the shape of somebody who has committed, but waits for a
 * synchronous standby.  If the stream that is gone had that commit already, its
 * message does not come again.  So there is a second scan, once all who may be
 * in that state are done; who comes after them has messages in this stream.
 */
void
ecm_creations_scan(void)
{
	EcmError	err;

	if (scan_job != 0)
		return;
	forget_creators();
	if (!ecm_worker_try(collect_creators, NULL, &err))
	{
		scan_retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													SCAN_RETRY_MS);
		return;
	}
	creators_poll_at = 0;
	submit_scan();

	/* large logs take their time to delete: not in the same session's queue */
	if (purge_job == 0)
		purge_all();
}

/* Looks who of them is still there; asks, but never waits. */
static void
poll_creators(TimestampTz now)
{
	int			left = 0;

	if (ncreators == 0 || now < creators_poll_at || scan_job != 0)
		return;
	for (int i = 0; i < ncreators; i++)
		if (!VirtualXactLock(creators[i], false))
			creators[left++] = creators[i];
	ncreators = left;
	creators_poll_at = TimestampTzPlusMilliseconds(now, CREATORS_POLL_MS);
	if (left == 0)
		submit_scan();
}

static void
poll_purges(XLogRecPtr received_lsn, XLogRecPtr applied_lsn)
{
	ListCell   *lc;

	foreach(lc, purges)
	{
		Purge	   *purge = lfirst(lc);

		if (XLogRecPtrIsInvalid(purge->lsn))
			purge->lsn = received_lsn;
		if (XLogRecPtrIsInvalid(purge->lsn) || applied_lsn < purge->lsn)
			continue;
		(void) ecm_pool_submit(psprintf("SELECT _electric_cm.purge_shape(" INT64_FORMAT ")",
										purge->id), 0, purge_done, NULL);
		purges = foreach_delete_current(purges, lc);
		pfree(purge);
	}
}

void
ecm_creations_poll(TimestampTz now, XLogRecPtr received_lsn,
				   XLogRecPtr applied_lsn)
{
	List	   *copy = list_copy(creations);	/* steps may end some */
	ListCell   *lc;

	foreach(lc, copy)
	{
		Creation   *c = lfirst(lc);

		switch (c->step)
		{
			case CREATION_RETRY:
				if (now < c->retry_at)
					break;
				c->step = CREATION_QUEUED;
				/* FALLTHROUGH */
			case CREATION_QUEUED:
				if (c->place < 0)
					make_place(c);
				if (c->place >= 0)
					start_prepare(c);
				break;
			case CREATION_CAPTURED:
				if (applied_lsn > c->capture_lsn)
					start_barrier(c);
				break;
			case CREATION_BARRIER:
				if (now >= c->retry_at)
					poll_barrier(c);
				break;
			default:
				break;
		}
	}
	list_free(copy);
	if (scan_retry_at != 0 && now >= scan_retry_at)
		ecm_creations_scan();
	poll_creators(now);
	poll_purges(received_lsn, applied_lsn);
}

TimestampTz
ecm_creations_deadline(void)
{
	TimestampTz deadline = scan_retry_at;
	ListCell   *lc;

	if (ncreators > 0 && scan_job == 0 &&
		(deadline == 0 || creators_poll_at < deadline))
		deadline = Max(creators_poll_at, 1);
	foreach(lc, creations)
	{
		Creation   *c = lfirst(lc);

		if ((c->step == CREATION_RETRY || c->step == CREATION_BARRIER) &&
			(deadline == 0 || c->retry_at < deadline))
			deadline = c->retry_at;
	}
	return deadline;
}

/*
 * Back to the start.  The next scan would find it, too, unless its creator has
 * committed in the stream only, and waits for a synchronous standby.
 */
static void
requeue(Creation *c)
{
	hide(c);
	if (c->job != 0)
		ecm_pool_cancel(c->job);
	c->job = 0;
	c->nwriters = 0;
	c->step = CREATION_QUEUED;
}

void
ecm_creations_forget(void)
{
	List	   *copy = list_copy(creations);
	ListCell   *lc;

	foreach(lc, copy)
	{
		Creation   *c = lfirst(lc);

		if (TransactionIdIsValid(c->created_by))
			requeue(c);
		else
			end_creation(c);
	}
	list_free(copy);
	list_free_deep(purges);
	purges = NIL;
	if (scan_job != 0)
		ecm_pool_cancel(scan_job);
	if (purge_job != 0)
		ecm_pool_cancel(purge_job);
	scan_job = purge_job = 0;
	scan_retry_at = 0;
	forget_creators();
}
