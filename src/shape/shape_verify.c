/*-------------------------------------------------------------------------
 *
 * shape_verify.c
 *	  Which shapes do not go with their tables any more?
 *
 * hooks/ asks this after each command that may have changed a table.  Each
 * function first finds out which tables with shapes are concerned: usually
 * there are none, and the command must not become slower.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/partition.h"
#include "base/spi.h"
#include "base/text.h"
#include "shape/arrays.h"
#include "shape/publication.h"
#include "shape/shape_catalog.h"
#include "shape/shape_requirements.h"
#include "shape/shape_settings.h"
#include "shape/shape_verify.h"

/*
 * Does a consumer follow the shape already, perhaps in order to create it?  Not if its
 * resync has been ordered and not begun, or will be at the next start, since the stack
 * has dropped its publication.
 */
#define FOLLOWED_SQL \
	"EXISTS (SELECT FROM _electric_cm.shape_state t WHERE t.shape = s.id AND t.generation > 0)" \
	" AND NOT (SELECT publication_dropped FROM _electric_cm.stack)"

/* ---------------------------------------------------------------- kinds -- */

/*
 * Shapes of a table that are alike in these columns are of one kind.  Nothing
 * else of a shape is compared with its table, so one check serves all shapes
 * of a kind, of which a table may have thousands.
 */
typedef enum KindColumn
{
	KIND_OWNER,
	KIND_NAME,
	KIND_COLUMNS,
	KIND_TYPES,
	KIND_KEY,
	KIND_ALL_COLUMNS,
	KIND_WHERE_COLUMNS,
	KIND_WHERE_TYPES,
	KIND_WHERE_COLLATIONS
} KindColumn;

#define KIND_NCOLUMNS	(KIND_WHERE_COLLATIONS + 1)

static const struct
{
	const char *expression;
	Oid			type;
}			kind_columns[KIND_NCOLUMNS] =

{
	[KIND_OWNER] = {"owner", OIDOID},
	[KIND_NAME] = {"relation_name", TEXTOID},
	[KIND_COLUMNS] = {"column_names", TEXTARRAYOID},
	[KIND_TYPES] = {"column_types", OIDARRAYOID},
	[KIND_KEY] = {"key_positions", INT2ARRAYOID},
	[KIND_ALL_COLUMNS] = {"(requested_columns IS NULL)", BOOLOID},
	[KIND_WHERE_COLUMNS] = {"where_names", TEXTARRAYOID},
	[KIND_WHERE_TYPES] = {"where_types", OIDARRAYOID},
	[KIND_WHERE_COLLATIONS] = {"where_collations", OIDARRAYOID}
};

typedef struct ShapeKind
{
	Datum		values[KIND_NCOLUMNS];
	bool		nulls[KIND_NCOLUMNS];
} ShapeKind;

/* All kinds of a table's shapes; within ecm_spi_begin/end. */
static ShapeKind *
shape_kinds(Oid relid, int *n)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(relid);
	StringInfoData sql;
	ShapeKind  *kinds;

	initStringInfo(&sql);
	for (int i = 0; i < KIND_NCOLUMNS; i++)
		appendStringInfo(&sql, "%s%s", i == 0 ? "SELECT DISTINCT " : ", ",
						 kind_columns[i].expression);
	appendStringInfoString(&sql, " FROM _electric_cm.shape WHERE relation = $1");
	ecm_shapes_query(sql.data, 1, &type, &value);
	*n = (int) SPI_processed;
	kinds = palloc(sizeof(ShapeKind) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
		for (int j = 0; j < KIND_NCOLUMNS; j++)
			kinds[i].values[j] = SPI_getbinval(SPI_tuptable->vals[i],
											   SPI_tuptable->tupdesc, j + 1,
											   &kinds[i].nulls[j]);
	return kinds;
}

/* What becomes of the shapes of a kind. */
typedef enum KindFate
{
	FATE_RESYNCED,				/* they get other columns */
	FATE_ENDS,
	FATE_ENDS_IF_FOLLOWED		/* the attempt to create one could mend it */
} KindFate;

static void
apply_fate(Oid relid, const ShapeKind *kind, KindFate fate, const char *reason)
{
	Oid			types[KIND_NCOLUMNS + 1];
	Datum		values[KIND_NCOLUMNS + 1];
	char		nulls[KIND_NCOLUMNS + 1];
	StringInfoData condition;

	initStringInfo(&condition);
	for (int i = 0; i < KIND_NCOLUMNS; i++)
	{
		types[i] = kind_columns[i].type;
		values[i] = kind->values[i];
		nulls[i] = kind->nulls[i] ? 'n' : ' ';
		appendStringInfo(&condition, "%s IS NOT DISTINCT FROM $%d AND ",
						 kind_columns[i].expression, i + 1);
	}
	types[KIND_NCOLUMNS] = OIDOID;
	values[KIND_NCOLUMNS] = ObjectIdGetDatum(relid);
	nulls[KIND_NCOLUMNS] = ' ';
	appendStringInfo(&condition, "relation = $%d AND %s", KIND_NCOLUMNS + 1,
					 fate == FATE_ENDS_IF_FOLLOWED ? FOLLOWED_SQL : "true");
	if (fate == FATE_RESYNCED)
		(void) ecm_shapes_resync(condition.data, lengthof(types), types, values, nulls, reason);
	else
		(void) ecm_shapes_delete(condition.data, lengthof(types), types, values, nulls,
								 reason);
}

/* ---------------------------------------------------- a table's columns -- */

/* A table's column by name, or NULL. */
static Form_pg_attribute
find_column(Relation rel, const char *name)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return att;
	}
	return NULL;
}

/*
 * Has the table still the columns, with their types, that the shapes have?
 * For shapes of all columns, the number of columns is compared, too: a column
 * may have been added.
 */
static bool
same_columns(Relation rel, const ShapeKind *kind, EcmShapeNeeds *needs, bool *lost)
{
	TupleDesc	desc = RelationGetDescr(rel);
	int			n;
	int			nlogged = 0;
	int			nalive = 0;
	char	  **names = ecm_array_names(kind->values[KIND_COLUMNS], &n);
	Oid		   *types = ecm_array_oids(kind->values[KIND_TYPES], &n);
	bool		same = true;

	for (int i = 0; i < n; i++)
	{
		Form_pg_attribute att = find_column(rel, names[i]);
		bool		exists = att != NULL && ecm_is_streamed(att);

		if (exists)
			needs->columns = bms_add_member(needs->columns, att->attnum);
		if (OidIsValid(types[i]))
		{
			nalive++;
			*lost = *lost || !exists;
		}
		same = same && types[i] == (exists ? att->atttypid : InvalidOid);
	}
	for (int i = 0; i < desc->natts; i++)
		if (!TupleDescAttr(desc, i)->attisdropped && ecm_is_streamed(TupleDescAttr(desc, i)))
			nlogged++;
	return same && (!DatumGetBool(kind->values[KIND_ALL_COLUMNS]) || nlogged == nalive);
}

/* Likewise, the columns that the where clause refers to.  *lost: one is gone. */
static bool
same_where_columns(Relation rel, const ShapeKind *kind, EcmShapeNeeds *needs, bool *lost)
{
	bool		same = true;
	int			n;
	char	  **names;
	Oid		   *types;
	Oid		   *collations;

	if (kind->nulls[KIND_WHERE_COLUMNS])
		return true;
	names = ecm_array_names(kind->values[KIND_WHERE_COLUMNS], &n);
	types = ecm_array_oids(kind->values[KIND_WHERE_TYPES], &n);
	collations = ecm_array_oids(kind->values[KIND_WHERE_COLLATIONS], &n);
	for (int i = 0; i < n; i++)
	{
		Form_pg_attribute att = find_column(rel, names[i]);

		if (att == NULL || !ecm_is_streamed(att))
		{
			*lost = true;
			return false;
		}
		same &= att->atttypid == types[i] && att->attcollation == collations[i];
		needs->where = bms_add_member(needs->where, att->attnum);
	}
	return same;
}

/* Is the table's key still the shapes' key, column by column? */
static bool
same_key(Relation rel, const ShapeKind *kind, Bitmapset **key)
{
	AttrNumber	attnums[INDEX_MAX_KEYS];
	char	  **names;
	int			nnames;
	int16	   *positions;
	int			nkeys;
	Oid			index = ecm_key_index(rel);

	names = ecm_array_names(kind->values[KIND_COLUMNS], &nnames);
	positions = ecm_array_int2(kind->values[KIND_KEY], &nkeys);
	if (!OidIsValid(index) || ecm_index_columns(index, attnums) != nkeys)
		return false;
	for (int i = 0; i < nkeys; i++)
	{
		if (get_attnum(RelationGetRelid(rel),
					   names[positions[i] - 1]) != attnums[i] ||
			!ecm_has_no_nulls(RelationGetDescr(rel), attnums[i]))
			return false;
		*key = bms_add_member(*key, attnums[i]);
	}
	return true;
}

/* -------------------------------------------------------- altered tables -- */

/*
 * The reason why shapes of a kind end, as they don't go with their table any more; NULL
 * if there is none.
 */
static const char *
misfit(const ShapeKind *kind, Relation rel, EcmShapeNeeds *needs)
{
	if (!RelationIsPermanent(rel))
		return "the table is not logged any more";
	if (!same_key(rel, kind, &needs->key))
		return "the table's key has changed";
	if (check_enable_rls(RelationGetRelid(rel),
						 DatumGetObjectId(kind->values[KIND_OWNER]), true) == RLS_ENABLED)
		return "row-level security applies to the shape's owner";
	return NULL;
}

/*
 * ... and between these and what has become of the table itself, or of one of
 * its partitions.  A column may have come since the shape was declared, of which an update
 * that moves a row into the shape lacks the value: a resync finds it (apply_change.c), so
 * that counts only if a command has set the identity.  *mendable: the attempt to create a
 * shape could mend it.
 */
static const char *
misfit_of_leaf(EcmShapeNeeds needs, Relation rel, Oid changed, bool identity_set,
			   bool *mendable)
{
	Relation	leaf = ecm_open_unlocked(changed);
	const char *reason = NULL;

	if (!identity_set)
		needs.columns = NULL;
	*mendable = false;
	if (leaf == NULL)
		return NULL;
	if (!RelationIsPermanent(leaf))
		reason = "the table is not logged any more";
	else if (leaf->rd_rel->relkind == RELKIND_RELATION &&
			 ecm_identity_lacks(leaf, rel, &needs) != NULL)
	{
		reason = "the table's replica identity has changed";
		*mendable = true;
	}
	else if (leaf->rd_rel->relkind == RELKIND_RELATION &&
			 leaf->rd_rel->relreplident == REPLICA_IDENTITY_FULL &&
			 ecm_column_against_full(leaf) != NULL && !ecm_is_published(changed))
	{
		reason = "the table's replica identity is FULL, and a generated column is virtual";
		*mendable = true;
	}
	RelationClose(leaf);
	return reason;
}

/*
 * Checks the shapes of a table.  True: the table has another name now than its
 * shapes were declared with.
 */
static bool
verify_shapes_of(Relation rel, List *changed, bool resynced, List *identities)
{
	Oid			relid = RelationGetRelid(rel);
	char	   *name = ecm_relation_name(relid);
	bool		renamed = false;
	EcmSpiState spi;
	ShapeKind  *kinds;
	int			n;

	ecm_spi_begin(&spi);
	kinds = shape_kinds(relid, &n);
	for (int i = 0; i < n; i++)
	{
		EcmShapeNeeds needs = {0};
		bool		lost = false;
		bool		lost_where = false;
		bool		same = same_columns(rel, &kinds[i], &needs, &lost);
		bool		mendable = false;
		const char *reason;
		ListCell   *lc;

		same &= same_where_columns(rel, &kinds[i], &needs, &lost_where);
		reason = misfit(&kinds[i], rel, &needs);
		if (reason == NULL && lost_where)
			reason = "a column that the shape's where clause refers to is gone";
		if (reason == NULL && lost && !DatumGetBool(kinds[i].values[KIND_ALL_COLUMNS]))
			reason = "a column that the shape asks for by name is gone";

		foreach(lc, changed)
		{
			if (reason != NULL)
				break;
			reason = misfit_of_leaf(needs, rel, lfirst_oid(lc),
									list_member_oid(identities, lfirst_oid(lc)), &mendable);

			/*
			 * a partition has come, and the resync gives it the identity that
			 * it needs
			 */
			if (mendable && resynced)
				reason = NULL;
		}
		if (reason != NULL)
			apply_fate(relid, &kinds[i], mendable ? FATE_ENDS_IF_FOLLOWED : FATE_ENDS, reason);
		else if (!same)
			apply_fate(relid, &kinds[i], FATE_RESYNCED, "the table's columns were changed");
		if (name == NULL ||
			strcmp(TextDatumGetCString(kinds[i].values[KIND_NAME]), name) != 0)
			renamed = true;
	}
	ecm_spi_end(&spi);
	return renamed;
}

/* A table whose shapes are checked, and what has changed: it or partitions. */
typedef struct StakeEntry
{
	Oid			relid;			/* hash key */
	List	   *changed;
} StakeEntry;

static void
add_stake(HTAB *stakes, List **relids, Oid relid, Oid changed)
{
	bool		found;
	StakeEntry *entry = hash_search(stakes, &relid, HASH_ENTER, &found);

	if (!found)
	{
		entry->changed = NIL;
		*relids = lappend_oid(*relids, relid);
	}
	entry->changed = lappend_oid(entry->changed, changed);
}

/*
 * For each table, its own shapes are checked, and those of the tables that it
 * is a partition of.
 */
List *
ecm_shapes_verify(List *changed, List *resynced, List *identities)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(StakeEntry),
	.hcxt = CurrentMemoryContext};
	HTAB	   *stakes = hash_create("electric_cm tables at stake", 64, &ctl,
									 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	List	   *relids = NIL;
	List	   *renamed = NIL;
	ListCell   *lc;
	ListCell   *lc2;

	foreach(lc, changed)
	{
		Oid			relid = lfirst_oid(lc);

		add_stake(stakes, &relids, relid, relid);
		foreach(lc2, ecm_partition_ancestors(relid))
			add_stake(stakes, &relids, lfirst_oid(lc2), relid);
	}
	foreach(lc, ecm_tables_with_shapes(relids))
	{
		Oid			relid = lfirst_oid(lc);
		Relation	rel = ecm_open_unlocked(relid);
		StakeEntry *entry = hash_search(stakes, &relid, HASH_FIND, NULL);

		if (rel == NULL)
			continue;
		if (verify_shapes_of(rel, entry->changed, list_member_oid(resynced, relid), identities))
			renamed = lappend_oid(renamed, relid);
		RelationClose(rel);
	}
	hash_destroy(stakes);
	return renamed;
}

/* Tables that have shapes; within ecm_spi_begin/end. */
static List *
query_tables(const char *sql, Oid type, Datum value)
{
	List	   *relids = NIL;

	ecm_shapes_query(sql, 1, &type, &value);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		relids = lappend_oid(relids, DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
																	SPI_tuptable->tupdesc,
																	1, &isnull)));
	}
	return relids;
}

void
ecm_shapes_verify_names(List *tables, List *schemas)
{
	EcmSpiState spi;
	ListCell   *lc;

	ecm_spi_begin(&spi);
	if (schemas != NIL)
		tables = list_concat_unique_oid(query_tables("SELECT c.oid FROM pg_class c"
													 " WHERE c.relnamespace = ANY ($1)"
													 " AND c.oid IN (SELECT relation FROM _electric_cm.shape)",
													 OIDARRAYOID, ecm_array_of_oid_list(schemas)),
										tables);
	foreach(lc, tables)
	{
		char	   *name = ecm_relation_name(lfirst_oid(lc));
		Oid			types[] = {OIDOID, TEXTOID};
		Datum		values[] = {ObjectIdGetDatum(lfirst_oid(lc)), (Datum) 0};

		if (name == NULL)
			continue;			/* the table is gone, and its shapes with it */
		values[1] = CStringGetTextDatum(name);
		(void) ecm_shapes_delete("relation = $1 AND relation_name <> $2",
								 lengthof(types), types, values, NULL,
								 "the table was renamed");
	}
	ecm_spi_end(&spi);
}

void
ecm_shapes_verify_all(void)
{
	EcmSpiState spi;
	List	   *relids;
	List	   *changed = NIL;
	ListCell   *lc;

	ecm_spi_begin(&spi);
	(void) ecm_shapes_delete("NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = s.relation)",
							 0, NULL, NULL, NULL, "the table was dropped");
	relids = query_tables("SELECT DISTINCT relation FROM _electric_cm.shape"
						  " WHERE relation <> $1", OIDOID, ObjectIdGetDatum(InvalidOid));
	foreach(lc, relids)
		changed = list_concat(changed, find_all_inheritors(lfirst_oid(lc), NoLock, NULL));
	list_sort(changed, list_oid_cmp);
	list_deduplicate_oid(changed);
	ecm_shapes_verify_names(relids, NIL);
	(void) ecm_shapes_verify(changed, NIL, NIL);
	ecm_spi_end(&spi);
}

/* ---------------------------------------------------------- publication -- */

/*
 * Has the shapes of tables resynced, which publishes the tables again, except those that
 * no consumer follows yet: their creation, or their resync, publishes the table first.
 */
static void
resync_followed(List *relids, const char *reason)
{
	Oid			type = OIDARRAYOID;
	Datum		value = ecm_array_of_oid_list(relids);

	(void) ecm_shapes_resync("relation = ANY ($1) AND " FOLLOWED_SQL, 1, &type, &value,
							 NULL, reason);
}

/*
 * Those of the tables that are not published, or only with a row filter or
 * column list.
 */
static List *
unpublished(List *relids)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, relids)
	{
		if (!ecm_is_published(lfirst_oid(lc)) || ecm_is_filtered(lfirst_oid(lc)))
			result = lappend_oid(result, lfirst_oid(lc));
	}
	return result;
}

List *
ecm_shapes_verify_published(List *changed, List **above)
{
	List	   *relids = NIL;
	List	   *below = NIL;
	ListCell   *lc;
	ListCell   *lc2;
	EcmSpiState spi;

	foreach(lc, changed)
	{
		Oid			relid = lfirst_oid(lc);

		if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
			continue;			/* it was dropped */
		foreach(lc2, unpublished(find_all_inheritors(relid, NoLock, NULL)))
		{
			relids = lappend_oid(relids, lfirst_oid(lc2));
			if (lfirst_oid(lc2) == relid)
				continue;
			below = lappend_oid(below, lfirst_oid(lc2));
			*above = list_append_unique_oid(*above, relid);
		}
		relids = list_concat(relids, unpublished(ecm_partition_ancestors(relid)));
	}
	relids = ecm_tables_with_shapes(relids);
	if (relids != NIL)
	{
		ecm_spi_begin(&spi);
		resync_followed(relids, "the table has left the publication");
		ecm_spi_end(&spi);
	}
	return below;
}

void
ecm_shapes_resync_unpublished(List *relids)
{
	EcmSpiState spi;

	relids = ecm_tables_with_shapes(relids);
	if (relids == NIL)
		return;
	ecm_spi_begin(&spi);
	resync_followed(relids, "the table has left the publication");
	ecm_spi_end(&spi);
}

void
ecm_shapes_verify_publication(void)
{
	EcmSpiState spi;
	List	   *relids;

	ecm_spi_begin(&spi);
	relids = query_tables("SELECT DISTINCT relation FROM _electric_cm.shape"
						  " WHERE relation <> $1", OIDOID, ObjectIdGetDatum(InvalidOid));
	if (relids == NIL)
		 /* nothing to lose */ ;
	else if (!OidIsValid(get_publication_oid(ecm_own_publication_name(), true)))
		resync_followed(relids, "the publication was dropped");
	else if (!ecm_publishes_everything())
		resync_followed(relids, "the publication does not publish everything any more");
	else
	{
		List	   *gone = unpublished(relids);

		if (gone != NIL)
			resync_followed(gone, "the table has left the publication");
		/* generated columns may be in the stream, which were not */
		(void) ecm_shapes_verify(list_difference_oid(relids, gone), NIL, NIL);
	}
	ecm_spi_end(&spi);
}

/* ---------------------------------------------------------------- types -- */

/*
 * Adds the type, and all that are made of it (arrays, domains, ranges, composite
 * types and tables' row types), and the tables that have columns of those.
 */
static void
find_type_users(Oid type, List **types, List **tables)
{
	Relation	depend;
	SysScanDesc scan;
	ScanKeyData key[2];
	HeapTuple	tuple;
	List	   *users = NIL;
	ListCell   *lc;

	if (list_member_oid(*types, type))
		return;
	check_stack_depth();
	*types = lappend_oid(*types, type);
	depend = table_open(DependRelationId, AccessShareLock);
	ScanKeyInit(&key[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(TypeRelationId));
	ScanKeyInit(&key[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(type));
	scan = systable_beginscan(depend, DependReferenceIndexId, true, NULL, 2, key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend user = (Form_pg_depend) GETSTRUCT(tuple);

		if (user->classid == TypeRelationId)
			users = list_append_unique_oid(users, user->objid);
		else if (user->classid == RelationRelationId && user->objsubid != 0)
		{
			char		relkind = get_rel_relkind(user->objid);
			Oid			row_type = get_rel_type_id(user->objid);

			if (relkind == RELKIND_RELATION || relkind == RELKIND_PARTITIONED_TABLE)
				*tables = list_append_unique_oid(*tables, user->objid);
			if (OidIsValid(row_type))
				users = list_append_unique_oid(users, row_type);
		}
	}
	systable_endscan(scan);
	table_close(depend, AccessShareLock);
	foreach(lc, users)
		find_type_users(lfirst_oid(lc), types, tables);
}

bool
ecm_shapes_type_changed(Oid type, const char *reason)
{
	List	   *types = NIL;
	List	   *tables = NIL;
	Oid			argtypes[] = {OIDARRAYOID, OIDARRAYOID};
	Datum		values[lengthof(argtypes)];
	bool		is_used;
	EcmSpiState spi;

	find_type_users(type, &types, &tables);
	is_used = tables != NIL;
	tables = ecm_tables_with_shapes(tables);
	if (tables == NIL)
		return is_used;
	ecm_spi_begin(&spi);
	values[0] = ecm_array_of_oid_list(tables);
	values[1] = ecm_array_of_oid_list(types);
	(void) ecm_shapes_resync("relation = ANY ($1) AND column_types && $2 AND " FOLLOWED_SQL,
							 lengthof(argtypes), argtypes, values, NULL, reason);
	ecm_spi_end(&spi);
	return true;
}
