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

/* The columns of its table that a shape needs, as attribute numbers. */
typedef struct EcmShapeNeeds
{
	Bitmapset  *key;
	Bitmapset  *where;			/* that the where clause refers to */
	Bitmapset  *columns;		/* that the log has */
} EcmShapeNeeds;

/* Adds the attribute numbers of columns; *missing is set if one is gone. */
extern Bitmapset *ecm_column_attnums(Oid relation, char **names, int nnames,
									 Bitmapset *attnums, bool *missing);

/* The index whose columns are the key of shapes of the table, if any. */
extern Oid	ecm_key_index(Relation rel);

/*
 * The table's leaves that must get REPLICA IDENTITY FULL before a shape can be
 * made; and the commands for that.  ERROR if it is not for us to do that.  The
 * leaves are locked as 'lockmode' says; with NoLock nothing is waited for.
 */
extern List *ecm_leaves_to_alter(Oid relation, const EcmShapeNeeds *needs,
								 Oid owner, LOCKMODE lockmode);
extern char *ecm_identity_commands(List *leaves);

/*
 * ERROR if a partition is unlogged; they are locked as above.
 */
extern void ecm_check_partitions(Oid relation, LOCKMODE lockmode);

/*
 * A relation without a lock, NULL if it is gone; the
 * attribute numbers of an index's key columns, in its order, and how many they
 * are; why the replica identity of a table, a leaf of 'root', is not enough for
 * the shape, or NULL.
 */
extern Relation ecm_open_unlocked(Oid relid);
extern int	ecm_index_columns(Oid index, AttrNumber *attnums);
extern const char *ecm_identity_lacks(Relation leaf, Relation root,
									  const EcmShapeNeeds *needs);

#endif							/* ECM_SHAPE_REQUIREMENTS_H */
