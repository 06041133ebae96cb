/*-------------------------------------------------------------------------
 *
 * shape_fit.c
 *	  Do a shape and its table go together?
 *
 * What the shape's owner may read, what identifies the table's rows, and what
 * the stream will have of them.  Asked when a shape is created and, since the
 * answer can change, at the end of each transaction that has altered the table.
 *
 * That second time somebody else may hold a lock on the table, or on one of its
 * ancestors, and wait for ours; so it takes none, and looks at nothing but the
 * catalogs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_rel.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"

#include "compat.h"
#include "settings.h"
#include "shape.h"

/* --------------------------------------------------------------- columns -- */

Bitmapset *
ecm_fit_attnums(Oid relation, char **names, int nnames, Bitmapset *attnums,
				bool *missing)
{
	for (int i = 0; i < nnames; i++)
	{
		AttrNumber	attnum = get_attnum(relation, names[i]);

		if (attnum > 0)
			attnums = bms_add_member(attnums, attnum);
		else
			*missing = true;
	}
	return attnums;
}

/* ---------------------------------------------------------------- rights -- */

static bool
may_select(Oid relation, Oid role, const Bitmapset *attnums)
{
	int			attnum = -1;

	if (ecm_table_acl_select(relation, role))
		return true;
	if (bms_is_empty(attnums))
		return false;
	while ((attnum = bms_next_member(attnums, attnum)) >= 0)
		if (pg_attribute_aclcheck(relation, attnum, role, ACL_SELECT) != ACLCHECK_OK)
			return false;
	return true;
}

/* Who may not name the table can't select from it either. */
static bool
may_use_schema(Oid relation, Oid role)
{
	return ecm_schema_acl_usage(get_rel_namespace(relation), role);
}

bool
ecm_fit_has_rights(Oid relation, Oid role, const Bitmapset *attnums)
{
	return SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relation)) &&
		may_use_schema(relation, role) &&
		may_select(relation, role, attnums) &&
		check_enable_rls(relation, role, true) != RLS_ENABLED;
}

/*
 * The rows of a shape are read by a superuser's process, so everything that
 * would have filtered them for the role itself must be refused.
 */
void
ecm_fit_check_rights(Oid relation, Oid role, const Bitmapset *attnums)
{
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relation)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the shape's table does not exist any more")));
	if (!may_use_schema(relation, role))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_SCHEMA,
					   get_namespace_name(get_rel_namespace(relation)));
	if (!may_select(relation, role, attnums))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, get_rel_name(relation));
	if (check_enable_rls(relation, role, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("row-level security applies to role \"%s\" on table \"%s\"",
						GetUserNameFromId(role, false), get_rel_name(relation)),
				 errdetail("A shape would show rows that the policies hide."),
				 errhint("Let a role that the policies don't apply to own the shape.")));
}

/* ------------------------------------------------------------------- key -- */

/* No lock: see at the top of this file.  NULL: it is gone. */
static Relation
open_unlocked(Oid relid)
{
	return SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)) ?
		RelationIdGetRelation(relid) : NULL;
}

Oid
ecm_fit_key_index(Relation rel)
{
	list_free(RelationGetIndexList(rel));	/* fills the fields below */
	return rel->rd_rel->relreplident == REPLICA_IDENTITY_FULL ?
		rel->rd_pkindex : rel->rd_replidindex;
}

/* Attribute numbers of an index's key columns, in its order. */
static int
index_columns(Oid index, AttrNumber *attnums)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	Form_pg_index form;
	int			n;

	if (!HeapTupleIsValid(tuple))
		return 0;
	form = (Form_pg_index) GETSTRUCT(tuple);
	n = form->indnkeyatts;
	for (int i = 0; i < n; i++)
		attnums[i] = form->indkey.values[i];
	ReleaseSysCache(tuple);
	return n;
}

/* ------------------------------------------------------ replica identity -- */

/* The columns that old rows have in the stream, unless they have all. */
static Bitmapset *
identity_columns(Relation rel)
{
	AttrNumber	attnums[INDEX_MAX_KEYS];
	Bitmapset  *result = NULL;
	int			n;

	list_free(RelationGetIndexList(rel));
	n = index_columns(rel->rd_replidindex, attnums);
	for (int i = 0; i < n; i++)
		result = bms_add_member(result, attnums[i]);
	return result;
}

/*
 * Why the replica identity of a table, a leaf of 'root', is not enough for the
 * shape, or NULL.  An old row has only the columns of the identity: so these
 * must include the key, by which the row is told apart, and what the where
 * clause refers to; and a row that an update moves into the shape comes
 * without those TOASTed values that the update left alone.
 */
static const char *
identity_lacks(Relation leaf, Relation root, const EcmShapeNeeds *needs)
{
	Bitmapset  *identity;
	Bitmapset  *all;
	int			attnum = -1;

	if (leaf->rd_rel->relreplident == REPLICA_IDENTITY_FULL)
		return NULL;
	identity = identity_columns(leaf);
	all = bms_union(needs->key, needs->where);
	if (needs->where != NULL)
		all = bms_add_members(all, needs->columns);
	while ((attnum = bms_next_member(all, attnum)) >= 0)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(root), attnum - 1);
		AttrNumber	in_leaf = get_attnum(RelationGetRelid(leaf), NameStr(att->attname));

		if (bms_is_member(in_leaf, identity))
			continue;
		if (bms_is_member(attnum, needs->where))
			return psprintf("The where clause refers to column \"%s\", which the replica identity does not have.",
							NameStr(att->attname));
		if (bms_is_member(attnum, needs->key))
			return psprintf("The replica identity of \"%s\" does not have the key's column \"%s\".",
							RelationGetRelationName(leaf), NameStr(att->attname));
		/* the column's storage says nothing of older rows, or of the leaf's */
		if (get_typstorage(att->atttypid) != TYPSTORAGE_PLAIN)
			return psprintf("An update can move a row into the shape, and the stream then lacks a TOASTed value of column \"%s\" that did not change.",
							NameStr(att->attname));
	}
	return NULL;
}

/* The leaves whose replica identity is not enough, and *why. */
static List *
lacking_leaves(Relation rel, const EcmShapeNeeds *needs, LOCKMODE lockmode,
			   const char **why)
{
	List	   *lacking = NIL;
	ListCell   *lc;

	foreach(lc, find_all_inheritors(RelationGetRelid(rel), lockmode, NULL))
	{
		Relation	leaf = open_unlocked(lfirst_oid(lc));
		const char *reason = NULL;

		if (leaf == NULL)
			continue;
		if (leaf->rd_rel->relkind == RELKIND_RELATION)
			reason = identity_lacks(leaf, rel, needs);
		if (reason != NULL)
		{
			*why = reason;
			lacking = lappend_oid(lacking, RelationGetRelid(leaf));
		}
		RelationClose(leaf);
	}
	return lacking;
}

char *
ecm_fit_identity_commands(List *leaves)
{
	StringInfoData commands;
	ListCell   *lc;

	initStringInfo(&commands);
	foreach(lc, leaves)
	{
		char	   *schema = get_namespace_name(get_rel_namespace(lfirst_oid(lc)));
		char	   *name = get_rel_name(lfirst_oid(lc));

		if (schema != NULL && name != NULL) /* else it has just been dropped */
			appendStringInfo(&commands, "%sALTER TABLE %s REPLICA IDENTITY FULL",
							 commands.len > 0 ? "; " : "",
							 quote_qualified_identifier(schema, name));
	}
	return commands.data;
}

/*
 * With REPLICA IDENTITY FULL a table's key is its primary key, which the shape
 * may not have been declared with.
 */
static bool
full_changes_key(Relation rel)
{
	list_free(RelationGetIndexList(rel));
	return rel->rd_rel->relkind == RELKIND_RELATION &&
		rel->rd_rel->relreplident == REPLICA_IDENTITY_INDEX &&
		rel->rd_replidindex != rel->rd_pkindex;
}

/*
 * A publication with a column list makes updates of a table with REPLICA
 * IDENTITY FULL fail.
 */
static void
check_column_lists(Oid relid)
{
	ListCell   *lc;

	foreach(lc, GetRelationPublications(relid))
	{
		Publication *publication = GetPublication(lfirst_oid(lc));
		HeapTuple	tuple = SearchSysCache2(PUBLICATIONRELMAP, ObjectIdGetDatum(relid),
											ObjectIdGetDatum(lfirst_oid(lc)));
		bool		has_no_list = true;

		if (HeapTupleIsValid(tuple))
		{
			(void) SysCacheGetAttr(PUBLICATIONRELMAP, tuple,
								   Anum_pg_publication_rel_prattrs, &has_no_list);
			ReleaseSysCache(tuple);
		}
		if (!has_no_list &&
			(publication->pubactions.pubupdate || publication->pubactions.pubdelete))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot set replica identity FULL on table \"%s\"",
							get_rel_name(relid)),
					 errdetail("Publication \"%s\" has a column list for it, so UPDATE and DELETE on it would fail.",
							   publication->name),
					 errhint("Let that publication publish all columns, or leave out what in the shape needs the old values of other columns than the key's.")));
	}
}

/* May we set it?  ERROR if not. */
static void
check_may_alter(Relation rel, List *leaves, const EcmShapeNeeds *needs,
				Oid owner, const char *why)
{
	ListCell   *lc;

	if (!ecm_set_replica_identity || ecm_manual_table_publishing ||
		full_changes_key(rel))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 needs->where != NULL ?
				 errmsg("table \"%s\" needs replica identity FULL for this where clause",
						RelationGetRelationName(rel)) :
				 errmsg("table \"%s\" needs replica identity FULL for a shape",
						RelationGetRelationName(rel)),
				 errdetail("%s", why),
				 errhint("%s", ecm_fit_identity_commands(leaves))));
	foreach(lc, leaves)
	{
		Oid			leaf = lfirst_oid(lc);
		ListCell   *lc2;

		if (!ecm_table_is_owned(leaf, owner))
			aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, get_rel_name(leaf));
		check_column_lists(leaf);
		if (get_rel_relispartition(leaf))
			foreach(lc2, get_partition_ancestors(leaf))
				check_column_lists(lfirst_oid(lc2));
	}
}

List *
ecm_fit_leaves_to_alter(Oid relation, const EcmShapeNeeds *needs, Oid owner,
						LOCKMODE lockmode)
{
	Relation	rel = open_unlocked(relation);
	const char *why = NULL;
	List	   *leaves;

	if (rel == NULL)
		return NIL;
	leaves = lacking_leaves(rel, needs, lockmode, &why);
	if (leaves != NIL)
		check_may_alter(rel, leaves, needs, owner, why);
	RelationClose(rel);
	return leaves;
}

/* ----------------------------------------------------------- publication -- */

/*
 * By itself, by an ancestor, by its schema, or as all tables are.
 */
bool
ecm_is_published(Oid relation)
{
	Publication *publication = GetPublicationByName(ecm_publication_name, true);
	List	   *relations = list_make1_oid(relation);
	ListCell   *lc;

	if (publication == NULL)
		return false;
	if (publication->alltables)
		return true;
	if (get_rel_relispartition(relation))
		relations = list_concat(relations, get_partition_ancestors(relation));
	foreach(lc, relations)
		if (list_member_oid(GetRelationPublications(lfirst_oid(lc)), publication->oid) ||
			list_member_oid(GetSchemaPublications(get_rel_namespace(lfirst_oid(lc))),
							publication->oid))
			return true;
	return false;
}

bool
ecm_publishes_everything(void)
{
	Publication *publication = GetPublicationByName(ecm_publication_name, true);

	return publication == NULL || /* noticed in the stream */
		(publication->pubactions.pubinsert && publication->pubactions.pubupdate &&
		 publication->pubactions.pubdelete && publication->pubactions.pubtruncate &&
		 !publication->pubviaroot);
}

/* ------------------------------------------------------------- verifying -- */

/* What many shapes of a table have in common, and what must still be so. */
#define KIND_COLUMNS_SQL \
	"owner, relation_name, column_names, key_positions, where_names"
#define KIND_NCOLUMNS	5

typedef struct ShapeKind
{
	Datum		values[KIND_NCOLUMNS];
	bool		nulls[KIND_NCOLUMNS];
} ShapeKind;

/* Does a consumer follow it already, be it to create it? */
#define FOLLOWED_SQL \
	"EXISTS (SELECT FROM _electric_cm.shape_state t WHERE t.shape = s.id)"

static Oid	kind_types[KIND_NCOLUMNS] =
{OIDOID, TEXTOID, TEXTARRAYOID, INT2ARRAYOID, TEXTARRAYOID};

static char **
names_of(Datum array, int *n)
{
	Datum	   *elems;
	char	  **names;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &elems, NULL, n);
	names = palloc(sizeof(char *) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
		names[i] = TextDatumGetCString(elems[i]);
	return names;
}

/* Is the key what it was, column by column? */
static bool
same_key(Relation rel, const ShapeKind *kind, Bitmapset **key)
{
	AttrNumber	attnums[INDEX_MAX_KEYS];
	char	  **names;
	int			nnames;
	Datum	   *positions;
	int			nkeys;
	Oid			index = ecm_fit_key_index(rel);

	names = names_of(kind->values[2], &nnames);
	deconstruct_array(DatumGetArrayTypeP(kind->values[3]), INT2OID, sizeof(int16),
					  true, TYPALIGN_SHORT, &positions, NULL, &nkeys);
	if (!OidIsValid(index) || index_columns(index, attnums) != nkeys)
		return false;
	for (int i = 0; i < nkeys; i++)
	{
		if (get_attnum(RelationGetRelid(rel),
					   names[DatumGetInt16(positions[i]) - 1]) != attnums[i])
			return false;
		*key = bms_add_member(*key, attnums[i]);
	}
	return true;
}

/*
 * What does not fit any more between shapes of a kind, of table 'rel', and what
 * 'changed', the table itself or one of its partitions, has become?  NULL if
 * their logs can go on.  *mendable: the attempt to create a shape could mend it.
 */
static const char *
misfit(const ShapeKind *kind, Relation rel, Relation changed, bool *mendable)
{
	Oid			relid = RelationGetRelid(rel);
	EcmShapeNeeds needs = {0};
	bool		missing = false;
	char	   *name;
	char	  **names;
	int			nnames;

	*mendable = false;
	name = ecm_relation_name(relid);
	if (name == NULL || strcmp(TextDatumGetCString(kind->values[1]), name) != 0)
		return "the table was renamed";
	if (!RelationIsPermanent(rel) || !RelationIsPermanent(changed))
		return "the table is not logged any more";
	if (!same_key(rel, kind, &needs.key))
		return "the table's key has changed";

	names = names_of(kind->values[2], &nnames);
	needs.columns = ecm_fit_attnums(relid, names, nnames, NULL, &missing);
	if (!kind->nulls[4])
	{
		names = names_of(kind->values[4], &nnames);
		needs.where = ecm_fit_attnums(relid, names, nnames, NULL, &missing);
	}
	if (missing)
		return "the table's columns were changed";
	if (check_enable_rls(relid, DatumGetObjectId(kind->values[0]), true) == RLS_ENABLED)
		return "row-level security applies to the shape's owner";
	*mendable = true;
	if (changed->rd_rel->relkind == RELKIND_RELATION &&
		identity_lacks(changed, rel, &needs) != NULL)
		return "the table's replica identity has changed";
	return NULL;
}

/* All kinds of a table's shapes; within ecm_spi_begin/end. */
static ShapeKind *
shape_kinds(Oid relid, int *n)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(relid);
	ShapeKind  *kinds;

	ecm_shapes_query("SELECT DISTINCT " KIND_COLUMNS_SQL
					 " FROM _electric_cm.shape WHERE relation = $1", 1, &type, &value);
	*n = (int) SPI_processed;
	kinds = palloc(sizeof(ShapeKind) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
		for (int j = 0; j < KIND_NCOLUMNS; j++)
			kinds[i].values[j] = SPI_getbinval(SPI_tuptable->vals[i],
											   SPI_tuptable->tupdesc, j + 1,
											   &kinds[i].nulls[j]);
	return kinds;
}

static void
delete_kind(Oid relid, const ShapeKind *kind, bool followed_only, const char *reason)
{
	Oid			types[KIND_NCOLUMNS + 1];
	Datum		values[KIND_NCOLUMNS + 1];
	char		nulls[KIND_NCOLUMNS + 1];

	for (int i = 0; i < KIND_NCOLUMNS; i++)
	{
		types[i] = kind_types[i];
		values[i] = kind->values[i];
		nulls[i] = kind->nulls[i] ? 'n' : ' ';
	}
	types[KIND_NCOLUMNS] = OIDOID;
	values[KIND_NCOLUMNS] = ObjectIdGetDatum(relid);
	nulls[KIND_NCOLUMNS] = ' ';
	(void) ecm_shapes_delete(psprintf("relation = $6 AND owner = $1 AND relation_name = $2"
									  " AND column_names = $3 AND key_positions = $4"
									  " AND where_names IS NOT DISTINCT FROM $5 AND %s",
									  followed_only ? FOLLOWED_SQL : "true"),
							 lengthof(types), types, values, nulls, reason);
}

/* Of those that are not followed yet, the table may be published yet. */
static void
delete_unpublished(Oid relid)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(relid);

	if (!ecm_is_published(relid))
		(void) ecm_shapes_delete("relation = $1 AND " FOLLOWED_SQL, 1, &type, &value,
								 NULL, "the table has left the publication");
}

static void
verify_shapes_of(Oid relid, Relation changed)
{
	EcmSpiState spi;
	Relation	rel;
	ShapeKind  *kinds;
	int			n;

	ecm_spi_begin(&spi);
	kinds = shape_kinds(relid, &n);
	if (n > 0 && (rel = open_unlocked(relid)) != NULL)
	{
		for (int i = 0; i < n; i++)
		{
			bool		mendable;
			const char *reason = misfit(&kinds[i], rel, changed, &mendable);

			if (reason != NULL)
				delete_kind(relid, &kinds[i], mendable, reason);
		}
		RelationClose(rel);

		delete_unpublished(relid);
	}
	ecm_spi_end(&spi);
}

/*
 * What is at stake: the table's own shapes, and those of the tables that it is
 * a partition of.
 */
void
ecm_shapes_verify(Oid relation)
{
	Relation	changed = open_unlocked(relation);
	List	   *relids;
	ListCell   *lc;

	if (changed == NULL)
		return;
	relids = changed->rd_rel->relispartition ? get_partition_ancestors(relation) : NIL;
	relids = lappend_oid(relids, relation);
	foreach(lc, relids)
		verify_shapes_of(lfirst_oid(lc), changed);
	RelationClose(changed);
}

/* Those tables that have shapes; within ecm_spi_begin/end. */
static List *
tables_with_shapes(const char *condition, Oid object)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(object);
	List	   *relids = NIL;

	ecm_shapes_query(psprintf("SELECT c.oid FROM pg_class c WHERE %s"
							  " AND c.oid IN (SELECT relation FROM _electric_cm.shape)",
							  condition), 1, &type, &value);
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
ecm_shapes_verify_schema(Oid schema)
{
	EcmSpiState spi;
	ListCell   *lc;

	ecm_spi_begin(&spi);
	foreach(lc, tables_with_shapes("c.relnamespace = $1", schema))
		ecm_shapes_verify(lfirst_oid(lc));
	ecm_spi_end(&spi);
}

void
ecm_shapes_verify_published(void)
{
	EcmSpiState spi;
	ListCell   *lc;

	if (GetPublicationByName(ecm_publication_name, true) == NULL)
		return;					/* noticed in the stream */
	ecm_spi_begin(&spi);
	foreach(lc, tables_with_shapes("c.oid <> $1", InvalidOid))
		delete_unpublished(lfirst_oid(lc));
	ecm_spi_end(&spi);
}

/*
 * From the shapes' side, since few have columns of such types: down into what
 * those are made of (arrays, domains, ranges, composite types).
 */
void
ecm_shapes_invalidate_type(Oid type, const char *reason)
{
	EcmSpiState spi;
	Oid			types[] = {OIDOID, OIDOID};
	Datum		values[] = {ObjectIdGetDatum(type), ObjectIdGetDatum(FirstNormalObjectId)};

	ecm_spi_begin(&spi);
	(void) ecm_shapes_delete("column_types && ARRAY("
							 "WITH RECURSIVE part (root, type) AS ("
							 "SELECT DISTINCT t, t FROM _electric_cm.shape, unnest(column_types) t"
							 " WHERE t >= $2"
							 " UNION SELECT part.root, inner_type FROM part"
							 " JOIN pg_type y ON y.oid = part.type, LATERAL ("
							 "SELECT y.typelem UNION SELECT y.typbasetype"
							 " UNION SELECT rngsubtype FROM pg_range WHERE rngtypid = y.oid OR rngmultitypid = y.oid"
							 " UNION SELECT atttypid FROM pg_attribute WHERE y.typrelid <> 0"
							 " AND attrelid = y.typrelid AND attnum > 0 AND NOT attisdropped"
							 ") i (inner_type) WHERE inner_type >= $2)"
							 " SELECT root FROM part WHERE type = $1)",
							 lengthof(types), types, values, NULL, reason);
	ecm_spi_end(&spi);
}
