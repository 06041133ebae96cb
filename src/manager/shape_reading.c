/*-------------------------------------------------------------------------
 *
 * shape_reading.c
 *	  The manager's part in creating shapes: tables that are read in pieces.
 *
 * A batch whose table is too large for one snapshot becomes a reading:
 *
 *	manager		when it is its turn, and there is room
 *	  pool		read_piece(): the next piece	-- piece -->	consumers: judge what
 *				they have captured by what has been read
 *	... until the answer says that it was the last one
 *	manager		waits until the consumers have met that message
 *	  pool		finish_reading()				-- again -->	consumers: put rows
 *				that were read once more where values were lacking
 *	... until none is lacking					-- live -->		as of a snapshot
 *
 * How far a reading is, is in the catalog; a new stream, or a new manager, goes on from
 * there.
 *
 * Readings take turns, piece by piece, and new ones come first.  So a small table is
 * done before a large one, and a table of any size holds up nobody.  They are in
 * nobody's way either: at least one session of the pool is left for other jobs.
 *
 * Of readings that compare long logs with tables, only so many take turns as a session
 * keeps logs: those with the smallest ones.  All others wait until one is done.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "lib/ilist.h"
#include "miscadmin.h"

#include "base/backoff.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/stream_message.h"
#include "connection/pool.h"
#include "jobs/log_rows.h"
#include "manager/shape_batch.h"
#include "manager/shape_reading.h"
#include "slot/retained_wal.h"

/* Pieces that are read at a time. */
#define MAX_READING		2
/* A piece waits so long for a lock of the table, and runs so long, at most. */
#define LOCK_TIMEOUT	"1s"
#define PIECE_TIMEOUT	"60s"
/* After so many attempts that end with an error nobody knows, the shape is errored. */
#define MAX_ATTEMPTS	5

/*
 * A piece writes its rows to the log, and may write to each page of the table that it
 * reads: all in all, up to so many times its bytes in WAL.
 */
#define WAL_FACTOR		4
/* A piece that may write less WAL is not worth a transaction. */
#define SMALL_WAL		(INT64CONST(256) * 1024)
/* So much more of the stream makes it wait that is not in the logs yet. */
#define MAX_BEHIND		(UINT64CONST(64) * 1024 * 1024)
/* How soon to look again, while there is no room. */
#define LOOK_PAUSE_MS	500
/* How often to delete what is known of readings that are over. */
#define DELETE_DELAY_MS	5000

static struct
{
	int			stack_index;
	uint64		turn;			/* of the last piece that was begun */
	EcmTime		look_at;		/* no piece is begun before: no room */
	struct
	{
		EcmTime		at;			/* when to run it; 0: there are none */
		uint64		job;		/* 0: none runs */
	}			delete;			/* of readings that are over */
}			state;

void
ecm_readings_init(int stack_index)
{
	state.stack_index = stack_index;
}

void
ecm_reading_start(EcmBatch *b, int64 reading)
{
	b->reading = reading;
	b->step = ECM_CREATION_READ;
	b->retry_at = 0;
	b->turn = 0;
	b->keeps_logs = false;
	ecm_batch_uncount(b);
	ecm_backoff_init(&b->backoff, ecm_reconnect_initial_delay, ecm_reconnect_max_delay);
	ecm_batch_show(b, "its turn to have the next piece of the table read");
	if (state.delete.at == 0)
		state.delete.at = ecm_later(ecm_now(), DELETE_DELAY_MS);
}

/* ----------------------------------------------------------------- jobs -- */

static void
job_done(void *arg, EcmConn *conn, const EcmError *err)
{
	EcmBatch   *b = arg;
	const char *answer;
	const char *xid;

	b->job = 0;
	if (err != NULL)
	{
		ecm_batch_fail(b, err);
		return;
	}
	answer = ecm_conn_value(conn, 0, 0);
	xid = ecm_conn_value(conn, 0, 1);
	/* the last piece is given again after each failure of what follows it */
	if (answer == NULL || strcmp(answer, "last") != 0)
		ecm_backoff_init(&b->backoff, ecm_reconnect_initial_delay, ecm_reconnect_max_delay);
	if (answer == NULL || strcmp(answer, "done") == 0)
		ecm_batch_end(b);
	else if (strcmp(answer, "logs") == 0)
	{
		b->keeps_logs = true;
		b->log_bytes = strtoi64(ecm_conn_value(conn, 0, 2), NULL, 10);
		b->step = ECM_CREATION_READ;
		ecm_batch_show(b, "its turn to be compared with the table: shorter logs come first");
	}
	else if (strcmp(answer, "more") != 0 && xid != NULL &&
			 ecm_batch_expects(b, strtoul(xid, NULL, 10)))
	{
		/* last, again */
		b->keeps_logs = false;
		b->step = ECM_CREATION_LAST;
		ecm_batch_show(b, "the consumer, to come to the last piece of the table in the stream");
	}
	else
	{
		b->step = ECM_CREATION_READ;
		ecm_batch_show(b, "its turn to have the next piece of the table read");
	}
}

static void
submit(EcmBatch *b, EcmCreationStep step, const char *sql, const char *waiting_for)
{
	b->step = step;
	b->turn = ++state.turn;
	b->retry_at = 0;
	ecm_batch_expect(b);
	ecm_batch_show(b, waiting_for);
	b->job = ecm_pool_submit(psprintf("BEGIN ISOLATION LEVEL REPEATABLE READ;"
									  "SET LOCAL lock_timeout = '" LOCK_TIMEOUT "';"
									  "SET LOCAL statement_timeout = '" PIECE_TIMEOUT "';"
									  "%s; COMMIT", sql), 0, job_done, b);
}

/* The arguments that all these jobs begin with: reading, attempt, last_attempt. */
static char *
job_arguments(const EcmBatch *b)
{
	return psprintf(INT64_FORMAT ", %d, %s", b->reading, b->backoff.retries,
					b->backoff.retries + 1 >= MAX_ATTEMPTS ? "true" : "false");
}

static void
start_piece(EcmBatch *b, int64 max_wal)
{
	submit(b, ECM_CREATION_PIECE,
		   psprintf("SELECT state, xid, logs FROM _electric_cm.read_piece(%s, " INT64_FORMAT ", %s)",
					job_arguments(b), max_wal / WAL_FACTOR, b->keeps_logs ? "true" : "false"),
		   "the next piece of the table to be read");
}

static void
start_finish(EcmBatch *b)
{
	submit(b, ECM_CREATION_FINISH,
		   psprintf("SELECT state, xid FROM _electric_cm.finish_reading(%s)",
					job_arguments(b)),
		   "the end of the reading of the table");
}

/* --------------------------------------------------------------- pauses -- */

/*
 * Is much of the stream not in the logs yet?  Reading on would only make it more.  If
 * so, the walsender is asked how far it is: it may have nothing to tell.
 */
static bool
is_behind(void)
{
	EcmStack   *stack = ecm_stack_at(state.stack_index);
	XLogRecPtr	end = GetFlushRecPtr(NULL);

	if (end <= stack->progress.flushed_lsn + MAX_BEHIND)
		return false;
	ecm_lock(LW_EXCLUSIVE);
	stack->requests.await_lsn = Max(stack->requests.await_lsn, end - MAX_BEHIND);
	ecm_unlock();
	return true;
}

/* Is the disk about to be full that the logs are on? */
static bool
is_short_of_space(void)
{
	const EcmWalSample *sample = &ecm_stack_at(state.stack_index)->slot.sample;
	int64		min_free = ecm_min_wal_free_space * INT64CONST(1024) * 1024;

	return min_free > 0 && sample->sampled_at != 0 && sample->data_free_bytes >= 0 &&
		sample->data_free_bytes < min_free + min_free / 4;
}

int64
ecm_readings_max_bytes(void)
{
	return ecm_retained_wal_allowance(state.stack_index, 0) / WAL_FACTOR;
}

/*
 * How many bytes of WAL the next piece may write; 0: it has to wait, and *why becomes
 * the reason.
 */
static int64
wal_allowed(const char **why)
{
	int64		allowance;

	*why = "free disk space for the rows of the table";
	if (is_short_of_space())
		return 0;
	*why = "the stream, which is behind, before more of the table is read";
	if (is_behind())
		return 0;
	*why = "the replication slot, which retains too much WAL for its limit, or for the disk, before more of the table is read";
	allowance = ecm_retained_wal_allowance(state.stack_index, SMALL_WAL);
	return allowance < SMALL_WAL ? 0 : allowance;
}

/* ---------------------------------------------------------------- turns -- */

/* Does another batch have a piece of the same reading read? */
static bool
is_being_read(int64 reading)
{
	dlist_iter	iter;

	dlist_foreach(iter, ecm_batches_active())
	{
		EcmBatch   *b = dlist_container(EcmBatch, node, iter.cur);

		if (b->reading == reading && b->job != 0)
			return true;
	}
	return false;
}

static int
count_reading(void)
{
	dlist_iter	iter;
	int			n = 0;

	dlist_foreach(iter, ecm_batches_active())
	{
		EcmBatch   *b = dlist_container(EcmBatch, node, iter.cur);

		if (b->reading != 0 && b->job != 0)
			n++;
	}
	return n;
}

/*
 * May sessions keep what its logs come to, along with that of the others that have their
 * turn?  Whoever waits for another attempt, for somebody's lock perhaps, is none of them.
 */
static bool
may_keep_logs(const EcmBatch *b)
{
	dlist_iter	iter;
	int			before = 0;

	dlist_foreach(iter, ecm_batches_active())
	{
		EcmBatch   *other = dlist_container(EcmBatch, node, iter.cur);

		if (other->reading != 0 && other->reading != b->reading && other->keeps_logs &&
			other->retry_at == 0 &&
			(other->log_bytes < b->log_bytes ||
			 (other->log_bytes == b->log_bytes && other->reading < b->reading)))
			before++;
	}
	return before < ECM_MAX_KEPT_LOGS;
}

/* The reading whose turn is next: the one that has waited for the longest time. */
static EcmBatch *
next_reading(void)
{
	dlist_iter	iter;
	EcmBatch   *next = NULL;

	dlist_foreach(iter, ecm_batches_active())
	{
		EcmBatch   *b = dlist_container(EcmBatch, node, iter.cur);

		if (b->step == ECM_CREATION_READ && b->retry_at == 0 &&
			(next == NULL || b->turn < next->turn) && !is_being_read(b->reading) &&
			(!b->keeps_logs || may_keep_logs(b)))
			next = b;
	}
	return next;
}

static void
start_pieces(EcmTime now)
{
	int			max = Max(Min(MAX_READING, ecm_pool_size - 1), 1);
	const char *why;
	int64		max_wal;
	EcmBatch   *b;

	while (state.look_at == 0 && count_reading() < max && (b = next_reading()) != NULL)
	{
		max_wal = wal_allowed(&why);
		if (max_wal > 0)
			start_piece(b, max_wal);
		else
		{
			ecm_batch_show(b, why);
			state.look_at = ecm_later(now, LOOK_PAUSE_MS);
		}
	}
}

/* Times that have passed are no deadlines: what is due now waits for a session. */
static void
forget_past(EcmTime now)
{
	dlist_iter	iter;

	if (now >= state.look_at)
		state.look_at = 0;
	dlist_foreach(iter, ecm_batches_active())
	{
		EcmBatch   *b = dlist_container(EcmBatch, node, iter.cur);

		if (b->step == ECM_CREATION_READ && now >= b->retry_at)
			b->retry_at = 0;
	}
}

/* Step LAST: goes on when all consumers have come to the message. */
static void
poll_last(XLogRecPtr received_lsn, XLogRecPtr applied_lsn)
{
	dlist_iter	iter;

	dlist_foreach(iter, ecm_batches_active())
	{
		EcmBatch   *b = dlist_container(EcmBatch, node, iter.cur);

		if (b->step == ECM_CREATION_LAST && ecm_batch_has_come(b, received_lsn, applied_lsn))
			start_finish(b);
	}
}

void
ecm_readings_message(const EcmStreamMessage *message, TransactionId xid, XLogRecPtr after)
{
	dlist_iter	iter;

	dlist_foreach(iter, ecm_batches_active())
	{
		EcmBatch   *b = dlist_container(EcmBatch, node, iter.cur);

		if (b->reading != 0 && b->reading == message->reading)
			ecm_batch_met(b, xid, after);
	}
}

/* --------------------------------------------------- readings that are over -- */

static void
delete_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	const char *others = err == NULL ? ecm_conn_value(conn, 0, 0) : "t";

	state.delete.job = 0;
	if (err != NULL)
		ecm_event_in(MyDatabaseId, ecm_stack_at(state.stack_index)->datname,
					 ECM_EVENT_WARNING, err->hint,
					 "could not delete what is known of tables that have been read: %s",
					 ecm_error_for_public(err->sqlstate, err->message));
	if (others != NULL && others[0] == 't')
		state.delete.at = ecm_later(ecm_now(), DELETE_DELAY_MS);
}

void
ecm_readings_scan(void)
{
	state.delete.at = ecm_later(ecm_now(), DELETE_DELAY_MS);
}

void
ecm_readings_poll(EcmTime now, XLogRecPtr received_lsn, XLogRecPtr applied_lsn)
{
	poll_last(received_lsn, applied_lsn);
	forget_past(now);
	start_pieces(now);
	if (state.delete.at == 0 || state.delete.job != 0 || now < state.delete.at)
		return;
	state.delete.at = 0;
	state.delete.job = ecm_pool_submit("SELECT _electric_cm.delete_readings()", 0,
									   delete_done, NULL);
}

EcmTime
ecm_readings_deadline(void)
{
	EcmTime		deadline = state.delete.job == 0 ? state.delete.at : 0;
	dlist_iter	iter;

	dlist_foreach(iter, ecm_batches_active())
	{
		EcmBatch   *b = dlist_container(EcmBatch, node, iter.cur);

		if (b->step == ECM_CREATION_READ)
			deadline = ecm_earlier(deadline, Max(b->retry_at, state.look_at));
	}
	return deadline;
}

void
ecm_readings_forget(void)
{
	if (state.delete.job != 0)
		ecm_pool_cancel(state.delete.job);
	state.delete.job = 0;
	state.delete.at = state.look_at = 0;
}
