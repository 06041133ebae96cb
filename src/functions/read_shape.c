/*-------------------------------------------------------------------------
 *
 * read_shape.c
 *	  Reads shape logs for SQL.
 *
 * A call is a sequence of looks, with waits in between until a look brings something.
 * Each look takes a snapshot, finds the shape in it, checks that the caller may read
 * it (by the rights on the shape's table; the table that has the logs is nobody's to
 * read), and returns the entries after the caller's offset.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/shmem.h"
#include "base/version.h"
#include "base/waiters.h"
#include "functions/await.h"
#include "functions/wait_shape.h"
#include "shape/shape.h"
#include "shape/shape_catalog.h"
#include "shape/shape_chunk.h"
#include "shape/shape_complete.h"
#include "shape/shape_entry.h"
#include "shape/shape_gap.h"
#include "shape/shape_log.h"
#include "shape/shape_offset.h"
#include "shape/shape_rights.h"

/* How long electric_cm_shape_log() waits for a log to come up to the offset. */
#define NOT_YET_MS			5000

/* The part of a log that a caller asks for, and how. */
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
	JsonbValue *names;			/* of the columns, as jsonb keys */
} LogReader;

/* An object with a member per column; columns that were not sent are left out. */
static Datum
values_to_jsonb(const LogReader *reader, const EcmValue *values)
{
	EcmJsonbState state = {0};

	ecm_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < reader->shape->ncolumns; i++)
	{
		JsonbValue	value;

		if (!ecm_value_is_shown(&values[i]))
			continue;

		ecm_jsonb_push(&state, WJB_KEY, &reader->names[i]);
		if (values[i].kind == ECM_VALUE_NULL)
			value.type = jbvNull;
		else
		{
			value.type = jbvString;
			value.val.string.val = unconstify(char *, values[i].text);
			value.val.string.len = (int) values[i].len;
		}
		ecm_jsonb_push(&state, WJB_VALUE, &value);
	}
	ecm_jsonb_push(&state, WJB_END_OBJECT, NULL);

	return JsonbPGetDatum(JsonbValueToJsonb(state.result));
}

/*
 * The text that identifies an entry's row: "schema"."table"/"value of key column"/...,
 * with embedded double quotes doubled.  ERROR XX001 if the entry lacks such a value.
 */
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

/*
 * Leaves in an update's old values only the columns that are known to have changed.
 */
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

/* What comes after a gap is no part of the log before the gap is closed. */
static bool
is_before_gap(const EcmShapeDef *shape, const EcmChunkScan *cs)
{
	return shape->state == ECM_SHAPE_LIVE ||
		ecm_offset_cmp(cs->first_lsn, cs->first_op, shape->gap_lsn, ECM_FIRST_DIFFERENCE) < 0;
}

/*
 * Puts up to max_entries (0: all) entries after the offset into the result, and returns
 * how many they are; -1 if the log, in this snapshot, does not come up to the offset
 * yet.  logged_lsn: everything before this is known to be in the log, in this snapshot;
 * invalid: nothing is known.  ERROR EC001 if the offset can't be one of this log.
 *
 * An offset is good if the log has an entry there.  The scan begins with the chunk that
 * must have it, and start.known says whether it was met.
 *
 * A TOASTed value that an update has left alone may be missing from an entry that has
 * become an insert; the completer takes it from earlier entries.
 */
static int64
return_entries(const EcmShapeDef *shape, const LogRequest *request,
			   Snapshot snapshot, XLogRecPtr logged_lsn, ReturnSetInfo *rsinfo)
{
	const EcmOffset *after = &request->after;
	LogReader	reader;
	EcmValue   *new_values = palloc(shape->ncolumns * sizeof(EcmValue));
	EcmValue   *old_values = palloc(shape->ncolumns * sizeof(EcmValue));
	MemoryContext chunk_context;
	MemoryContext entry_context;	/* reset after each entry: those of one
									 * chunk may be much larger as rows */
	MemoryContext old_context;
	EcmChunkScan cs;
	EcmCompleter *completer = NULL;
	EcmLogBase	base;
	EcmLogStart start;
	int64		returned = 0;
	bool		done = false;

	reader.shape = shape;
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
	entry_context = AllocSetContextCreate(CurrentMemoryContext,
										  "electric_cm entry",
										  ALLOCSET_DEFAULT_SIZES);

	ecm_log_base(shape->id, snapshot, &base);
	ecm_offset_start(shape, snapshot, &base, after, &start);
	ecm_chunk_scan_begin(&cs, shape->id, BTGreaterEqualStrategyNumber,
						 start.lsn, start.op, snapshot, AccessShareLock);
	ecm_chunk_scan_one_base(&cs, base.lsn);

	old_context = MemoryContextSwitchTo(chunk_context);
	while (!done && ecm_chunk_scan_next(&cs) && is_before_gap(shape, &cs))
	{
		EcmChunkReader r;

		MemoryContextReset(chunk_context);
		ecm_chunk_scan_read(&cs, &r, new_values, old_values, shape->ncolumns);
		while (!done && ecm_entry_next(shape, &cs, &r))
		{
			int			cmp = after->before_all ? 1 :
			ecm_offset_cmp(r.lsn, r.opno, after->lsn, after->op);

			start.known |= cmp == 0;
			if (cmp <= 0)
				continue;
			if (!start.known)
				break;
			MemoryContextSwitchTo(entry_context);
			if (r.op == ECM_OP_INSERT &&
				ecm_entry_missing(r.new_values, shape->ncolumns) > 0)
			{
				if (completer == NULL)
				{
					MemoryContextSwitchTo(old_context);
					completer = ecm_completer_begin(shape, snapshot, base.lsn,
													PG_UINT64_MAX, PG_UINT64_MAX);
					MemoryContextSwitchTo(entry_context);
				}
				ecm_completer_fill(completer, &cs, &r,
								   request->max_entries > 0 ?
								   request->max_entries - returned : 0);
				ecm_entry_check_readable(r.op, shape, r.new_values, NULL);
			}
			return_entry(&reader, &r, rsinfo);
			MemoryContextSwitchTo(chunk_context);
			MemoryContextReset(entry_context);
			done = ++returned == request->max_entries;
		}
		done |= !start.known;	/* the first chunk would have it */
	}
	MemoryContextSwitchTo(old_context);

	ecm_chunk_scan_end(&cs);
	if (completer != NULL)
		ecm_completer_end(completer);
	MemoryContextDelete(chunk_context);
	MemoryContextDelete(entry_context);

	if (!start.known)
	{
		ecm_offset_check_may_come(shape, snapshot, &base, after, logged_lsn);
		return -1;
	}
	return returned;
}

/* ----------------------------------------------------------------
 * Looking shapes up, and waiting
 * ----------------------------------------------------------------
 */

/*
 * ERROR unless a shape, as it was found in a snapshot, exists, is not errored, and may be
 * read by the current user.
 */
static void
check_shape(const char *handle, const EcmShapeDef *shape)
{
	/* an older snapshot may have a shape whose table is gone by now */
	if (shape == NULL ||
		!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(shape->relation)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("shape \"%s\" does not exist", handle),
				 errhint("Create it again with electric_cm_create_shape().")));
	ecm_shape_check_read(shape);

	if (shape->state == ECM_SHAPE_ERRORED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("shape \"%s\" is errored", handle),
				 shape->last_error != NULL ?
				 errdetail("%s", ecm_error_untagged(shape->last_error)) : 0,
				 errhint("Drop it with electric_cm_drop_shape() and create it again with electric_cm_create_shape().")));
}

/*
 * ERROR 55000 if the wait might never end, as the stack waits for the caller's own
 * transaction: to create a shape it waits for transactions that could have written to
 * the table, and a log has nothing of a transaction before that commits.  So it is if
 * the transaction has an xid, or a lock on the table that is stronger than a plain
 * SELECT's; and above READ COMMITTED it would not see what comes.
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
				 ecm_shape_is_readable(shape) ?
				 errdetail("What comes next may have to wait for this transaction, or could not be seen by it.") :
				 errdetail("The shape is being created, which may have to wait for this transaction, or could not be seen by it."),
				 errhint("Commit first.")));
}

/* The result of a look at a shape. */
typedef struct Look
{
	int64		shape;			/* its id */
	Oid			relation;
	bool		readable;
	int64		returned;		/* rows in the result; -1: the log does not
								 * come up to the offset yet */
} Look;

/*
 * Finds the shape and the snapshot to read its log in (registered; the caller
 * unregisters it).  NULL: there is no such shape.  The two have to be of the same moment.
 * In a snapshot that has the shape readable, its log is complete, even if somebody folds or
 * drops it meanwhile; with a shape of now and a log of then, entries might be missing.
 *
 * The statement's own snapshot is used if possible, so that a statement sees the same
 * in all logs that it reads.  That is not possible after a wait, as it does not see
 * what has come, nor for a shape that has become live since.
 */
static EcmShapeDef *
find_shape(const char *handle, bool first_look, Snapshot *snapshot)
{
	EcmShapeDef *shape = NULL;

	if (IsolationUsesXactSnapshot() || (first_look && ActiveSnapshotSet()))
	{
		*snapshot = RegisterSnapshot(ActiveSnapshotSet() ? GetActiveSnapshot() :
									 GetTransactionSnapshot());
		shape = ecm_shape_as_of(handle, *snapshot);
		if (IsolationUsesXactSnapshot() ||
			(shape != NULL && ecm_shape_is_readable(shape)))
			return shape;
		UnregisterSnapshot(*snapshot);
	}

	*snapshot = RegisterSnapshot(GetLatestSnapshot());
	return ecm_shape_as_of(handle, *snapshot);
}

/*
 * One look.  for_entries: the caller goes on to wait if there is nothing to return.  May
 * raise whatever check_shape() and check_may_wait() do.
 */
static void
look_at_shape(const LogRequest *request, bool for_entries, bool first_look,
			  ReturnSetInfo *rsinfo, Look *look)
{
	XLogRecPtr	logged_lsn;
	Snapshot	snapshot;
	EcmShapeDef *shape;

	/*
	 * Read before the snapshot is taken, so that the snapshot has what this
	 * says.  The statement's own may be older: then nothing is known.
	 */
	logged_lsn = first_look || IsolationUsesXactSnapshot() ? InvalidXLogRecPtr :
		ecm_own_flushed_lsn();

	shape = find_shape(request->handle, first_look, &snapshot);
	check_shape(request->handle, shape);
	look->shape = shape->id;
	look->relation = shape->relation;
	look->readable = ecm_shape_is_readable(shape);
	look->returned = 0;
	if (for_entries || !look->readable)
		check_may_wait(shape);
	if (look->readable)
	{
		ecm_note_read(shape->id);
		look->returned = return_entries(shape, request, snapshot, logged_lsn,
										rsinfo);
		if (look->returned < 0)
			check_may_wait(shape);
	}
	UnregisterSnapshot(snapshot);
}

/*
 * Looks at a shape in a subtransaction that is rolled back, so that no lock on our tables
 * is held in a wait.  DROP EXTENSION, for example, would wait for such a lock, and all
 * other sessions behind it.  The result's rows are not transactional, and stay.
 */
static void
look_between_waits(const LogRequest *request, bool for_entries, bool first_look,
				   ReturnSetInfo *rsinfo, Look *look)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		look_at_shape(request, for_entries, first_look, rsinfo, look);
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
		ecm_log_wait_check_extension(); /* if it is gone, say that instead */
		ReThrowError(edata);
	}
	PG_END_TRY();

	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

/* The reason why a shape that is being created has to wait, palloc'd. */
static char *
creation_waits_for(const Look *look)
{
	char	   *waiting_for;

	if (RecoveryInProgress())
		return pstrdup("It comes from the primary.");
	waiting_for = ecm_creation_waiting_for(look->shape, look->relation);
	if (waiting_for == NULL)
		return pstrdup("It waits for the stack to come to it in the stream.");
	return psprintf("It waits for: %s.", waiting_for);
}

/*
 * No time is left, and nothing was returned: ERROR if the shape is not live, or the log
 * does not come up to the offset.  Else an empty result is right.
 */
static void
report_timeout(const LogRequest *request, const Look *look)
{
	if (!look->readable)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("timed out while waiting for shape \"%s\" to be created",
						request->handle),
				 errdetail_internal("%s", creation_waits_for(look)),
				 errhint("Call again to go on waiting.")));
	if (look->returned < 0)
		ecm_offset_report_not_yet(request->handle, &request->after);
}

/*
 * Looks and waits until a look is good: the shape is live, and with for_entries there is
 * something to return; or until the time has passed.  Before each look but the first
 * one the session registers as a waiter (ecm_log_wait_prepare()), so that nothing
 * which is committed after the look is missed.
 */
static void
await_log_until_done(const LogRequest *request, EcmLogWait *wait, bool for_entries,
					 ReturnSetInfo *rsinfo)
{
	for (bool first_look = true;; first_look = false)
	{
		Look		look;

		/*
		 * this needs a stack that runs; a log that is there can be read
		 * without
		 */
		if (for_entries || wait->shape != 0)
			ecm_log_wait_prepare(wait);
		look_between_waits(request, for_entries, first_look, rsinfo, &look);
		if (look.readable &&
			(for_entries ? look.returned > 0 : look.returned >= 0))
			break;

		/*
		 * Waiters are woken for what comes to the log, not for what shows
		 * that an offset can't be one of it: look again now and then.
		 */
		if (look.returned < 0 && wait->pause_ms == 0 && !wait->standby)
			wait->pause_ms = ECM_FIRST_PAUSE_MS;
		if (look.returned < 0 && wait->timeout_ms < 0)
		{
			INSTR_TIME_SET_CURRENT(wait->began);
			wait->timeout_ms = NOT_YET_MS;
		}

		/* only after the first look do we know which shape to wait for */
		if (wait->shape == look.shape && !ecm_log_wait_sleep(wait))
		{
			report_timeout(request, &look);
			break;
		}
		wait->shape = look.shape;
		MemoryContextReset(CurrentMemoryContext);
	}
}

/*
 * Reads a log for a SQL function.  timeout_ms -1: no limit for the creation of the shape.
 * for_entries: wait until there is something to return.
 */
static void
await_log(const LogRequest *request, int64 timeout_ms, bool for_entries,
		  ReturnSetInfo *rsinfo)
{
	EcmLogWait	wait = {.timeout_ms = timeout_ms};
	MemoryContext look_context;
	MemoryContext old_context;

	INSTR_TIME_SET_CURRENT(wait.began);
	look_context = AllocSetContextCreate(CurrentMemoryContext,
										 "electric_cm look",
										 ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(look_context);
	PG_TRY();
	{
		await_log_until_done(request, &wait, for_entries, rsinfo);
	}
	PG_FINALLY();
	{
		ecm_waiters_leave();
	}
	PG_END_TRY();
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
 * offset, or max_entries is not above 0; 42704 no such shape; EC001 the offset
 * is not one of its log, or not any more; 42501 the user may not read it; 55000
 * the shape could not be created, or it is being created and waiting for it is
 * impossible (this transaction is in its way; no stack that works), or the
 * server does not have the log up to the offset yet; XX001 the log is corrupt.
 */
Datum
electric_cm_shape_log(PG_FUNCTION_ARGS)
{
	LogRequest	request;

	ecm_require_sql_fit();
	read_request(fcinfo, &request, 2);
	InitMaterializedSRF(fcinfo, 0);
	await_log(&request, -1, false, (ReturnSetInfo *) fcinfo->resultinfo);
	return (Datum) 0;
}

/*
 * electric_cm_await_shape_log(handle text, after_offset text,
 *							   timeout interval DEFAULT '20 s',
 *							   max_entries int DEFAULT NULL)
 *	-> as electric_cm_shape_log()
 *
 * The same, but waits until there is something to return.  Nothing is
 * returned when the timeout has passed and the log has come up to the offset.
 *
 * Errors: as electric_cm_shape_log(), also if they come up while waiting;
 * 22023 the timeout is negative, NULL or above an hour; 57014 it has passed,
 * and the shape is still being created; 55000 in a transaction that has made
 * changes, holds a lock on the table, or is above READ COMMITTED, or if the
 * stack has failed or is stopped (not on a standby, where it never runs).
 */
Datum
electric_cm_await_shape_log(PG_FUNCTION_ARGS)
{
	LogRequest	request;
	int64		timeout_ms;

	ecm_require_sql_fit();
	read_request(fcinfo, &request, 3);
	timeout_ms = ecm_bounded_timeout_ms(PG_ARGISNULL(2) ? NULL :
										PG_GETARG_INTERVAL_P(2));
	InitMaterializedSRF(fcinfo, 0);
	await_log(&request, timeout_ms, true, (ReturnSetInfo *) fcinfo->resultinfo);
	return (Datum) 0;
}

/*
 * _electric_cm.shape_log_stats(shape int8, gap_lsn pg_lsn)
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
	XLogRecPtr	gap_lsn = PG_ARGISNULL(1) ? InvalidXLogRecPtr : PG_GETARG_LSN(1);
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

	ecm_require_sql_fit();
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	tupdesc = BlessTupleDesc(tupdesc);

	ecm_log_base(shape, snapshot, &base);
	ecm_gap_log_sizes(shape, &base, snapshot, &base_size, &stream_size);
	values[0] = Int64GetDatum(base_size.entries + stream_size.entries);
	values[1] = Int64GetDatum(base_size.bytes + stream_size.bytes);

	nulls[2] = !ecm_log_last_offset(shape, gap_lsn, snapshot, &lsn, &op);
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
