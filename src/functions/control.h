/*-------------------------------------------------------------------------
 *
 * control.h
 *	  Stopping this database's stack, for functions that do more than that.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_CONTROL_H
#define ECM_CONTROL_H

#include "postgres.h"

#include "slot/slot.h"

/*
 * Ends this database's manager, and returns the slot's name when it has gone, and
 * its walsender has let go of the slot.  If the transaction is rolled back, the
 * stack starts again.  With for_upgrade the manager itself puts down that the
 * stack is stopped, else that is the caller's task.
 */
extern char *ecm_stop_own_stack(bool drop_slot, bool for_upgrade);

/* Is there a slot of that name which can only be this database's stack's? */
extern bool ecm_slot_is_own(const char *name, EcmSlotFacts *facts);

/* The transaction's commit waits for no standby, which may be dead. */
extern void ecm_commit_locally(void);

#endif							/* ECM_CONTROL_H */
