/*-------------------------------------------------------------------------
 *
 * shape_captured.c
 *	  The captured entries of a shape's log: those that are not to stay are
 *	  removed.
 *
 * A chunk of captured entries is one transaction's.  Mostly all of them stay, or
 * none, and then the chunk is not even read.  Otherwise it is written anew, without
 * those that go.  The others keep their offsets; in a chunk, each gap takes a
 * transaction record.
 *
 * A transaction may have millions of entries, so only one chunk is in memory at a
 * time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "shape/shape_captured.h"
#include "shape/shape_chunk.h"
#include "shape/shape_entry.h"
#include "shape/shape_stall.h"

/* An entry of the chunk that is judged. */
typedef struct Judged
{
	bool		stays;
	const EcmValue *row;		/* replaced by an insert with these values */
} Judged;

typedef struct JudgedChunk
{
	Judged	   *entries;
	int			n;
	int			max;
	int			nstay;			/* also those that are replaced */
	bool		any_replaced;
} JudgedChunk;

/* A chunk that takes the place of one that was judged, or of a part of it. */
typedef struct NewChunk
{
	EcmLogChunk head;
	bytea	   *bytes;			/* NULL: not begun */
	char	   *to;
	Size		left;
	uint64		next_op;		/* of the entry that needs no transaction
								 * record */
} NewChunk;

typedef struct Captured
{
	const EcmShapeDef *shape;
	const EcmCapturedRules *rules;
	EcmChunkScan cs;
	EcmValue   *new_values;
	EcmValue   *old_values;
	MemoryContext context;		/* of the writer */
	MemoryContext chunk_context;	/* reset for each chunk */
	EcmLogWriter *writer;		/* NULL: not needed yet */
	EcmLogTotals kept;
} Captured;

/* Asks about each entry of the current chunk. */
static void
judge_entries(Captured *captured, JudgedChunk *chunk)
{
	EcmChunkReader r;

	memset(chunk, 0, sizeof(*chunk));
	chunk->max = 64;
	chunk->entries = palloc(sizeof(Judged) * chunk->max);
	ecm_chunk_scan_read(&captured->cs, &r, captured->new_values, captured->old_values,
						captured->shape->ncolumns);
	while (ecm_entry_next(captured->shape, &captured->cs, &r))
	{
		Judged	   *judged;
		const EcmValue *row = NULL;
		EcmVerdict	verdict = captured->rules->entry(captured->rules->arg, &r, &row);

		if (chunk->n == chunk->max)
		{
			chunk->max *= 2;
			chunk->entries = repalloc(chunk->entries, sizeof(Judged) * chunk->max);
		}
		judged = &chunk->entries[chunk->n++];
		judged->stays = verdict != ECM_GOES;
		judged->row = verdict == ECM_REPLACED ? row : NULL;
		chunk->nstay += judged->stays;
		chunk->any_replaced |= judged->row != NULL;
	}
	if (chunk->n != captured->cs.entries)
		ecm_entry_report_corrupt(captured->shape, captured->cs.first_lsn,
								 captured->cs.first_op);
}

static void
count_kept(Captured *captured, int64 entries, int64 bytes)
{
	captured->kept.entries += entries;
	captured->kept.bytes += bytes;
}

/* Its running totals are those of the chunk that it comes from. */
static void
put_new_chunk(Captured *captured, NewChunk *chunk)
{
	Size		len;
	EcmLogTotals totals = captured->cs.totals;

	if (chunk->bytes == NULL)
		return;
	len = chunk->to - VARDATA(chunk->bytes);
	SET_VARSIZE(chunk->bytes, VARHDRSZ + len);
	totals.entries -= chunk->head.entries;
	totals.bytes -= len;
	if (captured->writer == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(captured->context);

		captured->writer = ecm_log_writer_begin();
		MemoryContextSwitchTo(old);
	}
	ecm_log_writer_put_bytes(captured->writer, &chunk->head, chunk->bytes, &totals);
	count_kept(captured, chunk->head.entries, len);
	pfree(chunk->bytes);
	chunk->bytes = NULL;
}

/* Appends an entry; a chunk that is full is written before. */
static void
append_entry(Captured *captured, NewChunk *chunk, EcmChunkReader *r, const EcmValue *row)
{
	EcmOp		op = row != NULL ? ECM_OP_INSERT : r->op;
	const EcmValue *new_values = row != NULL ? row : r->new_values;
	int			n_new = row != NULL ? captured->shape->ncolumns : r->n_new;
	Size		need = ECM_CHUNK_TXN_SIZE + 1;

	if (op != ECM_OP_DELETE)
		need += ecm_chunk_values_size(new_values, n_new);
	if (op != ECM_OP_INSERT)
		need += ecm_chunk_values_size(r->old_values, r->n_old);
	if (need > MaxAllocSize - VARHDRSZ)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("row of %zu bytes is too large for a shape", need)));

	if (chunk->bytes != NULL && need > chunk->left)
		put_new_chunk(captured, chunk);
	if (chunk->bytes == NULL)
	{
		chunk->left = Max(need, ECM_CHUNK_TARGET);
		chunk->bytes = palloc(VARHDRSZ + chunk->left);
		chunk->to = VARDATA(chunk->bytes);
		chunk->head = (EcmLogChunk)
		{
			.shape = captured->shape->id, .first_lsn = r->lsn, .first_op = (int64) r->opno,
				.captured_xid = captured->cs.captured_xid
		};
		chunk->next_op = PG_UINT64_MAX;
	}
	chunk->left += chunk->to - VARDATA(chunk->bytes);
	if (r->opno != chunk->next_op)
		chunk->to = ecm_chunk_put_txn(chunk->to, r->lsn, r->xid, r->opno);
	chunk->to = ecm_chunk_put_op(chunk->to, op);
	if (op != ECM_OP_DELETE)
		chunk->to = ecm_chunk_put_values(chunk->to, new_values, n_new);
	if (op != ECM_OP_INSERT)
		chunk->to = ecm_chunk_put_values(chunk->to, r->old_values, r->n_old);
	chunk->left -= chunk->to - VARDATA(chunk->bytes);
	chunk->head.entries++;
	chunk->next_op = r->opno + 1;
}

/*
 * Writes the entries of the current chunk that stay, in its place.  The scan does
 * not meet what is written here: its snapshot is from before.
 */
static void
rewrite(Captured *captured, const JudgedChunk *judged)
{
	EcmChunkReader r;
	NewChunk	chunk = {0};

	if (!ecm_chunk_scan_delete(&captured->cs))
		return;					/* the shape has gone, and its log goes */
	ecm_chunk_scan_read(&captured->cs, &r, captured->new_values, captured->old_values,
						captured->shape->ncolumns);
	for (int i = 0; i < judged->n && ecm_entry_next(captured->shape, &captured->cs, &r); i++)
		if (judged->entries[i].stays)
			append_entry(captured, &chunk, &r, judged->entries[i].row);
	put_new_chunk(captured, &chunk);
}

/* False: nothing of the current chunk is left. */
static bool
judge_chunk(Captured *captured, EcmVerdict verdict)
{
	JudgedChunk chunk;

	if (verdict == ECM_BY_ENTRY)
	{
		judge_entries(captured, &chunk);
		if (chunk.nstay == 0)
			verdict = ECM_GOES;
		else if (chunk.nstay == chunk.n && !chunk.any_replaced)
			verdict = ECM_STAYS;
	}
	if (verdict == ECM_GOES)
		(void) ecm_chunk_scan_delete(&captured->cs);
	else if (verdict == ECM_STAYS)
		count_kept(captured, captured->cs.entries, ecm_chunk_scan_bytes(&captured->cs));
	else
		rewrite(captured, &chunk);
	return verdict != ECM_GOES;
}

static void
begin_scan(EcmChunkScan *cs, int64 id, const EcmCapturedMark *mark, Snapshot snapshot)
{
	ecm_chunk_scan_begin(cs, id, BTGreaterEqualStrategyNumber, Max(mark->lsn, 1), mark->op,
						 snapshot, RowExclusiveLock);
}

/*
 * What is before the gap is not captured, and has gone through all that when the log
 * was made.
 */
void
ecm_captured_begin(int64 id, XLogRecPtr gap_lsn, EcmCapturedMark *mark)
{
	memset(mark, 0, sizeof(*mark));
	if (XLogRecPtrIsInvalid(gap_lsn))
		return;
	mark->lsn = gap_lsn + 1;
	mark->kept = mark->last = ecm_log_stream_totals(id, gap_lsn);
}

bool
ecm_captured_any(int64 id, const EcmCapturedMark *mark)
{
	EcmChunkScan cs;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	bool		any;

	begin_scan(&cs, id, mark, snapshot);
	any = ecm_chunk_scan_next(&cs);
	ecm_chunk_scan_end(&cs);
	UnregisterSnapshot(snapshot);
	return any;
}

/*
 * The scan begins after the chunks of the pieces' rows, which have LSN 0 and may be
 * many.  The running totals of the stream go on from the last chunk that is kept.
 * They have counted what was removed before that one, so this is not subtracted.
 */
EcmLogTotals
ecm_captured_judge(int64 id, const EcmShapeDef *shape, const EcmCapturedRules *rules,
				   EcmCapturedMark *mark)
{
	Captured	captured = {.shape = shape, .rules = rules, .kept = mark->kept,
	.context = CurrentMemoryContext};
	EcmLogTotals last = mark->last;
	EcmCapturedMark next = *mark;
	bool		undecided = false;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	EcmChunkScan *cs = &captured.cs;

	if (shape != NULL)
	{
		captured.new_values = palloc(shape->ncolumns * sizeof(EcmValue));
		captured.old_values = palloc(shape->ncolumns * sizeof(EcmValue));
	}
	captured.chunk_context = AllocSetContextCreate(CurrentMemoryContext,
												   "electric_cm judged chunk",
												   ALLOCSET_DEFAULT_SIZES);
	begin_scan(cs, id, mark, snapshot);
	while (ecm_chunk_scan_next(cs))
	{
		EcmVerdict	verdict = ECM_STAYS;
		EcmLogTotals kept = captured.kept;

		ecm_stall_step();
		MemoryContextReset(captured.chunk_context);
		MemoryContextSwitchTo(captured.chunk_context);
		if (FullTransactionIdIsValid(cs->captured_xid))
			verdict = rules->transaction(rules->arg,
										 U64FromFullTransactionId(cs->captured_xid));
		if (!undecided)
		{
			undecided = verdict == ECM_STAYS;
			next = (EcmCapturedMark)
			{
				.lsn = cs->first_lsn, .op = undecided ? cs->first_op : PG_INT64_MAX,
					.kept = kept, .last = last
			};
		}
		if (judge_chunk(&captured, verdict))
			last = cs->totals;
		if (!undecided)
		{
			next.kept = captured.kept;
			next.last = last;
		}
		MemoryContextSwitchTo(captured.context);
	}
	ecm_chunk_scan_end(cs);
	if (captured.writer != NULL)
		ecm_log_writer_end(captured.writer);
	UnregisterSnapshot(snapshot);
	MemoryContextDelete(captured.chunk_context);
	CommandCounterIncrement();
	*mark = next;
	return (EcmLogTotals)
	{
		last.entries - captured.kept.entries, last.bytes - captured.kept.bytes
	};
}
