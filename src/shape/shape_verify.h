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
 * After tables have been altered: deletes those of their shapes, and of their
 * ancestors', that do not fit the tables any more, or has them resynced, if only their
 * columns have changed.  Returns the tables whose names differ from those in their
 * shapes' keys; the caller calls ecm_shapes_verify_names() for them at the commit, since
 * a table may get its old name back until then.
 *
 * resynced: tables whose shapes the same command has resynced, as they have got other
 * partitions.  These don't end if only a replica identity is not what they need.
 *
 * identities: tables whose replica identity the same command has set.  Others may lack
 * values that are TOASTed, of columns that have come since; see EcmShapeNeeds.
 */
extern List *ecm_shapes_verify(List *changed, List *resynced, List *identities);

/*
 * The same for all tables that have shapes, where it is not known what has changed:
 * shapes that don't fit their tables any more are deleted.
 */
extern void ecm_shapes_verify_all(void);

/*
 * Deletes the shapes of these tables, and of the tables in these schemas,
 * whose keys have another name than the table has now.
 */
extern void ecm_shapes_verify_names(List *tables, List *schemas);

/*
 * Have the shapes resynced, of those that consumers follow, whose table is not
 * published any more.
 *
 * ecm_shapes_verify_published() looks at the changed tables, and at the tables
 * below and above them.  It returns the tables below them that are not
 * published, and adds to *above the changed tables that these are below of.
 * The caller makes the creation of shapes below those wait for it
 * (ecm_barrier_hold()). ecm_shapes_verify_publication() looks at all tables
 * with shapes.
 */
extern List *ecm_shapes_verify_published(List *changed, List **above);
extern void ecm_shapes_verify_publication(void);

/*
 * Has the shapes resynced with a column of a type, or of a type that contains it,
 * because the values' texts are different from now on.  (Where clauses have none of users'
 * types.)  False: no table has such a column.  To be called again at the commit, after
 * ecm_barrier_hold(), for the shapes that other sessions have declared meanwhile.
 */
extern bool ecm_shapes_type_changed(Oid type, const char *reason);

/* Likewise at the commit: for those of tables that were not published for a while. */
extern void ecm_shapes_resync_unpublished(List *relids);

#endif							/* ECM_SHAPE_VERIFY_H */
