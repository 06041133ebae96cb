/*-------------------------------------------------------------------------
 *
 * log_cursor.c
 *	  Reads one shape's log forwards, an entry at a time.
 *
 * A cursor is at an entry, or at the end.  While it is open, it has a scan, and the texts
 * of the entry are in its chunk.  When it rests, it remembers where the entry is.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "base/compat.h"
#include "functions/log_cursor.h"
#include "functions/offset_type.h"
#include "shape/shape_entry.h"
#include "shape/shape_gap.h"
#include "shape/shape_offset.h"

/* ----------------------------------------------------------------
 * Entries as rows
 * ----------------------------------------------------------------
 */

/* An object with a member per column; columns that were not sent are left out. */
static Datum
values_to_jsonb(const EcmShapeDef *shape, const EcmValue *values)
{
	EcmJsonbState state = {0};
	JsonbValue	name = {.type = jbvString};

	ecm_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < shape->ncolumns; i++)
	{
		JsonbValue	value;

		if (!ecm_value_is_shown(&values[i]))
			continue;

		name.val.string.val = shape->column_names[i];
		name.val.string.len = (int) strlen(shape->column_names[i]);
		ecm_jsonb_push(&state, WJB_KEY, &name);
		if (values[i].kind == ECM_VALUE_NULL)
			value.type = jbvNull;
		else
		{
			value.type = jbvString;
			value.val.string.val = unconstify(char *, values[i].text);
			value.val.string.len = (int) values[i].len;
		}
		ecm_jsonb_push(&state, WJB_VALUE, &value);
	}
	ecm_jsonb_push(&state, WJB_END_OBJECT, NULL);

	return JsonbPGetDatum(JsonbValueToJsonb(state.result));
}

/*
 * The text that identifies an entry's row: "schema"."table"/"value of key column"/...,
 * with embedded double quotes doubled.  ERROR XX001 if the entry lacks such a value.
 */
static text *
entry_key(const EcmShapeDef *shape, const EcmChunkReader *r)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, shape->relation_name);
	for (int i = 0; i < shape->nkeys; i++)
	{
		const EcmValue *column = ecm_entry_key_column(r->op, r->new_values,
													  r->n_old > 0 ? r->old_values : NULL,
													  shape->key_positions[i]);

		if (column->kind != ECM_VALUE_TEXT)
			ecm_entry_report_corrupt(shape, r->lsn, r->opno);

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

/*
 * Leaves in an update's old values only the columns that are known to have changed.
 */
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

/*
 * A TOASTed value that an update has left alone may be missing from an entry that has
 * become an insert: the completer takes it from earlier entries.
 */
static void
complete(EcmLogCursor *cursor, int64 more)
{
	EcmChunkReader *r = &cursor->reader;

	if (r->op != ECM_OP_INSERT || ecm_entry_missing(r->new_values, cursor->shape->ncolumns) == 0)
		return;
	if (cursor->completer == NULL)
	{
		MemoryContext old_context = MemoryContextSwitchTo(cursor->context);

		cursor->completer = ecm_completer_begin(cursor->shape, cursor->snapshot, cursor->base.lsn,
												PG_UINT64_MAX, PG_UINT64_MAX);
		MemoryContextSwitchTo(old_context);
	}
	ecm_completer_fill(cursor->completer, &cursor->scan, r, more);
	ecm_entry_check_readable(r->op, cursor->shape, r->new_values, NULL);
}

/* ----------------------------------------------------------------
 * Cursors
 * ----------------------------------------------------------------
 */

/* What comes after a gap is no part of the log before the gap is closed. */
static bool
is_before_gap(const EcmShapeDef *shape, const EcmChunkScan *cs)
{
	return shape->state == ECM_SHAPE_LIVE ||
		ecm_offset_cmp(cs->first_lsn, cs->first_op, shape->gap_lsn, ECM_FIRST_DIFFERENCE) < 0;
}

/* Opens a cursor in front of the chunk that begins at an offset, or after it. */
static void
open_at(EcmLogCursor *cursor, XLogRecPtr lsn, int64 op)
{
	MemoryContext old_context = MemoryContextSwitchTo(cursor->context);
	int			ncolumns = cursor->shape->ncolumns;

	ecm_chunk_scan_begin(&cursor->scan, cursor->shape->id, BTGreaterEqualStrategyNumber,
						 lsn, op, cursor->snapshot, AccessShareLock);
	ecm_chunk_scan_one_base(&cursor->scan, cursor->base.lsn);
	cursor->chunk_context = AllocSetContextCreate(cursor->context, "electric_cm chunk",
												  ALLOCSET_DEFAULT_SIZES);
	/* no chunk yet, which reads as one that is at its end */
	ecm_chunk_reader_init(&cursor->reader, NULL, 0, palloc(ncolumns * sizeof(EcmValue)),
						  palloc(ncolumns * sizeof(EcmValue)), ncolumns);
	cursor->open = true;
	MemoryContextSwitchTo(old_context);
}

/* Goes to the next entry of the scan, whether the reader has had it or not. */
static bool
step(EcmLogCursor *cursor)
{
	EcmChunkReader *r = &cursor->reader;
	MemoryContext old_context = MemoryContextSwitchTo(cursor->chunk_context);

	while (!(cursor->found = ecm_entry_next(cursor->shape, &cursor->scan, r)))
	{
		if (!ecm_chunk_scan_next(&cursor->scan) || !is_before_gap(cursor->shape, &cursor->scan))
			break;
		MemoryContextReset(cursor->chunk_context);
		ecm_chunk_scan_read(&cursor->scan, r, r->new_values, r->old_values, cursor->shape->ncolumns);
		cursor->chunk_lsn = cursor->scan.first_lsn;
		cursor->chunk_op = cursor->scan.first_op;
	}
	MemoryContextSwitchTo(old_context);
	if (cursor->found)
	{
		cursor->lsn = r->lsn;
		cursor->op = r->opno;
	}
	return cursor->found;
}

/* Opens a cursor that rests at an entry, at that entry. */
static void
wake(EcmLogCursor *cursor)
{
	uint64		lsn = cursor->lsn;
	uint64		op = cursor->op;

	if (cursor->open)
		return;
	open_at(cursor, cursor->chunk_lsn, cursor->chunk_op);
	while (step(cursor))
		if (ecm_offset_cmp(cursor->lsn, cursor->op, lsn, op) == 0)
			return;
	ecm_entry_report_corrupt(cursor->shape, lsn, op);
}

/*
 * An offset is good if the log has an entry there, in the chunk with which the scan
 * begins; start.known: it need not have one.
 */
EcmLogCursor *
ecm_log_cursor_begin(const EcmShapeDef *shape, Snapshot snapshot, const EcmOffset *after,
					 bool is_position)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "electric_cm log cursor",
												  ALLOCSET_SMALL_SIZES);
	EcmLogCursor *cursor = MemoryContextAllocZero(context, sizeof(EcmLogCursor));
	EcmLogStart start;

	cursor->context = context;
	cursor->shape = shape;
	cursor->snapshot = snapshot;
	cursor->after = *after;
	cursor->after.before_all |= !is_position && ecm_offset_is_before_log(shape, after);
	after = &cursor->after;
	ecm_log_base(shape->id, snapshot, &cursor->base);
	ecm_offset_start(shape, snapshot, &cursor->base, after, is_position, &start);
	cursor->known = start.known;
	open_at(cursor, start.lsn, start.op);
	while (step(cursor))
	{
		int			cmp = after->before_all ? 1 :
		ecm_offset_cmp(cursor->lsn, cursor->op, after->lsn, after->op);

		cursor->known |= cmp == 0;
		if (cmp > 0)
			break;
	}
	cursor->found &= cursor->known;
	return cursor;
}

bool
ecm_log_cursor_is_in_base(const EcmLogCursor *cursor)
{
	return cursor->found && (cursor->lsn == 0 || ecm_op_is_base(cursor->op));
}

bool
ecm_log_cursor_next(EcmLogCursor *cursor)
{
	if (!cursor->found)
		return false;
	wake(cursor);
	return step(cursor);
}

void
ecm_log_cursor_row(EcmLogCursor *cursor, int64 more, Datum *values, bool *nulls)
{
	const EcmShapeDef *shape = cursor->shape;
	EcmChunkReader *r = &cursor->reader;
	EcmOffset	offset = {.lsn = cursor->lsn, .op = cursor->op};

	Assert(cursor->found);
	wake(cursor);
	complete(cursor, more);

	memset(nulls, false, ECM_ENTRY_COLUMNS * sizeof(bool));
	values[0] = ecm_offset_datum(&offset);
	values[1] = CStringGetTextDatum(op_name(r->op));
	values[2] = PointerGetDatum(entry_key(shape, r));

	if (r->n_new > 0)
		values[3] = values_to_jsonb(shape, r->new_values);
	else
		nulls[3] = true;

	if (r->n_old > 0)
	{
		if (r->op == ECM_OP_UPDATE)
			keep_changed(r->old_values, r->new_values, shape->ncolumns);
		values[4] = values_to_jsonb(shape, r->old_values);
	}
	else
		nulls[4] = true;

	/* the rows that a log begins with come from no particular transaction */
	if (r->xid != 0)
		values[5] = Int64GetDatum((int64) r->xid);
	else
		nulls[5] = true;
}

void
ecm_log_cursor_rest(EcmLogCursor *cursor)
{
	if (!cursor->open)
		return;
	ecm_chunk_scan_end(&cursor->scan);
	if (cursor->completer != NULL)
		ecm_completer_end(cursor->completer);
	cursor->completer = NULL;
	MemoryContextDelete(cursor->chunk_context);
	pfree(cursor->reader.new_values);
	pfree(cursor->reader.old_values);
	cursor->open = false;
}

void
ecm_log_cursor_end(EcmLogCursor *cursor)
{
	ecm_log_cursor_rest(cursor);
	MemoryContextDelete(cursor->context);
}
