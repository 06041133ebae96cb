/*-------------------------------------------------------------------------
 *
 * shape_fate.c
 *	  Is a shape's row still there, or what is becoming of it?
 *
 * Orders come in messages, and whoever reads the WAL knows the prefix that
 * makes a message an order.  So before anything is destroyed the catalog is
 * looked at.  A commit can be decoded long before others can see it, where it
 * waits for a synchronous standby, and nobody here may wait for that: the look
 * is one at the versions of the row, at those of transactions in progress as
 * well.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/subtrans.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "base/compat.h"
#include "base/table_writer.h"
#include "shape/shape_fate.h"

/* columns of _electric_cm.shape */
#define SHAPE_ID	1
#define SHAPE_OWNER	3

/* columns of _electric_cm.lost_shape */
#define LOST_SHAPE	1
#define LOST_XID	2

bool
ecm_fates_begin(EcmFates *fates, TransactionId xid, bool wait)
{
	Oid			relid = ecm_own_relid("shape");

	if (wait)
		LockRelationOid(relid, AccessShareLock);
	else if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return false;
	fates->xid = xid;
	fates->rel = table_open(relid, NoLock);
	list_free(RelationGetIndexList(fates->rel));	/* fills the next field */
	fates->index = index_open(fates->rel->rd_pkindex, AccessShareLock);
	fates->slot = table_slot_create(fates->rel, NULL);
	return true;
}

void
ecm_fates_end(EcmFates *fates)
{
	ExecDropSingleTupleTableSlot(fates->slot);
	index_close(fates->index, NoLock);
	table_close(fates->rel, NoLock);
}

/* The transaction that one which is in progress belongs to. */
static TransactionId
topmost(TransactionId xid)
{
	return TransactionIdPrecedes(xid, TransactionXmin) ? xid :
		SubTransGetTopmostTransaction(xid);
}

static EcmShapeFate
look(EcmFates *fates, int64 id)
{
	EcmShapeFate fate = {0};
	SnapshotData dirty;
	IndexScanDesc scan;
	ScanKeyData key;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, SHAPE_ID, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	scan = ecm_index_beginscan(fates->rel, fates->index, &dirty, 1);
	index_rescan(scan, &key, 1, NULL, 0);
	while (index_getnext_slot(scan, ForwardScanDirection, fates->slot))
	{
		TransactionId changer = dirty.xmax;
		TransactionId maker = dirty.xmin;
		bool		isnull;

		if (TransactionIdIsValid(changer))
		{
			if (topmost(changer) == fates->xid)
			{
				fate.changed = true;	/* to what it made of it, if anything */
				continue;
			}
			fate.in_doubt = true;
		}
		if (TransactionIdIsValid(maker) && topmost(maker) != fates->xid)
			continue;			/* the version that it was made from counts */
		fate.exists = true;
		fate.owner = DatumGetObjectId(slot_getattr(fates->slot, SHAPE_OWNER, &isnull));
	}
	index_endscan(scan);
	return fate;
}

/*
 * Where an update is committed between our look into the index and that into
 * the heap, neither version may be seen.
 */
EcmShapeFate
ecm_fate_of(EcmFates *fates, int64 id)
{
	EcmShapeFate fate = look(fates, id);

	return fate.exists || fate.changed ? fate : look(fates, id);
}

/*
 * The row may not be committed for others yet, where the commit waits for a
 * synchronous standby; that it is in the stream is enough.
 */
bool
ecm_fate_is_lost(TransactionId xid, int64 id)
{
	Relation	rel = table_open(ecm_own_relid("lost_shape"), AccessShareLock);
	Relation	index = index_open(ecm_own_relid("lost_shape_pkey"), AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	SnapshotData dirty;
	IndexScanDesc scan;
	ScanKeyData key;
	bool		lost = false;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, LOST_SHAPE, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	scan = ecm_index_beginscan(rel, index, &dirty, 1);
	index_rescan(scan, &key, 1, NULL, 0);
	while (!lost && index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;
		Datum		who = slot_getattr(slot, LOST_XID, &isnull);

		lost = XidFromFullTransactionId(DatumGetFullTransactionId(who)) == xid;
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(rel, NoLock);
	return lost;
}
