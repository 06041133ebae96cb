/*-------------------------------------------------------------------------
 *
 * unattended_slots.h
 *	  Slots that no manager looks after: the launcher does.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_UNATTENDED_SLOTS_H
#define ECM_UNATTENDED_SLOTS_H

#include "postgres.h"

#include "base/clock.h"

/*
 * Samples, if that is due or has been asked for, the slots of stacks that have
 * no manager, or one that hangs; warns, and drops those that retain too much.
 */
extern void ecm_unattended_watch(EcmTime now);

/*
 * Drops the slots that a dropped extension has left, as soon as nobody uses
 * them.
 */
extern void ecm_left_slots_drop(EcmTime now);

/* When one of these two has to be called again, at the latest; 0: no slot needs it. */
extern EcmTime ecm_unattended_due(void);

#endif							/* ECM_UNATTENDED_SLOTS_H */
