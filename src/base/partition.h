/*-------------------------------------------------------------------------
 *
 * partition.h
 *	  Which tables a table is a partition of, and what its own partitions are.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_PARTITION_H
#define ECM_PARTITION_H

#include "postgres.h"

#include "nodes/pg_list.h"

/*
 * The OIDs of the tables that it is a partition of, the nearest first.  NIL, so
 * nobody may rely on there being one: it is no partition, it was dropped, or it
 * is being detached, while pg_class still calls it a partition.
 */
extern List *ecm_partition_ancestors(Oid relation);

/* The table's size in bytes, with its partitions.  Leaves no locks behind. */
extern int64 ecm_table_bytes(Oid relation);

#endif							/* ECM_PARTITION_H */
