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
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_rel.h"
#include "lib/stringinfo.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/compat.h"
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

/*
 * A publication with a column list makes updates of a table with REPLICA
 * IDENTITY FULL fail.
 */
static void
check_column_lists(Oid relid)
{
	ListCell   *lc;

	foreach(lc, ecm_relation_publications(relid))
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

/* Raises an ERROR unless we may set REPLICA IDENTITY FULL on these leaves. */
static void
check_may_alter(Relation rel, List *leaves, const EcmShapeNeeds *needs,
				Oid owner, const char *why)
{
	ListCell   *lc;

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

/*
 * Temporary and foreign tables need no check: the server does not let them be
 * published.
 */
void
ecm_check_partitions(Oid relation, LOCKMODE lockmode)
{
	ListCell   *lc;

	foreach(lc, find_all_inheritors(relation, lockmode, NULL))
	{
		Oid			leaf = lfirst_oid(lc);
		char	   *name = get_rel_name(leaf);

		if (name == NULL || get_rel_persistence(leaf) != RELPERSISTENCE_UNLOGGED)
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot create a shape of table \"%s\"", get_rel_name(relation)),
				 errdetail("Its partition \"%s\" is unlogged, and changes of unlogged tables are not replicated.",
						   name),
				 errhint("ALTER TABLE %s SET LOGGED",
						 quote_qualified_identifier(get_namespace_name(get_rel_namespace(leaf)),
													name))));
	}
}
