/*-------------------------------------------------------------------------
 *
 * slot_tail.h
 *	  A slot that has nothing to consume any more, at a clean stop.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SLOT_TAIL_H
#define ECM_SLOT_TAIL_H

#include "postgres.h"

#include "access/xlogdefs.h"

/* From now on the transactions of this process are those that may be skipped. */
extern void ecm_slot_tail_begin(void);

/*
 * Have only these committed anything in this database, since that position and
 * before the end of the WAL?  False also if that can't be found out.
 */
extern bool ecm_slot_tail_is_ours(XLogRecPtr from);

/* Where the slot shall be when one more transaction has been committed. */
extern XLogRecPtr ecm_slot_tail_end(void);

/*
 * Moves the slot from one position to the other, which is of _end(), with the
 * last transaction of this process committed since.  logged: all before that
 * is logged, though the slot may not have been told.  False: it stays where it
 * is, since somebody else has committed something, or uses it.
 */
extern bool ecm_slot_tail_skip(const char *slot_name, XLogRecPtr from,
							   XLogRecPtr logged, XLogRecPtr to);

#endif							/* ECM_SLOT_TAIL_H */
