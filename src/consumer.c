/*-------------------------------------------------------------------------
 *
 * consumer.c
 *	  The consumer worker: decodes what the manager feeds it, keeps what its
 *	  shapes want, and appends it to their logs.
 *
 * The writing side is in gather.c.  This side follows the stream: relations as
 * pgoutput describes them, the shapes that want their changes, and the orders
 * that arrive as messages in transactions of the stack's own (shape.h).  An
 * order takes effect where its transaction commits, neither earlier nor later.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "nodes/bitmapset.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/logicalproto.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/shm_mq.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "consumer.h"
#include "gather.h"
#include "load.h"
#include "match.h"
#include "shape.h"
#include "shmem.h"
#include "wait_event.h"
#include "wal.h"
#include "worker.h"

/* A table's view of a relation in the stream. */
typedef struct Binding
{
	EcmTable   *table;
	int		   *map;			/* table's column -> relation's, -1: none */
	bool	   *usable;			/* by layout: the relation has what it needs */
} Binding;

typedef struct RelEntry
{
	LogicalRepRelId relid;		/* hash key */
	MemoryContext context;		/* of all that follows */
	LogicalRepRelation *rel;
	bool		full;			/* old tuples have all columns */
	uint32		tables_version; /* bindings were made for this one */
	MemoryContext bindings_context;
	List	   *bindings;
} RelEntry;

static EcmConsumerArgs args;
static char *message_prefix;	/* of our own messages in the stream */
static shm_mq_handle *queue;

static MemoryContext orders_context;	/* reset after each transaction */
static MemoryContext message_context;	/* reset after each message */
static MemoryContext relation_context;	/* relation cache */

static HTAB *relations;
static uint64 change_number;	/* tells one change's matches from another's */
/* the upstream transaction that is coming in */
static TransactionId upstream_xid;
static XLogRecPtr upstream_lsn;
static bool skipping;			/* it was applied before */
static XLogRecPtr bind_again_at; /* all shapes' changes count from there on */
static List *txn_orders = NIL;	/* our own messages in it, in orders_context */

/*
 * Scratch space for one change: what the table has of each tuple, what a shape
 * takes of that.
 */
static EcmValue *table_values[2];
static EcmValue *shape_values[2];
static int	max_values;

static EcmConsumerSlot *
my_slot(void)
{
	return &ecm_shared->stacks[args.stack_index].consumers[args.worker];
}

/* --------------------------------------------------------------- shapes -- */

static void
ensure_scratch(int ncolumns)
{
	if (ncolumns <= max_values)
		return;
	max_values = Max(16, ncolumns * 2);
	for (int i = 0; i < 2; i++)
	{
		if (table_values[i] != NULL)
		{
			pfree(table_values[i]);
			pfree(shape_values[i]);
		}
		table_values[i] = MemoryContextAlloc(TopMemoryContext,
											 sizeof(EcmValue) * max_values);
		shape_values[i] = MemoryContextAlloc(TopMemoryContext,
											 sizeof(EcmValue) * max_values);
	}
}

/*
 * A where clause that does not compile is that shape's fault.
 */
static void
follow_shape(const EcmShapeDef *def)
{
	ecm_gather_work_on(def->id);
	(void) ecm_match_add(def);
	ecm_gather_work_on(0);
	bind_again_at = Max(bind_again_at, def->skip_until);
}

/* Is what comes in a thing of the past to a shape?  See shape_assign.c. */
static bool
is_past(XLogRecPtr skip_until)
{
	return upstream_lsn < skip_until;
}

/* In a transaction, at start. */
static void
note_all_shapes(void *arg pg_attribute_unused())
{
	ecm_load_start(args.worker, follow_shape);
}

static int
count_shapes(void)
{
	return ecm_match_nshapes() + ecm_load_count();
}

/* -------------------------------------------------------------- changes -- */

/*
 * The table's columns of a tuple from the stream.  Columns that an old key
 * does not carry are "unchanged", not null; so are those that the relation
 * does not have (no shape that is served from it asks for them).
 */
static void
read_tuple(Binding *binding, RelEntry *entry, LogicalRepTupleData *tuple,
		   bool old_key, EcmValue *values)
{
	for (int i = 0; i < binding->table->ncolumns; i++)
	{
		int			col = binding->map[i];
		EcmValue   *value = &values[i];

		value->text = NULL;
		value->len = 0;
		if (col >= tuple->ncols)
			elog(ERROR, "tuple of relation %u has %d columns, need %d",
				 entry->relid, tuple->ncols, col + 1);
		if (col < 0 || (old_key && !bms_is_member(col, entry->rel->attkeys)))
			value->kind = ECM_VALUE_UNCHANGED;
		else if (tuple->colstatus[col] == LOGICALREP_COLUMN_TEXT)
		{
			value->kind = ECM_VALUE_TEXT;
			value->text = tuple->colvalues[col].data;
			value->len = tuple->colvalues[col].len;
		}
		else if (tuple->colstatus[col] == LOGICALREP_COLUMN_UNCHANGED)
			value->kind = ECM_VALUE_UNCHANGED;
		else
			value->kind = ECM_VALUE_NULL;
	}
}

static bool
same_value(const EcmValue *a, const EcmValue *b)
{
	return a->kind == b->kind && a->len == b->len &&
		(a->len == 0 || memcmp(a->text, b->text, a->len) == 0);
}

/* The shape's columns of what the table has. */
static const EcmValue *
pick_columns(const EcmShape *shape, EcmWhich which)
{
	const EcmLayout *layout = shape->layout;

	if (layout->whole)
		return table_values[which];
	for (int i = 0; i < layout->ncolumns; i++)
		shape_values[which][i] = table_values[which][layout->columns[i]];
	return shape_values[which];
}

static void
emit(EcmShape *shape, EcmOp op, const EcmValue *newv, const EcmValue *oldv)
{
	if (is_past(shape->skip_until))
		return;
	ecm_gather_work_on(shape->id);
	ecm_gather_entry(&shape->buffer, op, newv, oldv);
}

/*
 * A row stays in the shape.  An update that changes its key is a delete and an
 * insert.  has_old: the old tuple is known, as a whole (full) or its key.
 */
static void
emit_update(EcmShape *shape, bool has_old, bool full)
{
	const EcmValue *newv = pick_columns(shape, ECM_NEW_TUPLE);
	const EcmValue *oldv = has_old ? pick_columns(shape, ECM_OLD_TUPLE) : NULL;
	bool		key_changed = false;

	for (int i = 0; has_old && i < shape->layout->nkeys; i++)
	{
		int			k = shape->layout->keys[i];

		key_changed |= !same_value(&newv[k], &oldv[k]);
	}
	if (key_changed)
	{
		emit(shape, ECM_OP_DELETE, NULL, oldv);
		emit(shape, ECM_OP_INSERT, newv, NULL);
	}
	else
		emit(shape, ECM_OP_UPDATE, newv, full ? oldv : NULL);
}

/* Can this shape be served from that relation? */
static bool
is_usable(const Binding *binding, const EcmShape *shape)
{
	return binding->usable[shape->layout->number];
}

/*
 * Which shapes was the row in, which is it in now?
 */
static void
match_change(Binding *binding, RelEntry *entry, LogicalRepTupleData *oldtup,
			 LogicalRepTupleData *newtup)
{
	EcmTable   *table = binding->table;
	EcmShape  **were_in = NULL;
	EcmShape  **are_in = NULL;
	int			nwere = 0;
	int			nare = 0;

	ensure_scratch(table->ncolumns);
	if (table->any_filter)
		ecm_gather_enter_transaction();
	change_number++;

	if (oldtup != NULL)
		read_tuple(binding, entry, oldtup, !entry->full, table_values[ECM_OLD_TUPLE]);
	if (newtup != NULL)
	{
		read_tuple(binding, entry, newtup, false, table_values[ECM_NEW_TUPLE]);

		/* a TOASTed value that did not change is in a full old tuple only */
		for (int i = 0; oldtup != NULL && i < table->ncolumns; i++)
			if (table_values[ECM_NEW_TUPLE][i].kind == ECM_VALUE_UNCHANGED)
				table_values[ECM_NEW_TUPLE][i] = table_values[ECM_OLD_TUPLE][i];
	}
	if (oldtup != NULL)
		were_in = ecm_match_tuple(table, table_values[ECM_OLD_TUPLE],
								  ECM_OLD_TUPLE, change_number, &nwere);
	if (newtup != NULL)
		are_in = ecm_match_tuple(table, table_values[ECM_NEW_TUPLE],
								 ECM_NEW_TUPLE, change_number, &nare);

	for (int i = 0; i < nwere; i++)
		if (were_in[i]->marks[ECM_NEW_TUPLE] != change_number &&
			is_usable(binding, were_in[i]))
			emit(were_in[i], ECM_OP_DELETE, NULL, pick_columns(were_in[i], ECM_OLD_TUPLE));
	for (int i = 0; i < nare; i++)
	{
		EcmShape   *shape = are_in[i];

		if (!is_usable(binding, shape))
			continue;
		if (shape->marks[ECM_OLD_TUPLE] == change_number)
			emit_update(shape, true, entry->full);
		else
			emit(shape, ECM_OP_INSERT, pick_columns(shape, ECM_NEW_TUPLE), NULL);
	}
	ecm_gather_work_on(0);
}

/*
 * Without an old tuple the replica identity did not change, and a where clause
 * looks at nothing else: who has the row now had it before.
 */
static void
match_update_in_place(Binding *binding, RelEntry *entry, LogicalRepTupleData *newtup)
{
	EcmTable   *table = binding->table;
	EcmShape  **are_in;
	int			n;

	ensure_scratch(table->ncolumns);
	if (table->any_filter)
		ecm_gather_enter_transaction();
	read_tuple(binding, entry, newtup, false, table_values[ECM_NEW_TUPLE]);
	are_in = ecm_match_tuple(table, table_values[ECM_NEW_TUPLE], ECM_NEW_TUPLE,
							 ++change_number, &n);
	for (int i = 0; i < n; i++)
		if (is_usable(binding, are_in[i]))
			emit_update(are_in[i], false, false);
	ecm_gather_work_on(0);
}

/* ------------------------------------------------------------ relations -- */

static void
forget_relations(void)
{
	HASHCTL		ctl;

	MemoryContextReset(relation_context);
	ctl.keysize = sizeof(LogicalRepRelId);
	ctl.entrysize = sizeof(RelEntry);
	ctl.hcxt = relation_context;
	relations = hash_create("electric_cm relations", 64, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
handle_relation(StringInfo in)
{
	MemoryContext context = AllocSetContextCreate(relation_context,
												  "electric_cm relation",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	LogicalRepRelation *rel = logicalrep_read_rel(in);
	RelEntry   *entry;
	bool		found;

	entry = hash_search(relations, &rel->remoteid, HASH_ENTER, &found);
	if (found)
		MemoryContextDelete(entry->context);
	entry->context = context;
	entry->rel = rel;
	entry->full = rel->replident == REPLICA_IDENTITY_FULL;
	entry->tables_version = 0;
	entry->bindings_context = AllocSetContextCreate(context, "electric_cm bindings",
													ALLOCSET_SMALL_SIZES);
	entry->bindings = NIL;
	MemoryContextSwitchTo(old);
}

/*
 * Maps a table's columns to a relation's by name (a partition may have its
 * columns in another order).
 */
static int *
map_columns(EcmTable *table, LogicalRepRelation *rel)
{
	int		   *map = palloc(sizeof(int) * Max(table->ncolumns, 1));

	for (int i = 0; i < table->ncolumns; i++)
	{
		map[i] = -1;
		for (int j = 0; j < rel->natts && map[i] < 0; j++)
			if (table->columns[i].type == rel->atttyps[j] &&
				strcmp(table->columns[i].name, rel->attnames[j]) == 0)
				map[i] = j;
	}
	return map;
}

/*
 * Does the relation have all columns that shapes of this layout need, and do
 * its old tuples have their key and what their where clauses look at?  Should
 * it not be so any more, their logs can't be continued.
 */
static bool
layout_is_usable(const EcmLayout *layout, const int *map, RelEntry *entry)
{
	for (int i = 0; i < layout->ncolumns; i++)
		if (map[layout->columns[i]] < 0)
			return false;
	for (int i = 0; i < layout->nkeys; i++)
		if (!entry->full &&
			!bms_is_member(map[layout->columns[layout->keys[i]]], entry->rel->attkeys))
			return false;
	for (int i = 0; i < layout->nfilter_columns; i++)
	{
		int			col = map[layout->filter_columns[i]];

		if (col < 0 || (!entry->full && !bms_is_member(col, entry->rel->attkeys)))
			return false;
	}
	return true;
}

typedef struct AncestorsArg
{
	Oid			relid;
	List	   *ancestors;		/* in message_context */
} AncestorsArg;

static void
read_ancestors(void *arg)
{
	AncestorsArg *a = arg;
	List	   *ancestors = NIL;

	/* the relation may be gone by now; then so are its shapes */
	if (get_rel_relispartition(a->relid))
		ancestors = get_partition_ancestors(a->relid);
	MemoryContextSwitchTo(message_context);
	a->ancestors = lappend_oid(list_copy(ancestors), a->relid);
}

/* An order to do to a shape what a message from the stream would. */
static void
queue_order(const char *text)
{
	MemoryContext old = MemoryContextSwitchTo(orders_context);

	txn_orders = lappend(txn_orders, pstrdup(text));
	MemoryContextSwitchTo(old);
}

/*
 * A where clause has raised an error.  That is one shape's problem: what others
 * have from this transaction goes with it.
 */
static void
match_failed(EcmShape *shape, const char *message)
{
	EcmShapeDef *def;

	if (is_past(shape->skip_until))
		return;
	def = ecm_shape_by_id(shape->id);
	queue_order(psprintf("fail " INT64_FORMAT " %d %s", shape->id,
						 shape->generation, message));
	if (def != NULL)
		ecm_event(MyDatabaseId, ecm_shared->stacks[args.stack_index].datname,
				  "shape_errored", ECM_SEVERITY_WARNING, message,
				  "shape %s has failed and is not followed any more", def->handle);
}

static Binding *
bind_table(EcmTable *table, RelEntry *entry)
{
	Binding    *binding = palloc(sizeof(Binding));
	ListCell   *lc;

	binding->table = table;
	binding->map = map_columns(table, entry->rel);
	binding->usable = palloc(sizeof(bool) * Max(list_length(table->layouts), 1));
	foreach(lc, table->layouts)
	{
		EcmLayout  *layout = lfirst(lc);

		binding->usable[layout->number] = layout_is_usable(layout, binding->map, entry);
		if (!binding->usable[layout->number])
			/* comes again if this transaction does */
			queue_order(psprintf("mismatch %u %d", table->relid, layout->number));
	}
	return binding;
}

/*
 * Which tables' shapes want this relation's changes: those of its own, and of
 * what it is a partition of.
 */
static void
bind_relation(RelEntry *entry)
{
	AncestorsArg arg = {entry->relid, NIL};
	ListCell   *lc;
	MemoryContext old;

	if (ecm_gather_in_transaction())
		read_ancestors(&arg);
	else
	{
		EcmError	err;

		if (!ecm_worker_try(read_ancestors, &arg, &err))
			elog(ERROR, "could not look up relation %u: %s",
				 entry->relid, err.message);
	}
	MemoryContextSwitchTo(message_context);
	foreach(lc, arg.ancestors)
	{
		if (!ecm_load_is_due(lfirst_oid(lc)))
			continue;
		ecm_gather_enter_transaction();
		ecm_load_table(lfirst_oid(lc));
	}
	MemoryContextReset(entry->bindings_context);
	old = MemoryContextSwitchTo(entry->bindings_context);
	entry->bindings = NIL;
	foreach(lc, arg.ancestors)
	{
		EcmTable   *table = ecm_match_table(lfirst_oid(lc));

		if (table != NULL)
			entry->bindings = lappend(entry->bindings, bind_table(table, entry));
	}
	MemoryContextSwitchTo(old);
	entry->tables_version = ecm_tables_version;
}

static RelEntry *
find_relation(LogicalRepRelId relid)
{
	RelEntry   *entry = hash_search(relations, &relid, HASH_FIND, NULL);

	if (entry == NULL)
		elog(ERROR, "change of relation %u, which the stream has not described",
			 relid);
	if (entry->tables_version != ecm_tables_version)
		bind_relation(entry);
	return entry;
}

/* --------------------------------------------------------------- orders -- */

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
		def->worker != args.worker || is_past(def->skip_until))
		return;					/* a later attempt is coming, another's, or done */

	shape = ecm_match_find(def->id);
	if (shape != NULL)
		ecm_match_remove(shape); /* an earlier attempt */
	if (def->capturing != 0)
		(void) ecm_log_delete(def->id);
	follow_shape(def);
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
	XactLockTableWait(upstream_xid, NULL, NULL, XLTW_None);
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
	XactLockTableWait(upstream_xid, NULL, NULL, XLTW_None);
	for (int i = 0; i < list.n; i++)
	{
		int64		id = DatumGetInt64(list.ids[i]);
		int			generation = DatumGetInt32(list.generations[i]);
		EcmShape   *shape = ecm_match_find(id);

		if (shape == NULL || !shape->buffer.capturing ||
			shape->generation != generation || is_past(shape->skip_until))
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

static void
set_errored(int64 id, int generation, const char *reason)
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

	if (shape == NULL || is_past(shape->skip_until))
		return;
	set_errored(id, shape->generation, reason);
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

	if (def == NULL || def->worker != args.worker ||
		def->generation != generation || is_past(def->skip_until))
		return;
	set_errored(id, generation, reason);
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

/* Shapes to be given up, in message_context. */
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

/* ------------------------------------------------------------- messages -- */

static void
handle_begin(StringInfo in)
{
	LogicalRepBeginData begin;
	FullTransactionId next = ReadNextFullTransactionId();

	logicalrep_read_begin(in, &begin);
	upstream_xid = begin.xid;
	upstream_lsn = begin.final_lsn;
	if (!is_past(bind_again_at) && !XLogRecPtrIsInvalid(bind_again_at))
	{
		/* what did not fit a shape that skipped it may still not fit */
		ecm_tables_version++;
		bind_again_at = InvalidXLogRecPtr;
	}
	ecm_match_begin();
	skipping = begin.final_lsn < ecm_gather_position();
	ecm_gather_begin(begin.final_lsn,
					 ecm_widen_xid(begin.xid, U64FromFullTransactionId(next)));
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

static void
obey_orders(void)
{
	void		(*const rounds[]) (const char *text) = {obey_order, obey_checks};
	ListCell   *lc;

	for (size_t i = 0; i < lengthof(rounds); i++)
		foreach(lc, txn_orders)
		{
			rounds[i] (lfirst(lc));
			MemoryContextSwitchTo(message_context);
		}
	ecm_gather_figures.shapes = count_shapes();
}

static void
forget_orders(void)
{
	txn_orders = NIL;
	MemoryContextReset(orders_context);
}

static void
handle_commit(StringInfo in)
{
	LogicalRepCommitData commit;

	logicalrep_read_commit(in, &commit);
	if (skipping)
		return;
	ecm_gather_commit(commit.end_lsn, txn_orders != NIL ? obey_orders : NULL);
	if (txn_orders != NIL)
		forget_orders();
	if (ecm_gather_is_empty())
		ecm_match_free_gone();
}

static void
handle_change(StringInfo in, LogicalRepMsgType type)
{
	LogicalRepTupleData oldtup;
	LogicalRepTupleData newtup;
	RelEntry   *entry;
	bool		has_old = false;
	ListCell   *lc;

	ecm_gather_figures.changes++;
	if (type == LOGICAL_REP_MSG_INSERT)
		entry = find_relation(logicalrep_read_insert(in, &newtup));
	else if (type == LOGICAL_REP_MSG_UPDATE)
		entry = find_relation(logicalrep_read_update(in, &has_old, &oldtup, &newtup));
	else
		entry = find_relation(logicalrep_read_delete(in, &oldtup));

	foreach(lc, entry->bindings)
	{
		if (type == LOGICAL_REP_MSG_INSERT)
			match_change(lfirst(lc), entry, NULL, &newtup);
		else if (type == LOGICAL_REP_MSG_DELETE)
			match_change(lfirst(lc), entry, &oldtup, NULL);
		else if (has_old)
			match_change(lfirst(lc), entry, &oldtup, &newtup);
		else
			match_update_in_place(lfirst(lc), entry, &newtup);
	}
}

/*
 * The hook has invalidated the shapes of a truncated table already, in the
 * same transaction; this is the check.
 */
static void
handle_truncate(StringInfo in)
{
	bool		cascade;
	bool		restart_seqs;
	ListCell   *lc;

	foreach(lc, logicalrep_read_truncate(in, &cascade, &restart_seqs))
	{
		RelEntry   *entry = find_relation(lfirst_oid(lc));
		ListCell   *lc2;

		foreach(lc2, entry->bindings)
			queue_order(psprintf("truncate %u", ((Binding *) lfirst(lc2))->table->relid));
	}
}

static void
handle_message(StringInfo in)
{
	uint8		flags = pq_getmsgbyte(in);
	const char *prefix;
	int			size;

	(void) pq_getmsgint64(in);	/* its LSN */
	prefix = pq_getmsgrawstring(in);
	size = pq_getmsgint(in, 4);
	if ((flags & 1) != 0 && strcmp(prefix, message_prefix) == 0)
	{
		const char *text = pnstrdup(pq_getmsgbytes(in, size), size);

		if (strncmp(text, "create ", strlen("create ")) != 0)
			queue_order(text);	/* that one is the manager's */
	}
}

/*
 * The stream has been lost.  What is complete is kept, the rest comes again.
 */
static void
obey_reset(uint32 number)
{
	EcmConsumerSlot *slot = my_slot();

	forget_orders();
	ecm_gather_reset();
	forget_relations();
	ecm_match_free_gone();

	ecm_lock(LW_EXCLUSIVE);
	if (slot->generation == args.generation)
		slot->reset_done = number;
	ecm_unlock();
	ecm_stack_wake(args.stack_index);
}

static void
process(char *data, Size len)
{
	StringInfoData in;

	in.data = data;
	in.len = len;
	in.maxlen = -1;
	in.cursor = 1;

	if (len == 0)
		return;
	if (data[0] == ECM_FRAME_RESET)
	{
		obey_reset(((EcmControlFrame *) data)->number);
		return;
	}
	if (data[0] == LOGICAL_REP_MSG_BEGIN)
	{
		handle_begin(&in);
		return;
	}
	if (data[0] == LOGICAL_REP_MSG_COMMIT)
	{
		handle_commit(&in);
		return;
	}
	/* relations are described once, also inside what we skip */
	if (data[0] == LOGICAL_REP_MSG_RELATION)
	{
		handle_relation(&in);
		return;
	}
	if (skipping)
		return;

	switch (data[0])
	{
		case LOGICAL_REP_MSG_INSERT:
		case LOGICAL_REP_MSG_UPDATE:
		case LOGICAL_REP_MSG_DELETE:
			handle_change(&in, data[0]);
			break;
		case LOGICAL_REP_MSG_TRUNCATE:
			handle_truncate(&in);
			break;
		case LOGICAL_REP_MSG_MESSAGE:
			handle_message(&in);
			break;
		default:				/* types, origins, FLUSH */
			break;
	}
}

/* ------------------------------------------------------------- starting -- */

static void
read_progress(void *arg)
{
	XLogRecPtr *position = arg;
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(args.worker);
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	if (SPI_execute_with_args("SELECT lsn FROM _electric_cm.progress WHERE worker = $1",
							  1, &type, &value, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read progress");
	if (SPI_processed > 0)
	{
		bool		isnull;

		*position = DatumGetLSN(SPI_getbinval(SPI_tuptable->vals[0],
												SPI_tuptable->tupdesc, 1, &isnull));
	}
	ecm_spi_end(&spi);
	message_prefix = MemoryContextStrdup(TopMemoryContext, ecm_message_prefix());
}

/*
 * A predecessor whose manager went away without a word may still be
 * committing.  Two of us with the same progress row would log that twice, so
 * we wait until it is gone.
 */
static void
lock_progress(void *arg pg_attribute_unused())
{
	ecm_shape_lock_progress(args.worker, true);
}

/*
 * Announces that we are ready to be fed, from the position that our progress
 * row has.
 */
static void
announce(XLogRecPtr position)
{
	EcmConsumerSlot *slot = my_slot();

	ecm_lock(LW_EXCLUSIVE);
	if (slot->generation != args.generation)
	{
		ecm_unlock();
		proc_exit(0);			/* our successor waits for our end */
	}
	slot->pid = MyProcPid;
	slot->shapes = count_shapes();
	slot->received_lsn = slot->applied_lsn = slot->durable_lsn = position;
	slot->attached = true;
	ecm_unlock();
	ecm_stack_wake(args.stack_index);
}

static void
at_exit(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	EcmConsumerSlot *slot = my_slot();

	ecm_lock(LW_EXCLUSIVE);
	if (slot->generation == args.generation)
	{
		slot->pid = 0;
		slot->attached = false;
	}
	ecm_unlock();
	ecm_stack_wake(args.stack_index);
}

static void
attach_queue(void)
{
	dsm_segment *segment;
	dsm_handle	handle;
	shm_mq	   *mq;

	ecm_lock(LW_SHARED);
	handle = my_slot()->generation == args.generation ? my_slot()->segment : 0;
	ecm_unlock();
	segment = handle ? dsm_attach(handle) : NULL;
	if (segment == NULL)
		proc_exit(0);			/* the manager has gone on without us */
	dsm_pin_mapping(segment);
	mq = dsm_segment_address(segment);
	shm_mq_set_receiver(mq, MyProc);
	queue = shm_mq_attach(mq, segment, NULL);
}

/*
 * Shows in pg_stat_activity whether there is work; each change takes the time
 * of a system call.
 */
static void
show_busy(bool now)
{
	static bool busy = true;

	if (busy == now)
		return;
	busy = now;
	pgstat_report_activity(busy ? STATE_RUNNING : STATE_IDLE,
						   busy ? "writing shape logs" : "waiting for changes");
}

/*
 * Takes what the manager sends, until the manager is gone.
 */
static void
follow_stream(void)
{
	EcmConsumerSlot *slot = my_slot();
	uint64		processed = 0;

	for (;;)
	{
		Size		len;
		void	   *data;
		shm_mq_result result;

		if (ecm_got_sigterm)
			proc_exit(0);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}

		MemoryContextSwitchTo(message_context);
		result = shm_mq_receive(queue, &len, &data, true);
		if (result == SHM_MQ_SUCCESS)
		{
			show_busy(true);
			process(data, len);
			slot->processed = ++processed;	/* mends what a predecessor left */
			MemoryContextReset(message_context);
			continue;
		}

		if (ecm_gather_unsettled())
		{
			/* an idle consumer owes nobody anything */
			ecm_gather_settle();
			pgstat_report_stat(false);
			continue;			/* more may have come in meanwhile */
		}
		if (result == SHM_MQ_DETACHED)
			proc_exit(0);		/* the manager is gone; all is settled */

		show_busy(false);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, 0,
						 ecm_wait_event(ECM_WAIT_CONSUMER_MAIN));
		ResetLatch(MyLatch);
	}
}

/* ---------------------------------------------------------------- errors -- */

typedef struct FaultArg
{
	int64		shape;
	const char *message;
	char		handle[64];		/* "": it is gone */
} FaultArg;

static void
record_fault(void *arg)
{
	FaultArg   *fault = arg;
	EcmShapeDef *def = ecm_shape_by_id(fault->shape);

	if (def == NULL)
		return;
	strlcpy(fault->handle, def->handle, sizeof(fault->handle));
	set_errored(fault->shape, def->generation, fault->message);
}

/*
 * One shape that raises an error each time would hold all others back for
 * ever, so it is left out from now on.
 */
static void
blame_shape(int64 shape, int sqlerrcode, const char *message)
{
	FaultArg	fault = {shape, message ? message : "unknown error", ""};
	EcmError	err;

	if (shape == 0 || !ecm_is_shapes_fault(sqlerrcode))
		return;
	if (!ecm_worker_try(record_fault, &fault, &err) || fault.handle[0] == '\0')
		return;
	ecm_send_log_signals(&ecm_shared->stacks[args.stack_index],
						 ecm_log_signal_bit(shape));
	ecm_event(MyDatabaseId, ecm_shared->stacks[args.stack_index].datname,
			  "shape_errored", ECM_SEVERITY_WARNING, fault.message,
			  "shape %s has failed and is not followed any more", fault.handle);
}

static int
sqlstate_code(const char *sqlstate)
{
	if (strlen(sqlstate) != 5)
		return ERRCODE_INTERNAL_ERROR;
	return MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2], sqlstate[3], sqlstate[4]);
}

/*
 * An ERROR ends the consumer: its queue and what it had gathered are worth
 * nothing any more, and a new one goes on from what is durable.
 */
static void
end_by_error(void)
{
	int64		shape = ecm_gather_working_on();
	ErrorData  *edata;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(TopMemoryContext);
	EmitErrorReport();
	edata = CopyErrorData();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	RESUME_INTERRUPTS();

	blame_shape(shape, edata->sqlerrcode, edata->message);
	proc_exit(1);
}

/* ----------------------------------------------------------------- main -- */

void
ecm_consumer_main(Datum arg pg_attribute_unused())
{
	EcmError	err;
	XLogRecPtr	position = InvalidXLogRecPtr;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	ecm_worker_init(ecm_shared->stacks[args.stack_index].dboid);
	ecm_worker_set("synchronous_commit", "off");
	before_shmem_exit(at_exit, 0);
	pgstat_report_appname(MyBgworkerEntry->bgw_type);
	pgstat_report_activity(STATE_RUNNING, "reading the shapes");
	CurrentResourceOwner = NULL;
	attach_queue();

	orders_context = AllocSetContextCreate(TopMemoryContext, "electric_cm orders",
										   ALLOCSET_SMALL_SIZES);
	message_context = AllocSetContextCreate(TopMemoryContext, "electric_cm message",
											ALLOCSET_DEFAULT_SIZES);
	relation_context = AllocSetContextCreate(TopMemoryContext, "electric_cm relations",
											 ALLOCSET_DEFAULT_SIZES);
	forget_relations();

	if (!ecm_worker_try(lock_progress, NULL, &err) ||
		!ecm_worker_try(read_progress, &position, &err))
		ereport(FATAL,
				(errmsg("could not start consumer: %s", err.message)));
	ecm_gather_init(args.stack_index, args.worker, position);
	ecm_gather_work_on(0);		/* whatever a predecessor was at */
	ecm_match_init(match_failed);
	if (!ecm_worker_try(note_all_shapes, NULL, &err))
	{
		blame_shape(ecm_gather_working_on(), sqlstate_code(err.sqlstate), err.message);
		ereport(FATAL,
				(errmsg("could not start consumer: %s", err.message)));
	}

	ecm_gather_figures.shapes = count_shapes();

	/* our predecessor committed asynchronously: what we read must be on disk */
	XLogFlush(ecm_end_of_wal());
	announce(position);

	PG_TRY();
	{
		follow_stream();
	}
	PG_CATCH();
	{
		end_by_error();
	}
	PG_END_TRY();
}
