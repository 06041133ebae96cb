/*-------------------------------------------------------------------------
 *
 * manager_stop.c
 *	  A manager's end.
 *
 * The manager ends by SIGTERM: from the launcher, which has put the reason into the
 * entry (end_reason), or from the postmaster at a shutdown.  Either it leaves the
 * slot, and records how far that is, so that the next manager can tell whether
 * somebody else has used the slot; or it drops slot and publication.
 *
 * At a shutdown the server refuses connections already, so all of that happens in
 * this process, which otherwise writes no table.  Its waits are bounded: a
 * shutdown waits for them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/pidfile.h"

#include "base/bgworker.h"
#include "base/errors.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/stack_catalog.h"
#include "connection/pool.h"
#include "jobs/deliver_events.h"
#include "manager/consumer_queues.h"
#include "manager/manager.h"
#include "slot/left_slot.h"
#include "slot/slot.h"
#include "slot/slot_owner.h"
#include "slot/slot_tail.h"

/*
 * Is the server shutting down?  Nothing in shared memory says so; the status
 * line of postmaster.pid does.
 */
static bool
server_is_stopping(void)
{
	FILE	   *file = AllocateFile("postmaster.pid", "r");
	char		line[256];
	bool		stopping = false;

	if (file == NULL)
		return false;
	for (int i = 1; fgets(line, sizeof(line), file) != NULL; i++)
		if (i == LOCK_FILE_LINE_PM_STATUS)
			stopping = strncmp(line, "stopping", 8) == 0;
	FreeFile(file);
	return stopping;
}

typedef struct StopRecord
{
	XLogRecPtr	lsn;			/* where the slot is, or will be at once */
	bool		for_upgrade;
} StopRecord;

/* In a transaction: records the end.  arg: StopRecord. */
static void
record_stop(void *arg)
{
	StopRecord *record = arg;

	ecm_stack_row_record_stop(record->lsn, record->for_upgrade);
}

static void
store_events(Manager *m)
{
	EcmError	err;

	if (m->stack->manager.probe == ECM_PROBE_RUN && !ecm_events_store(&err))
		ereport(LOG,
				(errmsg("electric_cm in database \"%s\": could not store events: %s",
						m->stack->datname, err.message)));
}

/* In a transaction: records that the slot is not ours any more. */
static void
disown_slot(void *arg)
{
	Manager    *m = arg;

	ecm_stack_row_disown_slot(m->stack->slot.name);
}

/* In a transaction: drops the publication, if we have made it. */
static void
drop_publication(void *arg pg_attribute_unused())
{
	EcmSpiState spi;

	ecm_stack_row_forget_created();
	ecm_spi_begin(&spi);
	ecm_drop_own_publications();
	ecm_spi_end(&spi);
}

/* Drops the slot, which our walsender has let go of, and says so in an event. */
static void
drop_slot(Manager *m)
{
	EcmSlotFacts facts;
	EcmError	err;

	if (!ecm_manager_slot_is_usable(m->stack->slot.name, &facts) || facts.temporary)
		return;
	if (ecm_slot_drop(m->stack->slot.name, &err))
		ecm_manager_event(m, ECM_EVENT_REPLICATION_SLOT_DROPPED, "",
						  psprintf("dropped replication slot \"%s\"", m->stack->slot.name));
	else
		ecm_manager_event(m, ECM_EVENT_WARNING, err.message,
						  psprintf("could not drop replication slot \"%s\"", m->stack->slot.name));
}

/*
 * Puts down that this is a clean end, and where the slot is.  If nobody but us has
 * committed anything that is not logged, the slot is moved past all of it: see
 * slot_tail.c.  A slot that has not been compared with the logs, as it was made anew
 * a moment ago, or is beyond what we have acknowledged, is left as it is: the next
 * manager finds out.
 */
static void
record_end(Manager *m, const EcmSlotFacts *facts, bool for_upgrade)
{
	StopRecord	record = {.for_upgrade = for_upgrade};
	XLogRecPtr	from = facts->confirmed_flush_lsn;
	XLogRecPtr	logged = Max(from, m->position.at_end);
	EcmError	err;

	if (from > m->position.slot)
		return;

	if (!facts->temporary && facts->invalidation == NULL && facts->active_pid == 0)
	{
		store_events(m);		/* after that there is nothing more to write */
		if (ecm_slot_tail_is_ours(logged))
		{
			record.lsn = ecm_slot_tail_end();
			if (ecm_worker_try(record_stop, &record, &err) &&
				ecm_slot_tail_skip(m->stack->slot.name, from, logged, record.lsn))
			{
				ecm_slot_owner_moved(m->stack_index, MyDatabaseId, record.lsn);
				return;
			}
		}
	}
	record.lsn = from;
	if (!ecm_worker_try(record_stop, &record, &err))
		ecm_manager_event(m, ECM_EVENT_WARNING, err.message,
						  "could not record the end of the stack");
}

/*
 * Drops the slot and the publication, or records how far the slot is.  drained: a
 * command has the stack paused and has made it consume all there is; nothing may be
 * written that the slot would have to decode.
 */
static void
leave_slot(Manager *m, bool drop, bool drained, bool for_upgrade)
{
	EcmSlotFacts facts;
	EcmError	err;

	if (drop)
	{
		drop_slot(m);
		if (!ecm_worker_try(drop_publication, NULL, &err))
			ecm_manager_event(m, ECM_EVENT_WARNING, err.message,
							  "could not drop the publication");
	}
	else if (!drained && ecm_manager_slot_is_usable(m->stack->slot.name, &facts))
		record_end(m, &facts, for_upgrade);
	if (!drop && ecm_manager_slot_is_recorded(m) && !ecm_slot_owner_look(m->stack_index, false) &&
		!m->stack->slot.owned)
		(void) ecm_worker_try(disown_slot, m, &err);
}

/*
 * Slot and publication are dropped if somebody has asked for that and the stack is
 * not to run on: at a stop, an unwanted database, a restart that comes from
 * electric_cm.enabled, or a shutdown; a pause does not count.  Only who holds the
 * lock may touch the slot.
 */
void
ecm_manager_clean_up(Manager *m)
{
	EcmEndReason reason;
	bool		drop;
	bool		drained;
	bool		disabled;
	bool		for_upgrade;

	if (m->cleaned_up)
		return;
	m->cleaned_up = true;
	ecm_worker_leave();

	disabled = ecm_manager_is_disabled();	/* as of now: ecm_enabled is from
											 * our start */
	ecm_lock(LW_EXCLUSIVE);
	reason = m->stack->lifecycle.end_reason;
	drop = m->stack->requests.drop_on_stop &&
		(reason == ECM_END_STOP || reason == ECM_END_UNWANTED ||
		 (reason == ECM_END_RESTART && disabled) ||
		 (reason == ECM_END_NONE && server_is_stopping()));
	drop |= reason == ECM_END_STOP && m->stack->requests.drop_slot;
	if (reason != ECM_END_PAUSE)
		m->stack->requests.drop_on_stop = false;
	drained = reason == ECM_END_PAUSE && m->stack->pause.drained;
	for_upgrade = reason == ECM_END_STOP && m->stack->requests.upgrade;
	ecm_unlock();

	if (m->state.streaming_up)
		m->position.at_end = ecm_manager_flushed_lsn(m);
	ecm_pool_close();
	ecm_queues_stop();
	ecm_replication_close(&m->replication);

	/*
	 * With the extension, its tables and the publication are gone.  DROP
	 * EXTENSION has left the slot that was recorded to the launcher; a slot
	 * that we have made since, or have not recorded yet, is left to it here.
	 */
	if (m->extension_gone)
	{
		if (m->replication.info.slot_created || ecm_slot_name[0] == '\0')
			ecm_leave_slot(MyDatabaseId, m->stack->slot.name);
		return;
	}

	ecm_worker_set("lock_timeout", "1s");
	ecm_slot_tail_begin();
	if (m->state.lock_held && ecm_replication_wait_slot_free(&m->replication, 1000))
		leave_slot(m, drop, drained, for_upgrade);
	if (!drained)
		store_events(m);
}

/*
 * before_shmem_exit callback.  If SIGTERM has interrupted something inside core, such
 * as a wait for a lock, the process leaves by a FATAL, without coming back to the
 * main loop, and cleans up here.  An ERROR in the loop ends here, too.
 */
void
ecm_manager_at_exit(int code pg_attribute_unused(), Datum arg)
{
	Manager    *m = (Manager *) DatumGetPointer(arg);

	if (m->cleaned_up)
		return;
	AbortOutOfAnyTransaction();

	/* proc_exit() holds interrupts, and with them the bound on lock waits */
	RESUME_INTERRUPTS();
	ecm_manager_clean_up(m);
	HOLD_INTERRUPTS();
}
