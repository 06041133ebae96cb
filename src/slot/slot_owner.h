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
 * Looks at the slot, or at the one under its former name, and notes in the entry
 * what it has seen.  For the entry's writer.  False as soon as there is any
 * doubt; a slot that has gone, or is another one, is never ours again (and a
 * former one is forgotten).
 */
extern bool ecm_slot_owner_look(int stack_index, bool former);

/*
 * Is the slot of that name one that this stack has made, by what is noted of it?
 * For callers that hold the lock.
 */
extern bool ecm_slot_owner_has(const EcmStack *stack, const char *name);

/*
 * The slot, which is ours, was moved on by this process, and no farther than to
 * that position.
 */
extern void ecm_slot_owner_moved(int stack_index, Oid dboid, XLogRecPtr lsn);

#endif							/* ECM_SLOT_OWNER_H */
