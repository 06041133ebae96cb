/*-------------------------------------------------------------------------
 *
 * shape_fate.h
 *	  Is a shape's row still there, once a given transaction is over?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_FATE_H
#define ECM_SHAPE_FATE_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "utils/relcache.h"

/* What becomes of a shape's row. */
typedef struct EcmShapeFate
{
	bool		exists;			/* the row exists when the transaction is over */
	bool		changed;		/* the transaction updates or deletes the row */
	bool		in_doubt;		/* another transaction, which is in progress,
								 * does so, and may be rolled back */
	Oid			owner;			/* the shape's owner, if the row exists */
} EcmShapeFate;

/* State of looking at several shapes' rows. */
typedef struct EcmFates
{
	TransactionId xid;
	Relation	rel;
	Relation	index;
	TupleTableSlot *slot;
} EcmFates;

/*
 * Looks at shapes' rows as they are when transaction xid (invalid: none) is
 * over, on the assumption that it commits.  Others may not see its commit yet.
 * Within a transaction that has a snapshot. ecm_fates_begin() returns false,
 * only without 'wait', if the table of shapes is locked.
 */
extern bool ecm_fates_begin(EcmFates *fates, TransactionId xid, bool wait);
extern EcmShapeFate ecm_fate_of(EcmFates *fates, int64 id);
extern void ecm_fates_end(EcmFates *fates);

/*
 * Has transaction xid noted that the shape is lost: that it would have deleted
 * the shape, had its row not been locked?  Within a transaction that has a
 * snapshot.
 */
extern bool ecm_fate_is_lost(TransactionId xid, int64 id);

/*
 * Does one of our tables that tell of orders have a row of transaction xid
 * (order_xid), though its commit may not be visible yet?  Rows are found by the
 * first column of the primary key, or, unless 'number' is 0, by the first two.
 * Within a transaction that has a snapshot.
 */
extern bool ecm_order_is_given(const char *table, int64 key, int number, TransactionId xid);

#endif							/* ECM_SHAPE_FATE_H */
