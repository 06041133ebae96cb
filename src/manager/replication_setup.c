/*-------------------------------------------------------------------------
 *
 * replication_setup.c
 *	  The replication connection: its setup steps, and its end.
 *
 * A step may have several queries; rep->step.query says which one runs.  When a
 * step fails, the machine starts it again, on the same connection if that is alive,
 * so a step finds whatever an earlier attempt has left.
 *
 * The connection leads back into the server that we run in.  So what the server
 * knows about the slot is read from shared memory, and the walsender can be ended
 * with a signal.  A client that merely closes its socket leaves an active slot
 * behind until the walsender notices, which may take minutes while it creates a
 * slot or decodes a large transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xlog.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "replication/walsender.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "base/bgworker.h"
#include "base/compat.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/stack_catalog.h"
#include "base/text.h"
#include "base/wait_event.h"
#include "connection/conn.h"
#include "connection/server_identity.h"
#include "manager/replication.h"
#include "slot/slot.h"

/* How often a walsender is looked at that is to end. */
#define SLOT_POLL_MS		10

/*
 * wal_sender_timeout in our sessions: the server's own, within these bounds.  0 would
 * mean never: a walsender whose connection is cut off would keep the slot.
 */
#define MIN_SENDER_TIMEOUT_MS	1000
#define MAX_SENDER_TIMEOUT_MS	60000

/* pgoutput's protocol 1 has all that we need, and every server speaks it. */
#define PROTO_VERSION		1

void
ecm_replication_init(Replication *rep, const char *dbname,
					 const char *slot_name, const char *publication_name)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	memset(rep, 0, sizeof(*rep));
	rep->dbname = pstrdup(dbname);
	rep->slot = pstrdup(slot_name);
	rep->publication = pstrdup(publication_name);
	rep->sender_timeout_ms = MAX_SENDER_TIMEOUT_MS;
	MemoryContextSwitchTo(old);
}

int
ecm_replication_slot_pid(const Replication *rep)
{
	EcmSlotFacts facts;

	return ecm_slot_lookup(rep->slot, &facts) ? facts.active_pid : 0;
}

/* ---------------------------------------------------------------- steps -- */

/* The failure of the connection or of the query that has just ended. */
EcmStepResult
ecm_replication_conn_failed(Replication *rep, EcmStepFailure *failure, EcmErrorContext context)
{
	ecm_failure_set(failure, ecm_conn_error(rep->conn), context);
	return ECM_RESULT_FAILED;
}

/*
 * Polls the running query: PENDING, DONE (its result is in rep->conn) or FAILED.
 */
EcmStepResult
ecm_replication_poll_query(Replication *rep, EcmStepFailure *failure, EcmErrorContext context)
{
	switch (ecm_conn_poll(rep->conn))
	{
		case ECM_CONN_CONNECTING:
		case ECM_CONN_BUSY:
			return ECM_RESULT_PENDING;
		case ECM_CONN_IDLE:
			if (ecm_conn_ok(rep->conn))
				return ECM_RESULT_DONE;
			return ecm_replication_conn_failed(rep, failure, context);
		default:
			return ecm_replication_conn_failed(rep, failure, context);
	}
}

static void
start_connect(Replication *rep)
{
	EcmConnParams params = {0};

	Assert(rep->conn == NULL);
	params.conninfo = ecm_connection;
	params.setting = "electric_cm.connection";
	params.dbname = rep->dbname;
	params.application_name = "electric_cm replication";
	params.replication = true;
	params.connect_timeout_ms = ecm_connect_timeout;

	/* the session keeps what it starts with, even if the setting changes */
	rep->sender_timeout_ms = wal_sender_timeout > 0 ?
		Min(Max(wal_sender_timeout, MIN_SENDER_TIMEOUT_MS),
			MAX_SENDER_TIMEOUT_MS) : MAX_SENDER_TIMEOUT_MS;
	params.wal_sender_timeout_ms = rep->sender_timeout_ms;
	rep->conn = ecm_conn_start(&params);
}

static EcmStepResult
poll_connect(Replication *rep, EcmStepFailure *failure)
{
	switch (ecm_conn_poll(rep->conn))
	{
		case ECM_CONN_CONNECTING:
			return ECM_RESULT_PENDING;
		case ECM_CONN_IDLE:
			rep->walsender_pid = ecm_conn_backend_pid(rep->conn);
			return ECM_RESULT_DONE;
		default:
			return ecm_replication_conn_failed(rep, failure, ECM_CONTEXT_CONNECT);
	}
}

/* Is this the server that we run in?  Also notes its timeline. */
static EcmStepResult
poll_identify_system(Replication *rep, EcmStepFailure *failure)
{
	EcmStepResult result = ecm_replication_poll_query(rep, failure, ECM_CONTEXT_OTHER);

	if (result != ECM_RESULT_DONE)
		return result;
	if (ecm_conn_nrows(rep->conn) != 1)
		return ecm_failure_make(failure, ECM_ERROR_RETRY, "08P01",
								"IDENTIFY_SYSTEM returned no row", "", "");

	rep->info.system_identifier =
		strtou64(ecm_conn_value(rep->conn, 0, 0), NULL, 10);
	rep->info.timeline_id =
		(uint32) strtoul(ecm_conn_value(rep->conn, 0, 1), NULL, 10);
	if (rep->info.system_identifier != GetSystemIdentifier())
		return ecm_failure_make(failure, ECM_ERROR_FATAL, "F0000",
								"the configured connection leads to another server",
								"Its system identifier differs from this server's.",
								"Correct electric_cm.connection, or leave it empty.");
	return ECM_RESULT_DONE;
}

/* Is this the database that we run in?  Also notes the server's version. */
static EcmStepResult
poll_pg_info(Replication *rep, EcmStepFailure *failure)
{
	EcmStepResult result = ecm_replication_poll_query(rep, failure, ECM_CONTEXT_OTHER);

	if (result != ECM_RESULT_DONE)
		return result;
	if (!ecm_leads_here(rep->conn, failure))
		return ECM_RESULT_FAILED;
	rep->info.server_version_num = ecm_conn_server_version(rep->conn);
	rep->info.looked_up_at = ecm_wall_clock();
	return ECM_RESULT_DONE;
}

/* What is asked of a publication that exists; each is answered by "t" or "f". */
typedef enum PublicationFact
{
	FACT_EVERYTHING,			/* does it publish all kinds of changes? */
	FACT_FILTERS,				/* does it filter rows or columns of any
								 * table? */
	FACT_VIA_ROOT,
	FACT_GENERATED,				/* does it publish generated columns? */
	FACT_OURS,					/* have we created it? */
	FACT_SEQUENCES				/* is it FOR ALL SEQUENCES alone? */
} PublicationFact;

#define NUM_FACTS	(FACT_SEQUENCES + 1)

static char *
publication_facts_sql(const Replication *rep)
{
	return psprintf("SELECT p.pubinsert AND p.pubupdate AND p.pubdelete"
					" AND p.pubtruncate, EXISTS (SELECT FROM"
					" pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid"
					" AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)),"
					" p.pubviaroot, " ECM_PUBLISHES_GENERATED_SQL ", EXISTS (SELECT FROM"
					" _electric_cm.stack s WHERE s.publication_name = p.pubname), "
					ECM_PUBLISHES_SEQUENCES_SQL
					" FROM pg_catalog.pg_publication p WHERE p.pubname = %s",
					ecm_quote_literal(rep->publication));
}

/*
 * That has the hooks compare shapes with their tables.  In a cluster that pg_upgrade has
 * made, what that has lost is restored before.
 */
static char *
publish_generated_sql(const Replication *rep)
{
	return psprintf("SELECT _electric_cm.restore_after_upgrade() FROM _electric_cm.stack"
					" WHERE system_identifier OPERATOR(pg_catalog.<>) (SELECT system_identifier FROM pg_catalog.pg_control_system());"
					"ALTER PUBLICATION %s SET (" ECM_PUBLISH_GENERATED ")",
					quote_identifier(rep->publication));
}

/*
 * Is a publication that exists good for us?  A stream that lacks changes would make
 * wrong logs, without an error.
 */
static EcmStepResult
judge_publication(const Replication *rep, const char *const facts[NUM_FACTS],
				  EcmStepFailure *failure)
{
	if (strcmp(facts[FACT_EVERYTHING], "t") != 0)
		return ecm_failure_make(failure, ECM_ERROR_FATAL, "F0000",
								psprintf("publication \"%s\" does not publish insert, update, delete and truncate",
										 rep->publication), "",
								psprintf("ALTER PUBLICATION %s SET (publish = 'insert, update, delete, truncate')",
										 quote_identifier(rep->publication)));
	if (strcmp(facts[FACT_FILTERS], "f") != 0)
		return ecm_failure_make(failure, ECM_ERROR_FATAL, "F0000",
								psprintf("publication \"%s\" filters rows or columns",
										 rep->publication), "",
								"Remove row filters and column lists from it, or set electric_cm.publication_name to another publication.");
	if (strcmp(facts[FACT_VIA_ROOT], "f") != 0)
		return ecm_failure_make(failure, ECM_ERROR_FATAL, "F0000",
								psprintf("publication \"%s\" publishes partitions as changes of their root",
										 rep->publication), "",
								psprintf("ALTER PUBLICATION %s SET (publish_via_partition_root = false)",
										 quote_identifier(rep->publication)));
	if (strcmp(facts[FACT_SEQUENCES], "f") != 0)
		return ecm_failure_make(failure, ECM_ERROR_FATAL, "F0000",
								psprintf("publication \"%s\" is FOR ALL SEQUENCES, so that no table can be added to it",
										 rep->publication), "",
								psprintf(ecm_create_publication ? "DROP PUBLICATION %s" :
										 "DROP PUBLICATION %1$s; CREATE PUBLICATION %1$s" ECM_WITH_GENERATED,
										 quote_identifier(rep->publication)));
	if (strcmp(facts[FACT_GENERATED], "t") != 0)
		return ecm_failure_make(failure, ECM_ERROR_FATAL, "F0000",
								psprintf("publication \"%s\" does not publish stored generated columns",
										 rep->publication),
								"UPDATE and DELETE of a table that has one, and REPLICA IDENTITY FULL, would fail.",
								publish_generated_sql(rep));
	return ECM_RESULT_DONE;
}

static void
start_publication(Replication *rep)
{
	ecm_conn_send(rep->conn, publication_facts_sql(rep), ECM_SETUP_QUERY_TIMEOUT_MS);
}

/*
 * Looks at the answer; if there is no publication, creates one, in one transaction
 * with the note that it is ours.
 */
static EcmStepResult
poll_publication(Replication *rep, EcmStepFailure *failure)
{
	EcmStepResult result = ecm_replication_poll_query(rep, failure, ECM_CONTEXT_PUBLICATION);
	StringInfoData sql;

	if (result != ECM_RESULT_DONE || rep->step.query > 0)
		return result;

	if (ecm_conn_nrows(rep->conn) > 0)
	{
		const char *facts[NUM_FACTS];
		bool		alter;

		for (int i = 0; i < NUM_FACTS; i++)
			facts[i] = ecm_conn_value(rep->conn, 0, i);

		/* ours, made by an older server before pg_upgrade, is set right */
		alter = strcmp(facts[FACT_OURS], "t") == 0 && strcmp(facts[FACT_GENERATED], "t") != 0;
		if (alter)
			facts[FACT_GENERATED] = "t";
		result = judge_publication(rep, facts, failure);
		if (!alter || result != ECM_RESULT_DONE)
			return result;
		ecm_conn_send(rep->conn, publish_generated_sql(rep), ECM_SETUP_QUERY_TIMEOUT_MS);
		rep->step.query++;
		return ECM_RESULT_PENDING;
	}

	if (!ecm_create_publication)
		return ecm_failure_make(failure, ECM_ERROR_FATAL, "F0000",
								psprintf("publication \"%s\" does not exist and electric_cm.create_publication is off",
										 rep->publication), "",
								psprintf("CREATE PUBLICATION %s" ECM_WITH_GENERATED,
										 quote_identifier(rep->publication)));

	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "CREATE PUBLICATION %s" ECM_WITH_GENERATED ";"
					 "SELECT _electric_cm.own_publication(%s);%s",
					 quote_identifier(rep->publication),
					 ecm_quote_literal(rep->publication),
					 ecm_stack_row_own_publication_sql(rep->publication));
	ecm_conn_send(rep->conn, sql.data, ECM_SETUP_QUERY_TIMEOUT_MS);
	rep->step.query++;
	return ECM_RESULT_PENDING;
}

typedef struct PublicationLook
{
	Replication *rep;
	EcmStepFailure *failure;	/* result; err.sqlstate "": none */
} PublicationLook;

/*
 * In a transaction: like poll_publication(), but reads the catalog in this process,
 * as a session that streams takes no queries.
 */
static void
look_at_publication(void *arg)
{
	Replication *rep = ((PublicationLook *) arg)->rep;
	EcmStepFailure *failure = ((PublicationLook *) arg)->failure;
	EcmSpiState spi;

	failure->err.sqlstate[0] = '\0';
	ecm_spi_begin(&spi);
	if (SPI_execute(publication_facts_sql(rep), true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look up publication \"%s\"", rep->publication);
	if (SPI_processed == 0)
		(void) ecm_failure_make(failure, ECM_ERROR_RECREATE, "42704",
								psprintf("publication \"%s\" has been dropped",
										 rep->publication),
								"Changes made since then are missing from the stream.", "");
	else
	{
		const char *facts[NUM_FACTS];

		for (int i = 0; i < NUM_FACTS; i++)
			facts[i] = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i + 1);
		(void) judge_publication(rep, facts, failure);
	}
	ecm_spi_end(&spi);
}

bool
ecm_replication_publication_is_good(Replication *rep, EcmStepFailure *failure)
{
	PublicationLook look = {rep, failure};
	EcmError	err;

	/* an ERROR, as when a catalog is locked: the next check reads it */
	return !ecm_worker_try(look_at_publication, &look, &err) ||
		failure->err.sqlstate[0] == '\0';
}

/* Done when the server has answered START_REPLICATION; the stream's state is new. */
static EcmStepResult
poll_start_streaming(Replication *rep, EcmStepFailure *failure)
{
	EcmConnState state = ecm_conn_poll(rep->conn);
	EcmStepResult result;

	if (state == ECM_CONN_BUSY)
		return ECM_RESULT_PENDING;
	if (state == ECM_CONN_COPY_BOTH)
	{
		memset(&rep->stream, 0, sizeof(rep->stream));
		rep->stream.pid = ecm_replication_slot_pid(rep);
		return ECM_RESULT_DONE;
	}
	result = ecm_replication_conn_failed(rep, failure, ECM_CONTEXT_STREAM);
	/* a small limit may have cost it since it was looked at, or made */
	ecm_replication_judge_slot(rep, failure);
	return result;
}

/*
 * A string literal for a replication command, whose grammar doubles quotes and knows
 * no backslashes; palloc'd.
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
start_streaming(Replication *rep, XLogRecPtr start_lsn)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "START_REPLICATION SLOT %s LOGICAL %X/%X"
					 " (proto_version '%d', publication_names %s, messages 'true')",
					 quote_identifier(rep->slot), LSN_FORMAT_ARGS(start_lsn),
					 PROTO_VERSION,
					 replication_literal(quote_identifier(rep->publication)));
	ecm_conn_send(rep->conn, sql.data, ECM_SETUP_QUERY_TIMEOUT_MS);
}

void
ecm_replication_start_step(Replication *rep, EcmStep step, XLogRecPtr start_lsn)
{
	rep->step.query = 0;
	rep->step.deadline = 0;
	rep->creation.user_pid = 0;
	rep->creation.held_up = false;
	rep->creation.running = false;
	rep->creation.fence = InvalidTransactionId;
	rep->step.started = ecm_now();

	switch (step)
	{
		case ECM_STEP_CONNECT_REPLICATION:
			start_connect(rep);
			break;
		case ECM_STEP_IDENTIFY_SYSTEM:
			ecm_conn_send(rep->conn, "IDENTIFY_SYSTEM", ECM_SETUP_QUERY_TIMEOUT_MS);
			break;
		case ECM_STEP_PG_INFO:
			ecm_conn_send(rep->conn, ecm_whereabouts_sql(), ECM_SETUP_QUERY_TIMEOUT_MS);
			break;
		case ECM_STEP_CREATE_PUBLICATION:
			start_publication(rep);
			break;
		case ECM_STEP_CREATE_SLOT:
			break;				/* starts with a look at shared memory */
		case ECM_STEP_SET_DISPLAY_SETTINGS:
			ecm_conn_send(rep->conn,
						  "SET datestyle = 'ISO'; SET intervalstyle = 'postgres';"
						  "SET timezone = 'UTC'; SET extra_float_digits = 1;"
						  "SET bytea_output = 'hex'; " ECM_TUNE_WALSENDER_SQL,
						  ECM_SETUP_QUERY_TIMEOUT_MS);
			break;
		case ECM_STEP_START_STREAMING:
			start_streaming(rep, start_lsn);
			break;
		default:
			elog(ERROR, "step %s does not concern the replication connection",
				 ecm_step_name(step));
	}
}

EcmStepResult
ecm_replication_poll_step(Replication *rep, EcmStep step, EcmStepFailure *failure)
{
	switch (step)
	{
		case ECM_STEP_CONNECT_REPLICATION:
			return poll_connect(rep, failure);
		case ECM_STEP_IDENTIFY_SYSTEM:
			return poll_identify_system(rep, failure);
		case ECM_STEP_PG_INFO:
			return poll_pg_info(rep, failure);
		case ECM_STEP_CREATE_PUBLICATION:
			return poll_publication(rep, failure);
		case ECM_STEP_CREATE_SLOT:
			return ecm_replication_poll_slot(rep, failure);
		case ECM_STEP_SET_DISPLAY_SETTINGS:
			return ecm_replication_poll_query(rep, failure, ECM_CONTEXT_OTHER);
		case ECM_STEP_START_STREAMING:
			return poll_start_streaming(rep, failure);
		default:
			elog(ERROR, "step %s does not concern the replication connection",
				 ecm_step_name(step));
	}
	return ECM_RESULT_PENDING;	/* keep compiler quiet */
}

/* -------------------------------------------------------------- closing -- */

/* Has every walsender of ours let go of the slot?  (Others' don't matter.) */
static bool
slot_is_free(const Replication *rep)
{
	int			pid = ecm_replication_slot_pid(rep);

	return pid == 0 || (pid != rep->walsender_pid && pid != rep->former_pid &&
						pid != rep->stream.pid);
}

void
ecm_replication_close(Replication *rep)
{
	if (rep->conn == NULL)
		return;
	if (ecm_conn_state(rep->conn) == ECM_CONN_BUSY)
		ecm_conn_cancel(rep->conn);
	if (rep->creation.running)
		rep->creation.made_unheard = true;
	rep->creation.running = false;
	rep->creation.fence = InvalidTransactionId;
	rep->step.deadline = 0;
	ecm_conn_close(rep->conn);
	rep->conn = NULL;

	/*
	 * The walsender notices the closed socket by itself only when it next
	 * reads or writes.  While it waits in the creation of a slot, or decodes
	 * a large transaction, it does neither.  So it is sent SIGTERM, and
	 * remembered, since it may take a while to end.
	 */
	if (!slot_is_free(rep))
	{
		rep->former_pid = ecm_replication_slot_pid(rep);
		rep->former_asked_at = ecm_now();
		if (rep->former_pid != 0)
			kill(rep->former_pid, SIGTERM);
	}
	rep->stream.pid = 0;
}

bool
ecm_replication_wait_slot_free(Replication *rep, int timeout_ms)
{
	EcmTime		give_up = ecm_later(ecm_now(), timeout_ms);

	while (!slot_is_free(rep))
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
