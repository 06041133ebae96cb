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

/*
 * Makes the lock one of our own: the server's locks on such objects have
 * objsubid 0.
 */
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
