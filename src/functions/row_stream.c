/*-------------------------------------------------------------------------
 *
 * row_stream.c
 *	  Functions that return their rows one by one, as they make them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "nodes/execnodes.h"

#include "base/version.h"
#include "functions/row_stream.h"

Datum
ecm_stream_rows(FunctionCallInfo fcinfo, const EcmRowSource *source)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	FuncCallContext *context;
	Datum		stream;
	HeapTuple	row;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext old_context;
		TupleDesc	tupdesc;

		ecm_require_sql_fit();
		context = SRF_FIRSTCALL_INIT();
		old_context = MemoryContextSwitchTo(context->multi_call_memory_ctx);
		if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
			elog(ERROR, "return type must be a row type");
		context->user_fctx = source->begin(fcinfo, BlessTupleDesc(tupdesc));
		MemoryContextSwitchTo(old_context);
		RegisterExprContextCallback(rsinfo->econtext, source->end,
									PointerGetDatum(context->user_fctx));
	}

	context = SRF_PERCALL_SETUP();
	stream = PointerGetDatum(context->user_fctx);
	row = source->next(context->user_fctx);
	if (row != NULL)
		SRF_RETURN_NEXT(context, HeapTupleGetDatum(row));
	UnregisterExprContextCallback(rsinfo->econtext, source->end, stream);
	source->end(stream);
	SRF_RETURN_DONE(context);
}
