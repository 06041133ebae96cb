/*-------------------------------------------------------------------------
 *
 * shape_match.c
 *	  The shapes that a consumer follows, and which of them want a row.
 *
 * Nothing here may cost more the more shapes there are, neither a change nor
 * the coming and going of a shape; except for evaluating the where clauses
 * that are not an equality.  What shapes have in common is kept once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/executor.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "base/errors.h"
#include "consumer/shape_match.h"
#include "shape/shape_blame.h"

/* Those that ask for a constant in a column; chained by hash value. */
typedef struct IndexMember
{
	struct IndexMember *next;
	Datum		constant;		/* the filter's */
	EcmShape   *shape;
} IndexMember;

typedef struct IndexEntry
{
	uint32		hash;			/* hash key */
	IndexMember *members;
} IndexEntry;

/* Equalities of one column that look for the same in the same way. */
typedef struct EqualityIndex
{
	AttrNumber	attno;
	Oid			operator;
	Oid			collation;
	FmgrInfo	equal;
	FmgrInfo	hash_column;
	FmgrInfo	hash_constant;
	HTAB	   *entries;
} EqualityIndex;

/* The shape with an id. */
typedef struct ShapeEntry
{
	int64		id;				/* hash key */
	EcmShape   *shape;
} ShapeEntry;

/* The table with an OID. */
typedef struct TableEntry
{
	Oid			relid;			/* hash key */
	EcmTable   *table;
} TableEntry;

uint32		ecm_tables_version = 1;

static MemoryContext match_context;
static HTAB *shapes;
static HTAB *tables;
static dlist_head gone = DLIST_STATIC_INIT(gone);

/* counts upstream transactions */
static uint64 transaction;
static void (*match_failed) (EcmShape *shape, const char *message);

/* the column whose input function is running, else -1 */
static int	reading = -1;

/* results */
static EcmShape **matched[2];
static int	nmatched[2];
static int	max_matched[2];

static HTAB *
create_hash(const char *name, Size keysize, Size entrysize, MemoryContext context)
{
	HASHCTL		ctl;

	ctl.keysize = keysize;
	ctl.entrysize = entrysize;
	ctl.hcxt = context;
	return hash_create(name, 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

void
ecm_match_begin(void)
{
	transaction++;
}

void
ecm_match_init(void (*failed) (EcmShape *shape, const char *message))
{
	match_failed = failed;
	match_context = AllocSetContextCreate(TopMemoryContext, "electric_cm shapes",
										  ALLOCSET_DEFAULT_SIZES);
	shapes = create_hash("electric_cm shapes", sizeof(int64),
						 sizeof(ShapeEntry), match_context);
	tables = create_hash("electric_cm tables", sizeof(Oid),
						 sizeof(TableEntry), match_context);
	for (int i = 0; i < 2; i++)
	{
		max_matched[i] = 16;
		matched[i] = MemoryContextAlloc(match_context,
										sizeof(EcmShape *) * max_matched[i]);
	}
}

int
ecm_match_nshapes(void)
{
	return (int) hash_get_num_entries(shapes);
}

EcmShape *
ecm_match_find(int64 id)
{
	ShapeEntry *entry = hash_search(shapes, &id, HASH_FIND, NULL);

	return entry ? entry->shape : NULL;
}

/* --------------------------------------------------------------- tables -- */

EcmTable *
ecm_match_table(Oid relid)
{
	TableEntry *entry = hash_search(tables, &relid, HASH_FIND, NULL);

	return entry ? entry->table : NULL;
}

static EcmTable *
get_table(Oid relid)
{
	EcmTable   *table = ecm_match_table(relid);
	TableEntry *entry;

	if (table != NULL)
		return table;
	table = MemoryContextAllocZero(match_context, sizeof(EcmTable));
	table->relid = relid;
	table->context = AllocSetContextCreate(match_context, "electric_cm table",
										   ALLOCSET_SMALL_SIZES);
	dlist_init(&table->unfiltered);
	dlist_init(&table->scanned);
	entry = hash_search(tables, &relid, HASH_ENTER, NULL);
	entry->table = table;
	ecm_tables_version++;
	return table;
}

static void
remove_table_if_empty(EcmTable *table)
{
	if (table->nshapes > 0)
		return;
	(void) hash_search(tables, &table->relid, HASH_REMOVE, NULL);
	MemoryContextDelete(table->context);
	pfree(table);
	ecm_tables_version++;
}

/* What was made for the columns so far is of no use any more. */
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
		wanted.columns[i] = get_column(table, def->column_names[i], def->column_types[i]);
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
		layout->names[i] = table->columns[layout->columns[i]].name;
	layout->whole = true;
	for (int i = 0; i < layout->ncolumns; i++)
		layout->whole &= layout->columns[i] == i;
	pfree(wanted.columns);
	pfree(wanted.filter_columns);

	old = MemoryContextSwitchTo(table->context);
	table->layouts = lappend(table->layouts, layout);
	MemoryContextSwitchTo(old);
	ecm_tables_version++;
	return layout;
}

/* -------------------------------------------------------------- indexes -- */

static EqualityIndex *
find_index(EcmTable *table, const EcmFilter *filter)
{
	ListCell   *lc;

	foreach(lc, table->indexes)
	{
		EqualityIndex *index = lfirst(lc);

		if (index->attno == filter->equal_attno &&
			index->operator == filter->equal_operator &&
			index->collation == filter->equal_collation)
			return index;
	}
	return NULL;
}

static EqualityIndex *
create_index(EcmTable *table, const EcmFilter *filter)
{
	EqualityIndex *index = MemoryContextAlloc(table->context, sizeof(EqualityIndex));
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
								 sizeof(IndexEntry), table->context);
	old = MemoryContextSwitchTo(table->context);
	table->indexes = lappend(table->indexes, index);
	MemoryContextSwitchTo(old);
	return index;
}

static uint32
hash_constant(EqualityIndex *index, Datum constant)
{
	return DatumGetUInt32(FunctionCall1Coll(&index->hash_constant,
											index->collation, constant));
}

static void
index_shape(EqualityIndex *index, EcmShape *shape)
{
	for (int i = 0; i < shape->filter->nequals; i++)
	{
		Datum		constant = shape->filter->equals[i];
		uint32		hash = hash_constant(index, constant);
		IndexMember *member = MemoryContextAlloc(shape->table->context,
												 sizeof(IndexMember));
		bool		found;
		IndexEntry *entry = hash_search(index->entries, &hash, HASH_ENTER, &found);

		member->constant = constant;
		member->shape = shape;
		member->next = found ? entry->members : NULL;
		entry->members = member;
	}
}

static void
unindex_shape(EqualityIndex *index, EcmShape *shape)
{
	for (int i = 0; i < shape->filter->nequals; i++)
	{
		uint32		hash = hash_constant(index, shape->filter->equals[i]);
		IndexEntry *entry = hash_search(index->entries, &hash, HASH_FIND, NULL);
		IndexMember **link;

		if (entry == NULL)
			continue;			/* an equal constant's turn was before */
		for (link = &entry->members; *link != NULL;)
		{
			IndexMember *member = *link;

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

static EcmFilter *
compile_filter(EcmTable *table, EcmLayout *layout, const EcmFilterDef *def)
{
	AttrNumber *attnos = palloc(sizeof(AttrNumber) * Max(def->ncolumns, 1));
	EcmFilter  *filter;

	for (int i = 0; i < def->ncolumns; i++)
		attnos[i] = layout->filter_columns[i] + 1;
	filter = ecm_filter_compile(def, attnos, table->context);
	pfree(attnos);
	return filter;
}

EcmShape *
ecm_match_add(const EcmShapeDef *def)
{
	EcmTable   *table = get_table(def->relation);
	EcmLayout  *layout = get_layout(table, def);
	EcmFilter  *filter = NULL;
	EqualityIndex *index = NULL;
	EcmShape   *shape;
	ShapeEntry *entry;

	if (def->filter != NULL)
	{
		filter = compile_filter(table, layout, def->filter);
		if (filter->equal_attno != 0 &&
			(index = find_index(table, filter)) == NULL)
			index = create_index(table, filter);
	}

	/* from here on nothing fails */
	shape = MemoryContextAllocZero(match_context, sizeof(EcmShape));
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
	entry = hash_search(shapes, &shape->id, HASH_ENTER, NULL);
	entry->shape = shape;
	return shape;
}

void
ecm_match_remove(EcmShape *shape)
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
	dlist_push_tail(&gone, &shape->node);
	(void) hash_search(shapes, &shape->id, HASH_REMOVE, NULL);
	table->nshapes--;
	remove_table_if_empty(table);
}

void
ecm_match_free_gone(void)
{
	while (!dlist_is_empty(&gone))
		pfree(dlist_container(EcmShape, node, dlist_pop_head_node(&gone)));
}

static bool
has_column(const EcmTable *table, const int *columns, int n, const char *column)
{
	for (int i = 0; i < n; i++)
		if (strcmp(table->columns[columns[i]].name, column) == 0)
			return true;
	return false;
}

bool
ecm_match_lacks(const EcmShape *shape, const char *column, uint64 since)
{
	const EcmLayout *layout = shape->layout;

	if (has_column(shape->table, layout->filter_columns, layout->nfilter_columns, column))
		return true;
	return shape->marks[ECM_NEW_TUPLE] > since &&
		has_column(shape->table, layout->columns, layout->ncolumns, column);
}

void
ecm_match_foreach(EcmTable *table, EcmLayout *layout, void (*fn) (EcmShape *shape))
{
	HASH_SEQ_STATUS seq;
	ShapeEntry *entry;

	hash_seq_init(&seq, shapes);
	while ((entry = hash_seq_search(&seq)) != NULL)
		if (entry->shape->table == table && entry->shape->layout == layout)
			fn(entry->shape);
}

/* ------------------------------------------------------------- matching -- */

static void
add_matched(EcmShape *shape, EcmWhich which, uint64 change)
{
	if (nmatched[which] >= max_matched[which])
	{
		max_matched[which] *= 2;
		matched[which] = repalloc(matched[which],
								  sizeof(EcmShape *) * max_matched[which]);
	}
	shape->marks[which] = change;
	matched[which][nmatched[which]++] = shape;
}

bool
ecm_match_has_failed(const EcmShape *shape)
{
	return shape->failed_in == transaction;
}

static void
make_slot(EcmTable *table)
{
	MemoryContext old = MemoryContextSwitchTo(table->context);

	table->desc = CreateTemplateTupleDesc(table->ncolumns);
	for (int i = 0; i < table->ncolumns; i++)
		TupleDescInitEntry(table->desc, i + 1, NULL, table->columns[i].type, -1, 0);
	table->slot = MakeSingleTupleTableSlot(table->desc, &TTSOpsVirtual);
	table->econtext = CreateStandaloneExprContext();
	table->econtext->ecxt_scantuple = table->slot;
	MemoryContextSwitchTo(old);
}

/*
 * The slot is for these values now.  Each is put into it when a where clause is
 * to look at it: there are types that don't read what they have written, and
 * that is nothing to shapes that the row has nothing to do with.
 */
static void
start_tuple(EcmTable *table, const EcmValue *values)
{
	if (table->slot == NULL)
		make_slot(table);
	ExecClearTuple(table->slot);
	for (int i = 0; i < table->ncolumns; i++)
	{
		table->columns[i].read = false;
		table->columns[i].unreadable = NULL;
		table->slot->tts_isnull[i] = true;
		table->slot->tts_values[i] = (Datum) 0;
	}
	ExecStoreVirtualTuple(table->slot);
	table->values = values;
}

/*
 * A value as the where clauses want it.  What was not sent counts as null; no
 * clause looks at it (that is checked where a relation is bound).  False: it
 * can't be read, as was found out before.
 */
static bool
read_column(EcmTable *table, int number)
{
	EcmTableColumn *column = &table->columns[number];
	const EcmValue *value = &table->values[number];

	if (column->read || column->unreadable != NULL)
		return column->read;
	if (value->kind == ECM_VALUE_TEXT)
	{
		reading = number;
		table->slot->tts_values[number] =
			InputFunctionCall(&column->input, unconstify(char *, value->text),
							  column->typioparam, -1);
		table->slot->tts_isnull[number] = false;
		reading = -1;
	}
	return column->read = true;
}

void
ecm_match_fail(EcmShape *shape, const char *message)
{
	shape->failed_in = transaction;
	match_failed(shape, message);
}

/* Is what an index has not decided of a where clause true for the tuple? */
static bool
rest_matches(EcmShape *shape)
{
	EcmTable   *table = shape->table;
	const EcmLayout *layout = shape->layout;

	ecm_gather_work_on(shape->id);
	for (int i = 0; i < layout->nfilter_columns; i++)
	{
		int			number = layout->filter_columns[i];

		if (read_column(table, number))
			continue;
		ecm_match_fail(shape, table->columns[number].unreadable);
		return false;
	}
	return ecm_filter_rest_matches(shape->filter, table->econtext, shape->owner);
}

/* Which of its shapes want the tuple can't be told. */
static void
fail_index(EqualityIndex *index, const char *message)
{
	HASH_SEQ_STATUS seq;
	IndexEntry *entry;

	hash_seq_init(&seq, index->entries);
	while ((entry = hash_seq_search(&seq)) != NULL)
		for (IndexMember *member = entry->members; member != NULL; member = member->next)
			if (!ecm_match_has_failed(member->shape))
				ecm_match_fail(member->shape, message);
}

static bool
is_equal(EqualityIndex *index, EcmTable *table, Datum value, Datum constant)
{
	MemoryContext old = MemoryContextSwitchTo(table->econtext->ecxt_per_tuple_memory);
	bool		result = DatumGetBool(FunctionCall2Coll(&index->equal, index->collation,
														value, constant));

	MemoryContextSwitchTo(old);
	ResetExprContext(table->econtext);
	return result;
}

static void
match_by_index(EqualityIndex *index, EcmTable *table, EcmWhich which, uint64 change)
{
	int			number = index->attno - 1;
	Datum		value;
	uint32		hash;
	IndexEntry *entry;

	ecm_gather_work_on(0);
	if (!read_column(table, number))
	{
		fail_index(index, table->columns[number].unreadable);
		return;
	}
	if (table->slot->tts_isnull[number])
		return;
	value = table->slot->tts_values[number];
	hash = DatumGetUInt32(FunctionCall1Coll(&index->hash_column, index->collation, value));
	entry = hash_search(index->entries, &hash, HASH_FIND, NULL);
	if (entry == NULL)
		return;
	for (IndexMember *member = entry->members; member != NULL; member = member->next)
	{
		EcmShape   *shape = member->shape;

		if (shape->marks[which] == change || ecm_match_has_failed(shape) ||
			!is_equal(index, table, value, member->constant))
			continue;
		if (rest_matches(shape))
			add_matched(shape, which, change);
	}
}

static void
match_all(EcmTable *table, EcmWhich which, uint64 change)
{
	dlist_iter	iter;
	ListCell   *lc;

	nmatched[which] = 0;
	dlist_foreach(iter, &table->unfiltered)
		add_matched(dlist_container(EcmShape, node, iter.cur), which, change);
	if (!table->any_filter)
		return;

	foreach(lc, table->indexes)
		match_by_index(lfirst(lc), table, which, change);
	dlist_foreach(iter, &table->scanned)
	{
		EcmShape   *shape = dlist_container(EcmShape, node, iter.cur);

		if (!ecm_match_has_failed(shape) && rest_matches(shape))
			add_matched(shape, which, change);
	}
	ecm_gather_work_on(0);
}

/* What is done about an error. */
typedef enum Verdict
{
	VERDICT_FAULT,				/* of the shape, or of the value */
	VERDICT_RETRY,
	VERDICT_RETHROW
} Verdict;

/*
 * Who lacks memory may lack it since others have it.  So it is the end of the
 * consumer; but when the transaction comes again, of what fails again.
 */
static Verdict
judge(const ErrorData *edata, int64 shape, int column, uint64 change)
{
	EcmFault	fault = ecm_error_fault(unpack_sql_state(edata->sqlerrcode),
										edata->message, ECM_WORK_FOLLOW);
	static struct
	{
		int64		shape;
		int			column;
		uint64		change;
	}			last;			/* that has failed for want of memory */

	if (fault == ECM_FAULT_OF_IT)
		return VERDICT_FAULT;
	if (fault != ECM_FAULT_IF_AGAIN || !ecm_blame_died_at(ecm_gather_lsn(), 0))
		return VERDICT_RETHROW;
	if (ecm_blame_died_at(ecm_gather_lsn(), shape) ||
		(last.shape == shape && last.column == column && last.change == change))
		return VERDICT_FAULT;
	last.shape = shape;
	last.column = column;
	last.change = change;
	return VERDICT_RETRY;
}

/*
 * Where the error that was caught is the fault of one shape, which is left out
 * then, or of one value, lets it be.  Else the error goes on.
 */
static void
leave_out_failed(EcmTable *table, EcmWhich which, uint64 change, MemoryContext context)
{
	EcmShape   *shape = ecm_match_find(ecm_gather_working_on());
	int			column = reading;
	ErrorData  *edata;
	const char *message;
	Verdict		verdict;

	MemoryContextSwitchTo(context);
	reading = -1;
	edata = CopyErrorData();
	verdict = judge(edata, ecm_gather_working_on(), column, change);
	if (verdict == VERDICT_RETHROW ||
		(column < 0 && (shape == NULL || ecm_match_has_failed(shape))))
		PG_RE_THROW();
	EmitErrorReport();
	FlushErrorState();
	ecm_gather_recover();
	ecm_gather_work_on(0);
	ResetExprContext(table->econtext);

	for (int i = 0; i < nmatched[which]; i++)
		matched[which][i]->marks[which] = 0;
	message = ecm_tag_error(unpack_sql_state(edata->sqlerrcode), edata->message);
	if (verdict == VERDICT_RETRY)
		 /* from the beginning */ ;
	else if (column >= 0)
		table->columns[column].unreadable = message;
	else
		ecm_match_fail(shape, message);
	MemoryContextSwitchTo(context);
}

EcmShape **
ecm_match_tuple(EcmTable *table, const EcmValue *values, EcmWhich which,
				uint64 change, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool done = !table->any_filter;

	if (done)
		match_all(table, which, change);
	else
		start_tuple(table, values);
	while (!done)
	{
		PG_TRY();
		{
			match_all(table, which, change);
			done = true;
		}
		PG_CATCH();
		{
			leave_out_failed(table, which, change, context);
		}
		PG_END_TRY();
	}
	*n = nmatched[which];
	return matched[which];
}
