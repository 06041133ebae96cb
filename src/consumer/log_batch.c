/*-------------------------------------------------------------------------
 *
 * log_batch.c
 *	  The consumer's writing side.
 *
 * Entries are gathered in memory, chunk by chunk, over as many upstream
 * transactions as are waiting in the queue; one local transaction then writes
 * the chunks together with this consumer's progress.  It commits
 * asynchronously, and the position is reported as durable once that commit's
 * WAL is flushed: by whoever flushes next, or by ourselves if nobody does for a
 * while.
 *
 * Chunks and progress change in one local transaction: everything rests on that.
 * So when an upstream transaction comes again, after the stream was lost or after a
 * crash, its entries are in the logs if and only if progress is beyond its commit.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "base/clock.h"
#include "base/shmem.h"
#include "base/wait_event.h"
#include "base/waiters.h"
#include "consumer/current_shape.h"
#include "consumer/log_batch.h"
#include "consumer/progress.h"
#include "shape/shape_blame.h"
#include "shape/shape_chunk.h"
#include "shape/shape_epoch.h"
#include "shape/shape_log.h"
#include "shape/shape_stall.h"

/* Complete transactions are written when this much has been gathered ... */
#define BATCH_BYTES			(1024 * 1024)
/* ... or after this long, so that readers see a busy stream move. */
#define BATCH_MS			50
/*
 * From one settling to the next, while several transactions come in.  Less than our
 * walsender's pace: what comes by that is not to be waited with once more.
 */
#define PACE_US				1500
/* A commit's WAL is flushed after this long, if nobody else has. */
#define FLUSH_MS			10
/* A transaction that is still coming in is written early beyond this. */
#define SPILL_BYTES			(4 * 1024 * 1024)

/* Room for a chunk, at first: a change may be in many thousand shapes. */
#define FIRST_CHUNK_BYTES	256

/* A chunk in the making. */
typedef struct Chunk
{
	EcmLogChunk head;
	StringInfoData data;
	bytea	   *bytes;			/* that one large entry's data are in; or NULL */
} Chunk;

/* A local commit whose WAL is not known to be flushed yet. */
typedef struct UnflushedCommit
{
	XLogRecPtr	upstream_lsn;	/* durable with it: all that ends here */
	XLogRecPtr	local_lsn;		/* end of the commit's own WAL */
	EcmTime		at;
} UnflushedCommit;

EcmLogBatchFigures ecm_log_batch_figures;

/* The batch, and how far the logs are. */
typedef struct LogBatch
{
	int			stack_index;
	int			worker;
	MemoryContext context;		/* chunks, and the lists of buffers */

	/* buffers with chunks of complete transactions, and of the open one */
	List	   *complete_buffers;
	List	   *open_buffers;
	Size		complete_bytes; /* of all these chunks */
	Size		open_bytes;
	XLogRecPtr	lsn;			/* end of the last complete transaction that
								 * is gathered; invalid: none is */
	EcmTime		began;			/* when the first of these was complete */

	/* the upstream transaction that is coming in */
	struct
	{
		XLogRecPtr	lsn;		/* of its commit record */
		uint64		xid;		/* with epoch */
		uint64		number;		/* our count; another one when it comes again */
		int64		next_op;	/* of the next change */
		int64		change_op;	/* of the change that is being applied */
	}			upstream;

	/* the local transaction */
	struct
	{
		bool		open;		/* for whatever reason */
		bool		spilling;	/* it is a large upstream transaction's own */
		bool		sheltered;	/* it has a subtransaction: begin_sheltered() */
		MemoryContext caller_context;	/* to return to after it */
		EcmLogWriter *writer;	/* or NULL */
	}			local;

	uint32		totals_epoch;	/* grows when a local transaction is undone:
								 * totals in buffers count what it wrote */

	/* how far the logs are */
	struct
	{
		XLogRecPtr	applied_lsn;	/* end of the last one committed here */
		XLogRecPtr	reported_lsn;	/* applied_lsn when last reported */
		List	   *unflushed;	/* of UnflushedCommit, oldest first */
		int64		transactions;
		int64		entries;
	}			done;

	/* when to settle again: ecm_log_batch_pace() */
	struct
	{
		int			transactions;	/* complete since the last settling */
		int			settled;	/* complete at the last settling */
		EcmTime		settled_at;
	}			pace;

	/* logs that the manager should look at */
	struct
	{
		int64		shapes[ECM_MAX_GROWN];
		int			n;
	}			grown;

	/* shapes whose readers the next commit wakes */
	struct
	{
		int64	   *shapes;
		int			n;
		int			max;
		uint64		commit;		/* its number, so that each is named once */
	}			readers;
} LogBatch;

static LogBatch batch =
{
	.totals_epoch = 1,
	.readers.commit = 1
};

void
ecm_log_batch_init(int index, int worker_number, XLogRecPtr position)
{
	batch.stack_index = index;
	batch.worker = worker_number;
	batch.done.applied_lsn = batch.done.reported_lsn = position;
	batch.context = AllocSetContextCreate(TopMemoryContext, "electric_cm log batch",
										  ALLOCSET_DEFAULT_SIZES);
}

void
ecm_log_batch_touch(int64 shape)
{
	if (batch.readers.n == batch.readers.max)
	{
		int			n = Max(2 * batch.readers.max, 64);

		batch.readers.shapes = batch.readers.shapes == NULL ?
			MemoryContextAlloc(TopMemoryContext, n * sizeof(int64)) :
			repalloc_huge(batch.readers.shapes, n * sizeof(int64));
		batch.readers.max = n;
	}
	batch.readers.shapes[batch.readers.n++] = shape;
}

static void
wake_readers(void)
{
	ecm_waiters_wake(MyDatabaseId, batch.readers.shapes, batch.readers.n);
	batch.readers.n = 0;
	batch.readers.commit++;
}

XLogRecPtr
ecm_log_batch_position(void)
{
	return Max(batch.done.applied_lsn, batch.lsn);
}

bool
ecm_log_batch_in_transaction(void)
{
	return batch.local.open;
}

bool
ecm_log_batch_is_empty(void)
{
	return batch.complete_buffers == NIL && batch.open_buffers == NIL;
}

/* ----------------------------------------------------- local transaction -- */

/*
 * Opens the local transaction, unless it is open, and switches to its context.
 */
static void
begin_local(void)
{
	batch.local.caller_context = CurrentMemoryContext;
	if (batch.local.open)
	{
		MemoryContextSwitchTo(CurTransactionContext);
		return;
	}
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	batch.local.open = true;
}

/*
 * While a large transaction is being written, an error of a where clause must not
 * undo what is written: clauses are evaluated in a subtransaction.  One lasts from
 * the first row that asks for it to the next write, lest each row pay for one.
 */
static void
begin_sheltered(void)
{
	MemoryContext old = CurrentMemoryContext;

	if (batch.local.sheltered)
		return;
	BeginInternalSubTransaction(NULL);
	batch.local.sheltered = true;
	MemoryContextSwitchTo(old);
}

static void
end_sheltered(bool commit)
{
	MemoryContext old = CurrentMemoryContext;

	if (!batch.local.sheltered)
		return;
	if (commit)
		ReleaseCurrentSubTransaction();
	else
		RollbackAndReleaseCurrentSubTransaction();
	batch.local.sheltered = false;
	MemoryContextSwitchTo(old);
}

void
ecm_log_batch_enter_transaction(void)
{
	if (batch.local.spilling)
		begin_sheltered();
	else if (!batch.local.open)
	{
		begin_local();
		MemoryContextSwitchTo(batch.local.caller_context);
	}
}

void
ecm_log_batch_recover(void)
{
	MemoryContext old = CurrentMemoryContext;

	if (batch.local.spilling)
		end_sheltered(false);
	else
	{
		AbortCurrentTransaction();
		batch.local.open = false;
	}
	MemoryContextSwitchTo(old);
	ecm_log_batch_enter_transaction();
}

/* Ends a transaction in which there was nothing to write. */
static void
end_unused(void)
{
	MemoryContext old = CurrentMemoryContext;

	if (!batch.local.open || batch.local.spilling)
		return;
	PopActiveSnapshot();
	CommitTransactionCommand();
	batch.local.open = false;
	MemoryContextSwitchTo(old);
}

/*
 * Commits the local transaction, which carries everything up to 'lsn'.
 */
static void
commit_local(XLogRecPtr lsn)
{
	UnflushedCommit *commit;
	MemoryContext old;

	if (batch.local.writer != NULL)
	{
		ecm_log_writer_end(batch.local.writer);
		batch.local.writer = NULL;
	}
	ecm_progress_write(batch.worker, lsn);
	PopActiveSnapshot();
	CommitTransactionCommand();
	batch.local.open = false;

	/*
	 * Readers see the entries though they are not flushed.  If a crash takes
	 * them away, the slot still has them, and the stream brings them back at
	 * the same offsets, which are made of upstream positions only.
	 */
	wake_readers();

	old = MemoryContextSwitchTo(TopMemoryContext);
	commit = palloc(sizeof(UnflushedCommit));
	commit->upstream_lsn = lsn;
	commit->local_lsn = XactLastCommitEnd;
	commit->at = ecm_now();
	batch.done.unflushed = lappend(batch.done.unflushed, commit);
	MemoryContextSwitchTo(old);
	batch.done.applied_lsn = lsn;
	MemoryContextSwitchTo(batch.local.caller_context);
}

/*
 * Notes a log that has grown by a step, for the manager to look at
 * (shape_retention.c).  Without room for it, it is noted with its next chunk.
 */
static void
note_growth(EcmShapeBuffer *buffer, int64 bytes)
{
	int64		step = ecm_retention_step();

	buffer->grown_bytes += bytes;
	if (step > 0 && buffer->grown_bytes >= step && batch.grown.n < ECM_MAX_GROWN)
	{
		batch.grown.shapes[batch.grown.n++] = buffer->shape;
		buffer->grown_bytes = 0;
	}
}

/*
 * Has the last commit to be flushed now?  Readers have it already.  What its flush tells
 * is that the slot may move on, which can wait for the next flush by anybody; but not
 * for long on an idle server, nor if a session waits for it.
 */
static bool
must_flush(void)
{
	const EcmStack *stack = ecm_stack_at(batch.stack_index);
	UnflushedCommit *oldest;

	if (batch.done.unflushed == NIL)
		return false;
	oldest = linitial(batch.done.unflushed);
	return ecm_has_passed(oldest->at, ecm_now(), FLUSH_MS) ||
		stack->requests.await_lsn > stack->consumers[batch.worker].durable_lsn;
}

/*
 * Tells how far this consumer is.  The manager is woken if it waits for that, or with
 * 'news'.  Before, the last commit is flushed, if 'flush' says so: the WAL writer may take
 * three times wal_writer_delay for that.
 */
static void
report_progress(bool flush, bool news)
{
	EcmStack   *stack = ecm_stack_at(batch.stack_index);
	EcmConsumerSlot *slot = &stack->consumers[batch.worker];
	XLogRecPtr	flushed;
	XLogRecPtr	durable = InvalidXLogRecPtr;
	XLogRecPtr	recorded;
	XLogRecPtr	recorded_end = InvalidXLogRecPtr;

	if (flush && batch.done.unflushed != NIL)
		XLogFlush(((UnflushedCommit *) llast(batch.done.unflushed))->local_lsn);
	flushed = GetFlushRecPtr(NULL);

	while (batch.done.unflushed != NIL)
	{
		UnflushedCommit *commit = linitial(batch.done.unflushed);

		if (commit->local_lsn > flushed)
			break;
		durable = commit->upstream_lsn;
		recorded_end = commit->local_lsn;
		batch.done.unflushed = list_delete_first(batch.done.unflushed);
		pfree(commit);
	}
	recorded = durable;
	/* transactions that wrote nothing are as durable as what precedes them */
	if (batch.done.unflushed == NIL)
		durable = batch.done.applied_lsn;

	ecm_lock(LW_EXCLUSIVE);
	slot->applied_lsn = Max(slot->applied_lsn, batch.done.applied_lsn);
	slot->received_lsn = Max(slot->received_lsn, Max(batch.done.applied_lsn, batch.lsn));
	slot->durable_lsn = Max(slot->durable_lsn, durable);
	if (recorded > slot->recorded_lsn)
	{
		slot->recorded_lsn = recorded;
		slot->recorded_end = recorded_end;
	}
	slot->shapes = ecm_log_batch_figures.shapes;
	slot->transactions = batch.done.transactions;
	slot->changes = ecm_log_batch_figures.changes;
	slot->matched_changes = batch.done.entries;
	slot->last_progress_at = ecm_wall_clock();
	news |= batch.grown.n > 0 || stack->manager.expects_progress ||
		stack->requests.await_lsn > stack->progress.flushed_lsn;
	while (batch.grown.n > 0 && slot->ngrown < ECM_MAX_GROWN)
		slot->grown[slot->ngrown++] = batch.grown.shapes[--batch.grown.n];
	ecm_unlock();

	if (news)
	{
		ConditionVariableBroadcast(&stack->cv);
		ecm_stack_wake(batch.stack_index);
	}
	batch.done.reported_lsn = batch.done.applied_lsn;
}

/* -------------------------------------------------------------- batches -- */

/* Writes a buffer's chunks in the open local transaction. */
static void
write_chunks(EcmShapeBuffer *buffer, List *chunks)
{
	ListCell   *lc;

	if (buffer->gone)
		return;
	if (batch.local.writer == NULL)
	{
		/* it may have to last for many messages */
		MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

		batch.local.writer = ecm_log_writer_begin();
		MemoryContextSwitchTo(old);
	}
	ecm_work_on(buffer->shape);
	if (buffer->touched != batch.readers.commit)
	{
		ecm_log_batch_touch(buffer->shape);
		buffer->touched = batch.readers.commit;
	}
	if (buffer->totals_epoch != batch.totals_epoch)
	{
		buffer->totals = ecm_log_stream_totals(buffer->shape, PG_UINT64_MAX);
		buffer->totals_epoch = batch.totals_epoch;
	}
	foreach(lc, chunks)
	{
		Chunk	   *chunk = lfirst(lc);

		ecm_here->lsn = chunk->head.first_lsn;
		ecm_stall_step();
		if (chunk->bytes == NULL)
			ecm_log_writer_put(batch.local.writer, &chunk->head, chunk->data.data,
							   chunk->data.len, &buffer->totals);
		else
		{
			SET_VARSIZE(chunk->bytes, VARHDRSZ + chunk->data.len);
			ecm_log_writer_put_bytes(batch.local.writer, &chunk->head, chunk->bytes,
									 &buffer->totals);
		}
		note_growth(buffer, chunk->data.len);
	}
	ecm_work_on(0);
	ecm_here->lsn = batch.upstream.lsn;
}

static void
forget_complete(void)
{
	ListCell   *lc;

	foreach(lc, batch.complete_buffers)
		((EcmShapeBuffer *) lfirst(lc))->complete = NIL;
	batch.complete_buffers = NIL;
	batch.complete_bytes = 0;
	batch.lsn = InvalidXLogRecPtr;
}

static void
forget_open(void)
{
	ListCell   *lc;

	foreach(lc, batch.open_buffers)
		((EcmShapeBuffer *) lfirst(lc))->open = NIL;
	batch.open_buffers = NIL;
	batch.open_bytes = 0;
}

/* The gathering memory can go once nothing is gathered. */
static void
reset_gather_memory(void)
{
	if (ecm_log_batch_is_empty())
		MemoryContextReset(batch.context);
}

/*
 * Commits the complete transactions that have been gathered.  If none of them has
 * an entry for us, nothing is written, not even progress: it costs no WAL.
 */
static void
commit_complete(void)
{
	ListCell   *lc;
	bool		any = false;

	Assert(!batch.local.spilling);
	if (XLogRecPtrIsInvalid(batch.lsn))
		return;

	foreach(lc, batch.complete_buffers)
		any |= !((EcmShapeBuffer *) lfirst(lc))->gone;
	if (any)
	{
		begin_local();
		foreach(lc, batch.complete_buffers)
			write_chunks(lfirst(lc), ((EcmShapeBuffer *) lfirst(lc))->complete);
		commit_local(batch.lsn);
	}
	else
	{
		end_unused();
		batch.done.applied_lsn = batch.lsn;
	}
	forget_complete();
	reset_gather_memory();
}

static void
write_open(void)
{
	ListCell   *lc;

	foreach(lc, batch.open_buffers)
		write_chunks(lfirst(lc), ((EcmShapeBuffer *) lfirst(lc))->open);
	forget_open();
}

/*
 * The transaction that is coming in is too large to wait for its end: it gets
 * a local transaction of its own, which stays open until then.
 */
static void
spill_open(void)
{
	if (!batch.local.spilling)
	{
		commit_complete();
		begin_local();
		batch.local.spilling = true;
	}
	end_sheltered(true);
	write_open();
	reset_gather_memory();
}

/*
 * The transaction has come in as a whole: its chunks join the complete ones.  Its
 * first one is merged into the shape's last one if there is room, so that many
 * small transactions make few chunks.
 */
static void
complete_open(XLogRecPtr end_lsn)
{
	ListCell   *lc;
	MemoryContext old = MemoryContextSwitchTo(batch.context);

	if (XLogRecPtrIsInvalid(batch.lsn))
		batch.began = ecm_now();
	batch.lsn = end_lsn;

	foreach(lc, batch.open_buffers)
	{
		EcmShapeBuffer *buffer = lfirst(lc);
		Chunk	   *first = linitial(buffer->open);
		Chunk	   *last = buffer->complete ? llast(buffer->complete) : NULL;

		if (last == NULL)
			batch.complete_buffers = lappend(batch.complete_buffers, buffer);
		if (last != NULL && !buffer->capturing &&
			last->data.len + first->data.len <= ECM_CHUNK_TARGET)
		{
			appendBinaryStringInfo(&last->data, first->data.data, first->data.len);
			last->head.entries += first->head.entries;
			buffer->open = list_delete_first(buffer->open);
		}
		buffer->complete = list_concat(buffer->complete, buffer->open);
	}
	batch.complete_bytes += batch.open_bytes;
	MemoryContextSwitchTo(old);
	forget_open();
}

/* -------------------------------------------------------------- entries -- */

/*
 * Appends an entry to a shape's open chunks.
 */
void
ecm_log_batch_entry(EcmShapeBuffer *buffer, EcmOp op, const EcmValue *newv,
					const EcmValue *oldv)
{
	int			n = buffer->ncolumns;
	Size		need = 1;
	Chunk	   *chunk = buffer->open ? llast(buffer->open) : NULL;
	int64		skipped;
	char	   *to;

	if (buffer->op_transaction != batch.upstream.number)
	{
		buffer->op_transaction = batch.upstream.number;
		buffer->next_op = batch.upstream.change_op;
	}
	skipped = Max(batch.upstream.change_op - buffer->next_op, 0);
	buffer->next_op += skipped;
	if (skipped > 0)
		need += ecm_chunk_skip_size(skipped);
	if (op != ECM_OP_DELETE)
		need += ecm_chunk_values_size(newv, n);
	if (op != ECM_OP_INSERT)
		need += ecm_chunk_values_size(oldv, oldv ? n : 0);

	if (chunk == NULL || chunk->data.len + need > ECM_CHUNK_TARGET)
	{
		MemoryContext old = MemoryContextSwitchTo(batch.context);

		if (chunk == NULL)
			batch.open_buffers = lappend(batch.open_buffers, buffer);
		chunk = palloc0(sizeof(Chunk));
		chunk->head.shape = buffer->shape;
		chunk->head.first_lsn = batch.upstream.lsn;
		chunk->head.first_op = buffer->next_op;
		chunk->head.captured_xid =
			FullTransactionIdFromU64(buffer->capturing ? batch.upstream.xid : 0);
		need += ECM_CHUNK_TXN_SIZE;
		if (need > ECM_CHUNK_TARGET)
		{
			/* nothing will be added to this one, so it can do without a copy */
			chunk->bytes = palloc(VARHDRSZ + need);
			chunk->data.data = VARDATA(chunk->bytes);
			chunk->data.maxlen = need;
		}
		else
		{
			chunk->data.maxlen = (int) Max(need + 1, FIRST_CHUNK_BYTES);
			chunk->data.data = palloc(chunk->data.maxlen);
		}
		chunk->data.len = ecm_chunk_put_txn(chunk->data.data, batch.upstream.lsn, batch.upstream.xid,
											buffer->next_op) - chunk->data.data;
		skipped = 0;
		batch.open_bytes += chunk->data.len;
		buffer->open = lappend(buffer->open, chunk);
		MemoryContextSwitchTo(old);
	}
	else
		enlargeStringInfo(&chunk->data, need);

	to = chunk->data.data + chunk->data.len;
	if (skipped > 0)
		to = ecm_chunk_put_skip(to, skipped);
	to = ecm_chunk_put_op(to, op);
	if (op != ECM_OP_DELETE)
		to = ecm_chunk_put_values(to, newv, n);
	if (op != ECM_OP_INSERT)
		to = ecm_chunk_put_values(to, oldv, oldv ? n : 0);
	batch.open_bytes += to - (chunk->data.data + chunk->data.len);
	chunk->data.len = to - chunk->data.data;
	chunk->head.entries++;
	buffer->next_op++;
	batch.done.entries++;

	if (batch.open_bytes >= SPILL_BYTES)
		spill_open();
}

/* --------------------------------------------------------- transactions -- */

void
ecm_log_batch_begin(XLogRecPtr lsn, uint64 xid)
{
	batch.upstream.lsn = lsn;
	batch.upstream.xid = xid;
	batch.upstream.number++;
	batch.upstream.next_op = ecm_epoch_first_op(lsn);
	ecm_here->lsn = lsn;
}

void
ecm_log_batch_change(int entries)
{
	batch.upstream.change_op = batch.upstream.next_op;
	batch.upstream.next_op += entries;
}

bool
ecm_log_batch_is_past(XLogRecPtr skip_until)
{
	return batch.upstream.lsn < skip_until;
}

XLogRecPtr
ecm_log_batch_lsn(void)
{
	return batch.upstream.lsn;
}

uint64
ecm_log_batch_full_xid(void)
{
	return batch.upstream.xid;
}

TransactionId
ecm_log_batch_xid(void)
{
	return XidFromFullTransactionId(FullTransactionIdFromU64(batch.upstream.xid));
}

/*
 * Usually the transaction joins the batch; one that was spilled, or that has
 * orders for us, is committed by itself.
 */
void
ecm_log_batch_commit(XLogRecPtr end_lsn, void (*orders) (void))
{
	batch.done.transactions++;
	batch.pace.transactions++;
	ecm_blame_passed(batch.upstream.lsn);
	if (!batch.local.spilling && orders == NULL)
	{
		complete_open(end_lsn);
		if (batch.complete_bytes >= BATCH_BYTES ||
			ecm_has_passed(batch.began, ecm_now(), BATCH_MS))
		{
			commit_complete();
			report_progress(false, false);
		}
		return;
	}

	if (!batch.local.spilling)
	{
		commit_complete();
		begin_local();
	}
	end_sheltered(true);
	batch.local.spilling = false;
	write_open();
	if (orders != NULL)
		orders();
	commit_local(end_lsn);
	reset_gather_memory();
	report_progress(false, true);
}

void
ecm_log_batch_reset(void)
{
	if (batch.local.spilling)
	{
		/* the log writer's resources go with the transaction */
		batch.local.writer = NULL;
		end_sheltered(false);
		AbortCurrentTransaction();
		MemoryContextSwitchTo(batch.local.caller_context);
		batch.local.spilling = false;
		batch.local.open = false;
		batch.totals_epoch++;
	}
	forget_open();
	commit_complete();
	end_unused();
	reset_gather_memory();
	report_progress(true, true);
}

bool
ecm_log_batch_unsettled(void)
{
	return !XLogRecPtrIsInvalid(batch.lsn) || must_flush() ||
		batch.done.reported_lsn != batch.done.applied_lsn || (batch.local.open && !batch.local.spilling);
}

EcmTime
ecm_log_batch_deadline(void)
{
	return batch.done.unflushed == NIL ? 0 :
		ecm_later(((UnflushedCommit *) linitial(batch.done.unflushed))->at, FLUSH_MS);
}

/*
 * A single transaction is written at once.  Where several come in, they share the
 * local commit that each settling costs, as by commit_delay.  The sleep is
 * deaf to signals and the latch, but takes PACE_US at most.
 */
bool
ecm_log_batch_pace(void)
{
	EcmTime		due = batch.pace.settled_at + PACE_US;
	EcmTime		now;

	if (batch.pace.transactions < 2 && batch.pace.settled < 2)
		return false;
	now = ecm_now();
	if (now >= due)
		return false;
	pgstat_report_wait_start(ecm_wait_event(ECM_WAIT_GATHER));
	pg_usleep(due - now);
	pgstat_report_wait_end();
	return true;
}

void
ecm_log_batch_settle(void)
{
	batch.pace.settled = batch.pace.transactions;
	batch.pace.transactions = 0;
	batch.pace.settled_at = ecm_now();
	if (!batch.local.spilling)
		commit_complete();
	end_unused();
	report_progress(must_flush(), false);
}
