/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  The launcher, the one static worker: which managers should run.
 *
 * It knows no more of a database than its name.  Whether a stack is wanted
 * there only a process inside the database can see, so that is a manager's
 * first act: it leaves its verdict in the entry ("probe"), and runs or exits.
 * Looking at a database thus means starting a manager.  The databases without
 * the extension are remembered and left alone until somebody says CREATE
 * EXTENSION there.
 *
 * Other processes leave what they want in the entries' requests, and wake the
 * launcher, which sees to all that is due each time round:
 *
 *		databases.c			which databases there are, and what is known of them
 *		stack_decision.c	should a database have a stack now?  (pure)
 *		stack_supervisor.c	starts, watches and ends managers accordingly
 *		worker_budget.c		how many background workers they may have
 *		database_looks.c	databases of which nothing is known yet
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

static void
launcher_exit(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->launcher_pid = 0;
	ecm_shared->launcher_latch = NULL;
	ecm_unlock();
}

static void
reload_settings(void)
{
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	ecm_databases_forget_scan();	/* electric_cm.databases may have changed */
	for (int i = 0; i < ecm_stack_count(); i++)
		ecm_supervised(i)->sample_at = 0;

	/* ... and electric_cm.enabled of a database */
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
	 * die, not a flag, lest a lock on pg_database makes us deaf; the main
	 * loop looks first, so that a normal shutdown is silent.
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

	/* settings of the whole server apply to us as well */
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
 * Exits only by SIGTERM or an error, with code 1 in both cases: with 0 the
 * postmaster would never start a launcher again.
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
		ecm_left_slots_drop(now);	/* before a new stack needs the name */
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
