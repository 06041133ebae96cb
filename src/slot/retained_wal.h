/*-------------------------------------------------------------------------
 *
 * retained_wal.h
 *	  Watches over the WAL that a stack's slot retains: takes samples, shows
 *	  and remembers them, warns.
 *
 * To be called by the writer of the stack's entry only: the manager, or the
 * launcher while there is no manager or it hangs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_RETAINED_WAL_H
#define ECM_RETAINED_WAL_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "base/errors.h"
#include "base/shmem.h"
#include "slot/slot_holder.h"

/*
 * A decision about the slot.  The caller carries it out: a manager that
 * streams, by a new slot (ecm_retained_wal_slot_goes()); one that is creating
 * the slot, by ending the creation (ecm_retained_wal_creation_ends()); any
 * other, and the launcher, by ecm_retained_wal_drop_slot().
 */
typedef struct EcmWalAction
{
	unsigned	why;			/* ECM_WAL_DROP_...: the slot has to go; 0: it
								 * may stay */
	EcmError	reason;			/* the same in words */
} EcmWalAction;

/*
 * Puts this process's settings about retained WAL into the entry, for the
 * launcher, which can't see those of the database.
 */
extern void ecm_retained_wal_publish_settings(int stack_index);

/*
 * The limits that apply to a stack: by the settings that its manager has put
 * into the entry, and otherwise by those of this process.
 */
extern void ecm_retained_wal_effective_limits(const EcmWalSettings *of_database,
											  EcmWalLimits *limits);

/*
 * Takes a sample of the slot now, shows it in the entry, adds it to the
 * history, and records the events that are due.  *action becomes the decision
 * about the slot.  A former slot is watched, and dropped if need be, along
 * with it.
 *
 * consumer_pin: a consumer that holds the slot back; NULL, or with an empty
 * text: none does as far as is known.  Returns when the next sample is due.
 */
extern EcmTime ecm_retained_wal_watch(int stack_index, const EcmPin *consumer_pin,
									  EcmWalAction *action);

/*
 * How many bytes of WAL the stack may write now for work that could as well be
 * done later (see ecm_retained_wal_guard_allowance()).  If that is less than
 * wanted because the slot has not advanced for a while, the slot is let
 * advance, so that there may soon be more.  That writes WAL itself, so don't
 * call this in quick succession.
 */
extern int64 ecm_retained_wal_allowance(int stack_index, int64 wanted);

/*
 * Drops the slot in this process, if it is ours and nobody uses it, and says
 * so by events.  Otherwise an event says, once, why it stays.
 */
extern void ecm_retained_wal_drop_slot(int stack_index, const EcmWalAction *action);

/*
 * Says by an event that the slot is dropped.  For a manager that streams,
 * before it has the slot made anew.
 */
extern void ecm_retained_wal_slot_goes(int stack_index, const EcmWalAction *action);

/*
 * Says by an event that the creation of the slot is ended.  For a manager that
 * is creating it.
 */
extern void ecm_retained_wal_creation_ends(int stack_index, const EcmWalAction *action);

/*
 * The reason why no slot may be made now, palloc'd: the last one was dropped
 * for want of space, and there is no room yet.  NULL: one may be made.
 */
extern char *ecm_retained_wal_no_room(int stack_index);

#endif							/* ECM_RETAINED_WAL_H */
