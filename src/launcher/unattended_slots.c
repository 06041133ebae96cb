/*-------------------------------------------------------------------------
 *
 * unattended_slots.c
 *	  Slots of stacks that have no manager.
 *
 * A stack that is stopped, disabled, or can't be started still has its slot,
 * and the slot goes on holding back WAL.  The launcher, which is always there,
 * does for it what the manager would: it is the entry's writer meanwhile, and
 * dropping a slot needs no process in its database.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "base/shmem.h"
#include "launcher/unattended_slots.h"
#include "slot/retained_wal.h"
#include "slot/slot.h"

/* when the next sample is due, by the settings of the last one */
static EcmTime due[ECM_MAX_MANAGERS];

void
ecm_unattended_forget(int stack_index)
{
	due[stack_index] = 0;
}

EcmTime
ecm_unattended_watch(int stack_index, EcmTime now)
{
	EcmStack   *stack = &ecm_shared->stacks[stack_index];
	EcmSlotFacts facts;
	EcmWalAction action;
	bool		nothing_there;

	if (stack->slot.name[0] == '\0' || !stack->registered)
		return 0;

	/* what is shown of a slot that has gone is shown no longer */
	nothing_there = !ecm_slot_lookup(stack->slot.name, &facts) &&
		!stack->slot.sample.slot_exists && !stack->slot.guard.short_of_room &&
		stack->former.name[0] == '\0';
	if (nothing_there && !stack->requests.sample)
		return 0;
	if (now < due[stack_index] && !stack->requests.sample)
		return due[stack_index];

	due[stack_index] = ecm_wal_watch(stack_index, NULL, &action);
	if (action.why != 0)
		ecm_wal_drop_slot(stack_index, &action);
	return due[stack_index];
}
