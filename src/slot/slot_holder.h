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

typedef struct EcmPin
{
	char		by[ECM_TEXT_LEN];	/* "": nothing in particular */
	TimestampTz since;
	bool		certain;		/* or else the best guess */
} EcmPin;

/*
 * Looks for what holds the slot of that sample back: nobody is connected
 * (inactive_since: when that was first seen), somebody else is (walsender: our
 * own, 0: none), or a transaction is open since before what could be let go.
 * That a consumer hangs its manager knows better.  Waits for nothing and needs
 * no transaction.
 */
extern void ecm_slot_holder_find(const EcmWalSample *sample,
								 TimestampTz inactive_since, int walsender,
								 EcmPin *pin);

/*
 * The best guess, where nothing is certain (yet): a transaction that is not that
 * old, or a walsender that does not come on, or has much to decode.
 */
extern void ecm_slot_holder_guess(const EcmWalSample *sample, int walsender,
								  EcmPin *pin);

#endif							/* ECM_SLOT_HOLDER_H */
