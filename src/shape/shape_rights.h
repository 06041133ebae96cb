/*-------------------------------------------------------------------------
 *
 * shape_rights.h
 *	  Who may read a shape.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_RIGHTS_H
#define ECM_SHAPE_RIGHTS_H

#include "postgres.h"

#include "nodes/bitmapset.h"

#include "shape/shape.h"

/*
 * May the role read these columns (an empty set: the whole table) of all rows
 * of the relation? ecm_check_may_read_columns() raises an ERROR that says why
 * not.
 */
extern bool ecm_may_read_columns(Oid relation, Oid role, const Bitmapset *attnums);
extern void ecm_check_may_read_columns(Oid relation, Oid role, const Bitmapset *attnums);

/* Has the role the rights on the table that a shape's owner must have? */
extern bool ecm_shape_may_read(const EcmShapeDef *shape, Oid role);

/* ERROR unless the current user is the shape's owner or a member of that role. */
extern void ecm_shape_check_owner(const EcmShapeDef *shape);

/*
 * ERROR unless the current user may read the shape: the user is its owner or a
 * member of that role, and both could select its rows by SQL now; or its owner
 * could, and has shared it with the user.
 */
extern void ecm_shape_check_read(const EcmShapeDef *shape);

/* The shape with that handle, checked likewise.  ERROR 42704: there is none. */
extern EcmShapeDef *ecm_readable_shape(const char *handle);

/* May the current user know of the shape: by that, or as one who watches the server? */
extern bool ecm_shape_may_know(int64 shape);

/* The role that is named, 'public' being everybody (InvalidOid).  ERROR 42704: there is none. */
extern Oid	ecm_grantee(const char *name);

/*
 * The owner shares the shape with a role, or does not any more.  ERROR if the current user, a
 * member of the owner's role, might not read it himself.
 */
extern void ecm_shape_grant(const EcmShapeDef *shape, Oid role);
extern void ecm_shape_revoke(const EcmShapeDef *shape, Oid role);

/* A role goes; or roles have gone, and shapes.  In ecm_spi_begin/end. */
extern void ecm_grants_delete_of(Oid role);
extern void ecm_grants_purge(void);

#endif							/* ECM_SHAPE_RIGHTS_H */
