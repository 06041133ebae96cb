/*-------------------------------------------------------------------------
 *
 * barrier_lock.c
 *	  The lock by which DDL makes the creation of shapes wait for it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lmgr.h"

#include "shape/barrier_lock.h"

/* Our own lock: the server's on such objects has no objsubid. */
#define HOLD_SUBID	1

void
ecm_barrier_hold(Oid catalog, Oid object)
{
	LockDatabaseObject(catalog, object, HOLD_SUBID, RowExclusiveLock);
}

void
ecm_barrier_tag(LOCKTAG *tag, Oid catalog, Oid object)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, catalog, object, HOLD_SUBID);
}
