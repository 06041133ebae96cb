/*-------------------------------------------------------------------------
 *
 * shape_log.h
 *	  Writes, scans and deletes the chunks of shapes' logs.
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

#include "shape/shape_chunk.h"

/*
 * A chunk's data is cut so as not to exceed this, the most that is stored in
 * line, in a page of its own: 8160 bytes (toast_tuple_target, and a page's
 * maximum) less 24 for the tuple header, 56 for the other columns and 4 for
 * the length word.
 */
#define ECM_CHUNK_TARGET	8076

/* The size of a log or of some part of it. */
typedef struct EcmLogTotals
{
	int64		entries;
	int64		bytes;			/* of packed data */
} EcmLogTotals;

/* A chunk's row, but for its data and the running totals. */
typedef struct EcmLogChunk
{
	int64		shape;
	XLogRecPtr	first_lsn;		/* of its first entry ... */
	int64		first_op;
	int32		entries;
	FullTransactionId captured_xid; /* invalid: was not captured */
} EcmLogChunk;

/*
 * Inserts chunk tuples into _electric_cm.shape_log without logical decoding.
 * Needs an open transaction; one writer serves any number of chunks in it.
 * put adds the chunk to the running totals, and stores them with it; put_bytes
 * does so without making a copy.
 */
typedef struct EcmLogWriter EcmLogWriter;

extern EcmLogWriter *ecm_log_writer_begin(void);
extern void ecm_log_writer_put(EcmLogWriter *writer, const EcmLogChunk *chunk,
							   const char *data, Size len,
							   EcmLogTotals *totals);
extern void ecm_log_writer_put_bytes(EcmLogWriter *writer, const EcmLogChunk *chunk,
									 bytea *bytes, EcmLogTotals *totals);
extern void ecm_log_writer_end(EcmLogWriter *writer);

/*
 * An entry's op is a number in its lower half.  In the upper half, the rows
 * that a log begins with have an identity: two servers may make different ones
 * of the same log, and who has read half of the one must not go on in the
 * other.  Identities have the bit set that comes next to the sign; entries of
 * the stream don't.  Since all of the history that the first timeline has is
 * the same everywhere, snapshots that are taken in it have none.
 */
#define ECM_IDENTITY_SHIFT	32
#define ECM_IDENTITY_BIT	(UINT64CONST(1) << 30)
#define ecm_op_number(op)	((uint32) (uint64) (op))
#define ecm_op_is_base(op)	(((uint64) (op) >> ECM_IDENTITY_SHIFT & ECM_IDENTITY_BIT) != 0)

extern int64 ecm_new_base_identity(void);	/* an op with a new one, number 0 */
extern int64 ecm_new_snapshot_identity(void);

/* Collects rows in chunks: row n is an insert at <lsn>_<op + n>. */
typedef struct EcmRowPacker EcmRowPacker;

extern EcmRowPacker *ecm_row_packer_begin(EcmLogWriter *writer, int64 shape,
										  XLogRecPtr lsn, int64 op);
extern void ecm_row_packer_put(EcmRowPacker *packer, const EcmValue *values,
							   int nvalues);
extern int64 ecm_row_packer_end(EcmRowPacker *packer);	/* how many they were */

/* Where a log begins: see _electric_cm.shape_base. */
typedef struct EcmLogBase
{
	XLogRecPtr	lsn;
	int64		op;
	EcmLogTotals origin;
} EcmLogBase;

extern void ecm_log_base(int64 shape, Snapshot snapshot, EcmLogBase *base);

/* The offset of a log's last entry; false if it has none. */
extern bool ecm_log_last_offset(int64 shape, Snapshot snapshot, uint64 *lsn,
								uint64 *op);

/* The running totals of what the stream has brought, as of now. */
extern EcmLogTotals ecm_log_stream_totals(int64 shape);

/*
 * The size of a log, by two looks at its index: of its base, and of what has
 * come since.
 */
extern void ecm_log_sizes(int64 shape, const EcmLogBase *base, Snapshot snapshot,
						  EcmLogTotals *base_size, EcmLogTotals *stream_size);

/* Deletes all chunks of a shape in the current transaction; returns how many. */
extern int64 ecm_log_delete(int64 shape);

/*
 * Likewise up to *max_chunks, which becomes less by as many as are deleted, or
 * until this session has written WAL up to there (pgWalUsage.wal_bytes).
 * Returns whether there are no more.
 */
extern bool ecm_log_delete_some(int64 shape, int64 *max_chunks, uint64 wal_end);

/*
 * The captured chunks of a shape that is about to be live: deletes those whose
 * xid is visible in the snapshot (a pg_snapshot as text), keeps the others.
 * Returns what is to be taken off the stream's running totals from now on.
 */
extern EcmLogTotals ecm_log_settle_captured(int64 shape, const char *snapshot);

/* A scan over the chunks of a shape's log. */
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
