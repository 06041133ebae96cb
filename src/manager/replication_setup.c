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
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "replication/walsender.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "base/bgworker.h"
#include "base/compat.h"
#include "base/event.h"
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

#define QUERY_TIMEOUT_MS	30000

/* How often a busy slot is looked at, and for how long. */
#define SLOT_POLL_MS		10
#define SLOT_BUSY_TIMEOUT_MS	5000
/* How often a walsender of ours that has the slot is asked to end. */
#define FORMER_REMIND_MS	1000
/* How often the step looks whether the slot may be created by now. */
#define HOLD_POLL_MS		1000

/*
 * wal_sender_timeout in our sessions: the server's own, within these bounds.  0 would
 * mean never: a walsender whose connection is cut off would keep the slot.
 */
#define MIN_SENDER_TIMEOUT_MS	1000
#define MAX_SENDER_TIMEOUT_MS	60000

/* pgoutput's protocol 1 has all that we need, and every server speaks it. */
#define PROTO_VERSION		1

/* Makes the session a walsender of ours, see walsender.c; may be repeated. */
#define TUNE_WALSENDER			"SELECT _electric_cm.tune_walsender()"

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
static EcmStepResult
conn_failed(Replication *rep, EcmStepFailure *failure, EcmErrorContext context)
{
	ecm_failure_set(failure, ecm_conn_error(rep->conn), context);
	return ECM_RESULT_FAILED;
}

/*
 * Polls the running query: PENDING, DONE (its result is in rep->conn) or FAILED.
 */
static EcmStepResult
poll_query(Replication *rep, EcmStepFailure *failure, EcmErrorContext context)
{
	switch (ecm_conn_poll(rep->conn))
	{
		case ECM_CONN_CONNECTING:
		case ECM_CONN_BUSY:
			return ECM_RESULT_PENDING;
		case ECM_CONN_IDLE:
			if (ecm_conn_ok(rep->conn))
				return ECM_RESULT_DONE;
			return conn_failed(rep, failure, context);
		default:
			return conn_failed(rep, failure, context);
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
			return conn_failed(rep, failure, ECM_CONTEXT_CONNECT);
	}
}

/* Is this the server that we run in?  Also notes its timeline. */
static EcmStepResult
poll_identify_system(Replication *rep, EcmStepFailure *failure)
{
	EcmStepResult result = poll_query(rep, failure, ECM_CONTEXT_OTHER);

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
	EcmStepResult result = poll_query(rep, failure, ECM_CONTEXT_OTHER);

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

static char *
publish_generated_sql(const Replication *rep)
{
	return psprintf("ALTER PUBLICATION %s SET (" ECM_PUBLISH_GENERATED ")",
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
	ecm_conn_send(rep->conn, publication_facts_sql(rep), QUERY_TIMEOUT_MS);
}

/*
 * Looks at the answer; if there is no publication, creates one, in one transaction
 * with the note that it is ours.
 */
static EcmStepResult
poll_publication(Replication *rep, EcmStepFailure *failure)
{
	EcmStepResult result = poll_query(rep, failure, ECM_CONTEXT_PUBLICATION);
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
		ecm_conn_send(rep->conn, publish_generated_sql(rep), QUERY_TIMEOUT_MS);
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
	ecm_conn_send(rep->conn, sql.data, QUERY_TIMEOUT_MS);
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

void
ecm_replication_hold_slot(Replication *rep, const char *why, int pid)
{
	strlcpy(rep->creation.hold_why, why != NULL ? why : "", sizeof(rep->creation.hold_why));
	rep->creation.hold_pid = pid;
}

bool
ecm_replication_creates_slot(const Replication *rep)
{
	return rep->conn != NULL && rep->creation.running;
}

const char *
ecm_replication_waiting_for(const Replication *rep, int *pid)
{
	const SlotCreation *creation = &rep->creation;

	if (creation->held_up && creation->hold_why[0] != '\0')
	{
		*pid = creation->hold_pid;
		return creation->hold_why;
	}
	*pid = creation->user_pid;
	return creation->user_pid != 0 ? creation->waiting_for : NULL;
}

/*
 * Waits, for SLOT_BUSY_TIMEOUT_MS, while another process uses the slot; then the step
 * fails, and is tried again.  A walsender of an earlier connection of ours is
 * reminded to end, by SIGTERM.  If it is stopped, or hangs in the kernel, only
 * SIGKILL would end it, and that restarts the whole server.
 */
static EcmStepResult
wait_for_slot_user(Replication *rep, EcmStepFailure *failure, int pid)
{
	EcmTime		now = ecm_now();
	bool		ours = pid == rep->former_pid;

	if (ours && ecm_has_passed(rep->former_asked_at, now, FORMER_REMIND_MS))
	{
		kill(pid, SIGTERM);
		rep->former_asked_at = now;
	}
	if (ecm_has_passed(rep->step.started, now, SLOT_BUSY_TIMEOUT_MS))
		return ours ?
			ecm_failure_make(failure, ECM_ERROR_RETRY, "55006",
							 psprintf("walsender PID %d, of the connection before, does not answer and does not end",
									  pid),
							 psprintf("It still has replication slot \"%s\".", rep->slot),
							 psprintf("If it is stopped, kill -CONT %d lets it go on, and end. Don't kill -9 it: that would restart the whole server.",
									  pid)) :
			ecm_failure_make(failure, ECM_ERROR_RETRY, "55006",
							 psprintf("replication slot \"%s\" is active for PID %d",
									  rep->slot, pid), "",
							 "Stop the other consumer, or set electric_cm.slot_name to another name.");
	rep->creation.user_pid = pid;
	snprintf(rep->creation.waiting_for, sizeof(rep->creation.waiting_for),
			 ours ? "replication slot \"%s\", which walsender PID %d, of the connection before, has not given up" :
			 "replication slot \"%s\", which PID %d uses", rep->slot, pid);
	rep->step.deadline = ecm_later(now, SLOT_POLL_MS);
	return ECM_RESULT_PENDING;
}

/* Waits, for as long as it takes, until a slot may be created. */
static EcmStepResult
wait_for_room(Replication *rep)
{
	rep->creation.held_up = true;
	rep->step.deadline = ecm_later(ecm_now(),
								   HOLD_POLL_MS);
	return ECM_RESULT_PENDING;
}

/* Drops the slot that the machine has ordered to be made anew. */
static EcmStepResult
drop_useless_slot(Replication *rep, EcmStepFailure *failure)
{
	if (!ecm_slot_drop(rep->slot, &failure->err))
	{
		failure->kind = ECM_ERROR_RETRY;
		return ECM_RESULT_FAILED;
	}
	rep->creation.drop_first = false;
	if (rep->creation.drop_why[0] != '\0')
		ecm_event_in(MyDatabaseId, rep->dbname, ECM_EVENT_REPLICATION_SLOT_REPLACED,
					 rep->creation.drop_why,
					 "dropped replication slot \"%s\", to make a new one", rep->slot);
	else
		ecm_event_in(MyDatabaseId, rep->dbname, ECM_EVENT_REPLICATION_SLOT_DROPPED,
					 "All shapes of this database are compared with their tables.",
					 "dropped replication slot \"%s\", to make a new one", rep->slot);
	rep->creation.drop_why[0] = '\0';
	return ECM_RESULT_DONE;
}

/*
 * A hint for a slot of our name that is not ours.  Never the advice to drop a slot
 * that another stack, or another user of pgoutput, seems to need.
 */
static char *
foreign_slot_hint(const Replication *rep, const EcmSlotFacts *facts)
{
	char		datname[NAMEDATALEN];

	if (ecm_slot_name_is_taken(rep->slot, datname))
		return psprintf("Set electric_cm.slot_name to another name for this database: that slot belongs to the stack of database \"%s\".",
						datname);
	if (facts->database != MyDatabaseId && ecm_slot_is_of_our_kind(facts, facts->database))
		return "Set electric_cm.slot_name to another name for this database.";
	return "Set electric_cm.slot_name to another name, or drop that slot with pg_drop_replication_slot().";
}

/*
 * Looks at the slot in shared memory.  DONE: it can be used, or there is none and it
 * may be created (*create).  PENDING: somebody uses it, or no slot may be created
 * now.  FAILED: it is another's, or invalidated, or can't be dropped.
 */
static EcmStepResult
look_at_slot(Replication *rep, EcmStepFailure *failure, bool *create)
{
	EcmSlotFacts facts;

	*create = false;
	rep->creation.user_pid = 0;
	rep->creation.held_up = false;
	if (!ecm_slot_lookup(rep->slot, &facts))
	{
		rep->creation.drop_first = false;
		rep->creation.made_unheard = false;
		if (rep->creation.hold_why[0] != '\0')
			return wait_for_room(rep);
		*create = true;
		return ECM_RESULT_DONE;
	}

	if (!ecm_slot_is_of_our_kind(&facts, MyDatabaseId))
		return ecm_failure_make(failure, ECM_ERROR_FATAL, "42710",
								psprintf("replication slot \"%s\" belongs to another database or plugin",
										 rep->slot), "", foreign_slot_hint(rep, &facts));
	if (facts.active_pid != 0)
		return wait_for_slot_user(rep, failure, facts.active_pid);
	if (rep->creation.drop_first)
	{
		EcmStepResult result = drop_useless_slot(rep, failure);

		if (result == ECM_RESULT_DONE && rep->creation.hold_why[0] != '\0')
			return wait_for_room(rep);
		*create = true;
		return result;
	}
	if (facts.invalidation != NULL)
		return ecm_failure_make(failure, ECM_ERROR_RECREATE, "55000",
								psprintf("replication slot \"%s\" has been invalidated",
										 rep->slot),
								ecm_slot_invalidation_text(facts.invalidation), "");
	rep->info.confirmed_flush_lsn = facts.confirmed_flush_lsn;
	if (rep->creation.made_unheard)
		rep->info.slot_created = true;	/* by our lost session */
	return ECM_RESULT_DONE;
}

/*
 * Ends the transaction that the slot was created in, and records in the stack's row
 * that the slot is ours.
 */
static void
record_slot(Replication *rep)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "%s%s",
					 ecm_conn_idle_in_no_transaction(rep->conn) ? "" : "COMMIT; ",
					 ecm_stack_row_own_slot_sql(ecm_slot_temporary ? NULL : rep->slot));
	ecm_conn_send(rep->conn, sql.data, QUERY_TIMEOUT_MS);
	rep->creation.made_unheard = false;
}

/*
 * The creation waits for every transaction that runs.  lock_timeout of the session
 * bounds each of these waits (statement_timeout does not), and the status check
 * writes a record of running transactions (ecm_manager_help_slot_creation()), so that
 * the creation ends soon after the last of them.
 */
static void
send_create_slot(Replication *rep)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "CREATE_REPLICATION_SLOT %s%s LOGICAL pgoutput (SNAPSHOT 'nothing')",
					 quote_identifier(rep->slot),
					 ecm_slot_temporary ? " TEMPORARY" : "");
	ecm_conn_send(rep->conn, sql.data, 0);
	rep->creation.running = true;
}

/* The server has created the slot: notes where it begins, and records it. */
static void
slot_created(Replication *rep)
{
	rep->info.slot_created = true;
	rep->info.confirmed_flush_lsn =
		DatumGetLSN(DirectFunctionCall1(pg_lsn_in,
										CStringGetDatum(ecm_conn_value(rep->conn, 0, 1))));
	record_slot(rep);
}

/* rep->step.query in step create_slot: the last command that was sent. */
enum
{
	SLOT_LOOK,					/* none yet */
	SLOT_TUNE,
	SLOT_BEGIN,
	SLOT_CREATE,
	SLOT_RECORD
};

/*
 * Step create_slot: look, tune the walsender, BEGIN, create, record.
 *
 * Why the transaction: while it creates the slot the server waits for locks of
 * running transactions.  A walsender that waits outside of a transaction and is
 * ended at the moment when the lock is granted leaves that lock behind, since only
 * the end of a transaction releases it.
 *
 * If the connection is lost during the creation, nobody knows whether the slot was
 * made.  made_unheard remembers that: if the next attempt finds the slot, it is ours
 * and new, and is recorded as such.
 */
static EcmStepResult
poll_slot(Replication *rep, EcmStepFailure *failure)
{
	EcmStepResult result;
	bool		create;

	rep->step.deadline = 0;
	if (rep->step.query == SLOT_LOOK)
	{
		if (ecm_conn_poll(rep->conn) == ECM_CONN_FAILED)
			return conn_failed(rep, failure, ECM_CONTEXT_SLOT);
		result = look_at_slot(rep, failure, &create);
		if (result == ECM_RESULT_DONE && rep->creation.made_unheard && !create)
		{
			record_slot(rep);
			rep->step.query = SLOT_RECORD;
			return ECM_RESULT_PENDING;
		}
		if (result != ECM_RESULT_DONE || !create)
			return result;

		/*
		 * A walsender that creates a slot may count as a synchronous standby,
		 * too, so it is tuned before.  A failed attempt may have left its
		 * transaction open.
		 */
		ecm_conn_send(rep->conn, ecm_conn_idle_in_no_transaction(rep->conn) ?
					  TUNE_WALSENDER : "ROLLBACK; " TUNE_WALSENDER,
					  QUERY_TIMEOUT_MS);
		rep->step.query = SLOT_TUNE;
		return ECM_RESULT_PENDING;
	}

	result = poll_query(rep, failure, ECM_CONTEXT_SLOT);
	rep->creation.running = result == ECM_RESULT_PENDING && rep->step.query == SLOT_CREATE;
	if (rep->step.query == SLOT_CREATE && ecm_conn_state(rep->conn) == ECM_CONN_FAILED)
		rep->creation.made_unheard = true;
	if (result != ECM_RESULT_DONE)
		return result;

	switch (rep->step.query++)
	{
		case SLOT_TUNE:
			ecm_conn_send(rep->conn, "BEGIN", QUERY_TIMEOUT_MS);
			return ECM_RESULT_PENDING;
		case SLOT_BEGIN:
			send_create_slot(rep);
			return ECM_RESULT_PENDING;
		case SLOT_CREATE:
			slot_created(rep);
			return ECM_RESULT_PENDING;
		default:
			return ECM_RESULT_DONE;
	}
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
	result = conn_failed(rep, failure, ECM_CONTEXT_STREAM);
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
	ecm_conn_send(rep->conn, sql.data, QUERY_TIMEOUT_MS);
}

void
ecm_replication_start_step(Replication *rep, EcmStep step, XLogRecPtr start_lsn)
{
	rep->step.query = 0;
	rep->step.deadline = 0;
	rep->creation.user_pid = 0;
	rep->creation.held_up = false;
	rep->creation.running = false;
	rep->step.started = ecm_now();

	switch (step)
	{
		case ECM_STEP_CONNECT_REPLICATION:
			start_connect(rep);
			break;
		case ECM_STEP_IDENTIFY_SYSTEM:
			ecm_conn_send(rep->conn, "IDENTIFY_SYSTEM", QUERY_TIMEOUT_MS);
			break;
		case ECM_STEP_PG_INFO:
			ecm_conn_send(rep->conn, ecm_whereabouts_sql(), QUERY_TIMEOUT_MS);
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
						  "SET bytea_output = 'hex'; " TUNE_WALSENDER,
						  QUERY_TIMEOUT_MS);
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
			return poll_slot(rep, failure);
		case ECM_STEP_SET_DISPLAY_SETTINGS:
			return poll_query(rep, failure, ECM_CONTEXT_OTHER);
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
