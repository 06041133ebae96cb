/*-------------------------------------------------------------------------
 *
 * shape_match.c
 *	  Which of the shapes that a consumer follows want a row.
 *
 * A change may not cost more the more shapes there are, except for evaluating
 * the where clauses that no index helps with.
 *
 * A where clause is a user's, and may raise any error: a division by zero, a value
 * that its type's input function does not read.  An error that is one shape's
 * fault ends that shape only.  The PG_CATCH in ecm_match_tuple() rolls back,
 * notes the failure and matches the tuple from the beginning, now without the
 * shape (or without the value) that failed.  So each round leaves out one more, and
 * it ends.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "base/compat.h"
#include "base/errors.h"
#include "consumer/current_shape.h"
#include "consumer/followed_shapes.h"
#include "consumer/log_batch.h"
#include "consumer/shape_match.h"
#include "shape/shape_blame.h"
#include "shape/shape_catalog.h"
#include "shape/shape_chunk.h"
#include "shape/shape_filter.h"
#include "shape/shape_stall.h"

/* The shapes that a tuple belongs to; 'shapes' has room for 'max'. */
typedef struct Matched
{
	EcmShape  **shapes;
	int			n;
	int			max;
} Matched;

/* Set up by ecm_match_init(), for the life of the process. */
typedef struct Matching
{
	void		(*failed) (EcmShape *shape, const char *message);
	uint64		transaction;	/* counts upstream transactions, for
								 * EcmShape.failed_in */
	int			reading;		/* the column whose input function is running,
								 * else -1 */
	Matched		matched[2];		/* results, by EcmWhich */

	/*
	 * Who has failed for want of memory the last time.  Failing again with
	 * the same change, it is at fault.
	 */
	struct
	{
		int64		shape;
		int			column;
		uint64		change;
	}			starved;
} Matching;

static Matching matching =
{
	.reading = -1
};

void
ecm_match_init(void (*failed) (EcmShape *shape, const char *message))
{
	matching.failed = failed;
	for (int i = 0; i < 2; i++)
	{
		matching.matched[i].max = 16;
		matching.matched[i].shapes = MemoryContextAlloc(TopMemoryContext,
														sizeof(EcmShape *) * 16);
	}
}

void
ecm_match_begin(void)
{
	matching.transaction++;
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

static void
add_matched(EcmShape *shape, EcmWhich which, uint64 change)
{
	Matched    *matched = &matching.matched[which];

	if (matched->n >= matched->max)
	{
		matched->max *= 2;
		matched->shapes = repalloc(matched->shapes, sizeof(EcmShape *) * matched->max);
	}
	shape->marks[which] = change;
	matched->shapes[matched->n++] = shape;
}

bool
ecm_match_has_failed(const EcmShape *shape)
{
	return shape->failed_in == matching.transaction;
}

/* Makes a slot with an attribute per column, to evaluate where clauses with. */
static void
make_slot(EcmTable *table)
{
	MemoryContext old = MemoryContextSwitchTo(table->context);

	table->desc = CreateTemplateTupleDesc(table->ncolumns);
	for (int i = 0; i < table->ncolumns; i++)
		TupleDescInitEntry(table->desc, i + 1, NULL, table->columns[i].type, -1, 0);
	ecm_tupledesc_finalize(table->desc);
	table->slot = MakeSingleTupleTableSlot(table->desc, &TTSOpsVirtual);
	table->econtext = CreateStandaloneExprContext();
	table->econtext->ecxt_scantuple = table->slot;
	MemoryContextSwitchTo(old);
}

/*
 * Empties the table's slot for the next tuple.  A value is read by its type's
 * input function only when a where clause refers to it, see read_column(): there
 * are types that don't read what they have written, and an error of one concerns
 * only the shapes that look at such a column.
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
 * Puts a column's value into the slot, unless it is there.  A value that was not
 * sent counts as null: a shape whose clause refers to it is not usable with the
 * relation, and gets no entry.  False: the value can't be read, as an earlier
 * attempt has found ('unreadable' says why).  ERROR if it is found now; the
 * number in matching.reading says of which column.
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
		matching.reading = number;
		ecm_stall_step();
		ecm_stall_work.value = true;
		table->slot->tts_values[number] =
			InputFunctionCall(&column->input, unconstify(char *, value->text),
							  column->typioparam, -1);
		table->slot->tts_isnull[number] = false;
		CHECK_FOR_INTERRUPTS(); /* it may have taken too long */
		ecm_stall_work.value = false;
		matching.reading = -1;
	}
	return column->read = true;
}

void
ecm_match_leave_out(EcmShape *shape)
{
	shape->failed_in = matching.transaction;
}

void
ecm_match_fail(EcmShape *shape, const char *message)
{
	ecm_match_leave_out(shape);
	matching.failed(shape, message);
}

/*
 * Is the where clause true for the tuple?  Of a clause that an index has found by
 * its equality, only the rest is evaluated.  ERROR, with the shape named as the one
 * at work, if the evaluation fails.
 */
static bool
rest_matches(EcmShape *shape)
{
	EcmTable   *table = shape->table;
	const EcmLayout *layout = shape->layout;
	bool		result;

	ecm_work_on(shape->id);
	if (ecm_stall_is_given_up(shape->id))
	{
		ecm_match_fail(shape, ecm_tag_error(ECM_SQLSTATE_SHAPE_STALLED,
											ecm_stall_given_up_text()));
		return false;
	}
	for (int i = 0; i < layout->nfilter_columns; i++)
	{
		int			number = layout->filter_columns[i];

		if (read_column(table, number))
			continue;
		ecm_match_fail(shape, table->columns[number].unreadable);
		return false;
	}
	result = ecm_filter_rest_matches(shape->filter, table->econtext, shape->owner);
	CHECK_FOR_INTERRUPTS();		/* it may have taken too long */
	return result;
}

/*
 * Makes all shapes of an index fail: the column's value can't be read, so nobody
 * can tell which of them want the tuple.
 */
static void
fail_index(EcmEqualityIndex *index, const char *message)
{
	HASH_SEQ_STATUS seq;
	EcmIndexEntry *entry;

	hash_seq_init(&seq, index->entries);
	while ((entry = hash_seq_search(&seq)) != NULL)
		for (EcmIndexMember *member = entry->members; member != NULL; member = member->next)
			if (!ecm_match_has_failed(member->shape))
				ecm_match_fail(member->shape, message);
}

/* The comparison may allocate; it is freed at once, as there may be many. */
static bool
is_equal(EcmEqualityIndex *index, EcmTable *table, Datum value, Datum constant)
{
	MemoryContext old = MemoryContextSwitchTo(table->econtext->ecxt_per_tuple_memory);
	bool		result = DatumGetBool(FunctionCall2Coll(&index->equal, index->collation,
														value, constant));

	MemoryContextSwitchTo(old);
	ResetExprContext(table->econtext);
	return result;
}

/*
 * Adds the shapes of an index that want the tuple.  Constants with the same hash are
 * compared; a shape with several constants is added once.
 */
static void
match_by_index(EcmEqualityIndex *index, EcmTable *table, EcmWhich which, uint64 change)
{
	int			number = index->attno - 1;
	Datum		value;
	uint32		hash;
	EcmIndexEntry *entry;

	ecm_work_on(0);
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
	for (EcmIndexMember *member = entry->members; member != NULL; member = member->next)
	{
		EcmShape   *shape = member->shape;

		if (shape->marks[which] == change || ecm_match_has_failed(shape) ||
			!is_equal(index, table, value, member->constant))
			continue;
		if (rest_matches(shape))
			add_matched(shape, which, change);
	}
}

/* Collects all shapes that want the current tuple, in matching.matched. */
static void
match_all(EcmTable *table, EcmWhich which, uint64 change)
{
	dlist_iter	iter;
	ListCell   *lc;

	matching.matched[which].n = 0;
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
	ecm_work_on(0);
}

/* How an error is dealt with. */
typedef enum Verdict
{
	VERDICT_FAULT,				/* the shape, or the value, is left out */
	VERDICT_RETRY,				/* the tuple is matched once more */
	VERDICT_RETHROW				/* the consumer ends */
} Verdict;

/*
 * An error that a shape's work has raised.  A want of memory may be the fault of
 * other processes, which have it.  So at first it ends the consumer, whose memory
 * is free then.  If the consumer has died at this transaction before, the memory
 * lacks for good: when it does twice at the same shape or value, that is at fault.
 */
static Verdict
judge(const ErrorData *edata, int64 shape, int column, uint64 change)
{
	EcmFault	fault = ecm_error_fault(unpack_sql_state(edata->sqlerrcode),
										edata->message, ECM_WORK_FOLLOW);

	if (fault == ECM_FAULT_OF_IT)
		return VERDICT_FAULT;
	if (fault != ECM_FAULT_IF_AGAIN || !ecm_blame_died_at(ecm_log_batch_lsn(), 0))
		return VERDICT_RETHROW;
	if (ecm_blame_died_at(ecm_log_batch_lsn(), shape) ||
		(matching.starved.shape == shape && matching.starved.column == column && matching.starved.change == change))
		return VERDICT_FAULT;
	matching.starved.shape = shape;
	matching.starved.column = column;
	matching.starved.change = change;
	return VERDICT_RETRY;
}

/*
 * In PG_CATCH: if the error is the fault of one shape, makes that fail; if it is
 * of one value, notes the value as unreadable.  Then the caller may match again.
 * Any other error is raised again.  context: to return to.
 */
static void
leave_out_failed(EcmTable *table, EcmWhich which, uint64 change, MemoryContext context)
{
	EcmShape   *shape = ecm_followed_find(ecm_working_on());
	int			column = matching.reading;
	ErrorData  *edata;
	const char *message;
	bool		stalled;
	Verdict		verdict;

	MemoryContextSwitchTo(context);
	matching.reading = -1;
	edata = CopyErrorData();
	stalled = ecm_stall_take(edata);
	if (stalled && ecm_stall_is_given_up(ecm_working_on()))
		column = -1;			/* the others may read the value */
	verdict = judge(edata, ecm_working_on(), column, change);
	if (verdict == VERDICT_RETHROW ||
		(column < 0 && (shape == NULL || ecm_match_has_failed(shape))))
		PG_RE_THROW();
	if (!stalled)				/* else the event says more */
		EmitErrorReport();
	FlushErrorState();
	ecm_log_batch_recover();
	ecm_work_on(0);
	ResetExprContext(table->econtext);

	for (int i = 0; i < matching.matched[which].n; i++)
		matching.matched[which].shapes[i]->marks[which] = 0;
	message = ecm_tag_error(unpack_sql_state(edata->sqlerrcode), edata->message);
	if (verdict == VERDICT_RETRY)
		 /* nobody is left out */ ;
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
	if (table->lower_case != NULL)
		ecm_lower_case_next_row(table->lower_case);
	*n = matching.matched[which].n;
	return matching.matched[which].shapes;
}
