/*-------------------------------------------------------------------------
 *
 * row_stream.h
 *	  Functions that return their rows one by one, as they make them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_ROW_STREAM_H
#define ECM_ROW_STREAM_H

#include "postgres.h"

#include "access/htup.h"
#include "access/tupdesc.h"
#include "fmgr.h"

typedef struct EcmRowSource
{
	/* makes the stream, in memory that lasts as long as that */
	void	   *(*begin) (FunctionCallInfo fcinfo, TupleDesc tupdesc);

	/* the next row, in the caller's memory; NULL: that was all */
	HeapTuple	(*next) (void *stream);

	/* also if the query ends before that; not after an ERROR */
	void		(*end) (Datum stream);
} EcmRowSource;

/* The whole of such a function; to be called for each row. */
extern Datum ecm_stream_rows(FunctionCallInfo fcinfo, const EcmRowSource *source);

#endif							/* ECM_ROW_STREAM_H */
