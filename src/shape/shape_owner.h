/*-------------------------------------------------------------------------
 *
 * shape_owner.h
 *	  What becomes of shapes when their owners go.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_OWNER_H
#define ECM_SHAPE_OWNER_H

#include "postgres.h"


/* Deletes the shapes of a role. */
extern void ecm_shapes_invalidate_owner(Oid owner, const char *reason);

/*
 * Gives a role's shapes to another role, as REASSIGN OWNED does with tables.
 * Shapes that the other role can't have are deleted.
 */
extern void ecm_shapes_reassign(Oid from, Oid to);

#endif							/* ECM_SHAPE_OWNER_H */
