/*-------------------------------------------------------------------------
 *
 * shape_creation.c
 *	  The manager's part in creating shapes, without holes or doubles.
 *
 * The way of a batch, which is shapes of one table.  Each arrow is a message in
 * the stream, which consumers obey where its transaction commits:
 *
 *	session		inserts the shape's row		-- create -->	manager: a request
 *	manager		has a session of the pool ...
 *	  pool		publish_table(): adds the table to the publication, unless it
 *				is there already; committed, before anything else is done
 *	  pool		capture_shapes(): the next generation of each shape
 *											-- capture -->	consumers: log the
 *				table's changes from there on, unreadable yet, each transaction
 *				for itself, and throw away what an earlier attempt has left
 *	manager		waits until the consumers have met that message: until then
 *				nothing may be written that is to stay
 *	manager		barrier: waits for everybody who was writing to the table:
 *				half of what those wrote may be missing from the stream
 *	  pool		take_snapshot(): reads the table, writes its rows to the log
 *											-- live -->		consumers: drop what
 *				was captured of transactions that the snapshot has seen, and let
 *				readers in
 *
 * If the table is too large for that, the last step is one of many: shape_reading.c.
 *
 * The order is the point.  Writers in flight when the table was published end
 * before the snapshot is taken, so it sees them whole; everything that it does
 * not see was captured.  A failure anywhere starts the next generation, whose
 * capture message throws away what the last one has left; but a table that is being
 * read in pieces goes on from the last piece.  A shape that can't be
 * created at all is errored: its snapshot's session says so by a message "fail".
 *
 * Requests are in shape_requests.c, batches in shape_batch.c, the barrier in
 * shape_barrier.c, the pool's part in publish_capture.c and snapshot.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "lib/stringinfo.h"

#include "base/bgworker.h"
#include "base/clock.h"
#include "base/errors.h"
#include "base/shmem.h"
#include "base/stream_message.h"
#include "connection/conn.h"
#include "connection/pool.h"
#include "manager/consumer_queues.h"
#include "manager/shape_barrier.h"
#include "manager/shape_batch.h"
#include "manager/shape_creation.h"
#include "manager/shape_purge.h"
#include "manager/shape_reading.h"
#include "manager/shape_requests.h"
#include "shape/shape_fate.h"

#define JOB_TIMEOUT_MS		60000
#define BARRIER_POLL_MS		20

/*
 * take_snapshot() waits so long for a lock of the table.  The barrier has been passed,
 * so whoever has it has come later; the next attempt's barrier waits for him.
 */
#define SNAPSHOT_LOCK_TIMEOUT	"1s"

/* After so many snapshots that end with an error nobody knows, the shape is errored. */
#define MAX_SNAPSHOTS		5

static int64 last_number;		/* of the last capture message of ours */
static uint32 seen_gaps;		/* that have begun, as far as they were
								 * scanned for */

void
ecm_creations_init(int index)
{
	ecm_batches_init(index);
	ecm_readings_init(index);
	ecm_requests_init(ecm_stack_at(index)->datname);
	/* not 0: the stream may have capture messages of former managers */
	last_number = ecm_wall_clock();
	ecm_purges_init(index);
}

/* ---------------------------------------------------------------- steps -- */

static void job_done(void *arg, EcmConn *conn, const EcmError *err);

/* Goes to a step that is a pool job; timeout_ms 0: it may take any time. */
static void
submit(EcmBatch *b, EcmCreationStep step, const char *sql, int timeout_ms,
	   const char *waiting_for)
{
	b->step = step;
	ecm_batch_show(b, waiting_for);
	b->job = ecm_pool_submit(sql, timeout_ms, job_done, b);
}

/* An array constant: of the shapes' ids, or of their generations. */
static char *
array_literal(const EcmBatch *b, bool generations)
{
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < b->nshapes; i++)
		appendStringInfo(&text, "%s" INT64_FORMAT, i > 0 ? "," : "'{",
						 generations ? (int64) b->shapes[i]->generation : b->shapes[i]->id);
	appendStringInfoString(&text, "}'");
	return text.data;
}

static void
start_publish(EcmBatch *b)
{
	submit(b, ECM_CREATION_PUBLISH,
		   psprintf("SELECT _electric_cm.publish_table(%u, %s)", b->relation,
					array_literal(b, false)),
		   JOB_TIMEOUT_MS, "the table to be added to the publication");
}

/*
 * Starts the job capture_shapes(), in a transaction after the one that has published
 * the table: where capturing begins, the stream must have the table's changes.
 */
static void
start_capture(EcmBatch *b)
{
	b->number = ++last_number;
	ecm_batch_expect(b);
	submit(b, ECM_CREATION_CAPTURE,
		   psprintf("SELECT shape, generation, action, shape_relation, xid FROM"
					" _electric_cm.capture_shapes(" INT64_FORMAT ", %u, %s)",
					b->number, b->relation, array_literal(b, false)),
		   JOB_TIMEOUT_MS, "the start of capturing");
}

static void
start_snapshot(EcmBatch *b)
{
	submit(b, ECM_CREATION_SNAPSHOT,
		   psprintf("BEGIN ISOLATION LEVEL REPEATABLE READ;"
					"SET LOCAL lock_timeout = '" SNAPSHOT_LOCK_TIMEOUT "';"
					"SELECT done, reading, members FROM"
					" _electric_cm.take_snapshot(%s, %s, %s, " INT64_FORMAT "); COMMIT",
					array_literal(b, false), array_literal(b, true),
					b->backoff.retries + 1 >= MAX_SNAPSHOTS ? "true" : "false",
					ecm_readings_max_bytes()),
		   0, "the snapshot of the table");
}

/* The table of a shape, as the answer of capture_shapes() says. */
static Oid
relation_of(EcmConn *conn, int64 id)
{
	for (int row = 0; row < ecm_conn_nrows(conn); row++)
		if (strtoi64(ecm_conn_value(conn, row, 0), NULL, 10) == id)
			return strtoul(ecm_conn_value(conn, row, 3), NULL, 10);
	return InvalidOid;
}

/*
 * Makes a request again that was made for the wrong table, by a forged message
 * "create".
 */
static void
request_again(EcmShapeRequest *request, Oid relation)
{
	int64		id = request->id;
	char		handle[sizeof(request->handle)];

	strlcpy(handle, request->handle, sizeof(handle));
	ecm_request_end(request);
	ecm_request_add(id, relation, handle, InvalidTransactionId, 0);
}

/*
 * Job capture_shapes() has answered, with a row for each shape that is there:
 *
 *	capture	its changes are captured from the message on, in this generation
 *	locked	somebody has its row locked, to drop it perhaps, and may yet roll back:
 *			these shapes become a batch of their own, which tries again later
 *	other	it is a shape of another table
 *
 * Shapes that are not in the answer are gone, or done, and their requests end.
 */
static void
captured(EcmBatch *b, EcmConn *conn)
{
	EcmBatch   *locked = NULL;
	TransactionId xid = InvalidTransactionId;
	bool		expects;
	int			nall = b->nshapes;

	for (int i = 0; i < b->nshapes; i++)
		b->shapes[i]->generation = 0;
	for (int row = 0; row < ecm_conn_nrows(conn); row++)
	{
		EcmShapeRequest *request = ecm_request_find(strtoi64(ecm_conn_value(conn, row, 0), NULL, 10));
		const char *action = ecm_conn_value(conn, row, 2);

		xid = strtoul(ecm_conn_value(conn, row, 4), NULL, 10);
		if (request == NULL || request->batch != b)
			continue;			/* dropped while the job ran */
		if (strcmp(action, "capture") == 0)
			request->generation = atoi(ecm_conn_value(conn, row, 1));
		else if (strcmp(action, "locked") == 0)
		{
			if (locked == NULL)
				locked = ecm_batch_create(b->relation, nall);
			ecm_batch_put(locked, request);
		}
		else if (strcmp(action, "other") == 0)
			request->generation = -1;
	}
	expects = ecm_batch_expects(b, xid);
	for (int i = 0; i < b->nshapes; i++)
	{
		EcmShapeRequest *request = b->shapes[i];

		if (request->batch == b && request->generation > 0)
			continue;
		if (request->batch == b && request->generation < 0)
			request_again(request, relation_of(conn, request->id));
		else if (request->batch == b)
			ecm_request_end(request);	/* gone, or nothing left to do */
		b->shapes[i] = NULL;
	}
	ecm_batch_close_gaps(b);
	if (locked != NULL)
	{
		ecm_batch_make_place(locked);
		ecm_batch_retry_later(locked, "somebody who has locked the shape, to drop it perhaps");
	}
	if (b->nshapes == 0)
		ecm_batch_end(b);
	else if (!expects)
	{
		dlist_delete(&b->node);
		ecm_batch_retry_later(b, "another attempt to capture its changes");
	}
	else
		b->step = ECM_CREATION_CAPTURED;
}

/* Step BARRIER: goes on to the snapshot when all writers have ended. */
static void
poll_barrier(EcmBatch *b)
{
	if ((ecm_barrier_poll(&b->barrier) || b->retry_at == 0) && b->barrier.nwriters > 0)
		ecm_batch_show(b, ecm_barrier_text(&b->barrier));
	if (b->barrier.nwriters == 0)
		start_snapshot(b);
	else
		b->retry_at = ecm_later(ecm_now(), BARRIER_POLL_MS);
}

static void
start_barrier(EcmBatch *b)
{
	EcmError	err;

	b->step = ECM_CREATION_BARRIER;
	b->retry_at = 0;
	if (ecm_barrier_start(&b->barrier, b->relation, &err))
		poll_barrier(b);
	else
		ecm_batch_fail(b, &err);
}

/* Calls fn for each request of the batch whose shape is in an array of ids. */
static void
foreach_of_batch(EcmBatch *b, const char *ids, void (*fn) (EcmShapeRequest *request, void *arg),
				 void *arg)
{
	char	   *p = unconstify(char *, ids);

	while (p != NULL && (*p == '{' || *p == ',') && p[1] != '}')
	{
		EcmShapeRequest *request = ecm_request_find(strtoi64(p + 1, &p, 10));

		if (request != NULL && request->batch == b)
			fn(request, arg);
	}
}

static void
leave_batch(EcmShapeRequest *request, void *arg pg_attribute_unused())
{
	request->batch = NULL;
}

static void
join_batch(EcmShapeRequest *request, void *arg)
{
	ecm_batch_put(arg, request);
}

/*
 * These shapes of the batch are read in pieces from now on, as a batch of their own.  The
 * caller closes the gaps.
 */
static void
part_with_reading(EcmBatch *b, int64 reading, const char *members)
{
	EcmBatch   *other = ecm_batch_create(b->relation, b->nshapes);

	foreach_of_batch(b, members, join_batch, other);
	for (int i = 0; i < b->nshapes; i++)
		if (b->shapes[i] != NULL && b->shapes[i]->batch == other)
			b->shapes[i] = NULL;
	other->number = b->number;
	dlist_push_tail(ecm_batches_active(), &other->node);
	if (other->nshapes == 0)
	{
		ecm_batch_end(other);	/* dropped meanwhile */
		return;
	}
	ecm_batch_make_place(other);
	ecm_reading_start(other, reading);
}

/*
 * Job take_snapshot() has answered, with an array of the shapes that are done, or have
 * failed: the message "live" or "fail" tells consumers, and their requests end.  Some
 * may have to be read in pieces.  The job may leave others to the next snapshot, which
 * starts at once; the changes that were captured so far serve that one, too.
 */
static void
snapshot_taken(EcmBatch *b, EcmConn *conn)
{
	const char *reading = ecm_conn_value(conn, 0, 1);
	int			before = b->nshapes;

	foreach_of_batch(b, ecm_conn_value(conn, 0, 0), leave_batch, NULL);
	for (int i = 0; i < b->nshapes; i++)
		if (b->shapes[i]->batch == NULL)
		{
			/* done, as marked above; the consumer does the rest */
			b->shapes[i]->batch = b;
			ecm_request_end(b->shapes[i]);
			b->shapes[i] = NULL;
		}
	ecm_batch_close_gaps(b);
	if (reading != NULL)
	{
		part_with_reading(b, strtoi64(reading, NULL, 10), ecm_conn_value(conn, 0, 2));
		ecm_batch_close_gaps(b);
	}
	if (b->nshapes == 0 || b->nshapes == before)
		ecm_batch_end(b);		/* no shape is left; or none was done, and the
								 * next snapshot would do none either */
	else
		start_snapshot(b);
}

static void
job_done(void *arg, EcmConn *conn, const EcmError *err)
{
	EcmBatch   *b = arg;

	b->job = 0;
	if (err != NULL)
		ecm_batch_fail(b, err);
	else if (b->step == ECM_CREATION_PUBLISH)
		start_capture(b);
	else if (b->step == ECM_CREATION_CAPTURE)
		captured(b, conn);
	else
		snapshot_taken(b, conn);
}

/* ------------------------------------------------- what comes and goes --- */

typedef struct DroppedArg
{
	const EcmStreamMessage *message;	/* "drop" or "lost" */
	TransactionId xid;			/* of its transaction */
	int			n;				/* result: how many of its shapes are gone, or
								 * go with that transaction */
	int64	   *gone;			/* result: their ids */
} DroppedArg;

/*
 * In a transaction: which of the message's shapes are gone?  The message may be forged,
 * so the catalog is asked.  It is not waited for: if somebody has locked it, dropped
 * shapes count as gone, and purge_shapes() looks again before it deletes a log.
 */
static void
find_dropped(void *arg)
{
	DroppedArg *dropped = arg;
	const EcmStreamMessage *message = dropped->message;
	EcmFates	fates;
	bool		known = ecm_fates_begin(&fates, dropped->xid, false);

	for (int i = 0; i < message->nshapes; i++)
	{
		int64		id = message->shapes[i].id;

		if (message->kind == ECM_MESSAGE_LOST ?
			known && ecm_fate_is_lost(dropped->xid, id) :
			!known || !ecm_fate_of(&fates, id).exists)
			dropped->gone[dropped->n++] = id;
	}
	if (known)
		ecm_fates_end(&fates);
}

/*
 * Message "drop" or "lost": ends the creation of these shapes, and has their logs
 * deleted.  The rows of lost shapes are still there, so those go another way.
 */
static void
shapes_dropped(const EcmStreamMessage *message, TransactionId xid, XLogRecPtr after)
{
	bool		lost = message->kind == ECM_MESSAGE_LOST;
	DroppedArg	dropped = {message, xid, 0, palloc(sizeof(int64) * message->nshapes)};
	EcmError	err;

	if (!ecm_worker_try(find_dropped, &dropped, &err))
		return;					/* the next stream's scan finds their logs */
	for (int i = 0; i < dropped.n; i++)
	{
		ecm_batch_drop_shape(dropped.gone[i]);
		if (!lost)
			ecm_purges_add(dropped.gone[i], after);
	}
	if (lost)
		ecm_purges_gone(after);
	if (dropped.n > 0 && message->text[0] != '\0')	/* else it has been said
													 * before */
		ecm_purges_report(message->handle, dropped.n, message->text, after);
	pfree(dropped.gone);
}

/* Message "capture": tells the batch that has this number, if it is one of ours. */
static void
capture_met(int64 number, TransactionId xid, XLogRecPtr after)
{
	dlist_iter	iter;

	dlist_foreach(iter, ecm_batches_active())
	{
		EcmBatch   *b = dlist_container(EcmBatch, node, iter.cur);

		if (b->number == number && b->reading == 0)
			ecm_batch_met(b, xid, after);
	}
}

void
ecm_creations_message(const EcmStreamMessage *message, TransactionId xid,
					  XLogRecPtr after)
{
	switch (message->kind)
	{
		case ECM_MESSAGE_CREATE:
			ecm_request_add(message->shapes[0].id, message->relation,
							message->handle, xid, 0);
			break;
		case ECM_MESSAGE_CAPTURE:
			capture_met(message->number, xid, after);
			break;
		case ECM_MESSAGE_DROP:
			shapes_dropped(message, xid, after);
			ecm_purges_leaver(xid);
			break;
		case ECM_MESSAGE_LOST:
			shapes_dropped(message, xid, after);
			break;
		case ECM_MESSAGE_PIECE:
		case ECM_MESSAGE_AGAIN:
			ecm_readings_message(message, xid, after);
			break;
		case ECM_MESSAGE_LIVE:
		case ECM_MESSAGE_FAIL:
		case ECM_MESSAGE_OWNER:
		case ECM_MESSAGE_RESYNC:
		case ECM_MESSAGE_UNSENDABLE:
		case ECM_MESSAGE_GIANT:
			break;				/* others' */
	}
}

void
ecm_creations_scan(void)
{
	ecm_requests_scan();
	ecm_readings_scan();
	ecm_purges_scan();
}

/* --------------------------------------------------------- moving it on -- */

/*
 * Moves batches on that wait for the stream, for the consumers or at the barrier; a
 * pool job's end moves the others (job_done()).
 */
static void
poll_active(EcmTime now, XLogRecPtr received_lsn, XLogRecPtr applied_lsn)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, ecm_batches_active())
	{
		EcmBatch   *b = dlist_container(EcmBatch, node, iter.cur);

		if (b->step == ECM_CREATION_BARRIER && now >= b->retry_at)
			poll_barrier(b);
		else if (b->step == ECM_CREATION_CAPTURED &&
				 ecm_batch_has_come(b, received_lsn, applied_lsn))
			start_barrier(b);
	}
}

static void
start_batches(EcmTime now)
{
	EcmBatch   *b;

	while ((b = ecm_batches_start_next(now)) != NULL)
	{
		if (b->reading != 0)
			ecm_reading_start(b, b->reading);	/* all but that is done */
		else if (b->step == ECM_CREATION_NEW)
			start_publish(b);
		else
			start_capture(b);
	}
}

void
ecm_creations_poll(EcmTime now, XLogRecPtr received_lsn,
				   XLogRecPtr applied_lsn)
{
	if (seen_gaps != ecm_queues_gaps())
	{
		seen_gaps = ecm_queues_gaps();
		ecm_requests_rescan();
	}
	poll_active(now, received_lsn, applied_lsn);
	ecm_batches_poll_retries(now);
	start_batches(now);
	ecm_readings_poll(now, received_lsn, applied_lsn);
	ecm_requests_poll(now);
	ecm_purges_poll(now, received_lsn, applied_lsn);
}

EcmTime
ecm_creations_deadline(void)
{
	EcmTime		deadline = ecm_earlier(ecm_requests_deadline(), ecm_purges_deadline());

	deadline = ecm_earlier(deadline, ecm_readings_deadline());
	return ecm_earlier(deadline, ecm_batches_deadline());
}

void
ecm_creations_forget(void)
{
	ecm_batches_forget();
	ecm_readings_forget();
	ecm_requests_forget();
	ecm_purges_forget();
}
