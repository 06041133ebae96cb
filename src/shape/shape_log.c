/*-------------------------------------------------------------------------
 *
 * shape_log.c
 *	  Writes, scans and deletes chunks of shape logs.
 *
 * All logs are in one table, _electric_cm.shape_log, whose primary key (shape,
 * first_lsn, first_op) gives the order of chunks.  The table is written below
 * SQL, since inserts must stay out of logical decoding: the stack's own slot
 * would otherwise decode the stack's output.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "common/pg_prng.h"
#include "executor/executor.h"
#include "executor/instrument.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "base/compat.h"
#include "base/settings.h"
#include "base/table_writer.h"
#include "shape/shape_chunk.h"
#include "shape/shape_log.h"
#include "shape/shape_stall.h"

/* columns of _electric_cm.shape_log; the index has the first three */
#define LOG_SHAPE			1
#define LOG_FIRST_LSN		2
#define LOG_FIRST_OP		3
#define LOG_ENTRIES			4
#define LOG_CAPTURED_XID	5
#define LOG_TOTAL_ENTRIES	6
#define LOG_TOTAL_BYTES		7
#define LOG_DATA			8
#define LOG_NATTS			8

/* columns of _electric_cm.shape_base */
#define BASE_SHAPE			1
#define BASE_LSN			2
#define BASE_OP				3
#define BASE_ORIGIN_ENTRIES	4
#define BASE_ORIGIN_BYTES	5

/* ----------------------------------------------------------------
 * Writing
 * ----------------------------------------------------------------
 */

struct EcmLogWriter
{
	EcmTableWriter table;
	MemoryContext chunk_context;	/* reset after each chunk */
};

EcmLogWriter *
ecm_log_writer_begin(void)
{
	EcmLogWriter *writer = palloc(sizeof(EcmLogWriter));

	ecm_table_writer_begin(&writer->table, "shape_log", RowExclusiveLock);
	writer->chunk_context = AllocSetContextCreate(CurrentMemoryContext,
												  "electric_cm chunk",
												  ALLOCSET_DEFAULT_SIZES);
	return writer;
}

/*
 * A chunk of up to ECM_CHUNK_TARGET bytes is stored in line; a larger one is
 * TOASTed.  The insert options apply to the TOAST table, too, so neither is
 * decoded.
 */
void
ecm_log_writer_put(EcmLogWriter *writer, const EcmLogChunk *chunk,
				   const char *data, Size len, EcmLogTotals *totals)
{
	MemoryContext old_context = MemoryContextSwitchTo(writer->chunk_context);
	bytea	   *bytes = palloc(VARHDRSZ + len);

	MemoryContextSwitchTo(old_context);
	SET_VARSIZE(bytes, VARHDRSZ + len);
	memcpy(VARDATA(bytes), data, len);
	ecm_log_writer_put_bytes(writer, chunk, bytes, totals);
}

void
ecm_log_writer_put_bytes(EcmLogWriter *writer, const EcmLogChunk *chunk,
						 bytea *bytes, EcmLogTotals *totals)
{
	TupleTableSlot *slot = writer->table.slot;
	MemoryContext old_context = MemoryContextSwitchTo(writer->chunk_context);

	ExecClearTuple(slot);
	/* columns that a later version may add stay NULL */
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	memset(slot->tts_isnull, false, LOG_NATTS * sizeof(bool));
	slot->tts_values[LOG_SHAPE - 1] = Int64GetDatum(chunk->shape);
	slot->tts_values[LOG_FIRST_LSN - 1] = LSNGetDatum(chunk->first_lsn);
	slot->tts_values[LOG_FIRST_OP - 1] = Int64GetDatum(chunk->first_op);
	slot->tts_values[LOG_ENTRIES - 1] = Int32GetDatum(chunk->entries);
	slot->tts_values[LOG_CAPTURED_XID - 1] =
		FullTransactionIdGetDatum(chunk->captured_xid);
	slot->tts_isnull[LOG_CAPTURED_XID - 1] =
		!FullTransactionIdIsValid(chunk->captured_xid);
	totals->entries += chunk->entries;
	totals->bytes += (int64) VARSIZE(bytes) - VARHDRSZ;
	slot->tts_values[LOG_TOTAL_ENTRIES - 1] = Int64GetDatum(totals->entries);
	slot->tts_values[LOG_TOTAL_BYTES - 1] = Int64GetDatum(totals->bytes);
	slot->tts_values[LOG_DATA - 1] = PointerGetDatum(bytes);
	ecm_table_writer_put(&writer->table);
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(writer->chunk_context);
}

/* Ends writing; the chunks are visible to the rest of the transaction. */
void
ecm_log_writer_end(EcmLogWriter *writer)
{
	ecm_table_writer_end(&writer->table);
	MemoryContextDelete(writer->chunk_context);
	pfree(writer);
}

/*
 * A packer's buffer that has grown beyond this (bytes), because of one large
 * row, is freed.
 */
#define MAX_KEPT_BUFFER	(64 * 1024)

uint32
ecm_random_identity(void)
{
	uint32		number;

	if (!pg_strong_random(&number, sizeof(number)))
		number = pg_prng_uint32(&pg_global_prng_state);
	return number;
}

int64
ecm_new_base_identity(void)
{
	return (int64) ((ECM_IDENTITY_BIT | ((uint64) ecm_random_identity() & (ECM_IDENTITY_BIT - 1)))
					<< ECM_IDENTITY_SHIFT);
}

int64
ecm_new_snapshot_identity(void)
{
	return GetWALInsertionTimeLine() == 1 ? 0 : ecm_new_base_identity();
}

int64
ecm_new_difference_identity(void)
{
	return (int64) ((ECM_DIFFERENCE_BIT | ((uint64) ecm_random_identity() & (ECM_DIFFERENCE_BIT - 1)))
					<< ECM_IDENTITY_SHIFT);
}

struct EcmRowPacker
{
	EcmLogWriter *writer;
	bool		in_gap;			/* closes a gap: totals of the log stay */
	int64		shape;
	XLogRecPtr	lsn;
	int64		op;				/* of the last row */
	int32		entries;		/* rows in the buffer */
	StringInfoData buffer;
	EcmLogTotals totals;
	EcmLogTotals in_gap_totals; /* written since it was begun */
};

EcmRowPacker *
ecm_row_packer_begin(EcmLogWriter *writer, int64 shape, XLogRecPtr lsn, int64 op)
{
	EcmRowPacker *packer = palloc0(sizeof(EcmRowPacker));

	packer->writer = writer;
	packer->shape = shape;
	packer->lsn = lsn;
	packer->op = op;
	initStringInfo(&packer->buffer);
	return packer;
}

EcmRowPacker *
ecm_row_packer_resume(EcmLogWriter *writer, int64 shape)
{
	EcmRowPacker *packer = ecm_row_packer_begin(writer, shape, 0, 0);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	EcmChunkScan cs;

	ecm_chunk_scan_begin(&cs, shape, BTLessEqualStrategyNumber, 0, PG_INT64_MAX,
						 snapshot, AccessShareLock);
	if (ecm_chunk_scan_next(&cs))
	{
		packer->op = cs.first_op + cs.entries - 1;
		packer->totals = cs.totals;
	}
	else
		packer->op = ecm_new_snapshot_identity();
	ecm_chunk_scan_end(&cs);
	UnregisterSnapshot(snapshot);
	return packer;
}

EcmRowPacker *
ecm_row_packer_close_gap(EcmLogWriter *writer, int64 shape, XLogRecPtr gap_lsn)
{
	EcmRowPacker *packer = ecm_row_packer_begin(writer, shape, gap_lsn, 0);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	EcmChunkScan cs;
	bool		found;

	ecm_chunk_scan_begin(&cs, shape, BTLessEqualStrategyNumber, gap_lsn, PG_INT64_MAX,
						 snapshot, AccessShareLock);
	found = ecm_chunk_scan_next(&cs);
	/* rows of a snapshot have totals of their own, as have those of a base */
	if (found && cs.first_lsn != 0 && !ecm_op_is_base(cs.first_op))
		packer->totals = cs.totals;
	if (found && cs.first_lsn == gap_lsn && (uint64) cs.first_op >= ECM_FIRST_DIFFERENCE)
		packer->op = cs.first_op + cs.entries - 1;
	else
		packer->op = ecm_new_difference_identity() - 1;
	packer->in_gap = true;
	ecm_chunk_scan_end(&cs);
	UnregisterSnapshot(snapshot);
	return packer;
}

int64
ecm_row_packer_bytes(const EcmRowPacker *packer)
{
	return packer->totals.bytes + packer->buffer.len;
}

static void
packer_flush(EcmRowPacker *packer)
{
	EcmLogChunk chunk;

	if (packer->entries == 0)
		return;
	if (packer->in_gap)
	{
		packer->in_gap_totals.entries += packer->entries;
		packer->in_gap_totals.bytes += packer->buffer.len;
		/* they are added again below */
		packer->totals.entries -= packer->entries;
		packer->totals.bytes -= packer->buffer.len;
	}

	chunk.shape = packer->shape;
	chunk.first_lsn = packer->lsn;
	chunk.first_op = packer->op - packer->entries + 1;
	chunk.entries = packer->entries;
	chunk.captured_xid = InvalidFullTransactionId;
	ecm_log_writer_put(packer->writer, &chunk, packer->buffer.data,
					   packer->buffer.len, &packer->totals);
	packer->entries = 0;
	resetStringInfo(&packer->buffer);
	if (packer->buffer.maxlen > MAX_KEPT_BUFFER)
	{
		MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(packer));

		pfree(packer->buffer.data);
		initStringInfo(&packer->buffer);
		MemoryContextSwitchTo(old);
	}
}

void
ecm_row_packer_put(EcmRowPacker *packer, const EcmValue *values, int nvalues)
{
	ecm_row_packer_put_change(packer, ECM_OP_INSERT, values, nvalues, NULL, 0);
}

void
ecm_row_packer_put_change(EcmRowPacker *packer, EcmOp op, const EcmValue *new_values,
						  int n_new, const EcmValue *old_values, int n_old)
{
	StringInfo	buf = &packer->buffer;
	Size		size = 1;
	char	   *to;

	if (op != ECM_OP_DELETE)
		size += ecm_chunk_values_size(new_values, n_new);
	if (op != ECM_OP_INSERT)
		size += ecm_chunk_values_size(old_values, n_old);

	if (buf->len + size > ECM_CHUNK_TARGET)
		packer_flush(packer);

	/* a row of more than 1 GB could not be sent by the stream either */
	if (size > MaxAllocSize - ECM_CHUNK_TXN_SIZE - 1)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("row of %zu bytes is too large for a shape", size)));
	enlargeStringInfo(buf, (int) (ECM_CHUNK_TXN_SIZE + size));

	packer->op++;
	to = buf->data + buf->len;
	if (packer->entries++ == 0)
		to = ecm_chunk_put_txn(to, packer->lsn, 0, (uint64) packer->op);
	to = ecm_chunk_put_op(to, op);
	if (op != ECM_OP_DELETE)
		to = ecm_chunk_put_values(to, new_values, n_new);
	if (op != ECM_OP_INSERT)
		to = ecm_chunk_put_values(to, old_values, n_old);
	buf->len = to - buf->data;
}

int64
ecm_row_packer_end(EcmRowPacker *packer)
{
	int64		rows;

	packer_flush(packer);
	rows = packer->totals.entries;
	pfree(packer->buffer.data);
	pfree(packer);
	return rows;
}

void
ecm_row_packer_end_gap(EcmRowPacker *packer, EcmLogTotals *written)
{
	packer_flush(packer);
	written->entries += packer->in_gap_totals.entries;
	written->bytes += packer->in_gap_totals.bytes;
	(void) ecm_row_packer_end(packer);
}

EcmRowPacker *
ecm_row_packer_go_on(EcmLogWriter *writer, int64 shape, XLogRecPtr lsn, int64 op,
					 const EcmLogTotals *totals)
{
	EcmRowPacker *packer;

	packer = ecm_row_packer_begin(writer, shape, lsn, op + totals->entries);
	packer->totals = *totals;
	return packer;
}

void
ecm_row_packer_pause(EcmRowPacker *packer, EcmLogTotals *totals)
{
	packer_flush(packer);
	*totals = packer->totals;
	(void) ecm_row_packer_end(packer);
}

/* ----------------------------------------------------------------
 * Scanning the chunks of a shape
 * ----------------------------------------------------------------
 */

/* ROW(first_lsn, first_op) <strategy> ROW(lsn, op): see skey.h */
static void
set_bound(EcmChunkScan *cs, StrategyNumber strategy, uint64 lsn, uint64 op)
{
	op = Min(op, (uint64) PG_INT64_MAX);	/* the column is signed */

	ScanKeyInit(&cs->bound[0], LOG_FIRST_LSN, strategy, F_PG_LSN_CMP,
				LSNGetDatum(lsn));
	cs->bound[0].sk_flags = SK_ROW_MEMBER;
	ScanKeyInit(&cs->bound[1], LOG_FIRST_OP, strategy, F_BTINT8CMP,
				Int64GetDatum((int64) op));
	cs->bound[1].sk_flags = SK_ROW_MEMBER | SK_ROW_END;

	MemSet(&cs->keys[1], 0, sizeof(ScanKeyData));
	cs->keys[1].sk_flags = SK_ROW_HEADER;
	cs->keys[1].sk_attno = LOG_FIRST_LSN;
	cs->keys[1].sk_strategy = strategy;
	cs->keys[1].sk_argument = PointerGetDatum(cs->bound);
}

void
ecm_chunk_scan_begin(EcmChunkScan *cs, int64 shape, StrategyNumber strategy,
					 uint64 lsn, uint64 op, Snapshot snapshot, LOCKMODE lockmode)
{
	int			nkeys = 1;

	cs->context = CurrentMemoryContext;
	cs->one_base = false;
	cs->rel = table_open(ecm_own_relid("shape_log"), lockmode);
	cs->index = index_open(ecm_own_relid("shape_log_pkey"), lockmode);
	cs->slot = table_slot_create(cs->rel, NULL);
	cs->direction =
		(strategy == BTLessStrategyNumber ||
		 strategy == BTLessEqualStrategyNumber) ?
		BackwardScanDirection : ForwardScanDirection;

	ScanKeyInit(&cs->keys[0], LOG_SHAPE, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(shape));
	if (strategy != InvalidStrategy)
	{
		set_bound(cs, strategy, lsn, op);
		nkeys = 2;
	}

	cs->scan = ecm_index_beginscan(cs->rel, cs->index, snapshot, nkeys);
	index_rescan(cs->scan, cs->keys, nkeys, NULL, 0);
}

void
ecm_chunk_scan_one_base(EcmChunkScan *cs, XLogRecPtr base_lsn)
{
	Assert(cs->scan->numberOfKeys == 2);
	cs->one_base = true;
	cs->base_lsn = base_lsn;
}

static void
take_chunk(EcmChunkScan *cs)
{
	TupleTableSlot *slot = cs->slot;

	slot_getallattrs(slot);
	cs->first_lsn = DatumGetLSN(slot->tts_values[LOG_FIRST_LSN - 1]);
	cs->first_op = DatumGetInt64(slot->tts_values[LOG_FIRST_OP - 1]);
	cs->entries = DatumGetInt32(slot->tts_values[LOG_ENTRIES - 1]);
	cs->captured_xid = slot->tts_isnull[LOG_CAPTURED_XID - 1] ?
		InvalidFullTransactionId :
		DatumGetFullTransactionId(slot->tts_values[LOG_CAPTURED_XID - 1]);
	cs->totals.entries = DatumGetInt64(slot->tts_values[LOG_TOTAL_ENTRIES - 1]);
	cs->totals.bytes = DatumGetInt64(slot->tts_values[LOG_TOTAL_BYTES - 1]);
	cs->data = slot->tts_values[LOG_DATA - 1];
}

/*
 * The scan has met rows of a base that a fold is still writing, and goes on
 * behind them.  There may be gigabytes of them.
 */
static void
skip_base(EcmChunkScan *cs)
{
	if (ScanDirectionIsForward(cs->direction))
		set_bound(cs, BTGreaterStrategyNumber, cs->first_lsn, PG_INT64_MAX);
	else
		set_bound(cs, BTLessStrategyNumber, cs->first_lsn,
				  ECM_IDENTITY_BIT << ECM_IDENTITY_SHIFT);
	ExecClearTuple(cs->slot);
	index_rescan(cs->scan, cs->keys, 2, NULL, 0);
}

bool
ecm_chunk_scan_next(EcmChunkScan *cs)
{
	TupleTableSlot *slot = cs->slot;
	MemoryContext caller_context;
	bool		found;

	CHECK_FOR_INTERRUPTS();

	/*
	 * the index keeps memory from one call to the next, and the caller may
	 * reset its own context for each chunk
	 */
	caller_context = MemoryContextSwitchTo(cs->context);
	while ((found = index_getnext_slot(cs->scan, cs->direction, slot)))
	{
		take_chunk(cs);
		if (!cs->one_base || cs->first_lsn <= cs->base_lsn ||
			!ecm_op_is_base(cs->first_op))
			break;
		skip_base(cs);
	}
	MemoryContextSwitchTo(caller_context);
	return found;
}

bool
ecm_chunk_scan_fetch(EcmChunkScan *cs, ItemPointer tid)
{
	if (!table_tuple_fetch_row_version(cs->rel, tid, cs->scan->xs_snapshot,
									   cs->slot))
		return false;
	take_chunk(cs);
	return true;
}

void
ecm_chunk_scan_end(EcmChunkScan *cs)
{
	index_endscan(cs->scan);
	ExecDropSingleTupleTableSlot(cs->slot);
	index_close(cs->index, NoLock);
	table_close(cs->rel, NoLock);
}

void
ecm_chunk_scan_read(EcmChunkScan *cs, EcmChunkReader *reader, EcmValue *new_values,
					EcmValue *old_values, int max_values)
{
	struct varlena *bytes = PG_DETOAST_DATUM_PACKED(cs->data);

	ecm_chunk_reader_init(reader, VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes),
						  new_values, old_values, max_values);
}

int64
ecm_chunk_scan_bytes(const EcmChunkScan *cs)
{
	return (int64) toast_raw_datum_size(cs->data) - VARHDRSZ;
}

void
ecm_chunk_scan_last(EcmChunkScan *cs, int64 shape, uint64 *lsn, uint64 *op)
{
	EcmValue   *new_values;
	EcmValue   *old_values;
	EcmChunkReader r;
	EcmChunkResult result;

	*lsn = cs->first_lsn;
	*op = (uint64) cs->first_op;
	if (cs->entries == 1)
		return;

	new_values = palloc(MaxHeapAttributeNumber * sizeof(EcmValue));
	old_values = palloc(MaxHeapAttributeNumber * sizeof(EcmValue));
	ecm_chunk_scan_read(cs, &r, new_values, old_values, MaxHeapAttributeNumber);
	while ((result = ecm_chunk_next(&r)) == ECM_CHUNK_ENTRY)
	{
		*lsn = r.lsn;
		*op = r.opno;
	}
	pfree(new_values);
	pfree(old_values);
	if (result == ECM_CHUNK_CORRUPT)
	{
		char		offset[ECM_OFFSET_LEN];

		ecm_offset_format(offset, *lsn, *op);
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("log of shape " INT64_FORMAT " is corrupt after offset %s",
						shape, offset)));
	}
}

/*
 * The log of a shape that is gone may be deleted by several processes at a
 * time: by a job for its end, by one that a new stream has started, and by a
 * consumer that has not come to its end yet.  It suffices that one of them
 * does it, so a chunk that somebody else has deleted is no error.
 */
bool
ecm_chunk_scan_delete(EcmChunkScan *cs)
{
	TM_FailureData failure;
	TM_Result	result = ecm_table_tuple_delete(cs->rel, &cs->slot->tts_tid,
												GetCurrentCommandId(true),
												InvalidSnapshot, &failure);

	if (result != TM_Ok && result != TM_Deleted)
		elog(ERROR, "could not delete a chunk of a shape log: result %d",
			 (int) result);
	return result == TM_Ok;
}

/*
 * The scan uses the latest snapshot, in order to find all chunks that have
 * been committed so far.
 */
bool
ecm_log_delete_some(int64 shape, int64 *max_chunks, uint64 wal_end)
{
	EcmChunkScan cs;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	bool		more = true;

	ecm_chunk_scan_begin(&cs, shape, InvalidStrategy, 0, 0, snapshot,
						 RowExclusiveLock);
	while (*max_chunks > 0 && pgWalUsage.wal_bytes < wal_end &&
		   (more = ecm_chunk_scan_next(&cs)))
	{
		if (ecm_chunk_scan_delete(&cs))
			(*max_chunks)--;
	}
	ecm_chunk_scan_end(&cs);
	UnregisterSnapshot(snapshot);
	CommandCounterIncrement();

	return !more;
}

int64
ecm_log_delete(int64 shape)
{
	int64		left = PG_INT64_MAX;

	(void) ecm_log_delete_some(shape, &left, PG_UINT64_MAX);
	return PG_INT64_MAX - left;
}

/* In the order of the scan, in this transaction. */
static void
delete_chunks(int64 shape, StrategyNumber strategy, uint64 lsn, uint64 op)
{
	EcmChunkScan cs;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	ecm_chunk_scan_begin(&cs, shape, strategy, lsn, op, snapshot, RowExclusiveLock);
	while (ecm_chunk_scan_next(&cs))
	{
		ecm_stall_step();
		(void) ecm_chunk_scan_delete(&cs);
	}
	ecm_chunk_scan_end(&cs);
	UnregisterSnapshot(snapshot);
	CommandCounterIncrement();
}

void
ecm_log_delete_base(int64 shape)
{
	delete_chunks(shape, BTLessEqualStrategyNumber, 0, PG_INT64_MAX);
}

void
ecm_log_delete_from(int64 shape, XLogRecPtr lsn)
{
	delete_chunks(shape, BTGreaterEqualStrategyNumber, lsn, 0);
}

/* But not the rows of a fold that has not come to its end: that goes on, or cleans up. */
void
ecm_log_delete_after_gap(int64 shape, XLogRecPtr gap_lsn)
{
	delete_chunks(shape, BTGreaterEqualStrategyNumber, gap_lsn, ECM_FIRST_DIFFERENCE);
}

/* ----------------------------------------------------------------
 * Where a log begins, and how large it is
 * ----------------------------------------------------------------
 */

void
ecm_log_base(int64 shape, Snapshot snapshot, EcmLogBase *base)
{
	Relation	rel = table_open(ecm_own_relid("shape_base"), AccessShareLock);
	Relation	index = index_open(ecm_own_relid("shape_base_pkey"), AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	IndexScanDesc scan = ecm_index_beginscan(rel, index, snapshot, 1);
	ScanKeyData key;

	memset(base, 0, sizeof(EcmLogBase));
	ScanKeyInit(&key, BASE_SHAPE, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(shape));
	index_rescan(scan, &key, 1, NULL, 0);
	if (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		slot_getallattrs(slot);
		base->lsn = DatumGetLSN(slot->tts_values[BASE_LSN - 1]);
		base->op = DatumGetInt64(slot->tts_values[BASE_OP - 1]);
		base->origin.entries =
			DatumGetInt64(slot->tts_values[BASE_ORIGIN_ENTRIES - 1]);
		base->origin.bytes =
			DatumGetInt64(slot->tts_values[BASE_ORIGIN_BYTES - 1]);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(rel, NoLock);
}

/*
 * The running totals of the last chunk that begins after an offset, but not
 * beyond the LSN up_to; zero if there is none.
 */
static EcmLogTotals
last_totals(int64 shape, XLogRecPtr after_lsn, int64 after_op, XLogRecPtr up_to,
			Snapshot snapshot)
{
	EcmChunkScan cs;
	EcmLogTotals totals = {0, 0};

	ecm_chunk_scan_begin(&cs, shape, BTLessEqualStrategyNumber, up_to,
						 PG_INT64_MAX, snapshot, AccessShareLock);
	if (ecm_chunk_scan_next(&cs) &&
		ecm_offset_cmp(cs.first_lsn, cs.first_op, after_lsn, after_op) > 0)
		totals = cs.totals;
	ecm_chunk_scan_end(&cs);
	return totals;
}

int64
ecm_log_base_rows(int64 shape)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	EcmLogTotals totals = last_totals(shape, 0, 0, 0, snapshot);

	UnregisterSnapshot(snapshot);
	return totals.entries;
}

bool
ecm_log_last_offset(int64 shape, XLogRecPtr gap_lsn, Snapshot snapshot, uint64 *lsn,
					uint64 *op)
{
	EcmChunkScan cs;
	bool		found;
	bool		gap = !XLogRecPtrIsInvalid(gap_lsn);

	ecm_chunk_scan_begin(&cs, shape, BTLessStrategyNumber, gap ? gap_lsn : PG_UINT64_MAX,
						 gap ? ECM_FIRST_DIFFERENCE : PG_INT64_MAX, snapshot, AccessShareLock);
	found = ecm_chunk_scan_next(&cs);
	if (found)
		ecm_chunk_scan_last(&cs, shape, lsn, op);
	ecm_chunk_scan_end(&cs);
	return found;
}

/* A base with an LSN above 0 is always followed by a chunk of the stream. */
EcmLogTotals
ecm_log_stream_totals(int64 shape, XLogRecPtr up_to)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	EcmLogTotals totals;

	totals = last_totals(shape, 0, PG_INT64_MAX, up_to, snapshot);
	UnregisterSnapshot(snapshot);
	return totals;
}

int64
ecm_log_stream_bytes(int64 shape, const EcmLogBase *base, XLogRecPtr up_to, Snapshot snapshot)
{
	EcmChunkScan cs;
	uint64		op = PG_INT64_MAX;
	int64		bytes = 0;

	for (;;)
	{
		bool		found;
		bool		again;

		ecm_chunk_scan_begin(&cs, shape, BTLessEqualStrategyNumber, up_to, op, snapshot, AccessShareLock);
		found = ecm_chunk_scan_next(&cs) && cs.first_lsn > base->lsn;
		/* rows that are being folded are not part of the log yet */
		again = found && ecm_op_is_base(cs.first_op);
		if (again)
		{
			up_to = cs.first_lsn;
			op = (ECM_IDENTITY_BIT << ECM_IDENTITY_SHIFT) - 1;
		}
		else if (found)
			bytes = cs.totals.bytes - base->origin.bytes;
		ecm_chunk_scan_end(&cs);
		if (!again)
			return bytes;
	}
}

void
ecm_log_sizes(int64 shape, const EcmLogBase *base, Snapshot snapshot,
			  EcmLogTotals *base_size, EcmLogTotals *stream_size)
{
	*base_size = last_totals(shape, base->lsn, base->op, base->lsn, snapshot);
	*stream_size = last_totals(shape, base->lsn, PG_INT64_MAX, PG_UINT64_MAX,
							   snapshot);
	if (stream_size->entries > 0)
	{
		stream_size->entries -= base->origin.entries;
		stream_size->bytes -= base->origin.bytes;
	}
}

/* ----------------------------------------------------------------
 * Retention
 * ----------------------------------------------------------------
 */

/* A log is looked at when it has grown by this fraction of its retention. */
#define STEP_DIVISOR		8

int64
ecm_retention_step(void)
{
	if (ecm_shape_log_retention < 0)
		return 0;
	if (ecm_shape_log_retention == 0)
		return ECM_RETENTION_AUTO_STEP;
	return ecm_shape_log_retention * INT64CONST(1024) / STEP_DIVISOR;
}
