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
#include "commands/extension.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "await.h"
#include "compat.h"
#include "errors.h"
#include "shape.h"
#include "shape_entry.h"
#include "shape_log.h"
#include "shmem.h"
#include "wait_event.h"

/* How often a standby is looked at for what has come. */
#define STANDBY_POLL_MS		100
/* After a wake-up that brought nothing: the first pause until another look. */
#define FIRST_PAUSE_MS		10
#define MAX_SLEEP_MS		3600000

/* What a caller wants of a log. */
typedef struct LogRequest
{
	char	   *handle;
	EcmOffset	after;
	int			max_entries;	/* 0: all */
} LogRequest;

PG_FUNCTION_INFO_V1(electric_cm_shape_log);
PG_FUNCTION_INFO_V1(electric_cm_await_shape_log);
PG_FUNCTION_INFO_V1(electric_cm_shape_log_stats);

/* ----------------------------------------------------------------
 * Entries as rows
 * ----------------------------------------------------------------
 */

typedef struct LogReader
{
	const EcmShapeDef *shape;
	Snapshot	snapshot;
	EcmLogBase	base;
	JsonbValue *names;			/* the columns', as jsonb keys */
} LogReader;

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
		const EcmValue *column = ecm_entry_key_column(r->op, r->new_values,
													  r->n_old > 0 ? r->old_values : NULL,
													  shape->key_positions[i]);

		if (column->kind != ECM_VALUE_TEXT)
			ecm_entry_report_corrupt(shape, r->lsn, r->opno);

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

	if (r->op == ECM_OP_INSERT && ecm_entry_missing(r->new_values, ncolumns) > 0)
	{
		ecm_entry_complete(reader->shape, reader->snapshot, r->lsn, r->opno, r->new_values);
		ecm_entry_check_readable(r->op, reader->shape, r->new_values, NULL);
	}

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
 * Who has read up to where the base is now, in the log as it was before, has
 * all that the base is made of.  Of what is before that, there is nothing.
 */
static void
check_after_base(const LogReader *reader, const EcmOffset *after)
{
	char		offset[ECM_OFFSET_LEN];
	char		base[ECM_OFFSET_LEN];

	if (ecm_offset_cmp(after->lsn, after->op, reader->base.lsn, reader->base.op) >= 0)
		return;
	ecm_offset_format(offset, after->lsn, after->op);
	ecm_offset_format(base, reader->base.lsn, reader->base.op);
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("offset %s is not in the log of shape \"%s\" any more",
					offset, reader->shape->handle),
			 errdetail("What came before %s has been folded: see electric_cm.shape_log_retention.",
					   base),
			 errhint("Read the log from its beginning, after_offset => '-1', in place of what has been read so far.")));
}

/*
 * Finds where to begin: with the chunk that the offset falls into, the last one
 * that does not begin after it.  What is before the base is about to be deleted.
 */
static void
find_start(const LogReader *reader, const EcmOffset *after,
		   XLogRecPtr *first_lsn, int64 *first_op)
{
	EcmChunkScan cs;

	*first_lsn = reader->base.lsn;
	*first_op = reader->base.op + 1;
	if (after->before_all)
		return;

	check_after_base(reader, after);
	if (reader->base.lsn != 0 && after->lsn == reader->base.lsn &&
		after->op == (uint64) reader->base.op)
	{
		*first_lsn = reader->base.lsn + 1;
		*first_op = 0;
		return;
	}

	ecm_chunk_scan_begin(&cs, reader->shape->id, BTLessEqualStrategyNumber,
						 after->lsn, after->op, reader->snapshot, AccessShareLock);
	if (ecm_chunk_scan_next(&cs) &&
		ecm_offset_cmp(cs.first_lsn, cs.first_op, *first_lsn, *first_op) > 0)
	{
		*first_lsn = cs.first_lsn;
		*first_op = cs.first_op;
	}
	ecm_chunk_scan_end(&cs);
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
	EcmChunkScan cs;
	XLogRecPtr	first_lsn;
	int64		first_op;
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

	ecm_log_base(shape->id, snapshot, &reader.base);
	find_start(&reader, after, &first_lsn, &first_op);
	ecm_chunk_scan_begin(&cs, shape->id, BTGreaterEqualStrategyNumber,
						 first_lsn, first_op, snapshot, AccessShareLock);

	old_context = MemoryContextSwitchTo(chunk_context);
	while (!full && ecm_chunk_scan_next(&cs))
	{
		EcmChunkReader r;

		MemoryContextReset(chunk_context);
		ecm_chunk_scan_read(&cs, &r, new_values, old_values, shape->ncolumns);
		while (!full && ecm_entry_next(shape, &cs, &r))
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
				 errdetail("%s", ecm_error_untagged(shape->last_error)) : 0,
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

/* The extension may be dropped while we wait. */
static void
check_extension(void)
{
	if (!OidIsValid(get_extension_oid("electric_cm", true)))
		ecm_report_stack_gone();
}

/* What a look at a shape has found. */
typedef struct Look
{
	int64		shape;
	bool		live;			/* and its log has been read */
	int64		returned;		/* rows */
} Look;

/*
 * Looks at a shape, perhaps between two waits.  It is done in a subtransaction
 * that is rolled back, so that no lock on our tables is held while waiting:
 * DROP EXTENSION, say, would wait for us, and everybody else for that.
 */
static void
look_between_waits(const LogRequest *request, bool for_entries,
				   ReturnSetInfo *rsinfo, Look *look)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		EcmShapeDef *shape = find_shape(request->handle);

		look->shape = shape->id;
		look->live = shape->state == ECM_SHAPE_LIVE;
		look->returned = 0;
		if (for_entries || !look->live)
			check_may_wait(shape);
		if (look->live)
			look->returned = return_log(shape, request, rsinfo);

		/* no entries, or no shape any more? */
		if (look->live && look->returned == 0)
			(void) find_shape(request->handle);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		check_extension();		/* that may be why */
		ReThrowError(edata);
	}
	PG_END_TRY();

	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

/*
 * A wait for something to be committed about a shape.
 */
typedef struct LogWait
{
	int64		shape;
	EcmTime		deadline;		/* 0: never */
	EcmLogSignal *signal;		/* NULL: on a standby, nobody wakes us */
	uint64		seen;			/* its changes before we looked */
	int			pause_ms;		/* until another look; 0: when woken */
} LogWait;

/*
 * Notes what a later change will be told by.  ERROR unless this database's
 * stack runs, or is about to.  It may have another entry each time.
 */
static void
prepare_wait(LogWait *wait)
{
	EcmStack   *copy;
	int			index;

	wait->signal = NULL;
	if (RecoveryInProgress())
		return;

	ecm_require_shared();
	copy = palloc(sizeof(EcmStack));
	index = ecm_own_stack(copy);
	if (index < 0)
	{
		check_extension();
		ecm_ensure_own_stack();
		index = ecm_own_stack(copy);
	}
	if (index < 0)
		ecm_report_stack_gone();
	ecm_check_stack_alive(copy);
	pfree(copy);

	wait->signal = ecm_log_signal(&ecm_shared->stacks[index], wait->shape);
	wait->seen = pg_atomic_read_u64(&wait->signal->changes);
}

/*
 * Sleeps until something may have been committed about the shape since
 * prepare_wait().  False: the deadline has passed.
 *
 * A wake-up may come before what it is about can be seen: the commit that drops
 * a shape may be waiting for a synchronous standby when we are told by the
 * stream.  So from then on we look again after ever longer pauses.
 */
static bool
await_change(LogWait *wait)
{
	int			timeout_ms = MAX_SLEEP_MS;
	bool		woken;

	if (wait->deadline != 0)
	{
		EcmTime		now = ecm_now();

		if (now >= wait->deadline)
			return false;
		timeout_ms = Min(ecm_ms_until(now, wait->deadline),
						 timeout_ms);
	}
	if (wait->signal == NULL)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(timeout_ms, STANDBY_POLL_MS), ecm_wait_event(ECM_WAIT_SHAPE_LOG));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		return true;
	}

	if (wait->pause_ms != 0)
		timeout_ms = Min(timeout_ms, wait->pause_ms);
	ConditionVariablePrepareToSleep(&wait->signal->cv);
	woken = pg_atomic_read_u64(&wait->signal->changes) != wait->seen ||
		!ConditionVariableTimedSleep(&wait->signal->cv, timeout_ms,
									 ecm_wait_event(ECM_WAIT_SHAPE_LOG));
	ConditionVariableCancelSleep();
	if (woken)
		wait->pause_ms = FIRST_PAUSE_MS;
	else if (wait->pause_ms < MAX_SLEEP_MS / 2)
		wait->pause_ms *= 2;
	return true;
}

/*
 * Returns what there is as soon as the shape is live, or as soon as there is
 * something; nothing after the deadline.
 */
static void
await_log(const LogRequest *request, EcmTime deadline, bool for_entries,
		  ReturnSetInfo *rsinfo)
{
	LogWait		wait = {.deadline = deadline};
	MemoryContext look_context;
	MemoryContext old_context;

	look_context = AllocSetContextCreate(CurrentMemoryContext,
										 "electric_cm look",
										 ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(look_context);
	for (;;)
	{
		Look		look;

		/* a log can be read without a stack, but not waited for */
		if (for_entries || wait.shape != 0)
			prepare_wait(&wait);
		look_between_waits(request, for_entries, rsinfo, &look);
		if (for_entries ? look.returned > 0 : look.live)
			break;

		/* the first look has told what to wait for */
		if (wait.shape == look.shape && !await_change(&wait))
			break;
		wait.shape = look.shape;
		MemoryContextReset(look_context);
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(look_context);
}

/* ----------------------------------------------------------------
 * SQL functions
 * ----------------------------------------------------------------
 */

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
 * offset, or max_entries is not above 0; 42704 no such shape, or what comes
 * after the offset is not in its log any more;
 * 42501 the user may not read it; 55000 the shape could not be created, or it
 * is being created and waiting for it is impossible (this transaction is in
 * its way; no stack that works); XX001 the log is corrupt.
 */
Datum
electric_cm_shape_log(PG_FUNCTION_ARGS)
{
	LogRequest	request;

	read_request(fcinfo, &request, 2);
	InitMaterializedSRF(fcinfo, 0);
	await_log(&request, 0, false, (ReturnSetInfo *) fcinfo->resultinfo);
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
	EcmTime		deadline;

	read_request(fcinfo, &request, 3);
	deadline = ecm_await_until(PG_ARGISNULL(2) ? NULL :
								 PG_GETARG_INTERVAL_P(2));
	InitMaterializedSRF(fcinfo, 0);
	await_log(&request, deadline, true, (ReturnSetInfo *) fcinfo->resultinfo);
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
	EcmLogBase	base;
	EcmLogTotals base_size;
	EcmLogTotals stream_size;
	TimestampTz read_at;
	uint64		lsn;
	uint64		op;
	TupleDesc	tupdesc;
	Datum		values[4] = {0};
	bool		nulls[4] = {false};

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	tupdesc = BlessTupleDesc(tupdesc);

	ecm_log_base(shape, snapshot, &base);
	ecm_log_sizes(shape, &base, snapshot, &base_size, &stream_size);
	values[0] = Int64GetDatum(base_size.entries + stream_size.entries);
	values[1] = Int64GetDatum(base_size.bytes + stream_size.bytes);

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
