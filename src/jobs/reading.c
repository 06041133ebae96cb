/*-------------------------------------------------------------------------
 *
 * reading.c
 *	  Functions for pool sessions: read a table in pieces.
 *
 * Each piece is a short REPEATABLE READ transaction, with a snapshot of its own, so
 * that neither the slot nor vacuum has to wait for more than a piece, and a crash
 * costs no more than one.  A piece's rows, its snapshot and its last key are
 * committed together, with a message "piece", by which consumers judge what they have
 * captured (see shape_judge.h): of keys that have been read they keep what the snapshot of
 * the key's piece has not seen; of all others they drop what this piece's snapshot has
 * seen, since later ones see it as well.  So a piece's snapshot must not be older
 * than that of the piece before.
 *
 * When all pieces have been judged, keys are read once more for which an entry was kept
 * that lacks a value (reading_again).  Then the message "live" ends the reading.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"

#include "base/clock.h"
#include "base/event.h"
#include "base/partition.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/stream_message.h"
#include "base/stream_message_io.h"
#include "base/text.h"
#include "jobs/compare.h"
#include "jobs/log_rows.h"
#include "jobs/read_guard.h"
#include "jobs/read_table.h"
#include "jobs/reading.h"
#include "jobs/store_snapshot.h"
#include "shape/arrays.h"

/* A piece ends early when it has come to so much more than was planned. */
#define TOO_MANY_BYTES	(4 * ECM_PIECE_BYTES)
#define TOO_LONG_MS		(3 * ECM_PIECE_MS)

/* Rows of the first piece: the planner knows nothing of TOASTed values. */
#define MIN_FIRST_ROWS	1000
#define MAX_FIRST_ROWS	100000
/* A piece may have so many times the rows of the one before. */
#define MAX_GROWTH		4
#define MAX_ROWS		INT64CONST(100000000)

PG_FUNCTION_INFO_V1(electric_cm_read_piece);
PG_FUNCTION_INFO_V1(electric_cm_finish_reading);
PG_FUNCTION_INFO_V1(electric_cm_delete_readings);

/* A piece that has been read; number 0: none has. */
typedef struct Piece
{
	int			number;
	char	  **upto;			/* NULL: to the end */
	int64		next_rows;
	char	   *snapshot;
} Piece;

typedef struct Reading
{
	int64		id;
	EcmReadShape *shapes;
	int			n;
	Piece		last;
} Reading;

/*
 * Warns if the disk has no room for the rows, by a sample of its free space that is some
 * seconds old.  TOASTed values are known by the size of the table only.
 */
static void
check_space(const EcmReadShape *shape, int64 bytes)
{
	const EcmShapeDef *def = shape->def;
	int			index = ecm_stack_find(MyDatabaseId);
	EcmStack   *stack = palloc(sizeof(EcmStack));
	int64		left = Max(ecm_min_wal_free_space, 0) * INT64CONST(1024) * 1024;

	if (def->filter == NULL)
		bytes = Max(bytes, ecm_table_bytes(def->relation));
	if (index >= 0 && ecm_stack_copy_head(index, stack) && stack->dboid == MyDatabaseId &&
		stack->slot.sample.sampled_at != 0 && stack->slot.sample.data_free_bytes >= 0 &&
		stack->slot.sample.data_free_bytes < bytes + left)
		ecm_event_in(MyDatabaseId, stack->datname, ECM_EVENT_WARNING,
					 "Reading pauses when electric_cm.min_wal_free_space is near. Make room, or drop the shape and narrow it by columns or a where clause.",
					 "the log of shape %s may take %s, and the disk has %s free",
					 def->handle, ecm_size_text(bytes),
					 ecm_size_text(stack->slot.sample.data_free_bytes));
	pfree(stack);
}

int64
ecm_reading_begin(EcmReadShape **shapes, int n, const EcmReadResult *planned)
{
	int64		total = Max(ecm_read_estimate(shapes[0]->def), 1);
	int64		bytes = Max(planned->planned_bytes, planned->bytes);
	double		first = (double) ECM_PIECE_BYTES * total / Max(bytes, 1);
	Oid			types[] = {INT8OID, INT8OID};
	Datum		args[2];
	Oid			shape_types[] = {INT8ARRAYOID, INT8OID};
	Datum	   *ids = palloc(sizeof(Datum) * n);
	int64		id;
	bool		isnull;
	EcmSpiState spi;

	for (int i = 0; i < n; i++)
		ids[i] = Int64GetDatum(shapes[i]->def->id);
	args[0] = Int64GetDatum(total);
	args[1] = Int64GetDatum((int64) Max(Min(first, MAX_FIRST_ROWS), MIN_FIRST_ROWS));
	if (XLogRecPtrIsInvalid(shapes[0]->def->gap_lsn))
		check_space(shapes[0], bytes);
	ecm_snapshot_lock(ecm_array_of_int8(ids, n));
	ecm_spi_begin(&spi);
	ecm_spi_run("INSERT INTO _electric_cm.reading (total_rows, first_rows) VALUES ($1, $2)"
				" RETURNING id", SPI_OK_INSERT_RETURNING, 2, types, args, NULL);
	id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	args[0] = ecm_array_of_int8(ids, n);
	args[1] = Int64GetDatum(id);
	ecm_spi_run("UPDATE _electric_cm.shape SET reading = $2 WHERE id = ANY ($1)",
				SPI_OK_UPDATE, 2, shape_types, args, NULL);
	if (SPI_processed != (uint64) n)
		elog(ERROR, "could not update all shapes");
	ecm_spi_end(&spi);
	return id;
}

/* --------------------------------------------------------- where it is -- */

#define LAST_PIECE_SQL \
	"SELECT number, upto, next_rows, snapshot::text FROM _electric_cm.reading_piece" \
	" WHERE reading = $1 ORDER BY number DESC LIMIT 1"

static void
take_piece(MemoryContext context, Piece *piece)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	HeapTuple	row;
	TupleDesc	desc;
	Datum		upto;
	bool		isnull;
	int			n;

	if (SPI_processed > 0)
	{
		row = SPI_tuptable->vals[0];
		desc = SPI_tuptable->tupdesc;
		piece->number = DatumGetInt32(SPI_getbinval(row, desc, 1, &isnull));
		upto = SPI_getbinval(row, desc, 2, &isnull);
		piece->upto = isnull ? NULL : ecm_array_names(upto, &n);
		piece->next_rows = DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull));
		piece->snapshot = TextDatumGetCString(SPI_getbinval(row, desc, 4, &isnull));
	}
	MemoryContextSwitchTo(old);
}

/*
 * Locks the reading against other sessions, and finds the last piece.  A session that
 * the manager has lost may have committed one just now, after this transaction's
 * snapshot was taken: then another transaction has to go on.  False: that was so.
 */
static bool
open_reading(Reading *reading)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			type = INT8OID;
	Datum		id = Int64GetDatum(reading->id);
	Piece		seen = {0};
	bool		isnull;
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_spi_run("SELECT first_rows FROM _electric_cm.reading WHERE id = $1"
				" FOR NO KEY UPDATE NOWAIT", SPI_OK_SELECT, 1, &type, &id, NULL);
	if (SPI_processed > 0)
		reading->last.next_rows = seen.next_rows =
			DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	ecm_spi_run(LAST_PIECE_SQL, SPI_OK_SELECT, 1, &type, &id, NULL);
	take_piece(context, &seen);
	ecm_spi_run_latest(LAST_PIECE_SQL, SPI_OK_SELECT, 1, &type, &id, NULL);
	take_piece(context, &reading->last);
	ecm_spi_end(&spi);
	return seen.number == reading->last.number;
}

/* The shapes that the reading is for, as far as they are there still. */
static void
find_shapes(Reading *reading)
{
	Oid			type = INT8OID;
	Datum		id = Int64GetDatum(reading->id);
	EcmSpiState spi;
	int64	   *ids;
	int		   *generations;
	int			n;
	bool		isnull;

	ecm_spi_begin(&spi);
	ecm_spi_run("SELECT id, generation FROM _electric_cm.shape WHERE reading = $1 ORDER BY id",
				SPI_OK_SELECT, 1, &type, &id, NULL);
	n = (int) SPI_processed;
	/* in SPI's upper context, hence not freed by its end */
	ids = SPI_palloc(sizeof(int64) * Max(n, 1));
	generations = SPI_palloc(sizeof(int) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		ids[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		generations[i] = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull));
	}
	ecm_spi_end(&spi);
	reading->shapes = palloc(sizeof(EcmReadShape) * Max(n, 1));
	for (int i = 0; i < n; i++)
		if (ecm_read_find(ids[i], generations[i], &reading->shapes[reading->n]))
			reading->n++;
}

static Datum
shape_ids(const Reading *reading)
{
	Datum	   *ids = palloc(sizeof(Datum) * Max(reading->n, 1));

	for (int i = 0; i < reading->n; i++)
		ids[i] = Int64GetDatum(reading->shapes[i].def->id);
	return ecm_array_of_int8(ids, reading->n);
}

/* A message about the shapes that are done, or all of them. */
static void
emit(const Reading *reading, EcmMessageKind kind, int number, bool all)
{
	EcmStreamMessage message = {.kind = kind, .reading = reading->id, .number = number};

	message.shapes = palloc(sizeof(EcmMessageShape) * Max(reading->n, 1));
	for (int i = 0; i < reading->n; i++)
		if (all || reading->shapes[i].done)
			message.shapes[message.nshapes++] =
				(EcmMessageShape)
		{
			reading->shapes[i].def->id, reading->shapes[i].def->generation
		};
	ecm_message_emit(&message);
}

/* ------------------------------------------------------------ the jobs -- */

/*
 * Finds out where the reading is, and for which shapes.  False: there is nothing to be
 * done in this transaction, and *state says what comes next.
 */
static bool
begin_job(Reading *reading, const char **state)
{
	ecm_read_check_session();
	if (!open_reading(reading))
	{
		*state = "more";
		return false;
	}
	find_shapes(reading);
	*state = "done";
	return reading->n > 0;
}

/*
 * Calls fn.  If the reading is for one shape alone, and that is to blame for an error, it
 * ends by a message "fail".
 */
static void
run_job(const Reading *reading, bool last_attempt, EcmReadCallback fn, void *job)
{
	const EcmShapeDef *def = reading->shapes[0].def;

	if (reading->n > 1)
		fn(job);
	else
		(void) ecm_read_or_fail(def->id, def->generation, last_attempt, fn, job);
}

/* Calls fn, which reads the table; for one shape alone that is watched over. */
static void
run_reading(const Reading *reading, EcmReadCallback fn, void *arg)
{
	if (reading->n > 1)
		fn(arg);
	else
		ecm_read_blamed(reading->shapes[0].def, true, fn, arg);
}

/* ------------------------------------------------------------ one piece -- */

typedef struct PieceJob
{
	Reading    *reading;
	int			attempt;		/* how often it has failed */
	int64		max_bytes;
	bool		may_keep;		/* what logs come to */
	EcmLogRows *logged;			/* of logs with gaps; NULL: not ready */
	int64		log_bytes;		/* result, if the state is "logs" */
	const char *state;			/* result */
} PieceJob;

/* The number of rows for the next piece, by what became of this one. */
static int64
next_rows(int64 scanned, int64 bytes, int64 wanted_bytes, EcmTime began)
{
	double		ms = Max((double) (ecm_now() - began) / 1000, 1);
	double		factor = Min(ECM_PIECE_MS / ms, (double) wanted_bytes / Max(bytes, 1));

	return (int64) Max(1, Min(scanned * Min(factor, MAX_GROWTH), MAX_ROWS));
}

/* Notes a piece, with the message that tells the consumers. */
static void
store_piece(const Reading *reading, char **upto, int64 scanned, int64 rows)
{
	Oid			types[] = {INT8OID, INT4OID, TEXTARRAYOID, INT8OID, INT8OID};
	Datum		args[5];
	char		nulls[] = "     ";
	int			number = reading->last.number + 1;
	EcmSpiState spi;

	args[0] = Int64GetDatum(reading->id);
	args[1] = Int32GetDatum(number);
	args[2] = upto ? ecm_array_of_names(upto, reading->shapes[0].def->nkeys) : (Datum) 0;
	nulls[2] = upto ? ' ' : 'n';
	args[3] = Int64GetDatum(scanned);
	args[4] = Int64GetDatum(rows);
	/* lest another attempt to create them begin before this commits */
	ecm_snapshot_lock(shape_ids(reading));
	ecm_spi_begin(&spi);
	ecm_spi_run("INSERT INTO _electric_cm.reading_piece"
				" (reading, number, upto, snapshot, order_xid, scanned, next_rows)"
				" VALUES ($1, $2, $3, pg_current_snapshot(), pg_current_xact_id(), $4, $5)",
				SPI_OK_INSERT, 5, types, args, nulls);
	ecm_spi_end(&spi);
	emit(reading, ECM_MESSAGE_PIECE, number, true);
}

/* It was one piece, after all: nothing is to be judged by keys. */
static void
end_as_one(const Reading *reading)
{
	Oid			type = INT8OID;
	Datum		id = Int64GetDatum(reading->id);
	EcmSpiState spi;

	for (int i = 0; i < reading->n; i++)
		reading->shapes[i].done = true;
	ecm_snapshot_store(reading->shapes, reading->n, ecm_snapshot_text());
	ecm_spi_begin(&spi);
	ecm_spi_run("UPDATE _electric_cm.shape SET reading = NULL WHERE reading = $1",
				SPI_OK_UPDATE, 1, &type, &id, NULL);
	ecm_spi_end(&spi);
}

typedef struct RowsArg
{
	EcmReadShape **shapes;
	int			n;
	EcmReadRange *range;
	EcmLogRows *logged;			/* NULL: the logs have nothing yet */
	EcmReadResult result;
} RowsArg;

/* What of the logs belongs to the piece is known when the rows have been read. */
static void
read_rows(void *arg)
{
	RowsArg    *a = arg;
	EcmCompare *compare;
	char	  **upto;

	if (a->logged == NULL)
	{
		ecm_read_rows(a->shapes, a->n, a->range, &a->result);
		return;
	}
	compare = ecm_compare_begin(a->shapes, a->n);
	a->range->put = ecm_compare_row;
	a->range->put_arg = compare;
	ecm_read_rows(a->shapes, a->n, a->range, &a->result);
	upto = a->result.end == ECM_READ_ENOUGH ? a->result.last : a->range->upto;
	ecm_log_rows_put(a->logged, a->range->after, upto, ecm_compare_entries(compare));
	ecm_compare_end(compare);
}

static void
get_logged(void *arg)
{
	PieceJob   *job = arg;

	job->logged = ecm_log_rows_get(job->reading->id, job->reading->shapes, job->reading->n);
}

static int64
log_bytes(const Reading *reading)
{
	EcmReadShape **shapes = palloc(sizeof(EcmReadShape *) * reading->n);

	for (int i = 0; i < reading->n; i++)
		shapes[i] = &reading->shapes[i];
	return ecm_compare_log_bytes(shapes, reading->n);
}

static void
read_next(void *arg)
{
	PieceJob   *job = arg;
	Reading    *reading = job->reading;
	EcmShapeDef *def = reading->shapes[0].def;
	RowsArg		a = {.n = reading->n};
	EcmReadRange range = {.after = reading->last.upto, .ordered = true};
	EcmTime		began = ecm_now();
	int64		rows = Max(reading->last.next_rows >> Min(2 * job->attempt, 62), 1);

	if (ecm_debug_piece_rows > 0)
		rows = ecm_debug_piece_rows;
	ecm_read_check_table(def);
	if (!XLogRecPtrIsInvalid(def->gap_lsn))
	{
		if (!job->may_keep)
		{
			job->state = "logs";
			job->log_bytes = log_bytes(reading);
			return;
		}
		run_reading(reading, get_logged, job);
		if (job->logged == NULL)
		{
			job->state = "more";
			return;
		}
	}
	range.upto = ecm_read_border(def, range.after, rows);
	if (job->logged != NULL)
		range.upto = ecm_log_rows_limit(job->logged, range.after, range.upto);
	a.logged = job->logged;
	range.max_bytes = Min(TOO_MANY_BYTES, job->max_bytes);
	range.max_ms = TOO_LONG_MS;
	a.range = &range;
	a.shapes = palloc(sizeof(EcmReadShape *) * reading->n);
	for (int i = 0; i < reading->n; i++)
		a.shapes[i] = &reading->shapes[i];
	run_reading(reading, read_rows, &a);
	if (a.result.end == ECM_READ_ENOUGH)
	{
		range.upto = a.result.last;
		/* how many rows the clause has left out is anybody's guess */
		rows = reading->n == 1 && def->filter == NULL ? a.result.rows :
			Max(a.result.rows, rows / MAX_GROWTH);
	}
	else if (range.upto == NULL && reading->n == 1 && def->filter == NULL)
		rows = a.result.rows;
	if (range.upto == NULL && reading->last.number == 0)
	{
		end_as_one(reading);
		job->state = "done";
		return;
	}
	store_piece(reading, range.upto, rows,
				next_rows(rows, a.result.bytes, Min(ECM_PIECE_BYTES, job->max_bytes / 2), began));
	job->state = range.upto == NULL ? "last" : "more";
	if (range.upto == NULL)
		ecm_log_rows_forget(reading->id);
}

/*
 * The last piece has been read, by a session whose message nobody waits for any more:
 * gives it again.  The consumers' judgement is the same the second time.
 */
static void
repeat_last(const Reading *reading)
{
	Oid			types[] = {INT8OID, INT4OID};
	Datum		args[] = {Int64GetDatum(reading->id), Int32GetDatum(reading->last.number)};
	EcmSpiState spi;

	ecm_snapshot_lock(shape_ids(reading));
	ecm_spi_begin(&spi);
	ecm_spi_run("UPDATE _electric_cm.reading_piece SET order_xid = pg_current_xact_id()"
				" WHERE reading = $1 AND number = $2", SPI_OK_UPDATE, 2, types, args, NULL);
	ecm_spi_end(&spi);
	emit(reading, ECM_MESSAGE_PIECE, reading->last.number, true);
}

/* log_bytes: finish_reading() has no such result */
static Datum
answer(FunctionCallInfo fcinfo, const char *state, int64 log_bytes)
{
	TupleDesc	desc;
	TransactionId xid = GetTopTransactionIdIfAny();
	Datum		values[3];
	bool		nulls[3] = {false, !TransactionIdIsValid(xid), log_bytes < 0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(state);
	values[1] = TransactionIdGetDatum(xid);
	values[2] = Int64GetDatum(log_bytes);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/*
 * _electric_cm.read_piece(reading int8, attempt int4, last_attempt bool,
 *		max_bytes int8, may_keep bool, OUT state text, OUT xid xid, OUT logs int8)
 *
 * Reads the next piece of a table, of max_bytes bytes at most, if that is one row.
 * state:
 *
 *	more	the message "piece" says how far it is; call again
 *	last	likewise, and it was the last one: when all consumers have come to the
 *			message, which is in the transaction xid, call finish_reading()
 *	done	nothing is left to be done: the message "live" or "fail" says so, or the
 *			shapes are gone, or in another attempt
 *	logs	the table is compared with so many bytes of logs, and the session has to keep
 *			what they come to, so call again with may_keep when it may
 *
 * attempt: how often the piece has failed; it is tried with fewer rows each time.  If the
 * reading is for one shape alone, whose rows will never be readable, or are not at the
 * last attempt, it ends by a message "fail".  Errors are those of take_snapshot().
 */
Datum
electric_cm_read_piece(PG_FUNCTION_ARGS)
{
	Reading		reading = {.id = PG_GETARG_INT64(0)};
	PieceJob	job = {.reading = &reading, .attempt = PG_GETARG_INT32(1),
		.max_bytes = Max(PG_GETARG_INT64(3), 1), .may_keep = PG_GETARG_BOOL(4),
	.log_bytes = -1};

	if (!begin_job(&reading, &job.state))
		return answer(fcinfo, job.state, -1);
	if (reading.last.number > 0 && reading.last.upto == NULL)
	{
		repeat_last(&reading);
		job.state = "last";
	}
	else
		run_job(&reading, PG_GETARG_BOOL(2), read_next, &job);
	return answer(fcinfo, job.state, job.log_bytes);
}

/* --------------------------------------------------------------- its end -- */

/* Keys that are read again at a time: consumers have all these rows in memory. */
#define MAX_AGAIN		1000

/*
 * Also those that have been answered, but not used yet: another session's message
 * may not have been met.  Only the last one counts.
 */
#define AGAIN_SQL \
	"SELECT a.shape, a.key, a.lsn, a.op FROM _electric_cm.reading_again a" \
	" JOIN _electric_cm.shape s ON s.id = a.shape AND s.generation = a.generation" \
	" WHERE s.reading = $1 AND a.shape = ANY ($2) ORDER BY a.lsn, a.op LIMIT $3"

#define ANSWER_SQL \
	"UPDATE _electric_cm.reading_again SET order_xid = pg_current_xact_id()," \
	" snapshot = pg_current_snapshot(), data = $4 WHERE shape = $1 AND lsn = $2 AND op = $3"

static EcmReadShape *
shape_of(const Reading *reading, int64 id)
{
	for (int i = 0; i < reading->n; i++)
		if (reading->shapes[i].def->id == id)
			return &reading->shapes[i];
	return NULL;
}

/* Reads the row that one row of AGAIN_SQL asks for, and stores it there.  Returns its size. */
static int64
read_again(Reading *reading, HeapTuple row, TupleDesc desc)
{
	Oid			types[] = {INT8OID, PG_LSNOID, INT8OID, BYTEAOID};
	Datum		args[4];
	bool		isnull;
	int			nkeys;
	char	  **key = ecm_array_names(SPI_getbinval(row, desc, 2, &isnull), &nkeys);
	EcmReadShape *shape;
	bytea	   *data;

	args[0] = SPI_getbinval(row, desc, 1, &isnull);
	args[1] = SPI_getbinval(row, desc, 3, &isnull);
	args[2] = SPI_getbinval(row, desc, 4, &isnull);
	shape = shape_of(reading, DatumGetInt64(args[0]));
	if (shape == NULL || nkeys != shape->def->nkeys)
		return 0;
	data = ecm_read_row(shape, key, DatumGetLSN(args[1]), DatumGetInt64(args[2]));
	args[3] = PointerGetDatum(data);
	ecm_spi_run(ANSWER_SQL, SPI_OK_UPDATE, 4, types, args, data != NULL ? "    " : "   n");
	shape->done = true;
	return data != NULL ? VARSIZE(data) : 0;
}

typedef struct FinishJob
{
	Reading    *reading;
	int			attempt;		/* how often it has failed */
	const char *state;			/* result */
} FinishJob;

/* Reads what consumers ask for, or some of it. */
static void
answer_some(void *arg)
{
	FinishJob  *job = arg;
	Reading    *reading = job->reading;
	int			max = ecm_debug_piece_rows > 0 ? ecm_debug_piece_rows :
	Max(MAX_AGAIN >> Min(2 * job->attempt, 30), 1);
	Oid			types[] = {INT8OID, INT8ARRAYOID, INT8OID};
	Datum		args[] = {Int64GetDatum(reading->id), shape_ids(reading), Int64GetDatum(max)};
	SPITupleTable *rows;
	uint64		n;
	int64		bytes = 0;
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_spi_run(AGAIN_SQL, SPI_OK_SELECT, 3, types, args, NULL);
	rows = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n && bytes < ECM_PIECE_BYTES; i++)
		bytes += read_again(reading, rows->vals[i], rows->tupdesc);
	ecm_spi_end(&spi);
}

/* Answers what consumers ask for.  Returns whether there was anything. */
static bool
answer_again(FinishJob *job)
{
	Reading    *reading = job->reading;
	bool		any = false;

	run_reading(reading, answer_some, job);
	for (int i = 0; i < reading->n; i++)
		any = any || reading->shapes[i].done;
	if (!any)
		return false;
	ecm_snapshot_lock(shape_ids(reading));
	emit(reading, ECM_MESSAGE_AGAIN, 0, false);
	return true;
}

static void
finish(void *arg)
{
	FinishJob  *job = arg;
	Reading    *reading = job->reading;

	ecm_read_check_table(reading->shapes[0].def);
	if (answer_again(job))
	{
		job->state = "again";
		return;
	}
	for (int i = 0; i < reading->n; i++)
	{
		reading->shapes[i].done = true;
		reading->shapes[i].rows = ecm_log_base_rows(reading->shapes[i].def->id);
	}
	ecm_snapshot_store(reading->shapes, reading->n, reading->last.snapshot);
}

/*
 * _electric_cm.finish_reading(reading int8, attempt int4, last_attempt bool,
 *		OUT state text, OUT xid xid)
 *
 * To be called when all consumers have come to the last message of the reading. state:
 *
 *	again	the message "again", in the transaction xid, has keys that had to be read
 *			once more: when all consumers have come to that, call again
 *	more	the last piece is not there
 *	done	as of read_piece(); the message is "live", or "fail"
 *
 * attempt: how often it has failed; fewer keys are read at a time then. last_attempt, and
 * errors: as of read_piece().
 */
Datum
electric_cm_finish_reading(PG_FUNCTION_ARGS)
{
	Reading		reading = {.id = PG_GETARG_INT64(0)};
	FinishJob	job = {.reading = &reading, .attempt = PG_GETARG_INT32(1)};

	if (!begin_job(&reading, &job.state))
		return answer(fcinfo, job.state, -1);
	if (reading.last.number == 0 || reading.last.upto != NULL)
		return answer(fcinfo, "more", -1);
	run_job(&reading, PG_GETARG_BOOL(2), finish, &job);
	return answer(fcinfo, job.state, -1);
}

/*
 * _electric_cm.delete_readings() RETURNS bool
 *
 * Deletes what is known of readings that no shape needs: it is live, has ended, or is in
 * another attempt.  True: others are needed still.
 */
Datum
electric_cm_delete_readings(PG_FUNCTION_ARGS pg_attribute_unused())
{
	EcmSpiState spi;
	bool		others;

	ecm_spi_begin(&spi);
	ecm_spi_run("DELETE FROM _electric_cm.reading r WHERE NOT EXISTS"
				" (SELECT FROM _electric_cm.shape s JOIN _electric_cm.shape_state t"
				"  ON t.shape = s.id AND t.generation = s.generation"
				"  WHERE s.reading = r.id AND t.state = 'capturing')",
				SPI_OK_DELETE, 0, NULL, NULL, NULL);
	ecm_spi_run("DELETE FROM _electric_cm.reading_piece p WHERE NOT EXISTS"
				" (SELECT FROM _electric_cm.reading r WHERE r.id = p.reading)",
				SPI_OK_DELETE, 0, NULL, NULL, NULL);
	ecm_spi_run("DELETE FROM _electric_cm.reading_again a WHERE NOT EXISTS"
				" (SELECT FROM _electric_cm.shape s JOIN _electric_cm.reading r ON r.id = s.reading"
				"  WHERE s.id = a.shape AND s.generation = a.generation)",
				SPI_OK_DELETE, 0, NULL, NULL, NULL);
	ecm_spi_run("SELECT FROM _electric_cm.reading LIMIT 1", SPI_OK_SELECT, 0, NULL, NULL, NULL);
	others = SPI_processed > 0;
	ecm_spi_end(&spi);
	PG_RETURN_BOOL(others);
}
