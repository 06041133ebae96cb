/*-------------------------------------------------------------------------
 *
 * shape_requirements.c
 *	  What a shape needs of its table: a key, a replica identity, columns.
 *
 * The question is asked when a shape is created and, since a command may
 * change the answer, after each command that alters the table
 * (shape_verify.c).
 *
 * After such a command, another session may hold a lock on the table, or on
 * one of its ancestors, and wait for ours.  So nothing here takes a lock then,
 * and only the catalogs are looked at.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_rel.h"
#include "lib/stringinfo.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/partition.h"
#include "shape/shape_requirements.h"
#include "shape/shape_settings.h"

/* --------------------------------------------------------------- columns -- */

Bitmapset *
ecm_column_attnums(Oid relation, char **names, int nnames, Bitmapset *attnums,
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

/* ------------------------------------------------------------------- key -- */

Relation
ecm_open_unlocked(Oid relid)
{
	return SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)) ?
		RelationIdGetRelation(relid) : NULL;
}

Oid
ecm_key_index(Relation rel)
{
	list_free(RelationGetIndexList(rel));	/* fills the fields below */
	return rel->rd_rel->relreplident == REPLICA_IDENTITY_FULL ?
		rel->rd_pkindex : rel->rd_replidindex;
}

int
ecm_index_columns(Oid index, AttrNumber *attnums)
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

/*
 * The columns that old rows have in the stream, for a table whose replica
 * identity is not FULL.
 */
static Bitmapset *
identity_columns(Relation rel)
{
	AttrNumber	attnums[INDEX_MAX_KEYS];
	Bitmapset  *result = NULL;
	int			n;

	list_free(RelationGetIndexList(rel));
	n = ecm_index_columns(rel->rd_replidindex, attnums);
	for (int i = 0; i < n; i++)
		result = bms_add_member(result, attnums[i]);
	return result;
}

/*
 * In the stream, an old row has only the columns of the replica identity.  So
 * the identity must include the key, by which the consumer finds the row, and
 * the columns of the where clause, by which it decides whether the old row was
 * in the shape.  With a where clause there is one thing more: if an update
 * moves a row into the shape, the shape needs all values of the row, but those
 * that are TOASTed and unchanged are sent only as part of the old row.
 */
const char *
ecm_identity_lacks(Relation leaf, Relation root, const EcmShapeNeeds *needs)
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

		/*
		 * the column's own storage setting does not count: older rows, and
		 * other leaves, may have been stored under another one
		 */
		if (get_typstorage(att->atttypid) != TYPSTORAGE_PLAIN)
			return psprintf("An update can move a row into the shape, and the stream then lacks a TOASTed value of column \"%s\" that did not change.",
							NameStr(att->attname));
	}
	return NULL;
}

/*
 * The leaves whose replica identity does not suffice; *why becomes the reason
 * for one of them.
 */
static List *
lacking_leaves(Relation rel, const EcmShapeNeeds *needs, LOCKMODE lockmode,
			   const char **why)
{
	List	   *lacking = NIL;
	ListCell   *lc;

	foreach(lc, find_all_inheritors(RelationGetRelid(rel), lockmode, NULL))
	{
		Relation	leaf = ecm_open_unlocked(lfirst_oid(lc));
		const char *reason = NULL;

		if (leaf == NULL)
			continue;
		if (leaf->rd_rel->relkind == RELKIND_RELATION)
			reason = ecm_identity_lacks(leaf, rel, needs);
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
ecm_identity_commands(List *leaves)
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
 * Would REPLICA IDENTITY FULL change the key of shapes of the table?  With
 * FULL, the key is the primary key; now it is the index that the replica
 * identity names, if that is another one.
 */
static bool
full_changes_key(Relation rel)
{
	list_free(RelationGetIndexList(rel));
	return rel->rd_rel->relkind == RELKIND_RELATION &&
		rel->rd_rel->relreplident == REPLICA_IDENTITY_INDEX &&
		rel->rd_replidindex != rel->rd_pkindex;
}

const char *
ecm_column_against_full(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
		if (!TupleDescAttr(desc, i)->attisdropped && ecm_is_virtual(TupleDescAttr(desc, i)))
			return NameStr(TupleDescAttr(desc, i)->attname);
	return NULL;
}

static bool
has_column_list(Oid publication, Oid relid)
{
	HeapTuple	tuple = SearchSysCache2(PUBLICATIONRELMAP, ObjectIdGetDatum(relid),
										ObjectIdGetDatum(publication));
	bool		has_no_list = true;

	if (!HeapTupleIsValid(tuple))
		return false;
	(void) SysCacheGetAttr(PUBLICATIONRELMAP, tuple,
						   Anum_pg_publication_rel_prattrs, &has_no_list);
	ReleaseSysCache(tuple);
	return !has_no_list;
}

/*
 * A publication that leaves columns out makes updates of a table with REPLICA
 * IDENTITY FULL fail.
 */
static void
check_publications(List *publications, Oid relid, bool has_generated)
{
	ListCell   *lc;

	foreach(lc, publications)
	{
		Publication *publication = GetPublication(lfirst_oid(lc));
		bool		has_list = has_column_list(lfirst_oid(lc), relid);

		if ((!has_list && (!has_generated || ecm_publishes_generated(publication))) ||
			(!publication->pubactions.pubupdate && !publication->pubactions.pubdelete))
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" cannot have replica identity FULL, which a shape needs",
						get_rel_name(relid)),
				 has_list ?
				 errdetail("Publication \"%s\" has a column list for it, so UPDATE and DELETE on it would fail.",
						   publication->name) :
				 errdetail("Publication \"%s\" does not publish its generated columns, so UPDATE and DELETE on it would fail.",
						   publication->name),
				 errhint("Let that publication publish all columns, or leave out what in the shape needs the old values of other columns than the key's.")));
	}
}

/*
 * ERROR if the application's UPDATE and DELETE would fail with REPLICA IDENTITY
 * FULL, by whatever publishes the table.
 */
static void
check_full_is_harmless(Oid leaf, const char *why)
{
	Relation	rel = ecm_open_unlocked(leaf);
	List	   *relids = list_make1_oid(leaf);
	const char *column;
	bool		has_generated;
	ListCell   *lc;

	if (rel == NULL)
		return;
	column = ecm_column_against_full(rel);
	if (column != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" cannot have replica identity FULL, which a shape needs",
						RelationGetRelationName(rel)),
				 errdetail("%s UPDATE and DELETE would fail, since generated column \"%s\" is virtual.",
						   why, column),
				 errhint("Make that column STORED, or leave out what in the shape needs the old values of other columns than the key's.")));
	has_generated = ecm_has_stored_generated(RelationGetDescr(rel));
	RelationClose(rel);
	check_publications(GetAllTablesPublications(), leaf, has_generated);
	relids = list_concat(relids, ecm_partition_ancestors(leaf));
	foreach(lc, relids)
	{
		check_publications(ecm_relation_publications(lfirst_oid(lc)), lfirst_oid(lc),
						   has_generated);
		check_publications(GetSchemaPublications(get_rel_namespace(lfirst_oid(lc))),
						   lfirst_oid(lc), has_generated);
	}
}

/* Raises an ERROR unless we may set REPLICA IDENTITY FULL on these leaves. */
static void
check_may_alter(Relation rel, List *leaves, const EcmShapeNeeds *needs,
				Oid owner, const char *why)
{
	ListCell   *lc;

	foreach(lc, leaves)
		check_full_is_harmless(lfirst_oid(lc), why);
	if (!ecm_may_set_identity() || ecm_publishes_manually() ||
		full_changes_key(rel))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 needs->where != NULL ?
				 errmsg("table \"%s\" needs replica identity FULL for this where clause",
						RelationGetRelationName(rel)) :
				 errmsg("table \"%s\" needs replica identity FULL for a shape",
						RelationGetRelationName(rel)),
				 errdetail("%s", why),
				 errhint("%s", ecm_identity_commands(leaves))));
	foreach(lc, leaves)
	{
		Oid			leaf = lfirst_oid(lc);

		if (!ecm_table_is_owned(leaf, owner))
			aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, get_rel_name(leaf));
	}
}

List *
ecm_leaves_to_alter(Oid relation, const EcmShapeNeeds *needs, Oid owner,
					LOCKMODE lockmode)
{
	Relation	rel = ecm_open_unlocked(relation);
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

/* ------------------------------------------------------------ partitions -- */

static void
check_leaf(Relation leaf, Oid relation)
{
	const char *column = ecm_column_against_full(leaf);
	char	   *name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(leaf)),
												  RelationGetRelationName(leaf));

	if (leaf->rd_rel->relpersistence == RELPERSISTENCE_UNLOGGED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot create a shape of table \"%s\"", get_rel_name(relation)),
				 errdetail("Its partition \"%s\" is unlogged, and changes of unlogged tables are not replicated.",
						   RelationGetRelationName(leaf)),
				 errhint("ALTER TABLE %s SET LOGGED", name)));
	if (leaf->rd_rel->relkind == RELKIND_RELATION &&
		leaf->rd_rel->relreplident == REPLICA_IDENTITY_FULL && column != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot create a shape of table \"%s\"", get_rel_name(relation)),
				 errdetail("Once it is published, UPDATE and DELETE on \"%s\" fail, since its replica identity is FULL and generated column \"%s\" is virtual.",
						   RelationGetRelationName(leaf), column),
				 errhint("Make that column STORED; or, for a shape that needs no more than the key of old rows: ALTER TABLE %s REPLICA IDENTITY DEFAULT",
						 name)));
}

/*
 * The server keeps temporary tables and foreign ones out of partitioned ones.
 * The table is locked as its leaves are, and before them, as every command does:
 * one that has it would wait for a leaf, and we for the table.
 */
void
ecm_check_leaves(Oid relation, LOCKMODE lockmode)
{
	ListCell   *lc;

	if (lockmode != NoLock)
		LockRelationOid(relation, lockmode);
	foreach(lc, find_all_inheritors(relation, lockmode, NULL))
	{
		Relation	leaf = ecm_open_unlocked(lfirst_oid(lc));

		if (leaf == NULL)
			continue;
		check_leaf(leaf, relation);
		RelationClose(leaf);
	}
}
