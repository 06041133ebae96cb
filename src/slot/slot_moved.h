/*-------------------------------------------------------------------------
 *
 * slot_moved.h
 *	  A slot that a command moves past what only the stack has written.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SLOT_MOVED_H
#define ECM_SLOT_MOVED_H

#include "postgres.h"

#include "access/xlogdefs.h"

/*
 * Says in the WAL that the slot of that database is moved from that position; returns
 * the position to move it to, with the WAL before and there flushed.  The caller may
 * be in another database.
 */
extern XLogRecPtr ecm_slot_move_mark(Oid dboid, XLogRecPtr from);

/*
 * If this database's slot was moved to that position so, the position from where;
 * else invalid.  In a transaction; reads the WAL there.
 */
extern XLogRecPtr ecm_slot_moved_from(XLogRecPtr to);

#endif							/* ECM_SLOT_MOVED_H */
