/*-------------------------------------------------------------------------
 *
 * reader_read.c
 *	  electric_cm_read(): what comes next for a named reader.
 *
 * A call returns one of three parts:
 *
 * 1. of the first shape of which the reader does not have the rows yet that its log begins
 * with, these rows;
 * 2. of the first shape that has come to the reader later, what is between these rows and the
 * reader's position;
 * 3. of all others, what comes after the reader's position, in the order of the stream.
 *
 * Shapes that are being created are left out.  Nothing is written: the reader says by
 * electric_cm_ack() what it has.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "functions/logs_stream.h"
#include "functions/reader.h"
#include "functions/reading_args.h"
#include "functions/row_stream.h"

PG_FUNCTION_INFO_V1(electric_cm_read);

/* Shapes that are looked up at a time. */
#define LOOKUP_SHAPES	100

typedef struct Reading
{
	EcmLogsStream *logs;
	HeapTuple	first;			/* row of these, if it has been made */
} Reading;

static EcmLogsShape
asked(const EcmReaderShape *shape)
{
	EcmLogsShape result = {.handle = shape->handle, .after = shape->position, .is_lost = shape->is_lost};

	return result;
}

/*
 * Begins to read a part of one shape.  NULL: it has none that could be read now.
 */
static EcmLogsStream *
begin_one(const EcmLogsRequest *template, EcmLogsPart part, const EcmReaderShape *shape,
		  TupleDesc tupdesc, HeapTuple *first)
{
	EcmLogsShape *one = palloc(sizeof(EcmLogsShape));
	EcmLogsRequest request = *template;
	EcmLogsStream *logs;

	*one = asked(shape);
	request.n = 1;
	request.shapes = one;
	request.part = part;
	logs = ecm_logs_stream_begin(&request, tupdesc);
	if (ecm_logs_stream_is_readable(logs, 0) && (*first = ecm_logs_stream_next(logs)) != NULL)
		return logs;
	ecm_logs_stream_end(logs);
	return NULL;
}

/*
 * Begins to read the first shape that is read by itself, and has something.  They are looked
 * up some at a time: as long as there are many, there is one to be read among the first.
 */
static bool
begin_alone(Reading *reading, const EcmLogsRequest *template, const EcmReader *reader,
			EcmReaderPart part, TupleDesc tupdesc)
{
	int64		after = 0;
	int			n;

	do
	{
		EcmReaderShape *shapes = ecm_reader_shapes(reader, part, after, LOOKUP_SHAPES, &n);

		for (int i = 0; i < n; i++)
		{
			bool		initial = part == ECM_READER_INITIAL;

			CHECK_FOR_INTERRUPTS();
			after = shapes[i].shape;
			if (shapes[i].is_lost || (!initial && !ecm_reader_catches_up(reader, &shapes[i])))
				continue;
			reading->logs = begin_one(template, initial ? ECM_LOGS_BASE : ECM_LOGS_UNTIL,
									  &shapes[i], tupdesc, &reading->first);
			if (reading->logs != NULL)
				return true;
		}
	} while (n == LOOKUP_SHAPES);
	return false;
}

static void *
stream_begin(FunctionCallInfo fcinfo, TupleDesc tupdesc)
{
	Reading    *reading = palloc0(sizeof(Reading));
	EcmLogsRequest request = {.part = ECM_LOGS_ALL, .for_reader = true};
	EcmLogsShape *all;
	EcmReader	reader;
	EcmReaderShape *shapes;
	int			n;

	if (!RecoveryInProgress())	/* a standby may do without */
		ecm_require_shared();
	request.max_entries = ecm_max_entries_arg(fcinfo, 1);
	ecm_reader_arg(fcinfo, 0, ECM_READER_READ, &reader);
	ecm_note_read(-reader.id);
	request.until = reader.position;
	if (begin_alone(reading, &request, &reader, ECM_READER_INITIAL, tupdesc) ||
		begin_alone(reading, &request, &reader, ECM_READER_OWN, tupdesc))
		return reading;

	shapes = ecm_reader_shapes(&reader, ECM_READER_ALL, 0, INT_MAX, &n);
	all = palloc0(Max(n, 1) * sizeof(EcmLogsShape));
	for (int i = 0; i < n; i++)
	{
		all[i] = asked(&shapes[i]);
		all[i].only_end = shapes[i].initial || ecm_reader_catches_up(&reader, &shapes[i]);
	}
	request.n = n;
	request.shapes = all;
	reading->logs = ecm_logs_stream_begin(&request, tupdesc);
	return reading;
}

static HeapTuple
stream_next(void *stream)
{
	Reading    *reading = stream;
	HeapTuple	first = reading->first;

	reading->first = NULL;
	return first != NULL ? first : ecm_logs_stream_next(reading->logs);
}

static void
stream_end(Datum stream)
{
	ecm_logs_stream_end(((Reading *) DatumGetPointer(stream))->logs);
}

/*
 * electric_cm_read(name text, max_entries int DEFAULT 10000)
 *	-> SETOF (handle text, log_offset electric_cm_offset, operation text, key text,
 *			  value jsonb, old_value jsonb, xid xid8)
 *
 * What a named reader has not acknowledged, as electric_cm_shape_logs() returns it, and more
 * operations: first, for each shape by itself, the rows that its log begins with, which end
 * with 'snapshot-end'; then, if it was added later, what the others have had, which ends with
 * an 'up-to-date' that has its handle; then all shapes together.  The offset and the handle of
 * a row are what electric_cm_ack() takes.
 *
 * Errors: as ecm_reader_arg(); 22023 max_entries is not above 0.
 */
Datum
electric_cm_read(PG_FUNCTION_ARGS)
{
	static const EcmRowSource source = {stream_begin, stream_next, stream_end};

	return ecm_stream_rows(fcinfo, &source);
}
