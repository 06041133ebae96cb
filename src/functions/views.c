/*-------------------------------------------------------------------------
 *
 * views.c
 *	  The SQL functions behind the views: rows made of shared memory.
 *
 * An entry is copied under the lock and turned into rows without it, since that
 * allocates memory and may raise an ERROR.  The columns' order is that of the
 * functions' declarations in the extension's script.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/stack_catalog.h"
#include "base/text.h"
#include "base/waiters.h"
#include "functions/check.h"
#include "slot/slot.h"
#include "slot/slot_name.h"

PG_FUNCTION_INFO_V1(electric_cm_stat_manager);
PG_FUNCTION_INFO_V1(electric_cm_stat_connections);
PG_FUNCTION_INFO_V1(electric_cm_stat_replication);
PG_FUNCTION_INFO_V1(electric_cm_stat_consumers);
PG_FUNCTION_INFO_V1(electric_cm_stat_waiters);
PG_FUNCTION_INFO_V1(electric_cm_events);
PG_FUNCTION_INFO_V1(electric_cm_options);
PG_FUNCTION_INFO_V1(electric_cm_pg_info);

/*
 * A row is built column by column, by the functions below.  Each of them has a value
 * that stands for "unknown" and becomes NULL: 0, invalid, or the empty text.
 */
#define MAX_COLUMNS 40

typedef struct Row
{
	int			n;
	Datum		values[MAX_COLUMNS];
	bool		nulls[MAX_COLUMNS];
} Row;

static void
add(Row *row, Datum value, bool isnull)
{
	Assert(row->n < MAX_COLUMNS);
	row->values[row->n] = value;
	row->nulls[row->n] = isnull;
	row->n++;
}

static void
add_null(Row *row)
{
	add(row, (Datum) 0, true);
}

static void
add_text(Row *row, const char *value)
{
	if (value == NULL || value[0] == '\0')
		add_null(row);
	else
		add(row, CStringGetTextDatum(ecm_valid_text(value)), false);
}

static void
add_name(Row *row, const char *value)
{
	if (value[0] == '\0')
		add_null(row);
	else
		add(row, DirectFunctionCall1(namein, CStringGetDatum(ecm_valid_text(value))),
			false);
}

static void
add_int4(Row *row, int32 value)
{
	add(row, Int32GetDatum(value), false);
}

static void
add_int8(Row *row, int64 value)
{
	add(row, Int64GetDatum(value), false);
}

static void
add_bool(Row *row, bool value)
{
	add(row, BoolGetDatum(value), false);
}

static void
add_pid(Row *row, int pid)
{
	add(row, Int32GetDatum(pid), pid == 0);
}

static void
add_lsn(Row *row, XLogRecPtr lsn)
{
	add(row, LSNGetDatum(lsn), XLogRecPtrIsInvalid(lsn));
}

static void
add_time(Row *row, TimestampTz time)
{
	add(row, TimestampTzGetDatum(time), time == 0);
}

static void
add_duration(Row *row, int64 microseconds)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = microseconds;
	add(row, IntervalPGetDatum(interval), false);
}

/* Puts the row into the result, and empties it. */
static void
put_row(FunctionCallInfo fcinfo, Row *row)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	/* the function of another version may have other columns */
	if (row->n != rsinfo->setDesc->natts)
		elog(ERROR, "row of %d columns where the function has %d: library and extension are of different versions",
			 row->n, rsinfo->setDesc->natts);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc,
						 row->values, row->nulls);
	row->n = 0;
}

/*
 * Calls put_rows with a copy of each stack's entry; entries that the launcher has only
 * for a look at a database are no stacks.  copy: ecm_stack_copy, or ecm_stack_copy_head
 * if the head is enough.
 */
static Datum
for_each_stack(FunctionCallInfo fcinfo, bool (*copy) (int index, EcmStack *copy),
			   void (*put_rows) (FunctionCallInfo fcinfo, const EcmStack *stack))
{
	EcmStack   *stack;

	ecm_require_shared();
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	stack = palloc(sizeof(EcmStack));
	for (int i = 0; i < ecm_stack_count(); i++)
		if (copy(i, stack) && stack->registered)
			put_rows(fcinfo, stack);
	pfree(stack);
	return (Datum) 0;
}

static void
put_manager(FunctionCallInfo fcinfo, const EcmStack *stack)
{
	Row			row = {0};

	add(&row, ObjectIdGetDatum(stack->dboid), false);
	add_name(&row, stack->datname);
	add_text(&row, stack->report.stack_id);
	add_pid(&row, stack->manager.pid);
	add_text(&row, ecm_status_name(stack->report.status));
	add_text(&row, stack->report.phase);
	add_text(&row, stack->report.step);
	add_time(&row, stack->report.status_since);
	add_text(&row, stack->report.waiting_for);
	add_text(&row, stack->report.last_error);
	add_text(&row, stack->report.last_error_sqlstate);
	add_time(&row, stack->report.last_error_at);
	add_int4(&row, stack->report.retry_count);
	add_time(&row, stack->report.next_retry_at);
	add_duration(&row, stack->report.total_retry_us);
	add_int4(&row, stack->lifecycle.restarts);
	put_row(fcinfo, &row);
}

/*
 * A row for a standby, which has no launcher and so no entries.  Of the databases there,
 * only the caller's is known to have the extension.
 */
static void
put_standby(FunctionCallInfo fcinfo)
{
	EcmStack   *stack = palloc0(sizeof(EcmStack));

	stack->dboid = MyDatabaseId;
	strlcpy(stack->datname, get_database_name(MyDatabaseId), NAMEDATALEN);
	stack->report.status = ECM_STATUS_STOPPED;
	stack->report.status_since = PgStartTime;
	strlcpy(stack->report.waiting_for, ECM_STANDBY_REASON, sizeof(stack->report.waiting_for));
	put_manager(fcinfo, stack);
	pfree(stack);
}

/*
 * electric_cm_stat_manager() -> setof record: one row per stack; on a standby,
 * one that says so
 */
Datum
electric_cm_stat_manager(PG_FUNCTION_ARGS)
{
	Datum		result = for_each_stack(fcinfo, ecm_stack_copy_head, put_manager);

	if (RecoveryInProgress())
		put_standby(fcinfo);
	return result;
}

static void
put_connections(FunctionCallInfo fcinfo, const EcmStack *stack)
{
	for (int i = 0; i < (int) lengthof(stack->conns); i++)
	{
		const EcmConnInfo *conn = &stack->conns[i];
		Row			row = {0};

		if (!conn->used)
			continue;
		add_name(&row, stack->datname);
		add_text(&row, i == 0 ? "replication" : "pool");
		add_int4(&row, i);
		add_text(&row, conn->state);
		add_pid(&row, conn->backend_pid);
		if (conn->connected_since != 0)
			add_bool(&row, conn->ssl);
		else
			add_null(&row);
		add_text(&row, conn->address);
		add_time(&row, conn->connected_since);
		add_text(&row, conn->last_error);
		put_row(fcinfo, &row);
	}
}

/*
 * electric_cm_stat_connections() -> setof record: one row per connection;
 * ordinal 0 is the replication connection
 */
Datum
electric_cm_stat_connections(PG_FUNCTION_ARGS)
{
	return for_each_stack(fcinfo, ecm_stack_copy, put_connections);
}

/* A size or count that is unknown if negative. */
static void
add_known(Row *row, int64 value)
{
	add(row, Int64GetDatum(value), value < 0);
}

static void
add_known_duration(Row *row, int64 microseconds)
{
	if (microseconds < 0)
		add_null(row);
	else
		add_duration(row, microseconds);
}

static void
put_replication(FunctionCallInfo fcinfo, const EcmStack *stack)
{
	const EcmWalSample *wal = &stack->slot.sample;
	const EcmDecoding *decoding = &wal->decoding;
	bool		sampled = wal->sampled_at != 0;
	bool		exists = sampled && wal->slot_exists;
	bool		known = exists && wal->sizes_known;
	Row			row = {0};

	add_name(&row, stack->datname);
	add_name(&row, stack->slot.name);
	add_name(&row, stack->report.publication_name);
	add(&row, BoolGetDatum(wal->active), !exists);
	add_pid(&row, wal->active_pid);
	add_text(&row, wal->wal_status);
	add_lsn(&row, wal->restart_lsn);
	add_lsn(&row, wal->confirmed_flush_lsn);
	add_lsn(&row, stack->progress.received_lsn);
	add_lsn(&row, stack->progress.flushed_lsn);
	add_lsn(&row, wal->current_lsn);
	add_known(&row, known ? wal->retained_wal_bytes : -1);
	add_known(&row, known ? wal->flush_lag_bytes : -1);
	add_known(&row, known ? wal->safe_wal_size : -1);
	add_known(&row, stack->slot.guard.wal_rate_known ?
			  (int64) stack->slot.guard.wal_rate : -1);
	add_known(&row, sampled ? wal->wal_free_bytes : -1);
	add_known_duration(&row, known ? stack->slot.guard.time_to_limit_us : -1);
	add(&row, Int32GetDatum(wal->catalog_xmin_age),
		!exists || wal->catalog_xmin_age < 0);
	add_time(&row, stack->progress.last_commit_at);
	add_known_duration(&row, known ? wal->flush_lag_us : -1);
	add_text(&row, stack->slot.pinned_by);
	add_time(&row, stack->slot.pinned_since);
	add_time(&row, wal->sampled_at);
	add_time(&row, decoding->stats_reset);
	add_known(&row, decoding->known ? decoding->spill_txns : -1);
	add_known(&row, decoding->known ? decoding->spill_bytes : -1);
	add_known(&row, decoding->known ? decoding->stream_txns : -1);
	add_known(&row, decoding->known ? decoding->stream_bytes : -1);
	add_known(&row, decoding->known ? decoding->total_txns : -1);
	add_known(&row, decoding->known ? decoding->total_bytes : -1);
	add_known(&row, stack->progress.shape_log_bytes > 0 ? stack->progress.shape_log_bytes : -1);
	add_known(&row, sampled ? wal->data_free_bytes : -1);
	put_row(fcinfo, &row);
}

/*
 * A row for a standby, where nobody takes samples: a sample of now, of the slot that a
 * stack here would use, if there is one.
 */
static void
put_standby_replication(FunctionCallInfo fcinfo)
{
	EcmStack   *stack = palloc0(sizeof(EcmStack));
	EcmStackRow remembered;

	ecm_stack_row_read(&remembered);
	strlcpy(stack->datname, get_database_name(MyDatabaseId), NAMEDATALEN);
	strlcpy(stack->slot.name,
			ecm_slot_name_of_stack(&remembered, stack->datname), NAMEDATALEN);
	strlcpy(stack->report.publication_name, ecm_publication_name, NAMEDATALEN);
	(void) ecm_slot_sample(stack->slot.name, &stack->slot.sample);
	stack->slot.sample.flush_lag_us = -1;
	put_replication(fcinfo, stack);
	pfree(stack);
}

/*
 * electric_cm_stat_replication() -> setof record: one row per stack; sizes in
 * bytes, as of sampled_at.  On a standby, one of this database, as of now.
 */
Datum
electric_cm_stat_replication(PG_FUNCTION_ARGS)
{
	Datum		result = for_each_stack(fcinfo, ecm_stack_copy_head, put_replication);

	if (RecoveryInProgress())
		put_standby_replication(fcinfo);
	return result;
}

static void
put_consumers(FunctionCallInfo fcinfo, const EcmStack *stack)
{
	for (int i = 0; i < Min(stack->nconsumers, ECM_MAX_SHAPE_WORKERS); i++)
	{
		const EcmConsumerSlot *consumer = &stack->consumers[i];
		Row			row = {0};

		if (!consumer->used)
			continue;
		add_name(&row, stack->datname);
		add_int4(&row, i + 1);	/* as in the process's title */
		add_pid(&row, consumer->pid);
		add_int4(&row, (int32) consumer->shapes);
		add_lsn(&row, consumer->received_lsn);
		add_lsn(&row, consumer->durable_lsn);
		add_int8(&row, consumer->transactions);
		add_int8(&row, consumer->changes);
		add_int8(&row, consumer->matched_changes);
		add_time(&row, consumer->last_progress_at);
		add_int4(&row, (int32) consumer->restarts);
		put_row(fcinfo, &row);
	}
}

/* electric_cm_stat_consumers() -> setof record: one row per consumer */
Datum
electric_cm_stat_consumers(PG_FUNCTION_ARGS)
{
	return for_each_stack(fcinfo, ecm_stack_copy, put_consumers);
}

static void
put_waiters(FunctionCallInfo fcinfo, const EcmStack *stack)
{
	Row			row = {0};
	int			sessions;
	int			shapes;

	ecm_waiters_count(stack->dboid, &sessions, &shapes);
	add_name(&row, stack->datname);
	add_int4(&row, sessions);
	add_int4(&row, shapes);
	put_row(fcinfo, &row);
}

/* electric_cm_stat_waiters() -> setof record: one row per stack */
Datum
electric_cm_stat_waiters(PG_FUNCTION_ARGS)
{
	return for_each_stack(fcinfo, ecm_stack_copy_head, put_waiters);
}

/* Is it a setting whose value pg_settings shows to superusers only? */
static bool
is_superuser_only(const char *name)
{
	return strcmp(name, "electric_cm.connection") == 0 ||
		strcmp(name, "electric_cm.pooled_connection") == 0;
}

static void
put_options(FunctionCallInfo fcinfo, const EcmStack *stack)
{
	bool		all = has_privs_of_role(GetUserId(),
										ROLE_PG_READ_ALL_SETTINGS);

	for (int i = 0; i < Min(stack->noptions, ECM_MAX_OPTIONS); i++)
	{
		const EcmOption *option = &stack->options[i];
		Row			row = {0};

		add_name(&row, stack->datname);
		add_text(&row, option->name);
		if (option->setting[0] != '\0' && is_superuser_only(option->name) &&
			!all)
			add_text(&row, "<superuser only>");
		else
			add(&row, CStringGetTextDatum(ecm_valid_text(option->setting)), false);
		add_text(&row, option->source);
		put_row(fcinfo, &row);
	}
}

/*
 * electric_cm_options() -> setof record: the settings that each stack's manager
 * works with
 */
Datum
electric_cm_options(PG_FUNCTION_ARGS)
{
	return for_each_stack(fcinfo, ecm_stack_copy, put_options);
}

typedef struct StoredEvents
{
	FunctionCallInfo fcinfo;
	uint64		end;			/* from this number on, the ring has them */
} StoredEvents;

/* In a subtransaction: puts the events that the table has, and the ring no more. */
static void
put_stored_events(void *arg)
{
	StoredEvents *stored = arg;
	Oid			types[] = {TIMESTAMPTZOID, INT8OID};
	Datum		values[] = {TimestampTzGetDatum(ecm_shared->made_at),
	Int64GetDatum((int64) stored->end)};
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	(void) set_config_option("lock_timeout", "100ms", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_execute_with_args("SELECT current_database(), occurred_at, event,"
							  " severity, message, detail FROM _electric_cm.event"
							  " WHERE made_at <> $1 OR number < $2"
							  " ORDER BY made_at, number",
							  2, types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read _electric_cm.event");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Row			row = {0};
		bool		isnull;

		add_name(&row, SPI_getvalue(tuple, desc, 1));
		add_time(&row, DatumGetTimestampTz(SPI_getbinval(tuple, desc, 2, &isnull)));
		for (int column = 3; column <= 6; column++)
			add_text(&row, SPI_getvalue(tuple, desc, column));
		put_row(stored->fcinfo, &row);
	}
	ecm_spi_end(&spi);
}

/*
 * electric_cm_events() -> setof record: the last events, the oldest first
 *
 * The last ones come from the ring in shared memory, older ones from a table.  If
 * somebody has the table locked, only the ring is shown, with a WARNING: this function
 * is for those who look for what is wrong.
 */
Datum
electric_cm_events(PG_FUNCTION_ARGS)
{
	EcmEventRecord *events;
	StoredEvents stored = {fcinfo, 0};
	uint64		end;
	char	   *error;
	int			n;

	ecm_require_shared();
	InitMaterializedSRF(fcinfo, 0);
	events = palloc(sizeof(EcmEventRecord) * ECM_MAX_EVENTS);
	n = ecm_events_copy(InvalidOid, 0, events, &end);
	stored.end = n > 0 ? events[0].number : end;
	error = ecm_check_guarded(put_stored_events, &stored);
	if (error != NULL)
		ereport(WARNING,
				(errmsg("older events are not shown: %s", error)));
	for (int i = 0; i < n; i++)
	{
		const EcmEventRecord *event = &events[i];
		Row			row = {0};

		add_name(&row, event->datname);
		add_time(&row, event->occurred_at);
		add_text(&row, ecm_event_name(event->event));
		add_text(&row, ecm_severity_name(ecm_event_severity(event->event)));
		add_text(&row, event->message);
		add_text(&row, event->detail);
		put_row(fcinfo, &row);
	}
	return (Datum) 0;
}

/*
 * electric_cm_pg_info() -> (server_version_num int4, system_identifier int8,
 * timeline_id int4, looked_up_at timestamptz)
 *
 * As the stack looked them up; NULL before that.
 *
 * 55000: not preloaded.
 */
Datum
electric_cm_pg_info(PG_FUNCTION_ARGS)
{
	TupleDesc	tupdesc;
	EcmStack   *stack;
	Row			row = {0};

	ecm_require_shared();
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	stack = palloc(sizeof(EcmStack));
	if (ecm_own_stack_head(stack) >= 0 && stack->server.looked_up_at != 0)
	{
		add_int4(&row, stack->server.version_num);
		add_int8(&row, (int64) stack->server.system_identifier);
		add_int4(&row, (int32) stack->server.timeline_id);
		add_time(&row, stack->server.looked_up_at);
	}
	else
		for (int i = 0; i < 4; i++)
			add_null(&row);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc),
													  row.values, row.nulls)));
}
