/*-------------------------------------------------------------------------
 *
 * partition.c
 *	  Which tables a table is a partition of.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/partition.h"
#include "utils/lsyscache.h"

#include "base/partition.h"

/* For what is no partition, the server's function has the parent of INHERITS. */
List *
ecm_partition_ancestors(Oid relation)
{
	return get_rel_relispartition(relation) ? get_partition_ancestors(relation) : NIL;
}
