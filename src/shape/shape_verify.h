/*-------------------------------------------------------------------------
 *
 * shape_verify.h
 *	  Which shapes do not go with their tables any more?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_VERIFY_H
#define ECM_SHAPE_VERIFY_H

#include "postgres.h"

#include "nodes/pg_list.h"

/*
 * After tables have been altered: deletes their shapes, and those of their
 * ancestors, that don't go with them any more.  Returns the tables whose names
 * are not those that their shapes go by: that matters at the commit.
 */
extern List *ecm_shapes_verify(List *changed);

/* Deletes the shapes of these tables, and of those in the schemas, likewise. */
extern void ecm_shapes_verify_names(List *tables, List *schemas);

/*
 * Deletes the followed shapes of tables that are not published any more: of
 * these, and of what is below and above them; of all.  The first returns which
 * of those below it are, and sets *above to what they are below of: the others
 * are locked, so that nobody creates a shape.
 */
extern List *ecm_shapes_verify_published(List *changed, List **above);
extern void ecm_shapes_verify_publication(void);

/*
 * Deletes the shapes with a column whose type is this one, or has this one
 * inside; values of it look different from now on.  False: no column has it.
 */
extern bool ecm_shapes_invalidate_type(Oid type, const char *reason);

/*
 * At the commit, after ecm_barrier_hold(): those that others have declared
 * since; of tables that were not published for a while.
 */
extern void ecm_shapes_invalidate_type_of_others(Oid type, const char *reason);
extern void ecm_shapes_invalidate_unpublished_of_others(List *relids);

#endif							/* ECM_SHAPE_VERIFY_H */
