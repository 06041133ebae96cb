/*-------------------------------------------------------------------------
 *
 * health.c
 *	  electric_cm_health(): what support asks for first, in one document.
 *
 * The function must answer in every status of the stack, and on a standby.  So most
 * of the document comes from shared memory.  The little that is read by SQL may fail,
 * or find its table locked; then the document says so.
 *
 * Whatever is not as it should be is a problem with a severity.  The worst of these
 * is the severity of the whole, and the first problem of that severity its reason: so
 * the order in which problems are looked for matters.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "base/settings.h"
#include "base/shmem.h"
#include "base/text.h"
#include "base/version.h"
#include "functions/check.h"
#include "slot/retained_wal.h"
#include "slot/slot.h"

PG_FUNCTION_INFO_V1(electric_cm_health);

/* A start, or an obstacle, that lasts longer needs somebody to look at it. */
#define PATIENCE_MS			60000
/* How many of the last events are shown. */
#define MAX_SHOWN_EVENTS	20

/* ----------------------------------------------------------------- JSON -- */

/*
 * The text is written from front to back.  A comma is due unless the last character
 * opens a group.  name NULL: for an array's element.
 */
static void
add_name(StringInfo json, const char *name)
{
	char		last = json->len > 0 ? json->data[json->len - 1] : '{';

	if (last != '{' && last != '[')
		appendStringInfoChar(json, ',');
	if (name != NULL)
	{
		escape_json(json, name);
		appendStringInfoChar(json, ':');
	}
}

static void
open_group(StringInfo json, const char *name, char bracket)
{
	add_name(json, name);
	appendStringInfoChar(json, bracket);
}

static void
close_group(StringInfo json, char bracket)
{
	appendStringInfoChar(json, bracket);
}

/* A value that is JSON already; NULL: null. */
static void
add_value(StringInfo json, const char *name, const char *value)
{
	add_name(json, name);
	appendStringInfoString(json, value != NULL ? value : "null");
}

/* NULL and "" are null. */
static void
add_text(StringInfo json, const char *name, const char *text)
{
	add_name(json, name);
	if (text == NULL || text[0] == '\0')
		appendStringInfoString(json, "null");
	else
		escape_json(json, ecm_valid_text(text));
}

static void
add_bool(StringInfo json, const char *name, bool value)
{
	add_value(json, name, value ? "true" : "false");
}

/* Negative values are unknown. */
static void
add_int(StringInfo json, const char *name, int64 value)
{
	add_name(json, name);
	if (value < 0)
		appendStringInfoString(json, "null");
	else
		appendStringInfo(json, INT64_FORMAT, value);
}

static void
add_time(StringInfo json, const char *name, TimestampTz time)
{
	char		text[MAXDATELEN + 1];

	if (time == 0)
		add_text(json, name, NULL);
	else
		add_text(json, name,
				 JsonEncodeDateTime(text, TimestampTzGetDatum(time),
									TIMESTAMPTZOID, NULL));
}

static void
add_lsn(StringInfo json, const char *name, XLogRecPtr lsn)
{
	add_text(json, name, XLogRecPtrIsInvalid(lsn) ? NULL :
			 psprintf("%X/%X", LSN_FORMAT_ARGS(lsn)));
}

/* ------------------------------------------------------------- problems -- */

typedef struct Health
{
	EcmStack   *stack;			/* a copy of the entry; see own_stack() */
	bool		standby;
	EcmSeverity severity;		/* the worst so far; LOG: there is no problem */
	char	   *reason;			/* the first problem of that severity */
	StringInfoData problems;	/* JSON: elements of an array */
	StringInfoData json;		/* the document, without these */
} Health;

static const char *
severity_name(EcmSeverity severity)
{
	return severity == ECM_SEVERITY_LOG ? "ok" : ecm_severity_name(severity);
}

static void add_problem(Health *health, EcmSeverity severity,
						const char *fmt,...) pg_attribute_printf(3, 4);

static void
add_problem(Health *health, EcmSeverity severity, const char *fmt,...)
{
	char		text[3 * ECM_TEXT_LEN];
	va_list		args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);

	if (severity > health->severity)
	{
		health->severity = severity;
		health->reason = pstrdup(text);
	}
	open_group(&health->problems, NULL, '{');
	add_text(&health->problems, "severity", severity_name(severity));
	add_text(&health->problems, "problem", text);
	close_group(&health->problems, '}');
}

/* Is that more than PATIENCE_MS ago?  0: it is not the case. */
static bool
has_lasted(EcmTime since)
{
	return since != 0 && ecm_has_passed(since, ecm_now(), PATIENCE_MS);
}

static int
seconds_since(EcmTime since)
{
	return (int) ((ecm_now() - since) / USECS_PER_SEC);
}

/* -------------------------------------------------------------- by SQL -- */

typedef struct OneRow
{
	const char *sql;
	int			ncolumns;
	char	  **values;			/* of the one row */
} OneRow;

static void
run_query(void *arg)
{
	OneRow	   *query = arg;
	int			nrows;

	query->values = ecm_check_query(query->ncolumns, &nrows, "%s", query->sql);
	if (nrows != 1)
		elog(ERROR, "query returned %d rows", nrows);
}

/*
 * Runs a query with one row, and returns its values as text.  NULL if it fails, which is
 * a problem of its own; what: what the query reads, for the text of that.
 */
static char **
query_row(Health *health, const char *what, int ncolumns, const char *sql)
{
	OneRow		query = {sql, ncolumns, NULL};
	char	   *error = ecm_check_guarded(run_query, &query);

	if (error == NULL)
		return query.values;
	add_problem(health, ECM_SEVERITY_WARNING, "could not read %s: %s", what, error);
	return NULL;
}

static void
find_version(void *arg)
{
	ecm_check_version(NULL, arg);
}

static void
add_versions(Health *health)
{
	StringInfo	json = &health->json;
	EcmFinding	finding = {0};
	char	   *error = ecm_check_guarded(find_version, &finding);
	char	  **v = query_row(health, "the extension's version", 1,
							  "SELECT extversion FROM pg_extension WHERE extname = 'electric_cm'");

	open_group(json, "versions", '{');
	add_text(json, "library", ecm_library_version());
	add_text(json, "sql", v ? v[0] : NULL);
	add_text(json, "server", GetConfigOption("server_version", false, false));
	close_group(json, '}');
	if (error == NULL && finding.verdict != ECM_VERDICT_PASS)
		add_problem(health, finding.verdict == ECM_VERDICT_FAIL ? ECM_SEVERITY_ERROR : ECM_SEVERITY_WARNING,
					"%s", finding.detail);
}

/*
 * A shape's creation, or its resync, may take this long (s) before anybody is told.
 */
#define LONG_S	"60"

static void
add_shapes(Health *health)
{
	StringInfo	json = &health->json;
	char	  **v = query_row(health, "the shapes", 8,
							  "SELECT count(*), count(*) FILTER (WHERE state = 'live'),"
							  " count(*) FILTER (WHERE state = 'errored'),"
							  " count(*) FILTER (WHERE waits),"
							  " min(handle) FILTER (WHERE waits AND id = first),"
							  " min(_electric_cm.shape_waiting_for(id, relation))"
							  "  FILTER (WHERE waits AND id = first),"
							  " count(*) FILTER (WHERE state = 'resyncing'),"
							  " count(*) FILTER (WHERE waits AND state = 'resyncing')"
							  " FROM (SELECT *, min(id) FILTER (WHERE waits) OVER () AS first"
							  "  FROM (SELECT *, state NOT IN ('live', 'errored')"
							  "    AND abs(extract(epoch FROM clock_timestamp() - since)) > " LONG_S " AS waits"
							  "   FROM (SELECT s.id, s.handle, s.relation,"
							  "     CASE WHEN t.state IN ('live', 'errored') THEN t.state"
							  "      WHEN t.gap_lsn IS NOT NULL THEN 'resyncing' ELSE 'creating' END AS state,"
							  "     coalesce((SELECT max(g.ordered_at) FROM _electric_cm.shape_gap g"
							  "      WHERE g.shape = s.id AND g.order_xid = t.gap_xid), s.created_at) AS since"
							  "    FROM _electric_cm.shape s"
							  "     LEFT JOIN _electric_cm.shape_state t ON t.shape = s.id"
							  "    WHERE t.state IS DISTINCT FROM 'gone' AND NOT EXISTS"
							  "     (SELECT FROM _electric_cm.lost_shape x WHERE x.shape = s.id)) s) s) s");
	bool		resyncs;

	open_group(json, "shapes", '{');
	add_value(json, "total", v ? v[0] : NULL);
	add_value(json, "live", v ? v[1] : NULL);
	add_value(json, "errored", v ? v[2] : NULL);
	add_value(json, "resyncing", v ? v[6] : NULL);
	close_group(json, '}');
	if (v != NULL && strcmp(v[2], "0") != 0)
		add_problem(health, ECM_SEVERITY_WARNING,
					strcmp(v[2], "1") == 0 ?
					"%s shape is errored and not followed: see electric_cm_shapes" :
					"%s shapes are errored and not followed: see electric_cm_shapes",
					v[2]);
	/* without a manager it is no wonder that none is created */
	if (v == NULL || strcmp(v[3], "0") == 0 || health->stack->manager.pid == 0)
		return;
	resyncs = strcmp(v[3], v[7]) == 0;
	add_problem(health, ECM_SEVERITY_WARNING,
				strcmp(v[3], "1") == 0 ?
				"%s shape has been %s for more than a minute; %s waits for %s" :
				"%s shapes have been %s for more than a minute; %s waits for %s",
				v[3], resyncs ? "compared with the table" : strcmp(v[7], "0") == 0 ? "in creation" : "in creation, or compared with the table",
				v[4], v[5] != NULL ? v[5] : "the stack to come to it");
}

/* A reader may be this far behind before anybody is told. */
#define LONG_LAG	"1 hour"

static void
add_readers(Health *health)
{
	StringInfo	json = &health->json;
	char	  **v = query_row(health, "the readers", 7,
							  "SELECT count(*), count(*) FILTER (WHERE lost), count(*) FILTER (WHERE late),"
							  " max(lag_bytes), extract(epoch FROM max(lag))::int8,"
							  " min(name) FILTER (WHERE lost), min(name) FILTER (WHERE late)"
							  " FROM (SELECT r.name, l.lag_bytes, l.lag, l.lag > '" LONG_LAG "' AS late,"
							  "  EXISTS (SELECT FROM _electric_cm.reader_shape m"
							  "   JOIN _electric_cm.reader_lost x ON x.member = m.id WHERE m.reader = r.id) AS lost"
							  "  FROM _electric_cm.reader r"
							  "   CROSS JOIN LATERAL _electric_cm.reader_stats(r.id) l) r");

	open_group(json, "readers", '{');
	add_value(json, "total", v ? v[0] : NULL);
	add_value(json, "lost", v ? v[1] : NULL);
	add_value(json, "max_lag_bytes", v ? v[3] : NULL);
	add_value(json, "max_lag_seconds", v ? v[4] : NULL);
	close_group(json, '}');
	if (v != NULL && strcmp(v[1], "0") != 0)
		add_problem(health, ECM_SEVERITY_WARNING,
					"named readers have lost shapes, as \"%s\" has: see electric_cm_stat_readers", v[5]);
	if (v != NULL && strcmp(v[2], "0") != 0)
		add_problem(health, ECM_SEVERITY_WARNING,
					"named readers are more than " LONG_LAG " behind, as \"%s\": see electric_cm_stat_readers",
					v[6]);
}

/* The arguments of ecm_failover_look(). */
typedef struct FailoverLook
{
	const char *slot_name;
	EcmFailover failover;
} FailoverLook;

static void
look_at_failover(void *arg)
{
	FailoverLook *look = arg;

	ecm_failover_look(look->slot_name, &look->failover);
}

/*
 * Could a standby take over without a gap?  Where there is none, or nobody wants it, it is
 * no problem that none can.
 */
static void
add_failover(Health *health)
{
	StringInfo	json = &health->json;
	FailoverLook look = {.slot_name = health->stack->slot.name};
	EcmFailover *failover = &look.failover;
	char	   *error = ecm_check_guarded(look_at_failover, &look);

	if (error != NULL)
	{
		memset(failover, 0, sizeof(*failover));
		failover->reason = error;
		add_problem(health, ECM_SEVERITY_WARNING, "could not read the standbys: %s", error);
	}
	open_group(json, "failover", '{');
	add_bool(json, "ready", failover->ready);
	add_text(json, "reason", failover->reason);
	add_int(json, "standbys", failover->known && !failover->standby ? failover->standbys : -1);
	add_int(json, "ready_standbys", failover->known && !failover->standby ? failover->ready_standbys : -1);
	close_group(json, '}');
	if (failover->known && !failover->standby && !failover->ready && failover->standbys > 0 &&
		failover->lasts && ecm_failover && has_lasted(health->stack->report.status_at))
		add_problem(health, ECM_SEVERITY_WARNING,
					"after a promotion shapes may have to be compared with their tables: %s",
					failover->reason);
}

/* The last events of this database, the latest first. */
static void
add_events(Health *health)
{
	char	  **v = query_row(health, "the events", 1,
							  psprintf("SELECT coalesce(jsonb_agg(to_jsonb(e) - 'datname'), '[]')"
									   " FROM (SELECT * FROM %s.electric_cm_events"
									   "  WHERE datname = current_database()"
									   "  ORDER BY occurred_at DESC LIMIT %d) e",
									   ecm_check_schema(), MAX_SHOWN_EVENTS));

	add_value(&health->json, "events", v ? v[0] : NULL);
}

/* ------------------------------------------------- from shared memory -- */

/* The last error and what to do about it, palloc'd; "": there is none. */
static char *
last_error(const EcmStack *stack)
{
	if (stack->report.last_error[0] == '\0')
		return "";
	return psprintf("%s%s%s", stack->report.last_error,
					stack->report.last_error_hint[0] != '\0' ? ". " : "",
					stack->report.last_error_hint);
}

/* Do launcher and manager run and go round?  If not, all else may be out of date. */
static void
judge_supervision(Health *health)
{
	const EcmStack *stack = health->stack;

	if (ecm_launcher_pid() == 0)
		add_problem(health, ECM_SEVERITY_ERROR,
					"the launcher is not running: nothing is supervised");
	else if (ecm_launcher_hangs())
		add_problem(health, ECM_SEVERITY_ERROR,
					"the launcher, PID %d, has not moved for %d s: nothing is supervised",
					ecm_launcher_pid(),
					seconds_since(ecm_shared->launcher_alive_at));
	if (ecm_manager_hangs(stack))
		add_problem(health,
					has_lasted(stack->manager.alive_at) ?
					ECM_SEVERITY_ERROR : ECM_SEVERITY_WARNING,
					"manager PID %d has not moved for %d s: the launcher watches its slot meanwhile. If it is stopped, kill -CONT %d lets it go on; don't kill -9 it, which would restart the whole server",
					stack->manager.pid, seconds_since(stack->manager.alive_at), stack->manager.pid);
}

/*
 * Does a consumer stall?  Looked at before the slot: a slot that is held back by the
 * consumer is a consequence, and the first problem is the reason that is shown.
 */
static void
judge_consumers(Health *health)
{
	const EcmStack *stack = health->stack;
	bool		blocked = strstr(stack->stall.text, "blocked by ") != NULL;

	if (stack->stall.text[0] == '\0' || stack->manager.pid == 0)
		return;
	add_problem(health, ECM_SEVERITY_WARNING,
				blocked ?
				"Readers are %d s behind: %s. It goes on when that one has ended; nothing is lost" :
				"Readers are %d s behind: %s hangs. If a shape is to blame, it is given up after electric_cm.shape_stall_timeout. SELECT pg_terminate_backend(%d) restarts it; nothing is lost. (If it is stopped, kill -CONT %d lets it go on.)",
				seconds_since(stack->stall.at), stack->stall.text,
				stack->stall.pid, stack->stall.pid);
}

static void
judge_starting(Health *health)
{
	const EcmStack *stack = health->stack;
	const char *error = stack->report.retry_count > 0 ? last_error(stack) : "";
	bool		waits = stack->report.waiting_for[0] != '\0';

	/* the waiting text may have the error in it already */
	if (waits && strstr(stack->report.waiting_for, stack->report.last_error) != NULL)
		error = stack->report.retry_count > 0 ? stack->report.last_error_hint : "";
	add_problem(health,
				has_lasted(stack->report.status_at) || has_lasted(stack->report.failing_at) ?
				ECM_SEVERITY_ERROR : ECM_SEVERITY_WARNING,
				"the stack is starting, step %s%s%s%s%s", stack->report.step,
				waits ? ", and waits for " : "", stack->report.waiting_for,
				error[0] != '\0' ? ": " : "", error);
}

static void
judge_status(Health *health)
{
	const EcmStack *stack = health->stack;

	if (health->standby)
		return;
	judge_supervision(health);
	if (ecm_manager_hangs(stack))
		return;
	judge_consumers(health);
	switch (stack->report.status)
	{
		case ECM_STATUS_ACTIVE:
			if (has_lasted(stack->report.failing_at))
				add_problem(health, ECM_SEVERITY_ERROR,
							"the stack fails again and again, for %d s now: %s",
							seconds_since(stack->report.failing_at), last_error(stack));
			break;
		case ECM_STATUS_FAILED:
			add_problem(health, ECM_SEVERITY_ERROR, "the stack has failed: %s",
						last_error(stack));
			break;
		case ECM_STATUS_STARTING:
			judge_starting(health);
			break;
		case ECM_STATUS_STOPPED:
			add_problem(health, ECM_SEVERITY_WARNING,
						"the stack is stopped: %s",
						stack->report.waiting_for);
			break;
		case ECM_STATUS_WAITING:
			add_problem(health, ECM_SEVERITY_WARNING, "the stack is waiting for %s",
						stack->report.waiting_for);
			break;
	}
}

static void
add_status(Health *health)
{
	const EcmStack *stack = health->stack;
	StringInfo	json = &health->json;

	judge_status(health);
	add_text(json, "database", stack->datname);
	add_text(json, "stack_id", stack->report.stack_id);
	add_bool(json, "standby", health->standby);
	add_text(json, "status", ecm_status_name(stack->report.status));
	add_time(json, "status_since", stack->report.status_since);
	add_text(json, "step", stack->report.step);
	add_text(json, "waiting_for", stack->report.waiting_for);
	add_int(json, "manager_pid", stack->manager.pid != 0 ? stack->manager.pid : -1);
	add_int(json, "restarts", stack->lifecycle.restarts);
	add_int(json, "retry_count", stack->report.retry_count);
	add_time(json, "next_retry_at", stack->report.next_retry_at);

	open_group(json, "last_error", '{');
	add_text(json, "message", stack->report.last_error);
	add_text(json, "sqlstate", stack->report.last_error_sqlstate);
	add_text(json, "hint", stack->report.last_error_hint);
	add_time(json, "at", stack->report.last_error_at);
	close_group(json, '}');
}

/* The step that the manager is at; none: ECM_NUM_STEPS. */
static int
current_step(const EcmStack *stack)
{
	int			step = 0;

	while (step < ECM_NUM_STEPS &&
		   (stack->manager.pid == 0 || strcmp(stack->report.step, ecm_step_name(step)) != 0))
		step++;
	return step;
}

/*
 * One of the four conditions that make an active stack; first and last: the steps that
 * bring it about.  The error that is shown for it is the stack's last one, if the stack
 * is at these steps and retries; else other_error, that of its connections.
 */
static void
add_condition(Health *health, const char *name, bool met, EcmStep first,
			  EcmStep last, const char *other_error)
{
	const EcmStack *stack = health->stack;
	StringInfo	json = &health->json;
	int			step = current_step(stack);
	bool		at_work = step >= (int) first && step <= (int) last;
	bool		failing = stack->report.retry_count > 0 || stack->report.status == ECM_STATUS_FAILED;
	const char *error = at_work && failing ? stack->report.last_error : other_error;

	open_group(json, name, '{');
	add_bool(json, "met", met);
	add_text(json, "error", met ? NULL : error);
	add_text(json, "waiting_for", !met && at_work ? stack->report.waiting_for : NULL);
	close_group(json, '}');
}

static const char *
pool_error(const EcmStack *stack)
{
	for (int i = 1; i < (int) lengthof(stack->conns); i++)
		if (stack->conns[i].used && stack->conns[i].last_error[0] != '\0')
			return stack->conns[i].last_error;
	return NULL;
}

static const char *
consumers_error(const EcmStack *stack)
{
	for (int i = 0; i < Min(stack->nconsumers, ECM_MAX_SHAPE_WORKERS); i++)
		if (stack->consumers[i].used && stack->consumers[i].pid == 0)
			return psprintf("consumer %d is not running", i + 1);
	return NULL;
}

static void
add_conditions(Health *health)
{
	const EcmStack *stack = health->stack;

	open_group(&health->json, "conditions", '{');
	add_condition(health, "lock", stack->report.lock_acquired,
				  ECM_STEP_ACQUIRE_LOCK, ECM_STEP_ACQUIRE_LOCK, NULL);
	add_condition(health, "pool", stack->report.pool_up,
				  ECM_STEP_START_POOL, ECM_STEP_CHECK_TIMELINE, pool_error(stack));
	add_condition(health, "consumers", stack->report.consumers_up,
				  ECM_STEP_START_CONSUMERS, ECM_STEP_START_CONSUMERS,
				  consumers_error(stack));
	/* whatever else there is, it is for the stream */
	add_condition(health, "replication", stack->report.streaming_up,
				  ECM_STEP_CONNECT_REPLICATION, ECM_STEP_STREAMING,
				  stack->conns[0].last_error);
	close_group(&health->json, '}');
	if (stack->slot.pinned_by[0] != '\0' && has_lasted(stack->slot.pinned_at))
		add_problem(health, ECM_SEVERITY_WARNING,
					"the slot is pinned by %s", stack->slot.pinned_by);
}

static void
judge_slot(Health *health, const EcmWalSample *wal, int64 limit)
{
	const EcmStack *stack = health->stack;

	if (!wal->slot_exists)
	{
		if (stack->report.status == ECM_STATUS_ACTIVE)
			add_problem(health, ECM_SEVERITY_WARNING,
						"replication slot \"%s\" does not exist", stack->slot.name);
		return;
	}
	if (strcmp(wal->wal_status, "lost") == 0)
		add_problem(health, ECM_SEVERITY_ERROR,
					"replication slot \"%s\" is lost", stack->slot.name);
	else if (strcmp(wal->wal_status, "unreserved") == 0)
		add_problem(health, ECM_SEVERITY_ERROR,
					"replication slot \"%s\" is about to be lost to max_slot_wal_keep_size",
					stack->slot.name);
	else if (limit > 0 && wal->retained_wal_bytes >= limit)
		add_problem(health, ECM_SEVERITY_WARNING,
					"replication slot \"%s\" retains " INT64_FORMAT " MB of WAL%s%s",
					stack->slot.name, wal->retained_wal_bytes / (1024 * 1024),
					stack->slot.pinned_by[0] != '\0' ? ", pinned by " : "",
					stack->slot.pinned_by);
}

/*
 * Is the disk about to be full?  That is a problem whoever fills it, and even without a
 * slot.  There is no setting for the data directory, which usually is on the same file
 * system, so the one for pg_wal counts for it, too.
 */
static void
judge_free_space(Health *health, const EcmWalSample *wal, int64 min_free)
{
	int64		data_low = min_free > 0 ? min_free : ECM_WAL_BLAME_BYTES;

	if (wal->wal_free_bytes >= 0 &&
		wal->wal_free_bytes < Max(min_free, wal_segment_size))
		add_problem(health,
					wal->wal_free_bytes < wal_segment_size ?
					ECM_SEVERITY_ERROR : ECM_SEVERITY_WARNING,
					"only %s are free under pg_wal",
					ecm_size_text(wal->wal_free_bytes));
	else if (wal->data_free_bytes >= 0 && wal->data_free_bytes < data_low)
		add_problem(health, ECM_SEVERITY_WARNING,
					"only %s are free in the data directory",
					ecm_size_text(wal->data_free_bytes));
}

/* Hours, minutes and seconds; negative: null. */
static void
add_duration(StringInfo json, const char *name, int64 us)
{
	int64		seconds = us / USECS_PER_SEC;

	add_text(json, name, us < 0 ? NULL :
			 psprintf("%02d:%02d:%02d", (int) (seconds / 3600),
					  (int) (seconds / 60 % 60), (int) (seconds % 60)));
}

static void
add_slot(Health *health)
{
	const EcmStack *stack = health->stack;
	StringInfo	json = &health->json;
	EcmWalSample wal = stack->slot.sample;
	EcmWalLimits limits;

	(void) ecm_slot_sample(stack->slot.name, &wal);
	ecm_retained_wal_effective_limits(&stack->wal_settings, &limits);
	judge_slot(health, &wal, limits.warning);
	judge_free_space(health, &wal, limits.min_free);
	open_group(json, "slot", '{');
	add_text(json, "name", stack->slot.name);
	add_text(json, "publication", stack->report.publication_name);
	add_bool(json, "exists", wal.slot_exists);
	if (wal.slot_exists)
	{
		add_bool(json, "active", wal.active);
		add_text(json, "wal_status", wal.wal_status);
		add_lsn(json, "restart_lsn", wal.restart_lsn);
		add_lsn(json, "confirmed_flush_lsn", wal.confirmed_flush_lsn);
		add_lsn(json, "current_lsn", wal.current_lsn);
		add_int(json, "retained_wal_bytes", wal.retained_wal_bytes);
		add_int(json, "flush_lag_bytes", wal.flush_lag_bytes);
		add_int(json, "safe_wal_size", wal.safe_wal_size);
		add_duration(json, "time_to_limit",
					 stack->slot.sample.slot_exists ? stack->slot.guard.time_to_limit_us : -1);
	}
	add_int(json, "wal_free_bytes", wal.wal_free_bytes);
	add_int(json, "data_free_bytes", wal.data_free_bytes);
	add_text(json, "pinned_by", stack->slot.pinned_by);
	add_time(json, "last_commit_at", stack->progress.last_commit_at);
	close_group(json, '}');
}

/*
 * Adds a setting if it is not the default.  The document may be passed on to others, so
 * connection strings are hidden from everybody.
 */
static void
add_setting(StringInfo json, const char *name, const char *value, const char *source)
{
	bool		secret = strcmp(name, "electric_cm.connection") == 0 ||
	strcmp(name, "electric_cm.pooled_connection") == 0;

	if (strcmp(source, "default") != 0)
		add_text(json, name, secret && value[0] != '\0' ? "********" : value);
}

static void
add_settings(Health *health)
{
	const EcmStack *stack = health->stack;
	StringInfo	json = &health->json;
	const char *name;
	const char *source;
	char	   *value;

	open_group(json, "settings", '{');
	if (stack->noptions > 0)
		for (int i = 0; i < Min(stack->noptions, ECM_MAX_OPTIONS); i++)
			add_setting(json, stack->options[i].name, stack->options[i].setting,
						stack->options[i].source);
	else
		for (int i = 0; ecm_setting_at(i, stack->datname, &name, &value, &source); i++)
			add_setting(json, name, value, source);
	close_group(json, '}');
}

/*
 * A copy of the database's entry.  Without an entry, one that is stopped, with the reason
 * if that is known.
 */
static EcmStack *
own_stack(bool standby)
{
	EcmStack   *stack = palloc0(sizeof(EcmStack));

	if (ecm_own_stack(stack) < 0)
	{
		memset(stack, 0, sizeof(EcmStack));
		strlcpy(stack->datname, get_database_name(MyDatabaseId), NAMEDATALEN);
		stack->report.status = ECM_STATUS_STOPPED;
		if (standby)
			strlcpy(stack->report.waiting_for, ECM_STANDBY_REASON, sizeof(stack->report.waiting_for));
		else if (!ecm_database_is_listed(stack->datname))
			strlcpy(stack->report.waiting_for, "not listed in electric_cm.databases",
					sizeof(stack->report.waiting_for));
	}
	if (stack->slot.name[0] == '\0')
		strlcpy(stack->slot.name, ecm_effective_slot_name(stack->datname), NAMEDATALEN);
	return stack;
}

/*
 * electric_cm_health() -> jsonb
 *
 * Raises no error for what it finds; changes nothing.
 *
 * 55000: not preloaded.
 */
Datum
electric_cm_health(FunctionCallInfo fcinfo pg_attribute_unused())
{
	Health		health = {0};
	StringInfo	json = &health.json;
	const char *reason;

	ecm_require_shared();
	health.standby = RecoveryInProgress();
	health.stack = own_stack(health.standby);
	initStringInfo(&health.problems);
	initStringInfo(json);

	open_group(json, NULL, '{');
	add_status(&health);
	add_versions(&health);
	add_conditions(&health);
	add_slot(&health);
	add_failover(&health);
	add_shapes(&health);
	add_readers(&health);
	add_settings(&health);
	add_events(&health);

	reason = health.reason ? health.reason : health.stack->report.waiting_for;
	add_text(json, "severity", severity_name(health.severity));
	add_text(json, "reason", reason);
	add_value(json, "problems", psprintf("[%s]", health.problems.data));
	close_group(json, '}');

	PG_RETURN_DATUM(DirectFunctionCall1(jsonb_in, CStringGetDatum(json->data)));
}
