/*-------------------------------------------------------------------------
 *
 * retained_wal.h
 *	  Watches over the WAL that a stack's slot retains: takes samples, shows
 *	  and remembers them, warns.
 *
 * For whoever is the writer of the stack's entry: the manager, or the launcher
 * while there is none.
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

/* The slot, or its creation, has to go. */
typedef struct EcmWalAction
{
	unsigned	why;			/* ECM_WAL_DROP_...; 0: no, it may stay */
	EcmError	reason;			/* in words */
} EcmWalAction;

/* Leaves this process's settings in the entry, for those who come after it. */
extern void ecm_retained_wal_publish_settings(int stack_index);

/* The limits that apply to a stack, by those and the server's settings. */
extern void ecm_retained_wal_effective_limits(const EcmWalSettings *of_database,
											  EcmWalLimits *limits);

/*
 * Takes a sample now, with all that comes of it except what *action says.
 * consumer_pin: a consumer that holds the slot back, NULL if none is known to.
 * Returns when the next sample is due.
 */
extern EcmTime ecm_retained_wal_watch(int stack_index, const EcmPin *consumer_pin,
									  EcmWalAction *action);

/*
 * How many bytes of WAL the stack may write now for what could as well be done
 * later (ecm_retained_wal_guard_allowance()).  If that is less than wanted, the slot is
 * let move on, so that it may soon be more; call again, but not all the time.
 */
extern int64 ecm_retained_wal_allowance(int stack_index, int64 wanted);

/*
 * Carries that out in this process: drops the slot if it is ours and nobody
 * uses it.  A stack that streams does that by making a new slot; it says so
 * here (ecm_retained_wal_slot_goes()) before it does.
 */
extern void ecm_retained_wal_drop_slot(int stack_index, const EcmWalAction *action);
extern void ecm_retained_wal_slot_goes(int stack_index, const EcmWalAction *action);

/* Says that it is the creation of the slot that is ended for it. */
extern void ecm_retained_wal_creation_ends(int stack_index, const EcmWalAction *action);

/* Why no slot may be made now, palloc'd; NULL: it may. */
extern char *ecm_retained_wal_no_room(int stack_index);

#endif							/* ECM_RETAINED_WAL_H */
