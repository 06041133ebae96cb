/*-------------------------------------------------------------------------
 *
 * shape_batch.c
 *	  The manager's part in creating shapes: shapes of one table that go that
 *	  way together.
 *
 * A batch is in one of three lists.  Active batches are at some step of
 * shape_creation.c.  Waiting batches are started as soon as fewer than MAX_WORKING of
 * the active ones use the pool or the consumers.  Retrying batches have failed, and
 * wait until it is time for another attempt.
 *
 * One shape may be the cause of a batch's failure, so a batch that fails is split,
 * until that shape fails alone: of 1,000 shapes, after ten failures.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "base/backoff.h"
#include "base/clock.h"
#include "base/errors.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/stream_message.h"
#include "base/text.h"
#include "connection/pool.h"
#include "manager/consumer_queues.h"
#include "manager/shape_barrier.h"
#include "manager/shape_batch.h"
#include "manager/shape_requests.h"

/* Shapes in a batch, at most: more would not be faster, and fail together. */
#define BATCH_SHAPES		ECM_MESSAGE_SHAPES
/* Active batches that use the pool or the consumers; batches of one table. */
#define MAX_WORKING			8
#define MAX_OF_TABLE		4
/* Retries are due at multiples of this, so that many make few wake-ups. */
#define RETRY_GRAIN_MS		100

typedef struct Batches
{
	int			stack_index;
	MemoryContext context;		/* batches, and their lists of shapes */
	dlist_head	waiting;		/* to be started */
	dlist_head	active;
	dlist_head	retrying;
	EcmTime		next_retry_at;	/* of those; 0: there are none */
} Batches;

static Batches batches =
{
	.waiting = DLIST_STATIC_INIT(batches.waiting),
	.active = DLIST_STATIC_INIT(batches.active),
	.retrying = DLIST_STATIC_INIT(batches.retrying)
};

static const char *
datname(void)
{
	return ecm_stack_at(batches.stack_index)->datname;
}

void
ecm_batches_init(int index)
{
	batches.stack_index = index;
	batches.context = AllocSetContextCreate(TopMemoryContext, "electric_cm creations",
											ALLOCSET_DEFAULT_SIZES);
}

dlist_head *
ecm_batches_active(void)
{
	return &batches.active;
}

/* -------------------------------------------------------- what is shown -- */

void
ecm_batch_show(EcmBatch *b, const char *waiting_for)
{
	EcmCreation *shared;

	if (b->place < 0)
		return;
	ecm_lock(LW_EXCLUSIVE);
	shared = &ecm_stack_at(batches.stack_index)->creations[b->place];
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

/* Gives a batch's place in the entry back. */
static void
hide(EcmBatch *b)
{
	if (b->place < 0)
		return;
	ecm_lock(LW_EXCLUSIVE);
	ecm_stack_at(batches.stack_index)->creations[b->place].used = false;
	ecm_unlock();
	b->place = -1;
}

static bool
take_place(EcmBatch *b)
{
	EcmCreation *places = ecm_stack_at(batches.stack_index)->creations;

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
 * If all places are taken, takes one from a batch that waits for another attempt: it
 * may wait for ever, while this one moves.
 */
void
ecm_batch_make_place(EcmBatch *b)
{
	dlist_iter	iter;

	if (b->place >= 0 || take_place(b))
		return;
	dlist_foreach(iter, &batches.retrying)
	{
		EcmBatch   *other = dlist_container(EcmBatch, node, iter.cur);

		if (other->place >= 0)
		{
			hide(other);
			(void) take_place(b);
			return;
		}
	}
}

/* -------------------------------------------------------------- batches -- */

static void
count(EcmBatch *b)
{
	if (!b->counted)
		ecm_request_batches(b->relation, 1);
	b->counted = true;
}

void
ecm_batch_uncount(EcmBatch *b)
{
	if (b->counted)
		ecm_request_batches(b->relation, -1);
	b->counted = false;
}

EcmBatch *
ecm_batch_create(Oid relation, int max_shapes)
{
	EcmBatch   *b = MemoryContextAllocZero(batches.context, sizeof(EcmBatch));

	b->shapes = MemoryContextAlloc(batches.context, sizeof(EcmShapeRequest *) * max_shapes);
	b->relation = relation;
	b->place = -1;
	ecm_backoff_init(&b->backoff, ecm_reconnect_initial_delay,
					 ecm_reconnect_max_delay);
	count(b);
	return b;
}

void
ecm_batch_put(EcmBatch *b, EcmShapeRequest *request)
{
	request->batch = b;
	b->shapes[b->nshapes++] = request;
}

/* Frees a batch, which the caller has taken off its list. */
static void
free_batch(EcmBatch *b)
{
	hide(b);
	if (b->job != 0)
		ecm_pool_cancel(b->job);
	ecm_barrier_end(&b->barrier);
	ecm_batch_uncount(b);
	pfree(b->shapes);
	pfree(b);
}

void
ecm_batch_end(EcmBatch *b)
{
	for (int i = 0; i < b->nshapes; i++)
		ecm_request_end(b->shapes[i]);
	dlist_delete(&b->node);
	free_batch(b);
}

void
ecm_batch_close_gaps(EcmBatch *b)
{
	int			n = 0;

	for (int i = 0; i < b->nshapes; i++)
		if (b->shapes[i] != NULL)
			b->shapes[n++] = b->shapes[i];
	b->nshapes = n;
}

/* ------------------------------------------------------------- messages -- */

void
ecm_batch_expect(EcmBatch *b)
{
	b->message_xid = InvalidTransactionId;
	b->met = false;
	b->nearly = 0;
	b->message_lsn = InvalidXLogRecPtr;
}

/* The right transaction is known: if it is this one, this is the message. */
static void
note_met(EcmBatch *b, TransactionId xid, XLogRecPtr after)
{
	if (b->met || xid != b->message_xid)
		return;
	b->met = true;
	b->message_after = after;
}

/* The same while the answer that says which transaction is right has not come. */
static void
note_early(EcmBatch *b, TransactionId xid, XLogRecPtr after)
{
	for (int i = 0; i < b->nearly; i++)
		if (b->early[i].xid == xid)
			return;
	if (b->nearly < ECM_MAX_EARLY)
		b->early[b->nearly++] = (EcmMet)
	{
		xid, after
	};
}

void
ecm_batch_met(EcmBatch *b, TransactionId xid, XLogRecPtr after)
{
	if (TransactionIdIsValid(b->message_xid))
		note_met(b, xid, after);
	else
		note_early(b, xid, after);
}

bool
ecm_batch_expects(EcmBatch *b, TransactionId xid)
{
	b->message_xid = xid;
	for (int i = 0; i < b->nearly; i++)
		note_met(b, b->early[i].xid, b->early[i].after);
	return b->met || b->nearly < ECM_MAX_EARLY;
}

bool
ecm_batch_has_come(EcmBatch *b, XLogRecPtr received_lsn, XLogRecPtr applied_lsn)
{
	if (b->met && XLogRecPtrIsInvalid(b->message_lsn) && received_lsn > b->message_after)
		b->message_lsn = received_lsn;
	if (XLogRecPtrIsInvalid(b->message_lsn))
		return false;
	if (applied_lsn < b->message_lsn)
		ecm_queues_expect_progress();
	return applied_lsn >= b->message_lsn;
}

/* ------------------------------------------------------------- failures -- */

/* Would the error have hit any other shape as well?  Then splitting is of no use. */
static bool
concerns_all(const EcmBatch *b, const EcmError *err)
{
	return b->step == ECM_CREATION_BARRIER ||
		ecm_error_fault(err->sqlstate, err->message,
						b->step == ECM_CREATION_PUBLISH ?
						ECM_WORK_PUBLISH : ECM_WORK_CREATE) == ECM_FAULT_OF_NONE;
}

/*
 * Splits a batch in halves, the first of which comes next.  If the failed step was not
 * that of publishing, the table is published, and they begin with capturing.
 */
static void
split(EcmBatch *b)
{
	int			middle = b->nshapes / 2;
	EcmBatch   *halves[2];

	halves[0] = ecm_batch_create(b->relation, b->nshapes);
	halves[1] = ecm_batch_create(b->relation, b->nshapes);
	for (int i = 0; i < b->nshapes; i++)
		ecm_batch_put(halves[i >= middle], b->shapes[i]);
	for (int i = 1; i >= 0; i--)
	{
		halves[i]->step = b->step == ECM_CREATION_PUBLISH ? ECM_CREATION_NEW : ECM_CREATION_PUBLISHED;
		dlist_push_head(&batches.waiting, &halves[i]->node);
	}
	dlist_delete(&b->node);
	free_batch(b);
}

/* The next multiple of RETRY_GRAIN_MS. */
static EcmTime
round_up(EcmTime at)
{
	return at + RETRY_GRAIN_MS * INT64CONST(1000) - at % (RETRY_GRAIN_MS * INT64CONST(1000));
}

void
ecm_batch_retry_later(EcmBatch *b, const char *reason)
{
	b->retry_at = round_up(ecm_backoff_fail(&b->backoff, ecm_now()));
	b->step = ECM_CREATION_NEW;
	b->reading = 0;
	ecm_barrier_end(&b->barrier);
	ecm_batch_uncount(b);
	ecm_batch_show(b, reason);
	dlist_push_tail(&batches.retrying, &b->node);
	if (batches.next_retry_at == 0 || b->retry_at < batches.next_retry_at)
		batches.next_retry_at = b->retry_at;
}

/* Is it of use to go on from where the reading is, rather than to begin anew? */
static bool
may_resume(const EcmBatch *b, const EcmError *err)
{
	if (b->reading == 0)
		return false;

	/*
	 * what the table needs is not there (any more): see
	 * ecm_read_check_table()
	 */
	if (strcmp(err->sqlstate, "55000") == 0)
		return false;
	/* one shape alone is blamed by the session, if it is to be blamed */
	return b->nshapes == 1 || concerns_all(b, err) || strncmp(err->sqlstate, "40", 2) == 0;
}

/* The next attempt to have a reading's next piece read. */
static void
resume_later(EcmBatch *b, const char *reason)
{
	b->retry_at = round_up(ecm_backoff_fail(&b->backoff, ecm_now()));
	b->step = ECM_CREATION_READ;
	ecm_batch_show(b, reason);
}

void
ecm_batch_fail(EcmBatch *b, const EcmError *err)
{
	const char *reason = err->message;
	const char *hint = err->hint;

	/*
	 * The reason goes into an event, which everybody may see.  The snapshot,
	 * and its pieces, are the only steps that read rows, so only their errors
	 * may quote one.
	 */
	if (b->step >= ECM_CREATION_SNAPSHOT)
		reason = ecm_error_of_rows_for_public(err->sqlstate, err->message);
	if (reason != err->message)
	{
		reason = pstrdup(reason);
		hint = "";
	}

	if (may_resume(b, err))
		resume_later(b, reason);
	else if (b->nshapes > 1 && !concerns_all(b, err))
	{
		split(b);
		return;
	}
	else
	{
		dlist_delete(&b->node);
		ecm_batch_retry_later(b, reason);
	}
	if (b->backoff.retries > 1)
		return;
	if (b->nshapes == 1)
		ecm_event_in(MyDatabaseId, datname(), ECM_EVENT_SHAPE_CREATION_FAILED,
					 hint,
					 "could not create, or resync, shape %s yet: %s", b->shapes[0]->handle,
					 reason);
	else
		ecm_event_in(MyDatabaseId, datname(), ECM_EVENT_SHAPE_CREATION_FAILED,
					 hint,
					 "could not create, or resync, shape %s and %d others of its table yet: %s",
					 b->shapes[0]->handle, b->nshapes - 1, reason);
}

/* --------------------------------------------------- what comes and goes -- */

void
ecm_batch_drop_shape(int64 id)
{
	EcmShapeRequest *request = ecm_request_find(id);
	EcmBatch   *b = request ? request->batch : NULL;

	if (request == NULL)
		return;
	ecm_request_end(request);
	if (b == NULL)
		return;
	for (int i = 0; i < b->nshapes; i++)
		if (b->shapes[i] == request)
			b->shapes[i] = NULL;
	ecm_batch_close_gaps(b);
	if (b->nshapes == 0)
	{
		dlist_delete(&b->node);
		free_batch(b);
	}
}

/* Makes a batch of requests for one table; NULL: none can be created now. */
static EcmBatch *
form_batch(EcmTime now)
{
	EcmShapeRequest *taken[BATCH_SHAPES];
	int			n = ecm_requests_take(now, MAX_OF_TABLE, taken, BATCH_SHAPES);
	EcmBatch   *b;

	if (n == 0)
		return NULL;
	b = ecm_batch_create(taken[0]->relation, n);
	for (int i = 0; i < n; i++)
		ecm_batch_put(b, taken[i]);
	b->reading = taken[0]->reading;
	return b;
}

void
ecm_batches_poll_retries(EcmTime now)
{
	dlist_mutable_iter iter;

	if (batches.next_retry_at == 0 || now < batches.next_retry_at)
		return;
	batches.next_retry_at = 0;
	dlist_foreach_modify(iter, &batches.retrying)
	{
		EcmBatch   *b = dlist_container(EcmBatch, node, iter.cur);

		if (now >= b->retry_at)
		{
			dlist_delete(&b->node);
			b->retry_at = 0;
			count(b);
			dlist_push_tail(&batches.waiting, &b->node);
		}
		else if (batches.next_retry_at == 0 || b->retry_at < batches.next_retry_at)
			batches.next_retry_at = b->retry_at;
	}
}

/*
 * The number of active batches that use the pool or the consumers.  Those at the
 * barrier don't, and may stay there for as long as somebody's transaction is open.
 * Readings take turns by themselves.
 */
static int
count_working(void)
{
	dlist_iter	iter;
	int			n = 0;

	dlist_foreach(iter, &batches.active)
	{
		EcmBatch   *b = dlist_container(EcmBatch, node, iter.cur);

		if (b->step != ECM_CREATION_BARRIER && b->reading == 0)
			n++;
	}
	return n;
}

EcmBatch *
ecm_batches_start_next(EcmTime now)
{
	EcmBatch   *b;

	if (count_working() >= MAX_WORKING)
		return NULL;
	if (!dlist_is_empty(&batches.waiting))
		b = dlist_container(EcmBatch, node, dlist_pop_head_node(&batches.waiting));
	else if ((b = form_batch(now)) == NULL)
		return NULL;
	dlist_push_tail(&batches.active, &b->node);
	ecm_batch_make_place(b);
	return b;
}

EcmTime
ecm_batches_deadline(void)
{
	EcmTime		deadline = batches.next_retry_at;
	dlist_iter	iter;

	dlist_foreach(iter, &batches.active)
	{
		EcmBatch   *b = dlist_container(EcmBatch, node, iter.cur);

		if (b->step == ECM_CREATION_BARRIER)
			deadline = ecm_earlier(deadline, b->retry_at);
	}
	return deadline;
}

static void
forget_list(dlist_head *list)
{
	while (!dlist_is_empty(list))
	{
		EcmBatch   *b = dlist_container(EcmBatch, node, dlist_pop_head_node(list));

		for (int i = 0; i < b->nshapes; i++)
			ecm_request_end(b->shapes[i]);
		free_batch(b);
	}
}

void
ecm_batches_forget(void)
{
	forget_list(&batches.active);
	forget_list(&batches.waiting);
	forget_list(&batches.retrying);
	batches.next_retry_at = 0;
}
