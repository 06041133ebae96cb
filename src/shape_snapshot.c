/*-------------------------------------------------------------------------
 *
 * shape_snapshot.c
 *	  A shape's initial rows: what a pool session does to create a shape.
 *
 * Runs in a REPEATABLE READ transaction, so that the rows that are read, the
 * pg_snapshot that is handed to the consumer, and the shape's row in the
 * catalog all belong to one snapshot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "replication/message.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "compat.h"
#include "shape.h"

/* Rows fetched from the cursor at a time. */
#define FETCH_ROWS		1000

PG_FUNCTION_INFO_V1(electric_cm_take_snapshot);

/* The query for the shape's rows; the caller holds a lock on the table. */
static char *
snapshot_query(const EcmShapeDef *shape, Relation rel)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (int i = 0; i < shape->ncolumns; i++)
	{
		if (i > 0)
			appendStringInfoString(&sql, ", ");
		appendStringInfoString(&sql, quote_identifier(shape->column_names[i]));
	}
	/* inheritance children are not part of the shape, partitions are */
	appendStringInfo(&sql, " FROM %s%s",
					 rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ?
					 "" : "ONLY ",
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												RelationGetRelationName(rel)));
	if (shape->filter != NULL)
		appendStringInfo(&sql, " WHERE (%s)", shape->filter->clause);
	return sql.data;
}

/* The output functions that pgoutput would call, in column order. */
static FmgrInfo *
output_functions(const EcmShapeDef *shape, TupleDesc tupdesc)
{
	FmgrInfo   *functions = palloc(shape->ncolumns * sizeof(FmgrInfo));

	for (int i = 0; i < shape->ncolumns; i++)
	{
		Oid			type = TupleDescAttr(tupdesc, i)->atttypid;
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
pack_rows(const EcmShapeDef *shape, SPITupleTable *table, uint64 nrows,
		  FmgrInfo *functions, EcmValue *values, MemoryContext row_context,
		  EcmRowPacker *packer)
{
	for (uint64 row = 0; row < nrows; row++)
	{
		MemoryContext old_context = MemoryContextSwitchTo(row_context);

		for (int i = 0; i < shape->ncolumns; i++)
		{
			bool		is_null;
			Datum		datum = SPI_getbinval(table->vals[row], table->tupdesc,
											  i + 1, &is_null);

			values[i].kind = is_null ? ECM_VALUE_NULL : ECM_VALUE_TEXT;
			values[i].text = is_null ? NULL :
				OutputFunctionCall(&functions[i], datum);
			values[i].len = is_null ? 0 : strlen(values[i].text);
		}
		MemoryContextSwitchTo(old_context);

		ecm_row_packer_put(packer, values, shape->ncolumns);
		MemoryContextReset(row_context);
	}
}

/*
 * Reads the table as the shape's owner and writes its rows to the shape's
 * log.  The user, the security context and the settings are those of the
 * caller again at the end; on an ERROR, transaction abort restores them.
 */
static int64
copy_rows(const EcmShapeDef *shape)
{
	Relation	rel;
	char	   *sql;
	EcmRowPacker *packer;
	int64		rows;
	EcmValue   *values = palloc(shape->ncolumns * sizeof(EcmValue));
	FmgrInfo   *functions;
	MemoryContext row_context;
	SPIPlanPtr	plan;
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
	sql = snapshot_query(shape, rel);

	packer = ecm_row_packer_begin(shape->id, 0, 0);

	/* rather no rows than those that a policy lets the owner see */
	save_nestlevel = NewGUCNestLevel();
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_USERSET,
					PGC_S_SESSION);
	SetConfigOption("row_security", "off", PGC_USERSET, PGC_S_SESSION);

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");

	/* the writer below checks no privileges, so it need not be left out */
	GetUserIdAndSecContext(&save_userid, &save_sec_context);
	SetUserIdAndSecContext(shape->owner,
						   save_sec_context | SECURITY_RESTRICTED_OPERATION |
						   SECURITY_LOCAL_USERID_CHANGE);

	plan = SPI_prepare_cursor(sql, 0, NULL, CURSOR_OPT_NO_SCROLL);
	if (plan == NULL)
		elog(ERROR, "could not plan \"%s\": %s", sql,
			 SPI_result_code_string(SPI_result));
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, true);
	functions = output_functions(shape, portal->tupDesc);
	row_context = AllocSetContextCreate(CurrentMemoryContext,
										"electric_cm snapshot row",
										ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		pack_rows(shape, SPI_tuptable, SPI_processed, functions, values,
				  row_context, packer);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);

	SetUserIdAndSecContext(save_userid, save_sec_context);
	SPI_finish();
	AtEOXact_GUC(false, save_nestlevel);

	rows = ecm_row_packer_end(packer);
	table_close(rel, NoLock);

	return rows;
}

/* Notes the snapshot in the shape's row; it must still be ours to take. */
static void
store_snapshot(const EcmShapeDef *shape, const char *snapshot, int64 rows)
{
	EcmSpiState spi;
	Oid			types[] = {INT8OID, TEXTOID, INT4OID, INT8OID};
	Datum		args[] = {
		Int64GetDatum(shape->id),
		CStringGetTextDatum(snapshot),
		Int32GetDatum(shape->generation),
		Int64GetDatum(rows)
	};

	ecm_spi_begin(&spi);
	if (SPI_execute_with_args("UPDATE _electric_cm.shape "
							  "SET snapshot = $2::pg_catalog.pg_snapshot, "
							  "snapshot_generation = $3, snapshot_rows = $4 "
							  "WHERE id = $1",
							  4, types, args, NULL, false, 0) != SPI_OK_UPDATE ||
		SPI_processed != 1)
		elog(ERROR, "could not update shape \"%s\"", shape->handle);
	ecm_spi_end(&spi);
}

/*
 * _electric_cm.take_snapshot(handle text, generation int4) -> int8
 *
 * Writes the rows of a shape's table, as this transaction sees them, to the
 * shape's log, notes the transaction's snapshot in the catalog, and emits the
 * message "live <id> <generation> <snapshot>".  All of it takes effect with
 * the caller's commit.  Returns the number of rows.
 *
 * Errors: 42501 not called by a superuser; 25001 not in a transaction with
 * one snapshot; 55000 the shape is gone, is not being created in that
 * generation, has its snapshot already, or its table has changed; 40001 the
 * shape's row was changed meanwhile; and whatever reading the table as the
 * shape's owner may raise.
 */
Datum
electric_cm_take_snapshot(PG_FUNCTION_ARGS)
{
	char	   *handle = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int			generation = PG_GETARG_INT32(1);
	EcmShapeDef *shape;
	char	   *snapshot;
	int64		rows;

	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to take a shape's snapshot")));
	if (!IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("a shape's snapshot must be taken in a REPEATABLE READ transaction")));

	shape = ecm_shape_by_handle(handle);
	if (shape == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("shape \"%s\" does not exist", handle)));
	if (shape->state != ECM_SHAPE_CREATING || shape->generation != generation)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("shape \"%s\" is not being created in generation %d",
						handle, generation)));
	if (shape->snapshot_generation == generation)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("shape \"%s\" already has its snapshot of generation %d",
						handle, generation)));

	snapshot = OidOutputFunctionCall(F_PG_SNAPSHOT_OUT,
									 OidFunctionCall0(F_PG_CURRENT_SNAPSHOT));
	rows = copy_rows(shape);
	store_snapshot(shape, snapshot, rows);
	ecm_emit_message(psprintf("live " INT64_FORMAT " %d %s",
							  shape->id, generation, snapshot));

	PG_RETURN_INT64(rows);
}
