/*-------------------------------------------------------------------------
 *
 * manager_checks.c
 *	  The manager's checks, for parts that hang, have gone, or have been
 *	  changed, without having told.
 *
 * Consumers and pool are looked at in each round, sessions and the walsender every
 * ECM_MANAGER_ROUND_MS ("alive"), catalogs and locks every
 * electric_cm.status_check_interval, and when somebody asks ("status").  The last
 * kind reads catalogs, in transactions whose waits for locks are bounded.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/bgworker.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/text.h"
#include "base/version.h"
#include "connection/conn.h"
#include "connection/pool.h"
#include "manager/consumer_queues.h"
#include "manager/manager.h"
#include "manager/stack_report.h"

/* A consumer that has work and makes no progress for so long is shown. */
#define CONSUMER_STALLED_MS		10000

/* Part of the round: has a consumer ended? */
bool
ecm_manager_find_dead_consumer(Manager *m, EcmTime now pg_attribute_unused(),
							   RoundInput *in)
{
	if (!m->state.consumers_up || !ecm_queues_consumer_died(&in->failure.err))
		return false;
	in->failure.kind = ECM_ERROR_RETRY;
	return round_failed(in, ECM_INPUT_CONSUMER_LOST);
}

/*
 * Part of the round: does the pool fail for good?  The stream goes on without it;
 * the machine goes back to the step that opens it.
 */
bool
ecm_manager_find_dead_pool(Manager *m, EcmTime now pg_attribute_unused(),
						   RoundInput *in)
{
	EcmError	err;

	if (!m->state.pool_up || !ecm_pool_is_dead(&err))
		return false;
	(void) ecm_failure_make(&in->failure, ECM_ERROR_RETRY, err.sqlstate,
							psprintf("no session of the pool can be opened: %s",
									 err.message),
							err.detail, err.hint);
	return round_failed(in, ECM_INPUT_POOL_LOST);
}

typedef struct StalledArg
{
	EcmStalledConsumer consumer;
	char		text[ECM_TEXT_LEN]; /* "consumer 1 (PID 123), ..." */
} StalledArg;

/*
 * In a transaction: adds the shape that the consumer works on to the text, and the
 * processes that block it.
 */
static void
describe_stalled(void *arg)
{
	StalledArg *a = arg;
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	if (SPI_execute(psprintf("SELECT concat("
							 "(SELECT ', working on shape ' || handle FROM _electric_cm.shape WHERE id = " INT64_FORMAT "),"
							 " ', blocked by PID ' || nullif(array_to_string(pg_blocking_pids(%d), ', '), ''))",
							 a->consumer.shape, a->consumer.pid),
					true, 1) == SPI_OK_SELECT && SPI_processed == 1)
		strlcat(a->text, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1),
				sizeof(a->text));
	ecm_spi_end(&spi);
}

/*
 * Reports a consumer that has stalled for electric_cm.consumer_stall_timeout, as an
 * event and as what holds the slot back.  It holds the slot back for all consumers,
 * as the slot follows the slowest.  It is not ended: who blocks it would block the
 * next consumer, too, and a stopped process can't even be ended.
 */
static void
check_consumers(Manager *m, EcmTime now)
{
	StalledArg	arg;
	EcmError	err;

	if (!ecm_queues_find_stalled(now, ecm_consumer_stall_timeout, &arg.consumer))
	{
		if (m->checks.reported_stall != 0)
			ecm_manager_event(m, ECM_EVENT_CONSUMER_RESUMED, "",
							  "all consumers make progress again");
		if (m->wal.consumer_pin.by[0] != '\0')
			m->wal.sample_at = 0;	/* a sample shows that it is over */
		m->checks.reported_stall = 0;
		memset(&m->wal.consumer_pin, 0, sizeof(m->wal.consumer_pin));
		return;
	}
	snprintf(arg.text, sizeof(arg.text), "consumer %d (PID %d)",
			 arg.consumer.worker + 1, arg.consumer.pid);
	(void) ecm_worker_try(describe_stalled, &arg, &err);
	strlcpy(m->wal.consumer_pin.by, arg.text, sizeof(m->wal.consumer_pin.by));
	m->wal.consumer_pin.since = ecm_shown_time(arg.consumer.since);
	m->wal.consumer_pin.certain = true;
	m->wal.sample_at = 0;		/* a sample shows the consumer */
	if (m->checks.reported_stall != arg.consumer.since)
		ecm_manager_event(m, ECM_EVENT_CONSUMER_STALLED,
						  "It has work to do and pins the replication slot.",
						  psprintf("%s makes no progress since %s", arg.text,
								   timestamptz_to_str(m->wal.consumer_pin.since)));
	m->checks.reported_stall = arg.consumer.since;
}

/* Shows the stalled consumer in the entry; since 0: there is none. */
static void
show_stalled(Manager *m, const EcmStalledConsumer *consumer, const char *text)
{
	m->checks.shown_stall = consumer->since;
	ecm_lock(LW_EXCLUSIVE);
	ecm_copy_text(m->stack->stall.text, sizeof(m->stack->stall.text), text);
	m->stack->stall.pid = consumer->since != 0 ? consumer->pid : 0;
	m->stack->stall.at = consumer->since;
	ecm_unlock();
}

void
ecm_manager_forget_stalled(Manager *m)
{
	EcmStalledConsumer none = {0};

	if (m->checks.shown_stall != 0)
		show_stalled(m, &none, "");
}

/*
 * Shows a consumer that does not move, after CONSUMER_STALLED_MS.  Long before
 * check_consumers() reports it, its readers get nothing and want to know why.
 */
static void
find_stalled(Manager *m, EcmTime now)
{
	StalledArg	arg;
	EcmError	err;

	if (!ecm_queues_find_stalled(now, CONSUMER_STALLED_MS, &arg.consumer))
		arg.consumer.since = 0;
	if (arg.consumer.since == m->checks.shown_stall)
		return;
	arg.text[0] = '\0';
	if (arg.consumer.since != 0)
	{
		snprintf(arg.text, sizeof(arg.text), "consumer %d (PID %d)",
				 arg.consumer.worker + 1, arg.consumer.pid);
		(void) ecm_worker_try(describe_stalled, &arg, &err);
	}
	show_stalled(m, &arg.consumer, arg.text);
}

/*
 * Forgets the position that sessions wait for, and wakes them: a session that still
 * waits requests its position again.  Without this, a position that a session has
 * requested and then given up, maybe one in the future, would have the walsender
 * asked for ever.
 */
static void
forget_await(Manager *m)
{
	bool		forget = ecm_stack_awaited_lsn(m->stack_index) > m->stack->progress.flushed_lsn;

	if (!forget)
		return;
	ecm_lock(LW_EXCLUSIVE);
	m->stack->requests.await_lsn = InvalidXLogRecPtr;
	ecm_unlock();
	m->flow.asked_for = InvalidXLogRecPtr;
	ConditionVariableBroadcast(&m->stack->cv);
}

/*
 * Part of the round: looks whether sessions, walsender and consumers are still there
 * and move.  A process that hangs, or a connection that something in between has
 * cut off, sends no news of that.
 */
bool
ecm_manager_check_alive(Manager *m, EcmTime now, RoundInput *in)
{
	bool		lost;

	if (now < m->checks.alive_at)
	{
		ecm_manager_wake_at(m, m->checks.alive_at);
		return false;
	}
	m->checks.alive_at = ecm_later(now, ECM_MANAGER_ROUND_MS);
	ecm_manager_wake_at(m, m->checks.alive_at);
	ecm_pool_check();
	if (m->replication.conn != NULL)
		ecm_conn_check(m->replication.conn);
	lost = m->state.streaming_up &&
		ecm_replication_has_lost_slot(&m->replication, false, &in->failure);
	if (m->state.consumers_up)
	{
		find_stalled(m, now);
		ecm_manager_find_deaf(m);
	}
	ecm_manager_show_standby(m, now);
	forget_await(m);
	/* a wait in here may have reset the latch: go round once more */
	SetLatch(MyLatch);
	return lost && round_failed(in, ECM_INPUT_REPLICATION_LOST);
}

typedef struct PresentExtension
{
	Oid			oid;
	EcmSqlFit	fit;
} PresentExtension;

static void
find_extension(void *arg)
{
	PresentExtension *present = arg;

	present->oid = get_extension_oid("electric_cm", true);
	present->fit = ecm_sql_fit();
}

/*
 * Ends the manager if the extension has been dropped, or made what the library
 * does not know, in whatever way (see check_new_version() in hooks.c).  Its
 * objects need no clean-up; the next manager starts afresh, or says why not.
 */
static void
check_extension(Manager *m)
{
	EcmError	err;
	PresentExtension present;

	if (!ecm_worker_try(find_extension, &present, &err) ||
		(present.oid == m->extension_oid && present.fit == ECM_SQL_FITS))
		return;
	m->extension_gone = true;
	ecm_manager_clean_up(m);

	/*
	 * The verdict first.  Otherwise the launcher could see the request while
	 * the last verdict is "run", and grant it by doing nothing.
	 */
	ecm_stack_set_probe(m->stack_index, ECM_PROBE_NO_EXTENSION);
	if (OidIsValid(present.oid))
		(void) ecm_stack_request(MyDatabaseId, ECM_REQUEST_REPROBE);
	proc_exit(0);
}

/*
 * Part of the round: the checks that read catalogs.  All of them are made each time,
 * also when an earlier one has found something; the last finding counts.
 */
bool
ecm_manager_check_status(Manager *m, EcmTime now, RoundInput *in)
{
	bool		requested = ecm_stack_take_check(m->stack_index);
	bool		found = false;

	if (now < m->checks.status_at && !requested)
	{
		ecm_manager_wake_at(m, m->checks.status_at);
		return false;
	}
	if (m->state.running && ecm_replication_creates_slot(&m->replication))
		ecm_manager_help_slot_creation(m);
	else if (m->state.step == ECM_STEP_CREATE_SLOT)
		ecm_manager_hold_slot(m);
	if (m->state.step == ECM_STEP_ACQUIRE_LOCK && m->state.running)
		ecm_exclusive_lock_check(&m->lock, now);
	check_extension(m);
	if (requested && m->state.failed && !m->too_many_recreations)
	{
		in->type = ECM_INPUT_RELOAD;	/* who asked may have mended the cause */
		found = true;
	}
	check_consumers(m, now);
	if (m->state.streaming_up)
	{
		if (!ecm_replication_publication_is_good(&m->replication, &in->failure))
			found = round_failed(in, ECM_INPUT_REPLICATION_LOST);
		else
			ecm_manager_retire_former_slot(m);
	}
	ecm_report_shape_log_size();
	if (m->reload_again)
		ConfigReloadPending = true;

	/* a wait for a lock in here has reset the latch: go round once more */
	SetLatch(MyLatch);
	m->checks.status_at =
		ecm_later(now, m->state.step == ECM_STEP_CREATE_SLOT ?
				  ECM_SLOT_HELP_MS : ecm_status_check_interval);
	ecm_manager_wake_at(m, m->checks.status_at);
	return found;
}
