/*-------------------------------------------------------------------------
 *
 * log_batch.h
 *	  The consumer's writing side: gathers entries in chunks, and commits
 *	  them to the shape logs together with the consumer's progress.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_LOG_BATCH_H
#define ECM_LOG_BATCH_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "nodes/pg_list.h"

#include "base/clock.h"
#include "shape/shape_chunk.h"
#include "shape/shape_log.h"

/*
 * The entries gathered for one shape.  Zeroed at first; the owner (EcmShape) sets
 * shape, ncolumns, capturing and gone, log_batch.c all else.
 */
typedef struct EcmShapeBuffer
{
	int64		shape;
	int			ncolumns;
	bool		capturing;		/* not live yet: each upstream transaction
								 * gets chunks of its own, which carry its xid */
	bool		gone;			/* not followed any more: its entries are not
								 * written */

	/* chunks, not written yet; a non-empty list: the batch knows the buffer */
	List	   *complete;		/* of complete upstream transactions */
	List	   *open;			/* of the one that is coming in */

	/* the op of the next entry's offset, unless the change comes later */
	uint64		op_transaction; /* the transaction, by log_batch.c's count,
								 * that next_op counts in; another one: begin
								 * anew */
	int64		next_op;

	/* the log's running totals, as of what was written */
	EcmLogTotals totals;
	uint32		totals_epoch;	/* not log_batch.c's: totals are unknown, and
								 * read from the log before the next chunk */
	int64		grown_bytes;	/* written since the manager was last told */
	uint64		touched;		/* number of the last local commit that wakes
								 * the shape's readers */
} EcmShapeBuffer;

/*
 * At start.  'worker': this consumer's number.  'position': end of the last
 * upstream transaction that was applied, as the table of progress has it.
 */
extern void ecm_log_batch_init(int stack_index, int worker, XLogRecPtr position);

/* End of the last upstream transaction that was applied or gathered. */
extern XLogRecPtr ecm_log_batch_position(void);

/* An upstream transaction begins ('lsn': its commit record) ... */
extern void ecm_log_batch_begin(XLogRecPtr lsn, uint64 xid);

/*
 * Does the current upstream transaction commit before skip_until?  Then the
 * shape's log has it already, as another consumer wrote it (assign.c).  And the
 * transaction's xid, and the LSN of its commit record.
 */
extern bool ecm_log_batch_is_past(XLogRecPtr skip_until);
extern TransactionId ecm_log_batch_xid(void);
extern uint64 ecm_log_batch_full_xid(void);
extern XLogRecPtr ecm_log_batch_lsn(void);

/*
 * ... has a change, of which a shape may get so many entries ...  Their ops are those
 * of the change, the same in all logs, so that the entries of several logs can be put in
 * the order of the transaction.
 */
extern void ecm_log_batch_change(int entries);

/*
 * ... which is an entry of a log (both value arrays have the shape's columns; oldv may be NULL
 * for an update) ...  Values are copied.  If the transaction has become large, its
 * entries so far are written, in a local transaction that stays open ...
 */
extern void ecm_log_batch_entry(EcmShapeBuffer *buffer, EcmOp op,
								const EcmValue *newv, const EcmValue *oldv);

/*
 * ... and is complete; end_lsn: the end of its commit record.  Without 'orders' it
 * usually joins the batch, to be committed later together with others.  With
 * 'orders' it is committed at once, by itself, and orders() runs in the same local
 * transaction.
 */
extern void ecm_log_batch_commit(XLogRecPtr end_lsn, void (*orders) (void));

/*
 * The stream was lost: drops the transaction that was coming in, commits and
 * flushes the complete ones, and reports that.
 */
extern void ecm_log_batch_reset(void);

/* Is there anything gathered, or not reported yet, or to be flushed now? */
extern bool ecm_log_batch_unsettled(void);

/*
 * Commits what is complete and reports it, so that the consumer can sleep.  Only a
 * large transaction that is still coming in stays open.
 */
extern void ecm_log_batch_settle(void);

/* When what is committed has to be flushed at the latest; 0: all of it is flushed. */
extern EcmTime ecm_log_batch_deadline(void);

/*
 * To be called before ecm_log_batch_settle().  While a stream is busy, each settling
 * costs a local commit; so this waits for two milliseconds at most, and
 * returns true: look into the queue first, more is likely to have come.  False:
 * the stream is not busy, settle now.
 */
extern bool ecm_log_batch_pace(void);

/* The next local commit wakes the sessions that wait for this shape's log. */
extern void ecm_log_batch_touch(int64 shape);

/*
 * Is a local transaction open?  It may stay open over several messages: a large
 * transaction's own, or one that was entered for the sake of a where clause or a
 * catalog.  The latter ends when the batch is committed, at the latest when the
 * queue runs dry.
 */
extern bool ecm_log_batch_in_transaction(void);

/*
 * Opens a local transaction, unless one is open.  In a large transaction's own it
 * opens a subtransaction, so that an error of the caller's does not undo entries
 * that were written.  Keeps the current memory context.
 */
extern void ecm_log_batch_enter_transaction(void);

/*
 * In PG_CATCH, after ecm_log_batch_enter_transaction() was called for the same
 * message: rolls back what the error has aborted, and enters a new transaction or
 * subtransaction in its place.  Gathered entries stay, and those of a large
 * transaction that were written.
 */
extern void ecm_log_batch_recover(void);

/*
 * Is nothing gathered?  Then this file refers to no buffer, and buffers of shapes
 * that are gone may be freed.
 */
extern bool ecm_log_batch_is_empty(void);

/* Figures for the view of consumers, which others keep and this file reports. */
typedef struct EcmLogBatchFigures
{
	int			shapes;			/* that are followed */
	int64		changes;		/* looked at since the start of the process */
} EcmLogBatchFigures;

extern EcmLogBatchFigures ecm_log_batch_figures;

#endif							/* ECM_LOG_BATCH_H */
