/*-------------------------------------------------------------------------
 *
 * unpublish.c
 *	  Tables without a replica identity leave the publication.
 *
 * Where a command takes a published table's replica identity away, the next one
 * may be the application's own UPDATE, which would fail.  So the table leaves
 * with that very command, if we have added it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/spi.h"
#include "hooks/shape_ddl.h"
#include "hooks/unpublish.h"
#include "shape/publication.h"
#include "shape/shape_catalog.h"
#include "shape/shape_settings.h"

/*
 * Tables whose replica identity a command may have taken away, in
 * TopTransactionContext.  A table of a subtransaction that is rolled back may be
 * looked at in vain.
 */
static List *doubtful = NIL;

void
ecm_unpublish_note(Oid relation)
{
	MemoryContext old;

	if (!OidIsValid(relation))
		return;
	old = MemoryContextSwitchTo(TopTransactionContext);
	doubtful = list_append_unique_oid(doubtful, relation);
	MemoryContextSwitchTo(old);
}

void
ecm_unpublish_note_index(Oid index)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	Form_pg_index form;

	if (!HeapTupleIsValid(tuple))
		return;
	form = (Form_pg_index) GETSTRUCT(tuple);
	if (form->indisprimary || form->indisreplident)
		ecm_unpublish_note(form->indrelid);
	ReleaseSysCache(tuple);
}

void
ecm_unpublish_forget(void)
{
	doubtful = NIL;
}

/* Would an UPDATE of the table fail, were it published? */
static bool
lacks_identity(Oid relation)
{
	Relation	rel;
	bool		result;

	if (get_rel_relkind(relation) != RELKIND_RELATION ||
		get_rel_persistence(relation) != RELPERSISTENCE_PERMANENT ||
		(rel = RelationIdGetRelation(relation)) == NULL)
		return false;
	result = rel->rd_rel->relreplident != REPLICA_IDENTITY_FULL &&
		!OidIsValid(RelationGetReplicaIndex(rel));
	RelationClose(rel);
	return result;
}

static void
remove_ours(Oid relation)
{
	EcmSpiState spi;
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(relation);
	SPITupleTable *rows;
	uint64		n;
	bool		isnull;

	ecm_spi_begin(&spi);
	ecm_shapes_query("SELECT member FROM _electric_cm.published_table"
					 " WHERE relation = $1 AND member <> 0", 1, &type, &value);
	rows = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n; i++)
		(void) ecm_unpublish_member(DatumGetObjectId(SPI_getbinval(rows->vals[i], rows->tupdesc,
																   1, &isnull)));
	ecm_spi_end(&spi);
}

/*
 * The shapes of such a table end with it, by the hook.  A partition may be
 * published by way of an ancestor, whose shapes can't go on without it either.
 */
void
ecm_unpublish_keyless(void)
{
	List	   *relations = doubtful;
	ListCell   *lc;
	ListCell   *lc2;

	/* ROLLBACK TO, of what has failed */
	if (relations == NIL || !IsTransactionState())
		return;
	doubtful = NIL;
	CommandCounterIncrement();
	if (!ecm_ddl_has_extension() || ecm_publishes_manually())
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	foreach(lc, relations)
	{
		Oid			relation = lfirst_oid(lc);

		if (!lacks_identity(relation))
			continue;
		remove_ours(relation);
		if (get_rel_relispartition(relation))
			foreach(lc2, get_partition_ancestors(relation))
				remove_ours(lfirst_oid(lc2));
	}
	PopActiveSnapshot();
}
