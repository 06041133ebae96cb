/*-------------------------------------------------------------------------
 *
 * unpublish.c
 *	  Tables without a replica identity leave the publication.
 *
 * The server refuses UPDATE and DELETE on a published table that has no replica
 * identity.  When a command takes the identity away (its index is dropped, say), or
 * makes one that cannot be published, the next command may be such an UPDATE of the application's.  So a table that we have
 * added to the publication leaves it in the command's own transaction.  A table that
 * the user has added stays, as it would without us.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/partition.h"
#include "base/spi.h"
#include "hooks/shape_ddl.h"
#include "hooks/unpublish.h"
#include "shape/publication.h"
#include "shape/shape_catalog.h"
#include "shape/shape_requirements.h"
#include "shape/shape_settings.h"

/*
 * OIDs of tables whose replica identity a command may have taken away, in
 * TopTransactionContext.  They may be from a subtransaction that was rolled back, and
 * are then looked at in vain.
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

/*
 * Would an UPDATE of the table fail, were it published?  *column: because of
 * this one, if any.
 */
static bool
lacks_identity(Oid relation, const char **column)
{
	Relation	rel;
	bool		full;
	bool		result;

	*column = NULL;
	if (get_rel_relkind(relation) != RELKIND_RELATION ||
		get_rel_persistence(relation) != RELPERSISTENCE_PERMANENT ||
		(rel = RelationIdGetRelation(relation)) == NULL)
		return false;
	full = rel->rd_rel->relreplident == REPLICA_IDENTITY_FULL;
	if (full && ecm_column_against_full(rel) != NULL)
		*column = pstrdup(ecm_column_against_full(rel));
	result = *column != NULL || (!full && !OidIsValid(RelationGetReplicaIndex(rel)));
	RelationClose(rel);
	return result;
}

/* What is published by others' doing stays so, and nobody else tells them. */
static void
warn_if_published(Oid relation, const char *column)
{
	EcmSpiState spi;
	bool		published;
	char	   *name;

	ecm_spi_begin(&spi);
	published = ecm_is_published(relation);
	ecm_spi_end(&spi);
	if (!published)
		return;
	name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(relation)),
									  get_rel_name(relation));
	ereport(WARNING,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("UPDATE and DELETE on table %s fail from now on", name),
			 errdetail("It is in publication \"%s\", its replica identity is FULL, and generated column \"%s\" is virtual.",
					   ecm_own_publication_name(), column),
			 errhint("ALTER TABLE %s REPLICA IDENTITY DEFAULT, or make that column STORED.",
					 name)));
}

/* Takes the table out of all publications that we have added it to. */
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
 * A partition may be published by way of an ancestor, which leaves the publication then.
 */
static void
remove_with_ancestors(Oid relation)
{
	ListCell   *lc;

	remove_ours(relation);
	foreach(lc, ecm_partition_ancestors(relation))
		remove_ours(lfirst_oid(lc));
}

/*
 * An ADD COLUMN of a partitioned table has noted each of its partitions.  Taking a table out calls object_access_hook, so its shapes end in the same way as
 * if a user had done it.
 */
void
ecm_unpublish_keyless(void)
{
	List	   *relations = doubtful;
	ListCell   *lc;

	/* not in a transaction that has failed, as after ROLLBACK TO */
	if (relations == NIL || !IsTransactionState())
		return;
	doubtful = NIL;
	CommandCounterIncrement();
	if (!ecm_ddl_has_extension())
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	foreach(lc, relations)
	{
		Oid			relation = lfirst_oid(lc);
		const char *column;

		if (!lacks_identity(relation, &column))
			continue;
		if (!ecm_publishes_manually())
			remove_with_ancestors(relation);
		if (column != NULL)
			warn_if_published(relation, column);
	}
	PopActiveSnapshot();
}
