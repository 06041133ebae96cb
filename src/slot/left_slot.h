/*-------------------------------------------------------------------------
 *
 * left_slot.h
 *	  Slots of ours that are to be dropped as soon as nobody uses them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_LEFT_SLOT_H
#define ECM_LEFT_SLOT_H

#include "postgres.h"

/*
 * Has the launcher drop a slot as soon as nobody uses it.  Doesn't raise; if
 * that is too much for the launcher, an event says what is left to do by hand.
 */
extern void ecm_leave_slot(Oid dboid, const char *slot_name);

#endif							/* ECM_LEFT_SLOT_H */
