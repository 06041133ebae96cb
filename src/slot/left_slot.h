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
 * Has the launcher drop a slot as soon as nobody uses it.  Raises no ERROR,
 * since it is called when the transaction that has dropped the extension has
 * been committed, too.  If the launcher's list is full, an event asks the user
 * to drop the slot.
 */
extern void ecm_leave_slot(Oid dboid, const char *slot_name);

#endif							/* ECM_LEFT_SLOT_H */
