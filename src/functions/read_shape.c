/*-------------------------------------------------------------------------
 *
 * read_shape.c
 *	  Reads a shape's log for SQL.
 *
 * A call is a sequence of looks, with waits in between until a look is good; then the
 * entries are returned, as the look has found them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/shmem.h"
#include "base/version.h"
#include "base/waiters.h"
#include "functions/await.h"
#include "functions/log_cursor.h"
#include "functions/offset_type.h"
#include "functions/reading_args.h"
#include "functions/row_stream.h"
#include "functions/shape_look.h"
#include "functions/wait_shape.h"
#include "shape/shape_gap.h"
#include "shape/shape_log.h"
#include "shape/shape_offset.h"
#include "shape/shape_rights.h"

/* How long electric_cm_shape_log() waits for a log to come up to the offset. */
#define NOT_YET_MS			5000

/* The part of a log that a caller asks for, and how. */
typedef struct LogRequest
{
	char	   *handle;
	EcmOffset	after;
	int			max_entries;	/* 0: all */
} LogRequest;

PG_FUNCTION_INFO_V1(electric_cm_shape_log);
PG_FUNCTION_INFO_V1(electric_cm_await_shape_log);
PG_FUNCTION_INFO_V1(electric_cm_shape_log_stats);

/* ----------------------------------------------------------------
 * Waiting
 * ----------------------------------------------------------------
 */

/* The reason why a shape that is being created has to wait, palloc'd. */
static char *
creation_waits_for(const EcmLook *look)
{
	char	   *waiting_for;

	if (RecoveryInProgress())
		return pstrdup("It comes from the primary.");
	waiting_for = ecm_creation_waiting_for(look->shape->id, look->shape->relation);
	if (waiting_for == NULL)
		return pstrdup("It waits for the stack to come to it in the stream.");
	return psprintf("It waits for: %s.", waiting_for);
}

/*
 * No time is left, and nothing was returned: ERROR if the shape is not live, or the log
 * does not come up to the offset.  Else an empty result is right.
 */
static void
check_in_time(const LogRequest *request, const EcmLook *look)
{
	if (!look->readable)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("timed out while waiting for shape \"%s\" to be created",
						request->handle),
				 errdetail_internal("%s", creation_waits_for(look)),
				 errhint("Call again to go on waiting.")));
	if (!look->cursor->known)
		ecm_offset_report_not_yet(request->handle, &request->after);
}

/*
 * Looks and waits until a look is good: the shape is live, and with for_entries there is
 * something to return; or until the time has passed.  Before each look but the first
 * one the session registers as a waiter (ecm_log_wait_prepare()), so that nothing
 * which is committed after the look is missed.
 */
static EcmLook *
await_good_look(const LogRequest *request, EcmLogWait *wait, bool for_entries)
{
	EcmLookRequest look_request = {.handle = request->handle, .after = request->after,
		.wait = for_entries ? ECM_LOOK_WILL_WAIT : ECM_LOOK_MAY_WAIT,
	.first_look = true};

	for (;; look_request.first_look = false)
	{
		EcmLook    *look;
		int64		shape;

		/*
		 * this needs a stack that runs; a log that is there can be read
		 * without
		 */
		if (for_entries || wait->shape != 0)
			ecm_log_wait_prepare(wait);

		/*
		 * Read before the snapshot is taken, so that the snapshot has what
		 * this says.  The statement's own may be older: then nothing is
		 * known.
		 */
		if (!look_request.first_look && !IsolationUsesXactSnapshot())
			look_request.logged_lsn = ecm_own_flushed_lsn();
		look = ecm_look_at_shape(&look_request);
		if (look->readable && (for_entries ? look->cursor->found : look->cursor->known))
			return look;

		/*
		 * Waiters are woken for what comes to the log, not for what shows
		 * that an offset can't be one of it: look again now and then.
		 */
		if (look->readable && !look->cursor->known)
		{
			if (wait->pause_ms == 0 && !wait->standby)
				wait->pause_ms = ECM_FIRST_PAUSE_MS;
			if (wait->timeout_ms < 0)
			{
				INSTR_TIME_SET_CURRENT(wait->began);
				wait->timeout_ms = NOT_YET_MS;
			}
		}

		/* only after the first look do we know which shape to wait for */
		shape = look->shape->id;
		if (wait->shape == shape && !ecm_log_wait_sleep(wait))
		{
			check_in_time(request, look);
			return look;
		}
		wait->shape = shape;
		ecm_look_end(look);
	}
}

/* timeout_ms -1: no limit for the creation of the shape. */
static EcmLook *
await_look(const LogRequest *request, int64 timeout_ms, bool for_entries)
{
	EcmLogWait	wait = {.timeout_ms = timeout_ms};
	EcmLook    *volatile look = NULL;

	INSTR_TIME_SET_CURRENT(wait.began);
	PG_TRY();
	{
		look = await_good_look(request, &wait, for_entries);
	}
	PG_CATCH();
	{
		ecm_waiters_leave();
		PG_RE_THROW();
	}
	PG_END_TRY();
	ecm_waiters_leave();
	return look;
}

/* ----------------------------------------------------------------
 * SQL functions
 * ----------------------------------------------------------------
 */

/*
 * The arguments that all reading functions have; max_entries is the one with
 * number max_entries_argno.
 */
static void
read_request(FunctionCallInfo fcinfo, LogRequest *request, int max_entries_argno)
{
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

	request->handle = text_to_cstring(PG_GETARG_TEXT_PP(0));
	request->after = ecm_datum_offset(PG_GETARG_DATUM(1));

	request->max_entries = ecm_max_entries_arg(fcinfo, max_entries_argno);
}

/*
 * Goes to the entry that is to be the n-th one returned, counted from 0; false: there is
 * none.  Not before it is asked for: it may be large.
 */
static bool
go_to_entry(EcmLogCursor *cursor, const LogRequest *request, int64 n)
{
	if (request->max_entries != 0 && n >= request->max_entries)
		return false;
	return n == 0 ? cursor->found : ecm_log_cursor_next(cursor);
}

/* How many entries are still to be returned; 0: all. */
static int64
entries_left(const LogRequest *request, int64 returned)
{
	return request->max_entries == 0 ? 0 : request->max_entries - returned;
}

/* The entries that a call of electric_cm_shape_log() goes on to return. */
typedef struct LogStream
{
	LogRequest	request;
	TupleDesc	tupdesc;
	EcmLook    *look;
	int64		returned;
} LogStream;

static void *
stream_begin(FunctionCallInfo fcinfo, TupleDesc tupdesc)
{
	LogStream  *stream = palloc0(sizeof(LogStream));

	stream->tupdesc = tupdesc;
	read_request(fcinfo, &stream->request, 2);
	stream->look = await_look(&stream->request, -1, false);
	return stream;
}

static HeapTuple
stream_next(void *arg)
{
	LogStream  *stream = arg;
	Datum		values[ECM_ENTRY_COLUMNS];
	bool		nulls[ECM_ENTRY_COLUMNS];

	if (!go_to_entry(stream->look->cursor, &stream->request, stream->returned))
		return NULL;
	ecm_log_cursor_row(stream->look->cursor, entries_left(&stream->request, stream->returned),
					   values, nulls);
	stream->returned++;
	return heap_form_tuple(stream->tupdesc, values, nulls);
}

static void
stream_end(Datum arg)
{
	ecm_look_end(((LogStream *) DatumGetPointer(arg))->look);
}

/*
 * electric_cm_shape_log(handle text, after_offset electric_cm_offset DEFAULT '-1',
 *						 max_entries int DEFAULT NULL)
 *	-> SETOF (log_offset electric_cm_offset, operation text, key text, value jsonb,
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
 * xid is the upstream transaction's, NULL for the rows that a log begins with.
 *
 * Errors: 22004 handle or after_offset is NULL; 22023 max_entries is not above 0; 42704 no such shape; EC001 the offset
 * is not one of its log, or not any more; 42501 the user may not read it; 55000
 * the shape could not be created, or it is being created and waiting for it is
 * impossible (this transaction is in its way; no stack that works), or the
 * server does not have the log up to the offset yet; XX001 the log is corrupt.
 */
Datum
electric_cm_shape_log(PG_FUNCTION_ARGS)
{
	static const EcmRowSource source = {stream_begin, stream_next, stream_end};

	return ecm_stream_rows(fcinfo, &source);
}

/*
 * electric_cm_await_shape_log(handle text, after_offset electric_cm_offset,
 *							   timeout interval DEFAULT '20 s',
 *							   max_entries int DEFAULT NULL)
 *	-> as electric_cm_shape_log()
 *
 * The same, but waits until there is something to return.  Nothing is
 * returned when the timeout has passed and the log has come up to the offset.
 *
 * Errors: as electric_cm_shape_log(), also if they come up while waiting;
 * 22023 the timeout is negative, NULL or above an hour; 57014 it has passed,
 * and the shape is still being created; 55000 in a transaction that has made
 * changes, holds a lock on the table, or is above READ COMMITTED, or if the
 * stack has failed or is stopped (not on a standby, where it never runs).
 */
Datum
electric_cm_await_shape_log(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext row_context;
	MemoryContext old_context;
	LogRequest	request;
	int64		timeout_ms;
	EcmLook    *look;

	ecm_require_sql_fit();
	read_request(fcinfo, &request, 3);
	timeout_ms = ecm_bounded_timeout_ms(PG_ARGISNULL(2) ? NULL :
										PG_GETARG_INTERVAL_P(2));
	InitMaterializedSRF(fcinfo, 0);
	look = await_look(&request, timeout_ms, true);
	row_context = AllocSetContextCreate(CurrentMemoryContext, "electric_cm entry",
										ALLOCSET_DEFAULT_SIZES);
	for (int64 n = 0; go_to_entry(look->cursor, &request, n); n++)
	{
		Datum		values[ECM_ENTRY_COLUMNS];
		bool		nulls[ECM_ENTRY_COLUMNS];

		old_context = MemoryContextSwitchTo(row_context);
		ecm_log_cursor_row(look->cursor, entries_left(&request, n), values, nulls);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		MemoryContextSwitchTo(old_context);
		MemoryContextReset(row_context);
	}
	MemoryContextDelete(row_context);
	ecm_look_end(look);
	return (Datum) 0;
}

/*
 * _electric_cm.shape_log_stats(shape int8, gap_lsn pg_lsn)
 *	-> (log_entries int8, log_bytes int8, last_offset electric_cm_offset,
 *		last_read_at timestamptz)
 *
 * A shape's log by its id: entries, bytes of packed data, the offset of the
 * last entry, NULL if there is none, and when it was last read, NULL if that
 * is not known.  What is stored counts, so for a shape that is being created
 * also what it may drop again.
 *
 * Errors: XX001 the last chunk is corrupt.
 */
Datum
electric_cm_shape_log_stats(PG_FUNCTION_ARGS)
{
	int64		shape = PG_GETARG_INT64(0);
	XLogRecPtr	gap_lsn = PG_ARGISNULL(1) ? InvalidXLogRecPtr : PG_GETARG_LSN(1);
	Snapshot	snapshot = GetActiveSnapshot();
	EcmLogBase	base;
	EcmLogTotals base_size;
	EcmLogTotals stream_size;
	TimestampTz read_at;
	uint64		lsn;
	uint64		op;
	TupleDesc	tupdesc;
	Datum		values[4] = {0};
	bool		nulls[4] = {false};

	ecm_require_sql_fit();
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (PG_ARGISNULL(0) || !ecm_shape_may_know(shape))
		PG_RETURN_NULL();
	tupdesc = BlessTupleDesc(tupdesc);

	ecm_log_base(shape, snapshot, &base);
	ecm_gap_log_sizes(shape, &base, snapshot, &base_size, &stream_size);
	values[0] = Int64GetDatum(base_size.entries + stream_size.entries);
	values[1] = Int64GetDatum(base_size.bytes + stream_size.bytes);

	nulls[2] = !ecm_log_last_offset(shape, gap_lsn, snapshot, &lsn, &op);
	if (!nulls[2])
	{
		EcmOffset	offset = {.lsn = lsn, .op = op};

		values[2] = ecm_offset_datum(&offset);
	}

	read_at = ecm_last_read(shape);
	nulls[3] = read_at == 0;
	values[3] = TimestampTzGetDatum(read_at);

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls)));
}
