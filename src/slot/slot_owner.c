/*-------------------------------------------------------------------------
 *
 * slot_owner.c
 *	  Is the slot of a stack's name the one that the stack has made?
 *
 * The stack drops a slot (because of a limit, or at its end) only if it is its
 * own.  A slot has no identity, though: between two looks, somebody may drop
 * it and make another one of the same name.  But a slot's restart_lsn is at
 * the end of WAL when the slot is made.  So if the stack has seen its slot
 * when the end of WAL was at a position, and the slot's restart_lsn is before
 * that position, it is the same slot: a later one would begin after it.  While
 * the stack streams, nobody else can drop or use the slot, and its restart_lsn
 * never passes the position that the stack has acknowledged.
 *
 * The position at which the stack has seen its slot is in shared memory
 * (seen_lsn).  In the table of the database, it is the position recorded at a
 * clean stop.  If none is recorded, the stack ran until the server ended, and
 * a slot that is older than the server's start is the stack's own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"

#include "slot/retained_wal_guard.h"
#include "slot/slot.h"
#include "slot/slot_owner.h"

static bool
could_be_ours(const EcmStack *stack, const EcmSlotFacts *facts)
{
	return ecm_slot_is_of_our_kind(facts, stack->dboid) && !facts->temporary;
}

/*
 * Is this the slot that existed when the end of WAL was at "seen"?  *another
 * is set if it certainly is not: it is of another kind, or begins after
 * "seen".  If both are false, there is no telling.
 */
static bool
is_the_same(const EcmStack *stack, const EcmSlotFacts *facts, XLogRecPtr seen,
			bool *another)
{
	*another = !could_be_ours(stack, facts) ||
		(!XLogRecPtrIsInvalid(facts->restart_lsn) && facts->restart_lsn > seen);

	/*
	 * a slot that is lost has no restart_lsn, so there is no telling, and no
	 * need to: it retains nothing any more
	 */
	return !*another &&
		ecm_retained_wal_guard_slot_is_older(facts->restart_lsn, facts->confirmed_flush_lsn, seen);
}

bool
ecm_slot_owner_has(const EcmStack *stack, const char *name)
{
	return (stack->slot.owned && strcmp(stack->slot.name, name) == 0) ||
		(stack->former.owned && strcmp(stack->former.name, name) == 0);
}

bool
ecm_slot_owner_look(int stack_index, bool former)
{
	EcmStack   *stack = ecm_stack_at(stack_index);
	EcmWatchedSlot *slot = former ? &stack->former : &stack->slot;
	XLogRecPtr	end = GetXLogInsertRecPtr();	/* before the slot is looked
												 * at */
	EcmSlotFacts facts;
	char		name[NAMEDATALEN];
	uint64		runs;
	XLogRecPtr	seen;
	bool		in_use;
	bool		same;
	bool		another;

	ecm_lock(LW_SHARED);
	strlcpy(name, slot->name, sizeof(name));
	same = slot->owned;
	runs = stack->manager.runs;
	seen = slot->seen_lsn;
	if (!former)
		seen = Max(seen, stack->progress.acknowledged_lsn);
	in_use = !former && stack->report.streaming_up;
	ecm_unlock();
	if (!same)
		return false;

	(void) ecm_slot_lookup(name, &facts);
	if (in_use && facts.active_pid != 0 && could_be_ours(stack, &facts))
		another = false;
	else
		same = is_the_same(stack, &facts, seen, &another);

	ecm_lock(LW_EXCLUSIVE);

	/*
	 * a manager that has started meanwhile has set "owned" by its table,
	 * which is more reliable
	 */
	if (stack->manager.runs == runs && strcmp(slot->name, name) == 0)
	{
		if (another && former)
			memset(slot, 0, sizeof(*slot));
		else if (another)
			slot->owned = false;
		else if (same)
			slot->seen_lsn = Max(seen, end);
	}
	ecm_unlock();
	return same;
}

void
ecm_slot_owner_moved(int stack_index, Oid dboid, XLogRecPtr lsn)
{
	EcmStack   *stack = ecm_stack_at(stack_index);

	ecm_lock(LW_EXCLUSIVE);
	if (stack->in_use && stack->dboid == dboid)
		stack->slot.seen_lsn = Max(stack->slot.seen_lsn, lsn);
	ecm_unlock();
}
