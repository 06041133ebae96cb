/*-------------------------------------------------------------------------
 *
 * shape_retention.c
 *	  The manager's part in keeping shape logs from growing for ever.
 *
 * Consumers name the shapes whose logs have grown a good deal; every
 * electric_cm.wal_report_interval a pool session looks at these, one at a time,
 * and folds those that are beyond electric_cm.shape_log_retention
 * (fold.c).  What earlier consumers may have had to say, or would have
 * said with another setting, is made up for by one look at all shapes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "connection/conn.h"
#include "connection/pool.h"
#include "manager/shape_retention.h"
#include "shape/shape_log.h"

/* Candidates that are looked for at a time. */
#define SCAN_SHAPES			1000

/* What can't be folded now is tried again after that. */
#define RETRY_MS			30000

static int	stack_index;
static List *candidates = NIL;	/* pointers to ids; the first one is at work */
static int	scanned_for = -1;	/* retention for which all shapes have been
								 * looked at */
static int	scanning_for;
static int64 scanned_to = 0;	/* shape id */
static uint64 job = 0;
static EcmTime look_at = 0;		/* at what consumers have to say */
static bool paused = false;		/* until then, because of an error */

void
ecm_retention_init(int index)
{
	stack_index = index;
}

static void
add_last(int64 shape)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	int64	   *id = palloc(sizeof(int64));

	*id = shape;
	candidates = lappend(candidates, id);
	MemoryContextSwitchTo(old);
}

static void
add_candidate(int64 shape)
{
	ListCell   *lc;

	foreach(lc, candidates)
		if (*(int64 *) lfirst(lc) == shape)
		return;
	add_last(shape);
}

static void
forget_first(void)
{
	pfree(linitial(candidates));
	candidates = list_delete_first(candidates);
}

/* Takes the names that consumers have put down. */
static void
collect_grown(void)
{
	EcmStack   *stack = ecm_stack_at(stack_index);
	int64		grown[ECM_MAX_SHAPE_WORKERS * ECM_MAX_GROWN];
	int			n = 0;

	ecm_lock(LW_EXCLUSIVE);
	for (int i = 0; i < stack->nconsumers; i++)
	{
		EcmConsumerSlot *slot = &stack->consumers[i];

		memcpy(&grown[n], slot->grown, slot->ngrown * sizeof(int64));
		n += slot->ngrown;
		slot->ngrown = 0;
	}
	ecm_unlock();

	for (int i = 0; i < n; i++)
		add_candidate(grown[i]);
}

static void
report(const EcmError *err, const char *what)
{
	static EcmError last;

	if (strcmp(err->sqlstate, last.sqlstate) != 0 ||
		strcmp(err->message, last.message) != 0)
		ecm_event(ecm_stack_at(stack_index), ECM_EVENT_WARNING, err->hint, "%s: %s",
				  what, ecm_error_for_public(err->sqlstate, err->message));
	last = *err;
	look_at = ecm_later(ecm_now(), RETRY_MS);
	paused = true;
}

static void
fold_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	const char *value;

	job = 0;
	if (err != NULL)
	{
		EcmFault	fault = ecm_error_fault(err->sqlstate, err->message, ECM_WORK_FOLD);

		if (fault != ECM_FAULT_IT_IS_GONE)
			report(err, "could not fold a shape's log");
		if (fault == ECM_FAULT_OF_NONE)
			add_last(*(int64 *) linitial(candidates));	/* once more, then */
		forget_first();
		return;
	}
	value = ecm_conn_value(conn, 0, 1);
	if (value != NULL)
		ecm_event(ecm_stack_at(stack_index), ECM_EVENT_SHAPE_LOG_FOLDED, NULL, "%s", value);
	value = ecm_conn_value(conn, 0, 0);
	if (value == NULL || strcmp(value, "t") != 0)
		forget_first();
}

static void
scan_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	job = 0;
	if (err != NULL)
	{
		report(err, "could not look for shape logs to fold");
		return;
	}
	for (int i = 0; i < ecm_conn_nrows(conn); i++)
	{
		scanned_to = strtoi64(ecm_conn_value(conn, i, 0), NULL, 10);
		add_candidate(scanned_to);
	}
	if (ecm_conn_nrows(conn) < SCAN_SHAPES)
	{
		scanned_for = scanning_for;
		scanned_to = 0;
	}
}

/*
 * All logs that may be too long, or have something left from before that was
 * not deleted yet.
 */
static void
submit_scan(void)
{
	int64		smallest = ecm_shape_log_retention > 0 ?
	ecm_shape_log_retention * INT64CONST(1024) : ECM_RETENTION_AUTO_STEP;

	if (scanning_for != ecm_shape_log_retention)
		scanned_to = 0;
	scanning_for = ecm_shape_log_retention;
	job = ecm_pool_submit(psprintf("SELECT s.id FROM _electric_cm.shape s"
								   " WHERE s.id > " INT64_FORMAT " AND"
								   " ((_electric_cm.shape_log_stats(s.id)).log_bytes > " INT64_FORMAT
								   " OR EXISTS (SELECT FROM _electric_cm.shape_base b,"
								   " _electric_cm.shape_log l"
								   " WHERE b.shape = s.id AND l.shape = s.id"
								   " AND (l.first_lsn, l.first_op) <= (b.lsn, b.op)))"
								   " ORDER BY s.id LIMIT %d",
								   scanned_to, smallest, SCAN_SHAPES),
						  0, scan_done, NULL);
}

static void
submit_fold(void)
{
	job = ecm_pool_submit(psprintf("SELECT more, report FROM"
								   " _electric_cm.fold_shape(" INT64_FORMAT ", " INT64_FORMAT ")",
								   *(int64 *) linitial(candidates),
								   ecm_shape_log_retention * INT64CONST(1024)),
						  0, fold_done, NULL);
}

void
ecm_retention_poll(EcmTime now)
{
	if (job != 0)
		return;
	if (ecm_shape_log_retention < 0)
	{
		scanned_for = ecm_shape_log_retention;
		scanned_to = 0;
		return;
	}
	if (look_at == 0)
	{
		/* a stack that starts has better things to do first */
		look_at = ecm_later(now, ecm_wal_report_interval);
		return;
	}
	if (now >= look_at)
	{
		look_at = ecm_later(now, ecm_wal_report_interval);
		paused = false;
		collect_grown();
	}
	if (paused)
		return;
	if (candidates != NIL)
		submit_fold();
	else if (scanned_for != ecm_shape_log_retention)
		submit_scan();
}

void
ecm_retention_stream_lost(void)
{
	if (job != 0)
		ecm_pool_cancel(job);
	job = 0;
}
