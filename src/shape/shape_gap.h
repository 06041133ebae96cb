/*-------------------------------------------------------------------------
 *
 * shape_gap.h
 *	  Gaps in logs: what happened to a table, and is not in the log.
 *
 * A gap has one LSN: what committed up to there may be in the log, and what
 * committed since is not.  The shape is captured from a later point on, as one that
 * is being created.  Meanwhile its log is compared with the table, and what differs
 * is written at the LSN of the gap, behind all that the stream has brought and before
 * all that it will bring.  Readers have it at once, when the shape is live again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_GAP_H
#define ECM_SHAPE_GAP_H

#include "postgres.h"

#include "utils/snapshot.h"

#include "shape/shape_log.h"

/*
 * What has been written to close gaps after the offset (lsn, op) of a log, up to the
 * LSN up_to: the running totals do not count that.
 */
extern EcmLogTotals ecm_gap_totals(int64 shape, XLogRecPtr lsn, int64 op, XLogRecPtr up_to,
								   Snapshot snapshot);

/* As ecm_log_sizes(), with what has been written to close gaps among the stream's. */
extern void ecm_gap_log_sizes(int64 shape, const EcmLogBase *base, Snapshot snapshot,
							  EcmLogTotals *base_size, EcmLogTotals *stream_size);

/* The gaps that were closed with a message "live". */
typedef struct EcmClosedGaps
{
	int			n;				/* shapes */
	int64		compared;		/* rows of all of them */
	int64		differing;
	char	   *handle;			/* of the first one */
	char	   *reason;			/* of that one's gap */
} EcmClosedGaps;

/*
 * Notes that the gaps of some shapes (int8[]) are closed, before their state says so.
 * The texts are the current context's.
 */
extern void ecm_gaps_close(Datum shapes, EcmClosedGaps *closed);

/* Counts rows that were compared for shapes, and what was written for them. */
typedef struct EcmGapCount
{
	int64		shape;
	XLogRecPtr	gap_lsn;
	int64		compared;
	EcmLogTotals written;
} EcmGapCount;

extern void ecm_gaps_count(const EcmGapCount *counts, int n);

/*
 * Begins a gap in the logs of all shapes, while no stream runs, at the end of WAL.  Within
 * ecm_spi_begin/end.  Returns their number.
 */
extern int	ecm_gaps_begin_all(const char *reason);

/*
 * For a consumer: begins one in the logs of some shapes (int8[]) at an LSN, as a
 * transaction has ordered.  That has noted the order in shape_gap; if the consumer gives
 * it to itself, it notes that.
 */
extern void ecm_gaps_begin(Datum shapes, XLogRecPtr lsn, uint64 xid);
extern void ecm_gaps_note(Datum shapes, uint64 xid, const char *reason);

#endif							/* ECM_SHAPE_GAP_H */
