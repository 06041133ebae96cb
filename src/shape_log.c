/*-------------------------------------------------------------------------
 *
 * shape_log.c
 *	  Writes, scans and deletes chunks of shape logs.
 *
 * All logs are in one table, _electric_cm.shape_log, in the order of its
 * primary key (shape, first_lsn, first_op).  It is written below SQL: inserts
 * must stay out of logical decoding, or the stack's own slot would decode its
 * own output.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "compat.h"
#include "shape.h"
#include "shape_log.h"

/* columns of _electric_cm.shape_log; the index has the first three */
#define LOG_SHAPE			1
#define LOG_FIRST_LSN		2
#define LOG_FIRST_OP		3
#define LOG_ENTRIES			4
#define LOG_CAPTURED_XID	5
#define LOG_DATA			6
#define LOG_NATTS			6

static Oid
log_relid(const char *name)
{
	Oid			schema = get_namespace_oid(ECM_SCHEMA, false);
	Oid			relid = get_relname_relid(name, schema);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s.%s\" does not exist", ECM_SCHEMA, name)));
	return relid;
}

/* ----------------------------------------------------------------
 * Writing
 * ----------------------------------------------------------------
 */

struct EcmLogWriter
{
	Relation	rel;
	EState	   *estate;
	ResultRelInfo *result_rel;
	TupleTableSlot *slot;
	MemoryContext chunk_context;	/* reset after each chunk */
};

EcmLogWriter *
ecm_log_writer_begin(void)
{
	EcmLogWriter *writer = palloc(sizeof(EcmLogWriter));

	writer->rel = table_open(log_relid("shape_log"), RowExclusiveLock);
	writer->estate = CreateExecutorState();
	writer->result_rel = makeNode(ResultRelInfo);
	InitResultRelInfo(writer->result_rel, writer->rel, 1, NULL, 0);
	ExecOpenIndices(writer->result_rel, false);
	writer->slot = table_slot_create(writer->rel, NULL);
	writer->chunk_context = AllocSetContextCreate(CurrentMemoryContext,
												  "electric_cm chunk",
												  ALLOCSET_DEFAULT_SIZES);
	return writer;
}

/*
 * A chunk of up to ECM_CHUNK_TARGET bytes is stored in line, a larger one is
 * TOASTed; the insert options go along, so neither is decoded.
 */
void
ecm_log_writer_put(EcmLogWriter *writer, int64 shape,
				   XLogRecPtr first_lsn, int64 first_op, int32 entries,
				   FullTransactionId captured_xid, const char *data, Size len)
{
	TupleTableSlot *slot = writer->slot;
	MemoryContext old_context = MemoryContextSwitchTo(writer->chunk_context);
	bytea	   *bytes = palloc(VARHDRSZ + len);

	SET_VARSIZE(bytes, VARHDRSZ + len);
	memcpy(VARDATA(bytes), data, len);

	ExecClearTuple(slot);
	memset(slot->tts_isnull, false, LOG_NATTS * sizeof(bool));
	slot->tts_values[LOG_SHAPE - 1] = Int64GetDatum(shape);
	slot->tts_values[LOG_FIRST_LSN - 1] = LSNGetDatum(first_lsn);
	slot->tts_values[LOG_FIRST_OP - 1] = Int64GetDatum(first_op);
	slot->tts_values[LOG_ENTRIES - 1] = Int32GetDatum(entries);
	slot->tts_values[LOG_CAPTURED_XID - 1] =
		FullTransactionIdGetDatum(captured_xid);
	slot->tts_isnull[LOG_CAPTURED_XID - 1] =
		!FullTransactionIdIsValid(captured_xid);
	slot->tts_values[LOG_DATA - 1] = PointerGetDatum(bytes);
	ExecStoreVirtualTuple(slot);

	table_tuple_insert(writer->rel, slot, GetCurrentCommandId(true),
					   TABLE_INSERT_NO_LOGICAL, NULL);
	ecm_insert_index_tuples(writer->result_rel, slot, writer->estate);

	ExecClearTuple(slot);
	ResetPerTupleExprContext(writer->estate);
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(writer->chunk_context);
}

/* Makes what was written visible to the rest of the transaction, too. */
void
ecm_log_writer_end(EcmLogWriter *writer)
{
	ExecCloseIndices(writer->result_rel);
	ExecDropSingleTupleTableSlot(writer->slot);
	FreeExecutorState(writer->estate);
	table_close(writer->rel, NoLock);
	MemoryContextDelete(writer->chunk_context);
	pfree(writer->result_rel);
	pfree(writer);

	CommandCounterIncrement();
}

/* ----------------------------------------------------------------
 * Scanning the chunks of a shape
 * ----------------------------------------------------------------
 */

void
ecm_chunk_scan_begin(EcmChunkScan *cs, int64 shape, StrategyNumber strategy,
				 uint64 lsn, uint64 op, Snapshot snapshot, LOCKMODE lockmode)
{
	ScanKeyData keys[2];
	int			nkeys = 1;

	cs->context = CurrentMemoryContext;
	cs->rel = table_open(log_relid("shape_log"), lockmode);
	cs->index = index_open(log_relid("shape_log_pkey"), lockmode);
	cs->slot = table_slot_create(cs->rel, NULL);
	cs->direction =
		(strategy == BTLessStrategyNumber ||
		 strategy == BTLessEqualStrategyNumber) ?
		BackwardScanDirection : ForwardScanDirection;

	ScanKeyInit(&keys[0], LOG_SHAPE, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(shape));

	/* ROW(first_lsn, first_op) <strategy> ROW(lsn, op): see skey.h */
	if (strategy != InvalidStrategy)
	{
		op = Min(op, (uint64) PG_INT64_MAX);	/* the column is signed */

		ScanKeyInit(&cs->bound[0], LOG_FIRST_LSN, strategy, F_PG_LSN_CMP,
					LSNGetDatum(lsn));
		cs->bound[0].sk_flags = SK_ROW_MEMBER;
		ScanKeyInit(&cs->bound[1], LOG_FIRST_OP, strategy, F_BTINT8CMP,
					Int64GetDatum((int64) op));
		cs->bound[1].sk_flags = SK_ROW_MEMBER | SK_ROW_END;

		MemSet(&keys[1], 0, sizeof(ScanKeyData));
		keys[1].sk_flags = SK_ROW_HEADER;
		keys[1].sk_attno = LOG_FIRST_LSN;
		keys[1].sk_strategy = strategy;
		keys[1].sk_argument = PointerGetDatum(cs->bound);
		nkeys = 2;
	}

	cs->scan = ecm_index_beginscan(cs->rel, cs->index, snapshot, nkeys);
	index_rescan(cs->scan, keys, nkeys, NULL, 0);
}

bool
ecm_chunk_scan_next(EcmChunkScan *cs)
{
	TupleTableSlot *slot = cs->slot;
	MemoryContext caller_context;
	bool		found;

	CHECK_FOR_INTERRUPTS();

	/* the caller's context may be one that is reset for each chunk */
	caller_context = MemoryContextSwitchTo(cs->context);
	found = index_getnext_slot(cs->scan, cs->direction, slot);
	MemoryContextSwitchTo(caller_context);
	if (!found)
		return false;

	slot_getallattrs(slot);
	cs->first_lsn = DatumGetLSN(slot->tts_values[LOG_FIRST_LSN - 1]);
	cs->first_op = DatumGetInt64(slot->tts_values[LOG_FIRST_OP - 1]);
	cs->entries = DatumGetInt32(slot->tts_values[LOG_ENTRIES - 1]);
	cs->captured_xid = slot->tts_isnull[LOG_CAPTURED_XID - 1] ?
		InvalidFullTransactionId :
		DatumGetFullTransactionId(slot->tts_values[LOG_CAPTURED_XID - 1]);
	cs->data = slot->tts_values[LOG_DATA - 1];
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

/*
 * The log of a shape that is gone may be deleted by several at a time: by a
 * job that its end has started, by one that a new stream has started, by the
 * consumer that has not heard of its end yet.  One of them suffices.
 */
static bool
delete_chunk(EcmChunkScan *cs)
{
	TM_FailureData failure;
	TM_Result	result = table_tuple_delete(cs->rel, &cs->slot->tts_tid,
											GetCurrentCommandId(true),
											InvalidSnapshot, InvalidSnapshot,
											true, &failure, false);

	if (result != TM_Ok && result != TM_Deleted)
		elog(ERROR, "could not delete a chunk of a shape log: result %d",
			 (int) result);
	return result == TM_Ok;
}

/*
 * The snapshot is taken now, to find all that was committed so far.
 */
int64
ecm_log_delete(int64 shape)
{
	EcmChunkScan	cs;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int64		deleted = 0;

	ecm_chunk_scan_begin(&cs, shape, InvalidStrategy, 0, 0, snapshot,
					 RowExclusiveLock);
	while (ecm_chunk_scan_next(&cs))
	{
		if (delete_chunk(&cs))
			deleted++;
	}
	ecm_chunk_scan_end(&cs);
	UnregisterSnapshot(snapshot);
	CommandCounterIncrement();

	return deleted;
}

/* Snapshot rows have LSN 0, and there may be many: they are passed over. */
void
ecm_log_settle_captured(int64 shape, const char *snapshot_text)
{
	EcmChunkScan	cs;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	Datum		shape_snapshot;

	shape_snapshot = DirectFunctionCall1(pg_snapshot_in,
										 CStringGetDatum(snapshot_text));

	ecm_chunk_scan_begin(&cs, shape, BTGreaterEqualStrategyNumber, 1, 0, snapshot,
					 RowExclusiveLock);
	while (ecm_chunk_scan_next(&cs))
	{
		if (FullTransactionIdIsValid(cs.captured_xid) &&
			DatumGetBool(DirectFunctionCall2(pg_visible_in_snapshot,
											 FullTransactionIdGetDatum(cs.captured_xid),
											 shape_snapshot)))
			(void) delete_chunk(&cs);
	}
	ecm_chunk_scan_end(&cs);
	UnregisterSnapshot(snapshot);
	CommandCounterIncrement();
}
