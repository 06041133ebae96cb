/*-------------------------------------------------------------------------
 *
 * replication.c
 *	  The replication connection: its setup steps, the stream, the feedback.
 *
 * The connection leads back into the server that we run in, so whatever the
 * server can tell about the slot is read from shared memory, and its walsender
 * can be ended with a signal.  That matters: a client that merely gives up
 * leaves an active slot behind until the walsender notices.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_publication.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "replication/walsender.h"
#include "storage/latch.h"
#include "storage/standby.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "base/backend.h"
#include "base/bgworker.h"
#include "base/compat.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/text.h"
#include "base/wait_event.h"
#include "manager/replication.h"
#include "slot/slot.h"

PG_FUNCTION_INFO_V1(electric_cm_own_publication);

#define QUERY_TIMEOUT_MS	30000

/* How often a busy slot is looked at, and for how long. */
#define SLOT_POLL_MS		10
/* ... and for leave to make the slot. */
#define HOLD_POLL_MS		1000
#define SLOT_BUSY_TIMEOUT_MS	5000
/* ... and how often a walsender of ours that has it is asked to end. */
#define FORMER_REMIND_MS	1000

/* Whose slot is in other hands for so long has lost it. */
#define OTHER_USER_MS		1000

/*
 * The walsender's timeout in our sessions: the server's own, within these
 * bounds.  0 would mean never, and who has died would keep the slot.
 */
#define MIN_SENDER_TIMEOUT_MS	1000
#define MAX_SENDER_TIMEOUT_MS	60000
/* It hears from us after a third of that, but at least this often. */
#define MAX_FEEDBACK_MS			15000

/* pgoutput's protocol 1 has all that we need, and every server speaks it. */
#define PROTO_VERSION		1

/* Harmless if repeated; see walsender.c. */
#define TUNE_WALSENDER			"SELECT _electric_cm.tune_walsender()"

static char *rep_dbname;
static char *rep_slot;
static char *rep_publication;

static EcmConn *rep_conn = NULL;
static EcmReplicationInfo rep_info;
static int	rep_sender_timeout_ms = MAX_SENDER_TIMEOUT_MS;
static int	rep_walsender_pid = 0;	/* of the present connection, or the last */
static int	former_pid = 0;		/* of an earlier one: it still has the slot */
static EcmTime former_asked_at; /* to end */

/* progress within a step */
static int	step_query;			/* which of the step's queries runs */
static EcmTime step_deadline;	/* for steps that wait without a socket */
static EcmTime step_started;
static bool drop_slot_first;	/* create_slot is to make a new one */
static char hold_slot[256];		/* why not now, or "" */
static int	hold_slot_pid;		/* who is to blame for that; 0: nobody known */
static bool held_up;			/* that is what create_slot waits for */
static bool creating_slot;		/* the server is at it */
static bool made_unheard;		/* it was at it when the connection was lost */
static int	slot_user;			/* another process that uses it, 0: none */
static char waiting_for[256];

/* the stream */
static XLogRecPtr keepalive_lsn;
static bool reply_requested;
static XLogRecPtr acknowledged_lsn;
static EcmTime last_feedback;
static EcmTime last_asked;
static EcmTime asked_at;		/* for a sign of life; 0: there was one since */
static EcmBackendLook asked_look;	/* the walsender then */
static EcmBackendLook last_look;	/* ... and when its last word was asked for */
static int	stream_pid;			/* who had the slot when the stream began */
static EcmTime other_user_at;	/* that it isn't so any more; 0: it is */

void
ecm_replication_init(const char *dbname, const char *slot_name,
					 const char *publication_name)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	rep_dbname = pstrdup(dbname);
	rep_slot = pstrdup(slot_name);
	rep_publication = pstrdup(publication_name);
	memset(&rep_info, 0, sizeof(rep_info));
	MemoryContextSwitchTo(old);
}

const EcmReplicationInfo *
ecm_replication_info(void)
{
	return &rep_info;
}

EcmConn *
ecm_replication_conn(void)
{
	return rep_conn;
}

void
ecm_replication_slot_settled(void)
{
	rep_info.slot_created = false;
}

EcmTime
ecm_replication_deadline(void)
{
	return step_deadline;
}

/* ---------------------------------------------------------------- steps -- */

static EcmStepResult
step_failed(EcmStepFailure *failure, EcmErrorKind kind, const char *sqlstate,
			const char *message, const char *detail, const char *hint)
{
	ecm_error_set(&failure->err, sqlstate, message, detail, hint);
	failure->kind = kind;
	return ECM_RESULT_FAILED;
}

void
ecm_failure_set(EcmStepFailure *failure, const EcmError *err,
				EcmErrorContext context)
{
	const char *hint = ecm_error_hint(err, context);

	failure->err = *err;
	failure->kind = ecm_error_kind(err, context);
	if (err->hint[0] == '\0' && hint != NULL)
		strlcpy(failure->err.hint, hint, sizeof(failure->err.hint));
}

/* The failure of the connection or of the query that has just ended. */
static EcmStepResult
conn_failed(EcmStepFailure *failure, EcmErrorContext context)
{
	ecm_failure_set(failure, ecm_conn_error(rep_conn), context);
	return ECM_RESULT_FAILED;
}

/*
 * Polls the running query: PENDING, DONE (it succeeded) or FAILED.
 */
static EcmStepResult
poll_query(EcmStepFailure *failure, EcmErrorContext context)
{
	switch (ecm_conn_poll(rep_conn))
	{
		case ECM_CONN_CONNECTING:
		case ECM_CONN_BUSY:
			return ECM_RESULT_PENDING;
		case ECM_CONN_IDLE:
			if (ecm_conn_ok(rep_conn))
				return ECM_RESULT_DONE;
			return conn_failed(failure, context);
		default:
			return conn_failed(failure, context);
	}
}

static void
start_connect(void)
{
	EcmConnParams params = {0};

	Assert(rep_conn == NULL);
	params.conninfo = ecm_connection;
	params.setting = "electric_cm.connection";
	params.dbname = rep_dbname;
	params.application_name = "electric_cm replication";
	params.replication = true;
	params.connect_timeout_ms = ecm_connect_timeout;

	/* the session keeps what it starts with, even if the setting changes */
	rep_sender_timeout_ms = wal_sender_timeout > 0 ?
		Min(Max(wal_sender_timeout, MIN_SENDER_TIMEOUT_MS),
			MAX_SENDER_TIMEOUT_MS) : MAX_SENDER_TIMEOUT_MS;
	params.wal_sender_timeout_ms = rep_sender_timeout_ms;
	rep_conn = ecm_conn_start(&params);
}

static EcmStepResult
poll_connect(EcmStepFailure *failure)
{
	switch (ecm_conn_poll(rep_conn))
	{
		case ECM_CONN_CONNECTING:
			return ECM_RESULT_PENDING;
		case ECM_CONN_IDLE:
			rep_walsender_pid = ecm_conn_backend_pid(rep_conn);
			return ECM_RESULT_DONE;
		default:
			return conn_failed(failure, ECM_CONTEXT_CONNECT);
	}
}

static EcmStepResult
poll_identify_system(EcmStepFailure *failure)
{
	EcmStepResult result = poll_query(failure, ECM_CONTEXT_OTHER);

	if (result != ECM_RESULT_DONE)
		return result;
	if (ecm_conn_nrows(rep_conn) != 1)
		return step_failed(failure, ECM_ERROR_RETRY, "08P01",
						   "IDENTIFY_SYSTEM returned no row", "", "");

	rep_info.system_identifier =
		strtou64(ecm_conn_value(rep_conn, 0, 0), NULL, 10);
	rep_info.timeline_id =
		(uint32) strtoul(ecm_conn_value(rep_conn, 0, 1), NULL, 10);
	if (rep_info.system_identifier != GetSystemIdentifier())
		return step_failed(failure, ECM_ERROR_FATAL, "F0000",
						   "the configured connection leads to another server",
						   "Its system identifier differs from this server's.",
						   "Correct electric_cm.connection, or leave it empty.");
	return ECM_RESULT_DONE;
}

/*
 * A physical copy of this server has the same system identifier; it does not
 * have the same start time.
 */
const char *
ecm_whereabouts_sql(void)
{
	return "SELECT (extract(epoch FROM pg_catalog.pg_postmaster_start_time())"
		" * 1000000)::pg_catalog.int8, (SELECT oid FROM pg_catalog.pg_database"
		" WHERE datname = pg_catalog.current_database())";
}

bool
ecm_leads_here(const EcmConn *conn, EcmStepFailure *failure)
{
	const char *start = ecm_conn_value(conn, 0, 0);
	const char *database = ecm_conn_value(conn, 0, 1);
	const int64 epoch_us = (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
		USECS_PER_DAY;

	if (start == NULL || strtoi64(start, NULL, 10) - epoch_us != PgStartTime)
		(void) step_failed(failure, ECM_ERROR_FATAL, "F0000",
						   "the configured connection leads to another server",
						   "Its start time differs from this server's.",
						   "Correct electric_cm.connection and electric_cm.pooled_connection, or leave them empty.");
	else if (database == NULL || strtoul(database, NULL, 10) != MyDatabaseId)
		(void) step_failed(failure, ECM_ERROR_FATAL, "F0000",
						   "the configured connection leads to another database",
						   "Each database's stack needs a connection to that database.",
						   "Take dbname out of electric_cm.connection and electric_cm.pooled_connection, or set it for each database.");
	else
		return true;
	return false;
}

static EcmStepResult
poll_pg_info(EcmStepFailure *failure)
{
	EcmStepResult result = poll_query(failure, ECM_CONTEXT_OTHER);

	if (result != ECM_RESULT_DONE)
		return result;
	if (!ecm_leads_here(rep_conn, failure))
		return ECM_RESULT_FAILED;
	rep_info.server_version_num = ecm_conn_server_version(rep_conn);
	rep_info.looked_up_at = ecm_wall_clock();
	return ECM_RESULT_DONE;
}

/* The second column: does it filter rows or columns of any table? */
static char *
publication_facts_sql(void)
{
	return psprintf("SELECT p.pubinsert AND p.pubupdate AND p.pubdelete"
					" AND p.pubtruncate, EXISTS (SELECT FROM"
					" pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid"
					" AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)),"
					" p.pubviaroot FROM pg_catalog.pg_publication p WHERE p.pubname = %s",
					ecm_quote_literal(rep_publication));
}

/* Is a publication that exists good for us?  All are "t" or "f". */
static EcmStepResult
judge_publication(const char *publishes_everything, const char *filters,
				  const char *via_root, EcmStepFailure *failure)
{
	if (strcmp(publishes_everything, "t") != 0)
		return step_failed(failure, ECM_ERROR_FATAL, "F0000",
						   psprintf("publication \"%s\" does not publish insert, update, delete and truncate",
									rep_publication), "",
						   psprintf("ALTER PUBLICATION %s SET (publish = 'insert, update, delete, truncate')",
									quote_identifier(rep_publication)));
	if (strcmp(filters, "f") != 0)
		return step_failed(failure, ECM_ERROR_FATAL, "F0000",
						   psprintf("publication \"%s\" filters rows or columns",
									rep_publication), "",
						   "Remove row filters and column lists from it, or set electric_cm.publication_name to another publication.");
	if (strcmp(via_root, "f") != 0)
		return step_failed(failure, ECM_ERROR_FATAL, "F0000",
						   psprintf("publication \"%s\" publishes partitions as changes of their root",
									rep_publication), "",
						   psprintf("ALTER PUBLICATION %s SET (publish_via_partition_root = false)",
									quote_identifier(rep_publication)));
	return ECM_RESULT_DONE;
}

static void
start_publication(void)
{
	ecm_conn_send(rep_conn, publication_facts_sql(), QUERY_TIMEOUT_MS);
}

static EcmStepResult
poll_publication(EcmStepFailure *failure)
{
	EcmStepResult result = poll_query(failure, ECM_CONTEXT_PUBLICATION);
	StringInfoData sql;

	if (result != ECM_RESULT_DONE || step_query > 0)
		return result;

	if (ecm_conn_nrows(rep_conn) > 0)
		return judge_publication(ecm_conn_value(rep_conn, 0, 0),
								 ecm_conn_value(rep_conn, 0, 1),
								 ecm_conn_value(rep_conn, 0, 2), failure);

	if (!ecm_create_publication)
		return step_failed(failure, ECM_ERROR_FATAL, "F0000",
						   psprintf("publication \"%s\" does not exist and electric_cm.create_publication is off",
									rep_publication), "",
						   psprintf("CREATE PUBLICATION %s",
									quote_identifier(rep_publication)));

	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "CREATE PUBLICATION %s;"
					 "SELECT _electric_cm.own_publication(%s);"
					 "UPDATE _electric_cm.stack SET publication_name = %s",
					 quote_identifier(rep_publication),
					 ecm_quote_literal(rep_publication),
					 ecm_quote_literal(rep_publication));
	ecm_conn_send(rep_conn, sql.data, QUERY_TIMEOUT_MS);
	step_query++;
	return ECM_RESULT_PENDING;
}

/*
 * The same, but read in this process: the stream's session can't be asked.
 */
static void
look_at_publication(void *arg)
{
	EcmStepFailure *failure = arg;
	EcmSpiState spi;

	failure->err.sqlstate[0] = '\0';
	ecm_spi_begin(&spi);
	if (SPI_execute(publication_facts_sql(), true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look up publication \"%s\"", rep_publication);
	if (SPI_processed == 0)
		(void) step_failed(failure, ECM_ERROR_RECREATE, "42704",
						   psprintf("publication \"%s\" has been dropped",
									rep_publication),
						   "Changes made since then are missing from the stream.", "");
	else
		(void) judge_publication(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1),
								 SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2),
								 SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3),
								 failure);
	ecm_spi_end(&spi);
}

bool
ecm_replication_publication_is_good(EcmStepFailure *failure)
{
	EcmError	err;

	/* what can't be read now, as while the catalog is locked, is read later */
	return !ecm_worker_try(look_at_publication, failure, &err) ||
		failure->err.sqlstate[0] == '\0';
}

void
ecm_replication_recreate_slot(void)
{
	drop_slot_first = true;
}

bool
ecm_replication_recreates_slot(void)
{
	return drop_slot_first;
}

void
ecm_replication_hold_slot(const char *why, int pid)
{
	strlcpy(hold_slot, why != NULL ? why : "", sizeof(hold_slot));
	hold_slot_pid = pid;
}

bool
ecm_replication_creates_slot(void)
{
	return rep_conn != NULL && creating_slot;
}

const char *
ecm_replication_waiting_for(int *pid)
{
	*pid = held_up && hold_slot[0] != '\0' ? hold_slot_pid : slot_user;
	if (held_up && hold_slot[0] != '\0')
		return hold_slot;
	return slot_user != 0 ? waiting_for : NULL;
}

/*
 * Somebody uses the slot.  If it is a walsender of ours, on its way out, it is
 * reminded.  One that is stopped, or hangs in the kernel, can't be ended by
 * anything that would not restart the whole server.
 */
static EcmStepResult
wait_for_slot_user(EcmStepFailure *failure, int pid)
{
	EcmTime		now = ecm_now();
	bool		ours = pid == former_pid;

	if (ours && ecm_has_passed(former_asked_at, now, FORMER_REMIND_MS))
	{
		kill(pid, SIGTERM);
		former_asked_at = now;
	}
	if (ecm_has_passed(step_started, now, SLOT_BUSY_TIMEOUT_MS))
		return ours ?
			step_failed(failure, ECM_ERROR_RETRY, "55006",
						psprintf("walsender PID %d, of the connection before, does not answer and does not end",
								 pid),
						psprintf("It still has replication slot \"%s\".", rep_slot),
						psprintf("If it is stopped, kill -CONT %d lets it go on, and end. Don't kill -9 it: that would restart the whole server.",
								 pid)) :
			step_failed(failure, ECM_ERROR_RETRY, "55006",
						psprintf("replication slot \"%s\" is active for PID %d",
								 rep_slot, pid), "",
						"Stop the other consumer, or set electric_cm.slot_name to another name.");
	slot_user = pid;
	snprintf(waiting_for, sizeof(waiting_for),
			 ours ? "replication slot \"%s\", which walsender PID %d, of the connection before, has not given up" :
			 "replication slot \"%s\", which PID %d uses", rep_slot, pid);
	step_deadline = ecm_later(now, SLOT_POLL_MS);
	return ECM_RESULT_PENDING;
}

static EcmStepResult
wait_for_leave(void)
{
	held_up = true;
	step_deadline = ecm_later(ecm_now(),
												HOLD_POLL_MS);
	return ECM_RESULT_PENDING;
}

static EcmStepResult
drop_useless_slot(EcmStepFailure *failure)
{
	if (!ecm_slot_drop(rep_slot, &failure->err))
	{
		failure->kind = ECM_ERROR_RETRY;
		return ECM_RESULT_FAILED;
	}
	drop_slot_first = false;
	ecm_event(MyDatabaseId, rep_dbname, "replication_slot_dropped",
			  ECM_SEVERITY_WARNING,
			  "The shapes that were made with it are invalid.",
			  "dropped replication slot \"%s\", to make a new one", rep_slot);
	return ECM_RESULT_DONE;
}

/* Never the advice to drop what another stack, or somebody like us, needs. */
static char *
foreign_slot_hint(const EcmSlotFacts *facts)
{
	char		datname[NAMEDATALEN];

	if (ecm_slot_name_is_taken(rep_slot, datname))
		return psprintf("Set electric_cm.slot_name to another name for this database: that slot belongs to the stack of database \"%s\".",
						datname);
	if (facts->logical && facts->database != MyDatabaseId &&
		strcmp(facts->plugin, "pgoutput") == 0)
		return "Set electric_cm.slot_name to another name for this database.";
	return "Set electric_cm.slot_name to another name, or drop that slot with pg_drop_replication_slot().";
}

/*
 * The slot as it is: usable, unusable for good, or not there.  Creating one
 * waits for every transaction that runs; lock_timeout bounds that wait
 * (statement_timeout doesn't), and the status check forces a standby snapshot
 * so that it ends soon after they have.
 */
static EcmStepResult
look_at_slot(EcmStepFailure *failure, bool *create)
{
	EcmSlotFacts facts;

	*create = false;
	slot_user = 0;
	held_up = false;
	if (!ecm_slot_lookup(rep_slot, &facts))
	{
		drop_slot_first = false;
		made_unheard = false;
		if (hold_slot[0] != '\0')
			return wait_for_leave();
		*create = true;
		return ECM_RESULT_DONE;
	}

	if (!facts.logical || facts.database != MyDatabaseId ||
		strcmp(facts.plugin, "pgoutput") != 0)
		return step_failed(failure, ECM_ERROR_FATAL, "42710",
						   psprintf("replication slot \"%s\" belongs to another database or plugin",
									rep_slot), "", foreign_slot_hint(&facts));
	if (facts.active_pid != 0)
		return wait_for_slot_user(failure, facts.active_pid);
	if (drop_slot_first)
	{
		EcmStepResult result = drop_useless_slot(failure);

		if (result == ECM_RESULT_DONE && hold_slot[0] != '\0')
			return wait_for_leave();
		*create = true;
		return result;
	}
	if (facts.invalidated)
		return step_failed(failure, ECM_ERROR_RECREATE, "55000",
						   psprintf("replication slot \"%s\" has been invalidated",
									rep_slot),
						   "The WAL that it needed has been removed.", "");
	rep_info.confirmed_flush_lsn = facts.confirmed_flush_lsn;
	if (made_unheard)
		rep_info.slot_created = true;
	return ECM_RESULT_DONE;
}

/* Ends the transaction that the slot was made in, and puts down whose it is. */
static void
record_slot(void)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "%sUPDATE _electric_cm.stack SET slot_name = %s",
					 ecm_conn_idle_in_no_transaction(rep_conn) ? "" : "COMMIT; ",
					 ecm_slot_temporary ? "NULL" : ecm_quote_literal(rep_slot));
	ecm_conn_send(rep_conn, sql.data, QUERY_TIMEOUT_MS);
	made_unheard = false;
}

static void
send_create_slot(void)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "CREATE_REPLICATION_SLOT %s%s LOGICAL pgoutput (SNAPSHOT 'nothing')",
					 quote_identifier(rep_slot),
					 ecm_slot_temporary ? " TEMPORARY" : "");
	ecm_conn_send(rep_conn, sql.data, 0);
	creating_slot = true;
}

static void
slot_created(void)
{
	rep_info.slot_created = true;
	rep_info.confirmed_flush_lsn =
		DatumGetLSN(DirectFunctionCall1(pg_lsn_in,
										CStringGetDatum(ecm_conn_value(rep_conn, 0, 1))));
	record_slot();
}

/* What poll_slot() has sent, as step_query. */
enum
{
	SLOT_LOOK,					/* nothing yet */
	SLOT_TUNE,
	SLOT_BEGIN,
	SLOT_CREATE,
	SLOT_RECORD
};

/*
 * While it creates the slot the server waits for the locks of transactions,
 * and whoever waits without being in a transaction himself may be ended at the
 * moment when the lock is granted to him, and then nobody releases it.  Hence
 * the transaction around it.
 */
static EcmStepResult
poll_slot(EcmStepFailure *failure)
{
	EcmStepResult result;
	bool		create;

	step_deadline = 0;
	if (step_query == SLOT_LOOK)
	{
		if (ecm_conn_poll(rep_conn) == ECM_CONN_FAILED)
			return conn_failed(failure, ECM_CONTEXT_SLOT);
		result = look_at_slot(failure, &create);
		if (result == ECM_RESULT_DONE && made_unheard && !create)
		{
			record_slot();
			step_query = SLOT_RECORD;
			return ECM_RESULT_PENDING;
		}
		if (result != ECM_RESULT_DONE || !create)
			return result;
		/*
		 * While it creates the slot, too, the walsender looks whether it is a
		 * synchronous standby.  A failed attempt has left its transaction.
		 */
		ecm_conn_send(rep_conn, ecm_conn_idle_in_no_transaction(rep_conn) ?
					  TUNE_WALSENDER : "ROLLBACK; " TUNE_WALSENDER,
					  QUERY_TIMEOUT_MS);
		step_query = SLOT_TUNE;
		return ECM_RESULT_PENDING;
	}

	result = poll_query(failure, ECM_CONTEXT_SLOT);
	creating_slot = result == ECM_RESULT_PENDING && step_query == SLOT_CREATE;
	if (step_query == SLOT_CREATE && ecm_conn_state(rep_conn) == ECM_CONN_FAILED)
		made_unheard = true;
	if (result != ECM_RESULT_DONE)
		return result;

	switch (step_query++)
	{
		case SLOT_TUNE:
			ecm_conn_send(rep_conn, "BEGIN", QUERY_TIMEOUT_MS);
			return ECM_RESULT_PENDING;
		case SLOT_BEGIN:
			send_create_slot();
			return ECM_RESULT_PENDING;
		case SLOT_CREATE:
			slot_created();
			return ECM_RESULT_PENDING;
		default:
			return ECM_RESULT_DONE;
	}
}

/* Who uses the slot; 0: nobody. */
static int
slot_active_pid(void)
{
	EcmSlotFacts facts;

	return ecm_slot_lookup(rep_slot, &facts) ? facts.active_pid : 0;
}

static EcmStepResult
poll_start_streaming(EcmStepFailure *failure)
{
	EcmConnState state = ecm_conn_poll(rep_conn);

	if (state == ECM_CONN_BUSY)
		return ECM_RESULT_PENDING;
	if (state == ECM_CONN_COPY_BOTH)
	{
		keepalive_lsn = InvalidXLogRecPtr;
		reply_requested = false;
		acknowledged_lsn = InvalidXLogRecPtr;
		last_feedback = 0;
		last_asked = asked_at = other_user_at = 0;
		stream_pid = slot_active_pid();
		return ECM_RESULT_DONE;
	}
	return conn_failed(failure, ECM_CONTEXT_STREAM);
}

/*
 * A string literal as the replication grammar reads it: no escape syntax.
 */
static char *
replication_literal(const char *text)
{
	StringInfoData out;

	initStringInfo(&out);
	appendStringInfoChar(&out, '\'');
	for (; *text; text++)
	{
		if (*text == '\'')
			appendStringInfoChar(&out, '\'');
		appendStringInfoChar(&out, *text);
	}
	appendStringInfoChar(&out, '\'');
	return out.data;
}

static void
start_streaming(XLogRecPtr start_lsn)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "START_REPLICATION SLOT %s LOGICAL %X/%X"
					 " (proto_version '%d', publication_names %s, messages 'true')",
					 quote_identifier(rep_slot), LSN_FORMAT_ARGS(start_lsn),
					 PROTO_VERSION,
					 replication_literal(quote_identifier(rep_publication)));
	ecm_conn_send(rep_conn, sql.data, QUERY_TIMEOUT_MS);
}

/*
 * _electric_cm.own_publication(name name) RETURNS void
 *
 * Makes a publication that we have created go with the extension, as
 * ALTER ... DEPENDS ON EXTENSION does for the kinds of objects that it knows.
 * It can still be dropped by itself, and pg_dump dumps it.
 *
 * 42704: there is no such publication.
 */
Datum
electric_cm_own_publication(PG_FUNCTION_ARGS)
{
	ObjectAddress publication;
	ObjectAddress extension;

	ObjectAddressSet(publication, PublicationRelationId,
					 get_publication_oid(NameStr(*PG_GETARG_NAME(0)), false));
	ObjectAddressSet(extension, ExtensionRelationId,
					 get_extension_oid("electric_cm", false));
	if (!list_member_oid(getAutoExtensionsOfObject(PublicationRelationId,
												   publication.objectId),
						 extension.objectId))
		recordDependencyOn(&publication, &extension, DEPENDENCY_AUTO_EXTENSION);
	PG_RETURN_VOID();
}

void
ecm_replication_start_step(EcmStep step, XLogRecPtr start_lsn)
{
	step_query = 0;
	step_deadline = 0;
	slot_user = 0;
	held_up = false;
	creating_slot = false;
	step_started = ecm_now();

	switch (step)
	{
		case ECM_STEP_CONNECT_REPLICATION:
			start_connect();
			break;
		case ECM_STEP_IDENTIFY_SYSTEM:
			ecm_conn_send(rep_conn, "IDENTIFY_SYSTEM", QUERY_TIMEOUT_MS);
			break;
		case ECM_STEP_PG_INFO:
			ecm_conn_send(rep_conn, ecm_whereabouts_sql(), QUERY_TIMEOUT_MS);
			break;
		case ECM_STEP_CREATE_PUBLICATION:
			start_publication();
			break;
		case ECM_STEP_CREATE_SLOT:
			break;				/* starts with a look at shared memory */
		case ECM_STEP_SET_DISPLAY_SETTINGS:
			ecm_conn_send(rep_conn,
						  "SET datestyle = 'ISO'; SET intervalstyle = 'postgres';"
						  "SET timezone = 'UTC'; SET extra_float_digits = 1;"
						  "SET bytea_output = 'hex'; " TUNE_WALSENDER,
						  QUERY_TIMEOUT_MS);
			break;
		case ECM_STEP_START_STREAMING:
			start_streaming(start_lsn);
			break;
		default:
			elog(ERROR, "step %s does not concern the replication connection",
				 ecm_step_name(step));
	}
}

EcmStepResult
ecm_replication_poll_step(EcmStep step, EcmStepFailure *failure)
{
	switch (step)
	{
		case ECM_STEP_CONNECT_REPLICATION:
			return poll_connect(failure);
		case ECM_STEP_IDENTIFY_SYSTEM:
			return poll_identify_system(failure);
		case ECM_STEP_PG_INFO:
			return poll_pg_info(failure);
		case ECM_STEP_CREATE_PUBLICATION:
			return poll_publication(failure);
		case ECM_STEP_CREATE_SLOT:
			return poll_slot(failure);
		case ECM_STEP_SET_DISPLAY_SETTINGS:
			return poll_query(failure, ECM_CONTEXT_OTHER);
		case ECM_STEP_START_STREAMING:
			return poll_start_streaming(failure);
		default:
			elog(ERROR, "step %s does not concern the replication connection",
				 ecm_step_name(step));
	}
	return ECM_RESULT_PENDING;	/* keep compiler quiet */
}

/* --------------------------------------------------------------- stream -- */

static int
stream_failed(EcmStepFailure *failure)
{
	(void) conn_failed(failure, ECM_CONTEXT_STREAM);
	ecm_error_hide_row(&failure->err);

	/*
	 * 55000 in the stream can mean many things.  Whether the slot is beyond
	 * recovery is seen by looking at it, not by reading the message.
	 */
	if (failure->kind != ECM_ERROR_FATAL)
	{
		EcmSlotFacts facts;

		if (!ecm_slot_lookup(rep_slot, &facts) || facts.invalidated ||
			(strcmp(failure->err.sqlstate, "58P01") == 0 &&
			 ecm_wal_is_gone(facts.restart_lsn)))
			failure->kind = ECM_ERROR_RECREATE;
	}
	return -1;
}

bool
ecm_replication_read(EcmStepFailure *failure)
{
	if (ecm_conn_read_input(rep_conn))
		return true;
	(void) stream_failed(failure);
	return false;
}

int
ecm_replication_next(const char **data, int *len, EcmStepFailure *failure)
{
	for (;;)
	{
		char	   *message;
		int			n = ecm_conn_copy_next(rep_conn, &message);
		StringInfoData in;
		XLogRecPtr	wal_end;

		if (n == -1)
			return 0;
		if (n < 0)
			return stream_failed(failure);

		in.data = message;
		in.len = n;
		in.maxlen = -1;
		in.cursor = 0;

		switch (n > 0 ? message[0] : 0)
		{
			case 'w':			/* dataStart, walEnd, sendTime, payload */
				if (n < 25)
					break;
				*data = message + 25;
				*len = n - 25;
				return 1;
			case 'k':			/* walEnd, sendTime, replyRequested */
				if (n < 18)
					break;
				in.cursor = 1;
				wal_end = pq_getmsgint64(&in);
				keepalive_lsn = Max(keepalive_lsn, wal_end);
				if (message[17])
					reply_requested = true;
				continue;
			default:
				break;
		}
		ecm_error_set(&failure->err, "08P01",
					  "unexpected message in the replication stream", "", "");
		failure->kind = ECM_ERROR_RETRY;
		return -1;
	}
}

XLogRecPtr
ecm_replication_keepalive_lsn(void)
{
	return keepalive_lsn;
}

bool
ecm_replication_reply_requested(void)
{
	return reply_requested;
}

bool
ecm_replication_feedback(XLogRecPtr received, XLogRecPtr flushed, bool ask,
						 EcmStepFailure *failure)
{
	StringInfoData out;
	EcmTime		now = ecm_now();
	bool		ok;

	initStringInfo(&out);
	pq_sendbyte(&out, 'r');
	pq_sendint64(&out, received);
	pq_sendint64(&out, flushed);
	pq_sendint64(&out, flushed);
	pq_sendint64(&out, ecm_wall_clock());
	pq_sendbyte(&out, ask ? 1 : 0);
	ok = ecm_conn_copy_send(rep_conn, out.data, out.len);
	pfree(out.data);
	if (!ok)
	{
		(void) stream_failed(failure);
		return false;
	}
	reply_requested = false;
	acknowledged_lsn = Max(acknowledged_lsn, flushed);
	last_feedback = now;
	if (ask)
		last_asked = now;
	if (ask && asked_at == 0)
	{
		asked_at = now;
		(void) ecm_backend_look(stream_pid, &asked_look);
	}
	return true;
}

EcmTime
ecm_replication_last_asked(void)
{
	return last_asked;
}

EcmTime
ecm_replication_silence_deadline(void)
{
	return asked_at != 0 ? ecm_later(asked_at, rep_sender_timeout_ms) : 0;
}

void
ecm_replication_excuse_silence(void)
{
	asked_at = 0;
}

/*
 * A walsender answers as soon as it reads; it may not for a long time while it
 * decodes a large transaction, and while somebody has locked a catalog.
 */
static bool
may_be_silent_since(const EcmBackendLook *before)
{
	EcmBackendLook look;

	if (!ecm_backend_look(stream_pid, &look))
		return false;
	return ecm_backend_waits_for_lock(&look) || ecm_backend_works(before, &look);
}

void
ecm_replication_look_at_walsender(void)
{
	(void) ecm_backend_look(stream_pid, &last_look);
}

bool
ecm_replication_may_be_silent(void)
{
	return may_be_silent_since(&last_look);
}

void
ecm_replication_set_silent(int64 us, EcmStepFailure *failure)
{
	(void) step_failed(failure, ECM_ERROR_RETRY, "08006",
					   psprintf("walsender PID %d has not answered for %d s",
								stream_pid, (int) (us / USECS_PER_SEC)),
					   "It hangs, or something between server and server has stopped forwarding.",
					   ecm_connection[0] != '\0' ?
					   "See what electric_cm.connection leads through, if this happens again." : "");
}

bool
ecm_replication_is_silent(EcmTime now, EcmStepFailure *failure)
{
	if (asked_at != 0 && ecm_conn_heard_at(rep_conn) >= asked_at)
		asked_at = 0;
	if (asked_at == 0 || !ecm_has_passed(asked_at, now, rep_sender_timeout_ms))
		return false;
	if (may_be_silent_since(&asked_look))
	{
		asked_at = 0;			/* it will be asked again */
		return false;
	}
	ecm_replication_set_silent(now - asked_at, failure);
	return true;
}

bool
ecm_replication_has_lost_slot(bool at_once, EcmStepFailure *failure)
{
	EcmTime		now = ecm_now();
	int			pid = slot_active_pid();

	if (pid == stream_pid)
	{
		other_user_at = 0;
		return false;
	}
	if (other_user_at == 0)
		other_user_at = now;
	if (!at_once && !ecm_has_passed(other_user_at, now, OTHER_USER_MS))
		return false;
	(void) step_failed(failure, ECM_ERROR_RETRY, "08006",
					   psprintf("walsender PID %d has gone, and nothing was heard of that",
								stream_pid),
					   "Something between server and server has stopped forwarding.",
					   ecm_connection[0] != '\0' ?
					   "See what electric_cm.connection leads through, if this happens again." : "");
	return true;
}

bool
ecm_replication_slot_is_held_up(void)
{
	return former_pid != 0 && slot_active_pid() == former_pid;
}

XLogRecPtr
ecm_replication_acknowledged(void)
{
	return acknowledged_lsn;
}

EcmTime
ecm_replication_last_feedback(void)
{
	return last_feedback;
}

int
ecm_replication_feedback_interval(void)
{
	return Min(rep_sender_timeout_ms / 3, MAX_FEEDBACK_MS);
}

/* -------------------------------------------------------------- closing -- */

void
ecm_replication_close(void)
{
	if (rep_conn == NULL)
		return;
	if (ecm_conn_state(rep_conn) == ECM_CONN_BUSY)
		ecm_conn_cancel(rep_conn);
	if (creating_slot)
		made_unheard = true;
	creating_slot = false;
	ecm_conn_close(rep_conn);
	rep_conn = NULL;

	/*
	 * The walsender notices the closed socket by itself only when it next
	 * reads or writes; while it waits in the creation of a slot, or decodes a
	 * large transaction, it does neither.
	 */
	if (!ecm_replication_slot_is_free())
	{
		former_pid = slot_active_pid();
		former_asked_at = ecm_now();
		if (former_pid != 0)
			kill(former_pid, SIGTERM);
	}
	stream_pid = 0;
}

bool
ecm_replication_slot_is_free(void)
{
	int			pid = slot_active_pid();

	return pid == 0 || (pid != rep_walsender_pid && pid != former_pid &&
						pid != stream_pid);
}

bool
ecm_replication_wait_slot_free(int timeout_ms)
{
	EcmTime		give_up =
		ecm_later(ecm_now(), timeout_ms);

	while (!ecm_replication_slot_is_free())
	{
		if (ecm_now() >= give_up)
			return false;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 SLOT_POLL_MS, ecm_wait_event(ECM_WAIT_SLOT_RELEASE));
		ResetLatch(MyLatch);
	}
	return true;
}
