/*-------------------------------------------------------------------------
 *
 * snapshot.c
 *	  A function for pool sessions that create shapes: writes their initial
 *	  rows.
 *
 * Shapes whose rows are soon read are done here, several in one REPEATABLE
 * READ transaction, so that the rows that are read, the pg_snapshot that
 * consumers are given, and the rows of the shapes in the catalog belong to one
 * snapshot.  If a table is too large for that, this only begins a reading of
 * it, which reading.c carries on in pieces.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "base/clock.h"
#include "base/settings.h"
#include "jobs/compare.h"
#include "jobs/read_guard.h"
#include "jobs/read_table.h"
#include "jobs/reading.h"
#include "jobs/store_snapshot.h"
#include "shape/arrays.h"
#include "shape/shape.h"

/*
 * Time (ms) after which no further shapes are read.  They have their turn in
 * another transaction, lest this one hold back vacuum for too long.
 */
#define ENOUGH_MS		1000

/*
 * What the planner may think that one query costs, and how much it reads: a second's
 * work.  A sequential scan of 300 MB costs so much, or an index scan for some thousand
 * rows.  It is faster by half than pieces, so small tables should not need them.
 */
#define MAX_COST		50000.0
#define MAX_BYTES		(16 * ECM_PIECE_BYTES)

/*
 * If it was wrong, and the rows are larger, or the clause slower, than it thought, the
 * query is given up for a reading in pieces.
 */
#define TOO_LONG_MS		(5 * ECM_PIECE_MS)

/* A log that is compared is read more slowly than a table. */
#define MAX_LOG_BYTES	(8 * ECM_PIECE_BYTES)

PG_FUNCTION_INFO_V1(electric_cm_take_snapshot);

/* ------------------------------------------------------------- grouping -- */

/*
 * Puts the first shape that is not done, and those that one query can read
 * with it, into 'group'.  Returns their number.
 */
static int
next_group(EcmReadShape *shapes, int n, EcmReadShape **group)
{
	int			ngroup = 0;

	for (int i = 0; i < n; i++)
	{
		if (!shapes[i].done &&
			(ngroup == 0 || ecm_read_together(group[0], &shapes[i])))
			group[ngroup++] = &shapes[i];
	}
	return ngroup;
}

/* -------------------------------------------------------------- reading -- */

typedef struct Take
{
	/* the arguments */
	Datum	   *ids;
	Datum	   *generations;
	int			n;
	int64		max_bytes;

	/* the results */
	Datum	   *done;
	int			ndone;
	int64		reading;		/* that was begun; 0: none */
	Datum	   *members;		/* the shapes in it */
	int			nmembers;
} Take;

typedef struct Together
{
	EcmReadShape **shapes;
	int			n;
	EcmReadRange range;
	EcmReadResult result;
} Together;

static void
read_group(void *arg)
{
	Together   *group = arg;

	ecm_read_rows(group->shapes, group->n, &group->range, &group->result);
}

/* Likewise, for shapes with a gap in their logs, which is closed. */
static void
compare_group(void *arg)
{
	Together   *group = arg;
	EcmCompare *compare = ecm_compare_begin(group->shapes, group->n);

	group->range.put = ecm_compare_row;
	group->range.put_arg = compare;
	ecm_read_rows(group->shapes, group->n, &group->range, &group->result);
	if (group->result.end != ECM_READ_ALL)
	{
		ecm_compare_cancel(compare);
		return;
	}
	for (int i = 0; i < group->n; i++)
		ecm_compare_log(compare, i);
	ecm_compare_end(compare);
}

/*
 * Reads all rows of a group.  False: there are too many for one transaction, so the
 * group is to have a reading.
 */
static bool
read_whole(Together *group, int64 max_bytes, bool last_word)
{
	EcmShapeDef *def = group->shapes[0]->def;
	bool		gap = !XLogRecPtrIsInvalid(def->gap_lsn);
	EcmReadCallback read = gap ? compare_group : read_group;

	memset(&group->range, 0, sizeof(group->range));
	memset(&group->result, 0, sizeof(group->result));
	if (ecm_read_is_ordered(def))
	{
		if (gap && ecm_compare_log_bytes(group->shapes, group->n) > MAX_LOG_BYTES)
			return false;
		group->range.max_cost = ecm_debug_piece_rows > 0 ? 1e-9 : MAX_COST;
		group->range.max_bytes = Min(MAX_BYTES, max_bytes);
		group->range.max_ms = TOO_LONG_MS;
	}
	if (group->n > 1)
		read(group);
	else
		ecm_read_blamed(def, last_word, read, group);
	for (int i = 0; i < group->n; i++)
	{
		if (group->result.end == ECM_READ_ENOUGH && !gap)
			ecm_log_delete_base(group->shapes[i]->def->id);
		group->shapes[i]->done = group->result.end == ECM_READ_ALL;
	}
	return group->result.end == ECM_READ_ALL;
}

static void
take(void *arg)
{
	Take	   *t = arg;
	EcmReadShape *shapes = palloc(sizeof(EcmReadShape) * Max(t->n, 1));
	Together	group = {.shapes = palloc(sizeof(EcmReadShape *) * Max(t->n, 1))};
	EcmTime		began = ecm_now();
	int64		bytes = 0;
	int			n = 0;

	for (int i = 0; i < t->n; i++)
	{
		if (ecm_read_find(DatumGetInt64(t->ids[i]), DatumGetInt32(t->generations[i]), &shapes[n]))
			n++;
		else
			t->done[t->ndone++] = t->ids[i];
	}
	if (n > 0)
		ecm_read_check_table(shapes[0].def);
	for (int nread = 0; (group.n = next_group(shapes, n, group.shapes)) > 0; nread++)
	{
		if (!read_whole(&group, t->max_bytes, t->n == 1))
		{
			/* what was read so far is to be readable first */
			if (nread > 0)
				break;
			t->reading = ecm_reading_begin(group.shapes, group.n, &group.result);
			for (int i = 0; i < group.n; i++)
				t->members[t->nmembers++] = Int64GetDatum(group.shapes[i]->def->id);
			break;
		}
		bytes += group.result.bytes;
		if (bytes >= Min(ECM_PIECE_BYTES, t->max_bytes) ||
			ecm_has_passed(began, ecm_now(), ENOUGH_MS))
			break;
	}
	ecm_snapshot_store(shapes, n, ecm_snapshot_text());
	for (int i = 0; i < n; i++)
		if (shapes[i].done)
			t->done[t->ndone++] = Int64GetDatum(shapes[i].def->id);
}

/*
 * _electric_cm.take_snapshot(shapes int8[], generations int4[], last_attempt bool,
 *		max_bytes int8, OUT done int8[], OUT reading int8, OUT members int8[])
 *
 * Writes the rows of the shapes' table, as this transaction sees them, to the
 * shapes' logs, notes the transaction's snapshot in the catalog, and emits the
 * message "live <snapshot> {<id> <generation>}...".  All of it takes effect
 * with the caller's commit. done: the shapes that are done, or need not be
 * created by this attempt any more; those that are left out have not had their
 * turn yet.  If one shape is given alone, and its rows will never be readable,
 * or are not at the last attempt, it is done by a message "fail".
 *
 * If the next shapes in turn have too many rows for one transaction, or more than
 * max_bytes, a reading is begun for them, which read_piece() carries on: its number, and they, are
 * in 'reading' (else NULL) and 'members'.
 *
 * Errors: 42501 not called by a superuser; 25001 not in a transaction with
 * one snapshot; 55000 a shape's table has changed; 40001 a shape's row was
 * changed meanwhile; 55P03 it is locked; and whatever reading the table as
 * the shapes' owners may raise.
 */
Datum
electric_cm_take_snapshot(PG_FUNCTION_ARGS)
{
	Take		t = {0};
	int			ngenerations;
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false};

	ecm_read_check_session();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), INT8OID, sizeof(int64),
					  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &t.ids, NULL, &t.n);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), INT4OID, sizeof(int32),
					  true, TYPALIGN_INT, &t.generations, NULL, &ngenerations);
	if (t.n != ngenerations)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("as many generations as shapes are needed")));

	t.max_bytes = Max(PG_GETARG_INT64(3), 1);
	t.done = palloc(sizeof(Datum) * Max(t.n, 1));
	t.members = palloc(sizeof(Datum) * Max(t.n, 1));
	if (t.n != 1)
		take(&t);
	else if (!ecm_read_or_fail(DatumGetInt64(t.ids[0]), DatumGetInt32(t.generations[0]),
							   PG_GETARG_BOOL(2), take, &t))
	{
		t.done[0] = t.ids[0];
		t.ndone = 1;
		t.reading = 0;
	}
	values[0] = ecm_array_of_int8(t.done, t.ndone);
	values[1] = Int64GetDatum(t.reading);
	nulls[1] = t.reading == 0;
	values[2] = ecm_array_of_int8(t.members, t.nmembers);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
