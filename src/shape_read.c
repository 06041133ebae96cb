/*-------------------------------------------------------------------------
 *
 * shape_read.c
 *	  Reads shape logs for SQL.
 *
 * Reading checks the rights of the shape's owner, not privileges on the table
 * that has the logs, which is nobody's to read.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "await.h"
#include "compat.h"
#include "shape.h"
#include "shape_log.h"
#include "shmem.h"

/* How often a standby is looked at for what has come. */
#define STANDBY_POLL_MS		100
/* After a wake-up that brought nothing: the first pause until another look. */
#define FIRST_PAUSE_MS		10
#define MAX_SLEEP_MS		3600000

PG_FUNCTION_INFO_V1(electric_cm_shape_log);
PG_FUNCTION_INFO_V1(electric_cm_await_shape_log);
PG_FUNCTION_INFO_V1(electric_cm_shape_log_stats);

/* ----------------------------------------------------------------
 * Reading entries
 * ----------------------------------------------------------------
 */

typedef struct LogReader
{
	const EcmShapeDef *shape;
	Snapshot	snapshot;
	JsonbValue *names;			/* the columns', as jsonb keys */
} LogReader;

static void
report_corrupt_log(const EcmShapeDef *shape, uint64 lsn, uint64 op)
{
	char		offset[ECM_OFFSET_LEN];

	ecm_offset_format(offset, lsn, op);
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("log of shape \"%s\" is corrupt at or after offset %s",
					shape->handle, offset),
			 errhint("Drop the shape with electric_cm_drop_shape() and create it again with electric_cm_create_shape().")));
}

/*
 * The next entry of a chunk; false at its end.  What comes out is what the
 * operation should have: the tuples it needs, with all the shape's columns.
 */
static bool
next_entry(const EcmShapeDef *shape, const EcmChunkScan *cs, EcmChunkReader *r)
{
	uint64		lsn = r->in_txn ? r->lsn : cs->first_lsn;
	uint64		op = r->in_txn ? r->next_op : (uint64) cs->first_op;
	EcmChunkResult result = ecm_chunk_next(r);

	if (result == ECM_CHUNK_END)
		return false;

	if (result == ECM_CHUNK_CORRUPT ||
		(r->n_new != 0 && r->n_new != shape->ncolumns) ||
		(r->n_old != 0 && r->n_old != shape->ncolumns) ||
		(r->op == ECM_OP_DELETE ? r->n_old : r->n_new) == 0)
		report_corrupt_log(shape, lsn, op);

	return true;
}

/*
 * A key column of an entry: the new one; the old one in a delete, and where
 * an update of a row with a TOASTed, unchanged key leaves the new one out.
 */
static const EcmValue *
entry_key_column(EcmOp op, const EcmValue *new_values,
				 const EcmValue *old_values, int column)
{
	if (op != ECM_OP_DELETE &&
		(new_values[column].kind != ECM_VALUE_UNCHANGED || old_values == NULL))
		return &new_values[column];
	return &old_values[column];
}

static int
count_missing(const EcmValue *values, int nvalues)
{
	int			missing = 0;

	for (int i = 0; i < nvalues; i++)
	{
		if (values[i].kind == ECM_VALUE_UNCHANGED)
			missing++;
	}
	return missing;
}

/* Takes the values that are still missing, with copies of their texts. */
static void
fill_missing(EcmValue *values, const EcmValue *from, int nvalues)
{
	for (int i = 0; i < nvalues; i++)
	{
		if (values[i].kind != ECM_VALUE_UNCHANGED ||
			from[i].kind == ECM_VALUE_UNCHANGED)
			continue;

		values[i] = from[i];
		if (from[i].kind == ECM_VALUE_TEXT)
			values[i].text = pnstrdup(from[i].text, from[i].len);
	}
}

/* An entry of a decoded chunk; the texts are the chunk's. */
typedef struct LogEntry
{
	EcmOp		op;
	uint64		lsn;
	uint64		opno;
	EcmValue   *new_values;		/* NULL: none */
	EcmValue   *old_values;		/* NULL: none */
} LogEntry;

static EcmValue *
copy_values(const EcmValue *values, int nvalues)
{
	EcmValue   *copy;

	if (nvalues == 0)
		return NULL;
	copy = palloc(nvalues * sizeof(EcmValue));
	memcpy(copy, values, nvalues * sizeof(EcmValue));
	return copy;
}

/* All entries of the current chunk: a chunk can only be decoded forwards. */
static List *
decode_chunk(const EcmShapeDef *shape, EcmChunkScan *cs)
{
	EcmValue   *new_values = palloc(shape->ncolumns * sizeof(EcmValue));
	EcmValue   *old_values = palloc(shape->ncolumns * sizeof(EcmValue));
	EcmChunkReader r;
	List	   *entries = NIL;

	ecm_chunk_scan_read(cs, &r, new_values, old_values, shape->ncolumns);
	while (next_entry(shape, cs, &r))
	{
		LogEntry   *entry = palloc(sizeof(LogEntry));

		entry->op = r.op;
		entry->lsn = r.lsn;
		entry->opno = r.opno;
		entry->new_values = copy_values(new_values, r.n_new);
		entry->old_values = copy_values(old_values, r.n_old);
		entries = lappend(entries, entry);
	}
	return entries;
}

/* Is it an entry of the row with that key? */
static bool
entry_has_key(const EcmShapeDef *shape, const LogEntry *entry,
			  const EcmValue *key)
{
	for (int i = 0; i < shape->nkeys; i++)
	{
		const EcmValue *column = entry_key_column(entry->op, entry->new_values,
												  entry->old_values,
												  shape->key_positions[i]);

		if (column->kind != ECM_VALUE_TEXT || column->len != key[i].len ||
			memcmp(column->text, key[i].text, key[i].len) != 0)
			return false;
	}
	return true;
}

/* The old key in a delete entry, with copies of the texts. */
static EcmValue *
copy_old_key(const EcmShapeDef *shape, const LogEntry *entry)
{
	EcmValue   *key = palloc(shape->nkeys * sizeof(EcmValue));

	for (int i = 0; i < shape->nkeys; i++)
	{
		key[i] = entry->old_values[shape->key_positions[i]];
		if (key[i].kind != ECM_VALUE_TEXT)
			report_corrupt_log(shape, entry->lsn, entry->opno);
		key[i].text = pnstrdup(key[i].text, key[i].len);
	}
	return key;
}

/*
 * Finds the values that the insert at (lsn, op) lacks.
 *
 * When a row's key is updated, the log has a delete of the old key directly
 * followed by an insert of the new one, and values that are TOASTed and
 * unchanged are not in the stream.  They are what the log last said of the
 * row under its old key: so walk back, first over that delete, then to the
 * entries of that key, the latest first.  If one of those is such an insert
 * again, go on in the same way with the key before.
 */
static void
complete_insert(const LogReader *reader, uint64 lsn, uint64 op,
				EcmValue *values)
{
	const EcmShapeDef *shape = reader->shape;
	MemoryContext chunk_context;
	MemoryContext result_context = CurrentMemoryContext;
	EcmChunkScan	cs;
	EcmValue   *key = NULL;		/* NULL: at the insert of a key update */
	uint64		insert_lsn = lsn;
	uint64		insert_op = op;
	bool		done = false;

	chunk_context = AllocSetContextCreate(CurrentMemoryContext,
										  "electric_cm chunk walked back",
										  ALLOCSET_DEFAULT_SIZES);
	ecm_chunk_scan_begin(&cs, shape->id, BTLessStrategyNumber, lsn, op,
					 reader->snapshot, AccessShareLock);

	while (!done && ecm_chunk_scan_next(&cs))
	{
		List	   *entries;

		MemoryContextReset(chunk_context);
		MemoryContextSwitchTo(chunk_context);
		entries = decode_chunk(shape, &cs);
		MemoryContextSwitchTo(result_context);

		for (int i = list_length(entries) - 1; i >= 0 && !done; i--)
		{
			LogEntry   *entry = list_nth(entries, i);

			/* the chunk may also have the insert itself, and what follows */
			if (ecm_offset_cmp(entry->lsn, entry->opno, lsn, op) >= 0)
				continue;

			if (key == NULL)
			{
				/* the delete of the same key update */
				if (entry->op != ECM_OP_DELETE ||
					entry->lsn != insert_lsn || entry->opno + 1 != insert_op)
					report_corrupt_log(shape, insert_lsn, insert_op);
				key = copy_old_key(shape, entry);
				fill_missing(values, entry->old_values, shape->ncolumns);
			}
			else if (entry_has_key(shape, entry, key))
			{
				/* the row can't have been away in between */
				if (entry->op == ECM_OP_DELETE)
					report_corrupt_log(shape, lsn, op);
				fill_missing(values, entry->new_values, shape->ncolumns);
				if (entry->op == ECM_OP_INSERT)
				{
					insert_lsn = entry->lsn;
					insert_op = entry->opno;
					key = NULL;
				}
			}
			done = count_missing(values, shape->ncolumns) == 0;
		}
	}
	if (!done)
		report_corrupt_log(shape, lsn, op);

	ecm_chunk_scan_end(&cs);
	MemoryContextDelete(chunk_context);
}

/* Columns that were not sent are left out. */
static Datum
values_to_jsonb(const LogReader *reader, const EcmValue *values)
{
	JsonbParseState *state = NULL;
	JsonbValue *object;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < reader->shape->ncolumns; i++)
	{
		JsonbValue	value;

		if (values[i].kind == ECM_VALUE_UNCHANGED)
			continue;

		pushJsonbValue(&state, WJB_KEY, &reader->names[i]);
		if (values[i].kind == ECM_VALUE_NULL)
			value.type = jbvNull;
		else
		{
			value.type = jbvString;
			value.val.string.val = unconstify(char *, values[i].text);
			value.val.string.len = (int) values[i].len;
		}
		pushJsonbValue(&state, WJB_VALUE, &value);
	}
	object = pushJsonbValue(&state, WJB_END_OBJECT, NULL);

	return JsonbPGetDatum(JsonbValueToJsonb(object));
}

/* "schema"."table"/"key column"/..., with embedded double quotes doubled */
static text *
entry_key(const EcmShapeDef *shape, const EcmChunkReader *r)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, shape->relation_name);
	for (int i = 0; i < shape->nkeys; i++)
	{
		const EcmValue *column = entry_key_column(r->op, r->new_values,
												  r->n_old > 0 ? r->old_values : NULL,
												  shape->key_positions[i]);

		if (column->kind != ECM_VALUE_TEXT)
			report_corrupt_log(shape, r->lsn, r->opno);

		appendStringInfoString(&buf, "/\"");
		for (uint32 j = 0; j < column->len; j++)
		{
			if (column->text[j] == '"')
				appendStringInfoChar(&buf, '"');
			appendStringInfoChar(&buf, column->text[j]);
		}
		appendStringInfoChar(&buf, '"');
	}
	return cstring_to_text_with_len(buf.data, buf.len);
}

static const char *
op_name(EcmOp op)
{
	switch (op)
	{
		case ECM_OP_INSERT:
			return "insert";
		case ECM_OP_UPDATE:
			return "update";
		case ECM_OP_DELETE:
			return "delete";
	}
	return NULL;				/* keep compiler quiet */
}

/* An update's old_value has the columns that are known to have changed. */
static void
keep_changed(EcmValue *old_values, const EcmValue *new_values, int nvalues)
{
	for (int i = 0; i < nvalues; i++)
	{
		EcmValue   *o = &old_values[i];
		const EcmValue *n = &new_values[i];

		if (n->kind == ECM_VALUE_UNCHANGED ||
			(n->kind == o->kind &&
			 (n->kind != ECM_VALUE_TEXT ||
			  (n->len == o->len && memcmp(n->text, o->text, n->len) == 0))))
			o->kind = ECM_VALUE_UNCHANGED;
	}
}

/* Turns the reader's current entry into a row of the result. */
static void
return_entry(const LogReader *reader, EcmChunkReader *r, ReturnSetInfo *rsinfo)
{
	int			ncolumns = reader->shape->ncolumns;
	char		offset[ECM_OFFSET_LEN];
	Datum		values[6];
	bool		nulls[6] = {false};

	if (r->op == ECM_OP_INSERT && count_missing(r->new_values, ncolumns) > 0)
		complete_insert(reader, r->lsn, r->opno, r->new_values);

	ecm_offset_format(offset, r->lsn, r->opno);
	values[0] = CStringGetTextDatum(offset);
	values[1] = CStringGetTextDatum(op_name(r->op));
	values[2] = PointerGetDatum(entry_key(reader->shape, r));

	if (r->n_new > 0)
		values[3] = values_to_jsonb(reader, r->new_values);
	else
		nulls[3] = true;

	if (r->n_old > 0)
	{
		if (r->op == ECM_OP_UPDATE)
			keep_changed(r->old_values, r->new_values, ncolumns);
		values[4] = values_to_jsonb(reader, r->old_values);
	}
	else
		nulls[4] = true;

	/* the rows that a log begins with come from no particular transaction */
	if (r->xid != 0)
		values[5] = Int64GetDatum((int64) r->xid);
	else
		nulls[5] = true;

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * Finds the chunk that the offset falls into: the last one that does not
 * begin after it.  False if there is none.
 */
static bool
find_start(const LogReader *reader, const EcmOffset *after,
		   XLogRecPtr *first_lsn, int64 *first_op)
{
	EcmChunkScan	cs;
	bool		found;

	if (after->before_all)
		return false;

	ecm_chunk_scan_begin(&cs, reader->shape->id, BTLessEqualStrategyNumber,
					 after->lsn, after->op, reader->snapshot, AccessShareLock);
	found = ecm_chunk_scan_next(&cs);
	if (found)
	{
		*first_lsn = cs.first_lsn;
		*first_op = cs.first_op;
	}
	ecm_chunk_scan_end(&cs);

	return found;
}

/*
 * Returns up to max_entries (0: all) entries after the offset as rows, and
 * how many these were as its result.
 */
static int64
return_entries(const EcmShapeDef *shape, const EcmOffset *after,
			   int max_entries, Snapshot snapshot, ReturnSetInfo *rsinfo)
{
	LogReader	reader;
	EcmValue   *new_values = palloc(shape->ncolumns * sizeof(EcmValue));
	EcmValue   *old_values = palloc(shape->ncolumns * sizeof(EcmValue));
	MemoryContext chunk_context;
	MemoryContext old_context;
	EcmChunkScan	cs;
	XLogRecPtr	first_lsn = 0;
	int64		first_op = 0;
	int64		returned = 0;
	bool		full = false;

	reader.shape = shape;
	reader.snapshot = snapshot;
	reader.names = palloc(shape->ncolumns * sizeof(JsonbValue));
	for (int i = 0; i < shape->ncolumns; i++)
	{
		reader.names[i].type = jbvString;
		reader.names[i].val.string.val = shape->column_names[i];
		reader.names[i].val.string.len = strlen(shape->column_names[i]);
	}

	chunk_context = AllocSetContextCreate(CurrentMemoryContext,
										  "electric_cm chunk",
										  ALLOCSET_DEFAULT_SIZES);

	if (find_start(&reader, after, &first_lsn, &first_op))
		ecm_chunk_scan_begin(&cs, shape->id, BTGreaterEqualStrategyNumber,
						 first_lsn, first_op, snapshot, AccessShareLock);
	else
		ecm_chunk_scan_begin(&cs, shape->id, InvalidStrategy, 0, 0, snapshot,
						 AccessShareLock);

	old_context = MemoryContextSwitchTo(chunk_context);
	while (!full && ecm_chunk_scan_next(&cs))
	{
		EcmChunkReader r;

		MemoryContextReset(chunk_context);
		ecm_chunk_scan_read(&cs, &r, new_values, old_values, shape->ncolumns);
		while (!full && next_entry(shape, &cs, &r))
		{
			if (!after->before_all &&
				ecm_offset_cmp(r.lsn, r.opno, after->lsn, after->op) <= 0)
				continue;
			return_entry(&reader, &r, rsinfo);
			full = ++returned == max_entries;
		}
	}
	MemoryContextSwitchTo(old_context);

	ecm_chunk_scan_end(&cs);
	MemoryContextDelete(chunk_context);

	return returned;
}

/* ----------------------------------------------------------------
 * Looking shapes up, and waiting
 * ----------------------------------------------------------------
 */

/* Looks a shape up for reading, with a fresh snapshot. */
static EcmShapeDef *
find_shape(const char *handle)
{
	EcmShapeDef *shape = ecm_shape_by_handle(handle);

	if (shape == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("shape \"%s\" does not exist", handle),
				 errhint("Create it again with electric_cm_create_shape().")));
	ecm_shape_check_read(shape);

	if (shape->state == ECM_SHAPE_ERRORED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("shape \"%s\" has failed", handle),
				 shape->last_error != NULL ?
				 errdetail("%s", shape->last_error) : 0,
				 errhint("Drop it with electric_cm_drop_shape() and create it again with electric_cm_create_shape().")));
	return shape;
}

/*
 * The stack creates shapes by waiting for transactions that could have
 * written to their tables, and a log has nothing of a transaction before it
 * commits: if the caller's is one of them, waiting would never end.  A lock
 * from a plain SELECT is harmless.
 */
static void
check_may_wait(const EcmShapeDef *shape)
{
	LOCKTAG		tag;
	bool		locked = false;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, shape->relation);
	for (LOCKMODE mode = RowShareLock; mode <= AccessExclusiveLock; mode++)
		locked = locked || ecm_lock_held_by_me(&tag, mode);

	if (IsolationUsesXactSnapshot() || locked ||
		TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot wait for shape \"%s\" in this transaction",
						shape->handle),
				 shape->state == ECM_SHAPE_LIVE ?
				 errdetail("What comes next may have to wait for this transaction, or could not be seen by it.") :
				 errdetail("The shape is being created, which may have to wait for this transaction, or could not be seen by it."),
				 errhint("Commit first.")));
}

/*
 * A wait for something to be committed about a shape.
 */
typedef struct LogWait
{
	TimestampTz deadline;		/* 0: never */
	ConditionVariable *cv;		/* NULL: not prepared to sleep yet */
	int			pause_ms;		/* until another look; 0: when woken */
} LogWait;

/* On a standby nobody wakes us: the log comes by replication. */
static void
sleep_on_standby(int timeout_ms)
{
	int			events = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH;

	(void) WaitLatch(MyLatch, events, Min(timeout_ms, STANDBY_POLL_MS),
					 PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/*
 * This database's stack, to sleep on its condition variables; ERROR unless it
 * runs or is about to.  The entry may be another one each time.
 */
static EcmStack *
working_stack(void)
{
	EcmStack   *copy = palloc(sizeof(EcmStack));
	int			index;

	ecm_require_shared();
	index = ecm_own_stack(copy);
	if (index < 0)
	{
		ecm_ensure_own_stack();
		index = ecm_own_stack(copy);
	}
	if (index < 0)
		ecm_report_stack_gone();
	ecm_check_stack_alive(copy);
	pfree(copy);
	return &ecm_shared->stacks[index];
}

/*
 * Sleeps until something may have been committed about the shape, and the
 * caller should look again.  False: the deadline has passed.
 *
 * The first time it returns at once, prepared to sleep, so that nothing can be
 * missed between the look and the sleep.  A wake-up, on the other hand, may
 * come before what it is about can be seen: the commit that drops a shape may
 * be waiting for a synchronous standby when we are told by the stream.  So
 * from then on we look again after ever longer pauses.
 */
static bool
await_change(LogWait *wait, const EcmShapeDef *shape)
{
	ConditionVariable *cv;
	int			timeout_ms = MAX_SLEEP_MS;

	if (wait->deadline != 0)
	{
		TimestampTz now = GetCurrentTimestamp();

		if (now >= wait->deadline)
			return false;
		timeout_ms = Min(TimestampDifferenceMilliseconds(now, wait->deadline),
						 timeout_ms);
	}
	if (RecoveryInProgress())
	{
		sleep_on_standby(timeout_ms);
		return true;
	}

	cv = ecm_log_cv(working_stack(), shape->id);
	if (wait->cv != cv)
	{
		ConditionVariablePrepareToSleep(cv);
		wait->cv = cv;
		return true;
	}
	if (wait->pause_ms != 0)
		timeout_ms = Min(timeout_ms, wait->pause_ms);
	if (!ConditionVariableTimedSleep(cv, timeout_ms, PG_WAIT_EXTENSION))
		wait->pause_ms = FIRST_PAUSE_MS;
	else if (wait->pause_ms < MAX_SLEEP_MS / 2)
		wait->pause_ms *= 2;
	return true;
}

/* Waits for a shape that is not live yet, as long as it takes. */
static EcmShapeDef *
await_live_shape(const char *handle)
{
	EcmShapeDef *shape = find_shape(handle);
	LogWait		wait = {0};

	if (shape->state == ECM_SHAPE_LIVE)
		return shape;

	check_may_wait(shape);
	while (shape->state != ECM_SHAPE_LIVE)
	{
		(void) await_change(&wait, shape);
		shape = find_shape(handle);
	}
	ConditionVariableCancelSleep();

	return shape;
}

/* ----------------------------------------------------------------
 * SQL functions
 * ----------------------------------------------------------------
 */

/* What a caller wants of a log. */
typedef struct LogRequest
{
	char	   *handle;
	EcmOffset	after;
	int			max_entries;	/* 0: all */
} LogRequest;

/*
 * The arguments that all reading functions have; max_entries is the one with
 * number max_entries_argno.
 */
static void
read_request(FunctionCallInfo fcinfo, LogRequest *request, int max_entries_argno)
{
	char	   *after_text;

	if (!RecoveryInProgress())	/* a standby may do without */
		ecm_require_shared();
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("shape handle must not be null")));
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("offset must not be null"),
				 errhint("The offset before all entries is \"-1\".")));

	request->handle = text_to_cstring(PG_GETARG_TEXT_PP(0));
	after_text = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (!ecm_offset_parse(after_text, &request->after))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid shape log offset: \"%s\"", after_text),
				 errhint("Pass the log_offset of the last entry received, or \"-1\" to begin.")));

	request->max_entries = 0;
	if (!PG_ARGISNULL(max_entries_argno))
	{
		request->max_entries = PG_GETARG_INT32(max_entries_argno);
		if (request->max_entries <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("max_entries must be greater than zero")));
	}
}

/*
 * Returns what there is, and how many rows that were as its result.
 *
 * The snapshot comes after the look at the shape: an older one could see
 * captured chunks that belong to the initial rows.  What may have happened in
 * between is that the shape was dropped, with all its log.
 */
static int64
return_log(const EcmShapeDef *shape, const LogRequest *request,
		   ReturnSetInfo *rsinfo)
{
	Snapshot	snapshot;
	int64		returned;

	snapshot = RegisterSnapshot(IsolationUsesXactSnapshot() ?
								GetTransactionSnapshot() : GetLatestSnapshot());
	ecm_note_read(shape->id);
	returned = return_entries(shape, &request->after, request->max_entries,
							  snapshot, rsinfo);
	UnregisterSnapshot(snapshot);
	return returned;
}

/*
 * electric_cm_shape_log(handle text, after_offset text DEFAULT '-1',
 *						 max_entries int DEFAULT NULL)
 *	-> SETOF (log_offset text, operation text, key text, value jsonb,
 *			  old_value jsonb, xid int8)
 *
 * The entries of a shape's log after an offset ("-1": from the beginning), in
 * order; whole transactions, unless cut by max_entries.  Waits for a shape
 * that is not live yet.
 *
 *	 insert		value has all columns, old_value is NULL
 *	 update		value has all columns but unchanged TOASTed ones; old_value
 *				has the old values of changed columns, or is NULL if the
 *				stream had none
 *	 delete		value is NULL, old_value has the key, or all columns with
 *				REPLICA IDENTITY FULL
 *
 * xid is the upstream transaction's, NULL for the rows that a log begins with.
 *
 * Errors: 22004 handle or after_offset is NULL; 22023 after_offset is not an
 * offset, or max_entries is not above 0; 42704 no such shape (any more);
 * 42501 the user may not read it; 55000 the shape could not be created, or it
 * is being created and waiting for it is impossible (this transaction is in
 * its way; no stack that works); XX001 the log is corrupt.
 */
Datum
electric_cm_shape_log(PG_FUNCTION_ARGS)
{
	LogRequest	request;
	EcmShapeDef *shape;

	read_request(fcinfo, &request, 2);
	InitMaterializedSRF(fcinfo, 0);

	shape = await_live_shape(request.handle);
	if (return_log(shape, &request, (ReturnSetInfo *) fcinfo->resultinfo) == 0)
		(void) find_shape(request.handle);

	return (Datum) 0;
}

/*
 * electric_cm_await_shape_log(handle text, after_offset text,
 *							   timeout interval DEFAULT '20 s',
 *							   max_entries int DEFAULT NULL)
 *	-> as electric_cm_shape_log()
 *
 * The same, but waits until there is something to return.  Nothing is
 * returned when the timeout has passed (NULL: it never does).
 *
 * Errors: as electric_cm_shape_log(), also if they come up while waiting;
 * 22023 negative timeout; 55000 in a transaction that has made changes, holds
 * a lock on the table, or is above READ COMMITTED, or if the stack has failed
 * or is stopped (not on a standby, where it never runs).
 */
Datum
electric_cm_await_shape_log(PG_FUNCTION_ARGS)
{
	LogRequest	request;
	LogWait		wait = {0};
	MemoryContext look_context;
	MemoryContext old_context;
	EcmShapeDef *shape;

	read_request(fcinfo, &request, 3);
	wait.deadline = ecm_wait_deadline(PG_ARGISNULL(2) ? NULL :
									  PG_GETARG_INTERVAL_P(2));
	InitMaterializedSRF(fcinfo, 0);

	look_context = AllocSetContextCreate(CurrentMemoryContext,
										 "electric_cm await",
										 ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(look_context);
	check_may_wait(find_shape(request.handle));
	if (!RecoveryInProgress())
		(void) working_stack();
	do
	{
		MemoryContextReset(look_context);
		shape = find_shape(request.handle);
		if (shape->state == ECM_SHAPE_LIVE &&
			return_log(shape, &request, (ReturnSetInfo *) fcinfo->resultinfo) > 0)
			break;
	} while (await_change(&wait, shape));
	ConditionVariableCancelSleep();
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(look_context);

	return (Datum) 0;
}

/* The offset of the last entry of a log; false if there is none. */
static bool
last_offset(int64 shape, Snapshot snapshot, uint64 *lsn, uint64 *op)
{
	EcmChunkScan cs;
	bool		found;

	ecm_chunk_scan_begin(&cs, shape, BTLessEqualStrategyNumber, PG_UINT64_MAX,
						 PG_INT64_MAX, snapshot, AccessShareLock);
	found = ecm_chunk_scan_next(&cs);
	if (found)
		ecm_chunk_scan_last(&cs, shape, lsn, op);
	ecm_chunk_scan_end(&cs);
	return found;
}

/*
 * _electric_cm.shape_log_stats(shape int8)
 *	-> (log_entries int8, log_bytes int8, last_offset text,
 *		last_read_at timestamptz)
 *
 * A shape's log by its id: entries, bytes of packed data, the offset of the
 * last entry, NULL if there is none, and when it was last read, NULL if that
 * is not known.  What is stored counts, so for a shape that is being created
 * also what it may drop again.
 *
 * Errors: XX001 the last chunk is corrupt.
 */
Datum
electric_cm_shape_log_stats(PG_FUNCTION_ARGS)
{
	int64		shape = PG_GETARG_INT64(0);
	Snapshot	snapshot = GetActiveSnapshot();
	EcmLogTotals totals;
	TimestampTz read_at;
	uint64		lsn;
	uint64		op;
	TupleDesc	tupdesc;
	Datum		values[4] = {0};
	bool		nulls[4] = {false};

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	tupdesc = BlessTupleDesc(tupdesc);

	totals = ecm_log_totals(shape, snapshot);
	values[0] = Int64GetDatum(totals.entries);
	values[1] = Int64GetDatum(totals.bytes);

	nulls[2] = !last_offset(shape, snapshot, &lsn, &op);
	if (!nulls[2])
	{
		char		offset[ECM_OFFSET_LEN];

		ecm_offset_format(offset, lsn, op);
		values[2] = CStringGetTextDatum(offset);
	}

	read_at = ecm_last_read(shape);
	nulls[3] = read_at == 0;
	values[3] = TimestampTzGetDatum(read_at);

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls)));
}
