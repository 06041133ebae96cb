/*-------------------------------------------------------------------------
 *
 * shape_log.h
 *	  Scans over the chunks of a shape's log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_LOG_H
#define ECM_SHAPE_LOG_H

#include "postgres.h"

#include "access/genam.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/transam.h"
#include "access/xlogdefs.h"
#include "executor/tuptable.h"
#include "storage/lockdefs.h"
#include "utils/snapshot.h"

#include "shape/shape.h"
#include "shape/shape_chunk.h"

typedef struct EcmChunkScan
{
	Relation	rel;
	Relation	index;
	IndexScanDesc scan;
	ScanDirection direction;
	TupleTableSlot *slot;
	ScanKeyData bound[2];		/* referred to by the scan */
	MemoryContext context;		/* the index keeps things of its own here */

	/* the current chunk */
	XLogRecPtr	first_lsn;
	int64		first_op;
	int32		entries;
	FullTransactionId captured_xid; /* invalid: was not captured */
	EcmLogTotals totals;		/* this chunk included */
	Datum		data;			/* perhaps TOASTed */
} EcmChunkScan;

/*
 * Starts a scan over the chunks of a shape whose first offset compares as
 * 'strategy' says with (lsn, op): downwards for "less", upwards for "greater",
 * and upwards over all for InvalidStrategy.
 */
extern void ecm_chunk_scan_begin(EcmChunkScan *cs, int64 shape,
								 StrategyNumber strategy, uint64 lsn,
								 uint64 op, Snapshot snapshot,
								 LOCKMODE lockmode);
extern bool ecm_chunk_scan_next(EcmChunkScan *cs);
extern void ecm_chunk_scan_end(EcmChunkScan *cs);

/*
 * Goes to a chunk that the scan has met before, by its tuple's tts_tid; the
 * scan itself can't go on from there.  False: it isn't there.
 */
extern bool ecm_chunk_scan_fetch(EcmChunkScan *cs, ItemPointer tid);

/* Size of the current chunk's data, which is not fetched for it. */
extern int64 ecm_chunk_scan_bytes(const EcmChunkScan *cs);

/*
 * The offset of the current chunk's last entry.  A chunk that one entry has to
 * itself, which may be large, is not fetched for it.
 */
extern void ecm_chunk_scan_last(EcmChunkScan *cs, int64 shape, uint64 *lsn,
								uint64 *op);

/* Deletes it; false: somebody else has. */
extern bool ecm_chunk_scan_delete(EcmChunkScan *cs);

/*
 * Points a reader to the current chunk's bytes, which stay valid until the
 * scan moves on or the current memory context is reset.
 */
extern void ecm_chunk_scan_read(EcmChunkScan *cs, EcmChunkReader *reader,
								EcmValue *new_values, EcmValue *old_values,
								int max_values);

/*
 * How much a log may grow before it is looked at, and perhaps folded, in
 * bytes; 0: it need not be.  The constant is that of the default retention.
 */
#define ECM_RETENTION_AUTO_STEP		(INT64CONST(64) * 1024 * 1024)
extern int64 ecm_retention_step(void);

#endif							/* ECM_SHAPE_LOG_H */
