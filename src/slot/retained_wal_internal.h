/*-------------------------------------------------------------------------
 *
 * retained_wal_internal.h
 *	  A slot that is being looked at: for the files that retained_wal.h is made
 *	  of.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_RETAINED_WAL_INTERNAL_H
#define ECM_RETAINED_WAL_INTERNAL_H

#include "postgres.h"

#include "base/event_name.h"
#include "base/shmem.h"
#include "slot/retained_wal.h"
#include "slot/retained_wal_blame.h"
#include "slot/slot_holder.h"

/*
 * A slot that is being looked at, with a copy of the part of its stack's entry
 * that is needed for that.
 */
typedef struct EcmWalLook
{
	EcmWatchedSlot *shared;		/* the slot's place in the entry */
	Oid			dboid;
	char		datname[NAMEDATALEN];
	bool		has_manager;
	int			walsender;		/* PID of the stack's own walsender, 0: none */
	uint32		shapes;			/* number of its shapes that consumers follow */
	EcmWalLimits limits;
	EcmWatchedSlot slot;
	EcmPin		pin;			/* the slot's holder */
	EcmWalBlame for_limit;		/* who else needs its WAL, if the slot is to
								 * go because it retains too much ... */
	EcmWalBlame for_room;		/* ... or for want of space */
} EcmWalLook;

/*
 * Is the slot still being created?  Its creation reserves WAL at once, and can
 * wait for a long time for transactions that are open.
 */
static inline bool
ecm_retained_wal_is_being_made(const EcmWalSample *sample)
{
	return sample->slot_exists && sample->active &&
		XLogRecPtrIsInvalid(sample->confirmed_flush_lsn);
}

/*
 * Records the events of 'actions' (ECM_WAL_..., of the guard), and tells in
 * *action whether the slot has to go, and why.  unseen_us: for a lost slot, how
 * long ago it was last seen in no danger; 0: unknown.
 */
extern void ecm_retained_wal_conclude(const EcmWalLook *look, unsigned actions,
									  int64 unseen_us, EcmWalAction *action);

/*
 * A sentence about the shapes that end with the slot, as many as the consumers
 * have reported.  'when' is inserted after "gone".
 */
extern char *ecm_retained_wal_describe_loss(const EcmWalLook *look, const char *when);

/* The event that says that a slot is dropped because of a limit. */
extern EcmEventName ecm_retained_wal_limit_event(const EcmWalAction *action);

#endif							/* ECM_RETAINED_WAL_INTERNAL_H */
