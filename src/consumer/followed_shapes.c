/*-------------------------------------------------------------------------
 *
 * followed_shapes.c
 *	  The shapes that a consumer follows, by table; taken up when they are
 *	  needed.
 *
 * To read a hundred thousand definitions, and to compile their where clauses,
 * takes seconds.  A consumer that starts only notes which shapes there are; a
 * table's are taken up when the first change of that table comes in.  Shapes
 * of tables that nobody changes cost an entry in a hash table each.
 *
 * A shape that is being captured is taken up at once, as orders in the stream may
 * concern it before the next change.  So all noted shapes are live, and remain so
 * until an order in the stream ends them.
 *
 * The coming and going of a shape may not cost more the more shapes there are: a
 * hundred thousand of them may come one by one.  Shapes share columns, layouts and
 * indexes of their table, which are kept once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/executor.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "consumer/current_shape.h"
#include "consumer/followed_shapes.h"
#include "consumer/log_batch.h"
#include "shape/shape.h"
#include "shape/shape_catalog.h"
#include "shape/shape_filter.h"

/* A shape that was taken up, by its id. */
typedef struct ShapeEntry
{
	int64		id;				/* hash key */
	EcmShape   *shape;
} ShapeEntry;

/* A table that has any, by its OID. */
typedef struct TableEntry
{
	Oid			relid;			/* hash key */
	EcmTable   *table;
} TableEntry;

/* A shape that was only noted. */
typedef struct NotedShape
{
	int64		id;				/* hash key */
	Oid			relation;
} NotedShape;

/* A table that has noted shapes, so that a change of it need not look for any. */
typedef struct NotedTable
{
	Oid			relation;		/* hash key */
	int			nshapes;		/* more than 0 */
} NotedTable;

uint32		ecm_tables_version = 1;

/* Made by ecm_followed_start(), for the life of the process. */
typedef struct FollowedShapes
{
	int			worker;			/* this consumer's number */
	MemoryContext context;		/* of tables and shapes that were taken up */
	HTAB	   *shapes;			/* of ShapeEntry */
	HTAB	   *tables;			/* of TableEntry */
	dlist_head	gone;			/* shapes that are not followed any more,
								 * whose buffers lists of log_batch.c may have */
	HTAB	   *noted;			/* of NotedShape: none is in 'shapes', too */
	HTAB	   *noted_tables;	/* of NotedTable */
	XLogRecPtr	bind_again_at;	/* the greatest skip_until of the shapes; see
								 * ecm_followed_begin().  Invalid: passed. */
} FollowedShapes;

static FollowedShapes followed =
{
	.gone = DLIST_STATIC_INIT(followed.gone)
};

static HTAB *
create_hash(const char *name, Size keysize, Size entrysize, MemoryContext context)
{
	HASHCTL		ctl;

	ctl.keysize = keysize;
	ctl.entrysize = entrysize;
	ctl.hcxt = context;
	return hash_create(name, 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

EcmShape *
ecm_followed_find(int64 id)
{
	ShapeEntry *entry = hash_search(followed.shapes, &id, HASH_FIND, NULL);

	return entry ? entry->shape : NULL;
}

/* --------------------------------------------------------------- tables -- */

EcmTable *
ecm_followed_table(Oid relid)
{
	TableEntry *entry = hash_search(followed.tables, &relid, HASH_FIND, NULL);

	return entry ? entry->table : NULL;
}

/* The table, which is made if there is none. */
static EcmTable *
get_table(Oid relid)
{
	EcmTable   *table = ecm_followed_table(relid);
	TableEntry *entry;

	if (table != NULL)
		return table;
	table = MemoryContextAllocZero(followed.context, sizeof(EcmTable));
	table->relid = relid;
	table->context = AllocSetContextCreate(followed.context, "electric_cm table",
										   ALLOCSET_SMALL_SIZES);
	dlist_init(&table->unfiltered);
	dlist_init(&table->scanned);
	entry = hash_search(followed.tables, &relid, HASH_ENTER, NULL);
	entry->table = table;
	ecm_tables_version++;
	return table;
}

static void
remove_table_if_empty(EcmTable *table)
{
	if (table->nshapes > 0)
		return;
	(void) hash_search(followed.tables, &table->relid, HASH_REMOVE, NULL);
	MemoryContextDelete(table->context);
	pfree(table);
	ecm_tables_version++;
}

/*
 * Frees what where clauses are evaluated with, when the table gets another column:
 * the slot has one attribute per column.
 */
static void
forget_slot(EcmTable *table)
{
	if (table->slot != NULL)
		ExecDropSingleTupleTableSlot(table->slot);
	if (table->econtext != NULL)
		FreeExprContext(table->econtext, true);
	if (table->desc != NULL)
		FreeTupleDesc(table->desc);
	table->slot = NULL;
	table->econtext = NULL;
	table->desc = NULL;
}

/*
 * The number of the table's column with this name and type, which is added if
 * there is none.  Columns that no shape uses any more stay: bindings, layouts and
 * compiled where clauses refer to columns by number.
 */
static int
get_column(EcmTable *table, const char *name, Oid type)
{
	EcmTableColumn *column;

	for (int i = 0; i < table->ncolumns; i++)
		if (table->columns[i].type == type &&
			strcmp(table->columns[i].name, name) == 0)
			return i;

	if (table->ncolumns >= table->max_columns)
	{
		int			max = Max(8, table->max_columns * 2);

		table->columns = table->columns ?
			repalloc(table->columns, sizeof(EcmTableColumn) * max) :
			MemoryContextAlloc(table->context, sizeof(EcmTableColumn) * max);
		table->max_columns = max;
	}
	column = &table->columns[table->ncolumns];
	memset(column, 0, sizeof(*column));
	column->name = MemoryContextStrdup(table->context, name);
	column->type = type;
	forget_slot(table);
	ecm_tables_version++;
	return table->ncolumns++;
}

/* Looks up what is needed to read the column's values for where clauses. */
static void
set_filtered(EcmTable *table, int number)
{
	EcmTableColumn *column = &table->columns[number];
	Oid			function;

	if (column->filtered)
		return;
	getTypeInputInfo(column->type, &function, &column->typioparam);
	fmgr_info_cxt(function, &column->input, table->context);
	column->filtered = true;
}

static bool
same_layout(const EcmLayout *a, const EcmLayout *b)
{
	return a->ncolumns == b->ncolumns && a->nkeys == b->nkeys &&
		a->nfilter_columns == b->nfilter_columns &&
		memcmp(a->columns, b->columns, sizeof(int) * a->ncolumns) == 0 &&
		memcmp(a->keys, b->keys, sizeof(int16) * a->nkeys) == 0 &&
		memcmp(a->filter_columns, b->filter_columns,
			   sizeof(int) * a->nfilter_columns) == 0;
}

static void *
copy_array(MemoryContext context, const void *from, Size size)
{
	void	   *copy = MemoryContextAlloc(context, Max(size, 1));

	memcpy(copy, from, size);
	return copy;
}

/*
 * The layout that a shape of this definition has, which is made if there is none.
 * ERROR if a type that its where clause refers to is gone.
 */
static EcmLayout *
get_layout(EcmTable *table, const EcmShapeDef *def)
{
	EcmLayout	wanted = {0};
	EcmLayout  *layout;
	ListCell   *lc;
	MemoryContext old;

	wanted.ncolumns = def->ncolumns;
	wanted.columns = palloc(sizeof(int) * Max(def->ncolumns, 1));
	for (int i = 0; i < def->ncolumns; i++)
		wanted.columns[i] = ecm_column_is_gone(def, i) ? -1 :
			get_column(table, def->column_names[i], def->column_types[i]);
	wanted.nkeys = def->nkeys;
	wanted.keys = def->key_positions;
	wanted.nfilter_columns = def->filter ? def->filter->ncolumns : 0;
	wanted.filter_columns = palloc(sizeof(int) * Max(wanted.nfilter_columns, 1));
	for (int i = 0; i < wanted.nfilter_columns; i++)
	{
		wanted.filter_columns[i] = get_column(table, def->filter->names[i],
											  def->filter->types[i]);
		set_filtered(table, wanted.filter_columns[i]);
	}

	foreach(lc, table->layouts)
	{
		layout = lfirst(lc);
		if (same_layout(layout, &wanted))
		{
			pfree(wanted.columns);
			pfree(wanted.filter_columns);
			return layout;
		}
	}

	layout = MemoryContextAlloc(table->context, sizeof(EcmLayout));
	*layout = wanted;
	layout->number = list_length(table->layouts);
	layout->columns = copy_array(table->context, wanted.columns,
								 sizeof(int) * wanted.ncolumns);
	layout->keys = copy_array(table->context, wanted.keys,
							  sizeof(int16) * wanted.nkeys);
	layout->filter_columns = copy_array(table->context, wanted.filter_columns,
										sizeof(int) * wanted.nfilter_columns);
	layout->names = MemoryContextAlloc(table->context,
									   sizeof(char *) * Max(layout->ncolumns, 1));
	for (int i = 0; i < layout->ncolumns; i++)
		layout->names[i] = layout->columns[i] < 0 ? "" : table->columns[layout->columns[i]].name;
	layout->whole = true;
	for (int i = 0; i < layout->ncolumns; i++)
		layout->whole &= layout->columns[i] == i;
	pfree(wanted.columns);
	pfree(wanted.filter_columns);

	old = MemoryContextSwitchTo(table->context);
	table->layouts = lappend(table->layouts, layout);
	table->max_shape_columns = Max(table->max_shape_columns, layout->ncolumns);
	MemoryContextSwitchTo(old);
	ecm_tables_version++;
	return layout;
}

/* -------------------------------------------------------------- indexes -- */

static EcmEqualityIndex *
find_index(EcmTable *table, const EcmFilter *filter)
{
	ListCell   *lc;

	foreach(lc, table->indexes)
	{
		EcmEqualityIndex *index = lfirst(lc);

		if (index->attno == filter->equal_attno &&
			index->operator == filter->equal_operator &&
			index->collation == filter->equal_collation)
			return index;
	}
	return NULL;
}

static EcmEqualityIndex *
create_index(EcmTable *table, const EcmFilter *filter)
{
	EcmEqualityIndex *index = MemoryContextAlloc(table->context, sizeof(EcmEqualityIndex));
	RegProcedure hash_column;
	RegProcedure hash_constant;
	MemoryContext old;

	if (!get_op_hash_functions(filter->equal_operator, &hash_column, &hash_constant))
		elog(ERROR, "operator %u is not hashable", filter->equal_operator);
	index->attno = filter->equal_attno;
	index->operator = filter->equal_operator;
	index->collation = filter->equal_collation;
	fmgr_info_cxt(get_opcode(filter->equal_operator), &index->equal, table->context);
	fmgr_info_cxt(hash_column, &index->hash_column, table->context);
	fmgr_info_cxt(hash_constant, &index->hash_constant, table->context);
	index->entries = create_hash("electric_cm constants", sizeof(uint32),
								 sizeof(EcmIndexEntry), table->context);
	old = MemoryContextSwitchTo(table->context);
	table->indexes = lappend(table->indexes, index);
	MemoryContextSwitchTo(old);
	return index;
}

/*
 * Constant and column may have different types, such as int8 and int4.  The
 * operator's hash functions for the two give equal values the same hash.
 */
static uint32
hash_constant(EcmEqualityIndex *index, Datum constant)
{
	return DatumGetUInt32(FunctionCall1Coll(&index->hash_constant,
											index->collation, constant));
}

static void
index_shape(EcmEqualityIndex *index, EcmShape *shape)
{
	for (int i = 0; i < shape->filter->nequals; i++)
	{
		Datum		constant = shape->filter->equals[i];
		uint32		hash = hash_constant(index, constant);
		EcmIndexMember *member = MemoryContextAlloc(shape->table->context,
													sizeof(EcmIndexMember));
		bool		found;
		EcmIndexEntry *entry = hash_search(index->entries, &hash, HASH_ENTER, &found);

		member->constant = constant;
		member->shape = shape;
		member->next = found ? entry->members : NULL;
		entry->members = member;
	}
}

static void
unindex_shape(EcmEqualityIndex *index, EcmShape *shape)
{
	for (int i = 0; i < shape->filter->nequals; i++)
	{
		uint32		hash = hash_constant(index, shape->filter->equals[i]);
		EcmIndexEntry *entry = hash_search(index->entries, &hash, HASH_FIND, NULL);
		EcmIndexMember **link;

		if (entry == NULL)
			continue;			/* IN (1, 1): all members of the shape were
								 * removed with the first 1 */
		for (link = &entry->members; *link != NULL;)
		{
			EcmIndexMember *member = *link;

			if (member->shape != shape)
				link = &member->next;
			else
			{
				*link = member->next;
				pfree(member);
			}
		}
		if (entry->members == NULL)
			(void) hash_search(index->entries, &hash, HASH_REMOVE, NULL);
	}
}

/* --------------------------------------------------------------- shapes -- */

/*
 * Compiles a where clause for the table's slot.  ERROR if it does not compile any
 * more: a function that it calls has been dropped, say.
 */
static EcmFilter *
compile_filter(EcmTable *table, EcmLayout *layout, const EcmFilterDef *def)
{
	AttrNumber *attnos = palloc(sizeof(AttrNumber) * Max(def->ncolumns, 1));
	EcmFilter  *filter;

	for (int i = 0; i < def->ncolumns; i++)
		attnos[i] = layout->filter_columns[i] + 1;
	if (table->lower_case == NULL)
		table->lower_case = ecm_lower_case_create(table->context);
	filter = ecm_filter_compile(def, attnos, table->context, table->lower_case);
	pfree(attnos);
	return filter;
}

/*
 * Makes the struct of a shape, and puts it where changes find it.  What can fail
 * comes first.  After an ERROR the table may have a column, layout or index that
 * no shape uses, but no half of a shape.
 */
static EcmShape *
add_shape(const EcmShapeDef *def)
{
	EcmTable   *table = get_table(def->relation);
	EcmLayout  *layout = get_layout(table, def);
	EcmFilter  *filter = NULL;
	EcmEqualityIndex *index = NULL;
	EcmShape   *shape;
	ShapeEntry *entry;
	EcmCapturedMark mark;

	if (def->filter != NULL)
	{
		filter = compile_filter(table, layout, def->filter);
		if (filter->equal_attno != 0 &&
			(index = find_index(table, filter)) == NULL)
			index = create_index(table, filter);
	}

	ecm_captured_begin(def->id, def->state == ECM_SHAPE_LIVE ? InvalidXLogRecPtr : def->gap_lsn,
					   &mark);

	/* from here on nothing fails */
	shape = MemoryContextAllocZero(followed.context, sizeof(EcmShape));
	shape->judged = mark;
	shape->id = def->id;
	shape->generation = def->generation;
	shape->skip_until = def->skip_until;
	shape->owner = def->owner;
	shape->table = table;
	shape->layout = layout;
	shape->filter = filter;
	shape->buffer.shape = def->id;
	shape->buffer.ncolumns = def->ncolumns;
	shape->buffer.capturing = def->state != ECM_SHAPE_LIVE;
	table->nshapes++;
	if (filter == NULL)
		dlist_push_tail(&table->unfiltered, &shape->node);
	else
	{
		table->any_filter = true;
		if (index != NULL)
			index_shape(index, shape);
		else
			dlist_push_tail(&table->scanned, &shape->node);
	}
	entry = hash_search(followed.shapes, &shape->id, HASH_ENTER, NULL);
	entry->shape = shape;
	return shape;
}

void
ecm_unfollow(EcmShape *shape)
{
	EcmTable   *table = shape->table;

	if (shape->filter != NULL && shape->filter->equal_attno != 0)
		unindex_shape(find_index(table, shape->filter), shape);
	else
		dlist_delete(&shape->node);
	if (shape->filter != NULL)
		ecm_filter_free(shape->filter);
	shape->filter = NULL;
	shape->layout = NULL;
	shape->table = NULL;
	shape->buffer.gone = true;
	dlist_push_tail(&followed.gone, &shape->node);
	(void) hash_search(followed.shapes, &shape->id, HASH_REMOVE, NULL);
	table->nshapes--;
	remove_table_if_empty(table);
}

void
ecm_followed_free_gone(void)
{
	while (!dlist_is_empty(&followed.gone))
		pfree(dlist_container(EcmShape, node, dlist_pop_head_node(&followed.gone)));
}

List *
ecm_followed_list(const EcmTable *table, const EcmLayout *layout)
{
	HASH_SEQ_STATUS seq;
	ShapeEntry *entry;
	List	   *result = NIL;

	hash_seq_init(&seq, followed.shapes);
	while ((entry = hash_seq_search(&seq)) != NULL)
		if (entry->shape->table == table &&
			(layout == NULL || entry->shape->layout == layout))
			result = lappend(result, entry->shape);
	return result;
}

/* ---------------------------------------------------- noted, and taken up -- */

void
ecm_follow_shape(const EcmShapeDef *def)
{
	ecm_work_on(def->id);
	(void) add_shape(def);
	ecm_work_on(0);
	followed.bind_again_at = Max(followed.bind_again_at, def->skip_until);
}

/*
 * A shape that has come from another consumer skips transactions up to its
 * skip_until.  A layout that did not fit its relation in one of these was ordered
 * to be resynced, but the order did not count for this shape.  So when the last shape is
 * past its skip_until, all relations are bound again, and a layout that still does
 * not fit is found anew.
 */
void
ecm_followed_begin(void)
{
	if (XLogRecPtrIsInvalid(followed.bind_again_at) || ecm_log_batch_is_past(followed.bind_again_at))
		return;
	ecm_tables_version++;
	followed.bind_again_at = InvalidXLogRecPtr;
}

static void
note_shape(int64 id, Oid relation, bool live, void *arg pg_attribute_unused())
{
	NotedShape *shape;
	NotedTable *table;
	bool		found;

	if (!live)
		return;
	shape = hash_search(followed.noted, &id, HASH_ENTER, NULL);
	shape->relation = relation;
	table = hash_search(followed.noted_tables, &relation, HASH_ENTER, &found);
	table->nshapes = found ? table->nshapes + 1 : 1;
}

static void
follow_captured(const EcmShapeDef *def, void *arg pg_attribute_unused())
{
	ecm_follow_shape(def);
}

void
ecm_followed_start(int worker)
{
	followed.worker = worker;
	followed.context = AllocSetContextCreate(TopMemoryContext, "electric_cm shapes",
											 ALLOCSET_DEFAULT_SIZES);
	followed.shapes = create_hash("electric_cm shapes", sizeof(int64),
								  sizeof(ShapeEntry), followed.context);
	followed.tables = create_hash("electric_cm tables", sizeof(Oid),
								  sizeof(TableEntry), followed.context);
	followed.noted = create_hash("electric_cm noted shapes", sizeof(int64),
								 sizeof(NotedShape), TopMemoryContext);
	followed.noted_tables = create_hash("electric_cm noted tables", sizeof(Oid),
										sizeof(NotedTable), TopMemoryContext);
	ecm_shape_ids_of_worker(worker, note_shape, NULL);
	ecm_shapes_of_worker(worker, InvalidOid, follow_captured, NULL);
}

void
ecm_unfollow_noted(int64 id)
{
	NotedShape *shape = hash_search(followed.noted, &id, HASH_FIND, NULL);
	NotedTable *table;

	if (shape == NULL)
		return;
	table = hash_search(followed.noted_tables, &shape->relation, HASH_FIND, NULL);
	if (--table->nshapes == 0)
		(void) hash_search(followed.noted_tables, &table->relation, HASH_REMOVE, NULL);
	(void) hash_search(followed.noted, &id, HASH_REMOVE, NULL);
}

int
ecm_followed_count(void)
{
	return (int) (hash_get_num_entries(followed.shapes) +
				  hash_get_num_entries(followed.noted));
}

bool
ecm_follow_is_due(Oid relation)
{
	return hash_search(followed.noted_tables, &relation, HASH_FIND, NULL) != NULL;
}

static void
follow_noted(const EcmShapeDef *def, void *arg pg_attribute_unused())
{
	if (hash_search(followed.noted, &def->id, HASH_FIND, NULL) == NULL)
		return;					/* taken up already, or not live yet */
	ecm_follow_shape(def);
	ecm_unfollow_noted(def->id);
}

/*
 * A noted shape whose row has disappeared was dropped by a transaction that the
 * stream has not reached yet.  Its log can't be read any more, so it is forgotten
 * now: else each further change of the table would look for it again.
 */
void
ecm_follow_table(Oid relation)
{
	HASH_SEQ_STATUS seq;
	NotedShape *shape;

	PushActiveSnapshot(GetLatestSnapshot());
	ecm_shapes_of_worker(followed.worker, relation, follow_noted, NULL);
	PopActiveSnapshot();
	if (!ecm_follow_is_due(relation))
		return;
	hash_seq_init(&seq, followed.noted);
	while ((shape = hash_seq_search(&seq)) != NULL)
		if (shape->relation == relation)
			ecm_unfollow_noted(shape->id);
}
