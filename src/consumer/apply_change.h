/*-------------------------------------------------------------------------
 *
 * apply_change.h
 *	  What an insert, update or delete is to the shapes that the row was in,
 *	  and to those that it is in now.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_APPLY_CHANGE_H
#define ECM_APPLY_CHANGE_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "replication/logicalproto.h"

/*
 * Gathers entries for all shapes that this message concerns.  Memory that it
 * needs is left in the current context.
 */
extern void ecm_change_apply(StringInfo in, LogicalRepMsgType type);

/*
 * The server could not send a change of the relation, or not its value of that
 * column ("": as a whole).  The shapes that want it, also those of what the
 * relation is a partition of, fail.
 */
extern void ecm_change_unsendable(Oid relid, const char *column);

#endif							/* ECM_APPLY_CHANGE_H */
