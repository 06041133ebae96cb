/*-------------------------------------------------------------------------
 *
 * shape_log.c
 *	  Writes chunks of shape logs, and reads them back for SQL.
 *
 * All logs are in one table, _electric_cm.shape_log, in the order of its
 * primary key (shape, first_lsn, first_op).  It is written and read below
 * SQL: inserts must stay out of logical decoding, or the stack's own slot
 * would decode its own output; and reading checks the shape's owner, not
 * privileges on this table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/heapam.h"
#include "access/relscan.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"
#include "utils/xid8.h"

#include "compat.h"
#include "shape.h"
#include "shmem.h"
#include "table_writer.h"
#include "wait_event.h"

/* columns of _electric_cm.shape_log; the index has the first three */
#define LOG_SHAPE			1
#define LOG_FIRST_LSN		2
#define LOG_FIRST_OP		3
#define LOG_ENTRIES			4
#define LOG_CAPTURED_XID	5
#define LOG_DATA			6
#define LOG_NATTS			6

/* How long a reader sleeps at most before it looks at the shape again. */
#define CREATION_RECHECK_MS	1000

PG_FUNCTION_INFO_V1(electric_cm_shape_log);
PG_FUNCTION_INFO_V1(electric_cm_shape_log_stats);

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
 * A chunk of up to ECM_CHUNK_TARGET bytes is stored in line, a larger one is
 * TOASTed; the insert options go along, so neither is decoded.
 */
void
ecm_log_writer_put(EcmLogWriter *writer, int64 shape,
				   XLogRecPtr first_lsn, int64 first_op, int32 entries,
				   FullTransactionId captured_xid, const char *data, Size len)
{
	TupleTableSlot *slot = writer->table.slot;
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
	ecm_table_writer_put(&writer->table);
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(writer->chunk_context);
}

/* Makes what was written visible to the rest of the transaction, too. */
void
ecm_log_writer_end(EcmLogWriter *writer)
{
	ecm_table_writer_end(&writer->table);
	MemoryContextDelete(writer->chunk_context);
	pfree(writer);
}

/* ----------------------------------------------------------------
 * Scanning the chunks of a shape
 * ----------------------------------------------------------------
 */

typedef struct ChunkScan
{
	Relation	rel;
	Relation	index;
	IndexScanDesc scan;
	ScanDirection direction;
	TupleTableSlot *slot;
	ScanKeyData bound[2];		/* referred to by the scan */
	MemoryContext context;		/* the index keeps things of its own here */

	/* the current chunk */
	XLogRecPtr	first_lsn;
	int64		first_op;
	int32		entries;
	FullTransactionId captured_xid; /* invalid: was not captured */
	Datum		data;			/* perhaps TOASTed */
} ChunkScan;

/*
 * Starts a scan over the chunks of a shape whose first offset compares as
 * 'strategy' says with (lsn, op): downwards for "less", upwards for "greater",
 * and upwards over all for InvalidStrategy.
 */
static void
chunk_scan_begin(ChunkScan *cs, int64 shape, StrategyNumber strategy,
				 uint64 lsn, uint64 op, Snapshot snapshot, LOCKMODE lockmode)
{
	ScanKeyData keys[2];
	int			nkeys = 1;

	cs->context = CurrentMemoryContext;
	cs->rel = table_open(ecm_own_relid("shape_log"), lockmode);
	cs->index = index_open(ecm_own_relid("shape_log_pkey"), lockmode);
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

static bool
chunk_scan_next(ChunkScan *cs)
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

static void
chunk_scan_end(ChunkScan *cs)
{
	index_endscan(cs->scan);
	ExecDropSingleTupleTableSlot(cs->slot);
	index_close(cs->index, NoLock);
	table_close(cs->rel, NoLock);
}

/*
 * Points a reader to the current chunk's bytes, which stay valid until the
 * scan moves on or the current memory context is reset.
 */
static void
chunk_scan_read(ChunkScan *cs, EcmChunkReader *reader, EcmValue *new_values,
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
delete_chunk(ChunkScan *cs)
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
	ChunkScan	cs;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int64		deleted = 0;

	chunk_scan_begin(&cs, shape, InvalidStrategy, 0, 0, snapshot,
					 RowExclusiveLock);
	while (chunk_scan_next(&cs))
	{
		if (delete_chunk(&cs))
			deleted++;
	}
	chunk_scan_end(&cs);
	UnregisterSnapshot(snapshot);
	CommandCounterIncrement();

	return deleted;
}

/* Snapshot rows have LSN 0, and there may be many: they are passed over. */
void
ecm_log_settle_captured(int64 shape, const char *snapshot_text)
{
	ChunkScan	cs;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	Datum		shape_snapshot;

	shape_snapshot = DirectFunctionCall1(pg_snapshot_in,
										 CStringGetDatum(snapshot_text));

	chunk_scan_begin(&cs, shape, BTGreaterEqualStrategyNumber, 1, 0, snapshot,
					 RowExclusiveLock);
	while (chunk_scan_next(&cs))
	{
		if (FullTransactionIdIsValid(cs.captured_xid) &&
			DatumGetBool(DirectFunctionCall2(pg_visible_in_snapshot,
											 FullTransactionIdGetDatum(cs.captured_xid),
											 shape_snapshot)))
			(void) delete_chunk(&cs);
	}
	chunk_scan_end(&cs);
	UnregisterSnapshot(snapshot);
	CommandCounterIncrement();
}

/* ----------------------------------------------------------------
 * Reading entries
 * ----------------------------------------------------------------
 */

typedef struct LogReader
{
	const EcmShapeDef *shape;
	Snapshot	snapshot;
	JsonbValue *names;			/* the columns', as jsonb keys */
} LogReader;

static void
report_corrupt_log(const EcmShapeDef *shape, uint64 lsn, uint64 op)
{
	char		offset[ECM_OFFSET_LEN];

	ecm_offset_format(offset, lsn, op);
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("log of shape \"%s\" is corrupt at or after offset %s",
					shape->handle, offset),
			 errhint("Drop the shape with electric_cm_drop_shape() and create it again with electric_cm_create_shape().")));
}

/*
 * The next entry of a chunk; false at its end.  What comes out is what the
 * operation should have: the tuples it needs, with all the shape's columns.
 */
static bool
next_entry(const EcmShapeDef *shape, const ChunkScan *cs, EcmChunkReader *r)
{
	uint64		lsn = r->in_txn ? r->lsn : cs->first_lsn;
	uint64		op = r->in_txn ? r->next_op : (uint64) cs->first_op;
	EcmChunkResult result = ecm_chunk_next(r);

	if (result == ECM_CHUNK_END)
		return false;

	if (result == ECM_CHUNK_CORRUPT ||
		(r->n_new != 0 && r->n_new != shape->ncolumns) ||
		(r->n_old != 0 && r->n_old != shape->ncolumns) ||
		(r->op == ECM_OP_DELETE ? r->n_old : r->n_new) == 0)
		report_corrupt_log(shape, lsn, op);

	return true;
}

/*
 * A key column of an entry: the new one; the old one in a delete, and where
 * an update of a row with a TOASTed, unchanged key leaves the new one out.
 */
static const EcmValue *
entry_key_column(EcmOp op, const EcmValue *new_values,
				 const EcmValue *old_values, int column)
{
	if (op != ECM_OP_DELETE &&
		(new_values[column].kind != ECM_VALUE_UNCHANGED || old_values == NULL))
		return &new_values[column];
	return &old_values[column];
}

static int
count_missing(const EcmValue *values, int nvalues)
{
	int			missing = 0;

	for (int i = 0; i < nvalues; i++)
	{
		if (values[i].kind == ECM_VALUE_UNCHANGED)
			missing++;
	}
	return missing;
}

/* Takes the values that are still missing, with copies of their texts. */
static void
fill_missing(EcmValue *values, const EcmValue *from, int nvalues)
{
	for (int i = 0; i < nvalues; i++)
	{
		if (values[i].kind != ECM_VALUE_UNCHANGED ||
			from[i].kind == ECM_VALUE_UNCHANGED)
			continue;

		values[i] = from[i];
		if (from[i].kind == ECM_VALUE_TEXT)
			values[i].text = pnstrdup(from[i].text, from[i].len);
	}
}

/* An entry of a decoded chunk; the texts are the chunk's. */
typedef struct LogEntry
{
	EcmOp		op;
	uint64		lsn;
	uint64		opno;
	EcmValue   *new_values;		/* NULL: none */
	EcmValue   *old_values;		/* NULL: none */
} LogEntry;

static EcmValue *
copy_values(const EcmValue *values, int nvalues)
{
	EcmValue   *copy;

	if (nvalues == 0)
		return NULL;
	copy = palloc(nvalues * sizeof(EcmValue));
	memcpy(copy, values, nvalues * sizeof(EcmValue));
	return copy;
}

/* All entries of the current chunk: a chunk can only be decoded forwards. */
static List *
decode_chunk(const EcmShapeDef *shape, ChunkScan *cs)
{
	EcmValue   *new_values = palloc(shape->ncolumns * sizeof(EcmValue));
	EcmValue   *old_values = palloc(shape->ncolumns * sizeof(EcmValue));
	EcmChunkReader r;
	List	   *entries = NIL;

	chunk_scan_read(cs, &r, new_values, old_values, shape->ncolumns);
	while (next_entry(shape, cs, &r))
	{
		LogEntry   *entry = palloc(sizeof(LogEntry));

		entry->op = r.op;
		entry->lsn = r.lsn;
		entry->opno = r.opno;
		entry->new_values = copy_values(new_values, r.n_new);
		entry->old_values = copy_values(old_values, r.n_old);
		entries = lappend(entries, entry);
	}
	return entries;
}

/* Is it an entry of the row with that key? */
static bool
entry_has_key(const EcmShapeDef *shape, const LogEntry *entry,
			  const EcmValue *key)
{
	for (int i = 0; i < shape->nkeys; i++)
	{
		const EcmValue *column = entry_key_column(entry->op, entry->new_values,
												  entry->old_values,
												  shape->key_positions[i]);

		if (column->kind != ECM_VALUE_TEXT || column->len != key[i].len ||
			memcmp(column->text, key[i].text, key[i].len) != 0)
			return false;
	}
	return true;
}

/* The old key in a delete entry, with copies of the texts. */
static EcmValue *
copy_old_key(const EcmShapeDef *shape, const LogEntry *entry)
{
	EcmValue   *key = palloc(shape->nkeys * sizeof(EcmValue));

	for (int i = 0; i < shape->nkeys; i++)
	{
		key[i] = entry->old_values[shape->key_positions[i]];
		if (key[i].kind != ECM_VALUE_TEXT)
			report_corrupt_log(shape, entry->lsn, entry->opno);
		key[i].text = pnstrdup(key[i].text, key[i].len);
	}
	return key;
}

/*
 * Finds the values that the insert at (lsn, op) lacks.
 *
 * When a row's key is updated, the log has a delete of the old key directly
 * followed by an insert of the new one, and values that are TOASTed and
 * unchanged are not in the stream.  They are what the log last said of the
 * row under its old key: so walk back, first over that delete, then to the
 * entries of that key, the latest first.  If one of those is such an insert
 * again, go on in the same way with the key before.
 */
static void
complete_insert(const LogReader *reader, uint64 lsn, uint64 op,
				EcmValue *values)
{
	const EcmShapeDef *shape = reader->shape;
	MemoryContext chunk_context;
	MemoryContext result_context = CurrentMemoryContext;
	ChunkScan	cs;
	EcmValue   *key = NULL;		/* NULL: at the insert of a key update */
	uint64		insert_lsn = lsn;
	uint64		insert_op = op;
	bool		done = false;

	chunk_context = AllocSetContextCreate(CurrentMemoryContext,
										  "electric_cm chunk walked back",
										  ALLOCSET_DEFAULT_SIZES);
	chunk_scan_begin(&cs, shape->id, BTLessStrategyNumber, lsn, op,
					 reader->snapshot, AccessShareLock);

	while (!done && chunk_scan_next(&cs))
	{
		List	   *entries;

		MemoryContextReset(chunk_context);
		MemoryContextSwitchTo(chunk_context);
		entries = decode_chunk(shape, &cs);
		MemoryContextSwitchTo(result_context);

		for (int i = list_length(entries) - 1; i >= 0 && !done; i--)
		{
			LogEntry   *entry = list_nth(entries, i);

			/* the chunk may also have the insert itself, and what follows */
			if (ecm_offset_cmp(entry->lsn, entry->opno, lsn, op) >= 0)
				continue;

			if (key == NULL)
			{
				/* the delete of the same key update */
				if (entry->op != ECM_OP_DELETE ||
					entry->lsn != insert_lsn || entry->opno + 1 != insert_op)
					report_corrupt_log(shape, insert_lsn, insert_op);
				key = copy_old_key(shape, entry);
				fill_missing(values, entry->old_values, shape->ncolumns);
			}
			else if (entry_has_key(shape, entry, key))
			{
				/* the row can't have been away in between */
				if (entry->op == ECM_OP_DELETE)
					report_corrupt_log(shape, lsn, op);
				fill_missing(values, entry->new_values, shape->ncolumns);
				if (entry->op == ECM_OP_INSERT)
				{
					insert_lsn = entry->lsn;
					insert_op = entry->opno;
					key = NULL;
				}
			}
			done = count_missing(values, shape->ncolumns) == 0;
		}
	}
	if (!done)
		report_corrupt_log(shape, lsn, op);

	chunk_scan_end(&cs);
	MemoryContextDelete(chunk_context);
}

/* Columns that were not sent are left out. */
static Datum
values_to_jsonb(const LogReader *reader, const EcmValue *values)
{
	JsonbParseState *state = NULL;
	JsonbValue *object;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < reader->shape->ncolumns; i++)
	{
		JsonbValue	value;

		if (values[i].kind == ECM_VALUE_UNCHANGED)
			continue;

		pushJsonbValue(&state, WJB_KEY, &reader->names[i]);
		if (values[i].kind == ECM_VALUE_NULL)
			value.type = jbvNull;
		else
		{
			value.type = jbvString;
			value.val.string.val = unconstify(char *, values[i].text);
			value.val.string.len = (int) values[i].len;
		}
		pushJsonbValue(&state, WJB_VALUE, &value);
	}
	object = pushJsonbValue(&state, WJB_END_OBJECT, NULL);

	return JsonbPGetDatum(JsonbValueToJsonb(object));
}

/* "schema"."table"/"key column"/..., with embedded double quotes doubled */
static text *
entry_key(const EcmShapeDef *shape, const EcmChunkReader *r)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, shape->relation_name);
	for (int i = 0; i < shape->nkeys; i++)
	{
		const EcmValue *column = entry_key_column(r->op, r->new_values,
												  r->n_old > 0 ? r->old_values : NULL,
												  shape->key_positions[i]);

		if (column->kind != ECM_VALUE_TEXT)
			report_corrupt_log(shape, r->lsn, r->opno);

		appendStringInfoString(&buf, "/\"");
		for (uint32 j = 0; j < column->len; j++)
		{
			if (column->text[j] == '"')
				appendStringInfoChar(&buf, '"');
			appendStringInfoChar(&buf, column->text[j]);
		}
		appendStringInfoChar(&buf, '"');
	}
	return cstring_to_text_with_len(buf.data, buf.len);
}

static const char *
op_name(EcmOp op)
{
	switch (op)
	{
		case ECM_OP_INSERT:
			return "insert";
		case ECM_OP_UPDATE:
			return "update";
		case ECM_OP_DELETE:
			return "delete";
	}
	return NULL;				/* keep compiler quiet */
}

/* An update's old_value has the columns that are known to have changed. */
static void
keep_changed(EcmValue *old_values, const EcmValue *new_values, int nvalues)
{
	for (int i = 0; i < nvalues; i++)
	{
		EcmValue   *o = &old_values[i];
		const EcmValue *n = &new_values[i];

		if (n->kind == ECM_VALUE_UNCHANGED ||
			(n->kind == o->kind &&
			 (n->kind != ECM_VALUE_TEXT ||
			  (n->len == o->len && memcmp(n->text, o->text, n->len) == 0))))
			o->kind = ECM_VALUE_UNCHANGED;
	}
}

/* Turns the reader's current entry into a row of the result. */
static void
return_entry(const LogReader *reader, EcmChunkReader *r, ReturnSetInfo *rsinfo)
{
	int			ncolumns = reader->shape->ncolumns;
	char		offset[ECM_OFFSET_LEN];
	Datum		values[6];
	bool		nulls[6] = {false};

	if (r->op == ECM_OP_INSERT && count_missing(r->new_values, ncolumns) > 0)
		complete_insert(reader, r->lsn, r->opno, r->new_values);

	ecm_offset_format(offset, r->lsn, r->opno);
	values[0] = CStringGetTextDatum(offset);
	values[1] = CStringGetTextDatum(op_name(r->op));
	values[2] = PointerGetDatum(entry_key(reader->shape, r));

	if (r->n_new > 0)
		values[3] = values_to_jsonb(reader, r->new_values);
	else
		nulls[3] = true;

	if (r->n_old > 0)
	{
		if (r->op == ECM_OP_UPDATE)
			keep_changed(r->old_values, r->new_values, ncolumns);
		values[4] = values_to_jsonb(reader, r->old_values);
	}
	else
		nulls[4] = true;

	/* rows of the initial snapshot come from no particular transaction */
	if (r->lsn != 0)
		values[5] = Int64GetDatum((int64) r->xid);
	else
		nulls[5] = true;

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * Finds the chunk that the offset falls into: the last one that does not
 * begin after it.  False if there is none.
 */
static bool
find_start(const LogReader *reader, const EcmOffset *after,
		   XLogRecPtr *first_lsn, int64 *first_op)
{
	ChunkScan	cs;
	bool		found;

	if (after->before_all)
		return false;

	chunk_scan_begin(&cs, reader->shape->id, BTLessEqualStrategyNumber,
					 after->lsn, after->op, reader->snapshot, AccessShareLock);
	found = chunk_scan_next(&cs);
	if (found)
	{
		*first_lsn = cs.first_lsn;
		*first_op = cs.first_op;
	}
	chunk_scan_end(&cs);

	return found;
}

/*
 * Returns up to max_entries (0: all) entries after the offset as rows, and
 * how many these were as its result.
 */
static int64
return_entries(const EcmShapeDef *shape, const EcmOffset *after,
			   int max_entries, Snapshot snapshot, ReturnSetInfo *rsinfo)
{
	LogReader	reader;
	EcmValue   *new_values = palloc(shape->ncolumns * sizeof(EcmValue));
	EcmValue   *old_values = palloc(shape->ncolumns * sizeof(EcmValue));
	MemoryContext chunk_context;
	MemoryContext old_context;
	ChunkScan	cs;
	XLogRecPtr	first_lsn = 0;
	int64		first_op = 0;
	int64		returned = 0;
	bool		full = false;

	reader.shape = shape;
	reader.snapshot = snapshot;
	reader.names = palloc(shape->ncolumns * sizeof(JsonbValue));
	for (int i = 0; i < shape->ncolumns; i++)
	{
		reader.names[i].type = jbvString;
		reader.names[i].val.string.val = shape->column_names[i];
		reader.names[i].val.string.len = strlen(shape->column_names[i]);
	}

	chunk_context = AllocSetContextCreate(CurrentMemoryContext,
										  "electric_cm chunk",
										  ALLOCSET_DEFAULT_SIZES);

	if (find_start(&reader, after, &first_lsn, &first_op))
		chunk_scan_begin(&cs, shape->id, BTGreaterEqualStrategyNumber,
						 first_lsn, first_op, snapshot, AccessShareLock);
	else
		chunk_scan_begin(&cs, shape->id, InvalidStrategy, 0, 0, snapshot,
						 AccessShareLock);

	old_context = MemoryContextSwitchTo(chunk_context);
	while (!full && chunk_scan_next(&cs))
	{
		EcmChunkReader r;

		MemoryContextReset(chunk_context);
		chunk_scan_read(&cs, &r, new_values, old_values, shape->ncolumns);
		while (!full && next_entry(shape, &cs, &r))
		{
			if (!after->before_all &&
				ecm_offset_cmp(r.lsn, r.opno, after->lsn, after->op) <= 0)
				continue;
			return_entry(&reader, &r, rsinfo);
			full = ++returned == max_entries;
		}
	}
	MemoryContextSwitchTo(old_context);

	chunk_scan_end(&cs);
	MemoryContextDelete(chunk_context);

	return returned;
}

/* ----------------------------------------------------------------
 * Waiting for a shape that is being created
 * ----------------------------------------------------------------
 */

/*
 * The stack creates shapes by waiting for transactions that could have
 * written to their tables: if the caller's is one of them, waiting for the
 * stack would never end.  A lock from a plain SELECT is harmless.
 */
static void
check_may_wait(const EcmShapeDef *shape)
{
	LOCKTAG		tag;
	bool		locked = false;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, shape->relation);
	for (LOCKMODE mode = RowShareLock; mode <= AccessExclusiveLock; mode++)
		locked = locked || ecm_lock_held_by_me(&tag, mode);

	if (IsolationUsesXactSnapshot() || locked ||
		TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot wait for shape \"%s\" in this transaction",
						shape->handle),
				 errdetail("The shape is being created, which may have to wait for this transaction, or could not be seen by it."),
				 errhint("Commit first.")));
}

/* The entry of this database's stack; ERROR if there can't be any. */
static int
find_stack(const EcmShapeDef *shape)
{
	int			stack;

	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("shape \"%s\" is still being created", shape->handle),
				 errhint("Try again once the primary has created it and this standby has replayed that.")));

	ecm_require_shared();
	stack = ecm_stack_find(MyDatabaseId);
	if (stack < 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("shape \"%s\" is still being created, and no stack runs in this database",
						shape->handle),
				 errhint("Start it with electric_cm_start().")));
	return stack;
}

static void
check_stack_works(int stack, const EcmShapeDef *shape)
{
	EcmStack   *copy = palloc(sizeof(EcmStack));

	if (!ecm_stack_copy(stack, copy) ||
		copy->status == ECM_STATUS_FAILED ||
		copy->status == ECM_STATUS_STOPPED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("shape \"%s\" is still being created, and the stack is %s",
						shape->handle, ecm_status_name(copy->status)),
				 copy->last_error[0] != '\0' ?
				 errdetail("%s", copy->last_error) : 0,
				 copy->last_error_hint[0] != '\0' ?
				 errhint("%s", copy->last_error_hint) : 0));
	pfree(copy);
}

/* Looks a shape up for reading, with a fresh snapshot. */
static EcmShapeDef *
find_shape(const char *handle)
{
	EcmShapeDef *shape = ecm_shape_by_handle(handle);

	if (shape == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("shape \"%s\" does not exist", handle),
				 errhint("Create it again with electric_cm_create_shape().")));
	ecm_shape_check_read(shape);

	if (shape->state == ECM_SHAPE_ERRORED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("shape \"%s\" has failed", handle),
				 shape->last_error != NULL ?
				 errdetail("%s", shape->last_error) : 0,
				 errhint("Drop it with electric_cm_drop_shape() and create it again with electric_cm_create_shape().")));
	return shape;
}

static EcmShapeDef *
await_live_shape(const char *handle)
{
	EcmShapeDef *shape = find_shape(handle);
	ConditionVariable *cv;
	int			stack;

	if (shape->state == ECM_SHAPE_LIVE)
		return shape;

	check_may_wait(shape);
	stack = find_stack(shape);
	cv = &ecm_shared->stacks[stack].cv;

	ConditionVariablePrepareToSleep(cv);
	while ((shape = find_shape(handle))->state != ECM_SHAPE_LIVE)
	{
		check_stack_works(stack, shape);
		ConditionVariableTimedSleep(cv, CREATION_RECHECK_MS,
									ecm_wait_event(ECM_WAIT_SHAPE_CREATION));
	}
	ConditionVariableCancelSleep();

	return shape;
}

/* ----------------------------------------------------------------
 * SQL functions
 * ----------------------------------------------------------------
 */

/*
 * electric_cm_shape_log(handle text, after_offset text DEFAULT '-1',
 *						 max_entries int DEFAULT NULL)
 *	-> SETOF (log_offset text, operation text, key text, value jsonb,
 *			  old_value jsonb, xid int8)
 *
 * The entries of a shape's log after an offset ("-1": from the beginning), in
 * order; whole transactions, unless cut by max_entries.  Waits for a shape
 * that is not live yet.
 *
 *	 insert		value has all columns, old_value is NULL
 *	 update		value has all columns but unchanged TOASTed ones; old_value
 *				has the old values of changed columns, or is NULL if the
 *				stream had none
 *	 delete		value is NULL, old_value has the key, or all columns with
 *				REPLICA IDENTITY FULL
 *
 * xid is the upstream transaction's, NULL for rows of the initial snapshot.
 *
 * Errors: 22004 handle or after_offset is NULL; 22023 after_offset is not an
 * offset, or max_entries is not above 0; 42704 no such shape (any more);
 * 42501 the user may not read it; 55000 the shape could not be created, or it
 * is being created and waiting for it is impossible (this transaction is in
 * its way; no stack that works; a standby); XX001 the log is corrupt.
 */
Datum
electric_cm_shape_log(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *after_text;
	int			max_entries = 0;
	EcmOffset	after;
	char	   *handle;
	EcmShapeDef *shape;
	Snapshot	snapshot;

	if (!RecoveryInProgress())	/* a standby may do without */
		ecm_require_shared();
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("shape handle must not be null")));
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("offset must not be null"),
				 errhint("The offset before all entries is \"-1\".")));

	handle = text_to_cstring(PG_GETARG_TEXT_PP(0));
	after_text = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (!ecm_offset_parse(after_text, &after))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid shape log offset: \"%s\"", after_text),
				 errhint("Pass the log_offset of the last entry received, or \"-1\" to begin.")));

	if (!PG_ARGISNULL(2))
	{
		max_entries = PG_GETARG_INT32(2);
		if (max_entries <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("max_entries must be greater than zero")));
	}

	InitMaterializedSRF(fcinfo, 0);

	/*
	 * The snapshot comes after the look at the shape: an older one could see
	 * captured chunks that belong to the initial rows.  What may have
	 * happened in between is that the shape was dropped, with all its log.
	 */
	shape = await_live_shape(handle);
	snapshot = RegisterSnapshot(IsolationUsesXactSnapshot() ?
								GetTransactionSnapshot() : GetLatestSnapshot());
	if (return_entries(shape, &after, max_entries, snapshot, rsinfo) == 0)
		(void) find_shape(handle);
	UnregisterSnapshot(snapshot);

	return (Datum) 0;
}

/*
 * _electric_cm.shape_log_stats(shape int8)
 *	-> (log_entries int8, log_bytes int8, last_offset text)
 *
 * Size of a shape's log by its id: entries, bytes of packed data (TOASTed or
 * not, never fetched), and the offset of the last entry, NULL if there is
 * none.  Everything stored counts, so for a shape that is being created also
 * what it may drop again.
 *
 * Errors: XX001 the last chunk is corrupt.
 */
Datum
electric_cm_shape_log_stats(PG_FUNCTION_ARGS)
{
	int64		shape = PG_GETARG_INT64(0);
	ChunkScan	cs;
	TupleDesc	tupdesc;
	Datum		values[3];
	bool		nulls[3] = {false};
	int64		entries = 0;
	int64		bytes = 0;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	tupdesc = BlessTupleDesc(tupdesc);

	chunk_scan_begin(&cs, shape, InvalidStrategy, 0, 0, GetActiveSnapshot(),
					 AccessShareLock);
	while (chunk_scan_next(&cs))
	{
		entries += cs.entries;
		bytes += toast_raw_datum_size(cs.data) - VARHDRSZ;
	}
	chunk_scan_end(&cs);
	values[0] = Int64GetDatum(entries);
	values[1] = Int64GetDatum(bytes);

	chunk_scan_begin(&cs, shape, BTLessEqualStrategyNumber, PG_UINT64_MAX,
					 PG_INT64_MAX, GetActiveSnapshot(), AccessShareLock);
	nulls[2] = !chunk_scan_next(&cs);
	if (!nulls[2])
	{
		EcmValue   *new_values = palloc(MaxHeapAttributeNumber * sizeof(EcmValue));
		EcmValue   *old_values = palloc(MaxHeapAttributeNumber * sizeof(EcmValue));
		EcmChunkReader r;
		EcmChunkResult result;
		char		offset[ECM_OFFSET_LEN];

		chunk_scan_read(&cs, &r, new_values, old_values, MaxHeapAttributeNumber);
		while ((result = ecm_chunk_next(&r)) == ECM_CHUNK_ENTRY)
			;
		ecm_offset_format(offset, r.lsn, r.opno);
		if (result == ECM_CHUNK_CORRUPT)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("log of shape " INT64_FORMAT " is corrupt after offset %s",
							shape, offset)));
		values[2] = CStringGetTextDatum(offset);
	}
	chunk_scan_end(&cs);

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls)));
}
