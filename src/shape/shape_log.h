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

#include "shape/offset_epoch.h"
#include "shape/shape_chunk.h"

/*
 * The largest size of a chunk's data (bytes), unless a single entry is larger.
 * It is the most that is stored in line, in a page of its own: 8160
 * (toast_tuple_target, and a page's maximum) less 24 for the tuple header, 56
 * for the other columns and 4 for the length word.
 */
#define ECM_CHUNK_TARGET	8076

/* The size of a log or of some part of it. */
typedef struct EcmLogTotals
{
	int64		entries;
	int64		bytes;			/* of packed data */
} EcmLogTotals;

/* A chunk's row, except its data and the running totals. */
typedef struct EcmLogChunk
{
	int64		shape;
	XLogRecPtr	first_lsn;		/* offset of its first entry */
	int64		first_op;
	int32		entries;
	FullTransactionId captured_xid; /* transaction of its entries, which were
									 * captured while the shape was being
									 * created; invalid: they were not */
} EcmLogChunk;

/*
 * Inserts chunks into _electric_cm.shape_log without logical decoding.  Needs
 * an open transaction; one writer serves any number of chunks in it. put adds
 * the chunk to the running totals of its log, and stores the totals with it.
 * put_bytes does the same without copying the data.
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
 * An offset's op has a number in its lower half.  The upper half says what kind of
 * entry it is.  At the same LSN, entries come in this order:
 *
 *	 bits 63, 62, 61	bits 60 to 32
 *	 0 0 0				epoch			an entry of the stream
 *	 0 0 1				random			what closes a gap (see shape_gap.h)
 *	 0 1				random (30 bits)	a row that the log begins with
 *
 * An epoch is the number of a failover that the logs have survived (shape_epoch.h), 0
 * before the first one.  The sign, bit 63, is never set: op is an int8 in SQL.
 *
 * For the rows that a log begins with (its base), the upper half is an identity: two
 * servers, such as a primary and a promoted standby, may make different bases of the
 * same log, with the rows in another order, and a reader who has read half of one base
 * must not go on in the other.  Snapshots that are taken in the first timeline have no
 * identity, but 0, since there all servers have the same history.
 */
#define ECM_IDENTITY_SHIFT	32
#define ECM_IDENTITY_BIT	(UINT64CONST(1) << 30)
#define ECM_DIFFERENCE_BIT	(UINT64CONST(1) << ECM_EPOCH_BITS)
#define ecm_op_number(op)	((uint32) (uint64) (op))
#define ecm_op_is_base(op)	(((uint64) (op) >> ECM_IDENTITY_SHIFT & ECM_IDENTITY_BIT) != 0)

/* Above all entries of the stream, below all of a base. */
#define ECM_FIRST_DIFFERENCE	(ECM_DIFFERENCE_BIT << ECM_IDENTITY_SHIFT)
#define ecm_op_is_stream(op)	((uint64) (op) < ECM_FIRST_DIFFERENCE)

/*
 * The offset of a cut through many logs, with the last number that there is: it comes
 * after all entries of the stream up to its LSN, included, and no entry has it.
 */
#define ECM_CUT_NUMBER		PG_UINT32_MAX
#define ecm_op_is_cut(op)	(ecm_op_is_stream(op) && ecm_op_number(op) == ECM_CUT_NUMBER)

/* A number that no other server has. */
extern uint32 ecm_random_identity(void);

/* An op with a new identity, and number 0: for a fold, for a snapshot, for a gap. */
extern int64 ecm_new_base_identity(void);
extern int64 ecm_new_snapshot_identity(void);
extern int64 ecm_new_difference_identity(void);

/* Collects rows in chunks: row n is an insert at <lsn>_<op + n>. */
typedef struct EcmRowPacker EcmRowPacker;

extern EcmRowPacker *ecm_row_packer_begin(EcmLogWriter *writer, int64 shape,
										  XLogRecPtr lsn, int64 op);

/*
 * For the rows that a log begins with: goes on behind those that it has already, in
 * their identity and running totals.
 */
extern EcmRowPacker *ecm_row_packer_resume(EcmLogWriter *writer, int64 shape);
extern void ecm_row_packer_put(EcmRowPacker *packer, const EcmValue *values,
							   int nvalues);

/*
 * For what closes a gap: goes on behind what was written for it, and does not move the
 * log's running totals.  put_change writes an entry of any kind; n_old may be 0.
 */
extern EcmRowPacker *ecm_row_packer_close_gap(EcmLogWriter *writer, int64 shape,
											  XLogRecPtr gap_lsn);
extern void ecm_row_packer_put_change(EcmRowPacker *packer, EcmOp op,
									  const EcmValue *new_values, int n_new,
									  const EcmValue *old_values, int n_old);

/* Ends it; adds what was written. */
extern void ecm_row_packer_end_gap(EcmRowPacker *packer, EcmLogTotals *written);

/* The number of rows, and the bytes so far, of those before included. */
extern int64 ecm_row_packer_end(EcmRowPacker *packer);
extern int64 ecm_row_packer_bytes(const EcmRowPacker *packer);

/*
 * Likewise, for rows that are written in several transactions: go_on begins
 * behind those that totals count, and pause ends, and adds those written since.
 */
extern EcmRowPacker *ecm_row_packer_go_on(EcmLogWriter *writer, int64 shape,
										  XLogRecPtr lsn, int64 op,
										  const EcmLogTotals *totals);
extern void ecm_row_packer_pause(EcmRowPacker *packer, EcmLogTotals *totals);

/* Where a log begins: its row in _electric_cm.shape_base. */
typedef struct EcmLogBase
{
	XLogRecPtr	lsn;			/* entries up to this offset have been folded;
								 * 0_0: none, the log begins with its snapshot */
	int64		op;
	EcmLogTotals origin;		/* running totals of the stream up to there */
} EcmLogBase;

extern void ecm_log_base(int64 shape, Snapshot snapshot, EcmLogBase *base);

/*
 * The offset of a log's last entry, before the gap (invalid: there is none); false
 * if it has none.
 */
extern bool ecm_log_last_offset(int64 shape, XLogRecPtr gap_lsn, Snapshot snapshot,
								uint64 *lsn, uint64 *op);

/*
 * The running totals of a log's entries of the stream, as of now; up to an LSN,
 * included.
 */
extern EcmLogTotals ecm_log_stream_totals(int64 shape, XLogRecPtr up_to);

/* Bytes of the stream between a log's base and an LSN, included; 0 if that is in the base. */
extern int64 ecm_log_stream_bytes(int64 shape, const EcmLogBase *base, XLogRecPtr up_to,
								  Snapshot snapshot);

/*
 * The sizes of a log's base and of its entries since.  Costs two look-ups in
 * the index, by the running totals of chunks.
 */
extern void ecm_log_sizes(int64 shape, const EcmLogBase *base, Snapshot snapshot,
						  EcmLogTotals *base_size, EcmLogTotals *stream_size);

/* The number of rows of the snapshot that a log begins with; and deletes them. */
extern int64 ecm_log_base_rows(int64 shape);
extern void ecm_log_delete_base(int64 shape);

/* Deletes what the stream has brought from an LSN on. */
extern void ecm_log_delete_from(int64 shape, XLogRecPtr lsn);

/* Deletes what comes after a gap: an attempt to close it has failed. */
extern void ecm_log_delete_after_gap(int64 shape, XLogRecPtr gap_lsn);

/* Deletes all chunks of a shape in this transaction; returns their number. */
extern int64 ecm_log_delete(int64 shape);

/*
 * Likewise, but no more than *max_chunks, from which the number of deleted
 * chunks is subtracted, and only until pgWalUsage.wal_bytes of this session
 * reaches wal_end.  Returns true if no chunks are left.
 */
extern bool ecm_log_delete_some(int64 shape, int64 *max_chunks, uint64 wal_end);

/* A scan over the chunks of a shape's log. */
typedef struct EcmChunkScan
{
	Relation	rel;
	Relation	index;
	IndexScanDesc scan;
	ScanDirection direction;
	TupleTableSlot *slot;
	ScanKeyData keys[2];
	ScanKeyData bound[2];		/* the scan points here */
	bool		one_base;		/* the rows of bases behind base_lsn are
								 * skipped */
	XLogRecPtr	base_lsn;
	MemoryContext context;		/* memory of the index scan */

	/* the current chunk */
	XLogRecPtr	first_lsn;
	int64		first_op;
	int32		entries;
	FullTransactionId captured_xid; /* invalid: was not captured */
	EcmLogTotals totals;		/* running totals, this chunk included */
	Datum		data;			/* may be TOASTed */
} EcmChunkScan;

/*
 * Starts a scan over those chunks of a shape whose first offset compares to
 * (lsn, op) as 'strategy' says.  With "less" strategies the scan goes
 * downwards, with "greater" ones upwards; with InvalidStrategy upwards over
 * all chunks.
 */
extern void ecm_chunk_scan_begin(EcmChunkScan *cs, int64 shape,
								 StrategyNumber strategy, uint64 lsn,
								 uint64 op, Snapshot snapshot,
								 LOCKMODE lockmode);
extern bool ecm_chunk_scan_next(EcmChunkScan *cs);
extern void ecm_chunk_scan_end(EcmChunkScan *cs);

/*
 * For all who read a log from its base, which is at base_lsn: the scan passes
 * over the rows of the next one, which a fold is writing, or could not go on
 * writing.  Not for scans with InvalidStrategy.
 */
extern void ecm_chunk_scan_one_base(EcmChunkScan *cs, XLogRecPtr base_lsn);

/*
 * Makes a chunk that the scan has met before, by its tuple's tts_tid, the
 * current one.  The scan goes on where it was, not from that chunk.  False:
 * there is no such tuple.
 */
extern bool ecm_chunk_scan_fetch(EcmChunkScan *cs, ItemPointer tid);

/* Size of the current chunk's data, without fetching TOASTed data. */
extern int64 ecm_chunk_scan_bytes(const EcmChunkScan *cs);

/*
 * The offset of the current chunk's last entry.  The data of a chunk that has
 * one entry only, and may be large, is not fetched for that.
 */
extern void ecm_chunk_scan_last(EcmChunkScan *cs, int64 shape, uint64 *lsn,
								uint64 *op);

/* Deletes the current chunk; false: somebody else has done so. */
extern bool ecm_chunk_scan_delete(EcmChunkScan *cs);

/*
 * Points a reader to the current chunk's bytes, which stay valid until the
 * scan moves on or the current memory context is reset.
 */
extern void ecm_chunk_scan_read(EcmChunkScan *cs, EcmChunkReader *reader,
								EcmValue *new_values, EcmValue *old_values,
								int max_values);

/*
 * The number of bytes by which a log may grow before it is looked at again, to
 * be folded if need be; 0: logs are never folded.  The constant applies with
 * the default retention.
 */
#define ECM_RETENTION_AUTO_STEP		(INT64CONST(64) * 1024 * 1024)
extern int64 ecm_retention_step(void);

#endif							/* ECM_SHAPE_LOG_H */
