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

#include "shape/shape_chunk.h"
#include "shape/shape_log.h"

/* The entries gathered for one shape; zeroed at first. */
typedef struct EcmShapeBuffer
{
	int64		shape;
	int			ncolumns;
	bool		capturing;		/* not live yet: chunks carry their xid */
	bool		gone;			/* invalidated: its entries are dropped */

	List	   *complete;		/* chunks of complete upstream transactions */
	List	   *open;			/* ... of the one that is coming in */
	uint64		op_transaction; /* that next_op counts in, by our count */
	int64		next_op;
	EcmLogTotals totals;		/* running, of what was written ... */
	uint32		totals_epoch;	/* ... unless this is past: then unknown */
	int64		grown_bytes;	/* since the manager was told */
	uint64		touched;		/* the last commit that has entries of it */
} EcmShapeBuffer;

/* 'position': end of the last upstream transaction that was applied. */
extern void ecm_log_batch_init(int stack_index, int worker, XLogRecPtr position);

/* End of the last upstream transaction that was applied or gathered. */
extern XLogRecPtr ecm_log_batch_position(void);

/* An upstream transaction begins ('lsn': its commit record) ... */
extern void ecm_log_batch_begin(XLogRecPtr lsn, uint64 xid);

/*
 * Has the shape's log this transaction already, since it commits before
 * skip_until (see assign.c)?  And its transaction id, and LSN.
 */
extern bool ecm_log_batch_is_past(XLogRecPtr skip_until);
extern TransactionId ecm_log_batch_xid(void);
extern XLogRecPtr ecm_log_batch_lsn(void);

/* ... has an entry (both value arrays have the shape's columns) ... */
extern void ecm_log_batch_entry(EcmShapeBuffer *buffer, EcmOp op,
								const EcmValue *newv, const EcmValue *oldv);

/*
 * ... and is complete.  With 'orders' it is committed at once, by itself, and
 * orders() runs in the same local transaction.
 */
extern void ecm_log_batch_commit(XLogRecPtr end_lsn, void (*orders) (void));

/* The stream was lost: drop what is open, commit what is complete. */
extern void ecm_log_batch_reset(void);

/* Is there anything gathered, or not flushed, or not reported yet? */
extern bool ecm_log_batch_unsettled(void);

/*
 * Commits what is complete and flushes it; nothing is owed to anybody after
 * that, except a large transaction that is still coming in.
 */
extern void ecm_log_batch_settle(void);

/*
 * To be called before that: true if it has waited, for two milliseconds at
 * most, since others are writing and more is likely to have come in.
 */
extern bool ecm_log_batch_pace(void);

/* The next commit has something to tell those who wait for that shape's log. */
extern void ecm_log_batch_touch(int64 shape);

/*
 * Is a local transaction open between messages, for a large one, or because
 * somebody needed one?  It ends when what is gathered is committed, and before
 * the queue runs dry unless a large transaction is coming in.
 */
extern bool ecm_log_batch_in_transaction(void);
extern void ecm_log_batch_enter_transaction(void);

/*
 * After an ERROR outside of this file, within PG_CATCH, in a transaction that
 * ecm_log_batch_enter_transaction() was called in for this message: makes one of
 * what the error has spoilt.  The gathered entries stay, and those of a large
 * transaction that were written.
 */
extern void ecm_log_batch_recover(void);

/*
 * Nothing refers to any buffer any more: those that are gone may be freed.
 */
extern bool ecm_log_batch_is_empty(void);

/* Figures for the view; the caller counts changes itself. */
typedef struct EcmLogBatchFigures
{
	int			shapes;
	int64		changes;
} EcmLogBatchFigures;

extern EcmLogBatchFigures ecm_log_batch_figures;

#endif							/* ECM_LOG_BATCH_H */
