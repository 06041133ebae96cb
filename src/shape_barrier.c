/*-------------------------------------------------------------------------
 *
 * shape_barrier.c
 *	  Who was writing to a table at a moment, and who of them still is.
 *
 * Asks, and never waits: the manager calls this.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/twophase.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "compat.h"
#include "shape.h"
#include "shape_barrier.h"
#include "worker.h"

/* What collect_writers() is asked for. */
typedef struct WritersWanted
{
	EcmBarrier *barrier;
	Oid			relation;
} WritersWanted;

/*
 * The process that runs a virtual transaction.  NULL if it has left it: a
 * prepared transaction keeps the number that it was prepared under, while its
 * former process goes on to others.
 */
static PGPROC *
vxid_holder(VirtualTransactionId vxid)
{
	PGPROC	   *proc = ecm_vxid_is_prepared(vxid) ? NULL : ecm_vxid_proc(vxid);

	return proc != NULL && ecm_proc_lxid(proc) == vxid.localTransactionId ?
		proc : NULL;
}

/*
 * Our own lock on an object: not the server's, which has another objsubid.  One
 * on the catalog of publications stands for what is published.
 */
#define HOLD_SUBID	1

static void
hold_object(Oid *class_id, Oid *object)
{
	if (OidIsValid(*class_id))
		return;
	*class_id = RelationRelationId;
	*object = PublicationRelationId;
}

void
ecm_barrier_hold(Oid class_id, Oid object)
{
	hold_object(&class_id, &object);
	LockDatabaseObject(class_id, object, HOLD_SUBID, RowExclusiveLock);
}

static void
add_writer(EcmBarrier *barrier, VirtualTransactionId vxid)
{
	if (barrier->nwriters >= barrier->max_writers)
	{
		barrier->max_writers = barrier->max_writers ? barrier->max_writers * 2 : 16;
		barrier->writers = barrier->writers ?
			repalloc(barrier->writers, barrier->max_writers * sizeof(VirtualTransactionId)) :
			MemoryContextAlloc(TopMemoryContext,
							   barrier->max_writers * sizeof(VirtualTransactionId));
	}
	barrier->writers[barrier->nwriters++] = vxid;
}

/*
 * "Without vacuums": a VACUUM conflicts with the lock mode, but writes nothing
 * that a shape could miss, and may take hours.  So may autovacuum's ANALYZE.
 */
static void
collect_holders(EcmBarrier *barrier, const LOCKTAG *tag)
{
	int			n;
	VirtualTransactionId *vxids = GetLockConflicts(tag, ShareLock, &n);

	for (int i = 0; i < n; i++)
	{
		PGPROC	   *proc = vxid_holder(vxids[i]);

		if (proc == NULL ||
			(proc->statusFlags & (PROC_IN_VACUUM | PROC_IS_AUTOVACUUM)) == 0)
			add_writer(barrier, vxids[i]);
	}
}

static void
collect_object(EcmBarrier *barrier, Oid class_id, Oid object)
{
	LOCKTAG		tag;

	hold_object(&class_id, &object);
	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, class_id, object, HOLD_SUBID);
	collect_holders(barrier, &tag);
}

/*
 * Everybody who holds a lock on the relation that a writer needs, or has
 * changed something else that matters to it.
 */
static void
collect_writers(void *arg)
{
	WritersWanted *wanted = arg;
	LOCKTAG		tag;
	ListCell   *lc;

	foreach(lc, find_all_inheritors(wanted->relation, NoLock, NULL))
	{
		SET_LOCKTAG_RELATION(tag, MyDatabaseId, lfirst_oid(lc));
		collect_holders(wanted->barrier, &tag);
	}
	foreach(lc, ecm_fit_types(wanted->relation))
		collect_object(wanted->barrier, TypeRelationId, lfirst_oid(lc));
	collect_object(wanted->barrier, NamespaceRelationId,
				   get_rel_namespace(wanted->relation));
	collect_object(wanted->barrier, InvalidOid, InvalidOid);
}

bool
ecm_barrier_start(EcmBarrier *barrier, Oid relation, EcmError *err)
{
	WritersWanted wanted = {barrier, relation};

	ecm_barrier_end(barrier);
	return ecm_worker_try(collect_writers, &wanted, err);
}

bool
ecm_barrier_poll(EcmBarrier *barrier)
{
	int			left = 0;

	for (int i = 0; i < barrier->nwriters; i++)
		if (!VirtualXactLock(barrier->writers[i], false))
			barrier->writers[left++] = barrier->writers[i];
	if (left == barrier->nwriters)
		return false;
	barrier->nwriters = left;
	return true;
}

char *
ecm_barrier_text(const EcmBarrier *barrier)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, "transactions that were writing to the table, or changing it:");
	for (int i = 0; i < barrier->nwriters && i < 8; i++)
	{
		VirtualTransactionId writer = barrier->writers[i];
		PGPROC	   *proc = vxid_holder(writer);
		bool		have_more;
		TransactionId xid;

		if (proc != NULL)
			appendStringInfo(&text, "%s PID %d", i ? "," : "", proc->pid);
		else
		{
			xid = ecm_vxid_is_prepared(writer) ? writer.localTransactionId :
				TwoPhaseGetXidByVirtualXID(writer, &have_more);
			appendStringInfo(&text, "%s prepared transaction %u", i ? "," : "", xid);
		}
	}
	if (barrier->nwriters > 8)
		appendStringInfo(&text, ", and %d more", barrier->nwriters - 8);
	return text.data;
}

void
ecm_barrier_end(EcmBarrier *barrier)
{
	if (barrier->writers != NULL)
		pfree(barrier->writers);
	barrier->writers = NULL;
	barrier->nwriters = barrier->max_writers = 0;
}
