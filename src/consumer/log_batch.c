/*-------------------------------------------------------------------------
 *
 * log_batch.c
 *	  The consumer's writing side.
 *
 * Entries are gathered in memory, chunk by chunk, over as many upstream
 * transactions as are waiting in the queue; one local transaction then writes
 * the chunks together with this consumer's progress.  It commits
 * asynchronously, and the position is reported as durable once that commit's
 * WAL is flushed: by the WAL writer while there is more to do, by ourselves
 * when the queue runs dry.
 *
 * The invariant that everything rests on: what is in the shape logs, and the
 * row in _electric_cm.progress, change in one transaction.  A transaction
 * that comes again after a reconnection is recognised by its commit LSN.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/shmem.h"
#include "base/spi.h"
#include "base/waiters.h"
#include "consumer/log_batch.h"
#include "shape/shape.h"
#include "shape/shape_blame.h"
#include "shape/shape_log.h"

/* Complete transactions are written when this much has been gathered ... */
#define BATCH_BYTES			(1024 * 1024)
/* ... or after this long, so that readers see a busy stream move. */
#define BATCH_MS			50
/* Not settled again before, if several transactions come in meanwhile. */
#define PACE_US				2000
/* How many rows a consumer's progress has, in turn. */
#define PROGRESS_ROWS		32
/* A transaction that is still coming in is written early beyond this. */
#define SPILL_BYTES			(4 * 1024 * 1024)

/* Room for a chunk, at first: a change may be in many thousand shapes. */
#define FIRST_CHUNK_BYTES	256

/* A chunk in the making. */
typedef struct Chunk
{
	XLogRecPtr	first_lsn;
	int64		first_op;
	int32		entries;
	uint64		xid;			/* captured: of the transaction; else 0 */
	StringInfoData data;
	bytea	   *bytes;			/* that one large entry's data are in; or NULL */
} Chunk;

/* A local commit whose WAL is not known to be flushed yet. */
typedef struct UnflushedCommit
{
	XLogRecPtr	upstream_lsn;
	XLogRecPtr	local_lsn;
} UnflushedCommit;

EcmGatherFigures ecm_gather_figures;

static int	stack_index;
static int	worker;
static MemoryContext gather_context;	/* chunks, and the lists below */
static MemoryContext caller_context;	/* to return to after a transaction */

/* buffers with complete chunks, and with open ones */
static List *complete_buffers = NIL;
static List *open_buffers = NIL;
static Size complete_bytes;
static Size open_bytes;

/* the upstream transaction that is coming in */
static XLogRecPtr txn_lsn;
static uint64 txn_xid;
static uint64 txn_number;		/* another one when it comes again */
static bool spilling;			/* a local transaction is open for it */
static bool transaction_open;	/* one is, for it or for anything else */
static bool subtransaction_open;	/* see begin_sheltered() */

static XLogRecPtr batch_lsn;	/* end of the last complete one gathered, or
								 * invalid */
static EcmTime batch_began;
static int	batch_transactions; /* complete, since the last settling */
static int	settled_transactions;	/* with the last one */
static EcmTime settled_at;

static XLogRecPtr applied_lsn;	/* end of the last one committed here */
static XLogRecPtr reported_lsn;
static List *unflushed = NIL;	/* of UnflushedCommit, oldest first */

static EcmLogWriter *writer;
static uint32 totals_epoch = 1; /* grows when something that was written is
								 * undone */
static SPIPlanPtr progress_plan;

static int64 transactions;
static int64 entries;
static int64 working_on;		/* a shape; 0: none in particular */
static int64 grown[ECM_MAX_GROWN];	/* logs that the manager should look at */
static int	ngrown;

/* shapes whose readers the next commit wakes; its number, to name each once */
static int64 *touched;
static int	ntouched;
static int	max_touched;
static uint64 commit_number = 1;

void
ecm_gather_init(int index, int worker_number, XLogRecPtr position)
{
	stack_index = index;
	worker = worker_number;
	applied_lsn = reported_lsn = position;
	gather_context = AllocSetContextCreate(TopMemoryContext, "electric_cm gather",
										   ALLOCSET_DEFAULT_SIZES);
}

void
ecm_gather_work_on(int64 shape)
{
	working_on = shape;
	ecm_here->shape = shape;
	ecm_stack_at(stack_index)->consumers[worker].working_on = shape;
}

int64
ecm_gather_working_on(void)
{
	return working_on;
}

void
ecm_gather_touch(int64 shape)
{
	if (ntouched == max_touched)
	{
		int			n = Max(2 * max_touched, 64);

		touched = touched == NULL ?
			MemoryContextAlloc(TopMemoryContext, n * sizeof(int64)) :
			repalloc_huge(touched, n * sizeof(int64));
		max_touched = n;
	}
	touched[ntouched++] = shape;
}

static void
wake_readers(void)
{
	ecm_waiters_wake(MyDatabaseId, touched, ntouched);
	ntouched = 0;
	commit_number++;
}

XLogRecPtr
ecm_gather_position(void)
{
	return Max(applied_lsn, batch_lsn);
}

bool
ecm_gather_in_transaction(void)
{
	return transaction_open;
}

bool
ecm_gather_is_empty(void)
{
	return complete_buffers == NIL && open_buffers == NIL;
}

/* ----------------------------------------------------- local transaction -- */

static void
begin_local(void)
{
	caller_context = CurrentMemoryContext;
	if (transaction_open)
	{
		MemoryContextSwitchTo(CurTransactionContext);
		return;
	}
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	transaction_open = true;
}

/*
 * While a large transaction is being written, others' errors must not spoil it:
 * they work in a subtransaction.  It lasts from the first that asks for one to
 * the next write, so that it costs nothing by the row.
 */
static void
begin_sheltered(void)
{
	MemoryContext old = CurrentMemoryContext;

	if (subtransaction_open)
		return;
	BeginInternalSubTransaction(NULL);
	subtransaction_open = true;
	MemoryContextSwitchTo(old);
}

static void
end_sheltered(bool commit)
{
	MemoryContext old = CurrentMemoryContext;

	if (!subtransaction_open)
		return;
	if (commit)
		ReleaseCurrentSubTransaction();
	else
		RollbackAndReleaseCurrentSubTransaction();
	subtransaction_open = false;
	MemoryContextSwitchTo(old);
}

void
ecm_gather_enter_transaction(void)
{
	if (spilling)
		begin_sheltered();
	else if (!transaction_open)
	{
		begin_local();
		MemoryContextSwitchTo(caller_context);
	}
}

void
ecm_gather_recover(void)
{
	MemoryContext old = CurrentMemoryContext;

	if (spilling)
		end_sheltered(false);
	else
	{
		AbortCurrentTransaction();
		transaction_open = false;
	}
	MemoryContextSwitchTo(old);
	ecm_gather_enter_transaction();
}

/* Ends a transaction in which there was nothing to write. */
static void
end_unused(void)
{
	MemoryContext old = CurrentMemoryContext;

	if (!transaction_open || spilling)
		return;
	PopActiveSnapshot();
	CommitTransactionCommand();
	transaction_open = false;
	MemoryContextSwitchTo(old);
}

static void
save_progress(XLogRecPtr lsn)
{
	static int	turn = 0;
	Datum		values[3] = {Int32GetDatum(worker), Int32GetDatum(turn), LSNGetDatum(lsn)};
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	if (progress_plan == NULL)
	{
		Oid			types[3] = {INT4OID, INT4OID, LSNOID};
		SPIPlanPtr	plan;

		plan = SPI_prepare("INSERT INTO _electric_cm.progress AS p (worker, turn, lsn)"
						   " VALUES ($1, $2, $3)"
						   " ON CONFLICT (worker, turn) DO UPDATE SET lsn = excluded.lsn",
						   3, types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare the progress statement");
		progress_plan = plan;
	}
	if (SPI_execute_plan(progress_plan, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not save progress");
	ecm_spi_end(&spi);
	turn = (turn + 1) % PROGRESS_ROWS;
}

/*
 * Commits the local transaction, which carries everything up to 'lsn'.
 */
static void
commit_local(XLogRecPtr lsn)
{
	UnflushedCommit *commit;
	MemoryContext old;

	if (writer != NULL)
	{
		ecm_log_writer_end(writer);
		writer = NULL;
	}
	save_progress(lsn);
	PopActiveSnapshot();
	CommitTransactionCommand();
	transaction_open = false;

	/*
	 * What readers see from now on is not flushed yet.  A crash would take it
	 * away, and the stream bring it back as it was: the slot has not been
	 * told that it is done with, and offsets are made of the upstream's
	 * alone.
	 */
	wake_readers();

	old = MemoryContextSwitchTo(TopMemoryContext);
	commit = palloc(sizeof(UnflushedCommit));
	commit->upstream_lsn = lsn;
	commit->local_lsn = XactLastCommitEnd;
	unflushed = lappend(unflushed, commit);
	MemoryContextSwitchTo(old);
	applied_lsn = lsn;
	MemoryContextSwitchTo(caller_context);
}

/*
 * Notes that a log has grown.  If there are too many, the next one that comes
 * to it will be noted.
 */
static void
note_growth(EcmShapeBuffer *buffer, int64 bytes)
{
	int64		step = ecm_retention_step();

	buffer->grown_bytes += bytes;
	if (step > 0 && buffer->grown_bytes >= step && ngrown < ECM_MAX_GROWN)
	{
		grown[ngrown++] = buffer->shape;
		buffer->grown_bytes = 0;
	}
}

/*
 * Tells the manager how far we are.  With 'flush' our last commit is flushed
 * first: nothing else would for up to three times wal_writer_delay.
 */
static void
report_progress(bool flush)
{
	EcmStack   *stack = ecm_stack_at(stack_index);
	EcmConsumerSlot *slot = &stack->consumers[worker];
	XLogRecPtr	flushed;
	XLogRecPtr	durable = InvalidXLogRecPtr;

	if (flush && unflushed != NIL)
		XLogFlush(((UnflushedCommit *) llast(unflushed))->local_lsn);
	flushed = GetFlushRecPtr(NULL);

	while (unflushed != NIL)
	{
		UnflushedCommit *commit = linitial(unflushed);

		if (commit->local_lsn > flushed)
			break;
		durable = commit->upstream_lsn;
		unflushed = list_delete_first(unflushed);
		pfree(commit);
	}
	/* transactions that wrote nothing are as durable as what precedes them */
	if (unflushed == NIL)
		durable = applied_lsn;

	ecm_lock(LW_EXCLUSIVE);
	slot->applied_lsn = Max(slot->applied_lsn, applied_lsn);
	slot->received_lsn = Max(slot->received_lsn, Max(applied_lsn, batch_lsn));
	slot->durable_lsn = Max(slot->durable_lsn, durable);
	slot->shapes = ecm_gather_figures.shapes;
	slot->transactions = transactions;
	slot->changes = ecm_gather_figures.changes;
	slot->matched_changes = entries;
	slot->last_progress_at = ecm_wall_clock();
	while (ngrown > 0 && slot->ngrown < ECM_MAX_GROWN)
		slot->grown[slot->ngrown++] = grown[--ngrown];
	ecm_unlock();

	ConditionVariableBroadcast(&stack->cv);
	ecm_stack_wake(stack_index);
	reported_lsn = applied_lsn;
}

/* -------------------------------------------------------------- batches -- */

/*
 * Writes a buffer's chunks in the open local transaction.
 */
static void
write_chunks(EcmShapeBuffer *buffer, List *chunks)
{
	ListCell   *lc;

	if (buffer->gone)
		return;
	if (writer == NULL)
	{
		/* it may have to last for many messages */
		MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

		writer = ecm_log_writer_begin();
		MemoryContextSwitchTo(old);
	}
	ecm_gather_work_on(buffer->shape);
	if (buffer->touched != commit_number)
	{
		ecm_gather_touch(buffer->shape);
		buffer->touched = commit_number;
	}
	if (buffer->totals_epoch != totals_epoch)
	{
		buffer->totals = ecm_log_stream_totals(buffer->shape);
		buffer->totals_epoch = totals_epoch;
	}
	foreach(lc, chunks)
	{
		Chunk	   *chunk = lfirst(lc);

		ecm_here->lsn = chunk->first_lsn;
		if (chunk->bytes == NULL)
			ecm_log_writer_put(writer, buffer->shape, chunk->first_lsn,
							   chunk->first_op, chunk->entries,
							   FullTransactionIdFromU64(chunk->xid),
							   chunk->data.data, chunk->data.len,
							   &buffer->totals);
		else
		{
			SET_VARSIZE(chunk->bytes, VARHDRSZ + chunk->data.len);
			ecm_log_writer_put_bytes(writer, buffer->shape, chunk->first_lsn,
									 chunk->first_op, chunk->entries,
									 FullTransactionIdFromU64(chunk->xid),
									 chunk->bytes, &buffer->totals);
		}
		note_growth(buffer, chunk->data.len);
	}
	ecm_gather_work_on(0);
	ecm_here->lsn = txn_lsn;
}

static void
forget_complete(void)
{
	ListCell   *lc;

	foreach(lc, complete_buffers)
		((EcmShapeBuffer *) lfirst(lc))->complete = NIL;
	complete_buffers = NIL;
	complete_bytes = 0;
	batch_lsn = InvalidXLogRecPtr;
}

static void
forget_open(void)
{
	ListCell   *lc;

	foreach(lc, open_buffers)
		((EcmShapeBuffer *) lfirst(lc))->open = NIL;
	open_buffers = NIL;
	open_bytes = 0;
}

/* The gathering memory can go once nothing is gathered. */
static void
reset_gather_memory(void)
{
	if (ecm_gather_is_empty())
		MemoryContextReset(gather_context);
}

/*
 * Commits the complete transactions that have been gathered.  Where none of
 * them left an entry there is nothing to write, not even progress.
 */
static void
commit_complete(void)
{
	ListCell   *lc;
	bool		any = false;

	Assert(!spilling);
	if (XLogRecPtrIsInvalid(batch_lsn))
		return;

	foreach(lc, complete_buffers)
		any |= !((EcmShapeBuffer *) lfirst(lc))->gone;
	if (any)
	{
		begin_local();
		foreach(lc, complete_buffers)
			write_chunks(lfirst(lc), ((EcmShapeBuffer *) lfirst(lc))->complete);
		commit_local(batch_lsn);
	}
	else
	{
		end_unused();
		applied_lsn = batch_lsn;
	}
	forget_complete();
	reset_gather_memory();
}

static void
write_open(void)
{
	ListCell   *lc;

	foreach(lc, open_buffers)
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
	if (!spilling)
	{
		commit_complete();
		begin_local();
		spilling = true;
	}
	end_sheltered(true);
	write_open();
	reset_gather_memory();
}

/*
 * The transaction has come in as a whole: its chunks join the complete ones.
 * Small ones are merged, so that many small transactions make few chunks.
 */
static void
complete_open(XLogRecPtr end_lsn)
{
	ListCell   *lc;
	MemoryContext old = MemoryContextSwitchTo(gather_context);

	if (XLogRecPtrIsInvalid(batch_lsn))
		batch_began = ecm_now();
	batch_lsn = end_lsn;

	foreach(lc, open_buffers)
	{
		EcmShapeBuffer *buffer = lfirst(lc);
		Chunk	   *first = linitial(buffer->open);
		Chunk	   *last = buffer->complete ? llast(buffer->complete) : NULL;

		if (last == NULL)
			complete_buffers = lappend(complete_buffers, buffer);
		if (last != NULL && !buffer->capturing &&
			last->data.len + first->data.len <= ECM_CHUNK_TARGET)
		{
			appendBinaryStringInfo(&last->data, first->data.data, first->data.len);
			last->entries += first->entries;
			buffer->open = list_delete_first(buffer->open);
		}
		buffer->complete = list_concat(buffer->complete, buffer->open);
	}
	complete_bytes += open_bytes;
	MemoryContextSwitchTo(old);
	forget_open();
}

/* -------------------------------------------------------------- entries -- */

/*
 * Appends an entry to a shape's open chunks.
 */
void
ecm_gather_entry(EcmShapeBuffer *buffer, EcmOp op, const EcmValue *newv,
				 const EcmValue *oldv)
{
	int			n = buffer->ncolumns;
	Size		need = 1;
	Chunk	   *chunk = buffer->open ? llast(buffer->open) : NULL;
	char	   *to;

	if (buffer->op_transaction != txn_number)
	{
		buffer->op_transaction = txn_number;
		buffer->next_op = 0;
	}
	if (op != ECM_OP_DELETE)
		need += ecm_chunk_values_size(newv, n);
	if (op != ECM_OP_INSERT)
		need += ecm_chunk_values_size(oldv, oldv ? n : 0);

	if (chunk == NULL || chunk->data.len + need > ECM_CHUNK_TARGET)
	{
		MemoryContext old = MemoryContextSwitchTo(gather_context);

		if (chunk == NULL)
			open_buffers = lappend(open_buffers, buffer);
		chunk = palloc0(sizeof(Chunk));
		chunk->first_lsn = txn_lsn;
		chunk->first_op = buffer->next_op;
		chunk->xid = buffer->capturing ? txn_xid : 0;
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
		chunk->data.len = ecm_chunk_put_txn(chunk->data.data, txn_lsn, txn_xid,
											buffer->next_op) - chunk->data.data;
		open_bytes += chunk->data.len;
		buffer->open = lappend(buffer->open, chunk);
		MemoryContextSwitchTo(old);
	}
	else
		enlargeStringInfo(&chunk->data, need);

	to = chunk->data.data + chunk->data.len;
	to = ecm_chunk_put_op(to, op);
	if (op != ECM_OP_DELETE)
		to = ecm_chunk_put_values(to, newv, n);
	if (op != ECM_OP_INSERT)
		to = ecm_chunk_put_values(to, oldv, oldv ? n : 0);
	open_bytes += to - (chunk->data.data + chunk->data.len);
	chunk->data.len = to - chunk->data.data;
	chunk->entries++;
	buffer->next_op++;
	entries++;

	if (open_bytes >= SPILL_BYTES)
		spill_open();
}

/* --------------------------------------------------------- transactions -- */

void
ecm_gather_begin(XLogRecPtr lsn, uint64 xid)
{
	txn_lsn = lsn;
	txn_xid = xid;
	txn_number++;
	ecm_here->lsn = lsn;
}

bool
ecm_gather_is_past(XLogRecPtr skip_until)
{
	return txn_lsn < skip_until;
}

XLogRecPtr
ecm_gather_lsn(void)
{
	return txn_lsn;
}

TransactionId
ecm_gather_xid(void)
{
	return XidFromFullTransactionId(FullTransactionIdFromU64(txn_xid));
}

/*
 * Usually the transaction joins the batch; one that was spilled, or that has
 * orders for us, is committed by itself.
 */
void
ecm_gather_commit(XLogRecPtr end_lsn, void (*orders) (void))
{
	transactions++;
	batch_transactions++;
	ecm_blame_passed(txn_lsn);
	if (!spilling && orders == NULL)
	{
		complete_open(end_lsn);
		if (complete_bytes >= BATCH_BYTES ||
			ecm_has_passed(batch_began, ecm_now(), BATCH_MS))
		{
			commit_complete();
			report_progress(false);
		}
		return;
	}

	if (!spilling)
	{
		commit_complete();
		begin_local();
	}
	end_sheltered(true);
	spilling = false;
	write_open();
	if (orders != NULL)
		orders();
	commit_local(end_lsn);
	reset_gather_memory();
	report_progress(false);
}

void
ecm_gather_reset(void)
{
	if (spilling)
	{
		/* the log writer's resources go with the transaction */
		writer = NULL;
		end_sheltered(false);
		AbortCurrentTransaction();
		MemoryContextSwitchTo(caller_context);
		spilling = false;
		transaction_open = false;
		totals_epoch++;
	}
	forget_open();
	commit_complete();
	end_unused();
	reset_gather_memory();
	report_progress(true);
}

bool
ecm_gather_unsettled(void)
{
	return !XLogRecPtrIsInvalid(batch_lsn) || unflushed != NIL ||
		reported_lsn != applied_lsn || (transaction_open && !spilling);
}

/*
 * Who commits alone has his transaction made durable at once.  With several,
 * each settling costs them a flush of the WAL more, so that they are asked to
 * share it, as by commit_delay.
 */
bool
ecm_gather_pace(void)
{
	EcmTime		due = settled_at + PACE_US;
	EcmTime		now;

	if (batch_transactions < 2 && settled_transactions < 2)
		return false;
	now = ecm_now();
	if (now >= due)
		return false;
	pg_usleep(due - now);
	return true;
}

void
ecm_gather_settle(void)
{
	settled_transactions = batch_transactions;
	batch_transactions = 0;
	if (!spilling)
		commit_complete();
	end_unused();
	report_progress(true);
	settled_at = ecm_now();
}
