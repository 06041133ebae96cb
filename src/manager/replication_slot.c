/*-------------------------------------------------------------------------
 *
 * replication_slot.c
 *	  Setup step create_slot: the slot is found, or created and put right.
 *
 * The server's creation of a logical slot has a gap.  It goes through three phases
 * (see snapbuild.c).  A command that changes a table and is committed in the first of
 * them goes unnoticed: transactions that begin in the second are decoded as if it
 * had not run, and so is all that comes later, until another transaction has changed
 * a catalog.  Their rows would lack columns, or could not be decoded at all, as the
 * file that the table's rows are in is not known ("could not map filenumber").
 *
 * So, when the slot is there, a transaction of ours changes the catalog, in name only;
 * all transactions that run then are waited for, once more; and the slot is advanced
 * to where they have ended.  What it streams began behind that change, and no shape
 * needs what came before.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/inval.h"

#include "base/bgworker.h"
#include "base/compat.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/stack_catalog.h"
#include "base/table_writer.h"
#include "base/text.h"
#include "connection/conn.h"
#include "manager/replication.h"
#include "slot/slot.h"

/* How often a busy slot is looked at, and for how long. */
#define SLOT_BUSY_POLL_MS	10
#define SLOT_BUSY_TIMEOUT_MS	5000
/* How often a walsender of ours that has the slot is asked to end. */
#define FORMER_REMIND_MS	1000
/* How often the step looks whether the slot may be created by now. */
#define HOLD_POLL_MS		1000
/* How often it looks whether the transactions have ended: first, and later on. */
#define SETTLE_POLL_MS		10
#define SETTLE_LONG_POLL_MS	500

void
ecm_replication_hold_slot(Replication *rep, const char *why, int pid)
{
	strlcpy(rep->creation.hold_why, why != NULL ? why : "", sizeof(rep->creation.hold_why));
	rep->creation.hold_pid = pid;
}

bool
ecm_replication_creates_slot(const Replication *rep)
{
	return rep->conn != NULL &&
		(rep->creation.running || TransactionIdIsValid(rep->creation.fence));
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
	rep->step.deadline = ecm_later(now, SLOT_BUSY_POLL_MS);
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

static EcmStepResult
slot_is_invalidated(const Replication *rep, EcmStepFailure *failure, const EcmSlotFacts *facts)
{
	return ecm_failure_make(failure, ECM_ERROR_RECREATE, "55000",
							psprintf("replication slot \"%s\" has been invalidated", rep->slot),
							ecm_slot_invalidation_text(facts->invalidation), "");
}

static EcmStepResult
slot_is_gone(const Replication *rep, EcmStepFailure *failure)
{
	return ecm_failure_make(failure, ECM_ERROR_RETRY, "42704",
							psprintf("replication slot \"%s\" was dropped during its creation",
									 rep->slot), "", "");
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
		rep->creation.made_unheard = rep->creation.unsettled = false;
		if (rep->creation.hold_why[0] != '\0')
			return wait_for_room(rep);
		*create = true;
		return ECM_RESULT_DONE;
	}

	if (!ecm_slot_is_of_our_kind(&facts, MyDatabaseId))
		return ecm_failure_make(failure, ECM_ERROR_FATAL, "42710",
								psprintf("replication slot \"%s\" belongs to another database or plugin",
										 rep->slot), "", foreign_slot_hint(rep, &facts));
	if (facts.active_pid != 0 && !(facts.temporary && facts.active_pid == rep->walsender_pid))
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
		return slot_is_invalidated(rep, failure, &facts);
	rep->info.confirmed_flush_lsn = facts.confirmed_flush_lsn;
	if (rep->creation.made_unheard)
		rep->info.slot_created = true;	/* by our lost session */
	return ECM_RESULT_DONE;
}

/* Has the stack's row record how far the creation is, and that the slot is ours. */
static char *
record_slot_sql(const Replication *rep, bool unfinished)
{
	return ecm_stack_row_own_slot_sql(rep->info.slot_created, ecm_slot_temporary ? NULL : rep->slot,
									  unfinished);
}

/* Ends the transaction that the slot was created in, and records it. */
static void
record_slot(Replication *rep)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "%s%s",
					 ecm_conn_idle_in_no_transaction(rep->conn) ? "" : "COMMIT; ",
					 record_slot_sql(rep, true));
	ecm_conn_send(rep->conn, sql.data, ECM_SETUP_QUERY_TIMEOUT_MS);
	rep->creation.made_unheard = false;
	rep->creation.unsettled = true;
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
					 "CREATE_REPLICATION_SLOT %s%s LOGICAL pgoutput (SNAPSHOT 'nothing'%s)",
					 quote_identifier(rep->slot),
					 ecm_slot_temporary ? " TEMPORARY" : "",
					 ecm_slot_is_for_failover() ? ", FAILOVER" : "");
	ecm_conn_send(rep->conn, sql.data, 0);
	rep->creation.running = true;
}

/* The server has created the slot. */
static void
slot_created(Replication *rep)
{
	rep->info.slot_created = true;
	record_slot(rep);
}

/* rep->step.query in step create_slot: the last command that was sent. */
enum
{
	SLOT_LOOK,					/* none yet */
	SLOT_TUNE,
	SLOT_BEGIN,
	SLOT_CREATE,
	SLOT_RECORD,
	SLOT_SETTLE,				/* none: it waits for transactions */
	SLOT_FINISH,
	SLOT_ALTER					/* instead of all the others */
};

/* In a transaction: changes the catalog, for whoever decodes the WAL. */
static void
change_catalog(void *arg pg_attribute_unused())
{
	(void) GetTopTransactionId();
	CacheInvalidateRelcacheByRelid(ecm_own_relid("stack"));
}

/* Waits for the transactions older than the fence, then advances the slot. */
static EcmStepResult
settle(Replication *rep, EcmStepFailure *failure)
{
	SlotCreation *creation = &rep->creation;
	EcmTime		now = ecm_now();
	EcmSlotFacts facts;
	StringInfoData sql;
	XLogRecPtr	lsn;

	if (!ecm_slot_lookup(rep->slot, &facts))
		return slot_is_gone(rep, failure);
	if (facts.invalidation != NULL)
		return slot_is_invalidated(rep, failure, &facts);
	if (TransactionIdPrecedes(ecm_oldest_active_xid(), creation->fence))
	{
		rep->step.query = SLOT_SETTLE;
		rep->step.deadline = ecm_later(now, ecm_has_passed(creation->fence_at, now, 1000) ?
									   SETTLE_LONG_POLL_MS : SETTLE_POLL_MS);
		return ECM_RESULT_PENDING;
	}
	creation->fence = InvalidTransactionId;

	/* a crash must leave the WAL up to there */
	lsn = ecm_end_of_wal();
	XLogFlush(lsn);
	initStringInfo(&sql);
	if (facts.temporary)
		appendStringInfo(&sql, "SELECT pg_catalog.pg_replication_slot_advance(%s, '%X/%X'); ",
						 ecm_quote_literal(rep->slot), LSN_FORMAT_ARGS(lsn));
	else if (!ecm_slot_advance(rep->slot, lsn, &failure->err))
	{
		failure->kind = ECM_ERROR_RETRY;
		return ECM_RESULT_FAILED;
	}
	appendStringInfoString(&sql, record_slot_sql(rep, false));
	ecm_conn_send(rep->conn, sql.data, facts.temporary ? 0 : ECM_SETUP_QUERY_TIMEOUT_MS);
	rep->step.query = SLOT_FINISH;
	return ECM_RESULT_PENDING;
}

/* Begins to wait for the transactions that run now; see the top of this file. */
static EcmStepResult
begin_to_settle(Replication *rep, EcmStepFailure *failure)
{
	if (!ecm_worker_try(change_catalog, NULL, &failure->err))
	{
		failure->kind = ECM_ERROR_RETRY;
		return ECM_RESULT_FAILED;
	}
	rep->creation.fence = ReadNextTransactionId();
	rep->creation.fence_at = ecm_now();
	return settle(rep, failure);
}

/* The slot's position is where the shapes' logs will go on. */
static EcmStepResult
finish(Replication *rep, EcmStepFailure *failure)
{
	EcmSlotFacts facts;

	if (!ecm_slot_lookup(rep->slot, &facts))
		return slot_is_gone(rep, failure);
	rep->creation.unsettled = false;
	rep->info.confirmed_flush_lsn = facts.confirmed_flush_lsn;
	return ECM_RESULT_DONE;
}

/*
 * A slot of ours that standbys are to keep in step, or not any more, while it says
 * otherwise, is altered.  True: the command is sent.
 */
static bool
send_alter_slot(Replication *rep)
{
	bool		failover = ecm_slot_is_for_failover();
	EcmSlotFacts facts;

	if (!ECM_HAS_FAILOVER_SLOTS || !rep->creation.may_alter ||
		!ecm_slot_lookup(rep->slot, &facts) || facts.temporary || facts.failover == failover)
		return false;
	ecm_conn_send(rep->conn,
				  psprintf("ALTER_REPLICATION_SLOT %s (FAILOVER %s)", quote_identifier(rep->slot),
						   failover ? "true" : "false"),
				  ECM_SETUP_QUERY_TIMEOUT_MS);
	return true;
}

/* What the command has come to.  The stream can begin without, and is not kept from it. */
static EcmStepResult
slot_altered(Replication *rep, EcmStepResult result, EcmStepFailure *failure)
{
	if (result != ECM_RESULT_FAILED || ecm_conn_state(rep->conn) == ECM_CONN_FAILED)
		return result;
	ecm_event_in(MyDatabaseId, rep->dbname, ECM_EVENT_WARNING, failure->err.message,
				 "could not alter whether standbys keep replication slot \"%s\" in step", rep->slot);
	return ECM_RESULT_DONE;
}

/*
 * Step create_slot: look, tune the walsender, BEGIN, create, record, settle, finish.
 *
 * Why the transaction: while it creates the slot the server waits for locks of
 * running transactions.  A walsender that waits outside of a transaction and is
 * ended at the moment when the lock is granted leaves that lock behind, since only
 * the end of a transaction releases it.
 *
 * If the connection is lost during the creation, nobody knows whether the slot was
 * made.  made_unheard remembers that: if the next attempt finds the slot, it is ours
 * and new, and is recorded as such.  unsettled, and the stack's row, remember what is
 * to be done with it then, over the end of the session, of this process or the server.
 */
EcmStepResult
ecm_replication_poll_slot(Replication *rep, EcmStepFailure *failure)
{
	EcmStepResult result;
	bool		create;

	rep->step.deadline = 0;
	if (rep->step.query == SLOT_LOOK)
	{
		if (ecm_conn_poll(rep->conn) == ECM_CONN_FAILED)
			return ecm_replication_conn_failed(rep, failure, ECM_CONTEXT_SLOT);
		result = look_at_slot(rep, failure, &create);
		if (result == ECM_RESULT_DONE && !create &&
			(rep->creation.made_unheard || rep->creation.unsettled))
		{
			record_slot(rep);
			rep->step.query = SLOT_RECORD;
			return ECM_RESULT_PENDING;
		}
		if (result == ECM_RESULT_DONE && !create && send_alter_slot(rep))
		{
			rep->step.query = SLOT_ALTER;
			return ECM_RESULT_PENDING;
		}
		if (result != ECM_RESULT_DONE || !create)
			return result;

		/*
		 * A walsender that creates a slot may count as a synchronous standby,
		 * too, so it is tuned before.  A failed attempt may have left its
		 * transaction open.
		 */
		ecm_conn_send(rep->conn,
					  psprintf("%s" ECM_TUNE_WALSENDER_SQL "; %s",
							   ecm_conn_idle_in_no_transaction(rep->conn) ? "" : "ROLLBACK; ",
							   ecm_stack_row_own_slot_sql(false, NULL, true)),
					  ECM_SETUP_QUERY_TIMEOUT_MS);
		rep->step.query = SLOT_TUNE;
		return ECM_RESULT_PENDING;
	}

	result = ecm_replication_poll_query(rep, failure, ECM_CONTEXT_SLOT);
	rep->creation.running = result == ECM_RESULT_PENDING && rep->step.query == SLOT_CREATE;
	if (rep->step.query == SLOT_ALTER)
		return slot_altered(rep, result, failure);
	if (rep->step.query == SLOT_CREATE && ecm_conn_state(rep->conn) == ECM_CONN_FAILED)
		rep->creation.made_unheard = true;
	if (result != ECM_RESULT_DONE)
		return result;

	switch (rep->step.query++)
	{
		case SLOT_TUNE:
			ecm_conn_send(rep->conn, "BEGIN", ECM_SETUP_QUERY_TIMEOUT_MS);
			return ECM_RESULT_PENDING;
		case SLOT_BEGIN:
			send_create_slot(rep);
			return ECM_RESULT_PENDING;
		case SLOT_CREATE:
			slot_created(rep);
			return ECM_RESULT_PENDING;
		case SLOT_RECORD:
			rep->creation.recorded = rep->info.slot_created;
			return begin_to_settle(rep, failure);
		case SLOT_SETTLE:
			return settle(rep, failure);
		default:
			return finish(rep, failure);
	}
}
