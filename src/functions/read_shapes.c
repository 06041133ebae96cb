/*-------------------------------------------------------------------------
 *
 * read_shapes.c
 *	  electric_cm_shape_logs(): reads the logs of many shapes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "fmgr.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "functions/logs_stream.h"
#include "functions/reading_args.h"
#include "functions/row_stream.h"

PG_FUNCTION_INFO_V1(electric_cm_shape_logs);

static void *
stream_begin(FunctionCallInfo fcinfo, TupleDesc tupdesc)
{
	EcmLogsRequest request = {.part = ECM_LOGS_ALL};
	EcmLogsShape *shapes;
	EcmReadingArgs args;

	if (!RecoveryInProgress())	/* a standby may do without */
		ecm_require_shared();
	ecm_reading_args(fcinfo, &args);
	request.max_entries = ecm_max_entries_arg(fcinfo, 2);
	request.n = args.n;
	shapes = palloc0(Max(args.n, 1) * sizeof(EcmLogsShape));
	for (int i = 0; i < args.n; i++)
	{
		shapes[i].handle = args.handles[i];
		shapes[i].after = args.after[i];
	}
	request.shapes = shapes;
	return ecm_logs_stream_begin(&request, tupdesc);
}

static HeapTuple
stream_next(void *stream)
{
	return ecm_logs_stream_next(stream);
}

static void
stream_end(Datum stream)
{
	ecm_logs_stream_end((EcmLogsStream *) DatumGetPointer(stream));
}

/*
 * electric_cm_shape_logs(handles text[], after_offsets electric_cm_offset[],
 *						  max_entries int DEFAULT 10000)
 *	-> SETOF (handle text, log_offset electric_cm_offset, operation text, key text,
 *			  value jsonb, old_value jsonb, xid xid8)
 *
 * The entries of the shapes' logs, each after its offset, in the order of the stream, up to
 * an LSN that all these logs are complete to.  For each shape that has ended, or is errored,
 * or does not have the offset, there is a row 'ended', with sqlstate, message, detail and hint
 * in value; the others go on.  The last row is 'up-to-date', unless max_entries has left
 * something out: its offset can be passed for each of the handles.  Of a shape that is being
 * created there is nothing yet.
 *
 * max_entries: a transaction that does not fit any more is left out, unless it is the first
 * one; NULL: no limit.
 *
 * Errors: as ecm_reading_args(); 22023 max_entries is not above 0.
 */
Datum
electric_cm_shape_logs(PG_FUNCTION_ARGS)
{
	static const EcmRowSource source = {stream_begin, stream_next, stream_end};

	return ecm_stream_rows(fcinfo, &source);
}
