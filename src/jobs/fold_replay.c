/*-------------------------------------------------------------------------
 *
 * fold_replay.c
 *	  Folding: entries of a log are sorted by their keys, and replayed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_operator_d.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "base/compat.h"
#include "jobs/fold.h"
#include "shape/shape_entry.h"

/* Columns of the sort: entries by member and key, and of one key in their order. */
#define SORT_MEMBER			1
#define SORT_KEY			2
#define SORT_NUMBER			3
#define SORT_ENTRY			4
#define SORT_NATTS			4

/*
 * What entries of a part come to is not gathered beyond this size (bytes): the
 * values of several may be larger together than any row can be, and yet the row
 * is small in the end.
 */
#define MAX_PART_ROW		(16 * 1024 * 1024)

/* ----------------------------------------------------------------
 * Sorting
 * ----------------------------------------------------------------
 */

static TupleDesc
sort_descriptor(void)
{
	TupleDesc	desc = CreateTemplateTupleDesc(SORT_NATTS);

	TupleDescInitEntry(desc, SORT_MEMBER, "member", INT4OID, -1, 0);
	TupleDescInitEntry(desc, SORT_KEY, "key", BYTEAOID, -1, 0);
	TupleDescInitEntry(desc, SORT_NUMBER, "number", INT8OID, -1, 0);
	TupleDescInitEntry(desc, SORT_ENTRY, "entry", BYTEAOID, -1, 0);
	ecm_tupledesc_finalize(desc);
	return desc;
}

void
ecm_fold_sort_begin(EcmFoldSort *sort, EcmFold *fold)
{
	AttrNumber	columns[] = {SORT_MEMBER, SORT_KEY, SORT_NUMBER};
	Oid			operators[] = {Int4LessOperator, ByteaLessOperator, Int8LessOperator};
	Oid			collations[] = {InvalidOid, InvalidOid, InvalidOid};
	bool		nulls_first[] = {false, false, false};

	sort->fold = fold;
	sort->desc = sort_descriptor();
	sort->in = MakeSingleTupleTableSlot(sort->desc, &TTSOpsVirtual);
	sort->out = MakeSingleTupleTableSlot(sort->desc, &TTSOpsMinimalTuple);
	sort->state = tuplesort_begin_heap(sort->desc, lengthof(columns), columns,
									   operators, collations, nulls_first,
									   maintenance_work_mem, NULL, TUPLESORT_NONE);
	sort->number = 0;
	sort->bytes = 0;
	sort->member = 0;
}

void
ecm_fold_sort_end(EcmFoldSort *sort)
{
	ExecDropSingleTupleTableSlot(sort->in);
	ExecDropSingleTupleTableSlot(sort->out);
	tuplesort_end(sort->state);
}

void
ecm_fold_sort_put(EcmFoldSort *sort, bytea *key, bytea *entry)
{
	TupleTableSlot *slot = sort->in;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, false, SORT_NATTS * sizeof(bool));
	slot->tts_values[SORT_MEMBER - 1] = Int32GetDatum(sort->member);
	slot->tts_values[SORT_KEY - 1] = PointerGetDatum(key);
	slot->tts_values[SORT_NUMBER - 1] = Int64GetDatum(sort->number++);
	slot->tts_values[SORT_ENTRY - 1] = PointerGetDatum(entry);
	ExecStoreVirtualTuple(slot);
	tuplesort_puttupleslot(sort->state, slot);
	ExecClearTuple(slot);
	sort->bytes += VARSIZE(key) + VARSIZE(entry);
}

static bytea *
make_bytea(const char *data, Size len)
{
	bytea	   *bytes = palloc(VARHDRSZ + len);

	SET_VARSIZE(bytes, VARHDRSZ + len);
	memcpy(VARDATA(bytes), data, len);
	return bytes;
}

bytea *
ecm_fold_row_key(const EcmShapeDef *shape, const EcmValue *row)
{
	EcmChunkReader r = {.op = ECM_OP_INSERT, .new_values = unconstify(EcmValue *, row)};

	return ecm_fold_key(shape, &r);
}

char **
ecm_fold_key_texts(const EcmShapeDef *shape, const bytea *key)
{
	char	  **texts = palloc(sizeof(char *) * shape->nkeys);
	const char *from = VARDATA_ANY(key);

	for (int i = 0; i < shape->nkeys; i++)
	{
		uint32		len;

		memcpy(&len, from, sizeof(len));
		texts[i] = pnstrdup(from + sizeof(len), len);
		from += sizeof(len) + len;
	}
	return texts;
}

/* Each column with its length. */
bytea *
ecm_fold_key(const EcmShapeDef *shape, const EcmChunkReader *r)
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
	return make_bytea(buf.data, buf.len);
}

bytea *
ecm_fold_pack(const EcmShapeDef *shape, EcmOp op, const EcmValue *values)
{
	bool		has_new = op != ECM_OP_DELETE;
	bool		has_old = op != ECM_OP_INSERT;
	Size		size = 1;
	bytea	   *bytes;
	char	   *to;

	if (has_new)
		size += ecm_chunk_values_size(values, shape->ncolumns);
	if (has_old)
		size += ecm_chunk_values_size(NULL, 0);
	bytes = palloc(VARHDRSZ + size);
	SET_VARSIZE(bytes, VARHDRSZ + size);
	to = ecm_chunk_put_op(VARDATA(bytes), op);
	if (has_new)
		to = ecm_chunk_put_values(to, values, shape->ncolumns);
	if (has_old)
		(void) ecm_chunk_put_values(to, NULL, 0);
	return bytes;
}

void
ecm_fold_begin_log(const EcmFold *fold, EcmFoldPosition *position)
{
	memset(position, 0, sizeof(*position));
	position->chunk_lsn = fold->old_base.lsn;
	position->chunk_op = fold->old_base.op + 1;
}

/*
 * An insert that comes from an update of a key may lack values, which entries of
 * another key have.  They are filled in here, while the entries are still in the
 * order of the log.
 */
EcmFoldRead
ecm_fold_read_log(EcmFoldSort *sort, EcmCompleter *completer,
				  EcmFoldPosition *position, int64 max_bytes,
				  bool (*is_wanted) (void *arg, const bytea *key), void *arg)
{
	EcmFold    *fold = sort->fold;
	const EcmShapeDef *shape = fold->shape;
	EcmValue   *new_values = palloc(shape->ncolumns * sizeof(EcmValue));
	EcmValue   *old_values = palloc(shape->ncolumns * sizeof(EcmValue));
	MemoryContext chunk_context;
	MemoryContext entry_context;	/* a small chunk's entries may be large */
	MemoryContext old_context;
	EcmChunkScan cs;
	EcmFoldRead result = ECM_FOLD_READ_ALL;
	int64		bytes = 0;

	chunk_context = AllocSetContextCreate(CurrentMemoryContext,
										  "electric_cm folded chunk",
										  ALLOCSET_DEFAULT_SIZES);
	entry_context = AllocSetContextCreate(CurrentMemoryContext,
										  "electric_cm folded entry",
										  ALLOCSET_DEFAULT_SIZES);
	ecm_chunk_scan_begin(&cs, shape->id, BTGreaterEqualStrategyNumber,
						 position->chunk_lsn, position->chunk_op,
						 fold->snapshot, AccessShareLock);
	ecm_chunk_scan_one_base(&cs, fold->old_base.lsn);
	old_context = MemoryContextSwitchTo(chunk_context);
	while (result == ECM_FOLD_READ_ALL && ecm_chunk_scan_next(&cs) &&
		   ecm_offset_cmp(cs.first_lsn, cs.first_op,
						  fold->new_base.lsn, fold->new_base.op) <= 0)
	{
		EcmChunkReader r;

		MemoryContextReset(chunk_context);
		position->chunk_lsn = cs.first_lsn;
		position->chunk_op = cs.first_op;
		bytes += ecm_chunk_scan_bytes(&cs);
		ecm_chunk_scan_read(&cs, &r, new_values, old_values, shape->ncolumns);
		while (result == ECM_FOLD_READ_ALL && ecm_entry_next(shape, &cs, &r))
		{
			bytea	   *key;

			if (ecm_offset_cmp(r.lsn, r.opno, position->lsn, position->op) < 0)
				continue;
			position->lsn = r.lsn;
			position->op = r.opno;
			MemoryContextSwitchTo(entry_context);
			if (r.op == ECM_OP_INSERT &&
				ecm_entry_missing(r.new_values, shape->ncolumns) > 0)
			{
				if (max_bytes < PG_INT64_MAX && !ecm_completer_knows(completer, &r))
				{
					result = ECM_FOLD_READ_LACKS;
					break;
				}
				ecm_completer_fill(completer, &cs, &r, 0);	/* the key, too */
			}
			key = ecm_fold_key(shape, &r);
			if (is_wanted == NULL || is_wanted(arg, key))
				ecm_fold_sort_put(sort, key, ecm_fold_pack(shape, r.op, r.new_values));
			position->op++;
			if (Max(bytes, sort->bytes) >= max_bytes)
				result = ECM_FOLD_READ_ENOUGH;
			MemoryContextSwitchTo(chunk_context);
			MemoryContextReset(entry_context);
		}
	}
	MemoryContextSwitchTo(old_context);
	ecm_chunk_scan_end(&cs);
	MemoryContextDelete(chunk_context);
	MemoryContextDelete(entry_context);
	return result;
}

/* ----------------------------------------------------------------
 * Replaying
 * ----------------------------------------------------------------
 */

/* A row as it stands after the entries that have been replayed. */
typedef struct Row
{
	bytea	   *key;			/* NULL: no row is at hand */
	bool		begun;			/* an entry has been replayed */
	bool		existed;		/* before the first of them */
	bool		deleted;		/* it was then, at least once */
	bool		exists;
	Size		bytes;			/* of the values */
	EcmValue   *values;			/* with texts of their own */
} Row;

typedef struct Replay
{
	const EcmFold *fold;
	bool		part;
	void		(*put) (void *arg, const bytea *key, EcmOp op,
						const EcmValue *values);
	void	   *arg;
	Row			row;
} Replay;

static void
clear_values(Row *row, int nvalues)
{
	for (int i = 0; i < nvalues; i++)
	{
		if (row->values[i].kind == ECM_VALUE_TEXT)
			pfree(unconstify(char *, row->values[i].text));
		row->values[i].kind = ECM_VALUE_UNCHANGED;
	}
	row->bytes = 0;
}

/*
 * Replaces the row's values by those of an entry that were sent.  Of a column that was gone
 * when a row was updated, readers keep the value; it counts if there is another column
 * of that name by now.
 */
static void
set_values(Row *row, EcmOp op, const EcmValue *values, int nvalues)
{
	for (int i = 0; i < nvalues; i++)
	{
		EcmValue   *v = &row->values[i];

		if (values[i].kind == ECM_VALUE_UNCHANGED ||
			(op == ECM_OP_UPDATE && values[i].kind == ECM_VALUE_ABSENT))
			continue;
		if (v->kind == ECM_VALUE_TEXT)
		{
			row->bytes -= v->len;
			pfree(unconstify(char *, v->text));
		}
		*v = values[i];
		if (v->kind == ECM_VALUE_TEXT)
		{
			char	   *text = MemoryContextAllocHuge(CurrentMemoryContext,
													  Max(v->len, 1));

			memcpy(text, values[i].text, v->len);
			v->text = text;
			row->bytes += v->len;
		}
	}
}

/*
 * Values of columns that are gone by now.  That there was one is kept: if the column
 * comes back without, readers have to be told.
 */
static void
forget_gone(Row *row, const EcmShapeDef *shape)
{
	for (int i = 0; i < shape->ncolumns; i++)
	{
		EcmValue   *value = &row->values[i];

		if (!ecm_column_is_gone(shape, i))
			continue;
		if (value->kind == ECM_VALUE_TEXT)
		{
			row->bytes -= value->len;
			pfree(unconstify(char *, value->text));
			value->kind = ECM_VALUE_GONE;
		}
		else if (value->kind != ECM_VALUE_GONE)
			value->kind = ECM_VALUE_ABSENT;
	}
}

static void
put_whole(Replay *replay)
{
	const EcmFold *fold = replay->fold;
	Row		   *row = &replay->row;

	if (!row->exists)
		return;
	forget_gone(row, fold->shape);
	if (ecm_entry_missing(row->values, fold->shape->ncolumns) > 0)
		ecm_entry_report_corrupt(fold->shape, fold->old_base.lsn, fold->old_base.op);

	/*
	 * the values come from several entries, so that the row may be too large
	 * though no entry was
	 */
	ecm_entry_check_readable(ECM_OP_INSERT, fold->shape, row->values, NULL);
	replay->put(replay->arg, row->key, ECM_OP_INSERT, row->values);
}

static void
put_part(Replay *replay)
{
	Row		   *row = &replay->row;

	if (row->existed && (row->deleted || !row->exists))
		replay->put(replay->arg, row->key, ECM_OP_DELETE, NULL);
	if (row->exists)
		replay->put(replay->arg, row->key,
					row->existed && !row->deleted ? ECM_OP_UPDATE : ECM_OP_INSERT,
					row->values);
}

/* Hands on what has been replayed of the row. */
static void
put_row(Replay *replay)
{
	Row		   *row = &replay->row;

	if (row->begun && replay->part)
		put_part(replay);
	else if (row->begun)
		put_whole(replay);
	clear_values(row, replay->fold->shape->ncolumns);
	row->begun = false;
}

/* Replays an entry of the row's. */
static void
replay_entry(Replay *replay, bytea *entry, EcmValue *new_values)
{
	const EcmFold *fold = replay->fold;
	const EcmShapeDef *shape = fold->shape;
	Row		   *row = &replay->row;
	EcmChunkReader r;

	ecm_chunk_reader_init(&r, VARDATA_ANY(entry), VARSIZE_ANY_EXHDR(entry),
						  new_values, NULL, shape->ncolumns);
	r.in_txn = true;			/* ecm_fold_pack() has left out its record */
	if (ecm_chunk_next(&r) != ECM_CHUNK_ENTRY)
		elog(ERROR, "could not read a sorted entry of shape \"%s\"",
			 shape->handle);

	if (!row->begun)
	{
		row->existed = row->exists = replay->part && r.op != ECM_OP_INSERT;
		row->deleted = false;
		row->begun = true;
	}
	/* only an insert finds no row before it; otherwise the log is corrupt */
	if (row->exists == (r.op == ECM_OP_INSERT))
		ecm_entry_report_corrupt(shape, fold->old_base.lsn, fold->old_base.op);
	row->exists = r.op != ECM_OP_DELETE;
	if (row->exists)
		set_values(row, r.op, new_values, shape->ncolumns);
	else
	{
		row->deleted = true;
		clear_values(row, shape->ncolumns);
	}
	if (replay->part && row->bytes >= MAX_PART_ROW)
		put_row(replay);
}

void
ecm_fold_replay(EcmFoldSort *sort, bool part,
				void (*put) (void *arg, const bytea *key, EcmOp op,
							 const EcmValue *values),
				void *arg)
{
	int			ncolumns = sort->fold->shape->ncolumns;
	EcmValue   *new_values = palloc(ncolumns * sizeof(EcmValue));
	Replay		replay = {.fold = sort->fold, .part = part, .put = put, .arg = arg};
	Row		   *row = &replay.row;

	row->values = palloc0(ncolumns * sizeof(EcmValue));
	clear_values(row, ncolumns);
	tuplesort_performsort(sort->state);
	while (tuplesort_gettupleslot(sort->state, true, false, sort->out, NULL))
	{
		bytea	   *next;
		int			member;

		CHECK_FOR_INTERRUPTS();
		slot_getallattrs(sort->out);
		next = DatumGetByteaPP(sort->out->tts_values[SORT_KEY - 1]);
		member = DatumGetInt32(sort->out->tts_values[SORT_MEMBER - 1]);
		if (row->key == NULL || member != sort->member ||
			VARSIZE_ANY_EXHDR(row->key) != VARSIZE_ANY_EXHDR(next) ||
			memcmp(VARDATA(row->key), VARDATA_ANY(next), VARSIZE_ANY_EXHDR(next)) != 0)
		{
			put_row(&replay);
			if (row->key != NULL)
				pfree(row->key);
			sort->member = member;
			row->key = make_bytea(VARDATA_ANY(next), VARSIZE_ANY_EXHDR(next));
		}
		replay_entry(&replay,
					 DatumGetByteaPP(sort->out->tts_values[SORT_ENTRY - 1]), new_values);
	}
	put_row(&replay);
	ExecClearTuple(sort->out);
}

bool
ecm_fold_sort_next(EcmFoldSort *sort, bytea **key, EcmValue *values)
{
	bytea	   *entry;
	EcmChunkReader r;

	CHECK_FOR_INTERRUPTS();
	if (!tuplesort_gettupleslot(sort->state, true, false, sort->out, NULL))
		return false;
	slot_getallattrs(sort->out);
	sort->member = DatumGetInt32(sort->out->tts_values[SORT_MEMBER - 1]);
	*key = DatumGetByteaPP(sort->out->tts_values[SORT_KEY - 1]);
	entry = DatumGetByteaPP(sort->out->tts_values[SORT_ENTRY - 1]);
	ecm_chunk_reader_init(&r, VARDATA_ANY(entry), VARSIZE_ANY_EXHDR(entry), values, NULL,
						  sort->fold->shape->ncolumns);
	r.in_txn = true;
	if (ecm_chunk_next(&r) != ECM_CHUNK_ENTRY || r.op != ECM_OP_INSERT)
		elog(ERROR, "could not read a sorted row of shape \"%s\"", sort->fold->shape->handle);
	return true;
}
