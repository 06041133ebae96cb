/*-------------------------------------------------------------------------
 *
 * typed_rows.c
 *	  A log's values as rows of a type; the columns that a shape has.
 *
 * Logs have each value in its text form, a JSON string or null.  So jsonb_populate_record()
 * is right for them only as long as no column is of type json or jsonb: of these it makes a
 * JSON string.  Here every string is read by its type's input function.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

#include "base/compat.h"
#include "base/pinned_settings.h"
#include "base/spi.h"
#include "shape/shape.h"
#include "shape/shape_rights.h"

PG_FUNCTION_INFO_V1(electric_cm_row);
PG_FUNCTION_INFO_V1(electric_cm_merge);
PG_FUNCTION_INFO_V1(electric_cm_replay);
PG_FUNCTION_INFO_V1(electric_cm_shape_columns);

/* The shape with the handle that is an argument; the user may read it. */
static const EcmShapeDef *
shape_arg(FunctionCallInfo fcinfo, int argno)
{
	if (PG_ARGISNULL(argno))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("handle must not be null")));
	return ecm_readable_shape(text_to_cstring(PG_GETARG_TEXT_PP(argno)));
}

/* ----------------------------------------------------------------
 * electric_cm_row()
 * ----------------------------------------------------------------
 */

/* What a call site remembers of the row type. */
typedef struct RowInput
{
	Oid			base_type;		/* as declared; may be a domain */
	TupleDesc	desc;
	FmgrInfo   *input;			/* of each column's type ... */
	Oid		   *ioparam;
	bool		settings_matter;	/* to some of these */
} RowInput;

/* Do values of the type that were written under other settings read the same? */
static bool
is_read_the_same(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case BYTEAOID:
		case NAMEOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case FLOAT4OID:
		case FLOAT8OID:
		case NUMERICOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case UUIDOID:
		case JSONOID:
		case JSONBOID:
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return true;
		default:
			return false;
	}
}

static RowInput *
make_row_input(FmgrInfo *flinfo)
{
	RowInput   *row;
	Oid			type = get_fn_expr_argtype(flinfo, 0);
	TupleDesc	desc;
	MemoryContext old;

	if (!OidIsValid(type) || get_typtype(getBaseType(type)) != TYPTYPE_COMPOSITE)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("the first argument must be of a row type"),
				 errhint("Pass a null of the table's type, as in NULL::item.")));
	old = MemoryContextSwitchTo(flinfo->fn_mcxt);
	row = palloc0(sizeof(RowInput));
	row->base_type = type;
	desc = lookup_rowtype_tupdesc_domain(type, -1, false);
	row->desc = CreateTupleDescCopy(desc);
	ReleaseTupleDesc(desc);
	row->input = palloc0(row->desc->natts * sizeof(FmgrInfo));
	row->ioparam = palloc0(row->desc->natts * sizeof(Oid));
	for (int i = 0; i < row->desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(row->desc, i);
		Oid			input;

		if (att->attisdropped)
			continue;
		row->settings_matter |= !is_read_the_same(att->atttypid);
		getTypeInputInfo(att->atttypid, &input, &row->ioparam[i]);
		fmgr_info_cxt(input, &row->input[i], flinfo->fn_mcxt);
	}
	MemoryContextSwitchTo(old);
	return row;
}

/* A member's text; NULL: it is null.  Whatever is no string is taken as it is written. */
static char *
member_text(JsonbValue *member)
{
	switch (member->type)
	{
		case jbvNull:
			return NULL;
		case jbvString:
			return pnstrdup(member->val.string.val, member->val.string.len);
		default:
			{
				Jsonb	   *json = JsonbValueToJsonb(member);

				return JsonbToCString(NULL, &json->root, VARSIZE(json));
			}
	}
}

/* A row with the values that an object has, and otherwise those of base (NULL: nulls). */
static Datum
make_row(RowInput *row, HeapTupleHeader base, Jsonb *json)
{
	TupleDesc	desc = row->desc;
	Datum	   *values = palloc0(Max(desc->natts, 1) * sizeof(Datum));
	bool	   *nulls = palloc(Max(desc->natts, 1) * sizeof(bool));
	Datum		result;
	int			nestlevel = 0;

	if (!JB_ROOT_IS_OBJECT(json))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("value must be an object"),
				 errhint("Pass the value of an entry.")));
	memset(nulls, true, desc->natts * sizeof(bool));
	if (base != NULL)
	{
		HeapTupleData tuple = {.t_len = HeapTupleHeaderGetDatumLength(base), .t_data = base};

		heap_deform_tuple(&tuple, desc, values, nulls);
	}
	if (row->settings_matter)
	{
		nestlevel = NewGUCNestLevel();
		ecm_pin_how_values_are_read();
	}
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		JsonbValue	member_buffer;
		JsonbValue *member;
		char	   *text;

		if (att->attisdropped)
			continue;
		member = getKeyJsonValueFromContainer(&json->root, NameStr(att->attname),
											  (int) strlen(NameStr(att->attname)), &member_buffer);
		if (member == NULL)
			continue;
		text = member_text(member);
		/* also of a null: a domain may forbid it */
		values[i] = InputFunctionCall(&row->input[i], text, row->ioparam[i], att->atttypmod);
		nulls[i] = text == NULL;
	}
	if (row->settings_matter)
		AtEOXact_GUC(true, nestlevel);
	result = HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
	if (get_typtype(row->base_type) == TYPTYPE_DOMAIN)
		domain_check(result, false, row->base_type, NULL, NULL);
	return result;
}

/*
 * electric_cm_row(base anyelement, value jsonb) RETURNS anyelement
 *
 * A row of base's type, with the values that 'value' has for its columns, in the text form
 * that logs have; what 'value' lacks is as in base.  NULL value: base.
 *
 * Errors: 42804 base is of no row type; 22023 value is no object; those of the types'
 * input functions.
 */
Datum
electric_cm_row(PG_FUNCTION_ARGS)
{
	if (fcinfo->flinfo->fn_extra == NULL)
		fcinfo->flinfo->fn_extra = make_row_input(fcinfo->flinfo);
	if (PG_ARGISNULL(1))
	{
		if (PG_ARGISNULL(0))
			PG_RETURN_NULL();
		PG_RETURN_DATUM(PG_GETARG_DATUM(0));
	}
	PG_RETURN_DATUM(make_row(fcinfo->flinfo->fn_extra,
							 PG_ARGISNULL(0) ? NULL : PG_GETARG_HEAPTUPLEHEADER(0),
							 PG_GETARG_JSONB_P(1)));
}

/* ----------------------------------------------------------------
 * electric_cm_replay()
 * ----------------------------------------------------------------
 */

/*
 * _electric_cm.merge(state jsonb, operation text, value jsonb) RETURNS jsonb
 *
 * The row that an entry leads to, from the one before; NULL: there is none.
 */
Datum
electric_cm_merge(PG_FUNCTION_ARGS)
{
	text	   *operation;

	if (PG_ARGISNULL(1) || PG_ARGISNULL(2))
		PG_RETURN_NULL();
	operation = PG_GETARG_TEXT_PP(1);
	switch (VARSIZE_ANY_EXHDR(operation) > 0 ? *VARDATA_ANY(operation) : '\0')
	{
		case 'i':				/* insert */
			PG_RETURN_DATUM(PG_GETARG_DATUM(2));
		case 'u':				/* update */
			if (PG_ARGISNULL(0))
				PG_RETURN_DATUM(PG_GETARG_DATUM(2));
			PG_RETURN_DATUM(DirectFunctionCall2(jsonb_concat, PG_GETARG_DATUM(0), PG_GETARG_DATUM(2)));
		default:				/* delete */
			PG_RETURN_NULL();
	}
}

/* Rows that are fetched at a time. */
#define FETCH_ROWS	100

/*
 * The rows that a log leads to, each a jsonb.  They are read as the extension's owner, since
 * our functions in between are not for everybody.  All of them, before the first is used:
 * no code of users may run while there is a query of that user, since it could put another in
 * its place.
 */
static Tuplestorestate *
replay(const char *handle, TupleDesc desc)
{
	Tuplestorestate *rows = tuplestore_begin_heap(false, false, work_mem);
	MemoryContext context = CurrentMemoryContext;
	Oid			type = TEXTOID;
	Datum		value = CStringGetTextDatum(handle);
	Portal		portal;
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	portal = SPI_cursor_open_with_args(NULL, "SELECT r FROM _electric_cm.replayed($1) r WHERE r IS NOT NULL",
									   1, &type, &value, NULL, true, 0);
	do
	{
		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool		isnull;
			Datum		row = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
			MemoryContext old = MemoryContextSwitchTo(context);

			tuplestore_putvalues(rows, desc, &row, &isnull);
			MemoryContextSwitchTo(old);
		}
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);
	SPI_cursor_close(portal);
	ecm_spi_end(&spi);
	return rows;
}

/*
 * electric_cm_replay(base anyelement, handle text) RETURNS SETOF anyelement
 *
 * The rows that a shape's log leads to, in no particular order, as rows of base's type; what
 * they lack is as in base.
 *
 * Errors: as electric_cm_row() and electric_cm_shape_log().
 */
Datum
electric_cm_replay(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	const EcmShapeDef *shape = shape_arg(fcinfo, 1);
	HeapTupleHeader base;
	MemoryContext one_row = AllocSetContextCreate(CurrentMemoryContext, "electric_cm row",
												  ALLOCSET_DEFAULT_SIZES);
	TupleDesc	desc = CreateTemplateTupleDesc(1);
	TupleTableSlot *slot;
	Tuplestorestate *rows;

	if (fcinfo->flinfo->fn_extra == NULL)
		fcinfo->flinfo->fn_extra = make_row_input(fcinfo->flinfo);
	base = PG_ARGISNULL(0) ? NULL : PG_GETARG_HEAPTUPLEHEADER(0);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	TupleDescInitEntry(desc, 1, "value", JSONBOID, -1, 0);
	ecm_tupledesc_finalize(desc);
	rows = replay(shape->handle, desc);
	slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	while (tuplestore_gettupleslot(rows, true, false, slot))
	{
		MemoryContext old = MemoryContextSwitchTo(one_row);
		bool		isnull;
		Datum		value = slot_getattr(slot, 1, &isnull);
		HeapTupleHeader header = DatumGetHeapTupleHeader(make_row(fcinfo->flinfo->fn_extra, base,
																  DatumGetJsonbP(value)));
		HeapTupleData tuple = {.t_len = HeapTupleHeaderGetDatumLength(header), .t_data = header};

		CHECK_FOR_INTERRUPTS();
		tuplestore_puttuple(rsinfo->setResult, &tuple);
		MemoryContextSwitchTo(old);
		MemoryContextReset(one_row);
	}
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(rows);
	MemoryContextDelete(one_row);
	return (Datum) 0;
}

/* ----------------------------------------------------------------
 * electric_cm_shape_columns()
 * ----------------------------------------------------------------
 */

#define COLUMNS_NATTS	6

/*
 * electric_cm_shape_columns(handle text)
 *	RETURNS TABLE (ordinal int, name text, type regtype, typmod int, key_position int,
 *				   not_null bool)
 *
 * The columns that a shape's rows have now, in the order of the table; key_position: the
 * place in the key, from 1; NULL: the column is not part of that.
 *
 * Errors: 22004 the handle is NULL; 42704 there is no such shape; 42501 the user may not
 * read it.
 */
Datum
electric_cm_shape_columns(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	const EcmShapeDef *shape = shape_arg(fcinfo, 0);
	Relation	rel;
	TupleDesc	desc;

	InitMaterializedSRF(fcinfo, 0);
	rel = relation_open(shape->relation, AccessShareLock);
	desc = RelationGetDescr(rel);
	for (int i = 0, ordinal = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		Datum		values[COLUMNS_NATTS] = {0};
		bool		nulls[COLUMNS_NATTS] = {false};
		int			column = 0;

		while (column < shape->ncolumns &&
			   (ecm_column_is_gone(shape, column) || att->attisdropped ||
				strcmp(shape->column_names[column], NameStr(att->attname)) != 0))
			column++;
		if (column == shape->ncolumns)
			continue;
		values[0] = Int32GetDatum(++ordinal);
		values[1] = CStringGetTextDatum(NameStr(att->attname));
		values[2] = ObjectIdGetDatum(att->atttypid);
		values[3] = Int32GetDatum(att->atttypmod);
		nulls[4] = true;
		for (int key = 0; key < shape->nkeys; key++)
			if (shape->key_positions[key] == column)
			{
				values[4] = Int32GetDatum(key + 1);
				nulls[4] = false;
			}
		values[5] = BoolGetDatum(ecm_has_no_nulls(desc, att->attnum));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	relation_close(rel, AccessShareLock);
	return (Datum) 0;
}
