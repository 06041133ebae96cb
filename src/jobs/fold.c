/*-------------------------------------------------------------------------
 *
 * fold.c
 *	  A function for pool sessions: folds the oldest part of a shape's log,
 *	  lest it grow for ever.
 *
 * To fold a log, its entries up to a point F are replayed, and the rows as
 * they stand at F are stored in place of the entries, as the log's new base.
 * F is the end of a transaction.  The offsets of the rows, <F's lsn>_<identity
 * | n>, lie where the entries have been.  So readers who have read beyond F do
 * not notice.  A reader who has read half of the base gets an error if he goes
 * on where these rows do not exist: at another server, or here after the next
 * fold.
 *
 * One transaction writes the rows, and the log's row in
 * _electric_cm.shape_base, by which readers know where the log begins.  The
 * chunks that the base replaces are deleted afterwards, little by little,
 * since each delete is decoded.  No process has to wait: consumers append
 * entries behind F, and readers have their snapshots.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_operator_d.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/tuplesort.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/spi.h"
#include "shape/shape.h"
#include "shape/shape_catalog.h"
#include "shape/shape_chunk.h"
#include "shape/shape_complete.h"
#include "shape/shape_entry.h"
#include "shape/shape_log.h"

/*
 * The default retention (bytes): this, or twice the table's size, whichever is
 * larger.
 */
#define MIN_AUTO_RETENTION	(INT64CONST(1024) * 1024 * 1024)

/* Bytes of folded entries that are deleted in one transaction. */
#define DELETE_BYTES		(64 * 1024 * 1024)

/* A class of advisory locks that SQL's functions don't use. */
#define FOLD_LOCK_CLASS		4

PG_FUNCTION_INFO_V1(electric_cm_fold_shape);

/* Columns of the sort: entries by key, and of one key in their order. */
#define SORT_KEY			1
#define SORT_NUMBER			2
#define SORT_ENTRY			3
#define SORT_NATTS			3

typedef struct Fold
{
	const EcmShapeDef *shape;
	Snapshot	snapshot;
	EcmLogBase	old_base;
	EcmLogBase	new_base;
	int64		entries;		/* number of entries replayed */
	int64		rows;			/* number of rows in the new base */
} Fold;

/* ----------------------------------------------------------------
 * Whether, and up to where
 * ----------------------------------------------------------------
 */

/* The table's size, with its partitions.  Leaves no locks behind. */
static int64
table_bytes(Oid relation)
{
	int64		bytes = 0;
	ListCell   *lc;

	foreach(lc, find_all_inheritors(relation, NoLock, NULL))
	{
		LOCAL_FCINFO(fcinfo, 1);
		Datum		size;

		InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
		fcinfo->args[0].value = ObjectIdGetDatum(lfirst_oid(lc));
		fcinfo->args[0].isnull = false;
		size = pg_table_size(fcinfo);
		if (!fcinfo->isnull)	/* null: the partition is gone */
			bytes += DatumGetInt64(size);
	}
	return bytes;
}

/*
 * The size that the log may have before it is folded (bytes). retention 0: the
 * default.  A fold reads the base, too, so it must not be done each time when
 * a few entries have been added: the log may have twice the size of its base
 * in any case.
 */
static int64
size_limit(const EcmShapeDef *shape, int64 retention, int64 log_bytes,
		   int64 base_bytes)
{
	if (retention == 0)
	{
		retention = MIN_AUTO_RETENTION;
		if (log_bytes > retention)	/* else the table's size makes no
									 * difference */
			retention = Max(retention, 2 * table_bytes(shape->relation));
	}
	return Max(retention, 2 * base_bytes);
}

/*
 * Finds the point up to which to fold such that 'keep' bytes of entries stay
 * as they are: the end of a chunk after which a transaction begins.  False:
 * there is none.
 */
static bool
find_point(Fold *fold, int64 keep)
{
	EcmChunkScan cs;
	int64		after = 0;		/* bytes from the current chunk on */
	bool		enough = false; /* 'keep' bytes follow the chunk before */
	bool		found = false;

	ecm_chunk_scan_begin(&cs, fold->shape->id, BTLessEqualStrategyNumber,
						 PG_UINT64_MAX, PG_INT64_MAX, fold->snapshot,
						 AccessShareLock);
	while (!found && ecm_chunk_scan_next(&cs) &&
		   cs.first_lsn > fold->old_base.lsn)
	{
		if (enough)
		{
			uint64		op;

			ecm_chunk_scan_last(&cs, fold->shape->id, &fold->new_base.lsn, &op);
			fold->new_base.op = (int64) op;
			fold->new_base.origin = cs.totals;
			found = true;
		}
		after += ecm_chunk_scan_bytes(&cs);
		enough = ecm_op_number(cs.first_op) == 0 && after >= keep;
	}
	ecm_chunk_scan_end(&cs);
	return found;
}

/*
 * Is it time to fold, and is there something that can be folded?
 */
static bool
is_due(Fold *fold, int64 retention)
{
	EcmLogTotals base_size;
	EcmLogTotals stream_size;
	int64		bytes;
	int64		limit;

	ecm_log_sizes(fold->shape->id, &fold->old_base, fold->snapshot,
				  &base_size, &stream_size);
	bytes = base_size.bytes + stream_size.bytes;
	limit = size_limit(fold->shape, retention, bytes, base_size.bytes);
	if (bytes <= limit || !find_point(fold, limit / 4))
		return false;

	/*
	 * a large transaction at the end may leave so little before it that
	 * folding is not worth while
	 */
	return fold->new_base.origin.bytes - fold->old_base.origin.bytes >= limit / 8;
}

/* ----------------------------------------------------------------
 * Replaying
 * ----------------------------------------------------------------
 */

static TupleDesc
sort_descriptor(void)
{
	TupleDesc	desc = CreateTemplateTupleDesc(SORT_NATTS);

	TupleDescInitEntry(desc, SORT_KEY, "key", BYTEAOID, -1, 0);
	TupleDescInitEntry(desc, SORT_NUMBER, "number", INT8OID, -1, 0);
	TupleDescInitEntry(desc, SORT_ENTRY, "entry", BYTEAOID, -1, 0);
	ecm_tupledesc_finalize(desc);
	return desc;
}

static Tuplesortstate *
begin_sort(TupleDesc desc)
{
	AttrNumber	columns[2] = {SORT_KEY, SORT_NUMBER};
	Oid			operators[2] = {ByteaLessOperator, Int8LessOperator};
	Oid			collations[2] = {InvalidOid, InvalidOid};
	bool		nulls_first[2] = {false, false};

	return tuplesort_begin_heap(desc, lengthof(columns), columns, operators,
								collations, nulls_first, maintenance_work_mem,
								NULL, TUPLESORT_NONE);
}

static Datum
bytea_datum(const char *data, Size len)
{
	bytea	   *bytes = palloc(VARHDRSZ + len);

	SET_VARSIZE(bytes, VARHDRSZ + len);
	memcpy(VARDATA(bytes), data, len);
	return PointerGetDatum(bytes);
}

/* The key of an entry's row, for sorting: each column with its length. */
static Datum
entry_key(const EcmShapeDef *shape, const EcmChunkReader *r)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < shape->nkeys; i++)
	{
		const EcmValue *column;

		column = ecm_entry_key_column(r->op, r->new_values,
									  r->n_old > 0 ? r->old_values : NULL,
									  shape->key_positions[i]);
		if (column->kind != ECM_VALUE_TEXT)
			ecm_entry_report_corrupt(shape, r->lsn, r->opno);
		appendBinaryStringInfo(&buf, (const char *) &column->len,
							   sizeof(column->len));
		appendBinaryStringInfo(&buf, column->text, column->len);
	}
	return bytea_datum(buf.data, buf.len);
}

/*
 * The part of an entry that replaying needs: the operation and the new values,
 * packed as in a chunk.
 */
static Datum
pack_entry(const EcmShapeDef *shape, const EcmChunkReader *r)
{
	bool		has_new = r->op != ECM_OP_DELETE;
	bool		has_old = r->op != ECM_OP_INSERT;
	Size		size = 1;
	bytea	   *bytes;
	char	   *to;

	if (has_new)
		size += ecm_chunk_values_size(r->new_values, shape->ncolumns);
	if (has_old)
		size += ecm_chunk_values_size(NULL, 0);
	bytes = palloc(VARHDRSZ + size);
	SET_VARSIZE(bytes, VARHDRSZ + size);
	to = ecm_chunk_put_op(VARDATA(bytes), r->op);
	if (has_new)
		to = ecm_chunk_put_values(to, r->new_values, shape->ncolumns);
	if (has_old)
		(void) ecm_chunk_put_values(to, NULL, 0);
	return PointerGetDatum(bytes);
}

/*
 * Sorts the entries of the old base, and those after it up to the new one, by
 * key.  An insert that comes from an update of a key may lack values, which
 * entries of another key have.  They are filled in here, while the entries are
 * still in the order of the log.
 */
static void
sort_entries(Fold *fold, Tuplesortstate *sort, TupleTableSlot *slot)
{
	const EcmShapeDef *shape = fold->shape;
	EcmValue   *new_values = palloc(shape->ncolumns * sizeof(EcmValue));
	EcmValue   *old_values = palloc(shape->ncolumns * sizeof(EcmValue));
	MemoryContext chunk_context;
	MemoryContext entry_context;	/* a small chunk's entries may be large */
	MemoryContext old_context;
	EcmChunkScan cs;
	EcmCompleter *completer = ecm_completer_begin(shape, fold->snapshot,
												  fold->new_base.lsn,
												  fold->new_base.op);

	chunk_context = AllocSetContextCreate(CurrentMemoryContext,
										  "electric_cm folded chunk",
										  ALLOCSET_DEFAULT_SIZES);
	entry_context = AllocSetContextCreate(CurrentMemoryContext,
										  "electric_cm folded entry",
										  ALLOCSET_DEFAULT_SIZES);
	ecm_chunk_scan_begin(&cs, shape->id, BTGreaterEqualStrategyNumber,
						 fold->old_base.lsn, fold->old_base.op + 1,
						 fold->snapshot, AccessShareLock);
	old_context = MemoryContextSwitchTo(chunk_context);
	while (ecm_chunk_scan_next(&cs) &&
		   ecm_offset_cmp(cs.first_lsn, cs.first_op,
						  fold->new_base.lsn, fold->new_base.op) <= 0)
	{
		EcmChunkReader r;

		MemoryContextReset(chunk_context);
		ecm_chunk_scan_read(&cs, &r, new_values, old_values, shape->ncolumns);
		while (ecm_entry_next(shape, &cs, &r))
		{
			MemoryContextSwitchTo(entry_context);
			if (r.op == ECM_OP_INSERT &&
				ecm_entry_missing(r.new_values, shape->ncolumns) > 0)
				ecm_completer_fill(completer, &cs, &r, 0);
			ExecClearTuple(slot);
			memset(slot->tts_isnull, false, SORT_NATTS * sizeof(bool));
			slot->tts_values[SORT_KEY - 1] = entry_key(shape, &r);
			slot->tts_values[SORT_NUMBER - 1] = Int64GetDatum(fold->entries++);
			slot->tts_values[SORT_ENTRY - 1] = pack_entry(shape, &r);
			ExecStoreVirtualTuple(slot);
			tuplesort_puttupleslot(sort, slot);
			ExecClearTuple(slot);
			MemoryContextSwitchTo(chunk_context);
			MemoryContextReset(entry_context);
		}
	}
	MemoryContextSwitchTo(old_context);
	ecm_chunk_scan_end(&cs);
	ecm_completer_end(completer);
	MemoryContextDelete(chunk_context);
	MemoryContextDelete(entry_context);
}

/* A row as it stands after the entries that have been replayed. */
typedef struct Row
{
	bool		exists;
	EcmValue   *values;			/* with texts of their own */
} Row;

/* Replaces the row's values by those of an entry that were sent. */
static void
set_values(Row *row, const EcmValue *values, int nvalues)
{
	for (int i = 0; i < nvalues; i++)
	{
		EcmValue   *v = &row->values[i];

		if (values[i].kind == ECM_VALUE_UNCHANGED)
			continue;
		if (v->kind == ECM_VALUE_TEXT)
			pfree(unconstify(char *, v->text));
		*v = values[i];
		if (v->kind == ECM_VALUE_TEXT)
		{
			char	   *text = MemoryContextAllocHuge(CurrentMemoryContext,
													  Max(v->len, 1));

			memcpy(text, values[i].text, v->len);
			v->text = text;
		}
	}
}

/* Replays an entry of the row's. */
static void
replay_entry(const Fold *fold, Row *row, bytea *entry, EcmValue *new_values)
{
	const EcmShapeDef *shape = fold->shape;
	EcmChunkReader r;

	ecm_chunk_reader_init(&r, VARDATA_ANY(entry), VARSIZE_ANY_EXHDR(entry),
						  new_values, NULL, shape->ncolumns);
	r.in_txn = true;			/* pack_entry() has left out its record */
	if (ecm_chunk_next(&r) != ECM_CHUNK_ENTRY)
		elog(ERROR, "could not read a sorted entry of shape \"%s\"",
			 shape->handle);

	/* only an insert finds no row before it; otherwise the log is corrupt */
	if (row->exists == (r.op == ECM_OP_INSERT))
		ecm_entry_report_corrupt(shape, fold->old_base.lsn, fold->old_base.op);
	row->exists = r.op != ECM_OP_DELETE;
	if (row->exists)
		set_values(row, new_values, shape->ncolumns);
}

static void
put_row(const Fold *fold, Row *row, EcmRowPacker *packer)
{
	if (row->exists &&
		ecm_entry_missing(row->values, fold->shape->ncolumns) > 0)
		ecm_entry_report_corrupt(fold->shape, fold->old_base.lsn,
								 fold->old_base.op);
	if (row->exists)
	{
		/*
		 * the values come from several entries, so that the row may be too
		 * large though no entry was
		 */
		ecm_entry_check_readable(ECM_OP_INSERT, fold->shape, row->values, NULL);
		ecm_row_packer_put(packer, row->values, fold->shape->ncolumns);
	}
}

static void
forget_row(Row *row, int nvalues)
{
	row->exists = false;
	for (int i = 0; i < nvalues; i++)
	{
		if (row->values[i].kind == ECM_VALUE_TEXT)
			pfree(unconstify(char *, row->values[i].text));
		row->values[i].kind = ECM_VALUE_UNCHANGED;
	}
}

/*
 * Replays the sorted entries, row by row, into the new base.
 */
static void
write_rows(Fold *fold, Tuplesortstate *sort, TupleTableSlot *slot)
{
	int			ncolumns = fold->shape->ncolumns;
	EcmValue   *new_values = palloc(ncolumns * sizeof(EcmValue));
	Row			row = {false, palloc0(ncolumns * sizeof(EcmValue))};
	bytea	   *key = NULL;		/* of the row at hand */
	EcmLogWriter *writer = ecm_log_writer_begin();
	EcmRowPacker *packer;

	packer = ecm_row_packer_begin(writer, fold->shape->id, fold->new_base.lsn,
								  ecm_new_base_identity());
	while (tuplesort_gettupleslot(sort, true, false, slot, NULL))
	{
		bytea	   *next;

		CHECK_FOR_INTERRUPTS();
		slot_getallattrs(slot);
		next = DatumGetByteaPP(slot->tts_values[SORT_KEY - 1]);
		if (key == NULL || VARSIZE_ANY_EXHDR(key) != VARSIZE_ANY_EXHDR(next) ||
			memcmp(VARDATA_ANY(key), VARDATA_ANY(next), VARSIZE_ANY_EXHDR(key)) != 0)
		{
			put_row(fold, &row, packer);
			forget_row(&row, ncolumns);
			if (key != NULL)
				pfree(key);
			key = (bytea *) DatumGetPointer(bytea_datum(VARDATA_ANY(next),
														VARSIZE_ANY_EXHDR(next)));
		}
		replay_entry(fold, &row,
					 DatumGetByteaPP(slot->tts_values[SORT_ENTRY - 1]), new_values);
	}
	put_row(fold, &row, packer);
	forget_row(&row, ncolumns);
	fold->rows = ecm_row_packer_end(packer);
	ecm_log_writer_end(writer);
}

/* ----------------------------------------------------------------
 * In the catalog
 * ----------------------------------------------------------------
 */

/*
 * Makes the log begin with the new base, from the commit on.  The shape's row
 * is locked before, lest the shape be dropped until the commit: a job for
 * dropped shapes may have deleted this row of shape_base already, and nobody
 * would delete the one that is written here.  Since others wait for that lock,
 * it is taken only at the end.
 */
static void
set_base(const Fold *fold)
{
	EcmSpiState spi;
	Oid			types[] = {INT8OID, LSNOID, INT8OID, INT8OID, INT8OID};
	Datum		values[] = {
		Int64GetDatum(fold->shape->id),
		LSNGetDatum(fold->new_base.lsn),
		Int64GetDatum(fold->new_base.op),
		Int64GetDatum(fold->new_base.origin.entries),
		Int64GetDatum(fold->new_base.origin.bytes)
	};

	ecm_spi_begin(&spi);
	if (SPI_execute_with_args("SELECT FROM _electric_cm.shape WHERE id = $1"
							  " FOR KEY SHARE",
							  1, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not lock shape \"%s\"", fold->shape->handle);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("shape \"%s\" does not exist any more",
						fold->shape->handle)));
	if (SPI_execute_with_args("INSERT INTO _electric_cm.shape_base"
							  " (shape, lsn, op, origin_entries, origin_bytes)"
							  " VALUES ($1, $2, $3, $4, $5)"
							  " ON CONFLICT (shape) DO UPDATE SET lsn = excluded.lsn,"
							  " op = excluded.op,"
							  " origin_entries = excluded.origin_entries,"
							  " origin_bytes = excluded.origin_bytes",
							  lengthof(types), types, values, NULL,
							  false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not move the base of shape \"%s\"",
			 fold->shape->handle);
	ecm_spi_end(&spi);
}

/* Deletes some of the chunks before the base.  True: there were any. */
static bool
delete_folded(const Fold *fold)
{
	EcmChunkScan cs;
	int64		bytes = 0;

	ecm_chunk_scan_begin(&cs, fold->shape->id, InvalidStrategy, 0, 0,
						 fold->snapshot, RowExclusiveLock);
	while (bytes < DELETE_BYTES && ecm_chunk_scan_next(&cs) &&
		   ecm_offset_cmp(cs.first_lsn, cs.first_op,
						  fold->old_base.lsn, fold->old_base.op) <= 0)
	{
		bytes += ecm_chunk_scan_bytes(&cs);
		(void) ecm_chunk_scan_delete(&cs);
	}
	ecm_chunk_scan_end(&cs);
	CommandCounterIncrement();
	return bytes > 0;
}

/*
 * Raises an ERROR if a user has the shape's row locked, in order to drop it,
 * perhaps for days.  The whole work of folding would be in vain then, and no
 * other log could be folded meanwhile.  The lock that this takes to find out
 * is released again.
 */
static void
check_lockable(const EcmShapeDef *shape)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Oid			type = INT8OID;
	Datum		value = Int64GetDatum(shape->id);
	EcmSpiState spi;
	bool		lockable;

	BeginInternalSubTransaction(NULL);
	ecm_spi_begin(&spi);
	ecm_spi_run("SELECT FROM _electric_cm.shape WHERE id = $1"
				" FOR KEY SHARE SKIP LOCKED", SPI_OK_SELECT, 1, &type, &value, NULL);
	lockable = SPI_processed > 0;
	ecm_spi_end(&spi);
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (!lockable)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("shape \"%s\" is locked, by somebody who drops it perhaps",
						shape->handle)));
}

/*
 * Lets only one fold run at a time in this database, until the transaction
 * ends.  ERROR if another one is running.
 */
static void
lock_folding(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, 0, FOLD_LOCK_CLASS);
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("another shape log is being folded")));
}

static void
fold_log(Fold *fold)
{
	TupleDesc	desc = sort_descriptor();
	TupleTableSlot *in = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);
	TupleTableSlot *out = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	Tuplesortstate *sort = begin_sort(desc);

	sort_entries(fold, sort, in);
	tuplesort_performsort(sort);
	write_rows(fold, sort, out);
	ExecDropSingleTupleTableSlot(in);
	ExecDropSingleTupleTableSlot(out);
	tuplesort_end(sort);
	set_base(fold);
}

/*
 * Folds, or fails the shape.  An update's entry has only those large values
 * that have changed, so a row may have become too large for any reader
 * although no entry is.  False: that is so, and the shape's consumer has been
 * told that the shape ends with an error.
 */
static bool
fold_or_fail(Fold *fold)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool ok = true;

	check_lockable(fold->shape);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		fold_log(fold);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (ecm_error_fault(unpack_sql_state(edata->sqlerrcode), edata->message,
							ECM_WORK_FOLD_LOG) != ECM_FAULT_OF_IT)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		CurrentResourceOwner = owner;
		ecm_shape_emit_failure(fold->shape,
							   psprintf(ECM_ERROR_OWN_TEXT "%s", edata->message));
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return ok;
}

/*
 * _electric_cm.fold_shape(shape int8, retention int8, OUT more bool,
 *						   OUT report text)
 *
 * Takes the next step, if there is one, to keep a shape's log within its
 * retention (bytes; 0: the default).  It deletes some of the entries that have
 * been folded; or it folds, and report has a text about that. more: there may
 * be another step, to be taken in another transaction.
 *
 * Errors: 42501 not called by a superuser; 55006 another fold is going on; 55P03
 * somebody has a lock on the shape; 42704 the shape was dropped meanwhile; XX001
 * the log is corrupt.
 */
Datum
electric_cm_fold_shape(PG_FUNCTION_ARGS)
{
	int64		retention = PG_GETARG_INT64(1);
	Fold		fold = {0};
	TupleDesc	desc;
	Datum		values[2] = {BoolGetDatum(false), (Datum) 0};
	bool		nulls[2] = {false, true};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to fold a shape's log")));

	lock_folding();
	fold.shape = ecm_shape_by_id(PG_GETARG_INT64(0));
	if (fold.shape != NULL && fold.shape->state == ECM_SHAPE_LIVE)
	{
		fold.snapshot = RegisterSnapshot(GetLatestSnapshot());
		ecm_log_base(fold.shape->id, fold.snapshot, &fold.old_base);
		if (delete_folded(&fold))
			values[0] = BoolGetDatum(true);
		else if (is_due(&fold, retention) && fold_or_fail(&fold))
		{
			values[0] = BoolGetDatum(true);
			values[1] = CStringGetTextDatum(psprintf("folded the oldest " INT64_FORMAT " entries of shape %s into " INT64_FORMAT,
													 fold.entries, fold.shape->handle,
													 fold.rows));
			nulls[1] = false;
		}
		UnregisterSnapshot(fold.snapshot);
	}

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
