/*-------------------------------------------------------------------------
 *
 * shape_retention.c
 *	  The manager's part in keeping shape logs from growing for ever.
 *
 * A consumer puts the shapes whose logs have grown by a step (ecm_retention_step())
 * into its slot in shared memory.  Every electric_cm.wal_report_interval the manager
 * collects them as candidates.  A pool session looks at these, one at a time, and folds
 * those that are beyond electric_cm.shape_log_retention (fold.c).
 *
 * Logs that have grown before, under an earlier consumer or another setting, are not
 * named.  So at the start, and after each change of the setting, one scan of all
 * shapes looks for candidates.  It also finds those whose fold was interrupted, which
 * goes on, or is given up if logs are not folded any more.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/errors.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "connection/conn.h"
#include "connection/pool.h"
#include "manager/shape_retention.h"
#include "shape/shape_log.h"

/* A scan brings so many candidates at a time. */
#define SCAN_SHAPES			1000

/* After an error nothing is done for so long. */
#define RETRY_MS			30000

typedef struct Retention
{
	int			stack_index;
	uint64		job;			/* a scan, or a fold; 0: none runs */
	List	   *candidates;		/* of int64 *, ids of shapes; a fold that runs
								 * is of the first one */

	/* the scan of all shapes */
	int			scanned_for;	/* value of the setting that it is done for */
	int			scanning_for;	/* value that it is under way for */
	int64		scanned_to;		/* all shapes up to this id have been looked
								 * at */

	/* the names that consumers put down */
	EcmTime		look_at;		/* when to collect them next; 0: not set yet */
	bool		paused;			/* after an error: nothing is done before
								 * look_at */
	EcmError	last_error;		/* the same one again is no event */
} Retention;

static Retention retention =
{
	.scanned_for = -1
};

void
ecm_retention_init(int index)
{
	retention.stack_index = index;
}

static void
add_last(int64 shape)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	int64	   *id = palloc(sizeof(int64));

	*id = shape;
	retention.candidates = lappend(retention.candidates, id);
	MemoryContextSwitchTo(old);
}

static void
add_candidate(int64 shape)
{
	ListCell   *lc;

	foreach(lc, retention.candidates)
	{
		if (*(int64 *) lfirst(lc) == shape)
			return;
	}
	add_last(shape);
}

static void
forget_first(void)
{
	pfree(linitial(retention.candidates));
	retention.candidates = list_delete_first(retention.candidates);
}

/* Takes the shapes that consumers have put down, out of shared memory. */
static void
collect_grown(void)
{
	EcmStack   *stack = ecm_stack_at(retention.stack_index);
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

/* Reports an error, and pauses. */
static void
report(const EcmError *err, const char *what)
{
	if (strcmp(err->sqlstate, retention.last_error.sqlstate) != 0 ||
		strcmp(err->message, retention.last_error.message) != 0)
		ecm_event(ecm_stack_at(retention.stack_index), ECM_EVENT_WARNING,
				  err->hint, "%s: %s",
				  what, ecm_error_for_public(err->sqlstate, err->message));
	retention.last_error = *err;
	retention.look_at = ecm_later(ecm_now(), RETRY_MS);
	retention.paused = true;
}

/*
 * Job fold_shape() has answered: whether there is more to do for the same shape, and a
 * text for an event.  A shape that is at fault itself is given up, until its log has
 * grown again; one that is not is tried again after the other candidates.
 */
static void
fold_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	const char *value;

	retention.job = 0;
	if (err != NULL)
	{
		EcmFault	fault = ecm_error_fault(err->sqlstate, err->message, ECM_WORK_FOLD);

		/*
		 * A session that folds is left behind when the stream is lost, and
		 * may take a while to notice.  Until the next look it should have.
		 */
		if (fault == ECM_FAULT_TOO_EARLY)
		{
			retention.paused = true;
			return;
		}
		if (fault != ECM_FAULT_IT_IS_GONE)
			report(err, "could not fold a shape's log");
		if (fault == ECM_FAULT_OF_NONE)
			add_last(*(int64 *) linitial(retention.candidates));	/* once more, then */
		forget_first();
		return;
	}
	value = ecm_conn_value(conn, 0, 1);
	if (value != NULL)
		ecm_event(ecm_stack_at(retention.stack_index),
				  ECM_EVENT_SHAPE_LOG_FOLDED, NULL, "%s", value);
	value = ecm_conn_value(conn, 0, 0);
	if (value == NULL || strcmp(value, "t") != 0)
		forget_first();
}

static void
scan_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	retention.job = 0;
	if (err != NULL)
	{
		report(err, "could not look for shape logs to fold");
		return;
	}
	for (int i = 0; i < ecm_conn_nrows(conn); i++)
	{
		retention.scanned_to = strtoi64(ecm_conn_value(conn, i, 0), NULL, 10);
		add_candidate(retention.scanned_to);
	}
	if (ecm_conn_nrows(conn) < SCAN_SHAPES)
	{
		retention.scanned_for = retention.scanning_for;
		retention.scanned_to = 0;
	}
}

/*
 * Looks for logs that may be too long, or have chunks before their base: those were
 * folded, and a job was interrupted before it could delete them; and for those that
 * were being folded in steps.
 */
static void
submit_scan(void)
{
	int64		smallest = ecm_shape_log_retention > 0 ?
	ecm_shape_log_retention * INT64CONST(1024) : ECM_RETENTION_AUTO_STEP;
	char	   *others = "";

	if (retention.scanning_for != ecm_shape_log_retention)
		retention.scanned_to = 0;
	retention.scanning_for = ecm_shape_log_retention;
	if (ecm_shape_log_retention >= 0)
		others = psprintf(" OR (_electric_cm.shape_log_stats(s.id, NULL)).log_bytes > " INT64_FORMAT
						  " OR EXISTS (SELECT FROM _electric_cm.shape_base b,"
						  " _electric_cm.shape_log l"
						  " WHERE b.shape = s.id AND l.shape = s.id"
						  " AND (l.first_lsn, l.first_op) <= (b.lsn, b.op))", smallest);
	retention.job = ecm_pool_submit(psprintf("SELECT s.id FROM _electric_cm.shape s"
											 " WHERE s.id > " INT64_FORMAT " AND"
											 " (EXISTS (SELECT FROM _electric_cm.shape_fold f WHERE f.shape = s.id)%s)"
											 " ORDER BY s.id LIMIT %d",
											 retention.scanned_to, others, SCAN_SHAPES),
									0, scan_done, NULL);
}

static void
submit_fold(void)
{
	retention.job = ecm_pool_submit(psprintf("CALL _electric_cm.fold_shape(" INT64_FORMAT ", " INT64_FORMAT
											 ", NULL, NULL)",
											 *(int64 *) linitial(retention.candidates),
											 ecm_shape_log_retention * INT64CONST(1024)),
									0, fold_done, NULL);
}

void
ecm_retention_poll(EcmTime now)
{
	if (retention.job != 0)
		return;
	if (retention.look_at == 0)
	{
		/* a stack that starts has better things to do first */
		retention.look_at = ecm_later(now, ecm_wal_report_interval);
		return;
	}
	if (now >= retention.look_at)
	{
		retention.look_at = ecm_later(now, ecm_wal_report_interval);
		retention.paused = false;
		collect_grown();
	}
	if (retention.paused)
		return;
	if (retention.candidates != NIL)
		submit_fold();
	else if (retention.scanned_for != ecm_shape_log_retention)
		submit_scan();
}

void
ecm_retention_stream_lost(void)
{
	if (retention.job != 0)
		ecm_pool_cancel(retention.job);
	retention.job = 0;
}
