/*-------------------------------------------------------------------------
 *
 * unpublish.c
 *	  Tables that we have added to the publication leave it again.
 *
 * A table that stays published is decoded for nothing, and one day the loss of
 * its key makes the application's own UPDATE fail.  So a pool session takes it
 * out some time after its last shape has gone; and where a command takes the
 * replica identity away, the table leaves with that very command: the next one
 * may be an UPDATE.
 *
 * _electric_cm.published_table has the tables that we have added, by the OID of
 * the row in pg_publication_rel.  What the user has added, or added again, has
 * another one, and is left alone.  Once a table has been published for a shape
 * its owner has agreed to it: it may come back for shapes of other roles, unless
 * somebody takes it out himself.
 *
 * Nothing here waits for a lock that users hold.  Sessions of the pool lock the
 * tables that they publish, or take out, by locks of our own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_publication_rel.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/spi.h"
#include "hooks/shape_ddl.h"
#include "shape/shape.h"
#include "shape/shape_settings.h"

PG_FUNCTION_INFO_V1(electric_cm_unpublish_tables);

/* A class of advisory locks that SQL's functions don't use. */
#define PUBLISH_LOCK_CLASS	5

/* Tables that one transaction takes out at most. */
#define MAX_TABLES			100

/*
 * Tables whose replica identity a command may have taken away, in
 * TopTransactionContext.  That of a subtransaction that is rolled back may be
 * looked at in vain.
 */
static List *doubtful = NIL;

bool		ecm_is_unpublishing = false;

static bool
lock_publishing(Oid relation, LOCKMODE mode, bool dont_wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, relation, PUBLISH_LOCK_CLASS);
	return LockAcquire(&tag, mode, false, dont_wait) != LOCKACQUIRE_NOT_AVAIL;
}

/* By whatever it is published: nobody takes that away until we are done. */
void
ecm_hold_published(Oid relation)
{
	ListCell   *lc;

	(void) lock_publishing(relation, ShareLock, false);
	if (get_rel_relispartition(relation))
		foreach(lc, get_partition_ancestors(relation))
			(void) lock_publishing(lfirst_oid(lc), ShareLock, false);
}

void
ecm_note_published(Oid relation)
{
	Oid			types[] = {OIDOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(relation), CStringGetTextDatum(ecm_own_publication_name())};

	ecm_spi_run("INSERT INTO _electric_cm.published_table (relation, publication, member)"
				" SELECT r.prrelid, r.prpubid, r.oid FROM pg_publication_rel r"
				" JOIN pg_publication p ON p.oid = r.prpubid"
				" WHERE r.prrelid = $1 AND p.pubname = $2"
				" ON CONFLICT (relation, publication) DO UPDATE SET member = excluded.member",
				SPI_OK_INSERT, 2, types, values, NULL);
}

bool
ecm_was_published(Oid relation)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(relation);

	ecm_spi_run("SELECT FROM _electric_cm.published_table t WHERE relation = $1"
				" AND (member = 0 OR NOT EXISTS"
				" (SELECT FROM pg_publication p WHERE p.oid = t.publication))",
				SPI_OK_SELECT, 1, &type, &value, NULL);
	return SPI_processed > 0;
}

/*
 * False: somebody is about to do the same, or to drop the table or the
 * publication.
 */
static bool
remove_member(Oid member)
{
	ObjectAddress object;

	if (!ConditionalLockDatabaseObject(PublicationRelRelationId, member, 0,
									   AccessExclusiveLock))
		return false;
	if (!SearchSysCacheExists1(PUBLICATIONREL, ObjectIdGetDatum(member)))
		return false;
	ObjectAddressSet(object, PublicationRelRelationId, member);
	performDeletion(&object, DROP_CASCADE, PERFORM_DELETION_INTERNAL);
	CommandCounterIncrement();
	return true;
}

/* ---------------------------------------------- the last shape has gone -- */

/* Of the table or of a partition, which may be published by way of it. */
static bool
has_shapes(Oid relation)
{
	List	   *relids = find_all_inheritors(relation, NoLock, NULL);
	Datum	   *elems = palloc(sizeof(Datum) * list_length(relids));
	Oid			type = OIDARRAYOID;
	Datum		value;
	int			n = 0;
	ListCell   *lc;

	foreach(lc, relids)
		elems[n++] = ObjectIdGetDatum(lfirst_oid(lc));
	value = PointerGetDatum(construct_array(elems, n, OIDOID, sizeof(Oid), true,
											TYPALIGN_INT));
	ecm_shapes_query("SELECT FROM _electric_cm.shape WHERE relation = ANY ($1) LIMIT 1",
					 1, &type, &value);
	return SPI_processed > 0;
}

/*
 * Whoever declares a shape just now is not seen, but his table will be
 * published again: that waits for our lock.
 */
static bool
leave_publication(Oid relation, Oid member)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(member);

	if (!lock_publishing(relation, ExclusiveLock, true))
		return false;
	if (has_shapes(relation))
		return true;
	if (!remove_member(member))
		return false;
	ecm_spi_run("UPDATE _electric_cm.published_table SET member = 0 WHERE member = $1",
				SPI_OK_UPDATE, 1, &type, &value, NULL);
	return true;
}

/* What the user has done himself is not ours any more. */
static void
forget_tables(void)
{
	ecm_spi_run("DELETE FROM _electric_cm.published_table t"
				" WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = t.relation)"
				" OR (t.member <> 0"
				" AND EXISTS (SELECT FROM pg_publication p WHERE p.oid = t.publication)"
				" AND NOT EXISTS (SELECT FROM pg_publication_rel r WHERE r.oid = t.member))"
				" OR (NOT EXISTS (SELECT FROM pg_publication p WHERE p.oid = t.publication)"
				" AND EXISTS (SELECT FROM _electric_cm.published_table o"
				" JOIN pg_publication p ON p.oid = o.publication WHERE o.relation = t.relation))",
				SPI_OK_DELETE, 0, NULL, NULL, NULL);
}

static int
tables_without_shapes(Oid *relations, Oid *members)
{
	int			n;
	bool		isnull;

	ecm_spi_run(psprintf("SELECT t.relation, t.member FROM _electric_cm.published_table t"
						 " JOIN pg_publication_rel r ON r.oid = t.member"
						 " WHERE t.relation NOT IN (SELECT a.relid FROM"
						 " (SELECT DISTINCT relation FROM _electric_cm.shape) s,"
						 " LATERAL (SELECT s.relation UNION"
						 " SELECT p.relid::oid FROM pg_partition_ancestors(s.relation) p) a (relid)"
						 " WHERE a.relid IS NOT NULL) LIMIT %d", MAX_TABLES),
				SPI_OK_SELECT, 0, NULL, NULL, NULL);
	n = (int) SPI_processed;
	for (int i = 0; i < n; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];

		relations[i] = DatumGetObjectId(SPI_getbinval(row, SPI_tuptable->tupdesc, 1, &isnull));
		members[i] = DatumGetObjectId(SPI_getbinval(row, SPI_tuptable->tupdesc, 2, &isnull));
	}
	return n;
}

/*
 * _electric_cm.unpublish_tables() RETURNS bool
 *
 * Takes the tables that have no shape any more out of the publication, if we
 * have added them.  True: call again later, there may be more, or something
 * was in use.
 */
Datum
electric_cm_unpublish_tables(PG_FUNCTION_ARGS pg_attribute_unused())
{
	Oid			relations[MAX_TABLES];
	Oid			members[MAX_TABLES];
	EcmSpiState spi;
	bool		again;
	int			n;

	if (ecm_publishes_manually())
		PG_RETURN_BOOL(false);
	ecm_spi_begin(&spi);
	forget_tables();
	n = tables_without_shapes(relations, members);
	again = n == MAX_TABLES;
	ecm_is_unpublishing = true;
	PG_TRY();
	{
		for (int i = 0; i < n; i++)
			again |= !leave_publication(relations[i], members[i]);
	}
	PG_FINALLY();
	{
		ecm_is_unpublishing = false;
	}
	PG_END_TRY();
	ecm_spi_end(&spi);
	PG_RETURN_BOOL(again);
}

/* ----------------------------------------------- the identity has gone --- */

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
		(void) remove_member(DatumGetObjectId(SPI_getbinval(rows->vals[i], rows->tupdesc,
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
