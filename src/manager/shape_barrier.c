/*-------------------------------------------------------------------------
 *
 * shape_barrier.c
 *	  Who was writing to a table at a moment, and who of them still is.
 *
 * A transaction that was writing when the table was published is half in the stream.
 * A snapshot that is taken while it runs does not see it, and half of its changes
 * would be missing from the shape.  So the snapshot is taken after all such
 * transactions have ended.
 *
 * The server's own WaitForLockers() does the same, but waits.  The manager must not
 * wait, so it notes who holds conflicting locks, without taking any, and asks now and
 * then who of them still runs.
 *
 * Not only writers matter.  A transaction that alters a type, the schema or a
 * publication and is not committed yet will change what the shape is.  Such commands
 * take no lock on the table, so our hooks take locks of their own (barrier_lock.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "base/bgworker.h"
#include "base/lock_holder.h"
#include "base/partition.h"
#include "manager/shape_barrier.h"
#include "shape/barrier_lock.h"

/* The argument of collect_writers(). */
typedef struct WritersWanted
{
	EcmBarrier *barrier;		/* to add them to */
	Oid			relation;
} WritersWanted;

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
 * Adds the transactions that hold a lock on this object which conflicts with SHARE, as
 * every writer's does.  Those of VACUUM conflict, too, and are left out: they write
 * nothing that a shape could miss, and may take hours.  So may an ANALYZE of
 * autovacuum.
 */
static void
collect_holders(EcmBarrier *barrier, const LOCKTAG *tag)
{
	int			n;
	VirtualTransactionId *vxids = GetLockConflicts(tag, ShareLock, &n);

	for (int i = 0; i < n; i++)
	{
		PGPROC	   *proc = ecm_vxid_process(vxids[i]);

		if (proc == NULL ||
			(proc->statusFlags & (PROC_IN_VACUUM | PROC_IS_AUTOVACUUM)) == 0)
			add_writer(barrier, vxids[i]);
	}
}

/*
 * Adds the transactions that have changed one of these objects of the catalog, or all
 * of that kind (InvalidOid), as told by our own locks.
 */
static void
collect_changers(EcmBarrier *barrier, Oid catalog, List *objects)
{
	LOCKTAG		tag;
	ListCell   *lc;

	foreach(lc, lcons_oid(InvalidOid, objects))
	{
		ecm_barrier_tag(&tag, catalog, lfirst_oid(lc));
		collect_holders(barrier, &tag);
	}
}

static void add_users_types(Oid relation, List **types);

/*
 * Adds a type, and the types that it is made of.  The server's own types are left out:
 * they don't change.
 */
static void
add_users_type(Oid type, List **types)
{
	Oid			relation;

	check_stack_depth();
	if (!OidIsValid(type))		/* of a column that was dropped */
		return;
	type = getBaseType(type);
	if (type < FirstNormalObjectId || list_member_oid(*types, type))
		return;
	*types = lappend_oid(*types, type);
	if (OidIsValid(get_element_type(type)))
		add_users_type(get_element_type(type), types);
	else if (get_typtype(type) == TYPTYPE_RANGE)
		add_users_type(get_range_subtype(type), types);
	else if (get_typtype(type) == TYPTYPE_MULTIRANGE)
		add_users_type(get_multirange_range(type), types);
	else if (OidIsValid(relation = get_typ_typrelid(type)))
		add_users_types(relation, types);
}

/*
 * Adds the types of a table's columns, or of a composite type's, and the types that
 * these are made of.  By the catalogs alone: a user may have the type locked.
 */
static void
add_users_types(Oid relation, List **types)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	int			natts;

	if (!HeapTupleIsValid(tuple))
		return;					/* it is gone, and the shape with it */
	natts = ((Form_pg_class) GETSTRUCT(tuple))->relnatts;
	ReleaseSysCache(tuple);
	for (int i = 1; i <= natts; i++)
		add_users_type(get_atttype(relation, i), types);
}

/*
 * In a transaction: collects all transactions that have the relation, a partition or
 * something that the relation is made of locked as a writer or a changer has.
 */
static void
collect_writers(void *arg)
{
	WritersWanted *wanted = arg;
	Oid			relation = wanted->relation;
	List	   *published = list_make1_oid(relation);
	List	   *types = NIL;
	LOCKTAG		tag;
	ListCell   *lc;

	foreach(lc, find_all_inheritors(relation, NoLock, NULL))
	{
		SET_LOCKTAG_RELATION(tag, MyDatabaseId, lfirst_oid(lc));
		collect_holders(wanted->barrier, &tag);
	}
	published = list_concat(published, ecm_partition_ancestors(relation));
	add_users_types(relation, &types);
	collect_changers(wanted->barrier, NamespaceRelationId,
					 list_make1_oid(get_rel_namespace(relation)));
	collect_changers(wanted->barrier, PublicationRelationId, published);
	if (types != NIL)
		collect_changers(wanted->barrier, TypeRelationId, types);
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
		appendStringInfoString(&text, i > 0 ? ", " : " ");
		ecm_append_holder(&text, barrier->writers[i]);
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
