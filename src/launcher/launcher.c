/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  The launcher, the one static worker: which managers should run.
 *
 * The launcher is in no database, and sees only pg_database.  Whether a stack is
 * wanted in a database only a process inside it can see, so that is a manager's
 * first act: it leaves its verdict in the entry ("probe"), and runs or ends.
 * To look into a database thus means to start a manager.  Databases without the
 * extension are remembered and left alone until somebody says CREATE EXTENSION
 * there.
 *
 * Other processes put requests into the entries, and wake the launcher, which sees
 * to all that is due in each round:
 *
 *		databases.c			which databases there are, and what is known of them
 *		stack_decision.c	should a database have a stack now?  (pure)
 *		stack_supervisor.c	starts, watches and ends managers accordingly
 *		worker_budget.c		how many background workers they may have
 *		database_looks.c	looks into databases of which nothing is known yet
 *		unattended_slots.c	slots that no manager looks after
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "base/bgworker.h"
#include "base/compat.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/wait_event.h"
#include "launcher/database_looks.h"
#include "launcher/databases.h"
#include "launcher/launcher.h"
#include "launcher/stack_entry.h"
#include "launcher/stack_supervisor.h"
#include "launcher/unattended_slots.h"
#include "slot/slot_notes.h"

#define LAUNCHER_RESTART_TIME	5	/* seconds */

void
ecm_launcher_register(void)
{
	BackgroundWorker worker;

	ecm_bgworker_init(&worker, "ecm_launcher_main", "electric_cm launcher");
	worker.bgw_restart_time = LAUNCHER_RESTART_TIME;
	RegisterBackgroundWorker(&worker);
}

/* before_shmem_exit callback.  Managers run on without a launcher. */
static void
launcher_exit(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->launcher_pid = 0;
	ecm_shared->launcher_latch = NULL;
	ecm_unlock();
}

/*
 * After SIGHUP: takes the new settings, and makes due what they may change.  A stack
 * that is off by electric_cm.enabled may have been switched on; only a manager can
 * tell, as the database may have a setting of its own.
 */
static void
reload_settings(void)
{
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	ecm_databases_forget_scan();	/* electric_cm.databases may have changed */
	for (int i = 0; i < ecm_stack_count(); i++)
		ecm_supervised(i)->sample_at = 0;

	ecm_lock(LW_EXCLUSIVE);
	for (int i = 0; i < ecm_stack_count(); i++)
	{
		EcmStack   *stack = ecm_stack_at(i);

		if (stack->in_use && stack->manager.pid == 0 &&
			stack->manager.probe == ECM_PROBE_DISABLED)
			ecm_stack_set_request(stack, ECM_REQUEST_REPROBE);
	}
	ecm_unlock();
}

/* The earlier one; b 0: it has no time. */
static EcmTime
earlier(EcmTime a, EcmTime b)
{
	return b == 0 ? a : Min(a, b);
}

/* How long may we sleep, in milliseconds? */
static long
sleep_time(void)
{
	EcmTime		now = ecm_now();
	EcmTime		wake_at = ecm_later(now, ECM_LAUNCHER_ROUND_MS);

	wake_at = Min(wake_at, ecm_databases_scan_due());
	wake_at = earlier(wake_at, ecm_look_retry_at());
	wake_at = earlier(wake_at, ecm_unattended_due());
	wake_at = earlier(wake_at, ecm_supervisor_next_start(now));
	return ecm_ms_until(now, wake_at);
}

static void
launcher_startup(void)
{
	/*
	 * SIGTERM must interrupt a wait for a lock on pg_database, which a
	 * handler that only sets a flag does not; hence die.  The main loop looks
	 * at its flag before CHECK_FOR_INTERRUPTS() does, so a usual shutdown
	 * logs no FATAL.
	 */
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->launcher_pid = MyProcPid;
	ecm_shared->launcher_alive_at = ecm_now();
	ecm_shared->launcher_latch = MyLatch;
	if (XLogRecPtrIsInvalid(ecm_shared->first_lsn))
		ecm_shared->first_lsn = GetXLogInsertRecPtr();
	ecm_unlock();
	before_shmem_exit(launcher_exit, 0);

	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	/* what the server's settings have must not end our look at pg_database */
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_SUSET, PGC_S_OVERRIDE);
	pgstat_report_appname("electric_cm launcher");
	pgstat_report_activity(STATE_IDLE, "supervising the stacks of this server");

	ecm_databases_init();
	ecm_supervised_init();
	ecm_slot_notes_load();
}

/*
 * Main function of the launcher.  It ends only by SIGTERM or an error, with code 1 in
 * both cases: with 0 the postmaster would never start it again.  Left slots are
 * dropped before stacks are looked after, as a new stack may need their names.
 */
void
ecm_launcher_main(Datum arg pg_attribute_unused())
{
	MemoryContext loop_context;

	launcher_startup();
	loop_context = AllocSetContextCreate(TopMemoryContext,
										 "electric_cm launcher",
										 ALLOCSET_DEFAULT_SIZES);

	for (;;)
	{
		EcmTime		now;

		if (ProcDiePending)
			proc_exit(1);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
			reload_settings();

		MemoryContextSwitchTo(loop_context);
		MemoryContextReset(loop_context);
		now = ecm_now();
		ecm_shared->launcher_alive_at = now;

		if (ecm_databases_scan_is_due(now))
			ecm_databases_scan();
		ecm_left_slots_drop(now);
		ecm_supervise_all(now);
		ecm_databases_forget_known_if_requested();
		ecm_look_into_next(now);
		ecm_supervisor_watch_hangs(now);
		ecm_unattended_watch(now);
		ecm_slot_notes_update();

		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 sleep_time(), ecm_wait_event(ECM_WAIT_LAUNCHER_MAIN));
		ResetLatch(MyLatch);
	}
}
