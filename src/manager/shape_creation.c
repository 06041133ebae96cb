/*-------------------------------------------------------------------------
 *
 * shape_creation.c
 *	  The manager's part in creating shapes, without holes or doubles.
 *
 * publish	 a pool session adds the table to the publication, unless it is
 *			 there already
 * capture	 a message in the stream, later than that: from there on the
 *			 consumer logs the table's changes, unreadable yet, each transaction
 *			 for itself; when it meets the message it throws away what was there
 *			 before, so nothing may be written until it has
 * barrier	 wait for everybody who was writing to the table: half of what
 *			 those wrote may be missing from the stream
 * snapshot	 a pool session reads the table; its commit carries the message
 *			 that makes the shapes live
 *
 * The order is the point.  Writers in flight when the table was published end
 * before the snapshot is taken, so it sees them whole; everything that it does
 * not see was captured.  A failure anywhere starts the next generation, whose
 * capture message throws away what the last one has left.
 *
 * Shapes of the same table go this way together, in batches.  What fails a
 * batch may be the fault of one shape in it, so a batch that fails is split,
 * until that shape fails alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/backoff.h"
#include "base/bgworker.h"
#include "base/errors.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/text.h"
#include "connection/conn.h"
#include "connection/pool.h"
#include "manager/shape_barrier.h"
#include "manager/shape_purge.h"
#include "manager/shape_requests.h"
#include "shape/shape.h"

#define JOB_TIMEOUT_MS		60000
#define BARRIER_POLL_MS		20

/* Shapes in a batch: more would not be faster, but fail together. */
#define BATCH_SHAPES		1000
/* Batches that use the pool or the consumer, and those of one table. */
#define MAX_WORKING			8
#define MAX_OF_TABLE		4
/* Retries are due together, so that many are not as many wake-ups. */
#define RETRY_GRAIN_MS		100

/* Who locks the table after that is waited for by the next attempt's barrier. */
#define SNAPSHOT_LOCK_TIMEOUT	"1s"

/* So often a table is read for a shape, where that ends with an odd error. */
#define MAX_SNAPSHOTS		5

typedef enum CreationStep
{
	CREATION_NEW,				/* first of all, the table must be published */
	CREATION_PUBLISHED,			/* ... it is */
	CREATION_PUBLISH,
	CREATION_CAPTURE,
	CREATION_CAPTURED,			/* until the consumers have met the message */
	CREATION_BARRIER,
	CREATION_SNAPSHOT
} CreationStep;

/* Messages that look like a batch's capture message. */
#define MAX_EARLY			8

typedef struct Met
{
	TransactionId xid;
	XLogRecPtr	after;
} Met;

typedef struct EcmBatch
{
	dlist_node	node;			/* in one of the lists below */
	int64		number;			/* in its capture message */
	CreationStep step;
	int			place;			/* index in the shared array, -1: none */
	uint64		job;			/* running pool job, 0: none */
	Oid			relation;
	int			nshapes;
	EcmRequest **shapes;
	TransactionId capture_xid;	/* of the capture message, once it is known */
	bool		met;			/* the message was, in the stream ... */
	XLogRecPtr	capture_after;	/* ... in the transaction after this one */
	int			nearly;			/* met before its transaction was known: */
	Met			early[MAX_EARLY];	/* with its number, forged perhaps */
	XLogRecPtr	capture_lsn;	/* end of its transaction */
	EcmBarrier	barrier;
	EcmBackoff	backoff;
	EcmTime		retry_at;
} Batch;

static int	stack_index;
static MemoryContext creations_context;
static dlist_head waiting = DLIST_STATIC_INIT(waiting); /* to be started */
static dlist_head active = DLIST_STATIC_INIT(active);
static dlist_head retrying = DLIST_STATIC_INIT(retrying);
static EcmTime next_retry_at;	/* of those; 0: there are none */
static int64 last_number;

static const char *
datname(void)
{
	return ecm_stack_at(stack_index)->datname;
}

void
ecm_creations_init(int index)
{
	stack_index = index;
	creations_context = AllocSetContextCreate(TopMemoryContext,
											  "electric_cm creations",
											  ALLOCSET_DEFAULT_SIZES);
	ecm_requests_init(datname());
	/* a former manager's messages may be met, so don't start with the same */
	last_number = ecm_wall_clock();
	ecm_purges_init(index);
}

/* -------------------------------------------------------- what is shown -- */

static void
show(Batch *b, const char *waiting_for)
{
	EcmCreation *shared;

	if (b->place < 0)
		return;
	ecm_lock(LW_EXCLUSIVE);
	shared = &ecm_stack_at(stack_index)->creations[b->place];
	shared->used = true;
	shared->relation = b->relation;
	shared->first = shared->last = b->shapes[0]->id;
	for (int i = 1; i < b->nshapes; i++)
	{
		shared->first = Min(shared->first, b->shapes[i]->id);
		shared->last = Max(shared->last, b->shapes[i]->id);
	}
	ecm_copy_text(shared->waiting_for, sizeof(shared->waiting_for), waiting_for);
	ecm_unlock();
}

static void
hide(Batch *b)
{
	if (b->place < 0)
		return;
	ecm_lock(LW_EXCLUSIVE);
	ecm_stack_at(stack_index)->creations[b->place].used = false;
	ecm_unlock();
	b->place = -1;
}

static bool
take_place(Batch *b)
{
	EcmCreation *places = ecm_stack_at(stack_index)->creations;

	/* only we write there */
	for (int i = 0; i < ECM_MAX_CREATIONS; i++)
		if (!places[i].used)
		{
			b->place = i;
			return true;
		}
	return false;
}

/*
 * A place for everybody who moves, if possible.  Those that wait for another
 * attempt, maybe for ever, can do without.
 */
static void
make_place(Batch *b)
{
	dlist_iter	iter;

	if (b->place >= 0 || take_place(b))
		return;
	dlist_foreach(iter, &retrying)
	{
		Batch	   *other = dlist_container(Batch, node, iter.cur);

		if (other->place >= 0)
		{
			hide(other);
			(void) take_place(b);
			return;
		}
	}
}

/* -------------------------------------------------------------- batches -- */

/* With room for so many shapes. */
static Batch *
create_batch(Oid relation, int max_shapes)
{
	Batch	   *b = MemoryContextAllocZero(creations_context, sizeof(Batch));

	b->shapes = MemoryContextAlloc(creations_context, sizeof(EcmRequest *) * max_shapes);
	b->relation = relation;
	b->place = -1;
	ecm_backoff_init(&b->backoff, ecm_reconnect_initial_delay,
					 ecm_reconnect_max_delay);
	ecm_request_batches(relation, 1);
	return b;
}

static void
put_in_batch(Batch *b, EcmRequest *request)
{
	request->batch = b;
	b->shapes[b->nshapes++] = request;
}

/*
 * The caller has taken it off its list; 'retries': that was the one of those
 * that wait for another attempt.
 */
static void
free_batch(Batch *b, bool retries)
{
	hide(b);
	if (b->job != 0)
		ecm_pool_cancel(b->job);
	ecm_barrier_end(&b->barrier);
	if (!retries)
		ecm_request_batches(b->relation, -1);
	pfree(b->shapes);
	pfree(b);
}

/* An active one; all its shapes are dealt with. */
static void
end_batch(Batch *b)
{
	for (int i = 0; i < b->nshapes; i++)
		ecm_request_end(b->shapes[i]);
	dlist_delete(&b->node);
	free_batch(b, false);
}

/* Leaves out the shapes that are not in this batch any more. */
static void
close_gaps(Batch *b)
{
	int			n = 0;

	for (int i = 0; i < b->nshapes; i++)
		if (b->shapes[i] != NULL)
			b->shapes[n++] = b->shapes[i];
	b->nshapes = n;
}

/* ------------------------------------------------------------- failures -- */

/* Would it have hit any other shape as well? */
static bool
concerns_all(const Batch *b, const EcmError *err)
{
	return b->step == CREATION_BARRIER ||
		ecm_error_fault(err->sqlstate, err->message,
						b->step == CREATION_PUBLISH ?
						ECM_WORK_PUBLISH : ECM_WORK_CREATE) == ECM_FAULT_OF_NONE;
}

/* In halves, which begin with capturing if the table is published. */
static void
split(Batch *b)
{
	int			middle = b->nshapes / 2;
	Batch	   *halves[2];

	halves[0] = create_batch(b->relation, b->nshapes);
	halves[1] = create_batch(b->relation, b->nshapes);
	for (int i = 0; i < b->nshapes; i++)
		put_in_batch(halves[i >= middle], b->shapes[i]);
	for (int i = 1; i >= 0; i--)
	{
		halves[i]->step = b->step == CREATION_PUBLISH ? CREATION_NEW : CREATION_PUBLISHED;
		dlist_push_head(&waiting, &halves[i]->node);
	}
	dlist_delete(&b->node);
	free_batch(b, false);
}

/* Another attempt, later.  The caller has taken it off its list. */
static void
retry_later(Batch *b, const char *reason)
{
	b->retry_at = ecm_backoff_fail(&b->backoff, ecm_now());
	b->retry_at += RETRY_GRAIN_MS * INT64CONST(1000) -
		b->retry_at % (RETRY_GRAIN_MS * INT64CONST(1000));
	b->step = CREATION_NEW;
	ecm_barrier_end(&b->barrier);
	ecm_request_batches(b->relation, -1);
	show(b, reason);
	dlist_push_tail(&retrying, &b->node);
	if (next_retry_at == 0 || b->retry_at < next_retry_at)
		next_retry_at = b->retry_at;
}

static void
fail(Batch *b, const EcmError *err)
{
	const char *reason = err->message;
	const char *hint = err->hint;

	/*
	 * only the snapshot looks at rows, with what types of extensions there
	 * are
	 */
	if (b->step == CREATION_SNAPSHOT)
		reason = strncmp(err->sqlstate, "XX", 2) == 0 ? ecm_error_condition(err->sqlstate) :
			ecm_error_for_public(err->sqlstate, err->message);
	if (reason != err->message)
	{
		reason = pstrdup(reason);
		hint = "";
	}

	if (b->nshapes > 1 && !concerns_all(b, err))
	{
		split(b);
		return;
	}
	dlist_delete(&b->node);
	retry_later(b, reason);
	if (b->backoff.retries > 1)
		return;
	if (b->nshapes == 1)
		ecm_event_in(MyDatabaseId, datname(), ECM_EVENT_SHAPE_CREATION_FAILED, hint,
					 "could not create shape %s yet: %s", b->shapes[0]->handle,
					 reason);
	else
		ecm_event_in(MyDatabaseId, datname(), ECM_EVENT_SHAPE_CREATION_FAILED, hint,
					 "could not create shape %s and %d others of its table yet: %s",
					 b->shapes[0]->handle, b->nshapes - 1, reason);
}

/* ---------------------------------------------------------------- steps -- */

static void job_done(void *arg, EcmConn *conn, const EcmError *err);

static void
submit(Batch *b, CreationStep step, const char *sql, int timeout_ms,
	   const char *waiting_for)
{
	b->step = step;
	show(b, waiting_for);
	b->job = ecm_pool_submit(sql, timeout_ms, job_done, b);
}

/* An array constant: of the shapes' ids, or of their generations. */
static char *
array_literal(const Batch *b, bool generations)
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
start_publish(Batch *b)
{
	submit(b, CREATION_PUBLISH,
		   psprintf("SELECT _electric_cm.publish_table(%u, %s)", b->relation,
					array_literal(b, false)),
		   JOB_TIMEOUT_MS, "the table to be added to the publication");
}

/*
 * In a transaction of its own, after the one that published the table.
 */
static void
start_capture(Batch *b)
{
	b->number = ++last_number;
	b->capture_xid = InvalidTransactionId;
	b->met = false;
	b->nearly = 0;
	b->capture_lsn = InvalidXLogRecPtr;
	submit(b, CREATION_CAPTURE,
		   psprintf("SELECT shape, generation, action, shape_relation, xid FROM"
					" _electric_cm.capture_shapes(" INT64_FORMAT ", %u, %s)",
					b->number, b->relation, array_literal(b, false)),
		   JOB_TIMEOUT_MS, "the start of capturing");
}

static void
start_snapshot(Batch *b)
{
	submit(b, CREATION_SNAPSHOT,
		   psprintf("BEGIN ISOLATION LEVEL REPEATABLE READ;"
					"SET LOCAL lock_timeout = '" SNAPSHOT_LOCK_TIMEOUT "';"
					"SELECT _electric_cm.take_snapshot(%s, %s, %s); COMMIT",
					array_literal(b, false), array_literal(b, true),
					b->backoff.retries + 1 >= MAX_SNAPSHOTS ? "true" : "false"),
		   0, "the snapshot of the table");
}

/* The message with the batch's number, if it is in the right transaction. */
static void
note_met(Batch *b, TransactionId xid, XLogRecPtr after)
{
	if (b->met || xid != b->capture_xid)
		return;
	b->met = true;
	b->capture_after = after;
}

/* The answer that has the right transaction has not come yet. */
static void
note_early(Batch *b, TransactionId xid, XLogRecPtr after)
{
	for (int i = 0; i < b->nearly; i++)
		if (b->early[i].xid == xid)
			return;
	if (b->nearly < MAX_EARLY)
		b->early[b->nearly++] = (Met)
	{
		xid, after
	};
}

/* As the answer says. */
static Oid
relation_of(EcmConn *conn, int64 id)
{
	for (int row = 0; row < ecm_conn_nrows(conn); row++)
		if (strtoi64(ecm_conn_value(conn, row, 0), NULL, 10) == id)
			return strtoul(ecm_conn_value(conn, row, 3), NULL, 10);
	return InvalidOid;
}

/*
 * It was asked for as a shape of another table than it is of, by a message that
 * somebody has forged.
 */
static void
request_again(EcmRequest *request, Oid relation)
{
	int64		id = request->id;
	char		handle[sizeof(request->handle)];

	strlcpy(handle, request->handle, sizeof(handle));
	ecm_request_end(request);
	ecm_request_add(id, relation, handle, InvalidTransactionId);
}

/*
 * The answer has a row for each shape that is there.  A shape's row may be
 * locked, by somebody who drops it and may yet change his mind: those try
 * again later, without the others.
 */
static void
captured(Batch *b, EcmConn *conn)
{
	Batch	   *locked = NULL;
	int			nall = b->nshapes;

	for (int i = 0; i < b->nshapes; i++)
		b->shapes[i]->generation = 0;
	for (int row = 0; row < ecm_conn_nrows(conn); row++)
	{
		EcmRequest *request = ecm_request_find(strtoi64(ecm_conn_value(conn, row, 0), NULL, 10));
		const char *action = ecm_conn_value(conn, row, 2);

		b->capture_xid = strtoul(ecm_conn_value(conn, row, 4), NULL, 10);
		if (request == NULL || request->batch != b)
			continue;			/* dropped meanwhile */
		if (strcmp(action, "capture") == 0)
			request->generation = atoi(ecm_conn_value(conn, row, 1));
		else if (strcmp(action, "locked") == 0)
		{
			if (locked == NULL)
				locked = create_batch(b->relation, nall);
			put_in_batch(locked, request);
		}
		else if (strcmp(action, "other") == 0)
			request->generation = -1;
	}
	for (int i = 0; i < b->nearly; i++)
		note_met(b, b->early[i].xid, b->early[i].after);
	for (int i = 0; i < b->nshapes; i++)
	{
		EcmRequest *request = b->shapes[i];

		if (request->batch == b && request->generation > 0)
			continue;
		if (request->batch == b && request->generation < 0)
			request_again(request, relation_of(conn, request->id));
		else if (request->batch == b)
			ecm_request_end(request);	/* gone, or nothing left to do */
		b->shapes[i] = NULL;
	}
	close_gaps(b);
	if (locked != NULL)
	{
		make_place(locked);
		retry_later(locked, "somebody who has locked the shape, to drop it perhaps");
	}
	if (b->nshapes == 0)
		end_batch(b);
	else if (!b->met && b->nearly == MAX_EARLY)
	{
		/* ours may have been among those that there was no room for */
		dlist_delete(&b->node);
		retry_later(b, "another attempt to capture its changes");
	}
	else
		b->step = CREATION_CAPTURED;
}

/*
 * Looks who of the writers is still there.
 */
static void
poll_barrier(Batch *b)
{
	if ((ecm_barrier_poll(&b->barrier) || b->retry_at == 0) && b->barrier.nwriters > 0)
		show(b, ecm_barrier_text(&b->barrier));
	if (b->barrier.nwriters == 0)
		start_snapshot(b);
	else
		b->retry_at = ecm_later(ecm_now(), BARRIER_POLL_MS);
}

static void
start_barrier(Batch *b)
{
	EcmError	err;

	b->step = CREATION_BARRIER;
	b->retry_at = 0;
	if (ecm_barrier_start(&b->barrier, b->relation, &err))
		poll_barrier(b);
	else
		fail(b, &err);
}

/*
 * The answer has the shapes that are done; the others take part in the next
 * snapshot.  What was captured for them is good for that one, too.
 */
static void
snapshot_taken(Batch *b, EcmConn *conn)
{
	const char *answer = ecm_conn_value(conn, 0, 0);
	int			before = b->nshapes;
	char	   *p = unconstify(char *, answer);

	while (p != NULL && *p != '\0' && *p != '}')
	{
		EcmRequest *request = ecm_request_find(strtoi64(p + 1, &p, 10));

		if (request != NULL && request->batch == b)
			request->batch = NULL;
	}
	for (int i = 0; i < b->nshapes; i++)
		if (b->shapes[i]->batch == NULL)
		{
			/* the consumer does the rest */
			b->shapes[i]->batch = b;
			ecm_request_end(b->shapes[i]);
			b->shapes[i] = NULL;
		}
	close_gaps(b);
	if (b->nshapes == 0 || b->nshapes == before)
		end_batch(b);			/* what is left is nobody's, or another's */
	else
		start_snapshot(b);
}

static void
job_done(void *arg, EcmConn *conn, const EcmError *err)
{
	Batch	   *b = arg;

	b->job = 0;
	if (err != NULL)
		fail(b, err);
	else if (b->step == CREATION_PUBLISH)
		start_capture(b);
	else if (b->step == CREATION_CAPTURE)
		captured(b, conn);
	else
		snapshot_taken(b, conn);
}

/* ------------------------------------------------- what comes and goes --- */

/* A shape that is gone needs no creation any more. */
static void
drop_request(int64 id)
{
	EcmRequest *request = ecm_request_find(id);
	Batch	   *b = request ? request->batch : NULL;

	if (request == NULL)
		return;
	ecm_request_end(request);
	if (b == NULL)
		return;
	for (int i = 0; i < b->nshapes; i++)
		if (b->shapes[i] == request)
			b->shapes[i] = NULL;
	close_gaps(b);
	if (b->nshapes == 0)
	{
		bool		retries = b->retry_at != 0 && b->step == CREATION_NEW;

		dlist_delete(&b->node);
		free_batch(b, retries);
	}
}

typedef struct DroppedArg
{
	const EcmStreamMessage *message;
	TransactionId xid;			/* that has it */
	int			n;
	int64	   *gone;			/* those that are, or go with it */
} DroppedArg;

/* The table is only read, and not waited for. */
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

		/* what can't be told now, whoever deletes its log will see */
		if (message->kind == ECM_MESSAGE_LOST ?
			known && ecm_fate_is_lost(dropped->xid, id) :
			!known || !ecm_fate_of(&fates, id).exists)
			dropped->gone[dropped->n++] = id;
	}
	if (known)
		ecm_fates_end(&fates);
}

/* Of those that are lost, the rows are still there. */
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
		drop_request(dropped.gone[i]);
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

static void
capture_met(int64 number, TransactionId xid, XLogRecPtr after)
{
	dlist_iter	iter;

	dlist_foreach(iter, &active)
	{
		Batch	   *b = dlist_container(Batch, node, iter.cur);

		if (b->number != number)
			continue;
		if (TransactionIdIsValid(b->capture_xid))
			note_met(b, xid, after);
		else
			note_early(b, xid, after);
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
							message->handle, xid);
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
		case ECM_MESSAGE_LIVE:
		case ECM_MESSAGE_FAIL:
		case ECM_MESSAGE_OWNER:
		case ECM_MESSAGE_UNSENDABLE:
		case ECM_MESSAGE_GIANT:
			break;				/* others' */
	}
}

void
ecm_creations_scan(void)
{
	ecm_requests_scan();
	ecm_purges_scan();
}

/* --------------------------------------------------------- moving it on -- */

/* Of one table; NULL: there is nothing to be done now. */
static Batch *
form_batch(EcmTime now)
{
	EcmRequest *taken[BATCH_SHAPES];
	int			n = ecm_requests_take(now, MAX_OF_TABLE, taken, BATCH_SHAPES);
	Batch	   *b;

	if (n == 0)
		return NULL;
	b = create_batch(taken[0]->relation, n);
	for (int i = 0; i < n; i++)
		put_in_batch(b, taken[i]);
	return b;
}

static void
poll_active(EcmTime now, XLogRecPtr received_lsn, XLogRecPtr applied_lsn)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &active)
	{
		Batch	   *b = dlist_container(Batch, node, iter.cur);

		if (b->met && XLogRecPtrIsInvalid(b->capture_lsn) &&
			received_lsn > b->capture_after)
			b->capture_lsn = received_lsn;
		if (b->step == CREATION_BARRIER && now >= b->retry_at)
			poll_barrier(b);
		else if (b->step == CREATION_CAPTURED &&
				 !XLogRecPtrIsInvalid(b->capture_lsn) &&
				 applied_lsn >= b->capture_lsn)
			start_barrier(b);
	}
}

static void
poll_retries(EcmTime now)
{
	dlist_mutable_iter iter;

	if (next_retry_at == 0 || now < next_retry_at)
		return;
	next_retry_at = 0;
	dlist_foreach_modify(iter, &retrying)
	{
		Batch	   *b = dlist_container(Batch, node, iter.cur);

		if (now >= b->retry_at)
		{
			dlist_delete(&b->node);
			b->retry_at = 0;
			ecm_request_batches(b->relation, 1);
			dlist_push_tail(&waiting, &b->node);
		}
		else if (next_retry_at == 0 || b->retry_at < next_retry_at)
			next_retry_at = b->retry_at;
	}
}

/* Those at the barrier need nobody's time, and may stay there for long. */
static int
count_working(void)
{
	dlist_iter	iter;
	int			n = 0;

	dlist_foreach(iter, &active)
		if (dlist_container(Batch, node, iter.cur)->step != CREATION_BARRIER)
		n++;
	return n;
}

static void
start_batches(EcmTime now)
{
	for (int n = count_working(); n < MAX_WORKING; n++)
	{
		Batch	   *b;

		if (!dlist_is_empty(&waiting))
			b = dlist_container(Batch, node, dlist_pop_head_node(&waiting));
		else if ((b = form_batch(now)) == NULL)
			return;
		dlist_push_tail(&active, &b->node);
		make_place(b);
		if (b->step == CREATION_NEW)
			start_publish(b);
		else
			start_capture(b);
	}
}

void
ecm_creations_poll(EcmTime now, XLogRecPtr received_lsn,
				   XLogRecPtr applied_lsn)
{
	poll_active(now, received_lsn, applied_lsn);
	poll_retries(now);
	start_batches(now);
	ecm_requests_poll(now);
	ecm_purges_poll(now, received_lsn, applied_lsn);
}

EcmTime
ecm_creations_deadline(void)
{
	EcmTime		deadline = ecm_sooner(ecm_requests_deadline(), ecm_purges_deadline());
	dlist_iter	iter;

	deadline = ecm_sooner(deadline, next_retry_at);
	dlist_foreach(iter, &active)
	{
		Batch	   *b = dlist_container(Batch, node, iter.cur);

		if (b->step == CREATION_BARRIER)
			deadline = ecm_sooner(deadline, b->retry_at);
	}
	return deadline;
}

static void
forget_batches(dlist_head *list)
{
	while (!dlist_is_empty(list))
	{
		Batch	   *b = dlist_container(Batch, node, dlist_pop_head_node(list));

		for (int i = 0; i < b->nshapes; i++)
			ecm_request_end(b->shapes[i]);
		free_batch(b, list == &retrying);
	}
}

void
ecm_creations_forget(void)
{
	forget_batches(&active);
	forget_batches(&waiting);
	forget_batches(&retrying);
	next_retry_at = 0;
	ecm_requests_forget();
	ecm_purges_forget();
}
