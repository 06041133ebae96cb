/*-------------------------------------------------------------------------
 *
 * shape_purge.c
 *	  The manager's part in freeing what dropped shapes leave behind.
 *
 * A dropped shape's log can be deleted once no consumer writes to it, that is,
 * once all have applied the transaction that dropped it.  There may be many at
 * once, and large ones: they are deleted in slices, small transactions with
 * pauses in between, so that neither the slot nor vacuum has to wait for long.
 * Readers don't care: for them a shape is gone when its row is.
 *
 * After a checkpoint, what is deleted goes into the WAL as whole pages, as much
 * as the logs were.  A slot that was dropped since it held too much leaves all
 * its shapes to be deleted, and its successor must not go the same way.  So
 * there is no hurry near a limit; but no end of it either.
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
#include "manager/shape_purge.h"
#include "manager/shape_requests.h"
#include "slot/retained_wal.h"

/* Who drops a table's shapes often makes the next one soon. */
#define LEAVE_DELAY_MS	5000
#define JOB_TIMEOUT_MS	60000

/* How soon to try and delete what somebody has locked. */
#define GONE_MIN_MS		1000
#define GONE_MAX_MS		60000

/* What is deleted in one transaction at most. */
#define SLICE_SHAPES	1000
#define SLICE_CHUNKS	2000
#define SLICE_WAL		(INT64CONST(16) * 1024 * 1024)
/* The pause before the next one. */
#define SLICE_PAUSE_MS	50

/* One that writes less WAL is not worth a transaction ... */
#define SMALL_WAL		(INT64CONST(512) * 1024)
/* ... so until that is allowed, we look this often, ... */
#define LOOK_PAUSE_MS	500
/* ... and after so long go on regardless. */
#define PATIENCE_MS		5000

/* The pause if none of them may be deleted yet. */
#define POSTPONED_MS	1000

typedef struct Purge
{
	int64		id;
	bool		complete;		/* its transaction is */
	XLogRecPtr	lsn;			/* end of that, or of the one before */
} Purge;

static int	stack_index;

/* those to be deleted: in the order in which they were dropped */
static Purge *purges = NULL;
static int	first_purge = 0;	/* those before it are done */
static int	npurges = 0;
static int	purges_size = 0;

static uint64 purge_job = 0;
static uint64 scan_job = 0;
static bool scan_wanted = false;
static EcmTime next_at = 0;		/* nothing is done before; 0: at once */
static EcmTime held_since = 0;	/* so that no limit is reached; 0: not */
static EcmBackoff backoff;

/* when to look for tables without shapes; 0: none may have come to that */
static EcmTime leave_at = 0;
static uint64 leave_job = 0;
static TransactionId *leavers = NULL;	/* who has dropped shapes, and may ... */
static int	nleavers = 0;		/* ... not be seen yet */
static int	leavers_size = 0;

/* shapes that are gone, but for their rows: when to try again; 0: none */
static EcmTime gone_at = 0;
static int	gone_delay_ms = GONE_MIN_MS;
static uint64 gone_job = 0;
static XLogRecPtr marked_after; /* the last transaction that says so comes
								 * after this one; or ends here, if it was met */
static bool marked_met;

/* what an event will say, once the transaction is complete */
static int	ngone = 0;
static XLogRecPtr gone_after;	/* the transaction before theirs ends here */
static char gone_handle[40];	/* the first one's */
static char gone_reason[ECM_TEXT_LEN];

void
ecm_purges_init(int index)
{
	stack_index = index;
	ecm_backoff_init(&backoff, ecm_reconnect_initial_delay,
					 ecm_reconnect_max_delay);
}

static const char *
datname(void)
{
	return ecm_stack_at(stack_index)->datname;
}

/* --------------------------------------------------------------- events -- */

static void
report_gone(void)
{
	if (ngone == 1)
		ecm_event_in(MyDatabaseId, datname(), ECM_EVENT_SHAPE_INVALIDATED,
					 gone_reason, "shape %s is gone: %s", gone_handle, gone_reason);
	else if (ngone > 1)
		ecm_event_in(MyDatabaseId, datname(), ECM_EVENT_SHAPE_INVALIDATED,
					 gone_reason, "%d shapes are gone, %s and others: %s",
					 ngone, gone_handle, gone_reason);
	ngone = 0;
}

void
ecm_purges_report(const char *handle, int n, const char *reason, XLogRecPtr after)
{
	if (ngone > 0 && (gone_after != after || strcmp(gone_reason, reason) != 0))
		report_gone();
	if (ngone == 0)
	{
		strlcpy(gone_handle, handle, sizeof(gone_handle));
		ecm_copy_text(gone_reason, sizeof(gone_reason), reason);
	}
	gone_after = after;
	ngone += n;
}

/* ------------------------------------------------------------ the queue -- */

static void
add_purge(int64 id, XLogRecPtr lsn, bool complete)
{
	if (npurges == purges_size)
	{
		purges_size = purges_size ? purges_size * 2 : 64;
		purges = purges ?
			repalloc_huge(purges, sizeof(Purge) * purges_size) :
			MemoryContextAllocHuge(TopMemoryContext, sizeof(Purge) * purges_size);
	}
	purges[npurges].id = id;
	purges[npurges].lsn = lsn;
	purges[npurges++].complete = complete;
}

void
ecm_purges_add(int64 id, XLogRecPtr after)
{
	add_purge(id, after, false);
}

static void
forget_purges(void)
{
	if (purges != NULL)
		pfree(purges);
	purges = NULL;
	first_purge = npurges = purges_size = 0;
}

/* Those that have come since the last time are the last ones. */
static void
note_complete(XLogRecPtr received_lsn)
{
	for (int i = npurges - 1; i >= first_purge; i--)
	{
		if (purges[i].complete)
			break;
		if (received_lsn <= purges[i].lsn)
			continue;
		purges[i].complete = true;
		purges[i].lsn = received_lsn;
	}
}

/* ----------------------------------------------------------------- jobs -- */

static void
job_failed(const char *what, const EcmError *err)
{
	next_at = ecm_backoff_fail(&backoff, ecm_now());
	if (backoff.retries == 1)
		ecm_event_in(MyDatabaseId, datname(), ECM_EVENT_WARNING,
					 err->hint, "could not %s yet: %s", what,
					 ecm_error_for_public(err->sqlstate, err->message));
}

static void
job_succeeded(void)
{
	EcmTime		now = ecm_now();

	ecm_backoff_reset(&backoff, now);
	next_at = ecm_later(now, SLICE_PAUSE_MS);
}

/*
 * Those whose rows others can see still, as when the commit waits for a
 * synchronous standby: an array constant.  Returns how many they are.
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

static void
purge_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	const char *done;
	const char *postponed;
	bool		all_postponed;

	purge_job = 0;
	if (err != NULL)
	{
		job_failed("delete the logs of dropped shapes", err);
		return;
	}
	done = ecm_conn_value(conn, 0, 0);
	first_purge += done ? atoi(done) : 0;
	postponed = ecm_conn_value(conn, 0, 1);
	all_postponed = add_postponed(postponed ? postponed : "{}") == (done ? atoi(done) : 0);
	if (first_purge >= npurges)
		forget_purges();
	job_succeeded();
	if (all_postponed)
		next_at = ecm_later(ecm_now(), POSTPONED_MS);
}

static void
scan_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	scan_job = 0;
	if (err != NULL)
	{
		job_failed("look for the logs of dropped shapes", err);
		return;
	}
	/* a consumer that does not know of their end yet will be told of it */
	for (int i = 0; i < ecm_conn_nrows(conn); i++)
		add_purge(strtoi64(ecm_conn_value(conn, i, 0), NULL, 10),
				  InvalidXLogRecPtr, true);
	scan_wanted = ecm_conn_nrows(conn) == SLICE_SHAPES;
	job_succeeded();
}

/* How many bytes of WAL the next slice may write; 0: it has to wait. */
static int64
wal_allowed(EcmTime now)
{
	int64		allowance = ecm_wal_allowance(stack_index, SMALL_WAL);

	if (allowance < SMALL_WAL)
	{
		if (held_since == 0)
			held_since = now;
		if (!ecm_has_passed(held_since, now, PATIENCE_MS))
			return 0;
		allowance = SMALL_WAL;
	}
	held_since = 0;
	return Min(allowance, SLICE_WAL);
}

/* They come in the order in which they were dropped. */
static void
start_purge(EcmTime now, XLogRecPtr applied_lsn)
{
	StringInfoData sql;
	int64		max_wal;
	int			n = 0;

	if (!purges[first_purge].complete || applied_lsn < purges[first_purge].lsn)
		return;
	max_wal = wal_allowed(now);
	if (max_wal == 0)
	{
		next_at = ecm_later(now, LOOK_PAUSE_MS);
		return;
	}

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT done, postponed FROM _electric_cm.purge_shapes(");
	for (int i = first_purge; i < npurges && n < SLICE_SHAPES; i++)
	{
		if (!purges[i].complete || applied_lsn < purges[i].lsn)
			break;
		appendStringInfo(&sql, "%s" INT64_FORMAT, n++ > 0 ? "," : "'{", purges[i].id);
	}
	appendStringInfo(&sql, "}', %d, " INT64_FORMAT ")", SLICE_CHUNKS, max_wal);
	purge_job = ecm_pool_submit(sql.data, 0, purge_done, NULL);
	pfree(sql.data);
}

/*
 * What has no shape any more, nor will have: the shapes of roles that have been
 * dropped elsewhere go first.  The statement finds the logs' ids by skipping
 * from one to the next in the index.
 */
static void
start_scan(void)
{
	scan_job =
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
								 " UNION SELECT shape FROM _electric_cm.shape_worker w WHERE NOT EXISTS"
								 " (SELECT FROM _electric_cm.shape s WHERE s.id = w.shape)"
								 " LIMIT %d", SLICE_SHAPES),
						0, scan_done, NULL);
}

/* --------------------------------------------- tables without shapes --- */

void
ecm_purges_leaver(TransactionId xid)
{
	if (leave_at == 0)
		leave_at = ecm_later(ecm_now(), LEAVE_DELAY_MS);
	if (nleavers > 0 && leavers[nleavers - 1] == xid)
		return;
	if (nleavers == leavers_size)
	{
		leavers_size = leavers_size ? leavers_size * 2 : 16;
		leavers = leavers ?
			repalloc(leavers, sizeof(TransactionId) * leavers_size) :
			MemoryContextAlloc(TopMemoryContext, sizeof(TransactionId) * leavers_size);
	}
	leavers[nleavers++] = xid;
}

static void
leave_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	const char *again = err == NULL ? ecm_conn_value(conn, 0, 0) : "t";

	leave_job = 0;
	if (err != NULL)
		job_failed("take tables without shapes out of the publication", err);
	if (leave_at == 0 && again != NULL && again[0] == 't')
		leave_at = ecm_later(ecm_now(), LEAVE_DELAY_MS);
}

/*
 * A commit can be decoded long before others see it, where it waits for a
 * synchronous standby: then its shapes seem to be there still.
 */
static void
start_leave(EcmTime now)
{
	int			left = 0;

	for (int i = 0; i < nleavers; i++)
		if (TransactionIdIsInProgress(leavers[i]))
			leavers[left++] = leavers[i];
	nleavers = left;
	leave_at = left == 0 ? 0 : ecm_later(now, LEAVE_DELAY_MS);
	if (left == 0)
		leave_job = ecm_pool_submit("SELECT _electric_cm.unpublish_tables()",
									JOB_TIMEOUT_MS, leave_done, NULL);
}

/* ------------------------------------ shapes that are gone, but locked --- */

void
ecm_purges_gone(XLogRecPtr after)
{
	marked_after = after;
	marked_met = false;
	gone_delay_ms = GONE_MIN_MS;
	gone_at = ecm_later(ecm_now(), gone_delay_ms);
}

/* Until the consumers have marked them there is nothing to be deleted. */
static bool
gone_are_marked(XLogRecPtr received_lsn, XLogRecPtr applied_lsn)
{
	if (XLogRecPtrIsInvalid(marked_after))
		return true;
	if (!marked_met && received_lsn > marked_after)
	{
		marked_met = true;
		marked_after = received_lsn;
	}
	return marked_met && applied_lsn >= marked_after;
}

static void
gone_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	const char *others = err == NULL ? ecm_conn_value(conn, 0, 0) : "t";

	gone_job = 0;
	if (err != NULL)
		job_failed("delete shapes that are gone", err);
	if (gone_at != 0 || others == NULL || others[0] != 't')
		return;
	gone_delay_ms = Min(gone_delay_ms * 2, GONE_MAX_MS);
	gone_at = ecm_later(ecm_now(), gone_delay_ms);
}

static void
start_gone(EcmTime now, XLogRecPtr received_lsn, XLogRecPtr applied_lsn)
{
	if (!gone_are_marked(received_lsn, applied_lsn))
	{
		gone_at = ecm_later(now, GONE_MIN_MS);
		return;
	}
	gone_at = 0;
	gone_job = ecm_pool_submit("SELECT _electric_cm.delete_gone()",
							   JOB_TIMEOUT_MS, gone_done, NULL);
}

void
ecm_purges_scan(void)
{
	scan_wanted = true;
	ecm_purges_gone(InvalidXLogRecPtr);
	if (leave_at == 0)
		leave_at = ecm_later(ecm_now(), LEAVE_DELAY_MS);
}

void
ecm_purges_poll(EcmTime now, XLogRecPtr received_lsn, XLogRecPtr applied_lsn)
{
	if (received_lsn > gone_after)
		report_gone();
	note_complete(received_lsn);
	if (gone_at != 0 && gone_job == 0 && now >= gone_at)
		start_gone(now, received_lsn, applied_lsn);
	if (leave_at != 0 && leave_job == 0 && now >= leave_at)
		start_leave(now);
	if (purge_job != 0 || scan_job != 0 || now < next_at)
		return;
	next_at = 0;
	if (first_purge < npurges)
		start_purge(now, applied_lsn);
	else if (scan_wanted)
		start_scan();
}

EcmTime
ecm_purges_deadline(void)
{
	EcmTime		deadline = ecm_sooner(next_at, leave_job == 0 ? leave_at : 0);

	return ecm_sooner(deadline, gone_job == 0 ? gone_at : 0);
}

void
ecm_purges_forget(void)
{
	report_gone();
	forget_purges();
	if (purge_job != 0)
		ecm_pool_cancel(purge_job);
	if (scan_job != 0)
		ecm_pool_cancel(scan_job);
	if (leave_job != 0)
		ecm_pool_cancel(leave_job);
	if (gone_job != 0)
		ecm_pool_cancel(gone_job);
	purge_job = scan_job = leave_job = gone_job = 0;
	scan_wanted = false;
	next_at = held_since = leave_at = gone_at = 0;
}
