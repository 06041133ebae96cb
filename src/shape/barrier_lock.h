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
 * A transaction calls this before it changes what shapes are made of without a
 * lock on their tables, and before it looks for shapes that it makes void: a
 * schema's name (NamespaceRelationId, and which), a type (TypeRelationId,
 * likewise), or what is published of all tables, or below one
 * (PublicationRelationId, and 0 or the table).  In place of each, 0 stands for
 * all.  Until it is over, and be it prepared or waiting for a standby, barriers
 * (shape_barrier.c) wait for it: it does not see the shapes that they are for.
 */
extern void ecm_barrier_hold(Oid catalog, Oid object);

/* What these transactions hold, in RowExclusiveLock. */
extern void ecm_barrier_tag(LOCKTAG *tag, Oid catalog, Oid object);

#endif							/* ECM_BARRIER_LOCK_H */
