/*-------------------------------------------------------------------------
 *
 * shape_fate.c
 *	  Is a shape's row still there, once a given transaction is over?
 *
 * Orders to end shapes come as messages in the stream, and whoever reads the
 * WAL knows the prefix that makes a message an order.  So before a consumer
 * destroys anything, it looks into the catalog, whether the message's
 * transaction has deleted the shape's row.
 *
 * A commit can be decoded long before others can see it, if it waits for a
 * synchronous standby, and a consumer must not wait for that.  So the look is
 * one at all versions of the row, including those of transactions that are in
 * progress as far as snapshots tell.
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
#include "utils/lsyscache.h"
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

/* The top-level transaction of a transaction that may be a subtransaction. */
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
				fate.changed = true;	/* its new version, if any, counts */
				continue;
			}
			fate.in_doubt = true;
		}
		if (TransactionIdIsValid(maker) && topmost(maker) != fates->xid)
			continue;			/* not committed: the version before it counts */
		fate.exists = true;
		fate.owner = DatumGetObjectId(slot_getattr(fates->slot, SHAPE_OWNER, &isnull));
	}
	index_endscan(scan);
	return fate;
}

/*
 * If an update is committed between the look into the index and the look into
 * the heap, the scan may see neither version.  So if none was seen, a second
 * scan decides.
 */
EcmShapeFate
ecm_fate_of(EcmFates *fates, int64 id)
{
	EcmShapeFate fate = look(fates, id);

	return fate.exists || fate.changed ? fate : look(fates, id);
}

/*
 * The row of the note counts even if others can't see it yet because its
 * commit waits for a synchronous standby: the transaction is in the stream, so
 * it is committed.
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

bool
ecm_order_is_given(const char *table, int64 key, int number, TransactionId xid)
{
	Relation	rel = table_open(ecm_own_relid(table), AccessShareLock);
	Relation	index = index_open(ecm_own_relid(psprintf("%s_pkey", table)), AccessShareLock);
	AttrNumber	column = get_attnum(RelationGetRelid(rel), "order_xid");
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	int			nkeys = number > 0 ? 2 : 1;
	SnapshotData dirty;
	IndexScanDesc scan;
	ScanKeyData keys[2];
	bool		given = false;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(key));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(number));
	scan = ecm_index_beginscan(rel, index, &dirty, nkeys);
	index_rescan(scan, keys, nkeys, NULL, 0);
	while (!given && index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;
		Datum		who = slot_getattr(slot, column, &isnull);

		given = !isnull &&
			XidFromFullTransactionId(DatumGetFullTransactionId(who)) == xid;
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(rel, NoLock);
	return given;
}
