/*-------------------------------------------------------------------------
 *
 * deliver_events.c
 *	  Delivers events: to a table that survives the server's end, and by
 *	  NOTIFY electric_cm.
 *
 * Events are recorded in a ring in shared memory, by whatever process they
 * happen in, even while it exits.  A pool session takes the events of its
 * database from there, writes the warnings and errors to _electric_cm.event,
 * and notifies LISTENers of all.  Events that are recorded while no manager
 * runs wait for the next manager, as long as the ring still has them.
 *
 * An event is identified for ever by the time when shared memory was made and
 * its number since then.  The table tells which events it has, and the session
 * notes in shared memory, at its commit, up to which number it has delivered.
 * So no event is delivered twice, even if the manager has ended meanwhile.
 *
 * A failure to deliver is never an event itself.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/itemptr.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/bgworker.h"
#include "base/errors.h"
#include "base/event.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/table_writer.h"
#include "base/text.h"
#include "jobs/deliver_events.h"

#define CHANNEL				"electric_cm"
/* How many events the table keeps. */
#define MAX_STORED			1000

/* columns of _electric_cm.event */
enum
{
	EVENT_MADE_AT,
	EVENT_NUMBER,
	EVENT_OCCURRED_AT,
	EVENT_EVENT,
	EVENT_SEVERITY,
	EVENT_MESSAGE,
	EVENT_DETAIL,
	EVENT_NATTS
};

PG_FUNCTION_INFO_V1(electric_cm_deliver_events);

/* What this session is delivering in its present transaction. */
static struct
{
	uint64		end;			/* events before this one are delivered if the
								 * transaction commits; 0: none */
	bool		registered;		/* at_xact_end() is called */
}			delivering;

/* ---------------------------------------------------------------- table -- */

/*
 * The number of the first event, since shared memory was made, that the table
 * does not have.
 */
static uint64
first_not_stored(void)
{
	Oid			type = TIMESTAMPTZOID;
	Datum		made_at = TimestampTzGetDatum(ecm_shared->made_at);
	EcmSpiState spi;
	Datum		next;
	bool		isnull;

	ecm_spi_begin(&spi);
	if (SPI_execute_with_args("SELECT max(number) + 1 FROM _electric_cm.event WHERE made_at = $1",
							  1, &type, &made_at, NULL, false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not read _electric_cm.event");
	next = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	ecm_spi_end(&spi);
	return isnull ? 0 : (uint64) DatumGetInt64(next);
}

static void
put_event(EcmTableWriter *writer, const EcmEventRecord *event)
{
	TupleTableSlot *slot = writer->slot;
	Datum	   *values = slot->tts_values;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	memset(slot->tts_isnull, false, EVENT_NATTS * sizeof(bool));
	values[EVENT_MADE_AT] = TimestampTzGetDatum(ecm_shared->made_at);
	values[EVENT_NUMBER] = Int64GetDatum((int64) event->number);
	values[EVENT_OCCURRED_AT] = TimestampTzGetDatum(event->occurred_at);
	values[EVENT_EVENT] = CStringGetTextDatum(ecm_event_name(event->event));
	values[EVENT_SEVERITY] = CStringGetTextDatum(ecm_severity_name(ecm_event_severity(event->event)));
	values[EVENT_MESSAGE] = CStringGetTextDatum(ecm_valid_text(event->message));
	values[EVENT_DETAIL] = CStringGetTextDatum(ecm_valid_text(event->detail));
	slot->tts_isnull[EVENT_DETAIL] = event->detail[0] == '\0';
	ecm_table_writer_put(writer);
}

/*
 * Deletes all events but the latest MAX_STORED.  If the clock was ahead once,
 * events from then seem to be later than all new ones, which would be deleted
 * instead; so they go first.  The rows are deleted below SQL, which refuses to
 * delete from a published table without a replica identity.
 */
static void
prune(void)
{
	Relation	rel = table_open(ecm_own_relid("event"), RowExclusiveLock);
	Oid			type = TIMESTAMPTZOID;
	Datum		made_at = TimestampTzGetDatum(ecm_shared->made_at);
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	if (SPI_execute_with_args(psprintf("SELECT ctid FROM _electric_cm.event"
									   " ORDER BY made_at <= $1 DESC, made_at DESC,"
									   " number DESC OFFSET %d", MAX_STORED),
							  1, &type, &made_at, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read _electric_cm.event");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		tid = SPI_getbinval(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1, &isnull);

		simple_table_tuple_delete(rel, (ItemPointer) DatumGetPointer(tid),
								  GetActiveSnapshot());
	}
	ecm_spi_end(&spi);
	table_close(rel, NoLock);
}

/*
 * Keeps out other sessions that deliver events until this transaction ends.
 * They would not see the rows that we write, and write them again.
 */
static void
lock_table(void)
{
	table_close(table_open(ecm_own_relid("event"), ShareUpdateExclusiveLock), NoLock);
}

/* The caller holds the lock. */
static void
store(const EcmEventRecord *events, int n)
{
	EcmTableWriter writer;
	uint64		first;
	bool		any = false;

	for (int i = 0; i < n; i++)
		any |= ecm_event_severity(events[i].event) > ECM_SEVERITY_LOG;
	if (!any)
		return;

	ecm_table_writer_begin(&writer, "event", RowExclusiveLock);
	first = first_not_stored();
	for (int i = 0; i < n; i++)
		if (ecm_event_severity(events[i].event) > ECM_SEVERITY_LOG && events[i].number >= first)
			put_event(&writer, &events[i]);
	ecm_table_writer_end(&writer);
	prune();
}

/* -------------------------------------------------------------- NOTIFY -- */

static void
append_member(StringInfo json, const char *name, const char *value)
{
	appendStringInfo(json, "%c\"%s\":", json->len == 0 ? '{' : ',', name);
	if (value[0] == '\0')
		appendStringInfoString(json, "null");
	else
		escape_json(json, ecm_valid_text(value));
}

static void
notify(const EcmEventRecord *event)
{
	StringInfoData json;
	char		occurred_at[MAXDATELEN + 1];
	Datum		time = TimestampTzGetDatum(event->occurred_at);

	JsonEncodeDateTime(occurred_at, time, TIMESTAMPTZOID, NULL);
	initStringInfo(&json);
	append_member(&json, "event", ecm_event_name(event->event));
	append_member(&json, "severity", ecm_severity_name(ecm_event_severity(event->event)));
	append_member(&json, "message", ecm_event_meaning(event->event));
	append_member(&json, "occurred_at", occurred_at);
	append_member(&json, "datname", event->datname);
	appendStringInfoChar(&json, '}');
	Async_Notify(CHANNEL, json.data);
	pfree(json.data);
}

/*
 * Copies this database's events that have not been delivered yet into *events
 * (palloc'd), and returns their number.  When they are delivered, all events
 * with numbers below *end are.
 */
static int
undelivered(EcmEventRecord **events, uint64 *end)
{
	uint64		from = 0;
	int			index;

	ecm_lock(LW_SHARED);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0)
		from = ecm_stack_at(index)->events.delivered;
	ecm_unlock();
	*end = 0;
	*events = palloc(sizeof(EcmEventRecord) * ECM_MAX_EVENTS);
	return index < 0 ? 0 : ecm_events_copy(MyDatabaseId, from, *events, end);
}

/*
 * Notes which events the transaction has delivered.  At its commit, and in
 * this process: the lock on the table is still held then, and the manager that
 * has asked for the delivery may be gone.
 */
static void
at_xact_end(XactEvent event, void *arg pg_attribute_unused())
{
	int			index;

	if (event == XACT_EVENT_COMMIT && delivering.end != 0)
	{
		ecm_lock(LW_EXCLUSIVE);
		index = ecm_stack_find_locked(MyDatabaseId);
		if (index >= 0)
			ecm_stack_at(index)->events.delivered = delivering.end;
		ecm_unlock();
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
		delivering.end = 0;
}

/*
 * _electric_cm.deliver_events() -> void
 *
 * Delivers this database's events that have not been delivered yet.
 *
 * 55000: not preloaded.
 */
Datum
electric_cm_deliver_events(FunctionCallInfo fcinfo pg_attribute_unused())
{
	EcmEventRecord *events;
	uint64		end;
	int			n;

	ecm_require_shared();
	if (!delivering.registered)
		RegisterXactCallback(at_xact_end, NULL);
	delivering.registered = true;

	lock_table();
	n = undelivered(&events, &end);
	store(events, n);
	for (int i = 0; i < n; i++)
		notify(&events[i]);
	delivering.end = end;
	PG_RETURN_VOID();
}

/* --------------------------------------------------------- a manager's end -- */

static void
store_all(void *arg pg_attribute_unused())
{
	EcmEventRecord *events;
	uint64		end;
	int			n;

	lock_table();
	n = undelivered(&events, &end);
	store(events, n);
}

bool
ecm_events_store(EcmError *err)
{
	return ecm_worker_try(store_all, NULL, err);
}
