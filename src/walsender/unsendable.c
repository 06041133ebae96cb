/*-------------------------------------------------------------------------
 *
 * unsendable.c
 *	  Rows that pgoutput can't send.
 *
 * A row may be legal and yet have no text form that fits in a message: a bytea
 * of 600 MB, several large columns together, the old and the new row of an
 * update.  Or a type's output function fails.  pgoutput raises an error then,
 * the walsender ends, and each one after it, at the same change; neither
 * deleting the row nor taking the table out of the publication helps, since
 * the change is in the WAL.
 *
 * So our walsender calls pgoutput by way of this.  A value that is too large to be
 * given to any reader is left out to begin with.  If pgoutput raises an error that
 * is the change's fault, the change is sent without its largest values, as if they
 * were TOASTed and unchanged; if that does not help, it is not sent at all.  A
 * message behind the change says so, and the shapes that want a missing value end
 * where the transaction commits.
 *
 * plugin/pgoutput.c is loaded in place of pgoutput, since dynamic_library_path of
 * this session leads to it first.  It loads the server's pgoutput and has its
 * callbacks wrapped by wrap_callbacks().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/bitmapset.h"
#include "replication/logical.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/stack_catalog.h"
#include "base/stream_message_io.h"
#include "walsender/unsendable.h"

/* A value that has no more than this is never left out. */
#define LARGE_BYTES			(1024 * 1024)

/* Values are left out until the rest has no more: the largest entry that can be read. */
#define SHORT_BYTES			(256 * 1024 * 1024)

/* A buffer that a large row has blown up beyond this is not kept. */
#define MAX_KEPT_BUFFER		(64 * 1024 * 1024)

static char *message_prefix;
static LogicalDecodeChangeCB send_change;	/* pgoutput's */
static LogicalDecodeMessageCB send_message;

/*
 * Is the change at fault?  Any other error ends the stream, and the manager sees it.
 */
static bool
is_unsendable(const ErrorData *edata)
{
	return ecm_error_fault(unpack_sql_state(edata->sqlerrcode), edata->message,
						   ECM_WORK_SEND) == ECM_FAULT_OF_IT;
}

/*
 * Has pgoutput send a change.  False: it has raised an error that is the change's
 * fault, which is logged; nothing was sent.  Any other error is raised again.
 */
static bool
try_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation rel,
		   ReorderBufferChange *change)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool ok = true;

	PG_TRY();
	{
		send_change(ctx, txn, rel, change);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		/*
		 * Without a subtransaction, relations that pgoutput has opened stay
		 * open until the end of the transaction, which decoding always
		 * aborts.
		 */
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (!is_unsendable(edata))
			PG_RE_THROW();
		FlushErrorState();
		ereport(LOG,
				(errmsg("a change of table \"%s\" can't be sent: %s",
						RelationGetRelationName(rel), edata->message)));
		FreeErrorData(edata);
		ok = false;
	}
	PG_END_TRY();
	if (!ok && ctx->out->maxlen > MAX_KEPT_BUFFER)
	{
		MemoryContextSwitchTo(GetMemoryChunkContext(ctx->out));
		pfree(ctx->out->data);
		initStringInfo(ctx->out);
	}
	MemoryContextSwitchTo(context);
	return ok;
}

/*
 * Bytes that the column's value has, uncompressed.  0: it is not sent anyway, or its
 * type has a fixed length.
 */
static Size
value_size(HeapTuple tuple, TupleDesc desc, int attnum)
{
	bool		isnull;
	Datum		value;

	if (tuple == NULL || TupleDescAttr(desc, attnum - 1)->attisdropped ||
		TupleDescAttr(desc, attnum - 1)->attlen != -1)
		return 0;
	value = heap_getattr(tuple, attnum, desc, &isnull);
	if (isnull || VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(value)))
		return 0;
	return toast_raw_datum_size(value);
}

/*
 * The column with the largest value, old and new row (either may be NULL) taken
 * together; 0: no value is larger than LARGE_BYTES.  *total: bytes of all values.
 */
static int
largest_column(HeapTuple a, HeapTuple b, TupleDesc desc, Size *total)
{
	Size		largest = LARGE_BYTES;
	int			attnum = 0;

	*total = 0;
	for (int i = 1; i <= desc->natts; i++)
	{
		Size		size = value_size(a, desc, i) + value_size(b, desc, i);

		*total += size;
		if (size <= largest)
			continue;
		largest = size;
		attnum = i;
	}
	return attnum;
}

/*
 * Makes the column's value a pointer to nowhere.  pgoutput takes that for a
 * value that was not changed, and does not follow it.
 */
static void
leave_out(HeapTuple tuple, TupleDesc desc, int attnum)
{
	union
	{
		char		pointer[TOAST_POINTER_SIZE];
		int32		align;
	}			nowhere;
	Datum		value = PointerGetDatum(nowhere.pointer);
	bool		isnull = false;

	if (value_size(tuple, desc, attnum) == 0)
		return;
	memset(&nowhere, 0, sizeof(nowhere));
	SET_VARTAG_EXTERNAL(nowhere.pointer, VARTAG_ONDISK);
	*tuple = *heap_modify_tuple_by_cols(tuple, desc, 1, &attnum, &value, &isnull);
}

/* Sends the message that the column's value ("": the whole change) was left out. */
static void
tell(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr lsn,
	 Relation rel, const char *column)
{
	EcmStreamMessage message = {.kind = ECM_MESSAGE_UNSENDABLE,
	.relation = RelationGetRelid(rel), .text = column};
	char	   *text = ecm_message_text(&message);

	send_message(ctx, txn, lsn, true, message_prefix, strlen(text), text);
}

/* Has a value of that type and size a text that no reader can be given? */
static bool
is_beyond_readers(Oid type, Size size)
{
	switch (type)
	{
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case JSONOID:
		case XMLOID:
			return size - VARHDRSZ > JENTRY_OFFLENMASK;
		case BYTEAOID:
			return (size - VARHDRSZ) * 2 > JENTRY_OFFLENMASK;
		default:
			return false;
	}
}

static Bitmapset *
add_beyond_readers(Bitmapset *columns, HeapTuple tuple, TupleDesc desc)
{
	Datum	   *values;
	bool	   *isnull;

	if (tuple == NULL || !HeapTupleHasExternal(tuple))
		return columns;
	values = palloc(sizeof(Datum) * desc->natts);
	isnull = palloc(sizeof(bool) * desc->natts);
	heap_deform_tuple(tuple, desc, values, isnull);
	for (int i = 0; i < desc->natts; i++)
		if (!isnull[i] && TupleDescAttr(desc, i)->attlen == -1 &&
			!TupleDescAttr(desc, i)->attisdropped &&
			!VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(values[i])) &&
			is_beyond_readers(TupleDescAttr(desc, i)->atttypid,
							  toast_raw_datum_size(values[i])))
			columns = bms_add_member(columns, i + 1);
	pfree(values);
	pfree(isnull);
	return columns;
}

/*
 * The columns whose values no reader can be given.  Walsender, manager and consumer
 * would each need memory for them in vain.
 */
static Bitmapset *
beyond_readers(ReorderBufferChange *change, TupleDesc desc)
{
	return add_beyond_readers(add_beyond_readers(NULL, ecm_change_new_tuple(change), desc),
							  ecm_change_old_tuple(change), desc);
}

/*
 * Sends a change without these columns, and if need be without its largest values,
 * one after the other; then tells which.  Restores the change.  False: it could not
 * be sent in any form, and nothing was told.
 */
static bool
send_without(Bitmapset *left_out, LogicalDecodingContext *ctx,
			 ReorderBufferTXN *txn, Relation rel, ReorderBufferChange *change)
{
	HeapTuple	newtup = ecm_change_new_tuple(change);
	HeapTuple	oldtup = ecm_change_old_tuple(change);
	TupleDesc	desc = RelationGetDescr(rel);
	HeapTupleData saved_new = {0};
	HeapTupleData saved_old = {0};
	bool		sent = false;
	int			attnum = -1;
	Size		total;

	if (newtup != NULL)
		saved_new = *newtup;
	if (oldtup != NULL)
		saved_old = *oldtup;
	while ((attnum = bms_next_member(left_out, attnum)) > 0)
	{
		if (newtup != NULL)
			leave_out(newtup, desc, attnum);
		if (oldtup != NULL)
			leave_out(oldtup, desc, attnum);
	}
	if (left_out != NULL)
		sent = try_change(ctx, txn, rel, change);
	while (!sent && (attnum = largest_column(newtup, oldtup, desc, &total)) > 0)
	{
		Size		rest;

		if (newtup != NULL)
			leave_out(newtup, desc, attnum);
		if (oldtup != NULL)
			leave_out(oldtup, desc, attnum);
		left_out = bms_add_member(left_out, attnum);
		(void) largest_column(newtup, oldtup, desc, &rest);
		if (rest <= SHORT_BYTES)
			sent = try_change(ctx, txn, rel, change);
	}
	if (newtup != NULL)
		*newtup = saved_new;
	if (oldtup != NULL)
		*oldtup = saved_old;

	attnum = -1;
	while (sent && (attnum = bms_next_member(left_out, attnum)) > 0)
		tell(ctx, txn, change->lsn, rel, NameStr(TupleDescAttr(desc, attnum - 1)->attname));
	return sent;
}

static void
change_cb(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation rel,
		  ReorderBufferChange *change)
{
	Bitmapset  *left_out = beyond_readers(change, RelationGetDescr(rel));
	MemoryContext context;
	MemoryContext work;

	if (likely(left_out == NULL && try_change(ctx, txn, rel, change)))
		return;
	work = AllocSetContextCreate(CurrentMemoryContext, "electric_cm unsendable",
								 ALLOCSET_SMALL_SIZES);
	context = MemoryContextSwitchTo(work);
	if (!send_without(left_out, ctx, txn, rel, change))
		tell(ctx, txn, change->lsn, rel, "");
	MemoryContextSwitchTo(context);
	MemoryContextDelete(work);
}

/*
 * Sends a logical message from the WAL, unless it looks like one that only a
 * walsender may send: such a one is never in the WAL, so this one is forged.
 */
static void
message_cb(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr lsn,
		   bool transactional, const char *prefix, Size size, const char *message)
{
	if (strcmp(prefix, message_prefix) == 0 &&
		ecm_message_is_walsenders(message, size))
		return;
	send_message(ctx, txn, lsn, transactional, prefix, size, message);
}

/* Called by our pgoutput, see plugin/pgoutput.c. */
static void
wrap_callbacks(OutputPluginCallbacks *callbacks)
{
	send_change = callbacks->change_cb;
	send_message = callbacks->message_cb;
	if (send_message == NULL)
		return;
	callbacks->change_cb = change_cb;
	callbacks->message_cb = message_cb;
}

/*
 * A dynamic_library_path that has the folder electric_cm of each folder first, then
 * the folders themselves, and at last the server's own, if the setting lacks it.
 */
static char *
library_path(void)
{
	StringInfoData path;
	char	   *rest = pstrdup(Dynamic_library_path);
	char	   *folder;

	initStringInfo(&path);
	while ((folder = strsep(&rest, ":")) != NULL)
		if (folder[0] != '\0')
			appendStringInfo(&path, "%s/electric_cm:", folder);
	appendStringInfo(&path, "%s%s$libdir", Dynamic_library_path,
					 Dynamic_library_path[0] != '\0' ? ":" : "");
	return path.data;
}

void
ecm_watch_unsendable(void)
{
	void	  **wrap = find_rendezvous_variable("electric_cm_output_plugin");

	if (message_prefix != NULL)
		return;
	message_prefix = MemoryContextStrdup(TopMemoryContext, ecm_message_prefix());
	*wrap = (void *) wrap_callbacks;
	SetConfigOption("dynamic_library_path", library_path(), PGC_SUSET, PGC_S_SESSION);
}
