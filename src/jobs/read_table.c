/*-------------------------------------------------------------------------
 *
 * read_table.c
 *	  Reads rows of a table for shapes, by one query, into their logs.
 *
 * If several shapes look for constants in the same column with the same
 * operator, one query joins an array of these constants with the table, so
 * that the server reads the table once for all of them, or uses an index.
 * Each of the other shapes has a query of its own.
 *
 * A query reads all of the table, or a range of its keys.  Who calls this
 * has one REPEATABLE READ transaction for a range, so that its rows, and the
 * pg_snapshot that consumers are given, belong to one snapshot.  Otherwise a
 * change could be neither among the rows nor kept by the consumer, or both.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/plannodes.h"
#include "optimizer/plancat.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/clock.h"
#include "base/spi.h"
#include "base/text.h"
#include "jobs/key_order.h"
#include "jobs/read_table.h"
#include "shape/publication.h"
#include "shape/shape_catalog.h"
#include "shape/shape_chunk.h"
#include "shape/shape_entry.h"
#include "shape/shape_requirements.h"
#include "shape/shape_settings.h"

/* Rows fetched from the cursor at a time, and after which the clock is looked at. */
#define FETCH_ROWS		1000
#define CLOCK_ROWS		64

/* A whole table that comes to so much more than planned is given up. */
#define MISPLANNED		2
#define MIN_GIVEN_UP	(4 * ECM_PIECE_BYTES)

/* Parameters of a query: the constants, and the keys at both ends. */
#define MAX_PARAMS		(1 + 2 * INDEX_MAX_KEYS)

typedef struct RowQuery
{
	StringInfoData sql;
	int			nparams;
	Oid			types[MAX_PARAMS];
	Datum		params[MAX_PARAMS];
} RowQuery;

/* ------------------------------------------------------------ the shapes -- */

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

bool
ecm_read_find(int64 id, int generation, EcmReadShape *shape)
{
	AttrNumber *attnos;

	memset(shape, 0, sizeof(*shape));
	shape->def = ecm_shape_by_id(id);
	if (shape->def == NULL || shape->def->state != ECM_SHAPE_CREATING ||
		shape->def->generation != generation ||
		shape->def->snapshot_generation == generation ||
		drop_if_renamed(shape->def))
		return false;
	if (shape->def->filter != NULL)
	{
		attnos = palloc(sizeof(AttrNumber) * (shape->def->filter->ncolumns + 1));
		for (int i = 0; i < shape->def->filter->ncolumns; i++)
			attnos[i] = i + 1;
		shape->filter = ecm_filter_compile(shape->def->filter, attnos,
										   CurrentMemoryContext, NULL);
	}
	return true;
}

/* Is the where clause "column = constant" and nothing else? */
static bool
is_plain_equality(const EcmReadShape *shape)
{
	const EcmFilter *filter = shape->filter;
	Oid			left;
	Oid			right;

	if (filter == NULL || filter->equal_attno == 0 || filter->nequals != 1 ||
		filter->quals != NIL)
		return false;
	op_input_types(filter->equal_operator, &left, &right);
	return !IsPolymorphicType(left) && !IsPolymorphicType(right) &&
		OidIsValid(get_array_type(right));
}

bool
ecm_read_together(const EcmReadShape *a, const EcmReadShape *b)
{
	if (!is_plain_equality(a) || !is_plain_equality(b) ||
		a->def->relation != b->def->relation || a->def->owner != b->def->owner ||
		a->def->ncolumns != b->def->ncolumns ||
		XLogRecPtrIsInvalid(a->def->gap_lsn) != XLogRecPtrIsInvalid(b->def->gap_lsn) ||
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

void
ecm_read_check_table(const EcmShapeDef *def)
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
	ecm_check_leaves(def->relation, AccessShareLock);
}

/* -------------------------------------------------------------- queries -- */

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

/* The constants that the shapes look for, as an array. */
static Datum
constants(EcmReadShape **shapes, int n, Oid type)
{
	Datum	   *elems = palloc(sizeof(Datum) * n);
	int16		typlen;
	bool		typbyval;
	char		typalign;

	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	for (int i = 0; i < n; i++)
		elems[i] = shapes[i]->filter->equals[0];
	return PointerGetDatum(construct_array(elems, n, type, typlen, typbyval, typalign));
}

static void
append_columns(const EcmShapeDef *shape, StringInfo sql)
{
	for (int i = 0; i < shape->ncolumns; i++)
		if (!ecm_column_is_gone(shape, i))
			appendStringInfo(sql, ", t.%s", quote_identifier(shape->column_names[i]));
}

/*
 * The query for the rows of one shape.  Its first column is the index of the
 * shape that a row belongs to, as in join_query(): here, always the first.
 * The caller holds a lock on the table.
 */
static void
plain_query(const EcmShapeDef *shape, Relation rel, RowQuery *query)
{
	appendStringInfoString(&query->sql, "SELECT 1::pg_catalog.int8");
	append_columns(shape, &query->sql);
	append_table(&query->sql, rel);
	appendStringInfoString(&query->sql, " WHERE ");
	if (shape->filter != NULL)
		appendStringInfo(&query->sql, "(%s)", shape->filter->clause);
	else
		appendStringInfoString(&query->sql, "true");
}

/*
 * The query for the rows of several shapes that look for the constants $1, an
 * array, in a column.  Operators and types in where clauses are always
 * built-in ones, so their names need no other schema.
 */
static void
join_query(EcmReadShape **shapes, int n, Relation rel, RowQuery *query)
{
	const EcmShapeDef *shape = shapes[0]->def;
	const EcmFilter *filter = shapes[0]->filter;
	Oid			left;
	Oid			right;

	op_input_types(filter->equal_operator, &left, &right);
	query->types[0] = get_array_type(right);
	query->params[0] = constants(shapes, n, right);
	query->nparams = 1;
	appendStringInfoString(&query->sql, "SELECT s.member");
	append_columns(shape, &query->sql);
	append_table(&query->sql, rel);
	appendStringInfo(&query->sql,
					 " JOIN pg_catalog.unnest($1) WITH ORDINALITY AS s (value, member)"
					 " ON t.%s::%s OPERATOR(pg_catalog.%s) s.value WHERE true",
					 quote_identifier(shape->filter->names[filter->equal_attno - 1]),
					 builtin_type(left), get_opname(filter->equal_operator));
}

static void
add_condition(RowQuery *query, const EcmKeyOrder *order, EcmKeyCondition condition, char **key)
{
	if (key == NULL)
		return;
	appendStringInfoString(&query->sql, " AND ");
	ecm_key_order_condition(order, condition, query->nparams + 1, &query->sql);
	ecm_key_order_params(order, key, &query->types[query->nparams],
						 &query->params[query->nparams]);
	query->nparams += order->n;
}

static void
get_key_order(const EcmShapeDef *shape, Relation rel, EcmKeyOrder *order)
{
	if (!ecm_key_order(shape, rel, order))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no index has the rows of table %s in the order of the key any more",
						shape->relation_name)));
}

static Portal
open_query(RowQuery *query)
{
	return SPI_cursor_open_with_args(NULL, query->sql.data, query->nparams, query->types,
									 query->params, NULL, true, CURSOR_OPT_NO_SCROLL);
}

/* ------------------------------------------------------- as their owner -- */

/* A table that is read as the shapes' owner. */
typedef struct Source
{
	Relation	rel;
	Oid			userid;
	int			sec_context;
	int			nestlevel;
} Source;

static void
check_column(const EcmShapeDef *shape, const char *name, Oid type)
{
	AttrNumber	attnum = get_attnum(shape->relation, name);

	if (attnum == InvalidAttrNumber || get_atttype(shape->relation, attnum) != type)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("column \"%s\" of %s has changed", name, shape->relation_name)));
}

/*
 * ERROR if a command has changed the table since the shape was captured: that has ordered
 * another attempt.  A query would fail as if the shape could never be read.
 */
static void
check_columns(const EcmShapeDef *shape)
{
	for (int i = 0; i < shape->ncolumns; i++)
		if (!ecm_column_is_gone(shape, i))
			check_column(shape, shape->column_names[i], shape->column_types[i]);
	for (int i = 0; shape->filter != NULL && i < shape->filter->ncolumns; i++)
		check_column(shape, shape->filter->names[i], shape->filter->types[i]);
}

/*
 * Opens the table, and connects to SPI.  User, security context and settings are
 * restored at the end; after an ERROR, the transaction's abort restores them.
 */
static void
open_source(const EcmShapeDef *shape, Source *source)
{
	source->rel = try_table_open(shape->relation, AccessShareLock);
	if (source->rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s of shape \"%s\" does not exist any more",
						shape->relation_name, shape->handle)));
	check_columns(shape);

	/* with row_security off, a policy that applies is an error, not a filter */
	source->nestlevel = NewGUCNestLevel();
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_USERSET,
					PGC_S_SESSION);
	SetConfigOption("row_security", "off", PGC_USERSET, PGC_S_SESSION);

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	GetUserIdAndSecContext(&source->userid, &source->sec_context);
	SetUserIdAndSecContext(shape->owner,
						   source->sec_context | SECURITY_RESTRICTED_OPERATION |
						   SECURITY_LOCAL_USERID_CHANGE);
}

static void
close_source(Source *source)
{
	SetUserIdAndSecContext(source->userid, source->sec_context);
	SPI_finish();
	AtEOXact_GUC(false, source->nestlevel);
	table_close(source->rel, NoLock);
}

/*
 * A range of keys is to be looked for in an index.  The planner would rather read the
 * whole table, for each piece, if it takes the index for badly correlated.
 */
static void
insist_on_index(bool without_sort)
{
	SetConfigOption("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION);
	if (without_sort)
		SetConfigOption("enable_sort", "off", PGC_USERSET, PGC_S_SESSION);
	/* the cost of what is turned off would have each query compiled */
	SetConfigOption("jit", "off", PGC_USERSET, PGC_S_SESSION);
}

/* The output functions that pgoutput would call, by the query's columns from the second on. */
static FmgrInfo *
output_functions(TupleDesc tupdesc)
{
	int			n = tupdesc->natts - 1;
	FmgrInfo   *functions = palloc(Max(n, 1) * sizeof(FmgrInfo));

	for (int i = 0; i < n; i++)
	{
		Oid			type = TupleDescAttr(tupdesc, i + 1)->atttypid;
		Oid			function;
		bool		is_varlena;

		getTypeOutputInfo(type, &function, &is_varlena);
		fmgr_info(function, &functions[i]);
	}
	return functions;
}

/* The values of a row of plain_query() or join_query(), in the current context. */
static void
row_values(const EcmShapeDef *shape, HeapTuple row, TupleDesc desc, FmgrInfo *functions,
		   EcmValue *values)
{
	int			n = 0;

	for (int i = 0; i < shape->ncolumns; i++)
	{
		bool		is_null;
		Datum		datum;

		values[i] = (EcmValue)
		{
			.kind = ECM_VALUE_ABSENT
		};
		if (ecm_column_is_gone(shape, i))
			continue;
		datum = SPI_getbinval(row, desc, n + 2, &is_null);
		values[i].kind = is_null ? ECM_VALUE_NULL : ECM_VALUE_TEXT;
		values[i].text = is_null ? NULL : OutputFunctionCall(&functions[n], datum);
		values[i].len = is_null ? 0 : strlen(values[i].text);
		n++;
	}
	ecm_entry_check_readable(ECM_OP_INSERT, shape, values, NULL);
}

/* ------------------------------------------------------------ many rows -- */

typedef struct Copy
{
	EcmReadShape **shapes;
	int			n;
	const EcmReadRange *range;
	EcmReadResult *result;
	int64		max_bytes;		/* what is enough; 0: everything */
	EcmTime		began;
	EcmLogWriter *writer;
	FmgrInfo   *functions;
	EcmValue   *values;
	MemoryContext context;
	MemoryContext row_context;
} Copy;

static bool
is_enough(const Copy *copy)
{
	const EcmReadRange *range = copy->range;

	return (copy->max_bytes > 0 && copy->result->bytes >= copy->max_bytes) ||
		(range->max_ms > 0 && copy->result->rows % CLOCK_ROWS == 0 &&
		 ecm_has_passed(copy->began, ecm_now(), range->max_ms));
}

static void
keep_key(Copy *copy)
{
	const EcmShapeDef *def = copy->shapes[0]->def;
	MemoryContext old = MemoryContextSwitchTo(copy->context);

	copy->result->last = palloc(sizeof(char *) * def->nkeys);
	for (int i = 0; i < def->nkeys; i++)
		copy->result->last[i] = pstrdup(copy->values[def->key_positions[i]].text);
	MemoryContextSwitchTo(old);
}

/* Is this row another one than that whose key was kept? */
static bool
is_other_row(const Copy *copy)
{
	const EcmShapeDef *def = copy->shapes[0]->def;

	for (int i = 0; i < def->nkeys; i++)
		if (strcmp(copy->result->last[i], copy->values[def->key_positions[i]].text) != 0)
			return true;
	return false;
}

/*
 * Turns the rows of one fetch into entries.  A row may belong to several shapes, whose
 * constants are equal; a piece must not end between its entries.
 */
static void
pack_rows(Copy *copy, SPITupleTable *table, uint64 nrows)
{
	EcmReadResult *result = copy->result;
	int			ncolumns = copy->shapes[0]->def->ncolumns;

	for (uint64 row = 0; row < nrows; row++)
	{
		bool		is_null;
		int64		member = DatumGetInt64(SPI_getbinval(table->vals[row],
														 table->tupdesc, 1, &is_null));
		MemoryContext old_context = MemoryContextSwitchTo(copy->row_context);

		row_values(copy->shapes[member - 1]->def, table->vals[row], table->tupdesc,
				   copy->functions, copy->values);
		MemoryContextSwitchTo(old_context);
		if (result->last != NULL && is_other_row(copy))
		{
			result->end = ECM_READ_ENOUGH;
			return;
		}
		if (copy->range->put != NULL)
			copy->range->put(copy->range->put_arg, (int) member - 1, copy->values);
		else
			ecm_row_packer_put(copy->shapes[member - 1]->packer, copy->values, ncolumns);
		result->rows++;
		result->bytes += ecm_chunk_values_size(copy->values, ncolumns);
		if (result->last == NULL && is_enough(copy))
		{
			if (!copy->range->ordered)
			{
				result->end = ECM_READ_ENOUGH;
				return;
			}
			keep_key(copy);
		}
		MemoryContextReset(copy->row_context);
	}
}

/* Opens the query, unless it is too expensive: NULL. */
static Portal
open_copy(Copy *copy, Relation rel)
{
	const EcmReadRange *range = copy->range;
	RowQuery	query = {.nparams = 0};
	EcmKeyOrder order;
	Portal		portal;
	Plan	   *plan;

	initStringInfo(&query.sql);
	if (copy->n == 1)
		plain_query(copy->shapes[0]->def, rel, &query);
	else
		join_query(copy->shapes, copy->n, rel, &query);
	if (range->after != NULL || range->upto != NULL || range->ordered)
	{
		get_key_order(copy->shapes[0]->def, rel, &order);
		insist_on_index(false);
		add_condition(&query, &order, ECM_KEY_GREATER, range->after);
		add_condition(&query, &order, ECM_KEY_LESS_EQUAL, range->upto);
	}
	if (range->ordered)
	{
		appendStringInfoString(&query.sql, " ORDER BY ");
		ecm_key_order_list(&order, &query.sql);
	}
	portal = open_query(&query);
	plan = linitial_node(PlannedStmt, portal->stmts)->planTree;
	copy->result->planned_rows = (int64) plan->plan_rows;
	copy->result->planned_bytes = (int64) (plan->plan_rows * plan->plan_width);
	copy->max_bytes = range->max_bytes;
	if (range->max_cost <= 0)
		return portal;
	copy->max_bytes = Min(range->max_bytes,
						  Max(MISPLANNED * copy->result->planned_bytes, MIN_GIVEN_UP));
	if (plan->total_cost <= range->max_cost && copy->result->planned_bytes <= range->max_bytes)
		return portal;
	SPI_cursor_close(portal);
	return NULL;
}

void
ecm_read_rows(EcmReadShape **shapes, int n, const EcmReadRange *range,
			  EcmReadResult *result)
{
	Copy		copy = {.shapes = shapes, .n = n, .range = range, .result = result,
	.began = ecm_now(), .context = CurrentMemoryContext};
	Source		source;
	Portal		portal;
	uint64		nrows;

	memset(result, 0, sizeof(*result));
	copy.values = palloc(shapes[0]->def->ncolumns * sizeof(EcmValue));
	open_source(shapes[0]->def, &source);
	portal = open_copy(&copy, source.rel);
	if (portal == NULL)
	{
		result->end = ECM_READ_DEAR;
		close_source(&source);
		return;
	}
	copy.functions = output_functions(portal->tupDesc);
	copy.row_context = AllocSetContextCreate(CurrentMemoryContext,
											 "electric_cm snapshot row",
											 ALLOCSET_DEFAULT_SIZES);

	/* the writer checks no privileges, so it can run as that user, too */
	if (range->put == NULL)
	{
		copy.writer = ecm_log_writer_begin();
		for (int i = 0; i < n; i++)
			shapes[i]->packer = ecm_row_packer_resume(copy.writer, shapes[i]->def->id);
	}
	do
	{
		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		nrows = SPI_processed;
		pack_rows(&copy, SPI_tuptable, nrows);
		SPI_freetuptable(SPI_tuptable);
	} while (nrows > 0 && result->end == ECM_READ_ALL);
	for (int i = 0; i < n && range->put == NULL; i++)
		shapes[i]->rows = ecm_row_packer_end(shapes[i]->packer);
	SPI_cursor_close(portal);
	if (range->put == NULL)
		ecm_log_writer_end(copy.writer);
	close_source(&source);
}

/* ------------------------------------------------------ keys, and one row -- */

char **
ecm_read_border(const EcmShapeDef *shape, char **after, int64 rows)
{
	MemoryContext context = CurrentMemoryContext;
	RowQuery	query = {.nparams = 0};
	EcmKeyOrder order;
	Source		source;
	Portal		portal;
	char	  **key = NULL;

	initStringInfo(&query.sql);
	open_source(shape, &source);
	get_key_order(shape, source.rel, &order);
	insist_on_index(true);
	appendStringInfoString(&query.sql, "SELECT ");
	ecm_key_order_list(&order, &query.sql);
	append_table(&query.sql, source.rel);
	appendStringInfoString(&query.sql, " WHERE true");
	add_condition(&query, &order, ECM_KEY_GREATER, after);
	appendStringInfoString(&query.sql, " ORDER BY ");
	ecm_key_order_list(&order, &query.sql);
	appendStringInfo(&query.sql, " OFFSET " INT64_FORMAT " LIMIT 1", rows - 1);
	portal = open_query(&query);
	SPI_cursor_fetch(portal, true, 1);
	if (SPI_processed > 0)
	{
		key = MemoryContextAlloc(context, sizeof(char *) * order.n);
		for (int i = 0; i < order.n; i++)
			key[i] = MemoryContextStrdup(context,
										 SPI_getvalue(SPI_tuptable->vals[0],
													  SPI_tuptable->tupdesc, i + 1));
	}
	SPI_cursor_close(portal);
	close_source(&source);
	return key;
}

bytea *
ecm_read_row(EcmReadShape *shape, char **key, XLogRecPtr lsn, int64 op)
{
	const EcmShapeDef *def = shape->def;
	MemoryContext context = CurrentMemoryContext;
	RowQuery	query = {.nparams = 0};
	EcmKeyOrder order;
	EcmValue   *values = palloc(def->ncolumns * sizeof(EcmValue));
	Source		source;
	Portal		portal;
	bytea	   *data = NULL;

	initStringInfo(&query.sql);
	open_source(def, &source);
	get_key_order(def, source.rel, &order);
	insist_on_index(false);
	plain_query(def, source.rel, &query);
	add_condition(&query, &order, ECM_KEY_EQUAL, key);
	portal = open_query(&query);
	SPI_cursor_fetch(portal, true, 1);
	if (SPI_processed > 0)
	{
		Size		size;
		char	   *to;

		row_values(def, SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
				   output_functions(SPI_tuptable->tupdesc), values);
		size = ecm_chunk_values_size(values, def->ncolumns);
		if (size > MaxAllocSize - VARHDRSZ - ECM_CHUNK_TXN_SIZE - 1)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("row of %zu bytes is too large for a shape", size)));
		data = MemoryContextAlloc(context, VARHDRSZ + ECM_CHUNK_TXN_SIZE + 1 + size);
		to = ecm_chunk_put_txn(VARDATA(data), lsn, 0, (uint64) op);
		to = ecm_chunk_put_op(to, ECM_OP_INSERT);
		to = ecm_chunk_put_values(to, values, def->ncolumns);
		SET_VARSIZE(data, to - (char *) data);
	}
	SPI_cursor_close(portal);
	close_source(&source);
	return data;
}

bool
ecm_read_is_ordered(const EcmShapeDef *shape)
{
	Relation	rel = try_table_open(shape->relation, AccessShareLock);
	EcmKeyOrder order;
	bool		ordered;

	if (rel == NULL)
		return false;
	ordered = ecm_key_order(shape, rel, &order);
	table_close(rel, NoLock);
	return ordered;
}

int64
ecm_read_estimate(const EcmShapeDef *shape)
{
	ListCell   *lc;
	double		rows = 0;

	foreach(lc, find_all_inheritors(shape->relation, AccessShareLock, NULL))
	{
		Relation	rel = try_table_open(lfirst_oid(lc), NoLock);
		BlockNumber pages;
		double		tuples;
		double		allvisfrac;

		if (rel == NULL)
			continue;
		if (RELKIND_HAS_TABLE_AM(rel->rd_rel->relkind))
		{
			estimate_rel_size(rel, NULL, &pages, &tuples, &allvisfrac);
			rows += tuples;
		}
		table_close(rel, NoLock);
		/* of a plain table, inheritance children are not read */
		if (get_rel_relkind(shape->relation) != RELKIND_PARTITIONED_TABLE)
			break;
	}
	return (int64) rows;
}
