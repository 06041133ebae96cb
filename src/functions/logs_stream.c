/*-------------------------------------------------------------------------
 *
 * logs_stream.c
 *	  Reads the logs of many shapes, in the order of the stream.
 *
 * All logs are read in one snapshot, up to an LSN that all are complete to: what their
 * consumers have committed before the snapshot was taken, and the gap of a log that is
 * being resynced.  That is a consistent cut: of each transaction, all shapes have their
 * part, or none.
 *
 * Cursors are merged by a heap.  Most of them rest.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "lib/binaryheap.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "functions/log_cursor.h"
#include "functions/logs_stream.h"
#include "functions/offset_type.h"
#include "functions/shape_look.h"
#include "shape/shape_epoch.h"
#include "shape/shape_log.h"
#include "shape/shape_offset.h"

/* With more shapes than this, only the cursor that is read is kept open. */
#define MAX_OPEN_CURSORS	32

/* Columns of a row: the handle, and those of an entry. */
#define NCOLUMNS			(1 + ECM_ENTRY_COLUMNS)

/* One of the shapes. */
typedef struct Source
{
	const EcmLogsShape *asked;
	EcmLook    *look;			/* NULL: it has ended: */
	ErrorData  *ended;
} Source;

/* What a call goes on to return. */
struct EcmLogsStream
{
	MemoryContext context;		/* all of it */
	EcmLogsRequest request;
	Source	   *sources;
	TupleDesc	tupdesc;
	Snapshot	snapshot;		/* registered with 'owner' */
	ResourceOwner owner;

	EcmOffset	cut;			/* entries are returned up to there; lsn 0: no
								 * log has any of the stream */
	binaryheap *heap;			/* of sources whose cursors are at an entry */

	int			next_ended;		/* sources before this have been told of */
	int64		returned;
	EcmOffset	last;			/* offset of the last entry returned */
	Source	   *alone;			/* its rows belong to no transaction, and
								 * nothing else is returned after them */
	List	   *transaction;	/* rows of one that fits as a whole ... */
	int			next_in_transaction;	/* ... and which comes next */
	MemoryContext transaction_context;
	bool		is_cut;			/* something was left out */
	bool		done;
};

/* ----------------------------------------------------------------
 * Where to stop
 * ----------------------------------------------------------------
 */

/* Everything before the result is in the shape's log, as of the snapshot; invalid: not known. */
static XLogRecPtr
complete_until(const EcmShapeDef *shape, Snapshot snapshot, XLogRecPtr *applied, bool *looked_up)
{
	int			worker = shape->worker;

	if (worker < 0 || worker >= ECM_MAX_SHAPE_WORKERS)
		elog(ERROR, "shape \"%s\" is of consumer %d", shape->handle, worker);
	if (!looked_up[worker])
		applied[worker] = Max(applied[worker], ecm_stored_progress(worker, snapshot));
	looked_up[worker] = true;
	return Max(shape->skip_until, applied[worker]);
}

/*
 * The cut is bounded by those shapes, too, that are being created: or else one could become
 * live before it, as its consumer lags, and readers would seem to have had its rows.  If
 * its consumer has not begun with it, that will be later than now.
 */
static void
set_cut(EcmLogsStream *stream, XLogRecPtr *applied)
{
	bool		looked_up[ECM_MAX_SHAPE_WORKERS] = {false};
	XLogRecPtr	lsn = InvalidXLogRecPtr;

	for (int i = 0; i < stream->request.n; i++)
	{
		const EcmLook *look = stream->sources[i].look;
		XLogRecPtr	until;

		if (look == NULL || !look->shape->noted || stream->sources[i].asked->only_end)
			continue;
		until = complete_until(look->shape, stream->snapshot, applied, looked_up);
		if (until == InvalidXLogRecPtr)
			return;				/* not known yet */
		/* a transaction's offset is the beginning of its commit record */
		until--;
		if (look->readable && look->shape->state != ECM_SHAPE_LIVE)
			until = Min(until, look->shape->gap_lsn);
		lsn = lsn == InvalidXLogRecPtr ? until : Min(lsn, until);
	}
	if (lsn == InvalidXLogRecPtr)
		return;
	stream->cut.lsn = lsn;
	stream->cut.op = (uint64) ecm_epoch_cut_op(stream->snapshot, lsn);
}

/* Have all readers' offsets been passed?  Else one would be sent back. */
static bool
cut_is_beyond_all(const EcmLogsStream *stream)
{
	for (int i = 0; i < stream->request.n; i++)
	{
		const EcmOffset *after = &stream->sources[i].asked->after;

		if (stream->sources[i].look != NULL && !after->before_all &&
			ecm_offset_cmp(after->lsn, after->op, stream->cut.lsn, stream->cut.op) > 0)
			return false;
	}
	return stream->cut.lsn != 0;
}

/* ----------------------------------------------------------------
 * Beginning
 * ----------------------------------------------------------------
 */

/*
 * Does the error mean that this shape's log can't be read any more?  Who goes on without it
 * can't come back to it as a named reader: that is told only what stays so.
 */
static bool
is_end(const ErrorData *error, bool for_reader)
{
	if (error->sqlerrcode == ERRCODE_UNDEFINED_OBJECT ||
		error->sqlerrcode == ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE)
		return true;
	return !for_reader &&
		(error->sqlerrcode == ERRCODE_INSUFFICIENT_PRIVILEGE ||
		 error->sqlerrcode == ERRCODE_DATA_CORRUPTED ||
		 error->sqlerrcode == ECM_ERRCODE_OFFSET);
}

/* What a named reader is told of a shape that it has lost. */
static ErrorData *
lost(const char *handle)
{
	ErrorData  *error = palloc0(sizeof(ErrorData));

	error->sqlerrcode = ECM_ERRCODE_OFFSET;
	error->message = psprintf("the reader has lost shape \"%s\"", handle);
	error->detail = "What it had not acknowledged was more than electric_cm.reader_retention, and has been folded.";
	error->hint = "Drop the shape from the reader and add it again, in one call of electric_cm_alter_reader(); its rows then come in place of what has been read so far.";
	return error;
}

static void
look_at(EcmLogsStream *stream, Source *source)
{
	EcmLookRequest request = {.handle = source->asked->handle, .after = source->asked->after,
		.is_position = stream->request.for_reader,
	.wait = ECM_LOOK_NO_WAIT, .snapshot = stream->snapshot};
	MemoryContext context = CurrentMemoryContext;

	if (source->asked->is_lost)
	{
		source->ended = lost(source->asked->handle);
		return;
	}

	PG_TRY();
	{
		source->look = ecm_look_at_shape(&request);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		source->ended = CopyErrorData();
		if (!is_end(source->ended, stream->request.for_reader))
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
}

/*
 * The order of entries.  Rows that a log begins with, and what closes a gap, belong to no
 * transaction: those of one shape come together.
 */
static int
compare_sources(Datum a, Datum b, void *arg pg_attribute_unused())
{
	const Source *source_a = (const Source *) DatumGetPointer(a);
	const Source *source_b = (const Source *) DatumGetPointer(b);
	const EcmLogCursor *ca = source_a->look->cursor;
	const EcmLogCursor *cb = source_b->look->cursor;
	bool		stream_a = ecm_op_is_stream(ca->op);
	bool		stream_b = ecm_op_is_stream(cb->op);
	int			order;

	/* the heap has its greatest element first */
	if (ca->lsn != cb->lsn)
		return ca->lsn < cb->lsn ? 1 : -1;
	if (stream_a != stream_b)
		return stream_a ? 1 : -1;
	order = ca->lsn != 0 && stream_a ? ecm_offset_cmp(ca->lsn, ca->op, cb->lsn, cb->op) : 0;
	if (order != 0)
		return -order;
	return source_a < source_b ? 1 : -1;
}

/*
 * The snapshot to read all logs in, and what it surely has of each consumer: that was read
 * before the snapshot was taken, and no shape has changed hands meanwhile.
 */
static Snapshot
take_snapshot(ResourceOwner owner, XLogRecPtr *applied)
{
	if (IsolationUsesXactSnapshot())
		return RegisterSnapshotOnOwner(GetTransactionSnapshot(), owner);
	for (;;)
	{
		XLogRecPtr	later[ECM_MAX_SHAPE_WORKERS];
		uint64		assignments = ecm_own_applied_lsns(applied);
		Snapshot	snapshot = RegisterSnapshotOnOwner(GetLatestSnapshot(), owner);

		if (ecm_own_applied_lsns(later) == assignments)
			return snapshot;
		UnregisterSnapshotFromOwner(snapshot, owner);
		CHECK_FOR_INTERRUPTS();
	}
}

EcmLogsStream *
ecm_logs_stream_begin(const EcmLogsRequest *request, TupleDesc tupdesc)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "electric_cm logs",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	EcmLogsStream *stream = palloc0(sizeof(EcmLogsStream));
	XLogRecPtr	applied[ECM_MAX_SHAPE_WORKERS] = {0};

	stream->context = context;
	stream->request = *request;
	stream->tupdesc = tupdesc;
	stream->owner = CurrentResourceOwner;
	stream->snapshot = take_snapshot(stream->owner, applied);
	stream->sources = palloc0(Max(request->n, 1) * sizeof(Source));
	for (int i = 0; i < request->n; i++)
	{
		stream->sources[i].asked = &request->shapes[i];
		look_at(stream, &stream->sources[i]);
	}
	set_cut(stream, applied);

	stream->heap = binaryheap_allocate(Max(request->n, 1), compare_sources, NULL);
	for (int i = 0; i < request->n; i++)
	{
		EcmLook    *look = stream->sources[i].look;

		if (look != NULL && look->readable && look->cursor->found && !request->shapes[i].only_end)
			binaryheap_add_unordered(stream->heap, PointerGetDatum(&stream->sources[i]));
	}
	binaryheap_build(stream->heap);
	stream->transaction_context = AllocSetContextCreate(context, "electric_cm transaction",
														ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(old_context);
	return stream;
}

bool
ecm_logs_stream_is_readable(const EcmLogsStream *stream, int i)
{
	return stream->sources[i].look != NULL && stream->sources[i].look->readable;
}

void
ecm_logs_stream_end(EcmLogsStream *stream)
{
	for (int i = 0; i < stream->request.n; i++)
		if (stream->sources[i].look != NULL)
			ecm_look_end(stream->sources[i].look);
	if (stream->snapshot != NULL)
		UnregisterSnapshotFromOwner(stream->snapshot, stream->owner);
	MemoryContextDelete(stream->context);
}

/* ----------------------------------------------------------------
 * Rows
 * ----------------------------------------------------------------
 */

static void
put_member(EcmJsonbState *state, const char *name, const char *text)
{
	JsonbValue	key = {.type = jbvString};
	JsonbValue	value = {.type = jbvString};

	if (text == NULL)
		return;
	key.val.string.val = unconstify(char *, name);
	key.val.string.len = (int) strlen(name);
	value.val.string.val = unconstify(char *, text);
	value.val.string.len = (int) strlen(text);
	ecm_jsonb_push(state, WJB_KEY, &key);
	ecm_jsonb_push(state, WJB_VALUE, &value);
}

/* A shape that has ended: why, and what to do. */
static HeapTuple
ended_row(const EcmLogsStream *stream, const Source *source)
{
	Datum		values[NCOLUMNS] = {0};
	bool		nulls[NCOLUMNS];
	EcmJsonbState state = {0};

	memset(nulls, true, sizeof(nulls));
	values[0] = CStringGetTextDatum(source->asked->handle);
	values[2] = CStringGetTextDatum("ended");
	ecm_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	put_member(&state, "sqlstate", unpack_sql_state(source->ended->sqlerrcode));
	put_member(&state, "message", source->ended->message);
	put_member(&state, "detail", source->ended->detail);
	put_member(&state, "hint", source->ended->hint);
	ecm_jsonb_push(&state, WJB_END_OBJECT, NULL);
	values[4] = JsonbPGetDatum(JsonbValueToJsonb(state.result));
	nulls[0] = nulls[2] = nulls[4] = false;
	return heap_form_tuple(stream->tupdesc, values, nulls);
}

/* The last row, if nothing was left out: what the reader has then, and up to where. */
static HeapTuple
mark_row(const EcmLogsStream *stream, const char *mark, const char *handle, const EcmOffset *offset)
{
	Datum		values[NCOLUMNS] = {0};
	bool		nulls[NCOLUMNS];

	memset(nulls, true, sizeof(nulls));
	if (handle != NULL)
		values[0] = CStringGetTextDatum(handle);
	nulls[0] = handle == NULL;
	values[1] = ecm_offset_datum(offset);
	values[2] = CStringGetTextDatum(mark);
	nulls[1] = nulls[2] = false;
	return heap_form_tuple(stream->tupdesc, values, nulls);
}

static HeapTuple
last_row(const EcmLogsStream *stream)
{
	const EcmLogsRequest *request = &stream->request;
	const char *handle = request->n > 0 ? request->shapes[0].handle : NULL;

	switch (request->part)
	{
		case ECM_LOGS_ALL:
			return cut_is_beyond_all(stream) ? mark_row(stream, "up-to-date", NULL, &stream->cut) : NULL;

		case ECM_LOGS_BASE:
			if (stream->returned > 0)
				return mark_row(stream, "snapshot-end", handle, &stream->last);
			if (!request->shapes[0].after.before_all)
				return mark_row(stream, "snapshot-end", handle, &request->shapes[0].after);
			else
			{
				const EcmLogBase *base = &stream->sources[0].look->cursor->base;
				EcmOffset	offset = {.lsn = base->lsn, .op = (uint64) base->op};

				return mark_row(stream, "snapshot-end", handle, &offset);
			}

		case ECM_LOGS_UNTIL:
			return ecm_offset_cmp(stream->cut.lsn, stream->cut.op,
								  request->until.lsn, request->until.op) >= 0 ?
				mark_row(stream, "up-to-date", handle, &request->until) : NULL;
	}
	return NULL;				/* keep compiler quiet */
}

/* Is a cursor at an entry that may be returned?  Before there is a cut, none of the stream is. */
static bool
is_wanted(const EcmLogsStream *stream, const EcmLogCursor *cursor)
{
	const EcmLogsRequest *request = &stream->request;

	if (request->part == ECM_LOGS_BASE)
		return ecm_log_cursor_is_in_base(cursor);
	if (cursor->lsn != 0 &&
		ecm_offset_cmp(cursor->lsn, cursor->op, stream->cut.lsn, stream->cut.op) > 0)
		return false;
	return request->part == ECM_LOGS_ALL ||
		ecm_offset_cmp(cursor->lsn, cursor->op, request->until.lsn, request->until.op) <= 0;
}

/* The source of the next entry; NULL: there is none. */
static Source *
next_source(const EcmLogsStream *stream)
{
	Source	   *source;

	if (binaryheap_empty(stream->heap))
		return NULL;
	source = (Source *) DatumGetPointer(binaryheap_first(stream->heap));
	return is_wanted(stream, source->look->cursor) ? source : NULL;
}

/* Makes a row of a source's entry, and goes on in its log. */
static HeapTuple
take_entry(EcmLogsStream *stream, Source *source)
{
	EcmLogCursor *cursor = source->look->cursor;
	Datum		values[NCOLUMNS];
	bool		nulls[NCOLUMNS] = {false};
	HeapTuple	row;

	values[0] = CStringGetTextDatum(source->asked->handle);
	ecm_log_cursor_row(cursor, stream->request.max_entries == 0 ? 0 :
					   Max(stream->request.max_entries - stream->returned, 1), &values[1], &nulls[1]);
	row = heap_form_tuple(stream->tupdesc, values, nulls);
	if (ecm_log_cursor_next(cursor))
		binaryheap_replace_first(stream->heap, PointerGetDatum(source));
	else
		(void) binaryheap_remove_first(stream->heap);
	if (stream->request.n > MAX_OPEN_CURSORS && next_source(stream) != source)
		ecm_log_cursor_rest(cursor);
	return row;
}

static bool
is_at(const Source *source, const EcmOffset *offset)
{
	const EcmLogCursor *cursor = source->look->cursor;

	return cursor->lsn == offset->lsn && cursor->op == offset->op;
}

/*
 * Gathers the rows of the transaction that comes next, if they fit into what is left of
 * max_entries.
 */
static void
gather_transaction(EcmLogsStream *stream, uint64 lsn)
{
	MemoryContext old_context = MemoryContextSwitchTo(stream->transaction_context);
	bool		fits = true;
	Source	   *source;

	MemoryContextReset(stream->transaction_context);
	stream->transaction = NIL;
	stream->next_in_transaction = 0;
	while (fits && (source = next_source(stream)) != NULL && source->look->cursor->lsn == lsn &&
		   ecm_op_is_stream(source->look->cursor->op))
	{
		fits = stream->returned + list_length(stream->transaction) < stream->request.max_entries;
		if (fits)
			stream->transaction = lappend(stream->transaction, take_entry(stream, source));
	}
	MemoryContextSwitchTo(old_context);
	if (!fits)
		stream->transaction = NIL;
	stream->is_cut |= !fits;
}

/*
 * The next entry.  The first transaction is returned as far as max_entries goes, each
 * later one as a whole or not at all.  An entry of each shape that is at the same offset is
 * one change to all of them, and not cut.
 */
static HeapTuple
next_entry(EcmLogsStream *stream)
{
	bool		full = stream->request.max_entries > 0 && stream->returned >= stream->request.max_entries;
	Source	   *source = next_source(stream);
	bool		same_change;
	bool		same_transaction;
	bool		is_stream;

	if (source == NULL)
		return NULL;
	is_stream = ecm_op_is_stream(source->look->cursor->op) && source->look->cursor->lsn != 0;
	if (stream->alone != NULL && (is_stream || source != stream->alone))
	{
		stream->is_cut = true;
		return NULL;
	}
	same_transaction = stream->returned > 0 && is_stream &&
		source->look->cursor->lsn == stream->last.lsn && ecm_op_is_stream(stream->last.op);
	same_change = same_transaction && is_at(source, &stream->last);
	if (full && !same_change)
	{
		stream->is_cut = true;
		return NULL;
	}
	if (stream->request.max_entries > 0 && stream->returned > 0 && !same_transaction &&
		source->look->cursor->lsn != 0 && ecm_op_is_stream(source->look->cursor->op))
	{
		gather_transaction(stream, source->look->cursor->lsn);
		return NULL;
	}
	if (!is_stream && stream->request.for_reader)
		stream->alone = source;
	stream->last.lsn = source->look->cursor->lsn;
	stream->last.op = source->look->cursor->op;
	return take_entry(stream, source);
}

HeapTuple
ecm_logs_stream_next(EcmLogsStream *stream)
{
	HeapTuple	row;

	for (; stream->next_ended < stream->request.n; stream->next_ended++)
		if (stream->sources[stream->next_ended].ended != NULL)
			return ended_row(stream, &stream->sources[stream->next_ended++]);
	if (stream->done)
		return NULL;
	row = stream->next_in_transaction < list_length(stream->transaction) ? NULL : next_entry(stream);
	if (row == NULL && stream->next_in_transaction < list_length(stream->transaction))
		row = list_nth(stream->transaction, stream->next_in_transaction++);
	if (row != NULL)
	{
		stream->returned++;
		return row;
	}
	stream->done = true;
	return stream->is_cut ? NULL : last_row(stream);
}
