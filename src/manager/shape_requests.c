/*-------------------------------------------------------------------------
 *
 * shape_requests.c
 *	  The manager's part in creating shapes: which are to be created.
 *
 * Requests come by the stream, by a message "create" where somebody has declared a
 * shape, and from scans of the catalog, at the start of each stream: the messages of
 * those shapes may have been in an earlier one.  Requests wait in a queue per table
 * until shape_batch.c takes them.
 *
 * A commit is in the stream as soon as it is in the WAL.  Others can see it a moment
 * later, or much later if it waits for a synchronous standby.  Until then the shape
 * can't be created, as no pool session sees its row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/namespace.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/procarray.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/bgworker.h"
#include "base/clock.h"
#include "base/event.h"
#include "base/shmem.h"
#include "base/table_writer.h"
#include "connection/pool.h"
#include "manager/shape_requests.h"

/* How soon to look again for a commit that can't be seen yet: at first, at last. */
#define CREATOR_MIN_MS		5
#define CREATOR_MAX_MS		1000

/* Hash tables that have had more entries than this are freed when they are empty. */
#define MANY_REQUESTS		1000

/* A scan that has failed is tried again after so long. */
#define SCAN_RETRY_MS		1000
/* A scan brings so many shapes at a time. */
#define SCAN_SHAPES			10000
/* How often to look whether those have ended who may not be visible yet. */
#define CREATORS_POLL_MS	1000

/* A table's requests that are in no batch. */
typedef struct Queue
{
	Oid			relation;		/* hash key */
	dlist_node	node;			/* in queue_list */
	dlist_head	requests;		/* of EcmShapeRequest */
	int			nrequests;
	int			nbatches;		/* of the table, active or waiting */
	int			delay_ms;		/* before the next look, after looks in vain */
	EcmTime		look_at;		/* no request is taken before: their creators
								 * could not be seen yet */
} Queue;

typedef struct Requests
{
	const char *datname;
	MemoryContext context;		/* of the tables, and of creators */
	HTAB	   *requests;		/* of EcmShapeRequest */
	HTAB	   *queues;			/* of Queue */
	bool		were_many;		/* there were more than MANY_REQUESTS since
								 * the hash tables were made */
	dlist_head	queue_list;		/* all queues; the first one's turn is next */
	EcmTime		next_look_at;	/* the earliest look_at of the queues; 0: none */

	/* the scan of the catalog */
	struct
	{
		uint64		job;		/* 0: none runs */
		int64		reached;	/* all shapes up to this id have been read */
		bool		goes_on;	/* there are more than the last job has
								 * brought */
		bool		wanted;		/* start anew, when it has come to its end */
		EcmTime		retry_at;	/* start anew, after a failure; 0: no need to */
	}			scan;

	/*
	 * Transactions that may have declared shapes which the scan does not see.
	 * When all have ended, there is another scan.
	 */
	struct
	{
		VirtualTransactionId *vxids;
		int			n;			/* 0: no other scan is needed */
		EcmTime		poll_at;
	}			creators;
} Requests;

static Requests state =
{
	.queue_list = DLIST_STATIC_INIT(state.queue_list)
};

static HTAB *
create_hash(const char *name, Size keysize, Size entrysize)
{
	HASHCTL		ctl;

	ctl.keysize = keysize;
	ctl.entrysize = entrysize;
	ctl.hcxt = state.context;
	return hash_create(name, 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
create_hashes(void)
{
	state.requests = create_hash("electric_cm requests", sizeof(int64), sizeof(EcmShapeRequest));
	state.queues = create_hash("electric_cm queues", sizeof(Oid), sizeof(Queue));
}

void
ecm_requests_init(const char *name)
{
	state.datname = name;
	state.context = AllocSetContextCreate(TopMemoryContext,
										  "electric_cm requests",
										  ALLOCSET_DEFAULT_SIZES);
	create_hashes();
}

/* The table's queue, which is made if there is none. */
static Queue *
get_queue(Oid relation)
{
	bool		found;
	Queue	   *queue = hash_search(state.queues, &relation, HASH_ENTER, &found);

	if (!found)
	{
		dlist_init(&queue->requests);
		queue->nrequests = queue->nbatches = queue->delay_ms = 0;
		queue->look_at = 0;
		dlist_push_tail(&state.queue_list, &queue->node);
	}
	return queue;
}

static void
remove_queue_if_empty(Queue *queue)
{
	if (queue->nrequests > 0 || queue->nbatches > 0)
		return;
	dlist_delete(&queue->node);
	(void) hash_search(state.queues, &queue->relation, HASH_REMOVE, NULL);
}

EcmShapeRequest *
ecm_request_find(int64 id)
{
	return hash_search(state.requests, &id, HASH_FIND, NULL);
}

void
ecm_request_add(int64 id, Oid relation, const char *handle, TransactionId created_by,
				int64 reading)
{
	bool		found;
	EcmShapeRequest *request = hash_search(state.requests, &id, HASH_ENTER, &found);
	Queue	   *queue;

	if (found)
	{
		/* the gap may have begun since it was taken */
		request->again |= !request->queued;
		return;
	}
	strlcpy(request->handle, handle, sizeof(request->handle));
	request->relation = relation;
	request->created_by = created_by;
	request->reading = reading;
	request->generation = 0;
	request->batch = NULL;
	request->queued = true;
	request->again = false;
	queue = get_queue(relation);
	queue->look_at = 0;
	queue->delay_ms = 0;
	state.next_look_at = 0;
	dlist_push_tail(&queue->requests, &request->node);
	queue->nrequests++;
}

void
ecm_request_end(EcmShapeRequest *request)
{
	if (request->queued)
	{
		Queue	   *queue = get_queue(request->relation);

		dlist_delete(&request->node);
		queue->nrequests--;
		remove_queue_if_empty(queue);
	}
	state.scan.wanted |= request->again;
	(void) hash_search(state.requests, &request->id, HASH_REMOVE, NULL);
}

void
ecm_request_batches(Oid relation, int change)
{
	Queue	   *queue = get_queue(relation);

	queue->nbatches += change;

	remove_queue_if_empty(queue);
}

/*
 * Takes requests out of a queue whose creators' commits are visible; the others go to
 * its end.
 */
static int
take_from_queue(Queue *queue, EcmTime now, EcmShapeRequest **taken, int max)
{
	int			n = queue->nrequests;
	int			ntaken = 0;
	TransactionId unseen = InvalidTransactionId;

	for (int i = 0; i < n && ntaken < max; i++)
	{
		EcmShapeRequest *request = dlist_container(EcmShapeRequest, node,
												   dlist_pop_head_node(&queue->requests));

		if (ntaken > 0 && request->reading != taken[0]->reading)
		{
			dlist_push_tail(&queue->requests, &request->node);
			continue;
		}

		/* many requests in a row have the same creator: ask once */
		if (TransactionIdIsValid(request->created_by) &&
			(request->created_by == unseen ||
			 TransactionIdIsInProgress(request->created_by)))
		{
			unseen = request->created_by;
			dlist_push_tail(&queue->requests, &request->node);
			continue;
		}
		request->created_by = InvalidTransactionId;
		request->queued = false;
		taken[ntaken++] = request;
		queue->nrequests--;
	}
	if (ntaken == 0)
	{
		queue->delay_ms = Min(Max(queue->delay_ms * 2, CREATOR_MIN_MS), CREATOR_MAX_MS);
		queue->look_at = ecm_later(now, queue->delay_ms);
	}
	return ntaken;
}

int
ecm_requests_take(EcmTime now, int max_batches, EcmShapeRequest **taken, int max)
{
	dlist_mutable_iter iter;

	state.next_look_at = 0;
	dlist_foreach_modify(iter, &state.queue_list)
	{
		Queue	   *queue = dlist_container(Queue, node, iter.cur);
		int			n = 0;

		if (queue->nrequests == 0 || queue->nbatches >= max_batches)
			continue;
		if (now >= queue->look_at)
			n = take_from_queue(queue, now, taken, max);
		if (n > 0)
		{
			/* the tables take turns */
			dlist_delete(&queue->node);
			dlist_push_tail(&state.queue_list, &queue->node);
			return n;
		}
		if (state.next_look_at == 0 || queue->look_at < state.next_look_at)
			state.next_look_at = queue->look_at;
	}
	return 0;
}

/* ---------------------------------------------------------------- scans -- */

static void
scan_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	int			n;

	state.scan.job = 0;
	if (err != NULL)
	{
		/* without the scan shapes would stay "creating" for ever: try again */
		ecm_event_in(MyDatabaseId, state.datname, ECM_EVENT_WARNING,
					 err->hint, "could not look for shapes to create: %s",
					 ecm_error_for_public(err->sqlstate, err->message));
		state.scan.retry_at = ecm_later(ecm_now(), SCAN_RETRY_MS);
		return;
	}
	n = ecm_conn_nrows(conn);
	for (int i = 0; i < n; i++)
	{
		state.scan.reached = strtoi64(ecm_conn_value(conn, i, 0), NULL, 10);
		ecm_request_add(state.scan.reached, strtoul(ecm_conn_value(conn, i, 1), NULL, 10),
						ecm_conn_value(conn, i, 2), InvalidTransactionId,
						strtoi64(ecm_conn_value(conn, i, 3), NULL, 10));
	}
	state.scan.goes_on = n == SCAN_SHAPES;
}

/*
 * In a transaction: notes all transactions that have the table of shapes locked as a
 * writer has.
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
	state.creators.vxids = MemoryContextAlloc(state.context,
											  (n + 1) * sizeof(VirtualTransactionId));
	memcpy(state.creators.vxids, vxids, n * sizeof(VirtualTransactionId));
	state.creators.n = n;
}

static void
forget_creators(void)
{
	if (state.creators.vxids != NULL)
		pfree(state.creators.vxids);
	state.creators.vxids = NULL;
	state.creators.n = 0;
}

/*
 * Reads the next SCAN_SHAPES shapes that are being created, by id.  A reading goes on
 * from where it is, if the consumer captures the changes for it.
 */
static void
submit_scan(void)
{
	state.scan.retry_at = 0;
	state.scan.job =
		ecm_pool_submit(psprintf("SELECT s.id, s.relation, s.handle,"
								 " CASE WHEN t.generation = s.generation THEN coalesce(s.reading, 0) ELSE 0 END"
								 " FROM _electric_cm.shape s"
								 " LEFT JOIN _electric_cm.shape_state t ON t.shape = s.id"
								 " WHERE coalesce(t.state, 'capturing') = 'capturing'"
								 " AND s.id > " INT64_FORMAT " ORDER BY s.id LIMIT %d",
								 state.scan.reached, SCAN_SHAPES),
						0, scan_done, NULL);
}

static void
start_scan(void)
{
	state.scan.reached = 0;
	state.scan.goes_on = false;
	state.scan.wanted = false;
	submit_scan();
}

void
ecm_requests_rescan(void)
{
	state.scan.wanted = true;
}

/*
 * A scan does not see the shape of a transaction that has committed in the WAL, but
 * waits for a synchronous standby.  If the lost stream has had that commit, and the
 * slot is beyond it, its message does not come again.  So all transactions that may be
 * in that state are noted before the scan, and when they have ended there is another
 * scan.  The messages of later ones are in this stream.
 */
void
ecm_requests_scan(void)
{
	EcmError	err;

	if (state.scan.job != 0)
		return;
	forget_creators();
	if (!ecm_worker_try(collect_creators, NULL, &err))
	{
		state.scan.retry_at = ecm_later(ecm_now(), SCAN_RETRY_MS);
		return;
	}
	state.creators.poll_at = 0;
	start_scan();
}

/* Looks which of these transactions still run, without waiting. */
static void
poll_creators(EcmTime now)
{
	int			left = 0;

	if (state.creators.n == 0 || now < state.creators.poll_at || state.scan.job != 0 || state.scan.goes_on)
		return;
	for (int i = 0; i < state.creators.n; i++)
		if (!VirtualXactLock(state.creators.vxids[i], false))
			state.creators.vxids[left++] = state.creators.vxids[i];
	state.creators.n = left;
	state.creators.poll_at = ecm_later(now, CREATORS_POLL_MS);
	if (left == 0)
		start_scan();
}

/* Gives memory back: a hash table never shrinks, so empty ones are made anew. */
static void
free_tables(void)
{
	if (hash_get_num_entries(state.requests) > MANY_REQUESTS)
		state.were_many = true;
	if (!state.were_many || hash_get_num_entries(state.requests) > 0 ||
		hash_get_num_entries(state.queues) > 0)
		return;
	hash_destroy(state.requests);
	hash_destroy(state.queues);
	create_hashes();
	state.were_many = false;
}

void
ecm_requests_poll(EcmTime now)
{
	if (state.scan.retry_at != 0 && now >= state.scan.retry_at)
		ecm_requests_scan();
	if (state.scan.goes_on && state.scan.job == 0 && state.scan.retry_at == 0 &&
		hash_get_num_entries(state.requests) < SCAN_SHAPES / 2)
		submit_scan();
	poll_creators(now);
	if (state.scan.wanted && state.scan.job == 0 && !state.scan.goes_on && state.scan.retry_at == 0)
		start_scan();
	free_tables();
}

EcmTime
ecm_requests_deadline(void)
{
	EcmTime		deadline = state.scan.retry_at;

	if (state.creators.n > 0 && state.scan.job == 0 && !state.scan.goes_on)
		deadline = ecm_earlier(deadline, Max(state.creators.poll_at, 1));
	return ecm_earlier(deadline, state.next_look_at);
}

/*
 * Requests whose creators were not visible stay: the next scan may not see them, and
 * their messages may not come again.
 */
void
ecm_requests_forget(void)
{
	HASH_SEQ_STATUS seq;
	EcmShapeRequest *request;

	hash_seq_init(&seq, state.requests);
	while ((request = hash_seq_search(&seq)) != NULL)
		if (!TransactionIdIsValid(request->created_by))
			ecm_request_end(request);
	if (state.scan.job != 0)
		ecm_pool_cancel(state.scan.job);
	state.scan.job = 0;
	state.scan.retry_at = 0;
	state.scan.goes_on = state.scan.wanted = false;
	forget_creators();
	free_tables();
}
