/*-------------------------------------------------------------------------
 *
 * consumer_queues.c
 *	  The manager's side of its consumers.
 *
 * Each consumer has a queue, a shm_mq in a DSM segment of its own; its other end is
 * in consumer.c.  The queue's bytes die with the consumer, and pgoutput describes a
 * relation only once per session, so the death of one consumer costs the stream for
 * all of them: the dead one gets a new queue, the survivors a RESET, and the stream
 * starts again from the minimum of what is durable everywhere.
 *
 * A message goes to all consumers.  When one's queue is full, the others have the
 * message already, so it is kept until the full one has taken it, and no further
 * message is fed: the slowest consumer sets the pace of all.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "replication/logicalproto.h"
#include "storage/dsm.h"
#include "storage/proc.h"
#include "storage/shm_mq.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/bgworker.h"
#include "base/clock.h"
#include "base/consumer_queue.h"
#include "base/errors.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/stream_message.h"
#include "base/stream_message_io.h"
#include "manager/consumer_queues.h"

/* The step start_consumers fails if a worker has not attached after so long. */
#define ATTACH_TIMEOUT_MS	10000

typedef struct QueueConsumer
{
	BackgroundWorkerHandle *handle; /* NULL: not started, or no worker was
									 * free */
	dsm_segment *segment;
	shm_mq_handle *queue;		/* ours to write */
	bool		pending;		/* the kept message is still to be sent to it */
	Size		piece_at;		/* of a message in pieces: bytes that have
								 * been sent */
	bool		unflushed;		/* messages were sent that it may not see
								 * before a FLUSH */
	bool		control_pending;	/* 'control' is to be sent, after the kept
									 * message */
	EcmControlFrame control;	/* a RESET replaces a FLUSH */

	/* does it make progress? */
	uint64		sent;			/* messages sent to this worker; compares with
								 * its count of those processed */
	uint64		seen_processed; /* its figures, as of the last look */
	XLogRecPtr	seen_durable;
	EcmTime		moved_at;		/* the last look that found progress, or no
								 * work */
} QueueConsumer;

static struct
{
	int			stack_index;
	const char *datname;
	MemoryContext context;		/* of the queues' handles, and of 'kept' */
	const char *message_prefix; /* of our messages in the stream */
	EcmStreamMessageCallback message_callback;
	bool		reported_unknown;	/* an event has told of a message with our
									 * prefix that is none of ours */

	int			nconsumers;
	QueueConsumer consumers[ECM_MAX_SHAPE_WORKERS];
	uint32		reset_number;	/* of the last RESET */
	EcmTime		start_began;	/* the step start_consumers */

	StringInfoData kept;		/* the message that a full queue has refused */
	bool		any_pending;	/* some consumer has not got it, or an order */
	bool		expects_progress;	/* something in this round does */

	/* where the stream is */
	struct
	{
		bool		in_transaction;
		TransactionId xid;		/* of the one that is coming in */
		XLogRecPtr	received_lsn;	/* end of the last complete one; invalid:
									 * none has come yet */
		TimestampTz last_commit_at; /* its time; outlives the stream */

		/* giants (see ECM_GIANT_BYTES), which are worth a new connection */
		bool		giant_coming;	/* there is one in the transaction that is
									 * coming in */
		XLogRecPtr	giant_lsn;	/* the last one precedes this; invalid: none */
	}			stream;
}			queues;

void
ecm_queues_init(int index, const char *datname)
{
	queues.stack_index = index;
	queues.datname = datname;
	queues.nconsumers = ecm_shape_workers;
	queues.context = AllocSetContextCreate(TopMemoryContext, "electric_cm consumer queues",
										   ALLOCSET_DEFAULT_SIZES);

	MemoryContextSwitchTo(queues.context);
	initStringInfo(&queues.kept);
	MemoryContextSwitchTo(TopMemoryContext);
}

void
ecm_queues_set_message_callback(const char *prefix, EcmStreamMessageCallback callback)
{
	queues.message_prefix = prefix;
	queues.message_callback = callback;
}

/* ------------------------------------------------------------- starting -- */

static EcmConsumerSlot *
shared_slot(int i)
{
	return &ecm_stack_at(queues.stack_index)->consumers[i];
}

/*
 * Creates a consumer's queue and registers its worker.  The slot in shared memory is
 * filled before, as the worker reads it at once.  False: no background worker is
 * free; the handle stays NULL.
 */
static bool
launch_consumer(int i)
{
	QueueConsumer *c = &queues.consumers[i];
	BackgroundWorker worker;
	EcmConsumerArgs args;
	EcmConsumerSlot *slot = shared_slot(i);
	MemoryContext old;
	shm_mq	   *mq;

	c->segment = dsm_create(ECM_QUEUE_SIZE, 0);
	dsm_pin_mapping(c->segment);
	mq = shm_mq_create(dsm_segment_address(c->segment), ECM_QUEUE_SIZE);
	shm_mq_set_sender(mq, MyProc);

	ecm_lock(LW_EXCLUSIVE);
	slot->used = true;
	if (slot->generation++ > 0)
		slot->restarts++;
	slot->segment = dsm_segment_handle(c->segment);
	slot->pid = 0;
	slot->attached = false;
	slot->reset_done = queues.reset_number; /* it has nothing to forget */

	slot->processed = 0;
	slot->working_on = slot->busy_with = slot->deaf = 0;
	slot->last_error[0] = slot->last_error_sqlstate[0] = '\0';
	slot->last_error_at = 0;
	args.generation = slot->generation;
	ecm_unlock();

	ecm_bgworker_init(&worker, "ecm_consumer_main", "electric_cm consumer");
	snprintf(worker.bgw_name, BGW_MAXLEN, "electric_cm consumer %s %d",
			 queues.datname, i + 1);
	args.stack_index = queues.stack_index;
	args.worker = i;
	memcpy(worker.bgw_extra, &args, sizeof(args));

	c->handle = ecm_bgworker_start(&worker, queues.context);
	if (c->handle == NULL)
	{
		dsm_detach(c->segment);
		c->segment = NULL;
		return false;
	}
	old = MemoryContextSwitchTo(queues.context);
	c->queue = shm_mq_attach(mq, c->segment, c->handle);
	MemoryContextSwitchTo(old);
	c->pending = false;
	c->unflushed = false;
	c->control_pending = false;
	c->sent = 0;
	c->moved_at = ecm_now();
	return true;
}

/*
 * Does the postmaster still have the worker?  Shared memory can't tell: a process that
 * is killed leaves its PID there.
 */
static bool
consumer_is_running(QueueConsumer *c)
{
	pid_t		pid;

	if (c->handle == NULL)
		return false;
	switch (GetBackgroundWorkerPid(c->handle, &pid))
	{
		case BGWH_STARTED:
		case BGWH_NOT_YET_STARTED:
			return true;
		default:
			return false;
	}
}

/* Frees what belongs to a consumer that has ended, or that will. */
static void
discard_consumer(QueueConsumer *c)
{
	if (c->queue)
		shm_mq_detach(c->queue);
	if (c->segment)
		dsm_detach(c->segment);
	if (c->handle)
		pfree(c->handle);
	memset(c, 0, sizeof(*c));
}

bool
ecm_queues_any(void)
{
	for (int i = 0; i < queues.nconsumers; i++)
		if (queues.consumers[i].handle != NULL)
			return true;
	return false;
}

char *
ecm_queues_assign_sql(void)
{
	return ecm_queues_any() ? NULL : psprintf("SELECT _electric_cm.assign_shapes(%d)", queues.nconsumers);
}

void
ecm_queues_start(void)
{
	queues.start_began = ecm_now();

	ecm_lock(LW_EXCLUSIVE);
	ecm_stack_at(queues.stack_index)->nconsumers = queues.nconsumers;
	ecm_unlock();

	for (int i = 0; i < queues.nconsumers; i++)
	{
		if (consumer_is_running(&queues.consumers[i]))
			continue;
		discard_consumer(&queues.consumers[i]);
		(void) launch_consumer(i);
	}
}

/*
 * Fills err with the error that a consumer has ended with; what: when, for the
 * message.  A consumer that was killed, or told to end, has left none.
 */
static void
get_end(int i, const char *what, EcmError *err)
{
	EcmConsumerSlot slot;

	ecm_lock(LW_SHARED);
	slot = *shared_slot(i);
	ecm_unlock();
	if (slot.last_error_at == 0)
		ecm_error_set(err, "57P01", psprintf("consumer %d %s", i + 1, what), "",
					  "The server log has its reason.");
	else
		ecm_error_set(err, slot.last_error_sqlstate,
					  psprintf("consumer %d %s: %s", i + 1, what, slot.last_error),
					  "", "The server log has the whole error.");
}

EcmStepResult
ecm_queues_poll_start(EcmStepFailure *failure)
{
	int			missing = -1;	/* the first that is not ready */
	pid_t		pid = 0;

	(void) ecm_queues_flush();	/* what was kept, then the RESETs */

	for (int i = 0; i < queues.nconsumers; i++)
	{
		EcmConsumerSlot slot;

		if (queues.consumers[i].handle == NULL)
		{
			ecm_error_set(&failure->err, ECM_SQLSTATE_NO_WORKER,
						  "no background worker slot is free for a consumer", "",
						  "Raise max_worker_processes and restart the server.");
			failure->kind = ECM_ERROR_RETRY;
			return ECM_RESULT_FAILED;
		}
		if (!consumer_is_running(&queues.consumers[i]))
		{
			get_end(i, "ended while starting", &failure->err);
			failure->kind = ECM_ERROR_RETRY;
			return ECM_RESULT_FAILED;
		}
		ecm_lock(LW_SHARED);
		slot = *shared_slot(i);
		ecm_unlock();
		if ((!slot.attached || slot.reset_done != queues.reset_number) && missing < 0)
		{
			missing = i;
			if (GetBackgroundWorkerPid(queues.consumers[i].handle, &pid) != BGWH_STARTED)
				pid = 0;
		}
	}
	if (missing < 0)
		return ECM_RESULT_DONE;
	if (ecm_has_passed(queues.start_began, ecm_now(), ATTACH_TIMEOUT_MS))
	{
		ecm_error_set(&failure->err, "57014",
					  psprintf("consumer %d (PID %d) did not become ready in time",
							   missing + 1, pid),
					  "It waits for a lock, or has not obeyed yet, or hangs.",
					  pid == 0 ? "" :
					  psprintf("See what it waits for in pg_stat_activity; SELECT pg_terminate_backend(%d) restarts it, and if it is stopped, kill -CONT %d does. Nothing is lost.",
							   pid, pid));
		failure->kind = ECM_ERROR_RETRY;
		return ECM_RESULT_FAILED;
	}
	return ECM_RESULT_PENDING;
}

bool
ecm_queues_consumer_died(EcmError *err)
{
	for (int i = 0; i < queues.nconsumers; i++)
		if (queues.consumers[i].handle != NULL && !consumer_is_running(&queues.consumers[i]))
		{
			get_end(i, "has ended", err);
			return true;
		}
	return false;
}

/* Has the consumer done something since the last look, or has it nothing to do? */
static bool
moves(QueueConsumer *c, const EcmConsumerSlot *slot)
{
	bool		has_work = c->pending || slot->processed != c->sent ||
	slot->durable_lsn < queues.stream.received_lsn;
	bool		moved = slot->processed != c->seen_processed ||
	slot->durable_lsn != c->seen_durable;

	c->seen_processed = slot->processed;
	c->seen_durable = slot->durable_lsn;
	return moved || !has_work;
}

/* Copies a consumer's slot, and notes whether it moves; false: there is none. */
static bool
look_at(int i, EcmTime now, EcmConsumerSlot *slot)
{
	QueueConsumer *c = &queues.consumers[i];

	if (c->handle == NULL)
		return false;
	ecm_lock(LW_SHARED);
	*slot = *shared_slot(i);
	ecm_unlock();
	if (moves(c, slot))
		c->moved_at = now;
	return true;
}

static void
describe(int i, const EcmConsumerSlot *slot, EcmStalledConsumer *stalled)
{
	stalled->worker = i;
	stalled->pid = slot->pid;
	stalled->shape = slot->working_on;
	stalled->since = queues.consumers[i].moved_at;
}

bool
ecm_queues_find_stalled(EcmTime now, int timeout_ms,
						EcmStalledConsumer *stalled)
{
	bool		found = false;

	for (int i = 0; i < queues.nconsumers; i++)
	{
		EcmConsumerSlot slot;

		if (!look_at(i, now, &slot) || found ||
			queues.consumers[i].moved_at == now ||
			!ecm_has_passed(queues.consumers[i].moved_at, now, timeout_ms))
			continue;
		describe(i, &slot, stalled);
		found = true;
	}
	return found;
}

bool
ecm_queues_find_last(EcmTime now, EcmStalledConsumer *last,
					 XLogRecPtr *durable)
{
	bool		found = false;

	for (int i = 0; i < queues.nconsumers; i++)
	{
		EcmConsumerSlot slot;

		if (!look_at(i, now, &slot) ||
			(!queues.consumers[i].pending && slot.processed == queues.consumers[i].sent &&
			 slot.durable_lsn >= queues.stream.received_lsn) ||
			(found && slot.durable_lsn >= *durable))
			continue;
		describe(i, &slot, last);
		*durable = slot.durable_lsn;
		found = true;
	}
	return found;
}

/* -------------------------------------------------------------- feeding -- */

/*
 * A giant is coming in with a transaction, whose end will be its place; or outside of
 * any, at that LSN.
 */
static void
note_giant(XLogRecPtr lsn)
{
	if (queues.stream.in_transaction)
		queues.stream.giant_coming = true;
	else
		queues.stream.giant_lsn = Max(queues.stream.giant_lsn, lsn);
}

/*
 * Reports a message with our prefix that can't be parsed, and that nobody obeys.  One
 * event per manager: whoever knows the prefix can write any number of these.
 */
static void
report_unknown_message(void)
{
	if (!queues.reported_unknown)
		ecm_event_in(MyDatabaseId, queues.datname, ECM_EVENT_UNKNOWN_MESSAGE,
					 "Only who reads the WAL knows the prefix of such messages: see who may, by the attribute REPLICATION or as a superuser.",
					 "a message in the stream looks like one of the stack's, but is none; it was ignored, and so will others be");
	queues.reported_unknown = true;
}

static void
look_at_own_message(const char *data, int size, XLogRecPtr lsn)
{
	EcmStreamMessage *message = ecm_message_read(data, size);

	if (message == NULL)
	{
		report_unknown_message();
		return;
	}
	if (message->kind == ECM_MESSAGE_GIANT)
		note_giant(lsn);
	else if (queues.message_callback)
		queues.message_callback(message, queues.stream.xid, queues.stream.received_lsn);
	pfree(message);
}

/*
 * Follows transaction boundaries, and picks out our own messages.  All else is for
 * the consumers to read.
 */
static void
look_at_message(const char *data, int len)
{
	StringInfoData in;

	in.data = unconstify(char *, data);
	in.len = len;
	in.maxlen = -1;
	in.cursor = 1;

	switch (data[0])
	{
		case LOGICAL_REP_MSG_BEGIN:
			{
				LogicalRepBeginData begin;

				logicalrep_read_begin(&in, &begin);
				queues.stream.in_transaction = true;
				queues.stream.xid = begin.xid;
				break;
			}
		case LOGICAL_REP_MSG_COMMIT:
			{
				LogicalRepCommitData commit;

				logicalrep_read_commit(&in, &commit);
				queues.stream.in_transaction = false;
				queues.stream.received_lsn = commit.end_lsn;
				if (queues.stream.giant_coming)
					queues.stream.giant_lsn = commit.end_lsn;
				queues.stream.giant_coming = false;
				queues.stream.last_commit_at = commit.committime;
				break;
			}
		case LOGICAL_REP_MSG_MESSAGE:
			{
				uint8		flags = pq_getmsgbyte(&in);
				const char *prefix;
				int			size;
				XLogRecPtr	lsn;

				lsn = pq_getmsgint64(&in);
				prefix = pq_getmsgrawstring(&in);
				size = pq_getmsgint(&in, 4);
				if ((flags & 1) != 0 && strcmp(prefix, queues.message_prefix) == 0)
					look_at_own_message(pq_getmsgbytes(&in, size), size, lsn);
				break;
			}
		default:
			break;
	}
}

/*
 * Sends a large message in pieces; false: the queue is full, and piece_at says how far
 * it came.  To be called again with the same message.
 */
static bool
send_pieces(QueueConsumer *c, const char *data, Size len)
{
	EcmControlFrame header = {.type = ECM_FRAME_PIECE, .number = (uint32) len};

	while (c->piece_at < len)
	{
		Size		n = Min(len - c->piece_at, ECM_PIECE_BYTES);
		shm_mq_iovec iov[2] = {
			{(char *) &header, sizeof(header)},
			{data + c->piece_at, n}
		};

		if (shm_mq_sendv(c->queue, iov, 2, true, true) == SHM_MQ_WOULD_BLOCK)
			return false;
		c->sent++;
		c->piece_at += n;
	}
	c->piece_at = 0;
	return true;
}

/*
 * Sends a message without waiting; false: the queue is full, send the same bytes
 * again.  flush: make it visible to the consumer at once.  For a consumer that is
 * gone the answer is true: ecm_queues_consumer_died() notices its death, and what it
 * has missed comes again.
 */
static bool
send_to(QueueConsumer *c, const char *data, Size len, bool flush)
{
	if (c->queue == NULL)
		return true;
	if (len > ECM_PIECE_BYTES)
		return send_pieces(c, data, len);
	if (shm_mq_send(c->queue, len, data, true, flush) == SHM_MQ_WOULD_BLOCK)
		return false;
	c->sent++;
	return true;
}

void
ecm_queues_poke(void)
{
	for (int i = 0; i < queues.nconsumers; i++)
		queues.consumers[i].unflushed = true;
	if (!queues.any_pending)
		(void) ecm_queues_flush();
}

bool
ecm_queues_feed(const char *data, int len)
{
	Assert(!queues.any_pending);

	if (len == 0)
		return true;
	look_at_message(data, len);
	if (len >= ECM_GIANT_BYTES)
		note_giant(InvalidXLogRecPtr);

	for (int i = 0; i < queues.nconsumers; i++)
	{
		QueueConsumer *c = &queues.consumers[i];

		c->pending = !send_to(c, data, len, false);
		c->unflushed = true;
		queues.any_pending |= c->pending;
	}
	if (queues.any_pending)
	{
		resetStringInfo(&queues.kept);
		appendBinaryStringInfo(&queues.kept, data, len);
	}
	return !queues.any_pending;
}

/* Frees the buffer of the kept message, if a large one has widened it. */
static void
free_kept(void)
{
	MemoryContext old;

	if (queues.kept.maxlen <= ECM_GIANT_BYTES)
		return;
	pfree(queues.kept.data);
	old = MemoryContextSwitchTo(queues.context);
	initStringInfo(&queues.kept);
	MemoryContextSwitchTo(old);
}

/*
 * For each consumer: the kept message, then an order.  This sequence is a must: a
 * message that a queue has taken in part has to be completed, with the same bytes,
 * before anything else is sent.  Control frames are small enough to be taken as a
 * whole or not at all, so a FLUSH that did not fit may become a RESET.
 */
bool
ecm_queues_flush(void)
{
	queues.any_pending = false;
	for (int i = 0; i < queues.nconsumers; i++)
	{
		QueueConsumer *c = &queues.consumers[i];

		if (c->pending)
			c->pending = !send_to(c, queues.kept.data, queues.kept.len, true);
		if (!c->pending && c->unflushed && !c->control_pending)
		{
			c->control.type = ECM_FRAME_FLUSH;
			c->control_pending = true;
		}
		if (!c->pending && c->control_pending)
		{
			c->control_pending = !send_to(c, (char *) &c->control,
										  sizeof(c->control), true);
			c->unflushed = c->control_pending;
		}
		queues.any_pending |= c->pending || c->control_pending;
	}
	if (!queues.any_pending)
		free_kept();
	return !queues.any_pending;
}

void
ecm_queues_stream_lost(void)
{
	queues.stream.in_transaction = false;
	queues.stream.giant_coming = false;
	queues.stream.giant_lsn = InvalidXLogRecPtr;
	queues.stream.received_lsn = InvalidXLogRecPtr; /* of this stream */
	queues.reset_number++;
	for (int i = 0; i < queues.nconsumers; i++)
	{
		QueueConsumer *c = &queues.consumers[i];

		if (c->handle == NULL)
			continue;
		c->control.type = ECM_FRAME_RESET;
		c->control.number = queues.reset_number;
		c->control_pending = true;
	}
	(void) ecm_queues_flush();
}

/* ------------------------------------------------------------- progress -- */

/*
 * The smallest value over all consumers of a position in their slots; field: its
 * offset in EcmConsumerSlot.
 */
static XLogRecPtr
minimum_lsn(size_t field)
{
	XLogRecPtr	min = InvalidXLogRecPtr;

	ecm_lock(LW_SHARED);
	for (int i = 0; i < queues.nconsumers; i++)
	{
		XLogRecPtr	lsn = *(XLogRecPtr *) ((char *) shared_slot(i) + field);

		if (i == 0 || lsn < min)
			min = lsn;
	}
	ecm_unlock();
	return min;
}

XLogRecPtr
ecm_queues_start_lsn(void)
{
	return minimum_lsn(offsetof(EcmConsumerSlot, durable_lsn));
}

XLogRecPtr
ecm_queues_applied_lsn(void)
{
	return minimum_lsn(offsetof(EcmConsumerSlot, applied_lsn));
}

void
ecm_queues_expect_progress(void)
{
	queues.expects_progress = true;
}

void
ecm_queues_begin_round(void)
{
	queues.expects_progress = false;
}

/*
 * Consumers that came farther in this round have gone by what was expected in the last
 * one.  So if nothing was then, what they have come to has to be looked at again.
 */
bool
ecm_queues_end_round(void)
{
	EcmStackManager *manager = &ecm_stack_at(queues.stack_index)->manager;
	bool		expected = manager->expects_progress;

	manager->expects_progress = queues.expects_progress;
	pg_memory_barrier();		/* before the slots are read again */
	return expected || !queues.expects_progress;
}

uint32
ecm_queues_gaps(void)
{
	const EcmStack *stack = ecm_stack_at(queues.stack_index);
	uint32		gaps = 0;

	for (int i = 0; i < ECM_MAX_SHAPE_WORKERS; i++)
		gaps += stack->consumers[i].gaps;
	return gaps;
}

XLogRecPtr
ecm_queues_recorded_lsn(XLogRecPtr marker)
{
	return Max(minimum_lsn(offsetof(EcmConsumerSlot, recorded_lsn)), marker);
}

XLogRecPtr
ecm_queues_recorded_end(XLogRecPtr marker, XLogRecPtr marker_end)
{
	XLogRecPtr	end = InvalidXLogRecPtr;

	ecm_lock(LW_SHARED);
	for (int i = 0; i < queues.nconsumers; i++)
	{
		EcmConsumerSlot *slot = shared_slot(i);

		end = Max(end, slot->recorded_lsn >= marker ? slot->recorded_end : marker_end);
	}
	ecm_unlock();
	return queues.nconsumers > 0 ? end : marker_end;
}

XLogRecPtr
ecm_queues_durable_lsn(XLogRecPtr keepalive_lsn)
{
	XLogRecPtr	durable = minimum_lsn(offsetof(EcmConsumerSlot, durable_lsn));

	if (!queues.stream.in_transaction && !queues.any_pending && durable >= queues.stream.received_lsn)
		durable = Max(durable, keepalive_lsn);
	return durable;
}

XLogRecPtr
ecm_queues_received_lsn(void)
{
	return queues.stream.received_lsn;
}

TimestampTz
ecm_queues_last_commit_at(void)
{
	return queues.stream.last_commit_at;
}

bool
ecm_queues_in_transaction(void)
{
	return queues.stream.in_transaction;
}

XLogRecPtr
ecm_queues_giant_lsn(void)
{
	return queues.stream.giant_lsn;
}

void
ecm_queues_stop(void)
{
	for (int i = 0; i < queues.nconsumers; i++)
	{
		if (queues.consumers[i].handle != NULL)
			TerminateBackgroundWorker(queues.consumers[i].handle);
		discard_consumer(&queues.consumers[i]);
	}
}
