/*-------------------------------------------------------------------------
 *
 * publication.c
 *	  Is a table in the stack's publication, and does that publish all there is?
 *
 * _electric_cm.published_table lists the tables that the stack has added, with
 * the OID of the row in pg_publication_rel.  If the user adds a table, or
 * removes it and adds it again, the row has another OID, and the stack leaves
 * the table in the publication.  Once a table has been published for a shape,
 * its owner has agreed to that: it may be published again for shapes of other
 * roles, unless somebody has taken it out himself.
 *
 * Nothing here waits for a lock that users hold.  Among themselves, pool
 * sessions that publish a table or take it out use advisory locks of their
 * own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_rel.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/partition.h"
#include "base/spi.h"
#include "shape/publication.h"
#include "shape/shape_settings.h"

/* A class of advisory locks that SQL's functions don't use. */
#define PUBLISH_LOCK_CLASS	5

void
ecm_forget_catalogs(void)
{
	InvalidateSystemCaches();
}

/* Partitions are published FOR ALL TABLES as the table on top of them is. */
static bool
is_excepted(Oid relation, const Publication *publication)
{
	List	   *ancestors = ecm_partition_ancestors(relation);

	if (ancestors != NIL)
		relation = llast_oid(ancestors);
	return list_member_oid(ecm_relation_exceptions(relation), publication->oid);
}

bool
ecm_is_excepted(Oid relation)
{
	Publication *publication = GetPublicationByName(ecm_own_publication_name(), true);

	return publication != NULL && publication->alltables &&
		is_excepted(relation, publication);
}

bool
ecm_is_published(Oid relation)
{
	Publication *publication = GetPublicationByName(ecm_own_publication_name(), true);
	List	   *relations = list_make1_oid(relation);
	ListCell   *lc;

	if (publication == NULL)
		return false;
	if (publication->alltables)
		return !is_excepted(relation, publication);
	relations = list_concat(relations, ecm_partition_ancestors(relation));
	foreach(lc, relations)
	{
		if (list_member_oid(ecm_relation_publications(lfirst_oid(lc)), publication->oid) ||
			list_member_oid(GetSchemaPublications(get_rel_namespace(lfirst_oid(lc))),
							publication->oid))
			return true;
	}
	return false;
}

/* Does the publication have a row filter or a column list for this table? */
static bool
has_filter(Oid publication, Oid relation)
{
	HeapTuple	tuple = SearchSysCache2(PUBLICATIONRELMAP, ObjectIdGetDatum(relation),
										ObjectIdGetDatum(publication));
	bool		no_rows;
	bool		no_columns;

	if (!HeapTupleIsValid(tuple))
		return false;
	(void) SysCacheGetAttr(PUBLICATIONRELMAP, tuple, Anum_pg_publication_rel_prqual,
						   &no_rows);
	(void) SysCacheGetAttr(PUBLICATIONRELMAP, tuple, Anum_pg_publication_rel_prattrs,
						   &no_columns);
	ReleaseSysCache(tuple);
	return !no_rows || !no_columns;
}

bool
ecm_is_filtered(Oid relation)
{
	Oid			publication = get_publication_oid(ecm_own_publication_name(), true);
	List	   *relations = find_all_inheritors(relation, NoLock, NULL);
	ListCell   *lc;

	if (!OidIsValid(publication))
		return false;
	relations = list_concat(relations, ecm_partition_ancestors(relation));
	foreach(lc, relations)
	{
		if (has_filter(publication, lfirst_oid(lc)))
			return true;
	}
	return false;
}

bool
ecm_publishes_everything(void)
{
	Publication *publication = GetPublicationByName(ecm_own_publication_name(), true);

	return publication != NULL &&
		publication->pubactions.pubinsert && publication->pubactions.pubupdate &&
		publication->pubactions.pubdelete && publication->pubactions.pubtruncate &&
		!publication->pubviaroot && ecm_publishes_generated(publication);
}

void
ecm_tell_published_below(Oid relation)
{
	ListCell   *lc;

	foreach(lc, find_all_inheritors(relation, NoLock, NULL))
	{
		HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(lfirst_oid(lc)));

		if (!HeapTupleIsValid(tuple))
			continue;
		CacheInvalidateRelcacheByTuple(tuple);
		ReleaseSysCache(tuple);
	}
}

/* -------------------------------------------------- what we have added -- */

bool
ecm_lock_publishing(Oid relation, LOCKMODE mode, bool dont_wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, relation, PUBLISH_LOCK_CLASS);
	return LockAcquire(&tag, mode, false, dont_wait) != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * The table may be published by way of an ancestor, so these are locked, too.
 */
void
ecm_hold_published(Oid relation)
{
	ListCell   *lc;

	(void) ecm_lock_publishing(relation, ShareLock, false);
	foreach(lc, ecm_partition_ancestors(relation))
		(void) ecm_lock_publishing(lfirst_oid(lc), ShareLock, false);
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

bool
ecm_unpublish_member(Oid member)
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
