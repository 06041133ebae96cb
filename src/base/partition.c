/*-------------------------------------------------------------------------
 *
 * partition.c
 *	  Which tables a table is a partition of, and what its own partitions are.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/partition.h"
#include "catalog/pg_inherits.h"
#include "fmgr.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"

#include "base/partition.h"

/* For what is no partition, the server's function has the parent of INHERITS. */
List *
ecm_partition_ancestors(Oid relation)
{
	return get_rel_relispartition(relation) ? get_partition_ancestors(relation) : NIL;
}

int64
ecm_table_bytes(Oid relation)
{
	int64		bytes = 0;
	ListCell   *lc;

	foreach(lc, find_all_inheritors(relation, NoLock, NULL))
	{
		LOCAL_FCINFO(fcinfo, 1);
		Datum		size;

		InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
		fcinfo->args[0].value = ObjectIdGetDatum(lfirst_oid(lc));
		fcinfo->args[0].isnull = false;
		size = pg_table_size(fcinfo);
		if (!fcinfo->isnull)	/* null: the partition is gone */
			bytes += DatumGetInt64(size);
	}
	return bytes;
}
