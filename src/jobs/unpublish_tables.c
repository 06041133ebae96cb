/*-------------------------------------------------------------------------
 *
 * unpublish_tables.c
 *	  Tables that have no shape any more leave the publication.
 *
 * A table that stays published is decoded for nothing, and one day the loss of
 * its key makes the application's own UPDATE fail.  So a pool session takes it
 * out some time after its last shape has gone, if we have added it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "storage/lock.h"

#include "base/spi.h"
#include "jobs/unpublish_tables.h"
#include "shape/arrays.h"
#include "shape/publication.h"
#include "shape/shape_catalog.h"
#include "shape/shape_settings.h"

PG_FUNCTION_INFO_V1(electric_cm_unpublish_tables);

/* Tables that one transaction takes out at most. */
#define MAX_TABLES			100

bool		ecm_is_unpublishing = false;

/* Has the table shapes, or a partition of it, which it may publish? */
static bool
has_shapes(Oid relation)
{
	Oid			type = OIDARRAYOID;
	Datum		value = ecm_array_of_oid_list(find_all_inheritors(relation, NoLock, NULL));

	ecm_shapes_query("SELECT FROM _electric_cm.shape WHERE relation = ANY ($1) LIMIT 1",
					 1, &type, &value);
	return SPI_processed > 0;
}

/*
 * Takes a table out of the publication, if it still has no shapes.  False: a
 * lock was not free; try again.
 *
 * A shape that is being declared at this moment is not seen.  That does no
 * harm: its creation publishes the table again, and waits for our lock before
 * it looks whether the table is published.
 */
static bool
leave_publication(Oid relation, Oid member)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(member);

	if (!ecm_lock_publishing(relation, ExclusiveLock, true))
		return false;
	if (has_shapes(relation))
		return true;
	if (!ecm_unpublish_member(member))
		return false;
	ecm_spi_run("UPDATE _electric_cm.published_table SET member = 0 WHERE member = $1",
				SPI_OK_UPDATE, 1, &type, &value, NULL);
	return true;
}

/*
 * Forgets tables that are not ours any more: the user has taken them out of
 * the publication, or added them again, or they are gone.
 */
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
