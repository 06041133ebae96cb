/*-------------------------------------------------------------------------
 *
 * shape_fate.h
 *	  Is a shape's row still there, or what is becoming of it?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_FATE_H
#define ECM_SHAPE_FATE_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "utils/relcache.h"

/* A shape's row, as far as is known. */
typedef struct EcmShapeFate
{
	bool		exists;			/* when that transaction is over */
	bool		changed;		/* it is one that changes the row, or deletes
								 * it */
	bool		in_doubt;		/* another one does, and may yet be undone */
	Oid			owner;			/* if it exists */
} EcmShapeFate;

typedef struct EcmFates
{
	TransactionId xid;
	Relation	rel;
	Relation	index;
	TupleTableSlot *slot;
} EcmFates;

/*
 * Looks at shapes' rows as they are once transaction xid (or invalid) has been
 * committed, though it may not be for others yet.  Within a transaction that
 * has a snapshot.  False, only without 'wait': the table is locked.
 */
extern bool ecm_fates_begin(EcmFates *fates, TransactionId xid, bool wait);
extern EcmShapeFate ecm_fate_of(EcmFates *fates, int64 id);
extern void ecm_fates_end(EcmFates *fates);

/*
 * Has transaction xid noted that it would have deleted the shape?  Within a
 * transaction that has a snapshot.
 */
extern bool ecm_fate_is_lost(TransactionId xid, int64 id);

#endif							/* ECM_SHAPE_FATE_H */
