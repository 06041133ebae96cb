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
 * member of that role, and both could select its rows by SQL now.
 */
extern void ecm_shape_check_read(const EcmShapeDef *shape);

#endif							/* ECM_SHAPE_RIGHTS_H */
