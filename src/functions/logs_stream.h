/*-------------------------------------------------------------------------
 *
 * logs_stream.h
 *	  Reads the logs of many shapes, in the order of the stream.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_LOGS_STREAM_H
#define ECM_LOGS_STREAM_H

#include "postgres.h"

#include "access/htup.h"
#include "access/tupdesc.h"

#include "shape/shape_chunk.h"

/* What is read. */
typedef enum EcmLogsPart
{
	ECM_LOGS_ALL,				/* up to a cut */
	ECM_LOGS_BASE,				/* of one shape, the rows that its log begins
								 * with */
	ECM_LOGS_UNTIL				/* of one shape, up to an offset */
} EcmLogsPart;

typedef struct EcmLogsShape
{
	char	   *handle;
	EcmOffset	after;
	bool		only_end;		/* nothing but whether it has ended */
	bool		is_lost;		/* it has, for this named reader */
} EcmLogsShape;

/*
 * for_reader: 'after' are positions that this server has kept for a named reader, and what
 * comes after rows that belong to no transaction is left to the next call, unless it is
 * more of these.  So an offset says exactly what a reader has had.
 */
typedef struct EcmLogsRequest
{
	int			n;
	const EcmLogsShape *shapes;
	EcmLogsPart part;
	EcmOffset	until;
	bool		for_reader;
	int			max_entries;	/* 0: no limit */
} EcmLogsRequest;

/*
 * Begins; the request's shapes, and the row type, have to stay until the end.  The next
 * row is made in the current memory context; NULL: that was all.  To be ended also if it
 * was not read to its end; not after an ERROR.
 */
typedef struct EcmLogsStream EcmLogsStream;

extern EcmLogsStream *ecm_logs_stream_begin(const EcmLogsRequest *request, TupleDesc tupdesc);
extern HeapTuple ecm_logs_stream_next(EcmLogsStream *stream);
extern void ecm_logs_stream_end(EcmLogsStream *stream);

/* Has the shape a log that can be read? */
extern bool ecm_logs_stream_is_readable(const EcmLogsStream *stream, int i);

#endif							/* ECM_LOGS_STREAM_H */
