/*-------------------------------------------------------------------------
 *
 * shape_purge.c
 *	  The manager's part in freeing what dropped shapes leave behind.
 *
 * A dropped shape's log can be deleted once no consumer writes to it, that is,
 * once all have applied the transaction that dropped it.  There may be many such
 * logs at once, and large ones.  They are deleted in slices: small transactions of a
 * pool session with pauses in between, so that neither the slot nor vacuum has to
 * wait for a long one.  Readers don't care: for them a shape is gone when its row is.
 *
 * The first change of a page after a checkpoint puts the whole page into the WAL, so
 * deletion may write as much WAL as the logs were large.  A slot that was dropped
 * since it retained too much leaves all its shapes to be deleted, and its successor
 * must not go the same way.  So near a WAL limit deletion slows down, but never stops.
 *
 * Three more things are done here, as they have the same occasion: shapes whose rows
 * were locked when they ended are deleted; tables that have no shapes any more leave
 * the publication; and ends of shapes are reported as events.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/procarray.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/backoff.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/text.h"
#include "connection/pool.h"
#include "manager/consumer_queues.h"
#include "manager/shape_purge.h"
#include "manager/shape_requests.h"
#include "slot/retained_wal.h"

/*
 * A table leaves the publication so long after its last shape: often the next shape
 * of it is created soon.
 */
#define LEAVE_DELAY_MS	5000
#define JOB_TIMEOUT_MS	60000

/* How soon to try again to delete shapes whose rows are locked: at first, at last. */
#define GONE_MIN_MS		1000
#define GONE_MAX_MS		60000

/* The most that one transaction deletes. */
#define SLICE_SHAPES	1000
#define SLICE_CHUNKS	2000
#define SLICE_WAL		(INT64CONST(16) * 1024 * 1024)
/* The pause before the next one. */
#define SLICE_PAUSE_MS	50

/* A slice that writes less WAL is not worth a transaction ... */
#define SMALL_WAL		(INT64CONST(512) * 1024)
/* ... so until that is allowed, we look this often, ... */
#define LOOK_PAUSE_MS	500
/* ... and after so long go on regardless. */
#define PATIENCE_MS		5000

/* The pause if none of them may be deleted yet. */
#define POSTPONED_MS	1000

/* A log to be deleted. */
typedef struct Purge
{
	int64		id;				/* of the shape */
	bool		complete;		/* the transaction that has dropped it has
								 * come in as a whole */
	XLogRecPtr	lsn;			/* if so, its end: all consumers must have
								 * applied it; else the end of the transaction
								 * before */
} Purge;

typedef struct Purges
{
	int			stack_index;
	EcmBackoff	backoff;		/* of jobs that fail */
	EcmTime		next_at;		/* no log is deleted before; 0: at once */
	EcmTime		held_since;		/* since when deletion waits, so that no WAL
								 * limit is reached; 0: it does not */

	/* logs to be deleted, in the order in which their shapes were dropped */
	struct
	{
		Purge	   *list;
		int			first;		/* index; those before it are done */
		int			n;			/* entries, the done ones included */
		int			size;		/* allocated */
		uint64		job;		/* 0: none runs */
	}			logs;

	/* the look for logs, states and so on that belong to no shape */
	struct
	{
		bool		wanted;		/* there may be some still */
		uint64		job;		/* 0: none runs */
	}			scan;

	/* tables without shapes, which are to leave the publication */
	struct
	{
		EcmTime		at;			/* when to look; 0: there are none */
		uint64		job;		/* 0: none runs */
		TransactionId *leavers; /* transactions that have dropped shapes, and
								 * may not be visible yet */
		int			n;
		int			size;
	}			leave;

	/* shapes that have ended while their rows were locked ("lost") */
	struct
	{
		EcmTime		at;			/* when to try to delete them; 0: there are
								 * none */
		int			delay_ms;	/* from one attempt to the next; grows */
		uint64		job;		/* 0: none runs */

		/*
		 * Consumers mark them as gone where the message "lost" commits.  The
		 * last such transaction comes after the one that ends here; or, once
		 * it has come in (marked_met), it ends here.  Invalid: all are
		 * marked.
		 */
		XLogRecPtr	marked_after;
		bool		marked_met;
	}			gone;

	/* the event to come, once the transaction is complete */
	struct
	{
		int			n;			/* of shapes; 0: there is none to come */
		XLogRecPtr	after;		/* the transaction before theirs ends here */
		char		handle[40]; /* the first one's */
		char		reason[ECM_TEXT_LEN];
	}			told;
} Purges;

static Purges state =
{
	.gone.delay_ms = GONE_MIN_MS
};

void
ecm_purges_init(int index)
{
	state.stack_index = index;
	ecm_backoff_init(&state.backoff, ecm_reconnect_initial_delay,
					 ecm_reconnect_max_delay);
}

static const char *
datname(void)
{
	return ecm_stack_at(state.stack_index)->datname;
}

/* --------------------------------------------------------------- events -- */

/* Records the event that was put together, if any. */
static void
report_gone(void)
{
	if (state.told.n == 1)
		ecm_event_in(MyDatabaseId, datname(), ECM_EVENT_SHAPE_INVALIDATED,
					 state.told.reason, "shape %s is gone: %s", state.told.handle, state.told.reason);
	else if (state.told.n > 1)
		ecm_event_in(MyDatabaseId, datname(), ECM_EVENT_SHAPE_INVALIDATED,
					 state.told.reason, "%d shapes are gone, %s and others: %s",
					 state.told.n, state.told.handle, state.told.reason);
	state.told.n = 0;
}

void
ecm_purges_report(const char *handle, int n, const char *reason, XLogRecPtr after)
{
	if (state.told.n > 0 && (state.told.after != after || strcmp(state.told.reason, reason) != 0))
		report_gone();
	if (state.told.n == 0)
	{
		strlcpy(state.told.handle, handle, sizeof(state.told.handle));
		ecm_copy_text(state.told.reason, sizeof(state.told.reason), reason);
	}
	state.told.after = after;
	state.told.n += n;
}

/* ------------------------------------------------------------ the queue -- */

static void
add_purge(int64 id, XLogRecPtr lsn, bool complete)
{
	if (state.logs.n == state.logs.size)
	{
		state.logs.size = state.logs.size ? state.logs.size * 2 : 64;
		state.logs.list = state.logs.list ?
			repalloc_huge(state.logs.list, sizeof(Purge) * state.logs.size) :
			MemoryContextAllocHuge(TopMemoryContext, sizeof(Purge) * state.logs.size);
	}
	state.logs.list[state.logs.n].id = id;
	state.logs.list[state.logs.n].lsn = lsn;
	state.logs.list[state.logs.n++].complete = complete;
}

void
ecm_purges_add(int64 id, XLogRecPtr after)
{
	add_purge(id, after, false);
}

static void
forget_purges(void)
{
	if (state.logs.list != NULL)
		pfree(state.logs.list);
	state.logs.list = NULL;
	state.logs.first = state.logs.n = state.logs.size = 0;
}

/*
 * Marks those as complete whose transactions have come in as a whole by now.  They are
 * in the order of the stream, so those before a complete one are complete, too.
 */
static void
note_complete(XLogRecPtr received_lsn)
{
	for (int i = state.logs.n - 1; i >= state.logs.first; i--)
	{
		if (state.logs.list[i].complete && XLogRecPtrIsInvalid(state.logs.list[i].lsn))
			continue;			/* not from the stream */
		if (state.logs.list[i].complete)
			break;
		if (received_lsn <= state.logs.list[i].lsn)
			continue;
		state.logs.list[i].complete = true;
		state.logs.list[i].lsn = received_lsn;
	}
}

/* ----------------------------------------------------------------- jobs -- */

/* what: what the job could not do, for an event, at the first failure in a row. */
static void
job_failed(const char *what, const EcmError *err)
{
	state.next_at = ecm_backoff_fail(&state.backoff, ecm_now());
	if (state.backoff.retries == 1)
		ecm_event_in(MyDatabaseId, datname(), ECM_EVENT_WARNING,
					 err->hint, "could not %s yet: %s", what,
					 ecm_error_for_public(err->sqlstate, err->message));
}

static void
job_succeeded(void)
{
	EcmTime		now = ecm_now();

	ecm_backoff_reset(&state.backoff, now);
	state.next_at = ecm_later(now, SLICE_PAUSE_MS);
}

/*
 * Adds shapes anew that purge_shapes() has left alone, as it could still see their
 * rows: their commit waits for a synchronous standby, say.  ids: an array constant.
 * Returns how many they are.
 */
static int
add_postponed(const char *ids)
{
	char	   *p = unconstify(char *, ids);
	int			n = 0;

	while ((*p == '{' || *p == ',') && p[1] != '}')
	{
		add_purge(strtoi64(p + 1, &p, 10), InvalidXLogRecPtr, true);
		n++;
	}
	return n;
}

/* Job purge_shapes() has answered: how many shapes it is done with, and which not. */
static void
purge_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	const char *done;
	const char *postponed;
	bool		all_postponed;

	state.logs.job = 0;
	if (err != NULL)
	{
		job_failed("delete the logs of dropped shapes", err);
		return;
	}
	done = ecm_conn_value(conn, 0, 0);
	state.logs.first += done ? atoi(done) : 0;
	postponed = ecm_conn_value(conn, 0, 1);
	all_postponed = add_postponed(postponed ? postponed : "{}") == (done ? atoi(done) : 0);
	if (state.logs.first >= state.logs.n)
		forget_purges();
	job_succeeded();
	if (all_postponed)
		state.next_at = ecm_later(ecm_now(), POSTPONED_MS);
}

static void
scan_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	state.scan.job = 0;
	if (err != NULL)
	{
		job_failed("look for the logs of dropped shapes", err);
		return;
	}

	/*
	 * Without a position to wait for: a consumer that has not come to their
	 * end yet drops what it has of them when it does.
	 */
	for (int i = 0; i < ecm_conn_nrows(conn); i++)
		add_purge(strtoi64(ecm_conn_value(conn, i, 0), NULL, 10),
				  InvalidXLogRecPtr, true);
	state.scan.wanted = ecm_conn_nrows(conn) == SLICE_SHAPES;
	job_succeeded();
}

/* How many bytes of WAL the next slice may write; 0: it has to wait. */
static int64
wal_allowed(EcmTime now)
{
	int64		allowance = ecm_retained_wal_allowance(state.stack_index, SMALL_WAL);

	if (allowance < SMALL_WAL)
	{
		if (state.held_since == 0)
			state.held_since = now;
		if (!ecm_has_passed(state.held_since, now, PATIENCE_MS))
			return 0;
		allowance = SMALL_WAL;
	}
	state.held_since = 0;
	return Min(allowance, SLICE_WAL);
}

/*
 * Starts to delete the next slice of logs, as far as all consumers have applied the
 * transactions that dropped their shapes.
 */
static void
start_purge(EcmTime now, XLogRecPtr applied_lsn)
{
	StringInfoData sql;
	int64		max_wal;
	int			n = 0;

	if (!state.logs.list[state.logs.first].complete)
		return;
	if (applied_lsn < state.logs.list[state.logs.first].lsn)
	{
		ecm_queues_expect_progress();
		return;
	}
	max_wal = wal_allowed(now);
	if (max_wal == 0)
	{
		state.next_at = ecm_later(now, LOOK_PAUSE_MS);
		return;
	}

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT done, postponed FROM _electric_cm.purge_shapes(");
	for (int i = state.logs.first; i < state.logs.n && n < SLICE_SHAPES; i++)
	{
		if (!state.logs.list[i].complete || applied_lsn < state.logs.list[i].lsn)
			break;
		appendStringInfo(&sql, "%s" INT64_FORMAT, n++ > 0 ? "," : "'{", state.logs.list[i].id);
	}
	appendStringInfo(&sql, "}', %d, " INT64_FORMAT ")", SLICE_CHUNKS, max_wal);
	state.logs.job = ecm_pool_submit(sql.data, 0, purge_done, NULL);
	pfree(sql.data);
}

/*
 * Finds logs and states without a shape, after the shapes of roles that have been
 * dropped elsewhere have been deleted.  The statement finds the logs' ids by skipping
 * from one to the next in the index.
 */
static void
start_scan(void)
{
	state.scan.job =
		ecm_pool_submit(psprintf("SELECT _electric_cm.invalidate_ownerless();"
								 "WITH RECURSIVE ids AS ("
								 "(SELECT shape FROM _electric_cm.shape_log ORDER BY shape LIMIT 1)"
								 " UNION ALL SELECT (SELECT l.shape FROM _electric_cm.shape_log l"
								 " WHERE l.shape > ids.shape ORDER BY l.shape LIMIT 1)"
								 " FROM ids WHERE ids.shape IS NOT NULL)"
								 " SELECT shape FROM ids WHERE shape IS NOT NULL AND NOT EXISTS"
								 " (SELECT FROM _electric_cm.shape s WHERE s.id = ids.shape)"
								 " UNION SELECT shape FROM _electric_cm.shape_state t WHERE NOT EXISTS"
								 " (SELECT FROM _electric_cm.shape s WHERE s.id = t.shape)"
								 " UNION SELECT shape FROM _electric_cm.shape_base b WHERE NOT EXISTS"
								 " (SELECT FROM _electric_cm.shape s WHERE s.id = b.shape)"
								 " UNION SELECT shape FROM _electric_cm.shape_fold f WHERE NOT EXISTS"
								 " (SELECT FROM _electric_cm.shape s WHERE s.id = f.shape)"
								 " UNION SELECT shape FROM _electric_cm.shape_gap g WHERE NOT EXISTS"
								 " (SELECT FROM _electric_cm.shape s WHERE s.id = g.shape)"
								 " UNION SELECT shape FROM _electric_cm.shape_worker w WHERE NOT EXISTS"
								 " (SELECT FROM _electric_cm.shape s WHERE s.id = w.shape)"
								 " LIMIT %d", SLICE_SHAPES),
						0, scan_done, NULL);
}

/* --------------------------------------------- tables without shapes --- */

void
ecm_purges_leaver(TransactionId xid)
{
	if (state.leave.at == 0)
		state.leave.at = ecm_later(ecm_now(), LEAVE_DELAY_MS);
	if (state.leave.n > 0 && state.leave.leavers[state.leave.n - 1] == xid)
		return;
	if (state.leave.n == state.leave.size)
	{
		state.leave.size = state.leave.size ? state.leave.size * 2 : 16;
		state.leave.leavers = state.leave.leavers ?
			repalloc(state.leave.leavers, sizeof(TransactionId) * state.leave.size) :
			MemoryContextAlloc(TopMemoryContext, sizeof(TransactionId) * state.leave.size);
	}
	state.leave.leavers[state.leave.n++] = xid;
}

static void
leave_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	const char *again = err == NULL ? ecm_conn_value(conn, 0, 0) : "t";

	state.leave.job = 0;
	if (err != NULL)
		job_failed("take tables without shapes out of the publication", err);
	if (state.leave.at == 0 && again != NULL && again[0] == 't')
		state.leave.at = ecm_later(ecm_now(), LEAVE_DELAY_MS);
}

/*
 * Has tables without shapes taken out of the publication, when all transactions that
 * have dropped shapes are visible.  While one waits for a synchronous standby, its
 * shapes seem to be there still, and their tables would be passed over for good.
 */
static void
start_leave(EcmTime now)
{
	int			left = 0;

	for (int i = 0; i < state.leave.n; i++)
		if (TransactionIdIsInProgress(state.leave.leavers[i]))
			state.leave.leavers[left++] = state.leave.leavers[i];
	state.leave.n = left;
	state.leave.at = left == 0 ? 0 : ecm_later(now, LEAVE_DELAY_MS);
	if (left == 0)
		state.leave.job = ecm_pool_submit("SELECT _electric_cm.unpublish_tables()",
										  JOB_TIMEOUT_MS, leave_done, NULL);
}

/* ------------------------------------ shapes that are gone, but locked --- */

void
ecm_purges_gone(XLogRecPtr after)
{
	state.gone.marked_after = after;
	state.gone.marked_met = false;
	state.gone.delay_ms = GONE_MIN_MS;
	state.gone.at = ecm_later(ecm_now(), state.gone.delay_ms);
}

/*
 * Have all consumers come to the message "lost" of these shapes?  Before, nothing in the
 * catalog says that they are gone.
 */
static bool
gone_are_marked(XLogRecPtr received_lsn, XLogRecPtr applied_lsn)
{
	if (XLogRecPtrIsInvalid(state.gone.marked_after))
		return true;
	if (!state.gone.marked_met && received_lsn > state.gone.marked_after)
	{
		state.gone.marked_met = true;
		state.gone.marked_after = received_lsn;
	}
	return state.gone.marked_met && applied_lsn >= state.gone.marked_after;
}

static void
gone_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	const char *others = err == NULL ? ecm_conn_value(conn, 0, 0) : "t";

	state.gone.job = 0;
	if (err != NULL)
		job_failed("delete shapes that are gone", err);
	if (state.gone.at != 0 || others == NULL || others[0] != 't')
		return;
	state.gone.delay_ms = Min(state.gone.delay_ms * 2, GONE_MAX_MS);
	state.gone.at = ecm_later(ecm_now(), state.gone.delay_ms);
}

static void
start_gone(EcmTime now, XLogRecPtr received_lsn, XLogRecPtr applied_lsn)
{
	if (!gone_are_marked(received_lsn, applied_lsn))
	{
		state.gone.at = ecm_later(now, GONE_MIN_MS);
		return;
	}
	state.gone.at = 0;
	state.gone.job = ecm_pool_submit("SELECT _electric_cm.delete_gone()",
									 JOB_TIMEOUT_MS, gone_done, NULL);
}

void
ecm_purges_scan(void)
{
	state.scan.wanted = true;
	ecm_purges_gone(InvalidXLogRecPtr);
	if (state.leave.at == 0)
		state.leave.at = ecm_later(ecm_now(), LEAVE_DELAY_MS);
}

void
ecm_purges_poll(EcmTime now, XLogRecPtr received_lsn, XLogRecPtr applied_lsn)
{
	if (received_lsn > state.told.after)
		report_gone();
	note_complete(received_lsn);
	if (state.gone.at != 0 && state.gone.job == 0 && now >= state.gone.at)
		start_gone(now, received_lsn, applied_lsn);
	if (state.leave.at != 0 && state.leave.job == 0 && now >= state.leave.at)
		start_leave(now);
	if (state.logs.job != 0 || state.scan.job != 0 || now < state.next_at)
		return;
	state.next_at = 0;
	if (state.logs.first < state.logs.n)
		start_purge(now, applied_lsn);
	else if (state.scan.wanted)
		start_scan();
}

EcmTime
ecm_purges_deadline(void)
{
	EcmTime		deadline = ecm_earlier(state.next_at, state.leave.job == 0 ? state.leave.at : 0);

	return ecm_earlier(deadline, state.gone.job == 0 ? state.gone.at : 0);
}

void
ecm_purges_forget(void)
{
	report_gone();
	forget_purges();
	if (state.logs.job != 0)
		ecm_pool_cancel(state.logs.job);
	if (state.scan.job != 0)
		ecm_pool_cancel(state.scan.job);
	if (state.leave.job != 0)
		ecm_pool_cancel(state.leave.job);
	if (state.gone.job != 0)
		ecm_pool_cancel(state.gone.job);
	state.logs.job = state.scan.job = state.leave.job = state.gone.job = 0;
	state.scan.wanted = false;
	state.next_at = state.held_since = state.leave.at = state.gone.at = 0;
}
