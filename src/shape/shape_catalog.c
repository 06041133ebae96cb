/*-------------------------------------------------------------------------
 *
 * shape_catalog.c
 *	  Shapes as SQL sees them: looked up, deleted.
 *
 * A user who drops a shape locks its row until the end of his transaction,
 * which may last for days.  Nobody must wait for that: neither the stack, nor
 * a session that has truncated the table and is about to commit, with all its
 * locks.  If a shape has to end while its row is locked, its row is not
 * deleted.  A message in the stream says that the shape is lost.  The shape's
 * consumer marks it as gone, and from then on it is gone for everybody; the
 * row is deleted as soon as it can be.  Until the consumer comes to the
 * message, readers still see the shape, but its log has none of the changes
 * after it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/spi.h"
#include "base/stream_message.h"
#include "base/stream_message_io.h"
#include "base/table_writer.h"
#include "shape/arrays.h"
#include "shape/shape.h"
#include "shape/shape_catalog.h"
#include "shape/shape_gap.h"
#include "shape/shape_filter.h"

/* Shapes that are fetched from a cursor at a time. */
#define FETCH_SHAPES		500

static Datum
spi_column(int row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}

/* -------------------------------------------------------------- lookups -- */

/* A shape with its state; the columns are those of ShapeColumn. */
#define COLUMNS_SQL \
	"SELECT s.id, s.handle, s.owner, s.relation, s.relation_name," \
	" s.column_names, s.column_types, s.key_positions," \
	" s.where_clause, s.where_names, s.where_types, s.where_collations," \
	" s.generation, s.snapshot_generation," \
	" t.state, t.last_error, t.gap_lsn, t.live_lsn," \
	" coalesce(w.worker, 0), w.skip_until" \
	" FROM _electric_cm.shape s"
#define SHAPE_COLUMNS_SQL \
	COLUMNS_SQL \
	" LEFT JOIN _electric_cm.shape_worker w ON w.shape = s.id" \
	" LEFT JOIN _electric_cm.shape_state t ON t.shape = s.id "
/* The same for an array of shapes, which are looked up one by one (OFFSET 0), not all read */
#define LISTED_SHAPE_COLUMNS_SQL \
	COLUMNS_SQL \
	" LEFT JOIN LATERAL (SELECT * FROM _electric_cm.shape_worker w WHERE w.shape = s.id OFFSET 0) w ON true" \
	" LEFT JOIN LATERAL (SELECT * FROM _electric_cm.shape_state t WHERE t.shape = s.id OFFSET 0) t ON true "
#define NOT_GONE_SQL	" AND t.state IS DISTINCT FROM 'gone' "
/*
 * For look-ups by handle: a lost shape is gone as soon as the transaction that
 * has noted it is committed.
 */
#define NOT_LOST_SQL \
	NOT_GONE_SQL "AND NOT EXISTS" \
	" (SELECT FROM _electric_cm.lost_shape l WHERE l.shape = s.id) "

typedef enum ShapeColumn
{
	SHAPE_ID = 1,
	SHAPE_HANDLE,
	SHAPE_OWNER,
	SHAPE_RELATION,
	SHAPE_RELATION_NAME,
	SHAPE_COLUMN_NAMES,
	SHAPE_COLUMN_TYPES,
	SHAPE_KEY_POSITIONS,
	SHAPE_WHERE_CLAUSE,
	SHAPE_WHERE_NAMES,
	SHAPE_WHERE_TYPES,
	SHAPE_WHERE_COLLATIONS,
	SHAPE_GENERATION,
	SHAPE_SNAPSHOT_GENERATION,
	SHAPE_STATE,
	SHAPE_LAST_ERROR,
	SHAPE_GAP_LSN,
	SHAPE_LIVE_LSN,
	SHAPE_WORKER,
	SHAPE_SKIP_UNTIL
} ShapeColumn;

static EcmShapeDef *
shape_from_row(int row, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	EcmShapeDef *def = palloc0(sizeof(EcmShapeDef));
	int			n;
	Datum		datum;
	bool		isnull;

	def->id = DatumGetInt64(spi_column(row, SHAPE_ID, &isnull));
	def->handle = TextDatumGetCString(spi_column(row, SHAPE_HANDLE, &isnull));
	def->owner = DatumGetObjectId(spi_column(row, SHAPE_OWNER, &isnull));
	def->relation = DatumGetObjectId(spi_column(row, SHAPE_RELATION, &isnull));
	def->relation_name = TextDatumGetCString(spi_column(row, SHAPE_RELATION_NAME, &isnull));

	def->column_names = ecm_array_names(spi_column(row, SHAPE_COLUMN_NAMES, &isnull),
										&def->ncolumns);
	def->column_types = ecm_array_oids(spi_column(row, SHAPE_COLUMN_TYPES, &isnull), &n);
	def->key_positions = ecm_array_int2(spi_column(row, SHAPE_KEY_POSITIONS, &isnull),
										&def->nkeys);
	for (int i = 0; i < def->nkeys; i++)
		def->key_positions[i]--;

	def->worker = DatumGetInt32(spi_column(row, SHAPE_WORKER, &isnull));
	def->generation = DatumGetInt32(spi_column(row, SHAPE_GENERATION, &isnull));

	def->state = ECM_SHAPE_CREATING;
	datum = spi_column(row, SHAPE_STATE, &isnull);
	def->noted = !isnull;
	if (!isnull)
	{
		char	   *state = TextDatumGetCString(datum);

		if (strcmp(state, "live") == 0)
			def->state = ECM_SHAPE_LIVE;
		else if (strcmp(state, "errored") == 0)
			def->state = ECM_SHAPE_ERRORED;
	}
	datum = spi_column(row, SHAPE_SNAPSHOT_GENERATION, &isnull);
	def->snapshot_generation = isnull ? 0 : DatumGetInt32(datum);
	datum = spi_column(row, SHAPE_LAST_ERROR, &isnull);
	def->last_error = isnull ? NULL : TextDatumGetCString(datum);
	datum = spi_column(row, SHAPE_GAP_LSN, &isnull);
	def->gap_lsn = isnull ? InvalidXLogRecPtr : DatumGetLSN(datum);
	datum = spi_column(row, SHAPE_LIVE_LSN, &isnull);
	def->live_lsn = isnull ? InvalidXLogRecPtr : DatumGetLSN(datum);

	datum = spi_column(row, SHAPE_WHERE_CLAUSE, &isnull);
	if (!isnull)
	{
		def->filter = palloc0(sizeof(EcmFilterDef));
		def->filter->clause = TextDatumGetCString(datum);
		def->filter->names = ecm_array_names(spi_column(row, SHAPE_WHERE_NAMES, &isnull),
											 &def->filter->ncolumns);
		def->filter->types = ecm_array_oids(spi_column(row, SHAPE_WHERE_TYPES, &isnull), &n);
		def->filter->collations = ecm_array_oids(spi_column(row, SHAPE_WHERE_COLLATIONS, &isnull),
												 &n);
	}

	datum = spi_column(row, SHAPE_SKIP_UNTIL, &isnull);
	def->skip_until = isnull ? InvalidXLogRecPtr : DatumGetLSN(datum);

	MemoryContextSwitchTo(old);
	return def;
}

/* The statement is planned once: readers come here all the time. */
static EcmShapeDef *
lookup_shape(SPIPlanPtr *plan, const char *where, Oid type, Datum value)
{
	MemoryContext context = CurrentMemoryContext;
	EcmSpiState spi;
	EcmShapeDef *def = NULL;

	ecm_spi_begin(&spi);
	ecm_spi_run_kept(plan, where, SPI_OK_SELECT, 1, &type, &value, NULL);
	if (SPI_processed > 0)
		def = shape_from_row(0, context);
	ecm_spi_end(&spi);
	return def;
}

EcmShapeDef *
ecm_shape_by_handle(const char *handle)
{
	static SPIPlanPtr plan;

	return lookup_shape(&plan, SHAPE_COLUMNS_SQL "WHERE s.handle = $1" NOT_LOST_SQL,
						TEXTOID, CStringGetTextDatum(handle));
}

EcmShapeDef *
ecm_shape_as_of(const char *handle, Snapshot snapshot)
{
	static SPIPlanPtr plan;
	MemoryContext context = CurrentMemoryContext;
	Oid			type = TEXTOID;
	Datum		value = CStringGetTextDatum(handle);
	EcmShapeDef *def = NULL;
	EcmSpiState spi;

	PushActiveSnapshot(snapshot);
	ecm_spi_begin(&spi);
	if (plan == NULL)
	{
		plan = SPI_prepare(SHAPE_COLUMNS_SQL "WHERE s.handle = $1" NOT_LOST_SQL, 1, &type);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare the look at a shape");
	}
	/* read-only: with the active snapshot */
	if (SPI_execute_plan(plan, &value, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not look at shape \"%s\"", handle);
	if (SPI_processed > 0)
		def = shape_from_row(0, context);
	ecm_spi_end(&spi);
	PopActiveSnapshot();
	return def;
}

int64 *
ecm_shape_ids(char **handles, int n)
{
	static SPIPlanPtr plan;
	Oid			type = TEXTARRAYOID;
	Datum		value = ecm_array_of_names(handles, n);
	int64	   *ids = palloc0(Max(n, 1) * sizeof(int64));
	EcmSpiState spi;

	PushActiveSnapshot(GetLatestSnapshot());
	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&plan, "SELECT h.ordinal, s.id FROM unnest($1) WITH ORDINALITY AS h (handle, ordinal)"
					 " JOIN _electric_cm.shape s USING (handle)",
					 SPI_OK_SELECT, 1, &type, &value, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		ids[DatumGetInt64(spi_column(i, 1, &isnull)) - 1] = DatumGetInt64(spi_column(i, 2, &isnull));
	}
	ecm_spi_end(&spi);
	PopActiveSnapshot();
	return ids;
}

EcmShapeDef *
ecm_shape_by_id(int64 id)
{
	static SPIPlanPtr plan;

	return lookup_shape(&plan, SHAPE_COLUMNS_SQL "WHERE s.id = $1" NOT_GONE_SQL,
						INT8OID, Int64GetDatum(id));
}

/*
 * Calls fn with the definition in each row of a query.  A definition is freed
 * when fn returns.
 */
static void
foreach_shape(const char *sql, int nargs, Oid *types, Datum *values,
			  EcmShapeCallback fn, void *arg)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "electric_cm shape definition",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	EcmSpiState spi;
	Portal		portal;

	ecm_spi_begin(&spi);
	portal = SPI_cursor_open_with_args(NULL, sql, nargs, types, values, NULL,
									   true, CURSOR_OPT_NO_SCROLL);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, FETCH_SHAPES);
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0, n = SPI_processed; i < n; i++)
		{
			EcmShapeDef *def = shape_from_row(i, context);

			old = MemoryContextSwitchTo(context);
			fn(def, arg);
			MemoryContextSwitchTo(old);
			MemoryContextReset(context);
		}
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	ecm_spi_end(&spi);
	MemoryContextDelete(context);
}

void
ecm_shapes_of_worker(int worker, Oid relation, EcmShapeCallback fn, void *arg)
{
	Oid			types[] = {INT4OID, OIDOID};
	Datum		values[] = {Int32GetDatum(worker), ObjectIdGetDatum(relation)};

	if (OidIsValid(relation))
		foreach_shape(SHAPE_COLUMNS_SQL
					  "WHERE w.worker = $1 AND s.relation = $2 AND (t.state = 'live' OR"
					  " (t.state = 'capturing' AND t.generation = s.generation))"
					  " ORDER BY s.id", 2, types, values, fn, arg);
	else
		foreach_shape(SHAPE_COLUMNS_SQL
					  "WHERE w.worker = $1 AND t.state = 'capturing' AND t.generation = s.generation"
					  " ORDER BY s.id", 1, types, values, fn, arg);
}

void
ecm_shape_ids_of_worker(int worker, EcmShapeIdCallback fn, void *arg)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(worker);
	EcmSpiState spi;
	Portal		portal;
	bool		isnull;

	ecm_spi_begin(&spi);
	portal = SPI_cursor_open_with_args(NULL,
									   "SELECT s.id, s.relation, t.state = 'live'"
									   " FROM _electric_cm.shape s"
									   " JOIN _electric_cm.shape_worker w ON w.shape = s.id"
									   " JOIN _electric_cm.shape_state t ON t.shape = s.id"
									   " WHERE w.worker = $1 AND t.state IN ('capturing', 'live')",
									   1, &type, &value, NULL, true, CURSOR_OPT_NO_SCROLL);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, FETCH_SHAPES);
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0; i < SPI_processed; i++)
			fn(DatumGetInt64(spi_column(i, 1, &isnull)),
			   DatumGetObjectId(spi_column(i, 2, &isnull)),
			   DatumGetBool(spi_column(i, 3, &isnull)), arg);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	ecm_spi_end(&spi);
}

void
ecm_shapes_by_ids(ArrayType *ids, EcmShapeCallback fn, void *arg)
{
	Oid			type = INT8ARRAYOID;
	Datum		value = PointerGetDatum(ids);

	foreach_shape(LISTED_SHAPE_COLUMNS_SQL "WHERE s.id = ANY ($1)" NOT_GONE_SQL "ORDER BY s.id",
				  1, &type, &value, fn, arg);
}

List *
ecm_shapes_of_owner(Oid owner)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(owner);
	List	   *result = NIL;
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_spi_run(SHAPE_COLUMNS_SQL "WHERE s.owner = $1" NOT_GONE_SQL "ORDER BY s.id",
				SPI_OK_SELECT, 1, &type, &value, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		EcmShapeDef *def = shape_from_row(i, context);
		MemoryContext old = MemoryContextSwitchTo(context);

		result = lappend(result, def);
		MemoryContextSwitchTo(old);
	}
	ecm_spi_end(&spi);
	return result;
}

/* ------------------------------------------------------------- dropping -- */

/*
 * Messages that tell the stack which shapes have been deleted.  One message
 * has as many shapes as fit.
 */
typedef struct ShapesMessage
{
	EcmStreamMessage message;
	EcmMessageShape shapes[ECM_MESSAGE_SHAPES];
	int			n;				/* number of shapes in all messages so far */
} ShapesMessage;

/* 'kind': drop, or lost. */
static ShapesMessage *
begin_shapes_message(EcmMessageKind kind, const char *reason)
{
	ShapesMessage *drop = palloc(sizeof(ShapesMessage));

	memset(&drop->message, 0, sizeof(drop->message));
	drop->message.kind = kind;
	drop->message.shapes = drop->shapes;
	drop->message.text = reason;
	drop->n = 0;
	return drop;
}

static void
flush_shapes_message(ShapesMessage *drop)
{
	if (drop->message.nshapes == 0)
		return;
	ecm_message_emit(&drop->message);
	drop->message.nshapes = 0;
}

static void
add_to_shapes_message(ShapesMessage *drop, int64 id, const char *handle)
{
	EcmStreamMessage *message = &drop->message;

	if (message->nshapes == 0)
		strlcpy(message->handle, handle, sizeof(message->handle));
	message->shapes[message->nshapes++] = (EcmMessageShape)
	{
		.id = id
	};
	drop->n++;
	if (message->nshapes == ECM_MESSAGE_SHAPES)
		flush_shapes_message(drop);
}

static int
end_shapes_message(ShapesMessage *drop)
{
	int			n = drop->n;

	flush_shapes_message(drop);
	pfree(drop);
	return n;
}

/*
 * About the rows (id, handle) that the last statement has returned.
 */
static int
announce(EcmMessageKind kind, const char *reason)
{
	uint64		n = SPI_processed;
	SPITupleTable *rows = SPI_tuptable;
	ShapesMessage *drop;

	if (n == 0)
		return 0;
	drop = begin_shapes_message(kind, reason);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;

		add_to_shapes_message(drop,
							  DatumGetInt64(SPI_getbinval(rows->vals[i], rows->tupdesc,
														  1, &isnull)),
							  SPI_getvalue(rows->vals[i], rows->tupdesc, 2));
	}
	return end_shapes_message(drop);
}

void
ecm_shape_delete(int64 shape, const char *reason)
{
	static SPIPlanPtr plan;
	Oid			type = INT8OID;
	Datum		id = Int64GetDatum(shape);

	ecm_spi_run_kept(&plan, "DELETE FROM _electric_cm.shape WHERE id = $1 RETURNING id, handle",
					 SPI_OK_DELETE_RETURNING, 1, &type, &id, NULL);
	(void) announce(ECM_MESSAGE_DROP, reason);
}

void
ecm_shapes_query(const char *sql, int nargs, Oid *types, Datum *values)
{
	ecm_spi_run_latest(sql, SPI_OK_SELECT, nargs, types, values, NULL);
}

void
ecm_shapes_update(const char *sql, int nargs, Oid *types, Datum *values)
{
	ecm_spi_run_latest(sql, SPI_OK_UPDATE, nargs, types, values, NULL);
}

List *
ecm_tables_with_shapes(List *relids)
{
	List	   *result = NIL;
	Relation	rel;
	Relation	index;
	Snapshot	snapshot;
	TupleTableSlot *slot;
	IndexScanDesc scan;
	ListCell   *lc;

	if (relids == NIL)
		return NIL;
	rel = table_open(ecm_own_relid("shape"), AccessShareLock);
	index = index_open(ecm_own_relid("shape_definition"), AccessShareLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	slot = table_slot_create(rel, NULL);
	scan = ecm_index_beginscan(rel, index, snapshot, 1);
	foreach(lc, relids)
	{
		ScanKeyData key;

		ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_OIDEQ,
					ObjectIdGetDatum(lfirst_oid(lc)));
		index_rescan(scan, &key, 1, NULL, 0);
		if (index_getnext_slot(scan, ForwardScanDirection, slot))
			result = list_append_unique_oid(result, lfirst_oid(lc));
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return result;
}

typedef enum DeleteResult
{
	ROW_DELETED,
	ROW_GONE,					/* somebody else has deleted it */
	ROW_LOCKED,					/* somebody else has locked or changed it, and
								 * his transaction is in progress */
} DeleteResult;

/*
 * Deletes a shape's row without waiting for it.  Not by SQL: in a REPEATABLE
 * READ transaction, that would fail if the row has been updated since the
 * transaction began, by the stack itself for instance.
 */
static DeleteResult
delete_row(Relation rel, Relation index, int64 id)
{
	TM_Result	result;

	do
	{
		Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
		TupleTableSlot *slot = table_slot_create(rel, NULL);
		IndexScanDesc scan = ecm_index_beginscan(rel, index, snapshot, 1);
		ScanKeyData key;
		TM_FailureData failure;

		CHECK_FOR_INTERRUPTS();
		ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
		index_rescan(scan, &key, 1, NULL, 0);
		result = TM_Deleted;
		if (index_getnext_slot(scan, ForwardScanDirection, slot))
		{
			ItemPointerData tid = slot->tts_tid;

			/*
			 * this takes the row even if this transaction has locked it
			 * before
			 */
			result = table_tuple_lock(rel, &tid, snapshot, slot,
									  GetCurrentCommandId(true),
									  LockTupleExclusive, LockWaitSkip, 0,
									  &failure);
			if (result == TM_Ok)
				result = ecm_table_tuple_delete(rel, &tid,
												GetCurrentCommandId(true),
												snapshot, &failure);
		}
		index_endscan(scan);
		ExecDropSingleTupleTableSlot(slot);
		UnregisterSnapshot(snapshot);
	} while (result == TM_Updated);
	return result == TM_Ok ? ROW_DELETED :
		result == TM_WouldBlock ? ROW_LOCKED : ROW_GONE;
}

/*
 * Notes in the catalog that this transaction has to end the shape, but can't
 * delete it.  Consumers obey the message "lost" only because of that note: see
 * ecm_fate_is_lost().  False: the shape has been noted before.
 */
static bool
note_lost(int64 id)
{
	static SPIPlanPtr plan;
	Oid			type = INT8OID;
	Datum		value = Int64GetDatum(id);

	ecm_spi_run_kept(&plan, "INSERT INTO _electric_cm.lost_shape (shape, xid)"
					 " SELECT $1, pg_current_xact_id() WHERE NOT EXISTS"
					 " (SELECT FROM _electric_cm.shape_state WHERE shape = $1 AND state = 'gone')"
					 " ON CONFLICT DO NOTHING",
					 SPI_OK_INSERT, 1, &type, &value, NULL);
	return SPI_processed > 0;
}

int
ecm_shapes_delete(const char *condition, int nargs, Oid *types, Datum *values,
				  const char *nulls, const char *reason)
{
	SPITupleTable *rows;
	uint64		nrows;
	Relation	rel;
	Relation	index;
	ShapesMessage *dropped;
	ShapesMessage *lost;

	/* rows are locked in the order of ids, lest two sessions deadlock */
	ecm_spi_run_latest(psprintf("SELECT id, handle FROM _electric_cm.shape s"
								" WHERE %s ORDER BY id", condition),
					   SPI_OK_SELECT, nargs, types, values, nulls);
	if (SPI_processed == 0)
		return 0;
	rows = SPI_tuptable;
	nrows = SPI_processed;
	dropped = begin_shapes_message(ECM_MESSAGE_DROP, reason);
	lost = begin_shapes_message(ECM_MESSAGE_LOST, reason);
	rel = table_open(ecm_own_relid("shape"), RowExclusiveLock);
	index = index_open(ecm_own_relid("shape_pkey"), RowExclusiveLock);
	for (uint64 i = 0; i < nrows; i++)
	{
		bool		isnull;
		int64		id = DatumGetInt64(SPI_getbinval(rows->vals[i], rows->tupdesc,
													 1, &isnull));
		char	   *handle = SPI_getvalue(rows->vals[i], rows->tupdesc, 2);
		DeleteResult result = delete_row(rel, index, id);

		if (result == ROW_DELETED)
			add_to_shapes_message(dropped, id, handle);
		else if (result == ROW_LOCKED && note_lost(id))
			add_to_shapes_message(lost, id, handle);
	}
	index_close(index, NoLock);
	table_close(rel, NoLock);
	CommandCounterIncrement();
	return end_shapes_message(dropped) + end_shapes_message(lost);
}

int
ecm_shapes_resync(const char *condition, int nargs, Oid *types, Datum *values,
				  const char *nulls, const char *reason)
{
	Datum	   *ids;
	int			n;

	ecm_spi_run_latest(psprintf("SELECT id, handle FROM _electric_cm.shape s"
								" WHERE (%s) AND NOT EXISTS (SELECT FROM _electric_cm.shape_gap g"
								"  WHERE g.shape = s.id AND g.order_xid = pg_current_xact_id())"
								" ORDER BY id", condition),
					   SPI_OK_SELECT, nargs, types, values, nulls);
	ids = palloc(sizeof(Datum) * (SPI_processed + 1));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		ids[i] = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
	}
	n = announce(ECM_MESSAGE_RESYNC, reason);
	if (n > 0)
		ecm_gaps_note(ecm_array_of_int8(ids, n),
					  U64FromFullTransactionId(GetTopFullTransactionId()), reason);
	return n;
}

int
ecm_shapes_invalidate(List *relations, const char *reason)
{
	EcmSpiState spi;
	Oid			type = OIDARRAYOID;
	Datum		value = ecm_array_of_oid_list(relations);
	int			n;

	ecm_spi_begin(&spi);
	n = ecm_shapes_delete("relation = ANY ($1)", 1, &type, &value, NULL, reason);
	ecm_spi_end(&spi);
	return n;
}

int
ecm_shapes_delete_unlocked(const char *from, int nargs, Oid *types, Datum *values,
						   const char *reason)
{
	ecm_spi_run(psprintf("DELETE FROM _electric_cm.shape WHERE id IN"
						 " (SELECT s.id %s FOR UPDATE OF s SKIP LOCKED)"
						 " RETURNING id, handle", from),
				SPI_OK_DELETE_RETURNING, nargs, types, values, NULL);
	return announce(ECM_MESSAGE_DROP, reason);
}

char *
ecm_tag_error(const char *sqlstate, const char *message)
{
	return psprintf("%s: %s", sqlstate, message ? message : "unknown error");
}

void
ecm_shape_emit_failure(const EcmShapeDef *shape, const char *error)
{
	EcmSpiState spi;
	Oid			type = INT8OID;
	Datum		id = Int64GetDatum(shape->id);
	EcmMessageShape named = {shape->id, shape->generation};
	EcmStreamMessage message = {.kind = ECM_MESSAGE_FAIL};

	ecm_spi_begin(&spi);
	ecm_spi_run("SELECT FROM _electric_cm.shape WHERE id = $1 FOR NO KEY UPDATE NOWAIT",
				SPI_OK_SELECT, 1, &type, &id, NULL);
	ecm_spi_run("UPDATE _electric_cm.shape SET order_xid = pg_current_xact_id() WHERE id = $1",
				SPI_OK_UPDATE, 1, &type, &id, NULL);
	ecm_spi_end(&spi);
	message.shapes = &named;
	message.nshapes = 1;
	message.text = error;
	ecm_message_emit(&message);
}
