/*-------------------------------------------------------------------------
 *
 * reader_ack.c
 *	  electric_cm_ack(): a named reader has what it has read.
 *
 * What is acknowledged is changed in the caller's transaction: with what the caller writes
 * itself in this database, all of it happens, or nothing.
 *
 * An acknowledgement may come late: the reader may have been given other shapes since the
 * rows were read.  So one that concerns all shapes leaves those alone that have still to come
 * to the reader's position; these were not among the rows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/version.h"
#include "functions/offset_type.h"
#include "functions/reader.h"
#include "functions/shape_look.h"
#include "shape/shape_log.h"
#include "shape/shape_offset.h"
#include "shape/shape_readers.h"

PG_FUNCTION_INFO_V1(electric_cm_ack);

/* Is it the offset of a row that belongs to no transaction, and so to one shape only? */
static bool
is_of_one_shape(const EcmOffset *offset)
{
	return offset->lsn == 0 || !ecm_op_is_stream(offset->op);
}

/* 'own' NULL: the shape has come to the reader's position. */
static void
set_shape(const EcmReader *reader, const EcmReaderShape *shape, bool initial, const EcmOffset *own)
{
	EcmSpiState spi;
	Oid			types[] = {INT8OID, INT8OID, BOOLOID, LSNOID, INT8OID};
	Datum		values[] = {Int64GetDatum(reader->id), Int64GetDatum(shape->shape), BoolGetDatum(initial),
		own == NULL ? (Datum) 0 : LSNGetDatum(own->lsn),
		own == NULL ? (Datum) 0 : Int64GetDatum(ecm_position_op(own))
	};

	ecm_spi_begin(&spi);
	ecm_spi_run("UPDATE _electric_cm.reader_shape SET initial = $3, lsn = $4, op = $5"
				" WHERE reader = $1 AND shape = $2",
				SPI_OK_UPDATE, 5, types, values, own == NULL ? "   nn" : NULL);
	ecm_spi_end(&spi);
}

/*
 * The shape at an offset that is one of its log's, as that is now.  ERROR EC001 if it is
 * not.
 */
static EcmLook *
look_after(const EcmReaderShape *shape, const EcmOffset *offset)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	EcmLookRequest request = {.handle = shape->handle, .after = *offset,
	.wait = ECM_LOOK_NO_WAIT, .snapshot = snapshot};
	EcmLook    *look = ecm_look_at_shape(&request);

	UnregisterSnapshot(snapshot);
	return look;
}

pg_noreturn static void
report_ambiguous(const EcmReader *reader, const EcmOffset *offset)
{
	char		text[ECM_OFFSET_LEN];

	ecm_offset_format(text, offset->lsn, offset->op);
	ereport(ERROR,
			(errcode(ERRCODE_AMBIGUOUS_PARAMETER),
			 errmsg("offset %s alone does not say of which shape reader \"%s\" has it", text, reader->name),
			 errhint("Pass the row's handle, too.")));
}

/* The offset is none that the reader can have read of the shape. */
pg_noreturn static void
report_not_read(const EcmReaderShape *shape, const EcmOffset *offset)
{
	char		text[ECM_OFFSET_LEN];

	ecm_offset_format(text, offset->lsn, offset->op);
	ereport(ERROR,
			(errcode(ECM_ERRCODE_OFFSET),
			 errmsg("offset %s is not one of the rows that the log of shape \"%s\" begins with", text, shape->handle),
			 errdetail("That is what the reader reads of it first."),
			 errhint("Read again: what has not been acknowledged is returned again.")));
}

/* Is the offset the one that 'snapshot-end' has for a log that begins without rows? */
static bool
is_empty_base(const EcmReaderShape *shape, const EcmOffset *offset)
{
	EcmOffset	before_all = {.before_all = true};
	EcmLook    *look = look_after(shape, &before_all);
	bool		result = look->readable && !ecm_log_cursor_is_in_base(look->cursor) &&
	ecm_offset_cmp(offset->lsn, offset->op, look->cursor->base.lsn, (uint64) look->cursor->base.op) == 0;

	ecm_look_end(look);
	return result;
}

/* ERROR if an offset that comes without a handle may be one of a shape that is read alone. */
static void
check_not_alone(const EcmReader *reader, const EcmOffset *offset)
{
	int			n;
	EcmReaderShape *shapes = ecm_reader_shapes(reader, ECM_READER_OWN, 0, INT_MAX, &n);

	for (int i = 0; i < n; i++)
		if (ecm_reader_catches_up(reader, &shapes[i]) && ecm_reader_cmp(offset, &reader->position) <= 0)
			report_ambiguous(reader, offset);

	/* that of 'up-to-date' is nothing else */
	if (ecm_op_is_cut(offset->op))
		return;
	shapes = ecm_reader_shapes(reader, ECM_READER_INITIAL, 0, INT_MAX, &n);
	for (int i = 0; i < n; i++)
		if (!shapes[i].is_lost && is_empty_base(&shapes[i], offset))
			report_ambiguous(reader, offset);
}

/*
 * The shape that an acknowledgement is about; NULL: all that the reader reads together.
 */
static const EcmReaderShape *
shape_meant(const EcmReader *reader, const char *handle, const EcmOffset *offset)
{
	EcmReaderShape *shapes;
	int			n;

	if (handle != NULL)
	{
		EcmReaderShape *shape = ecm_reader_shape(reader, handle);

		if (shape == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("reader \"%s\" does not have shape \"%s\"", reader->name, handle)));
		return shape;
	}
	shapes = ecm_reader_shapes(reader, ECM_READER_ALL, 0, 2, &n);
	if (n == 1)
		return &shapes[0];
	if (is_of_one_shape(offset))
		report_ambiguous(reader, offset);
	check_not_alone(reader, offset);
	return NULL;
}

/*
 * Of the rows that a shape's log begins with, the reader has those up to an offset; or all,
 * if there are none.
 */
static void
ack_initial(const EcmReader *reader, const EcmReaderShape *shape, const EcmOffset *offset)
{
	EcmLook    *look;

	if (ecm_reader_cmp(offset, &shape->position) <= 0)
		return;
	ecm_readers_keep_base(shape->shape);
	look = look_after(shape, offset);
	if (look->readable)
		set_shape(reader, shape, ecm_log_cursor_is_in_base(look->cursor), offset);
	ecm_look_end(look);
}

/* A shape that is read by itself has come to an offset. */
static void
ack_catching_up(const EcmReader *reader, const EcmReaderShape *shape, const EcmOffset *offset)
{
	if (ecm_reader_cmp(offset, &shape->position) <= 0)
		return;
	set_shape(reader, shape, false,
			  ecm_reader_cmp(offset, &reader->position) == 0 ? NULL : offset);
}

/* Moves the position of all shapes that are read together. */
static void
advance(const EcmReader *reader, const EcmOffset *offset)
{
	EcmSpiState spi;
	Oid			types[] = {INT8OID, LSNOID, INT8OID, LSNOID, INT8OID};
	Datum		values[] = {Int64GetDatum(reader->id),
		LSNGetDatum(reader->position.lsn), Int64GetDatum(ecm_position_op(&reader->position)),
		LSNGetDatum(offset->lsn), Int64GetDatum(ecm_position_op(offset))
	};

	if (ecm_reader_cmp(offset, &reader->position) < 0)
		return;
	ecm_spi_begin(&spi);
	ecm_spi_run("UPDATE _electric_cm.reader_shape SET lsn = NULL, op = NULL"
				" WHERE reader = $1 AND NOT initial AND (lsn, op) >= ($2, $3) AND (lsn, op) <= ($4, $5)",
				SPI_OK_UPDATE, lengthof(types), types, values, NULL);
	types[1] = types[3];
	values[1] = values[3];
	types[2] = types[4];
	values[2] = values[4];
	ecm_spi_run("UPDATE _electric_cm.reader SET lsn = $2, op = $3,"
				" acknowledged_at = pg_catalog.clock_timestamp() WHERE id = $1",
				SPI_OK_UPDATE, 3, types, values, NULL);
	ecm_spi_end(&spi);
}

/* What closes a gap in one shape's log; all others have been read up to that. */
static void
ack_difference(const EcmReader *reader, const EcmReaderShape *shape, const EcmOffset *offset)
{
	EcmOffset	before = {.lsn = offset->lsn, .op = ECM_FIRST_DIFFERENCE - 1};

	if (ecm_reader_cmp(offset, &shape->position) <= 0)
		return;
	ecm_look_end(look_after(shape, offset));
	if (!ecm_reader_catches_up(reader, shape))
		advance(reader, &before);
	if (!shape->initial)
		set_shape(reader, shape, false, offset);
}

/*
 * electric_cm_ack(name text, log_offset electric_cm_offset, handle text DEFAULT NULL)
 *	RETURNS void
 *
 * A named reader has all that electric_cm_read() has returned, up to the rows with that offset
 * and handle, included.  It takes effect with the caller's transaction.  The handle may be
 * left out where the offset says it all: of a reader of one shape, and of a row that belongs
 * to a transaction, or to all shapes.  What has been acknowledged before is no error.
 *
 * Errors: as ecm_reader_arg(); 55000 not preloaded; 22004 log_offset is NULL; 22023
 * log_offset is -1; 42704 the reader does not have the shape; 42P08 the handle is needed;
 * EC001 the offset is beyond the end of what is logged, or the shape's log does not have it.
 */
Datum
electric_cm_ack(PG_FUNCTION_ARGS)
{
	EcmReader	reader;
	const EcmReaderShape *shape;
	EcmOffset	offset;

	ecm_require_shared();
	ecm_require_sql_fit();
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("offset must not be null"),
				 errhint("Pass the offset of the last row that electric_cm_read() has returned.")));
	offset = ecm_datum_offset(PG_GETARG_DATUM(1));
	if (offset.before_all)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("offset -1 cannot be acknowledged: nothing comes before it")));
	ecm_reader_arg(fcinfo, 0, ECM_READER_CHANGE, &reader);
	shape = shape_meant(&reader, PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2)), &offset);

	if (shape != NULL && shape->is_lost && (shape->initial || is_of_one_shape(&offset)))
		PG_RETURN_VOID();		/* it begins again, or not at all */
	if (shape != NULL && shape->initial)
	{
		if (offset.lsn != 0 && !ecm_op_is_base(offset.op) && !is_empty_base(shape, &offset))
			report_not_read(shape, &offset);
		ack_initial(&reader, shape, &offset);
	}
	else if (shape != NULL && is_of_one_shape(&offset))
		ack_difference(&reader, shape, &offset);
	else if (shape != NULL && ecm_reader_catches_up(&reader, shape) &&
			 ecm_reader_cmp(&offset, &reader.position) <= 0)
		ack_catching_up(&reader, shape, &offset);
	else
	{
		if (ecm_reader_cmp(&offset, &reader.position) > 0)
			ecm_offset_check_here(&offset);
		advance(&reader, &offset);
	}
	PG_RETURN_VOID();
}
