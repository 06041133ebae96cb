/*-------------------------------------------------------------------------
 *
 * shape_requests.c
 *	  The manager's part in creating shapes: which are to be created.
 *
 * Requests come with the stream, where somebody has declared a shape, and
 * from scans of the catalog, at the start of each stream.  They wait in a queue
 * for each table until shape_creation.c takes them.
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
#include "base/event.h"
#include "base/shmem.h"
#include "connection/pool.h"
#include "manager/shape_requests.h"
#include "shape/shape.h"

/* How long to leave a creator alone whose commit can't be seen yet. */
#define CREATOR_MIN_MS		5
#define CREATOR_MAX_MS		1000

/* More requests than this leave hash tables behind that are not kept. */
#define MANY_REQUESTS		1000

#define SCAN_RETRY_MS		1000
#define SCAN_SHAPES			10000
#define CREATORS_POLL_MS	1000

/* A table's requests that are in no batch. */
typedef struct Queue
{
	Oid			relation;		/* hash key */
	dlist_node	node;			/* among all queues */
	dlist_head	requests;
	int			nrequests;
	int			nbatches;		/* of the table, under way */
	int			delay_ms;
	EcmTime		look_at;		/* no creator could be seen: not before */
} Queue;

static const char *datname;
static MemoryContext requests_context;
static HTAB *requests;
static HTAB *queues;
static bool were_many;			/* at some time since the tables were empty */
static dlist_head queue_list = DLIST_STATIC_INIT(queue_list);
static EcmTime next_look_at;	/* of the queues; 0: none */

static uint64 scan_job = 0;
static int64 scanned_to;		/* shape id */
static bool scan_goes_on;		/* there are more than one scan has brought */
static EcmTime scan_retry_at = 0;

/* Those whose end calls for another scan. */
static VirtualTransactionId *creators = NULL;
static int	ncreators = 0;
static EcmTime creators_poll_at;

static HTAB *
create_hash(const char *name, Size keysize, Size entrysize)
{
	HASHCTL		ctl;

	ctl.keysize = keysize;
	ctl.entrysize = entrysize;
	ctl.hcxt = requests_context;
	return hash_create(name, 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
create_hashes(void)
{
	requests = create_hash("electric_cm requests", sizeof(int64), sizeof(EcmRequest));
	queues = create_hash("electric_cm queues", sizeof(Oid), sizeof(Queue));
}

void
ecm_requests_init(const char *name)
{
	datname = name;
	requests_context = AllocSetContextCreate(TopMemoryContext,
											 "electric_cm requests",
											 ALLOCSET_DEFAULT_SIZES);
	create_hashes();
}

static Queue *
get_queue(Oid relation)
{
	bool		found;
	Queue	   *queue = hash_search(queues, &relation, HASH_ENTER, &found);

	if (!found)
	{
		dlist_init(&queue->requests);
		queue->nrequests = queue->nbatches = queue->delay_ms = 0;
		queue->look_at = 0;
		dlist_push_tail(&queue_list, &queue->node);
	}
	return queue;
}

static void
remove_queue_if_empty(Queue *queue)
{
	if (queue->nrequests > 0 || queue->nbatches > 0)
		return;
	dlist_delete(&queue->node);
	(void) hash_search(queues, &queue->relation, HASH_REMOVE, NULL);
}

EcmRequest *
ecm_request_find(int64 id)
{
	return hash_search(requests, &id, HASH_FIND, NULL);
}

void
ecm_request_add(int64 id, Oid relation, const char *handle, TransactionId created_by)
{
	bool		found;
	EcmRequest *request = hash_search(requests, &id, HASH_ENTER, &found);
	Queue	   *queue;

	if (found)
		return;
	strlcpy(request->handle, handle, sizeof(request->handle));
	request->relation = relation;
	request->created_by = created_by;
	request->generation = 0;
	request->batch = NULL;
	request->queued = true;
	queue = get_queue(relation);
	queue->look_at = 0;
	queue->delay_ms = 0;
	next_look_at = 0;
	dlist_push_tail(&queue->requests, &request->node);
	queue->nrequests++;
}

void
ecm_request_end(EcmRequest *request)
{
	if (request->queued)
	{
		Queue	   *queue = get_queue(request->relation);

		dlist_delete(&request->node);
		queue->nrequests--;
		remove_queue_if_empty(queue);
	}
	(void) hash_search(requests, &request->id, HASH_REMOVE, NULL);
}

void
ecm_request_batches(Oid relation, int change)
{
	Queue	   *queue = get_queue(relation);

	queue->nbatches += change;
	remove_queue_if_empty(queue);
}

/* Takes what can be created now out of a queue. */
static int
take_from_queue(Queue *queue, EcmTime now, EcmRequest **taken, int max)
{
	int			n = Min(queue->nrequests, max);
	int			ntaken = 0;
	TransactionId unseen = InvalidTransactionId;

	for (int i = 0; i < n; i++)
	{
		EcmRequest *request = dlist_container(EcmRequest, node,
											  dlist_pop_head_node(&queue->requests));

		/*
		 * A commit can be decoded a moment before it is visible, or long
		 * before, where it waits for a synchronous standby.
		 */
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
ecm_requests_take(EcmTime now, int max_batches, EcmRequest **taken, int max)
{
	dlist_mutable_iter iter;

	next_look_at = 0;
	dlist_foreach_modify(iter, &queue_list)
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
			dlist_push_tail(&queue_list, &queue->node);
			return n;
		}
		if (next_look_at == 0 || queue->look_at < next_look_at)
			next_look_at = queue->look_at;
	}
	return 0;
}

/* ---------------------------------------------------------------- scans -- */

static void
scan_done(void *arg pg_attribute_unused(), EcmConn *conn, const EcmError *err)
{
	int			n;

	scan_job = 0;
	if (err != NULL)
	{
		/* without it shapes could stay "creating" unseen: try again */
		ecm_event_in(MyDatabaseId, datname, ECM_EVENT_WARNING,
					 err->hint, "could not look for shapes to create: %s",
					 ecm_error_for_public(err->sqlstate, err->message));
		scan_retry_at = ecm_later(ecm_now(),
								  SCAN_RETRY_MS);
		return;
	}
	n = ecm_conn_nrows(conn);
	for (int i = 0; i < n; i++)
	{
		scanned_to = strtoi64(ecm_conn_value(conn, i, 0), NULL, 10);
		ecm_request_add(scanned_to, strtoul(ecm_conn_value(conn, i, 1), NULL, 10),
						ecm_conn_value(conn, i, 2), InvalidTransactionId);
	}
	scan_goes_on = n == SCAN_SHAPES;
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
	creators = MemoryContextAlloc(requests_context,
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

/* Shapes to be created, a limited number at a time, from where it stopped. */
static void
submit_scan(void)
{
	scan_retry_at = 0;
	scan_job =
		ecm_pool_submit(psprintf("SELECT s.id, s.relation, s.handle FROM _electric_cm.shape s"
								 " LEFT JOIN _electric_cm.shape_state t ON t.shape = s.id"
								 " WHERE coalesce(t.state, 'capturing') = 'capturing'"
								 " AND s.id > " INT64_FORMAT " ORDER BY s.id LIMIT %d",
								 scanned_to, SCAN_SHAPES),
						0, scan_done, NULL);
}

static void
start_scan(void)
{
	scanned_to = 0;
	scan_goes_on = false;
	submit_scan();
}

/*
 * A scan does not see the shape of somebody who has committed, but waits for a
 * synchronous standby.  If the stream that is gone had that commit already, its
 * message does not come again.  So there is a second scan, once all who may be
 * in that state are done; who comes after them has messages in this stream.
 */
void
ecm_requests_scan(void)
{
	EcmError	err;

	if (scan_job != 0)
		return;
	forget_creators();
	if (!ecm_worker_try(collect_creators, NULL, &err))
	{
		scan_retry_at = ecm_later(ecm_now(),
								  SCAN_RETRY_MS);
		return;
	}
	creators_poll_at = 0;
	start_scan();
}

/* Looks who of them is still there; asks, but never waits. */
static void
poll_creators(EcmTime now)
{
	int			left = 0;

	if (ncreators == 0 || now < creators_poll_at || scan_job != 0 || scan_goes_on)
		return;
	for (int i = 0; i < ncreators; i++)
		if (!VirtualXactLock(creators[i], false))
			creators[left++] = creators[i];
	ncreators = left;
	creators_poll_at = ecm_later(now, CREATORS_POLL_MS);
	if (left == 0)
		start_scan();
}

/* When all is done, what many requests have taken is given back. */
static void
free_tables(void)
{
	if (hash_get_num_entries(requests) > MANY_REQUESTS)
		were_many = true;
	if (!were_many || hash_get_num_entries(requests) > 0 ||
		hash_get_num_entries(queues) > 0)
		return;
	hash_destroy(requests);
	hash_destroy(queues);
	create_hashes();
	were_many = false;
}

void
ecm_requests_poll(EcmTime now)
{
	if (scan_retry_at != 0 && now >= scan_retry_at)
		ecm_requests_scan();
	if (scan_goes_on && scan_job == 0 && scan_retry_at == 0 &&
		hash_get_num_entries(requests) < SCAN_SHAPES / 2)
		submit_scan();
	poll_creators(now);
	free_tables();
}

EcmTime
ecm_requests_deadline(void)
{
	EcmTime		deadline = scan_retry_at;

	if (ncreators > 0 && scan_job == 0 && !scan_goes_on)
		deadline = ecm_sooner(deadline, Max(creators_poll_at, 1));
	return ecm_sooner(deadline, next_look_at);
}

/*
 * The next scan finds them again, except those whose creators have committed
 * in the stream only, and wait for a synchronous standby.
 */
void
ecm_requests_forget(void)
{
	HASH_SEQ_STATUS seq;
	EcmRequest *request;

	hash_seq_init(&seq, requests);
	while ((request = hash_seq_search(&seq)) != NULL)
		if (!TransactionIdIsValid(request->created_by))
			ecm_request_end(request);
	if (scan_job != 0)
		ecm_pool_cancel(scan_job);
	scan_job = 0;
	scan_retry_at = 0;
	scan_goes_on = false;
	forget_creators();
	free_tables();
}
