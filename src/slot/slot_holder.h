/*-------------------------------------------------------------------------
 *
 * slot_holder.h
 *	  What holds a replication slot back, in words.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SLOT_HOLDER_H
#define ECM_SLOT_HOLDER_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "base/shmem.h"

/* The holder of a slot. */
typedef struct EcmPin
{
	char		by[ECM_TEXT_LEN];	/* in words; "": none is known */
	TimestampTz since;
	bool		certain;		/* false: it is the best guess */
} EcmPin;

/*
 * Finds the slot's holder, if it is certain: nobody is connected
 * (inactive_since: since when), somebody else than the stack's own walsender
 * is (walsender: its PID, 0: none), or an open transaction.  A consumer that
 * hangs is not found here; the manager knows of it.  Waits for nothing and
 * needs no transaction.
 */
extern void ecm_slot_holder_find(const EcmWalSample *sample,
								 TimestampTz inactive_since, int walsender,
								 EcmPin *pin);

/*
 * Since when that walsender has waited for a standby (see synchronized_standby_slots)
 * without coming on, as far as has been seen here; 0: it doesn't, or has for some
 * seconds only.  The text says for which one.
 */
extern EcmTime ecm_slot_holder_standby(int walsender, EcmTime now, char *text, Size size);

/*
 * The likeliest holder, where none is certain: a walsender that stands still
 * or has much to decode, or else a transaction, however young.  Remembers how
 * far the walsender has sent, so it has to be called with each sample.
 */
extern void ecm_slot_holder_guess(const EcmWalSample *sample, int walsender,
								  EcmPin *pin);

#endif							/* ECM_SLOT_HOLDER_H */
