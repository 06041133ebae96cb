/*-------------------------------------------------------------------------
 *
 * shape_columns.c
 *	  Shapes get other columns, along with their table.
 *
 * A column is known by its name.  One whose type was altered is the same column still:
 * what the resync compares are texts.  One that was renamed is gone, and another one has
 * come, since readers know columns by their names only.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "base/spi.h"
#include "base/compat.h"
#include "base/pinned_settings.h"
#include "shape/arrays.h"
#include "shape/shape_columns.h"
#include "shape/shape_filter.h"
#include "shape/shape_requirements.h"

typedef struct Columns
{
	int			n;
	char	  **names;
	Oid		   *types;			/* InvalidOid: gone */
} Columns;

static int
find_name(char **names, int n, const char *name)
{
	for (int i = 0; i < n; i++)
		if (strcmp(names[i], name) == 0)
			return i;
	return -1;
}

/* The table's columns that shapes want: those requested, or all that are streamed. */
static Columns
wanted_columns(Relation rel, char **requested, int nrequested)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Columns		wanted = {0};

	wanted.names = palloc(sizeof(char *) * Max(desc->natts, 1));
	wanted.types = palloc(sizeof(Oid) * Max(desc->natts, 1));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || !ecm_is_streamed(att) ||
			(requested != NULL && find_name(requested, nrequested, NameStr(att->attname)) < 0))
			continue;
		wanted.names[wanted.n] = pstrdup(NameStr(att->attname));
		wanted.types[wanted.n++] = att->atttypid;
	}
	return wanted;
}

/* False: nothing is to be changed. */
static bool
renew(Columns *columns, const Columns *wanted)
{
	bool		changed = false;
	int			n = columns->n;
	char	  **names = palloc(sizeof(char *) * (n + wanted->n + 1));
	Oid		   *types = palloc(sizeof(Oid) * (n + wanted->n + 1));

	for (int i = 0; i < n; i++)
	{
		int			at = find_name(wanted->names, wanted->n, columns->names[i]);

		names[i] = columns->names[i];
		types[i] = at < 0 ? InvalidOid : wanted->types[at];
		changed |= types[i] != columns->types[i];
	}
	for (int i = 0; i < wanted->n; i++)
	{
		if (find_name(columns->names, columns->n, wanted->names[i]) >= 0)
			continue;
		names[n] = wanted->names[i];
		types[n++] = wanted->types[i];
		changed = true;
	}
	*columns = (Columns)
	{
		n, names, types
	};
	return changed;
}

/* ---------------------------------------------------- where clauses -- */

/*
 * (not by "=", lest the planner looks for the shapes of an array by the index on the table:
 * there may be a hundred thousand)
 */
#define OF_TABLE_SQL "s.relation IS NOT DISTINCT FROM $2"

#define CLAUSE_KINDS_SQL \
	"SELECT DISTINCT s.where_names, s.where_types, s.where_collations" \
	" FROM _electric_cm.shape s WHERE s.id = ANY ($1) AND " OF_TABLE_SQL \
	" AND s.where_names IS NOT NULL"

#define CLAUSES_SQL \
	"FROM _electric_cm.shape s WHERE s.id = ANY ($1) AND " OF_TABLE_SQL \
	" AND s.where_names = $3 AND s.where_types = $4 AND s.where_collations = $5"

/* Do the clauses make sense with the types that their columns have now?  Else an ERROR. */
static void
check_clauses(Relation rel, Oid *types, Datum *args)
{
	int			nestlevel = NewGUCNestLevel();

	ecm_pin_text_settings();
	ecm_spi_run("SELECT DISTINCT s.where_clause " CLAUSES_SQL, SPI_OK_SELECT, 5, types, args, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Bitmapset  *attnums;

		CHECK_FOR_INTERRUPTS();
		(void) ecm_filter_parse(rel, SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1), NULL,
								&attnums);
	}
	AtEOXact_GUC(true, nestlevel);
}

/* What is stored of the columns that where clauses refer to becomes what they are now. */
static void
renew_clauses(Relation rel, Datum shapes)
{
	Oid			types[] = {INT8ARRAYOID, OIDOID, TEXTARRAYOID, OIDARRAYOID, OIDARRAYOID,
	OIDARRAYOID, OIDARRAYOID};
	Datum		args[7] = {shapes, ObjectIdGetDatum(RelationGetRelid(rel))};
	SPITupleTable *kinds;
	uint64		nkinds;

	ecm_spi_run(CLAUSE_KINDS_SQL, SPI_OK_SELECT, 2, types, args, NULL);
	kinds = SPI_tuptable;
	nkinds = SPI_processed;
	for (uint64 i = 0; i < nkinds; i++)
	{
		bool		isnull;
		bool		changed = false;
		int			n;
		char	  **names;
		Oid		   *were;
		Oid		   *collations;

		for (int j = 0; j < 3; j++)
			args[2 + j] = SPI_getbinval(kinds->vals[i], kinds->tupdesc, j + 1, &isnull);
		names = ecm_array_names(args[2], &n);
		were = ecm_array_oids(args[3], &n);
		collations = ecm_array_oids(args[4], &n);
		for (int j = 0; j < n; j++)
		{
			AttrNumber	attnum = get_attnum(RelationGetRelid(rel), names[j]);
			Oid			type;
			Oid			collation;
			int32		typmod;

			if (attnum == InvalidAttrNumber)
				continue;		/* then the shape has ended */
			get_atttypetypmodcoll(RelationGetRelid(rel), attnum, &type, &typmod, &collation);
			changed |= type != were[j] || collation != collations[j];
			were[j] = type;
			collations[j] = collation;
		}
		if (!changed)
			continue;
		check_clauses(rel, types, args);
		args[5] = ecm_array_of_oids(were, n);
		args[6] = ecm_array_of_oids(collations, n);
		ecm_spi_run("WITH changed AS MATERIALIZED (SELECT s.id " CLAUSES_SQL ")"
					" UPDATE _electric_cm.shape u SET where_types = $6, where_collations = $7"
					" FROM changed WHERE u.id = changed.id",
					SPI_OK_UPDATE, 7, types, args, NULL);
	}
}

#define KINDS_SQL \
	"SELECT DISTINCT s.column_names, s.column_types, s.requested_columns" \
	" FROM _electric_cm.shape s WHERE s.id = ANY ($1) AND " OF_TABLE_SQL

#define RENEW_SQL \
	"UPDATE _electric_cm.shape s SET column_names = $6, column_types = $7" \
	" WHERE s.id = ANY ($1) AND " OF_TABLE_SQL " AND s.column_names = $3" \
	" AND s.column_types = $4 AND s.requested_columns IS NOT DISTINCT FROM $5"

void
ecm_shapes_renew_columns(Oid relation, Datum shapes)
{
	Oid			types[] = {INT8ARRAYOID, OIDOID, TEXTARRAYOID, OIDARRAYOID, TEXTARRAYOID,
	TEXTARRAYOID, OIDARRAYOID};
	Datum		args[7] = {shapes, ObjectIdGetDatum(relation)};
	Relation	rel = try_table_open(relation, NoLock);
	SPITupleTable *kinds;
	uint64		nkinds;
	EcmSpiState spi;

	if (rel == NULL)
		return;
	ecm_spi_begin(&spi);
	ecm_spi_run(KINDS_SQL, SPI_OK_SELECT, 2, types, args, NULL);
	kinds = SPI_tuptable;
	nkinds = SPI_processed;
	for (uint64 i = 0; i < nkinds; i++)
	{
		bool		isnull;
		bool		all;
		int			n;
		int			nrequested = 0;
		char	  **requested = NULL;
		Columns		columns;
		Columns		wanted;
		char		nulls[] = "       ";

		args[2] = SPI_getbinval(kinds->vals[i], kinds->tupdesc, 1, &isnull);
		args[3] = SPI_getbinval(kinds->vals[i], kinds->tupdesc, 2, &isnull);
		args[4] = SPI_getbinval(kinds->vals[i], kinds->tupdesc, 3, &all);
		nulls[4] = all ? 'n' : ' ';
		columns.names = ecm_array_names(args[2], &columns.n);
		columns.types = ecm_array_oids(args[3], &n);
		if (!all)
			requested = ecm_array_names(args[4], &nrequested);
		wanted = wanted_columns(rel, requested, nrequested);
		if (!renew(&columns, &wanted))
			continue;
		args[5] = ecm_array_of_names(columns.names, columns.n);
		args[6] = ecm_array_of_oids(columns.types, columns.n);
		ecm_spi_run(RENEW_SQL, SPI_OK_UPDATE, 7, types, args, nulls);
	}
	renew_clauses(rel, shapes);
	ecm_spi_end(&spi);
	table_close(rel, NoLock);
}
