/*-------------------------------------------------------------------------
 *
 * snapshot.c
 *	  A function for pool sessions that create shapes: writes their initial
 *	  rows.
 *
 * If several shapes look for constants in the same column with the same
 * operator, one query joins an array of these constants with the table, so
 * that the server reads the table once for all of them, or uses an index.
 * Each of the other shapes has a query of its own.
 *
 * All of it runs in one REPEATABLE READ transaction, so that the rows that are
 * read, the pg_snapshot that consumers are given, and the rows of the shapes
 * in the catalog belong to one snapshot.  Otherwise a change could be neither
 * among the rows nor kept by the consumer, or both.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "replication/message.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/errors.h"
#include "base/event.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/stream_message.h"
#include "base/stream_message_io.h"
#include "base/text.h"
#include "shape/arrays.h"
#include "shape/publication.h"
#include "shape/shape.h"
#include "shape/shape_blame.h"
#include "shape/shape_catalog.h"
#include "shape/shape_chunk.h"
#include "shape/shape_entry.h"
#include "shape/shape_filter.h"
#include "shape/shape_log.h"
#include "shape/shape_requirements.h"
#include "shape/shape_stall.h"
#include "shape/shape_settings.h"

/* An error's message is cut to this many bytes. */
#define MAX_REASON		512

/* Rows fetched from the cursor at a time. */
#define FETCH_ROWS		1000

/*
 * Time (ms) after which no further shapes are read.  They have their turn in
 * another transaction, lest this one hold back vacuum for too long.
 */
#define ENOUGH_MS		10000

PG_FUNCTION_INFO_V1(electric_cm_take_snapshot);

/* A shape whose rows are to be read. */
typedef struct Member
{
	EcmShapeDef *def;
	EcmFilter  *filter;			/* NULL: no where clause */
	EcmRowPacker *packer;
	int64		rows;			/* number of its rows, once it is done */
	bool		done;
} Member;

static void
append_table(StringInfo sql, Relation rel)
{
	/* inheritance children are not part of the shape, partitions are */
	appendStringInfo(sql, " FROM %s%s AS t",
					 rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ?
					 "" : "ONLY ",
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												RelationGetRelationName(rel)));
}

/*
 * The query for the rows of one shape.  Its first column is the index of the
 * member that a row belongs to, as in join_query(): here, always the first.
 * The caller holds a lock on the table.
 */
static char *
snapshot_query(const EcmShapeDef *shape, Relation rel)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT 1::pg_catalog.int8");
	for (int i = 0; i < shape->ncolumns; i++)
		appendStringInfo(&sql, ", %s", quote_identifier(shape->column_names[i]));
	append_table(&sql, rel);
	if (shape->filter != NULL)
		appendStringInfo(&sql, " WHERE (%s)", shape->filter->clause);
	return sql.data;
}

static char *
builtin_type(Oid type)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	char	   *name;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for type %u", type);
	name = psprintf("pg_catalog.%s",
					quote_identifier(NameStr(((Form_pg_type) GETSTRUCT(tuple))->typname)));
	ReleaseSysCache(tuple);
	return name;
}

/*
 * The query for the rows of several shapes that look for the constants $1, an
 * array, in a column.  Operators and types in where clauses are always
 * built-in ones, so their names need no other schema.
 */
static char *
join_query(const Member *member, Relation rel)
{
	const EcmShapeDef *shape = member->def;
	const EcmFilter *filter = member->filter;
	StringInfoData sql;
	Oid			left;
	Oid			right;

	op_input_types(filter->equal_operator, &left, &right);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT s.member");
	for (int i = 0; i < shape->ncolumns; i++)
		appendStringInfo(&sql, ", t.%s", quote_identifier(shape->column_names[i]));
	append_table(&sql, rel);
	appendStringInfo(&sql, " JOIN pg_catalog.unnest($1) WITH ORDINALITY AS s (value, member)"
					 " ON t.%s::%s OPERATOR(pg_catalog.%s) s.value",
					 quote_identifier(shape->filter->names[filter->equal_attno - 1]),
					 builtin_type(left), get_opname(filter->equal_operator));
	return sql.data;
}

/* The output functions that pgoutput would call, in column order. */
static FmgrInfo *
output_functions(const EcmShapeDef *shape, TupleDesc tupdesc)
{
	FmgrInfo   *functions = palloc(shape->ncolumns * sizeof(FmgrInfo));

	for (int i = 0; i < shape->ncolumns; i++)
	{
		Oid			type = TupleDescAttr(tupdesc, i + 1)->atttypid;
		Oid			function;
		bool		is_varlena;

		if (type != shape->column_types[i])
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("type of column \"%s\" of %s has changed",
							shape->column_names[i], shape->relation_name)));
		getTypeOutputInfo(type, &function, &is_varlena);
		fmgr_info(function, &functions[i]);
	}
	return functions;
}

/* Turns the rows of one fetch into entries. */
static void
pack_rows(Member **members, SPITupleTable *table, uint64 nrows,
		  FmgrInfo *functions, EcmValue *values, MemoryContext row_context)
{
	int			ncolumns = members[0]->def->ncolumns;

	for (uint64 row = 0; row < nrows; row++)
	{
		bool		is_null;
		int64		member = DatumGetInt64(SPI_getbinval(table->vals[row],
														 table->tupdesc, 1, &is_null));
		MemoryContext old_context = MemoryContextSwitchTo(row_context);

		for (int i = 0; i < ncolumns; i++)
		{
			Datum		datum = SPI_getbinval(table->vals[row], table->tupdesc,
											  i + 2, &is_null);

			values[i].kind = is_null ? ECM_VALUE_NULL : ECM_VALUE_TEXT;
			values[i].text = is_null ? NULL :
				OutputFunctionCall(&functions[i], datum);
			values[i].len = is_null ? 0 : strlen(values[i].text);
		}
		ecm_entry_check_readable(ECM_OP_INSERT, members[member - 1]->def, values, NULL);
		MemoryContextSwitchTo(old_context);

		ecm_row_packer_put(members[member - 1]->packer, values, ncolumns);
		MemoryContextReset(row_context);
	}
}

/* The constants that the members look for, as an array. */
static Datum
constants(Member **members, int n, Oid type)
{
	Datum	   *elems = palloc(sizeof(Datum) * n);
	int16		typlen;
	bool		typbyval;
	char		typalign;

	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	for (int i = 0; i < n; i++)
		elems[i] = members[i]->filter->equals[0];
	return PointerGetDatum(construct_array(elems, n, type, typlen, typbyval, typalign));
}

static Portal
open_cursor(Member **members, int n, Relation rel)
{
	Oid			left;
	Oid			right;
	Oid			type;
	Datum		value;

	if (n == 1)
		return SPI_cursor_open_with_args(NULL, snapshot_query(members[0]->def, rel),
										 0, NULL, NULL, NULL, true, CURSOR_OPT_NO_SCROLL);
	op_input_types(members[0]->filter->equal_operator, &left, &right);
	type = get_array_type(right);
	value = constants(members, n, right);
	return SPI_cursor_open_with_args(NULL, join_query(members[0], rel),
									 1, &type, &value, NULL, true, CURSOR_OPT_NO_SCROLL);
}

/*
 * To be called before the table is read for a shape: evaluating its where
 * clause may crash the server, or have the process killed for its use of
 * memory.  If that has happened twice for this shape (see shape_blame.c),
 * raises an ERROR instead. last_word: the shape is the only one of the batch,
 * so the error ends it, and its deaths are settled.
 */
static void
begin_dangerous(const EcmShapeDef *shape, bool last_word)
{
	EcmPlace	place;

	if (ecm_blame_open(psprintf("%u.s" INT64_FORMAT, MyDatabaseId, shape->id),
					   quickdie, &place) == ECM_BLAME_NOBODY)
	{
		ecm_here->shape = shape->id;
		return;
	}
	if (last_word)
		ecm_blame_settled(&place);
	ecm_blame_close();
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("the server crashed twice while it read the table for this shape")));
}

static void
end_dangerous(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	ecm_stall_stop();
	ecm_blame_close();
}

/*
 * Reads the table as the shapes' owner, and writes the rows to their logs.
 * User, security context and settings are restored at the end; after an ERROR,
 * the transaction's abort restores them.
 */
static void
copy_rows(Member **members, int n)
{
	const EcmShapeDef *shape = members[0]->def;
	Relation	rel;
	EcmLogWriter *writer;
	EcmValue   *values = palloc(shape->ncolumns * sizeof(EcmValue));
	FmgrInfo   *functions;
	MemoryContext row_context;
	Portal		portal;
	Oid			save_userid;
	int			save_sec_context;
	int			save_nestlevel;

	rel = try_table_open(shape->relation, AccessShareLock);
	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s of shape \"%s\" does not exist any more",
						shape->relation_name, shape->handle)));

	writer = ecm_log_writer_begin();
	for (int i = 0; i < n; i++)
		members[i]->packer = ecm_row_packer_begin(writer, members[i]->def->id, 0,
												  ecm_new_snapshot_identity());

	/* with row_security off, a policy that applies is an error, not a filter */
	save_nestlevel = NewGUCNestLevel();
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_USERSET,
					PGC_S_SESSION);
	SetConfigOption("row_security", "off", PGC_USERSET, PGC_S_SESSION);

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");

	/* the writer checks no privileges, so it can run as that user, too */
	GetUserIdAndSecContext(&save_userid, &save_sec_context);
	SetUserIdAndSecContext(shape->owner,
						   save_sec_context | SECURITY_RESTRICTED_OPERATION |
						   SECURITY_LOCAL_USERID_CHANGE);

	portal = open_cursor(members, n, rel);
	functions = output_functions(shape, portal->tupDesc);
	row_context = AllocSetContextCreate(CurrentMemoryContext,
										"electric_cm snapshot row",
										ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		pack_rows(members, SPI_tuptable, SPI_processed, functions, values,
				  row_context);
		SPI_freetuptable(SPI_tuptable);
	}
	for (int i = 0; i < n; i++)
	{
		members[i]->rows = ecm_row_packer_end(members[i]->packer);
		members[i]->done = true;
	}
	SPI_cursor_close(portal);

	SetUserIdAndSecContext(save_userid, save_sec_context);
	SPI_finish();
	AtEOXact_GUC(false, save_nestlevel);

	ecm_log_writer_end(writer);
	table_close(rel, NoLock);
}

/* The same for one shape, as long as it does not stay at one row for too long. */
static void
copy_rows_watched(Member **member)
{
	MemoryContext context = CurrentMemoryContext;

	ecm_stall_watch_reading();
	PG_TRY();
	{
		copy_rows(member, 1);
	}
	PG_CATCH();
	{
		ecm_stall_rethrow(context);
	}
	PG_END_TRY();
}

static void
copy_rows_of_one(Member **member, bool last_word)
{
	begin_dangerous((*member)->def, last_word);
	PG_ENSURE_ERROR_CLEANUP(end_dangerous, (Datum) 0);
	{
		copy_rows_watched(member);
		ecm_blame_passed(PG_UINT64_MAX);
	}
	PG_END_ENSURE_ERROR_CLEANUP(end_dangerous, (Datum) 0);
	end_dangerous(0, (Datum) 0);
}

/* ------------------------------------------------------------- grouping -- */

/* Is the where clause "column = constant" and nothing else? */
static bool
is_plain_equality(const Member *member)
{
	const EcmFilter *filter = member->filter;
	Oid			left;
	Oid			right;

	if (filter == NULL || filter->equal_attno == 0 || filter->nequals != 1 ||
		filter->quals != NIL)
		return false;
	op_input_types(filter->equal_operator, &left, &right);
	return !IsPolymorphicType(left) && !IsPolymorphicType(right) &&
		OidIsValid(get_array_type(right));
}

/*
 * Can one query read the rows of both members, whose where clauses are plain
 * equalities?
 */
static bool
go_together(const Member *a, const Member *b)
{
	if (a->def->relation != b->def->relation || a->def->owner != b->def->owner ||
		a->def->ncolumns != b->def->ncolumns ||
		a->filter->equal_operator != b->filter->equal_operator ||
		strcmp(a->def->filter->names[a->filter->equal_attno - 1],
			   b->def->filter->names[b->filter->equal_attno - 1]) != 0)
		return false;
	for (int i = 0; i < a->def->ncolumns; i++)
		if (a->def->column_types[i] != b->def->column_types[i] ||
			strcmp(a->def->column_names[i], b->def->column_names[i]) != 0)
			return false;
	return true;
}

/*
 * Puts the first member that is not done, and those that one query can read
 * with it, into 'group'.  Returns their number.
 */
static int
next_group(Member *members, int n, Member **group)
{
	int			ngroup = 0;

	for (int i = 0; i < n; i++)
	{
		if (members[i].done)
			continue;
		if (ngroup == 0 ||
			(is_plain_equality(&members[i]) && go_together(group[0], &members[i])))
			group[ngroup++] = &members[i];
		if (ngroup == 1 && !is_plain_equality(group[0]))
			break;
	}
	return ngroup;
}

/*
 * The table's schema may have been renamed by a transaction that did not see
 * the shape.  Then the keys in its log would begin with the wrong name, so the
 * shape is deleted.  True: that was so.
 */
static bool
drop_if_renamed(const EcmShapeDef *def)
{
	char	   *name = ecm_relation_name(def->relation);
	Oid			type = INT8OID;
	Datum		id = Int64GetDatum(def->id);
	EcmSpiState spi;

	if (name == NULL || strcmp(name, def->relation_name) == 0)
		return false;
	ecm_spi_begin(&spi);
	(void) ecm_shapes_delete("id = $1", 1, &type, &id, NULL, "the table was renamed");
	ecm_spi_end(&spi);
	return true;
}

/* Raises an ERROR if the table has left the publication meanwhile. */
static void
check_published(const EcmShapeDef *def)
{
	EcmSpiState spi;
	bool		published;

	ecm_forget_catalogs();
	ecm_spi_begin(&spi);
	published = ecm_is_published(def->relation) && !ecm_is_filtered(def->relation) &&
		ecm_publishes_everything();
	ecm_spi_end(&spi);
	if (!published)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("publication \"%s\" does not publish all changes of table %s",
						ecm_own_publication_name(), def->relation_name)));
}

/*
 * Looks up a shape that is to be read.  False: it is gone, or another attempt
 * to create it has begun.
 */
static bool
find_member(int64 id, int generation, Member *member)
{
	AttrNumber *attnos;

	memset(member, 0, sizeof(*member));
	member->def = ecm_shape_by_id(id);
	if (member->def == NULL || member->def->state != ECM_SHAPE_CREATING ||
		member->def->generation != generation ||
		member->def->snapshot_generation == generation ||
		drop_if_renamed(member->def))
		return false;
	if (member->def->filter != NULL)
	{
		attnos = palloc(sizeof(AttrNumber) * (member->def->filter->ncolumns + 1));
		for (int i = 0; i < member->def->filter->ncolumns; i++)
			attnos[i] = i + 1;
		member->filter = ecm_filter_compile(member->def->filter, attnos,
											CurrentMemoryContext);
	}
	return true;
}

/* --------------------------------------------------------------- result -- */

/*
 * Notes the snapshot in the shapes' rows, and tells the consumers.  A session that
 * has a row locked may be waiting for our lock on the table: it is not waited for.
 */
static void
store_snapshot(const Member *members, int n, const char *snapshot)
{
	EcmSpiState spi;
	EcmStreamMessage message = {.kind = ECM_MESSAGE_LIVE, .snapshot = snapshot,
	.snapshot_len = strlen(snapshot)};
	Oid			types[] = {INT8ARRAYOID, INT4ARRAYOID, INT8ARRAYOID, TEXTOID};
	Datum		args[4];
	Datum	   *ids = palloc(sizeof(Datum) * Max(n, 1));
	Datum	   *generations = palloc(sizeof(Datum) * Max(n, 1));
	Datum	   *rows = palloc(sizeof(Datum) * Max(n, 1));
	int			ndone = 0;

	message.shapes = palloc(sizeof(EcmMessageShape) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		const Member *member = &members[i];

		if (!member->done)
			continue;
		ids[ndone] = Int64GetDatum(member->def->id);
		generations[ndone] = Int32GetDatum(member->def->generation);
		rows[ndone++] = Int64GetDatum(member->rows);
		message.shapes[message.nshapes++] =
			(EcmMessageShape)
		{
			member->def->id, member->def->generation
		};
	}
	if (ndone == 0)
		return;
	args[0] = ecm_array_of_int8(ids, ndone);
	args[1] = ecm_array_of_int4(generations, ndone);
	args[2] = ecm_array_of_int8(rows, ndone);
	args[3] = CStringGetTextDatum(snapshot);

	ecm_spi_begin(&spi);
	ecm_spi_run("SELECT FROM _electric_cm.shape WHERE id = ANY ($1)"
				" ORDER BY id FOR NO KEY UPDATE NOWAIT",
				SPI_OK_SELECT, 1, types, args, NULL);
	ecm_spi_run("UPDATE _electric_cm.shape s SET snapshot = $4::pg_catalog.pg_snapshot,"
				" order_xid = pg_current_xact_id(), snapshot_generation = d.generation, snapshot_rows = d.rows"
				" FROM unnest($1, $2, $3) AS d (id, generation, rows) WHERE s.id = d.id",
				SPI_OK_UPDATE, 4, types, args, NULL);
	if (SPI_processed != (uint64) ndone)
		elog(ERROR, "could not update all shapes");
	ecm_spi_end(&spi);
	ecm_message_emit(&message);
}

static int
take(Datum *ids, Datum *generations, int nids, Datum *done)
{
	int			n = 0;
	int			ngroup;
	int			ndone = 0;
	Member	   *members = palloc(sizeof(Member) * Max(nids, 1));
	Member	  **group = palloc(sizeof(Member *) * Max(nids, 1));
	EcmTime		began = ecm_now();

	for (int i = 0; i < nids; i++)
	{
		if (find_member(DatumGetInt64(ids[i]), DatumGetInt32(generations[i]), &members[n]))
			n++;
		else
			done[ndone++] = ids[i];
	}
	if (n > 0)
	{
		check_published(members[0].def);
		ecm_check_leaves(members[0].def->relation, AccessShareLock);
	}
	while ((ngroup = next_group(members, n, group)) > 0)
	{
		if (ngroup > 1)
			copy_rows(group, ngroup);
		else
			copy_rows_of_one(group, nids == 1);
		if (ecm_has_passed(began, ecm_now(), ENOUGH_MS))
			break;
	}
	store_snapshot(members, n,
				   OidOutputFunctionCall(F_PG_SNAPSHOT_OUT,
										 OidFunctionCall0(F_PG_CURRENT_SNAPSHOT)));
	for (int i = 0; i < n; i++)
		if (members[i].done)
			done[ndone++] = Int64GetDatum(members[i].def->id);
	return ndone;
}

/* ------------------------------------------------------------- failures -- */

/* Is a further attempt to read the table of no use after this error? */
static bool
is_final(const ErrorData *edata, bool last_attempt)
{
	EcmFault	fault = ecm_error_fault(unpack_sql_state(edata->sqlerrcode),
										edata->message, ECM_WORK_SNAPSHOT);

	return fault == ECM_FAULT_OF_IT || (fault == ECM_FAULT_IF_AGAIN && last_attempt);
}

/*
 * Tells the shape's consumer, by the message "fail", that the shape ends with
 * an error: only consumers change the state of a shape.  The error may quote a
 * row, so it goes right into the message, and is never part of a statement,
 * which views and the log would show.
 */
static void
emit_failure(const EcmShapeDef *def, const ErrorData *edata)
{
	char	   *text = ecm_tag_error(unpack_sql_state(edata->sqlerrcode), edata->message);

	text[pg_mbcliplen(text, strlen(text), MAX_REASON)] = '\0';
	ecm_shape_emit_failure(def, text);
	ereport(LOG,
			(errcode(edata->sqlerrcode),
			 errmsg("could not create shape %s: %s", def->handle,
					ecm_error_untagged(text))));
	ecm_event_in(MyDatabaseId, get_database_name(MyDatabaseId), ECM_EVENT_SHAPE_ERRORED, ecm_error_public_text(text),
				 "could not create shape %s", def->handle);
}

/*
 * Takes the snapshot of one shape alone.  If its rows can't be read, and the
 * shape is to blame, it fails, and is done as well.
 */
static int
take_or_fail(Datum id, Datum generation, bool last_attempt, Datum *done)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile edata = NULL;
	volatile int ndone = 0;
	EcmShapeDef *def;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		ndone = take(&id, &generation, 1, done);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (edata == NULL)
		return ndone;

	if (!is_final(edata, last_attempt))
		ReThrowError(edata);
	def = ecm_shape_by_id(DatumGetInt64(id));
	if (def != NULL && def->generation == DatumGetInt32(generation))
		emit_failure(def, edata);
	done[0] = id;
	return 1;
}

/*
 * _electric_cm.take_snapshot(shapes int8[], generations int4[], last_attempt bool)
 *		RETURNS int8[]
 *
 * Writes the rows of the shapes' table, as this transaction sees them, to the
 * shapes' logs, notes the transaction's snapshot in the catalog, and emits the
 * message "live <snapshot> {<id> <generation>}...".  All of it takes effect
 * with the caller's commit.  Returns the shapes that are done, or need not be
 * created by this attempt any more; those that are left out have not had their
 * turn yet.  If one shape is given alone, and its rows will never be readable,
 * or are not at the last attempt, it is done by a message "fail".
 *
 * Errors: 42501 not called by a superuser; 25001 not in a transaction with
 * one snapshot; 55000 a shape's table has changed; 40001 a shape's row was
 * changed meanwhile; 55P03 it is locked; and whatever reading the table as
 * the shapes' owners may raise.
 */
Datum
electric_cm_take_snapshot(PG_FUNCTION_ARGS)
{
	Datum	   *ids;
	Datum	   *generations;
	Datum	   *done;
	int			nids;
	int			ngenerations;
	int			ndone;

	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to take a shape's snapshot")));
	if (!IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("a shape's snapshot must be taken in a REPEATABLE READ transaction")));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), INT8OID, sizeof(int64),
					  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &ids, NULL, &nids);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), INT4OID, sizeof(int32),
					  true, TYPALIGN_INT, &generations, NULL, &ngenerations);
	if (nids != ngenerations)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("as many generations as shapes are needed")));

	done = palloc(sizeof(Datum) * Max(nids, 1));
	ndone = nids == 1 ? take_or_fail(ids[0], generations[0], PG_GETARG_BOOL(2), done) :
		take(ids, generations, nids, done);
	PG_RETURN_DATUM(ecm_array_of_int8(done, ndone));
}
