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
 * Looks at the slot, and notes in the entry what it has seen.  For the entry's
 * writer.  False as soon as there is any doubt; a slot that has gone, or is
 * another one, is never ours again.
 */
extern bool ecm_slot_owner_look(int stack_index);

/* The same of the slot under its former name; it is forgotten if it has gone. */
extern bool ecm_slot_owner_look_former(int stack_index);

/*
 * The slot, which is ours, was moved on by this process, and no farther than to
 * that position.
 */
extern void ecm_slot_owner_moved(int stack_index, Oid dboid, XLogRecPtr lsn);

#endif							/* ECM_SLOT_OWNER_H */
