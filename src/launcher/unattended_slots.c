/*-------------------------------------------------------------------------
 *
 * unattended_slots.c
 *	  Slots that no manager looks after.
 *
 * A stack that is stopped, disabled, or can't be started still has its slot, which goes
 * on retaining WAL.  The launcher, which is always there, samples it as the manager
 * would, warns, and drops it at a limit: it is the entry's writer meanwhile, and
 * dropping a slot needs no process in its database.
 *
 * Slots that a dropped extension has left have no entry.  They are in a list in shared
 * memory (left_slots), and are dropped as soon as nobody uses them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/event.h"
#include "base/shmem.h"
#include "launcher/databases.h"
#include "launcher/stack_entry.h"
#include "launcher/unattended_slots.h"
#include "slot/retained_wal.h"
#include "slot/slot.h"

/* How often a left slot that is in use is looked at ... */
#define LEFT_SLOT_INTERVAL	(INT64CONST(1) * USECS_PER_SEC)
/* ... and when that is worth a warning */
#define LEFT_SLOT_PATIENCE	(INT64CONST(10) * USECS_PER_SEC)

static struct
{
	EcmTime		sample_at;		/* the next sample of a stack's slot; 0: none */
	EcmTime		drop_at;		/* the next attempt to drop left slots; 0:
								 * none */
}			due;

/*
 * Samples the slot of a stack without a manager, if that is due or requested.  Returns
 * when it is due again; 0: there is no slot to look after.
 */
static EcmTime
watch_slot(int index, EcmTime now)
{
	EcmStack   *stack = ecm_stack_at(index);
	EcmTime    *sample_at = &ecm_supervised(index)->sample_at;
	EcmSlotFacts facts;
	EcmWalAction action;
	bool		nothing_there;

	if (stack->slot.name[0] == '\0' || !stack->registered)
		return 0;

	/*
	 * A slot that is gone, but that the last sample has, is sampled once
	 * more: views would show it for ever.
	 */
	nothing_there = !ecm_slot_lookup(stack->slot.name, &facts) &&
		!stack->slot.sample.slot_exists && !stack->slot.guard.short_of_room &&
		stack->former.name[0] == '\0';
	if (nothing_there && !stack->requests.sample)
		return 0;
	if (now < *sample_at && !stack->requests.sample)
		return *sample_at;

	*sample_at = ecm_retained_wal_watch(index, NULL, &action);
	if (action.why != 0)
		ecm_retained_wal_drop_slot(index, &action);
	return *sample_at;
}

void
ecm_unattended_watch(EcmTime now)
{
	due.sample_at = 0;
	for (int i = 0; i < ecm_stack_count(); i++)
	{
		EcmTime		at;
		EcmEntry	entry;

		ecm_entry_read(i, &entry);
		if (!entry.in_use ||
			((entry.manager.pid != 0 || ecm_supervised(i)->running) &&
			 !entry.lifecycle.hangs))
			continue;
		at = watch_slot(i, now);
		if (at != 0 && (due.sample_at == 0 || at < due.sample_at))
			due.sample_at = at;
	}
}

EcmTime
ecm_unattended_due(void)
{
	if (due.sample_at == 0 || due.drop_at == 0)
		return Max(due.sample_at, due.drop_at);
	return Min(due.sample_at, due.drop_at);
}

/*
 * Drops a left slot, if nobody uses it.  Returns whether the item is done with; false:
 * try again.  A stack that was created since may have a slot of the same name, which
 * must stay.  A slot whose WAL begins at item->lsn or later is such a one, if a
 * manager was started since; if an older manager still runs, it is about to end.
 */
static bool
drop_left_slot(EcmLeftSlot *item, EcmTime now)
{
	EcmSlotFacts facts;
	EcmError	err;
	EcmTime		started_at = ecm_manager_started_at(item->dboid);

	if (!ecm_slot_lookup(item->slot_name, &facts) ||
		!ecm_slot_is_of_our_kind(&facts, item->dboid) || facts.temporary)
		return true;
	if (started_at != 0 && facts.restart_lsn >= item->lsn)
		return started_at > item->at;
	if (facts.active_pid != 0 ||
		!ecm_slot_drop(item->slot_name, &err))
	{
		if (!item->reported && now - item->at > LEFT_SLOT_PATIENCE)
		{
			item->reported = true;
			ecm_event_in(item->dboid, ecm_database_name(item->dboid), ECM_EVENT_REPLICATION_SLOT_LEFT,
						 "It goes on retaining WAL, and is dropped as soon as nobody uses it.",
						 "replication slot \"%s\" of the extension that has been dropped is still used by PID %d",
						 item->slot_name, facts.active_pid);
		}
		return false;
	}
	ecm_event_in(item->dboid, ecm_database_name(item->dboid), ECM_EVENT_REPLICATION_SLOT_DROPPED, "The extension has been dropped.",
				 "dropped replication slot \"%s\"", item->slot_name);
	return true;
}

void
ecm_left_slots_drop(EcmTime now)
{
	EcmLeftSlot items[ECM_MAX_LEFT_SLOTS];
	bool		done[ECM_MAX_LEFT_SLOTS];
	int			nitems;
	int			kept = 0;

	ecm_lock(LW_SHARED);
	nitems = ecm_shared->nleft_slots;
	memcpy(items, ecm_shared->left_slots, sizeof(items));
	ecm_unlock();
	if (nitems == 0)
		return;

	for (int i = 0; i < nitems; i++)
		done[i] = drop_left_slot(&items[i], now);

	/*
	 * Meanwhile others may have added items at the end, or have left a slot
	 * of the same name again, which gives its item a new time.
	 */
	ecm_lock(LW_EXCLUSIVE);
	for (int i = 0; i < ecm_shared->nleft_slots; i++)
	{
		EcmLeftSlot *item = &ecm_shared->left_slots[i];

		if (i < nitems && item->at == items[i].at)
			item->reported = items[i].reported;
		if (i >= nitems || !done[i] || item->at != items[i].at)
			ecm_shared->left_slots[kept++] = *item;
	}
	ecm_shared->nleft_slots = kept;
	ecm_unlock();
	due.drop_at = kept > 0 ? now + LEFT_SLOT_INTERVAL : 0;
}
