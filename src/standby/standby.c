/*-------------------------------------------------------------------------
 *
 * standby.c
 *	  The worker on a standby that was a primary before: drops its own slots.
 *
 * A primary that is stopped cleanly and comes back as a standby still has the slots
 * that its stacks have made.  Nobody moves them on any more, so they pin WAL and the
 * catalogs' old rows for ever.  Worse, slot synchronization refuses to touch a slot
 * that was made on the standby itself, and ends there, without a look at the others: not
 * one slot of the server is kept in step.  And no stack could go on with such a slot
 * after another promotion, see continuity.c.
 *
 * Such a slot is dropped if all of this is so:
 *
 *	- the launcher has noted it as one that a stack has made (slot_notes.c), it is of the
 *	  stack's kind, and has not come by slot synchronization;
 *	- nobody uses it;
 *	- the server follows a primary: it receives WAL.  An HA manager may start a primary
 *	  that has crashed as a standby, only to promote it at once;
 *	- slots are to be kept in step: by electric_cm.failover or sync_replication_slots.
 *
 * Slots of others are left alone.  The worker is registered only if the server starts as
 * a standby, which no server becomes later, and ends as soon as there is no such slot.
 * It has shared memory and no database, so that it is in nobody's way.  An ERROR ends
 * it, and it is started again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/stat.h>

#include "access/xlog.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/slot.h"
#include "replication/walreceiver.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/spin.h"
#include "utils/guc.h"

#include "base/bgworker.h"
#include "base/compat.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/wait_event.h"
#include "slot/slot.h"
#include "slot/slot_notes.h"
#include "standby/standby.h"

#define RESTART_TIME	10		/* seconds, after an ERROR */
#define ROUND_MS		1000

void
ecm_standby_register(void)
{
	BackgroundWorker worker;
	struct stat st;

	/*
	 * slots are kept in step from 17 on; a recovery to a point in time keeps
	 * none
	 */
	if (!ECM_HAS_FAILOVER_SLOTS || stat(STANDBY_SIGNAL_FILE, &st) != 0)
		return;
	ecm_bgworker_init(&worker, "ecm_standby_main", "electric_cm standby");
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = RESTART_TIME;
	RegisterBackgroundWorker(&worker);
}

/* Is it one that a stack has made on this server? */
static bool
is_of_the_past(const EcmSlotRow *slot)
{
	EcmSlotFacts facts;

	return ecm_slot_notes_have(slot->database, slot->name) &&
		ecm_slot_lookup(slot->name, &facts) &&
		ecm_slot_is_of_our_kind(&facts, slot->database) &&
		!facts.temporary && !facts.synced;
}

static bool
receives_wal(void)
{
	bool		streaming;

	SpinLockAcquire(&WalRcv->mutex);
	streaming = WalRcv->walRcvState == WALRCV_STREAMING;
	SpinLockRelease(&WalRcv->mutex);
	return streaming;
}

static bool
slots_are_kept_in_step(void)
{
	return ecm_failover ||
		strcmp(GetConfigOption("sync_replication_slots", false, false), "on") == 0;
}

static void
drop(const EcmSlotRow *slot)
{
	const char *detail = "This server is a standby now: the slot would retain WAL for ever, and keep slot synchronization from all slots.";

	ReplicationSlotDrop(slot->name, true);
	ereport(LOG,
			(errmsg("electric_cm: dropped replication slot \"%s\" of the time as primary",
					slot->name),
			 errdetail("%s", detail)));
	ecm_event_in(slot->database, NULL, ECM_EVENT_REPLICATION_SLOT_REPLACED, detail,
				 "dropped replication slot \"%s\" of the time as primary", slot->name);
}

/* Drops those slots that can be dropped now.  False: there is none left. */
static bool
drop_slots_of_the_past(void)
{
	EcmSlotRow *slots = palloc(sizeof(EcmSlotRow) * Max(ecm_total_slots(), 1));
	int			n = ecm_slots_read(slots);
	bool		may_drop = receives_wal() && slots_are_kept_in_step();
	bool		left = false;

	for (int i = 0; i < n; i++)
	{
		if (!is_of_the_past(&slots[i]))
			continue;
		if (may_drop && slots[i].active_pid == 0 && RecoveryInProgress())
			drop(&slots[i]);
		else
			left = true;
	}
	pfree(slots);
	return left;
}

/*
 * Main function of the worker.  With code 0 it ends for good, with 1 (an ERROR, or SIGTERM)
 * it is started again.
 */
void
ecm_standby_main(Datum arg pg_attribute_unused())
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	ecm_slot_notes_load();

	while (RecoveryInProgress() && drop_slots_of_the_past())
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ROUND_MS, ecm_wait_event(ECM_WAIT_STANDBY_MAIN));
		ResetLatch(MyLatch);
		if (ShutdownRequestPending)
			proc_exit(1);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		CHECK_FOR_INTERRUPTS();
	}
	proc_exit(0);
}
