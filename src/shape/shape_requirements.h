/*-------------------------------------------------------------------------
 *
 * shape_requirements.h
 *	  What a shape needs of its table: a key, a replica identity, columns.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_REQUIREMENTS_H
#define ECM_SHAPE_REQUIREMENTS_H

#include "postgres.h"

#include "access/attnum.h"
#include "nodes/bitmapset.h"
#include "nodes/pg_list.h"
#include "storage/lockdefs.h"
#include "utils/relcache.h"

/* Why a generated column can't be part of a shape. */
#define ECM_UNSTREAMED_DETAIL \
	"Generated columns are replicated only if they are stored, and by PostgreSQL 18 or later."

/* The columns of its table that a shape needs, as attribute numbers. */
typedef struct EcmShapeNeeds
{
	Bitmapset  *key;
	Bitmapset  *where;			/* the columns that the where clause refers to */
	Bitmapset  *columns;		/* the columns that the log has; NULL: not
								 * asked for */
} EcmShapeNeeds;

/* Adds the attribute numbers of columns; *missing is set if one is gone. */
extern Bitmapset *ecm_column_attnums(Oid relation, char **names, int nnames,
									 Bitmapset *attnums, bool *missing);

/* The index whose columns are the key of shapes of the table, if any. */
extern Oid	ecm_key_index(Relation rel);

/*
 * The leaves of the table that must get REPLICA IDENTITY FULL before a shape
 * can be made.  ERROR if there are any, and we may not set that.  The leaves
 * are locked in 'lockmode'; with NoLock nothing is waited for.
 * ecm_identity_commands() makes the ALTER TABLE commands for such leaves.
 */
extern List *ecm_leaves_to_alter(Oid relation, const EcmShapeNeeds *needs,
								 Oid owner, LOCKMODE lockmode);
extern char *ecm_identity_commands(List *leaves);

/*
 * ERROR if the table, or a partition of it, is unlogged, or if its UPDATE and
 * DELETE would fail once it is published; they are locked as above.
 */
extern void ecm_check_leaves(Oid relation, LOCKMODE lockmode);

/*
 * The column because of which UPDATE and DELETE of the table fail while it is
 * published with REPLICA IDENTITY FULL, as it is or may become; NULL: none.
 */
extern const char *ecm_column_against_full(Relation rel);

/* Opens a relation without a lock; NULL: it is gone. */
extern Relation ecm_open_unlocked(Oid relid);

/*
 * Puts the attribute numbers of an index's key columns into attnums, in the order
 * of the index, and returns their number.
 */
extern int	ecm_index_columns(Oid index, AttrNumber *attnums);

/*
 * The reason why the replica identity of 'leaf', a leaf of 'root' or that table
 * itself, does not suffice for the shape; NULL: it does.
 */
extern const char *ecm_identity_lacks(Relation leaf, Relation root,
									  const EcmShapeNeeds *needs);

#endif							/* ECM_SHAPE_REQUIREMENTS_H */
