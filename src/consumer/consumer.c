/*-------------------------------------------------------------------------
 *
 * consumer.c
 *	  The consumer worker: appends the changes of its shapes to their logs.
 *
 * The manager starts electric_cm.shape_workers of these (consumer_queues.c) and
 * feeds the whole stream to each.  Every shape has one consumer, which takes the
 * shape's changes and skips all others.
 *
 * This file has the worker, its loop, and the end by an error.  Messages of the
 * stream go to relation.c, apply_change.c and shape_orders.c, which find shapes by
 * shape_match.c and followed_shapes.c; all write by way of log_batch.c.
 *
 * An ERROR that is not one shape's own ends the process, since its queue may hold
 * half a message and its batch half a transaction; a successor begins at the
 * position in the table of progress.  Both may exist at the same time if a manager
 * has ended without waiting for its consumers.  Hence each start has a generation,
 * and a process writes to its slot in shared memory that it has come or gone only
 * while the generation there is its own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/logicalproto.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shm_mq.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/bgworker.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/consumer_queue.h"
#include "base/errors.h"
#include "base/shmem.h"
#include "base/stack_catalog.h"
#include "base/stream_message.h"
#include "base/stream_message_io.h"
#include "base/text.h"
#include "base/wait_event.h"
#include "consumer/apply_change.h"
#include "consumer/consumer.h"
#include "consumer/consumer_blame.h"
#include "consumer/current_shape.h"
#include "consumer/followed_shapes.h"
#include "consumer/log_batch.h"
#include "consumer/relation.h"
#include "consumer/shape_match.h"
#include "consumer/shape_orders.h"
#include "shape/shape.h"
#include "shape/shape_blame.h"
#include "shape/shape_chunk.h"
#include "shape/shape_epoch.h"
#include "shape/shape_offset.h"
#include "shape/shape_stall.h"
#include "shape/shape_worker.h"
#include "slot/slot.h"

/* This process. */
typedef struct Consumer
{
	EcmConsumerArgs args;		/* its number, and the generation of this
								 * start */
	char	   *message_prefix; /* of the stack's own messages in the stream */
	shm_mq_handle *queue;		/* from the manager; ours to read */
	MemoryContext message_context;	/* reset after each message */
	bool		skipping;		/* the transaction that is coming in was
								 * applied before the stream was lost */
	int			shown;			/* state in pg_stat_activity: 1 busy, 0 idle,
								 * -1 neither shown yet */

	/* a message that is too large for the queue comes in pieces */
	struct
	{
		MemoryContext context;	/* of 'whole'; reset after the last piece */
		char	   *whole;		/* room for the whole message; NULL: no piece
								 * has come */
		Size		len;		/* bytes of it that have come */
	}			pieces;
} Consumer;

static Consumer consumer =
{
	.shown = -1
};

static EcmConsumerSlot *
my_slot(void)
{
	return &ecm_stack_at(consumer.args.stack_index)->consumers[consumer.args.worker];
}

/* ------------------------------------------------------------- messages -- */

/*
 * An upstream transaction begins.  The stream starts at the least position of all
 * consumers, so after a loss this one gets transactions again that it has applied:
 * their commit records precede its position.  They are skipped.
 */
static void
handle_begin(StringInfo in)
{
	LogicalRepBeginData begin;
	FullTransactionId next = ReadNextFullTransactionId();

	logicalrep_read_begin(in, &begin);
	consumer.skipping = begin.final_lsn < ecm_log_batch_position();
	ecm_log_batch_begin(begin.final_lsn,
						ecm_widen_xid(begin.xid, U64FromFullTransactionId(next)));
	ecm_followed_begin();
	ecm_match_begin();
}

/*
 * An upstream transaction is complete.  Orders are obeyed in the local transaction
 * that commits it, and reported afterwards: if it were lost, it would come again.
 */
static void
handle_commit(StringInfo in)
{
	LogicalRepCommitData commit;

	logicalrep_read_commit(in, &commit);
	if (consumer.skipping)
		return;
	ecm_log_batch_commit(commit.end_lsn, ecm_orders_any() ? ecm_orders_obey : NULL);
	if (ecm_orders_any())
		ecm_orders_committed();
	if (ecm_log_batch_is_empty())
		ecm_followed_free_gone();
}

/*
 * Orders a resync of the truncated tables' shapes.  The hook of the TRUNCATE (shape_ddl.c)
 * has done so in the same transaction, unless it ran without us: they would go on with
 * rows that are gone.
 */
static void
handle_truncate(StringInfo in)
{
	bool		cascade;
	bool		restart_seqs;
	ListCell   *lc;

	foreach(lc, logicalrep_read_truncate(in, &cascade, &restart_seqs))
	{
		EcmRelation *relation = ecm_relation_find(lfirst_oid(lc));
		ListCell   *lc2;

		foreach(lc2, relation->bindings)
			ecm_orders_add_truncated(((EcmBinding *) lfirst(lc2))->table->relid);
	}
}

/*
 * A logical message.  Ours are transactional and have the secret prefix; others are
 * ignored.  An order waits for the commit, but "unsendable" is about the change
 * right before it, and is dealt with at once.
 */
static void
handle_message(StringInfo in)
{
	uint8		flags = pq_getmsgbyte(in);
	const char *prefix;
	int			size;
	EcmStreamMessage *message = NULL;

	(void) pq_getmsgint64(in);	/* its LSN */
	prefix = pq_getmsgrawstring(in);
	size = pq_getmsgint(in, 4);
	if ((flags & 1) != 0 && strcmp(prefix, consumer.message_prefix) == 0)
		message = ecm_message_read(pq_getmsgbytes(in, size), size);
	if (message == NULL)
		return;
	switch (message->kind)
	{
		case ECM_MESSAGE_UNSENDABLE:
			ecm_change_unsendable(message->relation, message->text);
			break;
		case ECM_MESSAGE_CAPTURE:
		case ECM_MESSAGE_PIECE:
		case ECM_MESSAGE_AGAIN:
		case ECM_MESSAGE_LIVE:
		case ECM_MESSAGE_FAIL:
		case ECM_MESSAGE_DROP:
		case ECM_MESSAGE_LOST:
		case ECM_MESSAGE_RESYNC:
		case ECM_MESSAGE_OWNER:
			ecm_orders_add_message(message);
			break;
		case ECM_MESSAGE_CREATE:
		case ECM_MESSAGE_GIANT:
			break;				/* the manager's */
	}
}

/*
 * The stream has been lost.  Complete transactions are committed; the one that was
 * coming in, and descriptions of relations, come again.  'number' goes into the
 * slot last: the manager then takes this consumer's position for final, and
 * computes from it where the next stream starts.
 */
static void
obey_reset(uint32 number)
{
	EcmConsumerSlot *slot = my_slot();

	ecm_orders_forget();
	ecm_log_batch_reset();
	ecm_relations_forget();
	ecm_followed_free_gone();

	ecm_lock(LW_EXCLUSIVE);
	if (slot->generation == consumer.args.generation)
		slot->reset_done = number;
	ecm_unlock();
	ecm_stack_wake(consumer.args.stack_index);
}

static void process(char *data, Size len);

static void
forget_pieces(void)
{
	consumer.pieces.whole = NULL;
	MemoryContextReset(consumer.pieces.context);
}

/*
 * A piece of a large message, behind a control frame that has the whole message's
 * length.  The message is processed when its last piece has come.
 */
static void
take_piece(const char *data, Size len)
{
	EcmControlFrame header;
	Size		piece = len - sizeof(header);

	if (len < sizeof(header))
		elog(ERROR, "malformed piece of a message");
	memcpy(&header, data, sizeof(header));
	if (consumer.pieces.whole == NULL)
	{
		consumer.pieces.whole = MemoryContextAllocHuge(consumer.pieces.context, header.number);
		consumer.pieces.len = 0;
	}
	if (piece > header.number - consumer.pieces.len)
		elog(ERROR, "malformed piece of a message");
	memcpy(consumer.pieces.whole + consumer.pieces.len, data + sizeof(header), piece);
	consumer.pieces.len += piece;
	if (consumer.pieces.len < header.number)
		return;
	process(consumer.pieces.whole, consumer.pieces.len);
	forget_pieces();
}

/*
 * Processes what has come through the queue: a message of pgoutput's or an order
 * of the manager's (consumer_queue.h), as the first byte says.  What is
 * allocated is left in the current context.  ERROR ends the consumer.
 */
static void
process(char *data, Size len)
{
	StringInfoData in;

	in.data = data;
	in.len = len;
	in.maxlen = -1;
	in.cursor = 1;

	if (len == 0)
		return;
	if (data[0] == ECM_FRAME_PIECE)
	{
		take_piece(data, len);
		return;
	}
	if (data[0] == ECM_FRAME_RESET)
	{
		forget_pieces();
		obey_reset(((EcmControlFrame *) data)->number);
		return;
	}
	if (data[0] == LOGICAL_REP_MSG_BEGIN)
	{
		handle_begin(&in);
		return;
	}
	if (data[0] == LOGICAL_REP_MSG_COMMIT)
	{
		handle_commit(&in);
		return;
	}
	/* comes once per stream, maybe within a transaction that is skipped */
	if (data[0] == LOGICAL_REP_MSG_RELATION)
	{
		ecm_relation_describe(&in);
		return;
	}
	if (consumer.skipping)
		return;

	switch (data[0])
	{
		case LOGICAL_REP_MSG_INSERT:
		case LOGICAL_REP_MSG_UPDATE:
		case LOGICAL_REP_MSG_DELETE:
			ecm_change_apply(&in, data[0]);
			break;
		case LOGICAL_REP_MSG_TRUNCATE:
			handle_truncate(&in);
			break;
		case LOGICAL_REP_MSG_MESSAGE:
			handle_message(&in);
			break;
		default:				/* types and origins: not needed; FLUSH: only
								 * wakes us */
			break;
	}
}

/* ------------------------------------------------------------- starting -- */

/*
 * Reads, in a transaction, how far this consumer's logs are, the epochs of what is
 * to come, and the prefix of the stack's messages.  arg: XLogRecPtr, which is left as
 * it is if the consumer has never committed anything.
 */
static void
read_progress(void *arg)
{
	XLogRecPtr *position = arg;
	XLogRecPtr	lsn = ecm_stored_progress(consumer.args.worker, GetActiveSnapshot());

	if (!XLogRecPtrIsInvalid(lsn))
		*position = lsn;
	ecm_epochs_load(GetActiveSnapshot());
	consumer.message_prefix = MemoryContextStrdup(TopMemoryContext, ecm_message_prefix());
}

/*
 * Waits, in a transaction, until a predecessor that an earlier manager has left
 * behind has ended, and keeps the lock until this process ends.  If progress were
 * read while the predecessor commits, its transactions would be logged twice.
 */
static void
lock_progress(void *arg pg_attribute_unused())
{
	ecm_shape_lock_progress(consumer.args.worker, true);
}

static void
note_all_shapes(void *arg pg_attribute_unused())
{
	ecm_followed_start(consumer.args.worker);
}

/*
 * Announces that this consumer is ready to be fed, from 'position' on; the
 * manager's step start_consumers waits for that.  If a later manager has started a
 * successor, which waits in lock_progress(), the process ends instead.
 */
static void
announce(XLogRecPtr position)
{
	EcmConsumerSlot *slot = my_slot();

	ecm_lock(LW_EXCLUSIVE);
	if (slot->generation != consumer.args.generation)
	{
		ecm_unlock();
		proc_exit(0);
	}
	slot->pid = MyProcPid;
	slot->shapes = ecm_followed_count();
	slot->received_lsn = slot->applied_lsn = slot->durable_lsn = position;
	slot->recorded_lsn = position;
	slot->recorded_end = GetFlushRecPtr(NULL);
	slot->attached = true;
	ecm_unlock();
	ecm_stack_wake(consumer.args.stack_index);
}

static void
at_exit(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	EcmConsumerSlot *slot = my_slot();

	ecm_blame_close();
	ecm_lock(LW_EXCLUSIVE);
	if (slot->generation == consumer.args.generation)
	{
		slot->pid = 0;
		slot->attached = false;
	}
	ecm_unlock();
	ecm_stack_wake(consumer.args.stack_index);
}

/*
 * Attaches to the queue that the manager has made for this start.  Ends the
 * process if that is gone, and the manager with it.
 */
static void
attach_queue(void)
{
	dsm_segment *segment;
	dsm_handle	handle;
	shm_mq	   *mq;

	ecm_lock(LW_SHARED);
	handle = my_slot()->generation == consumer.args.generation ? my_slot()->segment : 0;
	ecm_unlock();
	segment = handle ? dsm_attach(handle) : NULL;
	if (segment == NULL)
		proc_exit(0);			/* the manager has gone on without us */
	dsm_pin_mapping(segment);
	mq = dsm_segment_address(segment);
	shm_mq_set_receiver(mq, MyProc);
	consumer.queue = shm_mq_attach(mq, segment, NULL);
}

/* Shows in pg_stat_activity whether there is work. */
static void
show_busy(bool now)
{
	if (consumer.shown == (int) now)
		return;
	consumer.shown = now;
	pgstat_report_activity(now ? STATE_RUNNING : STATE_IDLE,
						   now ? "writing shape logs" : "waiting for changes");
}

/*
 * Takes what the manager sends, until the manager is gone or SIGTERM comes.  When
 * the queue is empty, all that is complete is committed and reported before the
 * process sleeps, and soon flushed: an idle consumer must not hold back the slot.
 */
static void
follow_stream(void)
{
	EcmConsumerSlot *slot = my_slot();
	uint64		processed = 0;

	for (;;)
	{
		Size		len;
		void	   *data;
		shm_mq_result result;
		EcmTime		deadline;

		if (ecm_got_sigterm)
			proc_exit(0);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			ecm_stall_stop();	/* it goes by another timeout from now on */
		}

		MemoryContextSwitchTo(consumer.message_context);
		result = shm_mq_receive(consumer.queue, &len, &data, true);
		if (result == SHM_MQ_SUCCESS)
		{
			show_busy(true);
			ecm_stall_watch();
			process(data, len);
			/* our own count, whatever a predecessor may have left there */
			slot->processed = ++processed;
			MemoryContextReset(consumer.message_context);
			continue;
		}

		if (ecm_log_batch_unsettled())
		{
			if (ecm_log_batch_pace())
				continue;		/* more has come in meanwhile */

			ecm_log_batch_settle();
			if (!ecm_log_batch_in_transaction())
				pgstat_report_stat(false);
			continue;			/* more may have come in meanwhile */
		}
		if (result == SHM_MQ_DETACHED)
			proc_exit(0);		/* the manager is gone; all is settled */

		show_busy(false);
		ecm_stall_rest();
		deadline = ecm_log_batch_deadline();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (deadline != 0 ? WL_TIMEOUT : 0),
						 deadline != 0 ? ecm_ms_until(ecm_now(), deadline) : 0,
						 ecm_wait_event(ECM_WAIT_CONSUMER_MAIN));
		ResetLatch(MyLatch);
	}
}

/* ---------------------------------------------------------------- errors -- */

/*
 * Leaves for the manager the error that this process ends with.  The text goes
 * into events and views, so an error that may quote a row is left as its bare
 * condition.  message NULL: there is none but the SQLSTATE.
 */
static void
leave_error(int sqlerrcode, const char *message)
{
	EcmConsumerSlot *slot = my_slot();
	const char *sqlstate = unpack_sql_state(sqlerrcode);
	const char *text = message != NULL ? ecm_error_for_public(sqlstate, message) :
	ecm_error_condition(sqlstate);

	ecm_lock(LW_EXCLUSIVE);
	if (slot->generation == consumer.args.generation)
	{
		ecm_copy_text(slot->last_error, sizeof(slot->last_error), text);
		strlcpy(slot->last_error_sqlstate, sqlstate, sizeof(slot->last_error_sqlstate));
		slot->last_error_at = ecm_wall_clock();
	}
	ecm_unlock();
}

/*
 * For shape_match.c: following a shape has raised an error.  The shape becomes
 * errored where the transaction commits, together with the other shapes' entries.
 * A transaction that the shape skips does not count: it has been logged before.
 */
static void
match_failed(EcmShape *shape, const char *message)
{
	if (!ecm_log_batch_is_past(shape->skip_until))
		ecm_orders_add_errored(shape->id, shape->generation, message);
}

static int
sqlstate_code(const char *sqlstate)
{
	if (strlen(sqlstate) != 5)
		return ERRCODE_INTERNAL_ERROR;
	return MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2], sqlstate[3], sqlstate[4]);
}

pg_noreturn static void
end_starting(const EcmError *err)
{
	leave_error(sqlstate_code(err->sqlstate), err->message);
	ereport(FATAL,
			(errcode(sqlstate_code(err->sqlstate)),
			 errmsg("could not start consumer: %s", err->message)));
}

/*
 * Ends the process by the ERROR that has been caught: logs it, leaves it for the
 * manager, and blames it, in a transaction of its own.
 */
static void
end_by_error(void)
{
	int64		shape = ecm_working_on();
	ErrorData  *edata;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(TopMemoryContext);
	edata = CopyErrorData();
	if (!ecm_stall_take(edata)) /* else the event says more */
		EmitErrorReport();
	ecm_stall_stop();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	RESUME_INTERRUPTS();

	leave_error(edata->sqlerrcode, edata->message);
	ecm_consumer_blame_error(shape, unpack_sql_state(edata->sqlerrcode), edata->message);
	proc_exit(1);
}

/* ----------------------------------------------------------------- main -- */

/*
 * Main function of a consumer.  The order matters: progress is locked before it is
 * read; a predecessor's death is blamed before its shapes are taken up again; and
 * the consumer is announced last, as the manager feeds it from then on.
 */
void
ecm_consumer_main(Datum arg pg_attribute_unused())
{
	EcmError	err;
	EcmBlame	blame;
	EcmPlace	place;
	XLogRecPtr	position = InvalidXLogRecPtr;

	memcpy(&consumer.args, MyBgworkerEntry->bgw_extra, sizeof(consumer.args));
	ecm_worker_init(ecm_stack_at(consumer.args.stack_index)->dboid);
	ecm_worker_set("synchronous_commit", "off");
	before_shmem_exit(at_exit, 0);
	pgstat_report_appname(MyBgworkerEntry->bgw_type);
	pgstat_report_activity(STATE_RUNNING, "reading the shapes");
	CurrentResourceOwner = NULL;
	attach_queue();

	consumer.message_context = AllocSetContextCreate(TopMemoryContext, "electric_cm message",
													 ALLOCSET_DEFAULT_SIZES);
	consumer.pieces.context = AllocSetContextCreate(TopMemoryContext, "electric_cm pieces",
													ALLOCSET_SMALL_SIZES);
	ecm_orders_init(consumer.args.stack_index, consumer.args.worker);
	ecm_consumer_blame_init(consumer.args.worker);
	ecm_relations_forget();

	if (!ecm_worker_try(lock_progress, NULL, &err) ||
		!ecm_worker_try(read_progress, &position, &err))
		end_starting(&err);
	ecm_log_batch_init(consumer.args.stack_index, consumer.args.worker, position);
	blame = ecm_blame_open(psprintf("%u.%d", MyDatabaseId, consumer.args.worker),
						   SignalHandlerForCrashExit, &place);
	ecm_consumer_blame_death(blame, &place,
							 ECM_ERROR_OWN_TEXT "a consumer was killed, or crashed, twice at the same change while it worked on this shape");
	ecm_work_init(consumer.args.stack_index, consumer.args.worker); /* a predecessor's shape
																	 * may be shown */
	ecm_match_init(match_failed);
	ecm_stall_watch();			/* also over the compiling of where clauses */
	if (!ecm_worker_try(note_all_shapes, NULL, &err))
	{
		ErrorData	edata = {.sqlerrcode = sqlstate_code(err.sqlstate)};

		if (ecm_stall_take(&edata))
			ecm_error_set(&err, ECM_SQLSTATE_SHAPE_STALLED, edata.message, "", "");
		ecm_stall_stop();
		ecm_consumer_blame_error(ecm_working_on(), err.sqlstate, err.message);
		end_starting(&err);
	}

	ecm_log_batch_figures.shapes = ecm_followed_count();

	/* a predecessor committed asynchronously: make durable what was read */
	XLogFlush(ecm_end_of_wal());
	announce(position);

	PG_TRY();
	{
		follow_stream();
	}
	PG_CATCH();
	{
		end_by_error();
	}
	PG_END_TRY();
}
