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
#include "shape.h"
#include "shmem.h"
#include "wal.h"
#include "worker.h"

/* A shape that we follow. */
typedef struct Shape
{
	EcmShapeDef *def;
	MemoryContext context;		/* of def and of this struct */
	EcmShapeBuffer buffer;
} Shape;

/* A shape's view of a relation in the stream. */
typedef struct Binding
{
	Shape	   *shape;
	int		   *map;			/* shape's column -> relation's column */
} Binding;

typedef struct RelEntry
{
	LogicalRepRelId relid;		/* hash key */
	MemoryContext context;		/* of all that follows */
	LogicalRepRelation *rel;
	bool		full;			/* old tuples have all columns */
	uint32		shapes_version; /* bindings were made for this one */
	List	   *bindings;
} RelEntry;

static EcmConsumerArgs args;
static char *message_prefix;	/* of our own messages in the stream */
static shm_mq_handle *queue;

static MemoryContext orders_context;	/* reset after each transaction */
static MemoryContext message_context;	/* reset after each message */
static MemoryContext relation_context;	/* relation cache */

static List *shapes = NIL;
static uint32 shapes_version = 1;
static HTAB *relations;
/* the upstream transaction that is coming in */
static TransactionId upstream_xid;
static bool skipping;			/* it was applied before */
static List *txn_orders = NIL;	/* our own messages in it, in orders_context */

/* scratch space for one change */
static EcmValue *new_values;
static EcmValue *old_values;
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
	max_values = ncolumns * 2;
	if (new_values)
	{
		pfree(new_values);
		pfree(old_values);
	}
	new_values = MemoryContextAlloc(TopMemoryContext, sizeof(EcmValue) * max_values);
	old_values = MemoryContextAlloc(TopMemoryContext, sizeof(EcmValue) * max_values);
}

static Shape *
find_shape(int64 id)
{
	ListCell   *lc;

	foreach(lc, shapes)
	{
		Shape	   *shape = lfirst(lc);

		if (shape->def->id == id && !shape->buffer.gone)
			return shape;
	}
	return NULL;
}

/*
 * Takes a shape up; def lives in 'context', which becomes the shape's.
 */
static Shape *
add_shape(EcmShapeDef *def, MemoryContext context)
{
	Shape	   *shape = MemoryContextAllocZero(context, sizeof(Shape));
	MemoryContext old;

	shape->def = def;
	shape->context = context;
	shape->buffer.shape = def->id;
	shape->buffer.ncolumns = def->ncolumns;
	shape->buffer.capturing = def->state != ECM_SHAPE_LIVE;
	ensure_scratch(def->ncolumns);

	old = MemoryContextSwitchTo(TopMemoryContext);
	shapes = lappend(shapes, shape);
	MemoryContextSwitchTo(old);
	shapes_version++;
	return shape;
}

/*
 * Gathered entries of a shape that is gone are not written; the struct itself
 * goes when no chunk list refers to it any more.
 */
static void
mark_shape_gone(Shape *shape)
{
	shape->buffer.gone = true;
	shapes_version++;
}

static void
remove_gone_shapes(void)
{
	ListCell   *lc;

	foreach(lc, shapes)
	{
		Shape	   *shape = lfirst(lc);

		if (shape->buffer.gone)
		{
			shapes = foreach_delete_current(shapes, lc);
			MemoryContextDelete(shape->context);
		}
	}
}

/*
 * Loads a shape's definition; in a transaction.  Returns NULL if it is gone.
 */
static Shape *
load_shape(int64 id)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "electric_cm shape",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	EcmShapeDef *def = ecm_shape_by_id(id);

	MemoryContextSwitchTo(old);
	if (def != NULL)
		return add_shape(def, context);
	MemoryContextDelete(context);
	return NULL;
}

/* All shapes that are ours; in a transaction, at start. */
static void
load_all_shapes(void *arg pg_attribute_unused())
{
	ListCell   *lc;

	foreach(lc, ecm_shapes_of_worker(args.worker))
		(void) load_shape(((EcmShapeDef *) lfirst(lc))->id);
}

/* -------------------------------------------------------------- changes -- */

/*
 * The shape's columns of a tuple from the stream.  Columns that an old key
 * does not carry are "unchanged", not null.
 */
static void
shape_values(Binding *binding, RelEntry *entry, LogicalRepTupleData *tuple,
			 bool old_key, EcmValue *values)
{
	for (int i = 0; i < binding->shape->def->ncolumns; i++)
	{
		int			col = binding->map[i];
		EcmValue   *value = &values[i];

		value->text = NULL;
		value->len = 0;
		if (col >= tuple->ncols)
			elog(ERROR, "tuple of relation %u has %d columns, need %d",
				 entry->relid, tuple->ncols, col + 1);
		if (old_key && !bms_is_member(col, entry->rel->attkeys))
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

/*
 * An update that changes the key is a delete and an insert.  A TOASTed value
 * that did not change is not in the new tuple; a full old tuple has it.
 */
static void
emit_update(Binding *binding, RelEntry *entry, bool has_old,
			LogicalRepTupleData *oldtup, LogicalRepTupleData *newtup)
{
	Shape	   *shape = binding->shape;
	bool		key_changed = false;

	shape_values(binding, entry, newtup, false, new_values);
	if (!has_old)
	{
		ecm_gather_entry(&shape->buffer, ECM_OP_UPDATE, new_values, NULL);
		return;
	}

	shape_values(binding, entry, oldtup, !entry->full, old_values);
	for (int i = 0; i < shape->def->ncolumns; i++)
		if (new_values[i].kind == ECM_VALUE_UNCHANGED)
			new_values[i] = old_values[i];
	for (int i = 0; i < shape->def->nkeys; i++)
	{
		int			k = shape->def->key_positions[i];

		key_changed |= !same_value(&new_values[k], &old_values[k]);
	}
	if (key_changed)
	{
		ecm_gather_entry(&shape->buffer, ECM_OP_DELETE, NULL, old_values);
		ecm_gather_entry(&shape->buffer, ECM_OP_INSERT, new_values, NULL);
	}
	else
		ecm_gather_entry(&shape->buffer, ECM_OP_UPDATE, new_values, entry->full ? old_values : NULL);
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
	entry->shapes_version = 0;
	entry->bindings = NIL;
	MemoryContextSwitchTo(old);
}

/*
 * Maps a shape's columns to a relation's by name (a partition may have its
 * columns in another order).  NULL: one is missing.
 */
static int *
map_columns(EcmShapeDef *def, LogicalRepRelation *rel, MemoryContext context)
{
	int		   *map = MemoryContextAlloc(context, sizeof(int) * def->ncolumns);

	for (int i = 0; i < def->ncolumns; i++)
	{
		map[i] = -1;
		for (int j = 0; j < rel->natts && map[i] < 0; j++)
			if (strcmp(def->column_names[i], rel->attnames[j]) == 0 &&
				def->column_types[i] == rel->atttyps[j])
				map[i] = j;
		if (map[i] < 0)
		{
			pfree(map);
			return NULL;
		}
	}
	return map;
}

/*
 * Old tuples carry the replica identity's columns only.  Should those not
 * include the shape's key any more, its log can't be continued.
 */
static bool
identity_has_key(EcmShapeDef *def, RelEntry *entry)
{
	for (int i = 0; i < def->nkeys && !entry->full; i++)
	{
		const char *key = def->column_names[def->key_positions[i]];
		bool		found = false;

		for (int j = 0; j < entry->rel->natts; j++)
			found |= strcmp(entry->rel->attnames[j], key) == 0 &&
				bms_is_member(j, entry->rel->attkeys);
		if (!found)
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

/* They are made anew with every shape that comes or goes. */
static void
forget_bindings(RelEntry *entry)
{
	ListCell   *lc;

	foreach(lc, entry->bindings)
		pfree(((Binding *) lfirst(lc))->map);
	list_free_deep(entry->bindings);
	entry->bindings = NIL;
}

/*
 * Which shapes want this relation's changes?
 */
static void
bind_relation(RelEntry *entry)
{
	AncestorsArg arg = {entry->relid, NIL};
	ListCell   *lc;

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

	forget_bindings(entry);
	foreach(lc, shapes)
	{
		Shape	   *shape = lfirst(lc);
		int		   *map;

		if (shape->buffer.gone || !list_member_oid(arg.ancestors, shape->def->relation))
			continue;
		map = identity_has_key(shape->def, entry) ?
			map_columns(shape->def, entry->rel, entry->context) : NULL;
		if (map == NULL)
		{
			/* not bound; comes again if this transaction does */
			queue_order(psprintf("mismatch " INT64_FORMAT, shape->def->id));
		}
		else
		{
			MemoryContext old = MemoryContextSwitchTo(entry->context);
			Binding    *binding = palloc(sizeof(Binding));

			binding->shape = shape;
			binding->map = map;
			entry->bindings = lappend(entry->bindings, binding);
			MemoryContextSwitchTo(old);
		}
	}
	entry->shapes_version = shapes_version;
}

static RelEntry *
find_relation(LogicalRepRelId relid)
{
	RelEntry   *entry = hash_search(relations, &relid, HASH_FIND, NULL);

	if (entry == NULL)
		elog(ERROR, "change of relation %u, which the stream has not described",
			 relid);
	if (entry->shapes_version != shapes_version)
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

/*
 * From here on the shape's changes are logged, each transaction's in chunks of
 * its own, since the snapshot decides later which of them count.
 */
static void
obey_capture(int64 id, int generation)
{
	EcmShapeDef *def = ecm_shape_by_id(id);
	Shape	   *shape;

	if (def == NULL || def->worker != args.worker ||
		def->generation != generation)
		return;					/* gone, another's, or a later attempt is coming */

	shape = find_shape(id);
	if (shape != NULL)
		mark_shape_gone(shape); /* an earlier attempt */
	(void) ecm_log_delete(id);
	run_on_shape("INSERT INTO _electric_cm.shape_state (shape, state, generation)"
				 " VALUES ($1, 'capturing', $2) ON CONFLICT (shape) DO UPDATE"
				 " SET state = 'capturing', generation = excluded.generation",
				 id, generation);
	CommandCounterIncrement();
	(void) load_shape(id);
}

/*
 * The snapshot is committed.  This message came with that commit, so every
 * transaction that the snapshot saw has been met before: what was captured of
 * those is dropped, all else stays, and nothing later needs to be looked at.
 */
static void
obey_live(int64 id, int generation, const char *snapshot)
{
	Shape	   *shape = find_shape(id);

	if (shape == NULL || !shape->buffer.capturing ||
		shape->def->generation != generation)
		return;

	/* its commit can be decoded a moment before others can see its rows */
	XactLockTableWait(upstream_xid, NULL, NULL, XLTW_None);
	ecm_log_settle_captured(id, snapshot);
	run_on_shape("INSERT INTO _electric_cm.shape_state (shape, state, generation, live_at)"
				 " VALUES ($1, 'live', $2, pg_catalog.clock_timestamp())"
				 " ON CONFLICT (shape) DO UPDATE SET state = 'live',"
				 " generation = excluded.generation, live_at = excluded.live_at",
				 id, generation);
	shape->buffer.capturing = false;
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
	Shape	   *shape = find_shape(id);

	if (shape == NULL)
		return;
	set_errored(id, shape->def->generation, reason);
	(void) ecm_shape_invalidate_nowait(id, reason);
	mark_shape_gone(shape);
}

/*
 * The snapshot can't be taken.  An attempt that was made since is another matter.
 */
static void
obey_fail(int64 id, int generation, const char *reason)
{
	EcmShapeDef *def = ecm_shape_by_id(id);
	Shape	   *shape = find_shape(id);

	if (def == NULL || def->worker != args.worker || def->generation != generation)
		return;
	set_errored(id, generation, reason);
	if (shape != NULL)
		mark_shape_gone(shape);
}

/* The first number of every order of ours is the shape's id. */
static void
obey_order(const char *text)
{
	int64		id;
	int			generation;
	int			n = 0;
	Shape	   *shape;

	if (strncmp(text, "create ", strlen("create ")) == 0)
		return;					/* the manager's */
	if (sscanf(text, "%*s " INT64_FORMAT, &id) == 1)
		ecm_gather_work_on(id);
	if (sscanf(text, "capture " INT64_FORMAT " %d", &id, &generation) == 2)
		obey_capture(id, generation);
	else if (sscanf(text, "live " INT64_FORMAT " %d %n", &id, &generation, &n) == 2 &&
			 n > 0)
		obey_live(id, generation, text + n);
	else if (sscanf(text, "drop " INT64_FORMAT, &id) == 1)
	{
		shape = find_shape(id);
		if (shape != NULL)
			mark_shape_gone(shape);
	}
	else if (sscanf(text, "fail " INT64_FORMAT " %d %n", &id, &generation, &n) == 2 &&
			 n > 0)
		obey_fail(id, generation, text + n);
	else if (sscanf(text, "mismatch " INT64_FORMAT, &id) == 1)
		give_up(id, "the table's columns or its replica identity have changed");
	else if (sscanf(text, "truncate " INT64_FORMAT, &id) == 1)
		give_up(id, "the table was truncated");
	ecm_gather_work_on(0);
}

/* ------------------------------------------------------------- messages -- */

static void
handle_begin(StringInfo in)
{
	LogicalRepBeginData begin;
	FullTransactionId next = ReadNextFullTransactionId();

	logicalrep_read_begin(in, &begin);
	upstream_xid = begin.xid;
	skipping = begin.final_lsn < ecm_gather_position();
	ecm_gather_begin(begin.final_lsn,
					 ecm_widen_xid(begin.xid, U64FromFullTransactionId(next)));
}

static void
obey_orders(void)
{
	ListCell   *lc;

	foreach(lc, txn_orders)
	{
		obey_order(lfirst(lc));
		MemoryContextSwitchTo(message_context);
	}
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
	ecm_gather_figures.shapes = list_length(shapes);
	ecm_gather_commit(commit.end_lsn, txn_orders != NIL ? obey_orders : NULL);
	if (txn_orders != NIL)
		forget_orders();
	if (ecm_gather_is_empty())
		remove_gone_shapes();
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
		Binding    *binding = lfirst(lc);

		ecm_gather_work_on(binding->shape->def->id);
		switch (type)
		{
			case LOGICAL_REP_MSG_INSERT:
				shape_values(binding, entry, &newtup, false, new_values);
				ecm_gather_entry(&binding->shape->buffer, ECM_OP_INSERT, new_values, NULL);
				break;
			case LOGICAL_REP_MSG_UPDATE:
				emit_update(binding, entry, has_old, &oldtup, &newtup);
				break;
			default:
				shape_values(binding, entry, &oldtup, !entry->full, old_values);
				ecm_gather_entry(&binding->shape->buffer, ECM_OP_DELETE, NULL, old_values);
				break;
		}
	}
	if (entry->bindings != NIL)
		ecm_gather_work_on(0);
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
			queue_order(psprintf("truncate " INT64_FORMAT,
								 ((Binding *) lfirst(lc2))->shape->def->id));
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
		queue_order(pnstrdup(pq_getmsgbytes(in, size), size));
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
	remove_gone_shapes();

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
 * we wait until it is gone.  The lock is a session's and dies with it; its
 * class is one that SQL's advisory lock functions don't use.
 */
#define CONSUMER_LOCK_CLASS	3

static void
lock_progress(void *arg pg_attribute_unused())
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, args.worker, CONSUMER_LOCK_CLASS);
	(void) LockAcquire(&tag, ExclusiveLock, true, false);
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
	slot->shapes = list_length(shapes);
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

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, 0,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/* ---------------------------------------------------------------- errors -- */

/*
 * Is an error that was raised while we worked on one shape to be blamed on
 * that shape?  Not if it would have hit any other as well.
 */
static bool
is_shapes_fault(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_CONNECTION_EXCEPTION:
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
			return false;
		default:
			return true;
	}
}

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
 * An ERROR ends the consumer: its queue and what it had gathered are worth
 * nothing any more, and a new one goes on from what is durable.  One shape that
 * raises an error each time would thus hold all others back for ever, so it is
 * left out from now on.
 */
static void
end_by_error(void)
{
	EcmStack   *stack = &ecm_shared->stacks[args.stack_index];
	int64		shape = ecm_gather_working_on();
	ErrorData  *edata;
	EcmError	err;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(TopMemoryContext);
	EmitErrorReport();
	edata = CopyErrorData();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	RESUME_INTERRUPTS();

	if (shape != 0 && is_shapes_fault(edata->sqlerrcode))
	{
		FaultArg	fault = {shape, edata->message ? edata->message : "unknown error", ""};

		if (ecm_worker_try(record_fault, &fault, &err) && fault.handle[0] != '\0')
			ecm_event(MyDatabaseId, stack->datname, "shape_errored",
					  ECM_SEVERITY_WARNING, fault.message,
					  "shape %s has failed and is not followed any more", fault.handle);
	}
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
		!ecm_worker_try(read_progress, &position, &err) ||
		!ecm_worker_try(load_all_shapes, NULL, &err))
		ereport(FATAL,
				(errmsg("could not start consumer: %s", err.message)));

	/* our predecessor committed asynchronously: what we read must be on disk */
	XLogFlush(ecm_end_of_wal());
	ecm_gather_init(args.stack_index, args.worker, position);
	announce(position);
	ecm_gather_work_on(0);		/* whatever a predecessor was at */
	pgstat_report_appname(MyBgworkerEntry->bgw_type);

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
