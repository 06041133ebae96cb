/*-------------------------------------------------------------------------
 *
 * consumer.c
 *	  The consumer worker: decodes what the manager feeds it, keeps what its
 *	  shapes want, and appends it to their logs.
 *
 * Entries are gathered in memory, chunk by chunk, over as many upstream
 * transactions as are waiting in the queue; one local transaction then writes
 * the chunks together with this consumer's progress.  It commits
 * asynchronously, and the position is reported as durable once that commit's
 * WAL is flushed: by the WAL writer while there is more to do, by ourselves
 * when the queue runs dry.
 *
 * The invariant that everything rests on: what is in the shape logs, and the
 * row in _electric_cm.progress, change in one transaction.  A transaction
 * that comes again after a reconnection is recognised by its commit LSN.
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
#include "storage/lock.h"
#include "storage/shm_mq.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "consumer.h"
#include "shape.h"
#include "shmem.h"
#include "worker.h"

/* Complete transactions are written when this much has been gathered ... */
#define BATCH_BYTES			(1024 * 1024)
/* ... or after this long, so that readers see a busy stream move. */
#define BATCH_MS			50
/* A transaction that is still coming in is written early beyond this. */
#define SPILL_BYTES			(4 * 1024 * 1024)

/* A chunk in the making. */
typedef struct Chunk
{
	XLogRecPtr	first_lsn;
	int64		first_op;
	int32		entries;
	uint64		xid;			/* captured: of the transaction; else 0 */
	StringInfoData data;
} Chunk;

/* A shape that we follow. */
typedef struct Shape
{
	EcmShapeDef *def;
	MemoryContext context;		/* of def and of this struct */
	bool		capturing;		/* not live yet: chunks carry their xid */
	bool		gone;			/* invalidated: its entries are dropped */

	/* chunks are allocated in batch_context */
	List	   *complete;		/* of complete upstream transactions */
	List	   *open;			/* of the one that is coming in */
	XLogRecPtr	op_lsn;			/* transaction that next_op counts in */
	int64		next_op;
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
	LogicalRepRelation *rel;
	bool		full;			/* old tuples have all columns */
	uint32		shapes_version; /* bindings were made for this one */
	List	   *bindings;
} RelEntry;

/* A local commit whose WAL is not known to be flushed yet. */
typedef struct UnflushedCommit
{
	XLogRecPtr	upstream_lsn;
	XLogRecPtr	local_lsn;
} UnflushedCommit;

static EcmConsumerArgs args;
static char *stack_name;
static shm_mq_handle *queue;

static MemoryContext batch_context; /* chunks */
static MemoryContext message_context;	/* reset after each message */
static MemoryContext relation_context;	/* relation cache */

static List *shapes = NIL;
static uint32 shapes_version = 1;
static HTAB *relations;
/* shapes with complete chunks, and with open ones; in batch_context */
static List *complete_shapes = NIL;
static List *open_shapes = NIL;

/* the stream */
static XLogRecPtr applied_lsn;	/* end of the last upstream commit applied */
static List *unflushed = NIL;	/* of UnflushedCommit, oldest first */

static bool in_transaction;
static bool skipping;			/* it was applied before */
static bool spilling;			/* a local transaction is open for it */
static XLogRecPtr txn_lsn;		/* its commit record */
static uint64 txn_xid;
static List *txn_orders = NIL;	/* our own messages in it, in batch_context */

static Size complete_bytes;		/* gathered in complete chunks */
static Size open_bytes;			/* ... in open ones */
static XLogRecPtr batch_lsn;	/* end of the last complete transaction
								 * gathered, or invalid */
static TimestampTz batch_began;

static EcmLogWriter *writer;
static SPIPlanPtr progress_plan;

static int64 n_transactions;
static int64 n_changes;
static int64 n_matched;

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

		if (shape->def->id == id)
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
	shape->capturing = def->state != ECM_SHAPE_LIVE;
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
	shape->gone = true;
	shapes_version++;
}

static void
remove_gone_shapes(void)
{
	ListCell   *lc;

	foreach(lc, shapes)
	{
		Shape	   *shape = lfirst(lc);

		if (shape->gone)
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

/* ----------------------------------------------------- local transaction -- */

static void
begin_local(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(message_context);
}

static void
save_progress(XLogRecPtr lsn)
{
	Datum		values[2] = {Int32GetDatum(args.worker), LSNGetDatum(lsn)};
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	if (progress_plan == NULL)
	{
		Oid			types[2] = {INT4OID, LSNOID};
		SPIPlanPtr	plan;

		plan = SPI_prepare("INSERT INTO _electric_cm.progress AS p (worker, lsn)"
						   " VALUES ($1, $2)"
						   " ON CONFLICT (worker) DO UPDATE SET lsn = excluded.lsn",
						   2, types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare the progress statement");
		progress_plan = plan;
	}
	if (SPI_execute_plan(progress_plan, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not save progress");
	ecm_spi_end(&spi);
}

/*
 * Commits the local transaction, which carries everything up to 'lsn'.
 */
static void
commit_local(XLogRecPtr lsn)
{
	UnflushedCommit *commit;
	MemoryContext old;

	if (writer != NULL)
	{
		ecm_log_writer_end(writer);
		writer = NULL;
	}
	save_progress(lsn);
	PopActiveSnapshot();
	CommitTransactionCommand();

	old = MemoryContextSwitchTo(TopMemoryContext);
	commit = palloc(sizeof(UnflushedCommit));
	commit->upstream_lsn = lsn;
	commit->local_lsn = XactLastCommitEnd;
	unflushed = lappend(unflushed, commit);
	MemoryContextSwitchTo(old);
	applied_lsn = lsn;
	MemoryContextSwitchTo(message_context);
}

/*
 * Tells the manager how far we are.  With 'flush' our last commit is flushed
 * first: nothing else would for up to three times wal_writer_delay.
 */
static void
report_progress(bool flush)
{
	EcmConsumerSlot *slot = my_slot();
	EcmStack   *stack = &ecm_shared->stacks[args.stack_index];
	XLogRecPtr	flushed;
	XLogRecPtr	durable = InvalidXLogRecPtr;

	if (flush && unflushed != NIL)
		XLogFlush(((UnflushedCommit *) llast(unflushed))->local_lsn);
	flushed = GetFlushRecPtr(NULL);

	while (unflushed != NIL)
	{
		UnflushedCommit *commit = linitial(unflushed);

		if (commit->local_lsn > flushed)
			break;
		durable = commit->upstream_lsn;
		unflushed = list_delete_first(unflushed);
		pfree(commit);
	}
	/* transactions that wrote nothing are as durable as what precedes them */
	if (unflushed == NIL)
		durable = applied_lsn;

	ecm_lock(LW_EXCLUSIVE);
	slot->applied_lsn = Max(slot->applied_lsn, applied_lsn);
	slot->received_lsn = Max(slot->received_lsn, Max(applied_lsn, batch_lsn));
	slot->durable_lsn = Max(slot->durable_lsn, durable);
	slot->shapes = list_length(shapes);
	slot->transactions = n_transactions;
	slot->changes = n_changes;
	slot->matched_changes = n_matched;
	slot->last_progress_at = GetCurrentTimestamp();
	ecm_unlock();

	ConditionVariableBroadcast(&stack->cv);
	ecm_stack_wake(args.stack_index);
}

/* -------------------------------------------------------------- batches -- */

/*
 * Writes a shape's chunks in the open local transaction.
 */
static bool
write_chunks(Shape *shape, List *chunks)
{
	ListCell   *lc;

	if (shape->gone || chunks == NIL)
		return false;
	if (writer == NULL)
		writer = ecm_log_writer_begin();
	foreach(lc, chunks)
	{
		Chunk	   *chunk = lfirst(lc);

		ecm_log_writer_put(writer, shape->def->id, chunk->first_lsn,
						   chunk->first_op, chunk->entries,
						   FullTransactionIdFromU64(chunk->xid),
						   chunk->data.data, chunk->data.len);
	}
	return true;
}

static void
forget_complete(void)
{
	ListCell   *lc;

	foreach(lc, complete_shapes)
		((Shape *) lfirst(lc))->complete = NIL;
	complete_shapes = NIL;
	complete_bytes = 0;
	batch_lsn = InvalidXLogRecPtr;
}

static void
forget_open(void)
{
	ListCell   *lc;

	foreach(lc, open_shapes)
		((Shape *) lfirst(lc))->open = NIL;
	open_shapes = NIL;
	open_bytes = 0;
}

/* The gathering memory can go once nothing is gathered. */
static void
reset_batch_memory(void)
{
	if (complete_shapes != NIL || open_shapes != NIL || txn_orders != NIL)
		return;
	MemoryContextReset(batch_context);
	remove_gone_shapes();
}

/*
 * Commits the complete transactions that have been gathered.  Where none of
 * them left an entry there is nothing to write, not even progress.
 */
static void
commit_complete(void)
{
	ListCell   *lc;
	bool		any = false;

	Assert(!spilling);
	if (XLogRecPtrIsInvalid(batch_lsn))
		return;

	foreach(lc, complete_shapes)
		any |= !((Shape *) lfirst(lc))->gone;
	if (any)
	{
		begin_local();
		foreach(lc, complete_shapes)
			(void) write_chunks(lfirst(lc), ((Shape *) lfirst(lc))->complete);
		commit_local(batch_lsn);
	}
	else
		applied_lsn = batch_lsn;
	forget_complete();
	reset_batch_memory();
}

static void
write_open(void)
{
	ListCell   *lc;

	foreach(lc, open_shapes)
		(void) write_chunks(lfirst(lc), ((Shape *) lfirst(lc))->open);
	forget_open();
}

/*
 * The transaction that is coming in is too large to wait for its end: it gets
 * a local transaction of its own, which stays open until then.
 */
static void
spill_open(void)
{
	if (!spilling)
	{
		commit_complete();
		begin_local();
		spilling = true;
	}
	write_open();
	reset_batch_memory();
}

/*
 * The transaction has come in as a whole: its chunks join the complete ones.
 * Small ones are merged, so that many small transactions make few chunks.
 */
static void
complete_open(XLogRecPtr end_lsn)
{
	ListCell   *lc;
	MemoryContext old = MemoryContextSwitchTo(batch_context);

	if (XLogRecPtrIsInvalid(batch_lsn))
		batch_began = GetCurrentTimestamp();
	batch_lsn = end_lsn;

	foreach(lc, open_shapes)
	{
		Shape	   *shape = lfirst(lc);
		Chunk	   *first = linitial(shape->open);
		Chunk	   *last = shape->complete ? llast(shape->complete) : NULL;

		if (last == NULL)
			complete_shapes = lappend(complete_shapes, shape);
		if (last != NULL && !shape->capturing &&
			last->data.len + first->data.len <= ECM_CHUNK_TARGET)
		{
			appendBinaryStringInfo(&last->data, first->data.data, first->data.len);
			last->entries += first->entries;
			shape->open = list_delete_first(shape->open);
		}
		shape->complete = list_concat(shape->complete, shape->open);
	}
	complete_bytes += open_bytes;
	MemoryContextSwitchTo(old);
	forget_open();
}

/* -------------------------------------------------------------- entries -- */

/*
 * Appends an entry to a shape's open chunks.
 */
static void
emit(Shape *shape, EcmOp op, const EcmValue *newv, const EcmValue *oldv)
{
	int			n = shape->def->ncolumns;
	Size		need = 1;
	Chunk	   *chunk = shape->open ? llast(shape->open) : NULL;
	char	   *to;

	if (shape->op_lsn != txn_lsn)
	{
		shape->op_lsn = txn_lsn;
		shape->next_op = 0;
	}
	if (op != ECM_OP_DELETE)
		need += ecm_chunk_values_size(newv, n);
	if (op != ECM_OP_INSERT)
		need += ecm_chunk_values_size(oldv, oldv ? n : 0);

	if (chunk == NULL || chunk->data.len + need > ECM_CHUNK_TARGET)
	{
		MemoryContext old = MemoryContextSwitchTo(batch_context);

		if (chunk == NULL)
			open_shapes = lappend(open_shapes, shape);
		chunk = palloc0(sizeof(Chunk));
		chunk->first_lsn = txn_lsn;
		chunk->first_op = shape->next_op;
		chunk->xid = shape->capturing ? txn_xid : 0;
		initStringInfo(&chunk->data);
		need += ECM_CHUNK_TXN_SIZE;
		enlargeStringInfo(&chunk->data, need);
		chunk->data.len = ecm_chunk_put_txn(chunk->data.data, txn_lsn, txn_xid,
											shape->next_op) - chunk->data.data;
		open_bytes += chunk->data.len;
		shape->open = lappend(shape->open, chunk);
		MemoryContextSwitchTo(old);
	}
	else
		enlargeStringInfo(&chunk->data, need);

	to = chunk->data.data + chunk->data.len;
	to = ecm_chunk_put_op(to, op);
	if (op != ECM_OP_DELETE)
		to = ecm_chunk_put_values(to, newv, n);
	if (op != ECM_OP_INSERT)
		to = ecm_chunk_put_values(to, oldv, oldv ? n : 0);
	open_bytes += to - (chunk->data.data + chunk->data.len);
	chunk->data.len = to - chunk->data.data;
	chunk->entries++;
	shape->next_op++;
	n_matched++;
}

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
		emit(shape, ECM_OP_UPDATE, new_values, NULL);
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
		emit(shape, ECM_OP_DELETE, NULL, old_values);
		emit(shape, ECM_OP_INSERT, new_values, NULL);
	}
	else
		emit(shape, ECM_OP_UPDATE, new_values, entry->full ? old_values : NULL);
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
	MemoryContext old = MemoryContextSwitchTo(relation_context);
	LogicalRepRelation *rel = logicalrep_read_rel(in);
	RelEntry   *entry;

	entry = hash_search(relations, &rel->remoteid, HASH_ENTER, NULL);
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
map_columns(EcmShapeDef *def, LogicalRepRelation *rel)
{
	int		   *map = MemoryContextAlloc(relation_context,
										 sizeof(int) * def->ncolumns);

	for (int i = 0; i < def->ncolumns; i++)
	{
		map[i] = -1;
		for (int j = 0; j < rel->natts && map[i] < 0; j++)
			if (strcmp(def->column_names[i], rel->attnames[j]) == 0 &&
				def->column_types[i] == rel->atttyps[j])
				map[i] = j;
		if (map[i] < 0)
			return NULL;
	}
	return map;
}

typedef struct AncestorsArg
{
	Oid			relid;
	List	   *ancestors;		/* in relation_context */
} AncestorsArg;

static void
read_ancestors(void *arg)
{
	AncestorsArg *a = arg;
	List	   *ancestors = NIL;

	/* the relation may be gone by now; then so are its shapes */
	if (get_rel_relispartition(a->relid))
		ancestors = get_partition_ancestors(a->relid);
	MemoryContextSwitchTo(relation_context);
	a->ancestors = lappend_oid(list_copy(ancestors), a->relid);
}

/* An order to do to a shape what a message from the stream would. */
static void
queue_order(const char *text)
{
	MemoryContext old = MemoryContextSwitchTo(batch_context);

	txn_orders = lappend(txn_orders, pstrdup(text));
	MemoryContextSwitchTo(old);
}

/*
 * Which shapes want this relation's changes?
 */
static void
bind_relation(RelEntry *entry)
{
	AncestorsArg arg = {entry->relid, NIL};
	ListCell   *lc;

	if (spilling)
		read_ancestors(&arg);
	else
	{
		EcmError	err;

		if (!ecm_worker_try(read_ancestors, &arg, &err))
			elog(ERROR, "could not look up relation %u: %s",
				 entry->relid, err.message);
	}
	MemoryContextSwitchTo(message_context);

	entry->bindings = NIL;
	foreach(lc, shapes)
	{
		Shape	   *shape = lfirst(lc);
		int		   *map;

		if (shape->gone || !list_member_oid(arg.ancestors, shape->def->relation))
			continue;
		map = map_columns(shape->def, entry->rel);
		if (map == NULL)
		{
			queue_order(psprintf("mismatch " INT64_FORMAT, shape->def->id));
			mark_shape_gone(shape);
		}
		else
		{
			MemoryContext old = MemoryContextSwitchTo(relation_context);
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
	Shape	   *shape = find_shape(id);

	if (shape != NULL)
		mark_shape_gone(shape); /* an earlier attempt */
	(void) ecm_log_delete(id);
	run_on_shape("INSERT INTO _electric_cm.shape_state (shape, state, generation)"
				 " VALUES ($1, 'capturing', $2) ON CONFLICT (shape) DO UPDATE"
				 " SET state = 'capturing', generation = excluded.generation",
				 id, generation);
	CommandCounterIncrement();
	shape = load_shape(id);
	if (shape != NULL && shape->def->generation != generation)
		mark_shape_gone(shape); /* a later attempt is on its way */
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

	if (shape == NULL || shape->gone || !shape->capturing ||
		shape->def->generation != generation)
		return;
	ecm_log_settle_captured(id, snapshot);
	run_on_shape("INSERT INTO _electric_cm.shape_state (shape, state, generation, live_at)"
				 " VALUES ($1, 'live', $2, pg_catalog.clock_timestamp())"
				 " ON CONFLICT (shape) DO UPDATE SET state = 'live',"
				 " generation = excluded.generation, live_at = excluded.live_at",
				 id, generation);
	shape->capturing = false;
}

static void
obey_order(const char *text)
{
	int64		id;
	int			generation;
	int			n = 0;
	Shape	   *shape;

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
	else if (sscanf(text, "mismatch " INT64_FORMAT, &id) == 1)
		(void) ecm_shape_invalidate_nowait(id, "the table's columns have changed");
	else if (sscanf(text, "truncate " INT64_FORMAT, &id) == 1)
		(void) ecm_shape_invalidate_nowait(id, "the table was truncated");
}

/* ------------------------------------------------------------- messages -- */

static void
handle_begin(StringInfo in)
{
	LogicalRepBeginData begin;

	logicalrep_read_begin(in, &begin);
	in_transaction = true;
	skipping = begin.final_lsn < Max(applied_lsn, batch_lsn);
	txn_lsn = begin.final_lsn;
	txn_xid = ecm_widen_xid(begin.xid,
							U64FromFullTransactionId(ReadNextFullTransactionId()));
}

/*
 * The upstream transaction is complete.  Usually it joins the batch; one that
 * was spilled, or that has orders for us, is committed by itself.
 */
static void
handle_commit(StringInfo in)
{
	LogicalRepCommitData commit;
	ListCell   *lc;

	logicalrep_read_commit(in, &commit);
	in_transaction = false;
	if (skipping)
		return;
	n_transactions++;

	if (!spilling && txn_orders == NIL)
	{
		complete_open(commit.end_lsn);
		if (complete_bytes >= BATCH_BYTES ||
			TimestampDifferenceExceeds(batch_began, GetCurrentTimestamp(), BATCH_MS))
		{
			commit_complete();
			report_progress(false);
		}
		return;
	}

	if (!spilling)
	{
		commit_complete();
		begin_local();
	}
	spilling = false;
	write_open();
	foreach(lc, txn_orders)
	{
		obey_order(lfirst(lc));
		MemoryContextSwitchTo(message_context);
	}
	commit_local(commit.end_lsn);
	txn_orders = NIL;
	reset_batch_memory();
	report_progress(false);
}

static void
handle_change(StringInfo in, LogicalRepMsgType type)
{
	LogicalRepTupleData oldtup;
	LogicalRepTupleData newtup;
	RelEntry   *entry;
	bool		has_old = false;
	ListCell   *lc;

	n_changes++;
	if (type == LOGICAL_REP_MSG_INSERT)
		entry = find_relation(logicalrep_read_insert(in, &newtup));
	else if (type == LOGICAL_REP_MSG_UPDATE)
		entry = find_relation(logicalrep_read_update(in, &has_old, &oldtup, &newtup));
	else
		entry = find_relation(logicalrep_read_delete(in, &oldtup));

	foreach(lc, entry->bindings)
	{
		Binding    *binding = lfirst(lc);

		switch (type)
		{
			case LOGICAL_REP_MSG_INSERT:
				shape_values(binding, entry, &newtup, false, new_values);
				emit(binding->shape, ECM_OP_INSERT, new_values, NULL);
				break;
			case LOGICAL_REP_MSG_UPDATE:
				emit_update(binding, entry, has_old, &oldtup, &newtup);
				break;
			default:
				shape_values(binding, entry, &oldtup, !entry->full, old_values);
				emit(binding->shape, ECM_OP_DELETE, NULL, old_values);
				break;
		}
	}
	if (open_bytes >= SPILL_BYTES)
		spill_open();
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
	if ((flags & 1) != 0 && strcmp(prefix, ECM_MESSAGE_PREFIX) == 0)
		queue_order(pnstrdup(pq_getmsgbytes(in, size), size));
}

/*
 * The stream has been lost.  What is complete is kept, the rest comes again.
 */
static void
obey_reset(uint32 number)
{
	EcmConsumerSlot *slot = my_slot();

	if (spilling)
	{
		/* the log writer's resources go with the transaction */
		writer = NULL;
		AbortCurrentTransaction();
		spilling = false;
	}
	forget_open();
	txn_orders = NIL;
	in_transaction = false;
	commit_complete();
	forget_relations();
	report_progress(true);

	ecm_lock(LW_EXCLUSIVE);
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

/* ----------------------------------------------------------------- main -- */

static void
read_progress(void *arg pg_attribute_unused())
{
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

		applied_lsn = DatumGetLSN(SPI_getbinval(SPI_tuptable->vals[0],
												SPI_tuptable->tupdesc, 1, &isnull));
	}
	ecm_spi_end(&spi);
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
announce(void)
{
	EcmConsumerSlot *slot = my_slot();

	ecm_lock(LW_EXCLUSIVE);
	slot->pid = MyProcPid;
	slot->shapes = list_length(shapes);
	slot->received_lsn = slot->applied_lsn = slot->durable_lsn = applied_lsn;
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
 * Everything that is complete is written before we sleep: an idle consumer
 * owes nobody anything.
 */
static void
settle(void)
{
	if (!spilling)
		commit_complete();
	report_progress(true);
	pgstat_report_stat(false);
}

void
ecm_consumer_main(Datum arg pg_attribute_unused())
{
	EcmError	err;
	XLogRecPtr	reported_lsn;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	ecm_lock(LW_SHARED);
	stack_name = pstrdup(ecm_shared->stacks[args.stack_index].datname);
	ecm_unlock();

	ecm_worker_init(ecm_shared->stacks[args.stack_index].dboid);
	ecm_worker_set("synchronous_commit", "off");
	before_shmem_exit(at_exit, 0);
	CurrentResourceOwner = NULL;
	attach_queue();

	batch_context = AllocSetContextCreate(TopMemoryContext, "electric_cm batch",
										  ALLOCSET_DEFAULT_SIZES);
	message_context = AllocSetContextCreate(TopMemoryContext, "electric_cm message",
											ALLOCSET_DEFAULT_SIZES);
	relation_context = AllocSetContextCreate(TopMemoryContext, "electric_cm relations",
											 ALLOCSET_DEFAULT_SIZES);
	forget_relations();

	if (!ecm_worker_try(lock_progress, NULL, &err) ||
		!ecm_worker_try(read_progress, NULL, &err) ||
		!ecm_worker_try(load_all_shapes, NULL, &err))
		ereport(FATAL,
				(errmsg("could not start consumer: %s", err.message)));
	announce();
	pgstat_report_appname(MyBgworkerEntry->bgw_type);
	reported_lsn = applied_lsn;

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
			MemoryContextReset(message_context);
			continue;
		}

		if (!XLogRecPtrIsInvalid(batch_lsn) || unflushed != NIL ||
			reported_lsn != applied_lsn)
		{
			settle();
			reported_lsn = applied_lsn;
			continue;			/* more may have come in meanwhile */
		}
		if (result == SHM_MQ_DETACHED)
			proc_exit(0);		/* the manager is gone; all is settled */

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, 0,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}
