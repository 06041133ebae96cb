/*-------------------------------------------------------------------------
 *
 * reader.c
 *	  Named readers: creates, alters and drops them.
 *
 * A reader's shapes are read one by one until the reader has the rows that their logs begin
 * with, and then what the stream has brought up to the reader's position: until then, each
 * has a position of its own.  From then on they are read together, and have the reader's
 * position: to acknowledge something of thousands of shapes is to change one row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/version.h"
#include "functions/reader.h"
#include "functions/reading_args.h"
#include "shape/arrays.h"
#include "shape/shape.h"
#include "shape/shape_readers.h"
#include "shape/shape_rights.h"

PG_FUNCTION_INFO_V1(electric_cm_create_reader);
PG_FUNCTION_INFO_V1(electric_cm_alter_reader);
PG_FUNCTION_INFO_V1(electric_cm_drop_reader);

/* ----------------------------------------------------------------
 * Rows
 * ----------------------------------------------------------------
 */

int64
ecm_position_op(const EcmOffset *position)
{
	return position->before_all ? -1 : (int64) position->op;
}

EcmOffset
ecm_position_of(XLogRecPtr lsn, int64 op)
{
	EcmOffset	position = {.before_all = op < 0, .lsn = lsn, .op = op < 0 ? 0 : (uint64) op};

	return position;
}

int
ecm_reader_cmp(const EcmOffset *a, const EcmOffset *b)
{
	if (a->before_all || b->before_all)
		return (int) b->before_all - (int) a->before_all;
	return ecm_offset_cmp(a->lsn, a->op, b->lsn, b->op);
}

static char *
name_arg(FunctionCallInfo fcinfo, int argno)
{
	if (PG_ARGISNULL(argno))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the reader's name must not be null")));
	return text_to_cstring(PG_GETARG_TEXT_PP(argno));
}

/* False: there is no reader of that name. */
static bool
find_reader(EcmReader *reader, EcmReaderUse use, Oid *owner)
{
	static struct _SPI_plan *plans[ECM_READER_CHANGE + 1];
	MemoryContext context = CurrentMemoryContext;
	Oid			type = TEXTOID;
	Datum		value = CStringGetTextDatum(reader->name);
	bool		found;
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&plans[use], use == ECM_READER_CHANGE ?
					 "SELECT id, owner, lsn, op FROM _electric_cm.reader WHERE name = $1 FOR UPDATE" :
					 "SELECT id, owner, lsn, op FROM _electric_cm.reader WHERE name = $1",
					 SPI_OK_SELECT, 1, &type, &value, NULL);
	found = SPI_processed > 0;
	if (found)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		reader->id = DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull));
		*owner = DatumGetObjectId(SPI_getbinval(row, desc, 2, &isnull));
		reader->position = ecm_position_of(DatumGetLSN(SPI_getbinval(row, desc, 3, &isnull)),
										   DatumGetInt64(SPI_getbinval(row, desc, 4, &isnull)));
	}
	ecm_spi_end(&spi);
	MemoryContextSwitchTo(context);
	return found;
}

static void
check_found(const EcmReader *reader, bool found, Oid owner)
{
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("reader \"%s\" does not exist", reader->name),
				 errhint("Create it with electric_cm_create_reader().")));
	if (!has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for reader \"%s\"", reader->name),
				 errhint("Only its owner, and members of that role, may use a reader.")));
}

/*
 * Two sessions that read the same would both write it, if the second one only met the first
 * one's lock when it acknowledges.  So the reader is locked from reading on, and its position
 * is looked up again then.
 */
void
ecm_reader_arg(FunctionCallInfo fcinfo, int argno, EcmReaderUse use, EcmReader *reader)
{
	Oid			owner = InvalidOid;
	bool		found;

	reader->name = name_arg(fcinfo, argno);
	found = find_reader(reader, ECM_READER_READ, &owner);
	check_found(reader, found, owner);
	while (!RecoveryInProgress())
	{
		int64		id = reader->id;

		ecm_reader_lock(id);
		found = find_reader(reader, use, &owner);
		check_found(reader, found, owner);
		if (reader->id == id)
			break;
	}
}

#define SHAPES_SQL(condition) \
	"SELECT m.shape, m.handle, m.initial, m.lsn, m.op, x.member IS NOT NULL" \
	" FROM _electric_cm.reader_shape m LEFT JOIN _electric_cm.reader_lost x ON x.member = m.id" \
	" WHERE m.reader = $1 AND " condition " ORDER BY m.shape LIMIT $3"

/* Neither lost nor ended. */
#define FOLLOWED \
	"x.member IS NULL AND EXISTS (SELECT FROM _electric_cm.shape s" \
	" LEFT JOIN _electric_cm.shape_state t ON t.shape = s.id" \
	" WHERE s.id = m.shape AND coalesce(t.state, '') NOT IN ('errored', 'gone'))"

static EcmReaderShape *
find_shapes(const EcmReader *reader, struct _SPI_plan **plan, const char *sql, Oid type, Datum value,
			int limit, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID, type, INT4OID};
	Datum		values[] = {Int64GetDatum(reader->id), value, Int32GetDatum(limit)};
	EcmReaderShape *shapes;
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_spi_run_kept(plan, sql, SPI_OK_SELECT, lengthof(types), types, values, NULL);
	*n = (int) SPI_processed;
	shapes = MemoryContextAllocZero(context, Max(*n, 1) * sizeof(EcmReaderShape));
	for (int i = 0; i < *n; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		XLogRecPtr	lsn;

		shapes[i].shape = DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull));
		shapes[i].handle = MemoryContextStrdup(context,
											   TextDatumGetCString(SPI_getbinval(row, desc, 2, &isnull)));
		shapes[i].initial = DatumGetBool(SPI_getbinval(row, desc, 3, &isnull));
		shapes[i].is_lost = DatumGetBool(SPI_getbinval(row, desc, 6, &isnull));
		lsn = DatumGetLSN(SPI_getbinval(row, desc, 4, &isnull));
		shapes[i].is_own = !isnull;
		shapes[i].position = isnull ? reader->position :
			ecm_position_of(lsn, DatumGetInt64(SPI_getbinval(row, desc, 5, &isnull)));
	}
	ecm_spi_end(&spi);
	return shapes;
}

EcmReaderShape *
ecm_reader_shapes(const EcmReader *reader, EcmReaderPart part, int64 after, int limit, int *n)
{
	static const char *const sql[] = {
		[ECM_READER_ALL] = SHAPES_SQL("m.shape > $2"),
		[ECM_READER_FOLLOWED] = SHAPES_SQL("m.shape > $2 AND " FOLLOWED),
		[ECM_READER_INITIAL] = SHAPES_SQL("m.shape > $2 AND m.initial AND " FOLLOWED),
		[ECM_READER_OWN] = SHAPES_SQL("m.shape > $2 AND NOT m.initial AND m.lsn IS NOT NULL")
	};
	static struct _SPI_plan *plans[lengthof(sql)];

	return find_shapes(reader, &plans[part], sql[part], INT8OID, Int64GetDatum(after), limit, n);
}

EcmReaderShape *
ecm_reader_shape(const EcmReader *reader, const char *handle)
{
	static struct _SPI_plan *plan;
	int			n;
	EcmReaderShape *shape = find_shapes(reader, &plan, SHAPES_SQL("m.handle = $2"), TEXTOID,
										CStringGetTextDatum(handle), 1, &n);

	return n > 0 ? shape : NULL;
}

bool
ecm_reader_catches_up(const EcmReader *reader, const EcmReaderShape *shape)
{
	return !shape->initial && shape->is_own && ecm_reader_cmp(&shape->position, &reader->position) < 0;
}

/* ----------------------------------------------------------------
 * SQL functions
 * ----------------------------------------------------------------
 */

static void
begin_change(void)
{
	ecm_require_shared();
	ecm_require_sql_fit();
}

/* Adds shapes that the user may read. */
static void
add_shapes(const EcmReader *reader, char **handles, int n)
{
	EcmSpiState spi;
	Oid			types[] = {INT8OID, TEXTARRAYOID};
	Datum		values[] = {Int64GetDatum(reader->id), (Datum) 0};

	for (int i = 0; i < n; i++)
		(void) ecm_readable_shape(handles[i]);
	if (n == 0)
		return;

	values[1] = ecm_array_of_names(handles, n);
	ecm_spi_begin(&spi);
	ecm_spi_run("SELECT handle FROM _electric_cm.reader_shape WHERE reader = $1 AND handle = ANY ($2) LIMIT 1",
				SPI_OK_SELECT, 2, types, values, NULL);
	if (SPI_processed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("reader \"%s\" has shape \"%s\" already", reader->name,
						SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1)),
				 errhint("To begin with it again, drop it from the reader in the same call.")));
	ecm_spi_run("INSERT INTO _electric_cm.reader_shape (reader, shape, handle)"
				" SELECT $1, s.id, s.handle FROM _electric_cm.shape s WHERE s.handle = ANY ($2)",
				SPI_OK_INSERT, 2, types, values, NULL);
	if ((int) SPI_processed != n)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("a shape was dropped meanwhile")));
	ecm_spi_end(&spi);
}

/*
 * electric_cm_create_reader(name text, handles text[]) RETURNS void
 *
 * Creates a reader of shapes, which belongs to the user.  The server keeps its position,
 * and what it has not acknowledged (electric_cm.reader_retention).  It begins with all rows.
 *
 * Errors: 55000 not preloaded; 22004 an argument, or an element, is NULL; 2202E handles has
 * several dimensions; 22023 a handle is there twice; 42602 the name is empty, or longer than
 * 63 bytes; 42710 there is such a reader; 42704 no such shape; 42501 the user may not read one.
 */
Datum
electric_cm_create_reader(PG_FUNCTION_ARGS)
{
	EcmReader	reader = {.name = name_arg(fcinfo, 0)};
	int			n;
	char	  **handles = ecm_handles_arg(fcinfo, 1, "handles", &n);
	EcmSpiState spi;
	Oid			types[] = {TEXTOID, OIDOID};
	Datum		values[] = {CStringGetTextDatum(reader.name), ObjectIdGetDatum(GetUserId())};
	bool		isnull;

	begin_change();
	if (reader.name[0] == '\0' || strlen(reader.name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name of a reader: \"%s\"", reader.name),
				 errhint("A name has 1 to %d bytes.", NAMEDATALEN - 1)));

	ecm_spi_begin(&spi);
	ecm_spi_run("INSERT INTO _electric_cm.reader (name, owner) VALUES ($1, $2)"
				" ON CONFLICT (name) DO NOTHING RETURNING id",
				SPI_OK_INSERT_RETURNING, 2, types, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("reader \"%s\" already exists", reader.name)));
	reader.id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	ecm_spi_end(&spi);
	add_shapes(&reader, handles, n);
	PG_RETURN_VOID();
}

static void
drop_shapes(const EcmReader *reader, char **handles, int n)
{
	EcmSpiState spi;
	Oid			types[] = {INT8OID, TEXTARRAYOID};
	Datum		values[] = {Int64GetDatum(reader->id), (Datum) 0};

	if (n == 0)
		return;
	values[1] = ecm_array_of_names(handles, n);
	ecm_spi_begin(&spi);
	ecm_spi_run("DELETE FROM _electric_cm.reader_lost x USING _electric_cm.reader_shape m"
				" WHERE m.reader = $1 AND m.handle = ANY ($2) AND x.member = m.id",
				SPI_OK_DELETE, 2, types, values, NULL);
	ecm_spi_run("DELETE FROM _electric_cm.reader_shape WHERE reader = $1 AND handle = ANY ($2)",
				SPI_OK_DELETE, 2, types, values, NULL);
	if ((int) SPI_processed != n)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("reader \"%s\" does not have all of these shapes", reader->name)));
	ecm_spi_end(&spi);
}

/*
 * electric_cm_alter_reader(name text, add_handles text[] DEFAULT NULL,
 *							drop_handles text[] DEFAULT NULL) RETURNS void
 *
 * Drops shapes from a reader, then adds others.  It begins with all rows of those that are
 * added, and does not notice at the others.  A shape in both lists begins again.
 *
 * Errors: as electric_cm_create_reader() and ecm_reader_arg(); 42704 the reader does not
 * have the shape; 42710 it has it already.
 */
Datum
electric_cm_alter_reader(PG_FUNCTION_ARGS)
{
	EcmReader	reader;
	int			n;
	char	  **handles;

	begin_change();
	ecm_reader_arg(fcinfo, 0, ECM_READER_CHANGE, &reader);
	if (!PG_ARGISNULL(2))
	{
		handles = ecm_handles_arg(fcinfo, 2, "drop_handles", &n);
		drop_shapes(&reader, handles, n);
	}
	if (!PG_ARGISNULL(1))
	{
		handles = ecm_handles_arg(fcinfo, 1, "add_handles", &n);
		add_shapes(&reader, handles, n);
	}
	PG_RETURN_VOID();
}

/*
 * electric_cm_drop_reader(name text) RETURNS void
 *
 * Errors: as ecm_reader_arg(); 55000 not preloaded.
 */
Datum
electric_cm_drop_reader(PG_FUNCTION_ARGS)
{
	EcmReader	reader;
	EcmSpiState spi;
	Oid			type = INT8OID;
	Datum		value;

	begin_change();
	ecm_reader_arg(fcinfo, 0, ECM_READER_CHANGE, &reader);
	value = Int64GetDatum(reader.id);
	ecm_spi_begin(&spi);
	ecm_spi_run("DELETE FROM _electric_cm.reader_lost x USING _electric_cm.reader_shape m"
				" WHERE m.reader = $1 AND x.member = m.id",
				SPI_OK_DELETE, 1, &type, &value, NULL);
	ecm_spi_run("DELETE FROM _electric_cm.reader_shape WHERE reader = $1",
				SPI_OK_DELETE, 1, &type, &value, NULL);
	ecm_spi_run("DELETE FROM _electric_cm.reader WHERE id = $1",
				SPI_OK_DELETE, 1, &type, &value, NULL);
	ecm_spi_end(&spi);
	PG_RETURN_VOID();
}
