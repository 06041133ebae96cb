/*-------------------------------------------------------------------------
 *
 * relation.c
 *	  The relations that the stream has described, and the tables whose
 *	  shapes want their changes.
 *
 * Two things come and go independently of each other: descriptions, with the
 * stream, and followed tables with their columns and layouts, with their shapes.
 * So the two are bound to each other by name only when a change comes, and anew
 * after either has changed.  A version number of the tables tells.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "nodes/bitmapset.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "base/bgworker.h"
#include "base/errors.h"
#include "base/partition.h"
#include "consumer/followed_shapes.h"
#include "consumer/log_batch.h"
#include "consumer/relation.h"
#include "consumer/shape_orders.h"

static MemoryContext relation_context;	/* of 'relations' and all in it */
static HTAB *relations;			/* of EcmRelation */

void
ecm_relations_forget(void)
{
	HASHCTL		ctl;

	if (relation_context == NULL)
		relation_context = AllocSetContextCreate(TopMemoryContext,
												 "electric_cm relations",
												 ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(relation_context);
	ctl.keysize = sizeof(LogicalRepRelId);
	ctl.entrysize = sizeof(EcmRelation);
	ctl.hcxt = relation_context;
	relations = hash_create("electric_cm relations", 64, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

void
ecm_relation_describe(StringInfo in)
{
	MemoryContext context = AllocSetContextCreate(relation_context,
												  "electric_cm relation",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	LogicalRepRelation *rel = logicalrep_read_rel(in);
	EcmRelation *relation;
	bool		found;

	relation = hash_search(relations, &rel->remoteid, HASH_ENTER, &found);
	if (found)
		MemoryContextDelete(relation->context);
	relation->context = context;
	relation->rel = rel;
	relation->full = rel->replident == REPLICA_IDENTITY_FULL;
	relation->tables_version = 0;
	relation->bindings_context = AllocSetContextCreate(context, "electric_cm bindings",
													   ALLOCSET_SMALL_SIZES);
	relation->bindings = NIL;
	MemoryContextSwitchTo(old);
}

/*
 * Maps a table's columns to a relation's by name (a partition may have its
 * columns in another order).
 */
static int *
map_columns(EcmTable *table, LogicalRepRelation *rel)
{
	int		   *map = palloc(sizeof(int) * Max(table->ncolumns, 1));

	for (int i = 0; i < table->ncolumns; i++)
	{
		map[i] = -1;
		for (int j = 0; j < rel->natts && map[i] < 0; j++)
			if (table->columns[i].type == rel->atttyps[j] &&
				strcmp(table->columns[i].name, rel->attnames[j]) == 0)
				map[i] = j;
	}
	return map;
}

/*
 * Does the relation have all columns that shapes of this layout need, and do
 * its old tuples have their key and the columns that their where clauses refer
 * to?  If a command has changed that, the shapes' logs can't be continued: a
 * delete would have no key, or it could not be told whether a row was in a shape.
 */
static bool
layout_is_usable(const EcmLayout *layout, const int *map, EcmRelation *relation)
{
	for (int i = 0; i < layout->ncolumns; i++)
		if (layout->columns[i] >= 0 && map[layout->columns[i]] < 0)
			return false;
	for (int i = 0; i < layout->nkeys; i++)
		if (!relation->full &&
			!bms_is_member(map[layout->columns[layout->keys[i]]], relation->rel->attkeys))
			return false;
	for (int i = 0; i < layout->nfilter_columns; i++)
	{
		int			col = map[layout->filter_columns[i]];

		if (col < 0 || (!relation->full && !bms_is_member(col, relation->rel->attkeys)))
			return false;
	}
	return true;
}

typedef struct AncestorsArg
{
	Oid			relid;
	MemoryContext context;		/* where 'ancestors' goes */
	List	   *ancestors;		/* of OIDs; the last one is relid itself */
} AncestorsArg;

/* In a transaction: reads which tables the relation is a partition of. */
static void
read_ancestors(void *arg)
{
	AncestorsArg *a = arg;
	List	   *ancestors = ecm_partition_ancestors(a->relid);

	MemoryContextSwitchTo(a->context);
	a->ancestors = lappend_oid(list_copy(ancestors), a->relid);
}

/*
 * Binds a table to a relation, in the current context.  Its shapes that can't be
 * served from the relation are ordered to be resynced where the transaction commits.  If
 * the transaction is lost and comes again, binding and order come again, too.
 */
static EcmBinding *
bind_table(EcmTable *table, EcmRelation *relation)
{
	EcmBinding *binding = palloc(sizeof(EcmBinding));
	ListCell   *lc;

	binding->table = table;
	binding->map = map_columns(table, relation->rel);
	binding->usable = palloc(sizeof(bool) * Max(list_length(table->layouts), 1));
	foreach(lc, table->layouts)
	{
		EcmLayout  *layout = lfirst(lc);

		binding->usable[layout->number] = layout_is_usable(layout, binding->map, relation);
		if (!binding->usable[layout->number])
			ecm_orders_add_mismatch(table->relid, layout->number, relation->relid);
	}
	return binding;
}

/*
 * Binds the relation to all followed tables that it concerns: its own, and those
 * that it is a partition of.  Their noted shapes are taken up now, as the first
 * change of them has come.
 */
static void
bind_relation(EcmRelation *relation)
{
	AncestorsArg arg = {relation->relid, CurrentMemoryContext, NIL};
	ListCell   *lc;
	MemoryContext old;

	if (ecm_log_batch_in_transaction())
		read_ancestors(&arg);
	else
	{
		EcmError	err;

		if (!ecm_worker_try(read_ancestors, &arg, &err))
			ereport(ERROR,
					(errcode(MAKE_SQLSTATE(err.sqlstate[0], err.sqlstate[1],
										   err.sqlstate[2], err.sqlstate[3],
										   err.sqlstate[4])),
					 errmsg("could not look up relation %u: %s",
							relation->relid, err.message)));
	}
	MemoryContextSwitchTo(arg.context);
	foreach(lc, arg.ancestors)
	{
		if (!ecm_follow_is_due(lfirst_oid(lc)))
			continue;
		ecm_log_batch_enter_transaction();
		ecm_follow_table(lfirst_oid(lc));
	}
	MemoryContextReset(relation->bindings_context);
	old = MemoryContextSwitchTo(relation->bindings_context);
	relation->bindings = NIL;
	foreach(lc, arg.ancestors)
	{
		EcmTable   *table = ecm_followed_table(lfirst_oid(lc));

		if (table != NULL)
			relation->bindings = lappend(relation->bindings, bind_table(table, relation));
	}
	MemoryContextSwitchTo(old);
	relation->tables_version = ecm_tables_version;
}

EcmRelation *
ecm_relation_find(LogicalRepRelId relid)
{
	EcmRelation *relation = hash_search(relations, &relid, HASH_FIND, NULL);

	if (relation == NULL)
		elog(ERROR, "change of relation %u, which the stream has not described",
			 relid);
	if (relation->tables_version != ecm_tables_version)
		bind_relation(relation);
	return relation;
}
