/*-------------------------------------------------------------------------
 *
 * orders.c
 *	  Orders: what is to be done to shapes where the transaction that is
 *	  coming in commits.
 *
 * They arrive as messages in transactions of the stack's own, or the consumer
 * gives them to itself on what it meets in the stream.  They take effect where
 * the transaction commits, neither earlier nor later: so consumers that start
 * anew come to the same result.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "gather.h"
#include "load.h"
#include "match.h"
#include "orders.h"
#include "shape.h"
#include "worker.h"

static int	worker;
static MemoryContext orders_context;	/* reset after each transaction */
static List *orders = NIL;		/* of text, in orders_context */

void
ecm_orders_init(int worker_number)
{
	worker = worker_number;
	orders_context = AllocSetContextCreate(TopMemoryContext, "electric_cm orders",
										   ALLOCSET_SMALL_SIZES);
}

void
ecm_orders_add(const char *text)
{
	MemoryContext old = MemoryContextSwitchTo(orders_context);

	orders = lappend(orders, pstrdup(text));
	MemoryContextSwitchTo(old);
}

bool
ecm_orders_any(void)
{
	return orders != NIL;
}

static void
run_on_shape(const char *sql, int64 id, int generation)
{
	Oid			types[2] = {INT8OID, INT4OID};
	Datum		values[2] = {Int64GetDatum(id), Int32GetDatum(generation)};
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	if (SPI_execute_with_args(sql, 2, types, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not update the state of shape " INT64_FORMAT, id);
	ecm_spi_end(&spi);
}

/* Shapes and generations that an order names, or those that obey it. */
typedef struct ShapeList
{
	int			n;
	Datum	   *ids;
	Datum	   *generations;
} ShapeList;

static ShapeList
create_list(int max)
{
	ShapeList	list = {0};

	list.ids = palloc(sizeof(Datum) * Max(max, 1));
	list.generations = palloc(sizeof(Datum) * Max(max, 1));
	return list;
}

static void
add_to_list(ShapeList *list, int64 id, int generation)
{
	list->ids[list->n] = Int64GetDatum(id);
	list->generations[list->n++] = Int32GetDatum(generation);
}

/* Reads pairs of numbers. */
static ShapeList
read_list(const char *text)
{
	ShapeList	list = create_list(strlen(text) / 4 + 1);	/* "1 1 " at least */
	char	   *p = unconstify(char *, text);

	while (*p != '\0')
	{
		int64		id = strtoi64(p, &p, 10);
		char	   *end;
		int			generation = strtol(p, &end, 10);

		if (end == p)
			elog(ERROR, "malformed order: \"%s\"", text);
		add_to_list(&list, id, generation);
		p = end;
	}
	return list;
}

static ArrayType *
list_ids(const ShapeList *list)
{
	return construct_array(list->ids, list->n, INT8OID, sizeof(int64),
						   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE);
}

static void
set_states(struct _SPI_plan **plan, const char *sql, const ShapeList *list)
{
	Oid			types[2] = {INT8ARRAYOID, INT4ARRAYOID};
	Datum		values[2];
	EcmSpiState spi;

	if (list->n == 0)
		return;
	values[0] = PointerGetDatum(list_ids(list));
	values[1] = PointerGetDatum(construct_array(list->generations, list->n, INT4OID,
												sizeof(int32), true, TYPALIGN_INT));
	ecm_spi_begin(&spi);
	ecm_spi_run_kept(plan, sql, SPI_OK_INSERT, 2, types, values, NULL);
	ecm_spi_end(&spi);
}

typedef struct CaptureArg
{
	HTAB	   *wanted;			/* of WantedShape */
	ShapeList	captured;
} CaptureArg;

typedef struct WantedShape
{
	int64		id;				/* hash key */
	int			generation;
} WantedShape;

static void
capture_shape(const EcmShapeDef *def, void *arg)
{
	CaptureArg *capture = arg;
	WantedShape *wanted = hash_search(capture->wanted, &def->id, HASH_FIND, NULL);
	EcmShape   *shape;

	if (wanted == NULL || def->generation != wanted->generation ||
		def->worker != worker || ecm_gather_is_past(def->skip_until))
		return;					/* a later attempt is coming, another's, or done */

	shape = ecm_match_find(def->id);
	if (shape != NULL)
		ecm_match_remove(shape); /* an earlier attempt */
	if (def->capturing != 0)
		(void) ecm_log_delete(def->id);
	ecm_load_shape(def);
	add_to_list(&capture->captured, def->id, def->generation);
}

/*
 * From here on the shapes' changes are logged, each transaction's in chunks of
 * its own, since the snapshot decides later which of them count.
 */
static void
obey_capture(const char *text)
{
	static struct _SPI_plan *plan;
	ShapeList	list = read_list(text);
	CaptureArg	arg = {.captured = create_list(list.n)};
	HASHCTL		ctl = {.keysize = sizeof(int64), .entrysize = sizeof(WantedShape),
		.hcxt = CurrentMemoryContext};

	arg.wanted = hash_create("electric_cm shapes to capture", list.n, &ctl,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (int i = 0; i < list.n; i++)
	{
		int64		id = DatumGetInt64(list.ids[i]);
		WantedShape *wanted = hash_search(arg.wanted, &id, HASH_ENTER, NULL);

		wanted->generation = DatumGetInt32(list.generations[i]);
	}

	/* the generations came with that commit, decoded before others see it */
	XactLockTableWait(ecm_gather_xid(), NULL, NULL, XLTW_None);
	PushActiveSnapshot(GetLatestSnapshot());
	ecm_shapes_by_ids(list_ids(&list), capture_shape, &arg);
	PopActiveSnapshot();
	set_states(&plan,
			   "INSERT INTO _electric_cm.shape_state (shape, state, generation)"
			   " SELECT id, 'capturing', generation FROM unnest($1, $2) AS s (id, generation)"
			   " ON CONFLICT (shape) DO UPDATE"
			   " SET state = 'capturing', generation = excluded.generation",
			   &arg.captured);
	CommandCounterIncrement();
	hash_destroy(arg.wanted);
}

/*
 * What is dropped now has been counted in the log's running totals: its base
 * says so, where there is anything.
 */
static void
settle_captured(int64 id, int generation, const char *snapshot)
{
	EcmLogTotals origin = ecm_log_settle_captured(id, snapshot);

	if (origin.entries > 0)
		run_on_shape(psprintf("INSERT INTO _electric_cm.shape_base"
							  " (shape, lsn, op, origin_entries, origin_bytes)"
							  " VALUES ($1, '0/0', 0, " INT64_FORMAT ", " INT64_FORMAT ")",
							  origin.entries, origin.bytes),
					 id, generation);
}

/*
 * The snapshot is committed.  This message came with that commit, so every
 * transaction that the snapshot saw has been met before: what was captured of
 * those is dropped, all else stays, and nothing later needs to be looked at.
 */
static void
obey_live(const char *text)
{
	static struct _SPI_plan *plan;
	const char *rest = strchr(text, ' ');
	char	   *snapshot;
	ShapeList	list;
	ShapeList	live;

	if (rest == NULL)
		elog(ERROR, "malformed order: \"live %s\"", text);
	snapshot = pnstrdup(text, rest - text);
	list = read_list(rest + 1);
	live = create_list(list.n);

	/* its commit can be decoded a moment before others can see its rows */
	XactLockTableWait(ecm_gather_xid(), NULL, NULL, XLTW_None);
	for (int i = 0; i < list.n; i++)
	{
		int64		id = DatumGetInt64(list.ids[i]);
		int			generation = DatumGetInt32(list.generations[i]);
		EcmShape   *shape = ecm_match_find(id);

		if (shape == NULL || !shape->buffer.capturing ||
			shape->generation != generation || ecm_gather_is_past(shape->skip_until))
			continue;
		ecm_gather_work_on(id);
		settle_captured(id, generation, snapshot);
		shape->buffer.capturing = false;
		shape->buffer.totals_epoch = 0;
		add_to_list(&live, id, generation);
	}
	ecm_gather_work_on(0);
	set_states(&plan,
			   "INSERT INTO _electric_cm.shape_state (shape, state, generation, live_at)"
			   " SELECT id, 'live', generation, pg_catalog.clock_timestamp()"
			   " FROM unnest($1, $2) AS s (id, generation)"
			   " ON CONFLICT (shape) DO UPDATE SET state = 'live',"
			   " generation = excluded.generation, live_at = excluded.live_at",
			   &live);
}

void
ecm_shape_set_errored(int64 id, int generation, const char *reason)
{
	run_on_shape(psprintf("INSERT INTO _electric_cm.shape_state"
						  " (shape, state, generation, last_error)"
						  " VALUES ($1, 'errored', $2, %s) ON CONFLICT (shape)"
						  " DO UPDATE SET state = 'errored',"
						  " last_error = excluded.last_error",
						  quote_literal_cstr(reason)),
				 id, generation);
}

/*
 * The stream shows that a shape's log can't be continued.  Usually the command
 * that is to blame has invalidated it already.  Where its row is locked, by
 * somebody who may yet change his mind, readers must learn of it all the same.
 */
static void
give_up(int64 id, const char *reason)
{
	EcmShape   *shape = ecm_match_find(id);

	if (shape == NULL || ecm_gather_is_past(shape->skip_until))
		return;
	ecm_shape_set_errored(id, shape->generation, reason);
	(void) ecm_shape_invalidate_nowait(id, reason);
	ecm_match_remove(shape);
}

/*
 * The snapshot can't be taken.  An attempt that was made since is another matter.
 */
static void
obey_fail(int64 id, int generation, const char *reason)
{
	EcmShapeDef *def = ecm_shape_by_id(id);
	EcmShape   *shape = ecm_match_find(id);

	if (def == NULL || def->worker != worker ||
		def->generation != generation || ecm_gather_is_past(def->skip_until))
		return;
	ecm_shape_set_errored(id, generation, reason);
	if (shape != NULL)
		ecm_match_remove(shape);
}

static void
obey_drop(const char *ids)
{
	char	   *p = unconstify(char *, ids);

	while (*p != '\0' && *p != ' ')
	{
		int64		id = strtoi64(p, &p, 10);
		EcmShape   *shape = ecm_match_find(id);

		ecm_gather_work_on(id); /* those who wait for its log are to look */
		if (shape != NULL)
			ecm_match_remove(shape);
		else
			ecm_load_forget(id);
		if (*p == ',')
			p++;
		else if (*p != ' ')
			break;
	}
	ecm_gather_work_on(0);
}

/*
 * Invalidated while somebody had its row locked: it can't be deleted, but it
 * ends here.
 */
static void
obey_lost(char *ids)
{
	char	   *p = ids;
	char	   *reason = strchr(ids, ' ');

	reason = quote_literal_cstr(reason ? reason + 1 : "");
	while (*p != '\0' && *p != ' ')
	{
		int64		id = strtoi64(p, &p, 10);
		EcmShapeDef *def = ecm_shape_by_id(id);
		EcmShape   *shape = ecm_match_find(id);

		if (*p == ',')
			p++;
		else if (*p != ' ')
			break;
		if (def == NULL || def->worker != worker || ecm_gather_is_past(def->skip_until))
			continue;
		ecm_gather_work_on(id);
		run_on_shape(psprintf("INSERT INTO _electric_cm.shape_state"
							  " (shape, state, generation, last_error)"
							  " VALUES ($1, 'gone', $2, %s) ON CONFLICT (shape)"
							  " DO UPDATE SET state = 'gone',"
							  " last_error = excluded.last_error", reason),
					 id, def->generation);
		if (shape != NULL)
			ecm_match_remove(shape);
		else
			ecm_load_forget(id);
	}
	ecm_gather_work_on(0);
}

static void
obey_order(const char *text)
{
	int64		id;
	int			generation;
	int			n = 0;
	Oid			owner;

	if (sscanf(text, "capture %*s %n", &n) >= 0 && n > 0)
		obey_capture(text + n);
	else if (strncmp(text, "live ", strlen("live ")) == 0)
		obey_live(text + strlen("live "));
	else if (sscanf(text, "drop %*s %n", &n) >= 0 && n > 0)
		obey_drop(text + n);
	else if (sscanf(text, "lost %*s %n", &n) >= 0 && n > 0)
		obey_lost(pstrdup(text + n));
	else if (sscanf(text, "owner " INT64_FORMAT " %u", &id, &owner) == 2)
	{
		EcmShape   *shape = ecm_match_find(id);

		if (shape != NULL)
			shape->owner = owner;
	}
	else if (sscanf(text, "fail " INT64_FORMAT " %d %n", &id, &generation, &n) == 2 &&
			 n > 0)
	{
		ecm_gather_work_on(id);
		obey_fail(id, generation, text + n);
		ecm_gather_work_on(0);
	}
}

/* Shapes to be given up. */
static List *doubtful = NIL;

static void
collect_doubtful(EcmShape *shape)
{
	doubtful = lappend(doubtful, shape);
}

/*
 * What the stream shows of a table, once all orders have been obeyed: usually
 * the command that is to blame has invalidated its shapes, and told us.
 */
static void
check_table(Oid relid, int layout_number, const char *reason)
{
	EcmTable   *table = ecm_match_table(relid);
	ListCell   *lc;

	doubtful = NIL;
	if (table == NULL)
		return;
	foreach(lc, table->layouts)
	{
		EcmLayout  *layout = lfirst(lc);

		if (layout_number < 0 || layout->number == layout_number)
			ecm_match_foreach(table, layout, collect_doubtful);
	}
	foreach(lc, doubtful)
	{
		int64		id = ((EcmShape *) lfirst(lc))->id;

		ecm_gather_work_on(id);
		give_up(id, reason);
		ecm_gather_work_on(0);
	}
	doubtful = NIL;
}

static void
obey_checks(const char *text)
{
	Oid			relid;
	int			layout;

	if (sscanf(text, "mismatch %u %d", &relid, &layout) == 2)
		check_table(relid, layout,
					"the table's columns or its replica identity have changed");
	else if (sscanf(text, "truncate %u", &relid) == 1)
		check_table(relid, -1, "the table was truncated");
}

void
ecm_orders_obey(void)
{
	MemoryContext context = CurrentMemoryContext;
	void		(*const rounds[]) (const char *text) = {obey_order, obey_checks};
	ListCell   *lc;

	for (size_t i = 0; i < lengthof(rounds); i++)
		foreach(lc, orders)
		{
			rounds[i] (lfirst(lc));
			MemoryContextSwitchTo(context);
		}
	ecm_gather_figures.shapes = ecm_load_count();
}

void
ecm_orders_forget(void)
{
	orders = NIL;
	MemoryContextReset(orders_context);
}
