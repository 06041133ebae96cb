/*-------------------------------------------------------------------------
 *
 * barrier_lock.h
 *	  The lock by which DDL makes the creation of shapes wait for it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_BARRIER_LOCK_H
#define ECM_BARRIER_LOCK_H

#include "postgres.h"

#include "storage/lock.h"

/*
 * To be called by a transaction before it changes something that shapes depend
 * on but that is not protected by a lock on their tables, and before it looks
 * for the shapes that its change invalidates. 'catalog' and 'object' say what
 * it changes: the name of a schema (NamespaceRelationId), a type
 * (TypeRelationId), or which tables are published (PublicationRelationId, and
 * a table if only that one and those below it are concerned).  Object 0 stands
 * for all.
 *
 * Such a transaction does not see shapes that are declared meanwhile.  So the
 * barrier (shape_barrier.c), which each shape's creation has to pass, waits
 * for the transaction until it is over, also if it is prepared, or its commit
 * waits for a standby.
 */
extern void ecm_barrier_hold(Oid catalog, Oid object);

/* The lock that these transactions hold, in mode RowExclusiveLock. */
extern void ecm_barrier_tag(LOCKTAG *tag, Oid catalog, Oid object);

#endif							/* ECM_BARRIER_LOCK_H */
