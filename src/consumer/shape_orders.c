/*-------------------------------------------------------------------------
 *
 * shape_orders.c
 *	  Orders: what is to be done to shapes where the transaction that is
 *	  coming in commits.
 *
 * Orders arrive as messages in transactions of other processes of the stack, or
 * the consumer gives them to itself on what it meets in the stream.  They take
 * effect where the transaction commits, neither earlier nor later.  So a consumer
 * that starts anew, and meets the transaction again, comes to the same result.
 *
 * A message may have been forged by somebody who reads the WAL and knows the
 * prefix.  So an order is obeyed only if the catalog agrees with it: the shape's
 * row says that this transaction has given the order, or the row is gone.  An order
 * that the catalog does not confirm is ignored without an error, since an error
 * would let a stranger end consumers.  (See stream_message.h.)
 *
 * The catalog is read with the snapshot of now, while the stream may be far behind.
 * So an order may find its shape in a later attempt, in another consumer's hands
 * or dropped; then it is left to the later order.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/errors.h"
#include "base/event.h"
#include "base/spi.h"
#include "base/stream_message.h"
#include "base/stream_message_io.h"
#include "consumer/current_shape.h"
#include "consumer/followed_shapes.h"
#include "consumer/judge_captured.h"
#include "consumer/log_batch.h"
#include "consumer/order_shapes.h"
#include "consumer/shape_orders.h"
#include "shape/arrays.h"
#include "shape/shape.h"
#include "shape/shape_catalog.h"
#include "shape/shape_fate.h"
#include "shape/shape_gap.h"
#include "shape/shape_log.h"

typedef enum OrderKind
{
	ORDER_MESSAGE,				/* what the message says */
	ORDER_ERRORED,				/* a shape ends with an error */
	ORDER_RESYNCED,				/* gaps were closed: only to be reported */
	ORDER_GAP,					/* gaps have begun: the manager is to be told */
	ORDER_TRUNCATED,			/* a table's shapes are resynced, if any is
								 * left */
	ORDER_MISMATCH,				/* those of one layout, likewise */
	ORDER_LACKING				/* a shape, likewise */
} OrderKind;

typedef struct Order
{
	OrderKind	kind;
	EcmStreamMessage *message;	/* message: what it says, copied */

	/* errored, lacking */
	int64		shape;
	int			generation;		/* attempt that the error was raised in */
	const char *reason;			/* errored: tagged, see errors.h */
	const char *handle;			/* the shape's, if obeying has made it
								 * errored; else NULL: there is nothing to
								 * report */

	EcmClosedGaps closed;		/* resynced */

	/* truncated, mismatch */
	Oid			table;
	int			layout;			/* mismatch: number in the table's list */
	Oid			relation;		/* ... and what the stream has described */
} Order;

static struct
{
	int			stack_index;
	int			worker;			/* this consumer's number */
	MemoryContext context;		/* reset after each upstream transaction */
	List	   *list;			/* of Order, in 'context': those of the
								 * upstream transaction that is coming in */
}			orders;

void
ecm_orders_init(int index, int worker_number)
{
	orders.stack_index = index;
	orders.worker = worker_number;
	orders.context = AllocSetContextCreate(TopMemoryContext, "electric_cm orders",
										   ALLOCSET_SMALL_SIZES);
}

/* Copies the order and all that it refers to, for the time of the commit. */
static void
add_order(const Order *order)
{
	MemoryContext old = MemoryContextSwitchTo(orders.context);
	Order	   *copy = palloc(sizeof(Order));

	*copy = *order;
	if (order->message != NULL)
		copy->message = ecm_message_copy(order->message);
	if (order->reason != NULL)
		copy->reason = pstrdup(order->reason);
	orders.list = lappend(orders.list, copy);
	MemoryContextSwitchTo(old);
}

void
ecm_orders_add_truncated(Oid table)
{
	Order		order = {.kind = ORDER_TRUNCATED, .table = table};

	add_order(&order);
}

void
ecm_orders_add_lacking(int64 shape, int generation, const char *column)
{
	Order		order = {.kind = ORDER_LACKING, .shape = shape, .generation = generation};

	order.reason = psprintf("an update moved a row into the shape, and the stream lacks its value of column \"%s\", which needs REPLICA IDENTITY FULL",
							column);
	add_order(&order);
}

void
ecm_orders_add_mismatch(Oid table, int layout, Oid relation)
{
	Order		order = {.kind = ORDER_MISMATCH, .table = table, .layout = layout,
	.relation = relation};

	add_order(&order);
}

void
ecm_orders_add_errored(int64 shape, int generation, const char *reason)
{
	Order		order = {.kind = ORDER_ERRORED, .shape = shape,
	.generation = generation, .reason = reason};

	add_order(&order);
}

static void
add_resynced(const EcmClosedGaps *closed)
{
	Order		order = {.kind = ORDER_RESYNCED, .closed = *closed};
	MemoryContext old = MemoryContextSwitchTo(orders.context);

	order.closed.handle = pstrdup(closed->handle ? closed->handle : "");
	order.closed.reason = pstrdup(closed->reason ? closed->reason : "");
	MemoryContextSwitchTo(old);
	add_order(&order);
}

void
ecm_orders_add_message(const EcmStreamMessage *message)
{
	Order		order = {.kind = ORDER_MESSAGE,
	.message = unconstify(EcmStreamMessage *, message)};

	add_order(&order);
}

bool
ecm_orders_any(void)
{
	return orders.list != NIL;
}

/* Runs an INSERT with a shape's id and generation as $1 and $2. */
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

typedef struct CaptureArg
{
	HTAB	   *wanted;			/* of WantedShape */
	EcmOrderShapes captured;	/* those that this consumer captures from now */
} CaptureArg;

/* A shape that an order to capture names. */
typedef struct WantedShape
{
	int64		id;				/* hash key */
	int			generation;
} WantedShape;

/*
 * Begins to capture a shape, if it is this consumer's.  What an earlier attempt
 * has captured is deleted: it may lack changes from between the attempts.
 */
static void
capture_shape(const EcmShapeDef *def, void *arg)
{
	CaptureArg *capture = arg;
	WantedShape *wanted = hash_search(capture->wanted, &def->id, HASH_FIND, NULL);
	EcmShape   *shape;

	if (wanted == NULL || def->generation != wanted->generation ||
		def->state != ECM_SHAPE_CREATING || def->worker != orders.worker || ecm_log_batch_is_past(def->skip_until))
		return;					/* a later attempt's order is coming, or it is
								 * another consumer's, or logged already */

	shape = ecm_followed_find(def->id);
	if (shape != NULL)
		ecm_unfollow(shape);	/* an earlier attempt */
	if (!XLogRecPtrIsInvalid(def->gap_lsn))
		ecm_log_delete_after_gap(def->id, def->gap_lsn);
	else if (def->noted)
		(void) ecm_log_delete(def->id);
	ecm_follow_shape(def);
	ecm_order_shapes_add(&capture->captured, def->id, def->generation, 0);
}

/*
 * Message "capture": from here on the shapes' changes are logged, each
 * transaction's in chunks of its own, since the snapshot will decide for each
 * transaction whether its changes count.
 */
static void
obey_capture(const EcmStreamMessage *message)
{
	static struct _SPI_plan *plan;
	EcmOrderShapes list = ecm_order_shapes_meant(message);
	CaptureArg	arg = {.captured = ecm_order_shapes_create(list.n)};
	HASHCTL		ctl = {.keysize = sizeof(int64), .entrysize = sizeof(WantedShape),
	.hcxt = CurrentMemoryContext};

	if (list.n == 0)
		return;
	arg.wanted = hash_create("electric_cm shapes to capture", list.n, &ctl,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (int i = 0; i < list.n; i++)
	{
		int64		id = DatumGetInt64(list.ids[i]);
		WantedShape *wanted = hash_search(arg.wanted, &id, HASH_ENTER, NULL);

		wanted->generation = DatumGetInt32(list.generations[i]);
	}

	PushActiveSnapshot(GetLatestSnapshot());
	ecm_shapes_by_ids(DatumGetArrayTypeP(ecm_array_of_int8(list.ids, list.n)), capture_shape, &arg);
	PopActiveSnapshot();
	ecm_order_shapes_set_states(&plan,
								"INSERT INTO _electric_cm.shape_state (shape, state, generation)"
								" SELECT id, 'capturing', generation FROM unnest($1, $2) AS s (id, generation)"
								" ON CONFLICT (shape) DO UPDATE"
								" SET state = 'capturing', generation = excluded.generation",
								&arg.captured);
	CommandCounterIncrement();
	hash_destroy(arg.wanted);
}

/*
 * The shape, if an order that tells of its rows concerns it: it is being captured, in
 * that generation, and the order is not one that a former consumer has obeyed.
 */
static EcmShape *
find_capturing(Datum id, Datum generation)
{
	EcmShape   *shape = ecm_followed_find(DatumGetInt64(id));

	if (shape == NULL || !shape->buffer.capturing ||
		shape->generation != DatumGetInt32(generation) || ecm_log_batch_is_past(shape->skip_until))
		return NULL;
	return shape;
}

/*
 * Messages "piece" and "again": some rows have been read, and the rows are committed
 * with the message.  So the stream has brought every transaction before it that the
 * snapshot of these rows has seen.
 */
static void
obey_rows(const EcmStreamMessage *message)
{
	EcmOrderShapes list = ecm_order_shapes_meant(message);

	for (int i = 0; i < list.n; i++)
	{
		EcmShape   *shape = find_capturing(list.ids[i], list.generations[i]);
		const char *reason = NULL;

		if (shape == NULL)
			continue;
		if (message->kind == ECM_MESSAGE_PIECE)
			reason = ecm_judge_at_piece(shape, message->reading, (int) message->number);
		else
			reason = ecm_judge_at_again(shape);
		if (reason != NULL)
			ecm_orders_add_errored(shape->id, shape->generation, reason);
	}
}

/*
 * Message "live": all rows have been read.  What is captured from here on needs no look
 * at a snapshot: none has seen it.
 */
static void
obey_live(const EcmStreamMessage *message)
{
	static struct _SPI_plan *plan;
	char	   *snapshot = pnstrdup(message->snapshot, message->snapshot_len);
	EcmOrderShapes list = ecm_order_shapes_meant(message);
	EcmOrderShapes live = ecm_order_shapes_create(list.n);
	EcmClosedGaps closed;

	for (int i = 0; i < list.n; i++)
	{
		EcmShape   *shape = find_capturing(list.ids[i], list.generations[i]);
		const char *reason = NULL;
		bool		done;

		if (shape == NULL)
			continue;
		ecm_log_batch_touch(shape->id);
		done = ecm_judge_at_live(shape, list.readings[i], snapshot, &reason);
		if (reason != NULL)
			ecm_orders_add_errored(shape->id, shape->generation, reason);
		else if (done)
		{
			shape->buffer.capturing = false;
			ecm_order_shapes_add(&live, shape->id, shape->generation, 0);
		}
	}
	if (live.n == 0)
		return;
	ecm_gaps_close(ecm_array_of_int8(live.ids, live.n), &closed);
	if (closed.n > 0)
		add_resynced(&closed);
	ecm_order_shapes_set_states(&plan,
								"INSERT INTO _electric_cm.shape_state AS t (shape, state, generation, live_at, live_lsn)"
								" SELECT id, 'live', generation, pg_catalog.clock_timestamp(), $3"
								" FROM unnest($1, $2) AS s (id, generation)"
								" ON CONFLICT (shape) DO UPDATE SET state = 'live',"
								" generation = excluded.generation, live_at = excluded.live_at, gap_lsn = NULL, gap_xid = NULL,"
								" live_lsn = coalesce(t.live_lsn, excluded.live_lsn)",
								&live);
}

void
ecm_shape_set_errored(int64 id, int generation, const char *reason)
{
	static struct _SPI_plan *plan;
	Oid			types[3] = {INT8OID, INT4OID, TEXTOID};
	Datum		values[3] = {Int64GetDatum(id), Int32GetDatum(generation),
	CStringGetTextDatum(reason)};
	EcmSpiState spi;

	/*
	 * The reason is a parameter: it may quote a row, and a statement's text
	 * may be logged.
	 */
	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&plan, "INSERT INTO _electric_cm.shape_state"
					 " (shape, state, generation, last_error)"
					 " VALUES ($1, 'errored', $2, $3) ON CONFLICT (shape)"
					 " DO UPDATE SET state = 'errored', last_error = excluded.last_error",
					 SPI_OK_INSERT, 3, types, values, NULL);
	ecm_spi_end(&spi);
}

/*
 * Makes a shape errored that can't be created, or followed, and follows it no
 * more.  Returns its handle.  NULL: there was nothing to do, as the shape is gone,
 * another consumer's, or in a later attempt, which the error says nothing about.
 */
static const char *
end_errored(int64 id, int generation, const char *reason)
{
	EcmShapeDef *def;
	EcmShape   *shape = ecm_followed_find(id);
	const char *handle = NULL;

	ecm_work_on(id);
	ecm_log_batch_touch(id);
	def = ecm_shape_by_id(id);
	if (def != NULL && def->worker == orders.worker && def->generation == generation &&
		!ecm_log_batch_is_past(def->skip_until))
	{
		ecm_shape_set_errored(id, generation, reason);
		if (shape != NULL)
			ecm_unfollow(shape);
		handle = def->handle;
	}
	ecm_work_on(0);
	return handle;
}

/* Message "fail": a pool session has met an error that is this shape's fault. */
static void
obey_fail(const EcmStreamMessage *message)
{
	if (ecm_order_shapes_meant(message).n > 0)
		(void) end_errored(message->shapes[0].id, message->shapes[0].generation,
						   message->text);
}

/*
 * Message "drop": shapes were deleted.  Their logs are not touched here; the manager
 * has them deleted when all consumers have come this far (shape_purge.c).
 */
static void
obey_drop(const EcmStreamMessage *message)
{
	EcmFates	fates;

	(void) ecm_fates_begin(&fates, ecm_log_batch_xid(), true);
	for (int i = 0; i < message->nshapes; i++)
	{
		int64		id = message->shapes[i].id;
		EcmShape   *shape = ecm_followed_find(id);

		if (ecm_fate_of(&fates, id).exists)
			continue;
		ecm_work_on(id);
		ecm_log_batch_touch(id);
		if (shape != NULL)
			ecm_unfollow(shape);
		else
			ecm_unfollow_noted(id);
	}
	ecm_work_on(0);
	ecm_fates_end(&fates);
}

/*
 * Message "lost": shapes were invalidated while somebody had their rows locked.
 * They can't be deleted yet, but end here.  The state "gone" is in another table,
 * which nobody else locks; shape_purge.c has the rows deleted when they are free.
 */
static void
obey_lost(const EcmStreamMessage *message)
{
	const char *reason = quote_literal_cstr(message->text);

	for (int i = 0; i < message->nshapes; i++)
	{
		int64		id = message->shapes[i].id;
		EcmShapeDef *def = ecm_shape_by_id(id);
		EcmShape   *shape = ecm_followed_find(id);

		if (def == NULL || def->worker != orders.worker ||
			ecm_log_batch_is_past(def->skip_until) ||
			!ecm_fate_is_lost(ecm_log_batch_xid(), id))
			continue;
		ecm_work_on(id);
		ecm_log_batch_touch(id);
		run_on_shape(psprintf("INSERT INTO _electric_cm.shape_state"
							  " (shape, state, generation, last_error)"
							  " VALUES ($1, 'gone', $2, %s) ON CONFLICT (shape)"
							  " DO UPDATE SET state = 'gone',"
							  " last_error = excluded.last_error", reason),
					 id, def->generation);
		if (shape != NULL)
			ecm_unfollow(shape);
		else
			ecm_unfollow_noted(id);
	}
	ecm_work_on(0);
}

/*
 * Leaves a shape's log as it was before the transaction at hand, where a gap is about to
 * begin, and follows the shape no more.
 */
static void
leave_log(EcmOrderShapes *gaps, const EcmShapeDef *def)
{
	EcmShape   *shape = ecm_followed_find(def->id);

	ecm_work_on(def->id);
	if (def->state == ECM_SHAPE_LIVE)
		ecm_log_delete_from(def->id, ecm_log_batch_lsn());
	if (shape != NULL)
		ecm_unfollow(shape);
	else
		ecm_unfollow_noted(def->id);
	ecm_order_shapes_add(gaps, def->id, 0, 0);
	ecm_work_on(0);
}

/* Begins gaps in logs that have been left.  reason: NULL if the transaction has noted it. */
static void
begin_gaps(const EcmOrderShapes *gaps, const char *reason)
{
	Order		order = {.kind = ORDER_GAP};
	Datum		shapes;

	if (gaps->n == 0)
		return;
	shapes = ecm_array_of_int8(gaps->ids, gaps->n);
	if (reason != NULL)
		ecm_gaps_note(shapes, ecm_log_batch_full_xid(), reason);
	ecm_gaps_begin(shapes, ecm_log_batch_lsn(), ecm_log_batch_full_xid());
	add_order(&order);
}

/*
 * Message "resync": the stream can't continue these logs, as a command has changed the
 * table.  Whether it has ordered that, is looked up without waiting for anybody: its
 * commit may have to wait for a synchronous standby.
 */
static void
obey_resync(const EcmStreamMessage *message)
{
	EcmOrderShapes gaps = ecm_order_shapes_create(message->nshapes);

	for (int i = 0; i < message->nshapes; i++)
	{
		EcmShapeDef *def = ecm_shape_by_id(message->shapes[i].id);

		if (def == NULL || def->state == ECM_SHAPE_ERRORED || def->worker != orders.worker ||
			ecm_log_batch_is_past(def->skip_until) ||
			!ecm_order_is_given("shape_gap", def->id, 0, ecm_log_batch_xid()))
			continue;
		leave_log(&gaps, def);
	}
	begin_gaps(&gaps, NULL);
}

/*
 * Message "owner": the shape's where clause is evaluated with another owner's
 * rights from here on.  The owner is read from the row: the message may be forged.
 */
static void
obey_owner(int64 id)
{
	EcmShape   *shape = ecm_followed_find(id);
	EcmFates	fates;
	EcmShapeFate fate;

	if (shape == NULL)
		return;
	(void) ecm_fates_begin(&fates, ecm_log_batch_xid(), true);
	fate = ecm_fate_of(&fates, id);
	ecm_fates_end(&fates);
	if (fate.exists)
		shape->owner = fate.owner;
}

static void
obey_message(const EcmStreamMessage *message)
{
	switch (message->kind)
	{
		case ECM_MESSAGE_CAPTURE:
			obey_capture(message);
			break;
		case ECM_MESSAGE_PIECE:
		case ECM_MESSAGE_AGAIN:
			obey_rows(message);
			break;
		case ECM_MESSAGE_LIVE:
			obey_live(message);
			break;
		case ECM_MESSAGE_FAIL:
			obey_fail(message);
			break;
		case ECM_MESSAGE_DROP:
			obey_drop(message);
			break;
		case ECM_MESSAGE_LOST:
			obey_lost(message);
			break;
		case ECM_MESSAGE_RESYNC:
			obey_resync(message);
			break;
		case ECM_MESSAGE_OWNER:
			obey_owner(message->shapes[0].id);
			break;
		case ECM_MESSAGE_CREATE:
		case ECM_MESSAGE_UNSENDABLE:
		case ECM_MESSAGE_GIANT:
			break;				/* no orders */
	}
}

/* First round: all orders but the checks. */
static void
obey_order(Order *order)
{
	const char *handle;

	switch (order->kind)
	{
		case ORDER_MESSAGE:
			obey_message(order->message);
			break;
		case ORDER_ERRORED:
			handle = end_errored(order->shape, order->generation, order->reason);
			if (handle != NULL)
				order->handle = MemoryContextStrdup(orders.context, handle);
			break;
		case ORDER_RESYNCED:
		case ORDER_GAP:
			break;				/* ecm_orders_committed() */
		case ORDER_TRUNCATED:
		case ORDER_MISMATCH:
		case ORDER_LACKING:
			break;				/* obey_checks() */
	}
}

/*
 * Has a shape resynced that is still followed, though the stream can't continue its log:
 * what has brought that about ran without us, or no command has.
 */
static void
resync_unasked(EcmOrderShapes *gaps, EcmShape *shape)
{
	int64		id = shape->id;
	EcmShapeDef *def;

	ecm_work_on(id);
	ecm_log_batch_touch(id);
	def = ecm_shape_by_id(id);
	if (def != NULL && !ecm_log_batch_is_past(shape->skip_until))
		leave_log(gaps, def);
	ecm_work_on(0);
}

/* The shape that a change lacks a value for, unless it has begun anew since, or ended. */
static void
resync_lacking(const Order *order)
{
	EcmOrderShapes gaps = ecm_order_shapes_create(1);
	EcmShape   *shape = ecm_followed_find(order->shape);

	if (shape == NULL || shape->generation != order->generation)
		return;
	resync_unasked(&gaps, shape);
	begin_gaps(&gaps, order->reason);
}

/*
 * The shapes of a table that are still followed, or those with one layout, are
 * resynced.  layout_number -1: all.  The table may have been freed, or another one made
 * in its place, by orders that were obeyed before.  True: there are any.
 */
static bool
check_table(Oid relid, int layout_number, const char *reason)
{
	EcmOrderShapes gaps;
	EcmTable   *table = ecm_followed_table(relid);
	EcmLayout  *layout = NULL;
	List	   *shapes;
	ListCell   *lc;

	if (table == NULL)
		return false;
	if (layout_number >= 0)
	{
		if (layout_number >= list_length(table->layouts))
			return false;
		layout = list_nth(table->layouts, layout_number);
	}
	shapes = ecm_followed_list(table, layout);
	gaps = ecm_order_shapes_create(list_length(shapes));
	foreach(lc, shapes)
		resync_unasked(&gaps, lfirst(lc));
	begin_gaps(&gaps, reason);
	return gaps.n > 0;
}

/*
 * Second round: the checks, once all messages of the transaction have been obeyed.
 * A command that truncates or changes a table has its shapes resynced, or ends them, and
 * its message may come behind what the check was ordered for.  In one round, the check
 * would give another reason than the command's.
 *
 * After a mismatch, the table or the walsender's idea of it is another one than the
 * shapes'.  The resync looks at the table anew; so that the walsender does, too, what it
 * has described counts as changed.  (Not for a layout that no shape has any more: each
 * description would be followed by another one.)
 */
static void
obey_checks(Order *order)
{
	if (order->kind == ORDER_MISMATCH)
	{
		if (check_table(order->table, order->layout,
						"the stream has other columns, or another replica identity, than the shape") &&
			SearchSysCacheExists1(RELOID, ObjectIdGetDatum(order->relation)))
			CacheInvalidateRelcacheByRelid(order->relation);
	}
	else if (order->kind == ORDER_TRUNCATED)
		(void) check_table(order->table, -1, "the table was truncated");
	else if (order->kind == ORDER_LACKING)
		resync_lacking(order);
}

void
ecm_orders_obey(void)
{
	MemoryContext context = CurrentMemoryContext;
	void		(*const rounds[]) (Order *order) = {obey_order, obey_checks};
	ListCell   *lc;

	for (size_t i = 0; i < lengthof(rounds); i++)
	{
		foreach(lc, orders.list)
		{
			rounds[i] (lfirst(lc));
			MemoryContextSwitchTo(context);
		}
	}
	ecm_log_batch_figures.shapes = ecm_followed_count();
}

static void
report_resynced(const EcmClosedGaps *closed)
{
	const char *datname = ecm_stack_at(orders.stack_index)->datname;

	if (closed->n == 1)
		ecm_event_in(MyDatabaseId, datname, ECM_EVENT_SHAPE_RESYNCED, closed->reason,
					 "shape %s was compared with its table: of " INT64_FORMAT " rows, " INT64_FORMAT " differed",
					 closed->handle, closed->compared, closed->differing);
	else
		ecm_event_in(MyDatabaseId, datname, ECM_EVENT_SHAPE_RESYNCED, closed->reason,
					 "%d shapes, %s and others, were compared with their table: of " INT64_FORMAT " rows, " INT64_FORMAT " differed",
					 closed->n, closed->handle, closed->compared, closed->differing);
}

/*
 * Events are recorded at once, outside of any transaction.  Before the commit, a
 * transaction that is lost and comes again would report its errors twice.
 */
void
ecm_orders_committed(void)
{
	ListCell   *lc;
	bool		gaps = false;

	foreach(lc, orders.list)
	{
		const Order *order = lfirst(lc);

		if (order->handle != NULL)
			ecm_shape_report_errored(order->handle, order->reason);
		if (order->kind == ORDER_RESYNCED)
			report_resynced(&order->closed);
		if (order->kind == ORDER_GAP)
		{
			ecm_stack_at(orders.stack_index)->consumers[orders.worker].gaps++;
			gaps = true;
		}
	}
	if (gaps)
		ecm_stack_wake(orders.stack_index);
	ecm_orders_forget();
}

void
ecm_shape_report_errored(const char *handle, const char *reason)
{
	/*
	 * The OID comes from this process: if there is no manager any more, the
	 * entry may be another database's by now.
	 */
	ecm_event_in(MyDatabaseId, ecm_stack_at(orders.stack_index)->datname,
				 ECM_EVENT_SHAPE_ERRORED, ecm_error_public_text(reason),
				 "shape %s is errored, and not followed any more", handle);
}

void
ecm_orders_forget(void)
{
	orders.list = NIL;
	MemoryContextReset(orders.context);
}
