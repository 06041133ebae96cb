/*-------------------------------------------------------------------------
 *
 * slot_owner.h
 *	  Is the slot of a stack's name the one that the stack has made?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SLOT_OWNER_H
#define ECM_SLOT_OWNER_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "base/shmem.h"

/*
 * Looks at the stack's slot, or at its former one, and notes in the entry when
 * it has been seen.  For the entry's writer.  True: the slot is the stack's
 * own.  False as soon as there is any doubt.  If the slot is gone, or is
 * certainly another one, the stack owns no slot from here on; a former slot is
 * then forgotten altogether.
 */
extern bool ecm_slot_owner_look(int stack_index, bool former);

/*
 * Does the entry say that the stack has made the slot of that name?  For
 * callers that hold the lock.
 */
extern bool ecm_slot_owner_has(const EcmStack *stack, const char *name);

/*
 * Notes that this process has advanced the stack's slot, no farther than to
 * 'lsn'.  Without that, a slot that has been advanced past seen_lsn would
 * count as another one.
 */
extern void ecm_slot_owner_moved(int stack_index, Oid dboid, XLogRecPtr lsn);

#endif							/* ECM_SLOT_OWNER_H */
