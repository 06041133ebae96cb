/*-------------------------------------------------------------------------
 *
 * unattended_slots.h
 *	  Slots of stacks that have no manager: the launcher looks after them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_UNATTENDED_SLOTS_H
#define ECM_UNATTENDED_SLOTS_H

#include "postgres.h"

#include "base/clock.h"

/*
 * Samples the slot of an entry that has no manager, if that is due or has been
 * asked for, warns, and drops it if it holds back too much.  Returns when it is
 * due again; 0: there is no slot to look after.
 */
extern EcmTime ecm_unattended_watch(int stack_index, EcmTime now);

/* The next sample is due at once: settings, or the entry's writer, have changed. */
extern void ecm_unattended_forget(int stack_index);

#endif							/* ECM_UNATTENDED_SLOTS_H */
