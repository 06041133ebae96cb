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
 * Gathers entries for all shapes that an insert, update or delete concerns.
 * 'in' is pgoutput's message, behind its first byte, which is 'type'.  Memory is
 * left in the current context.  May open the local transaction (log_batch.h).
 * ERROR if the message is malformed, or its relation was not described.
 */
extern void ecm_change_apply(StringInfo in, LogicalRepMsgType type);

/*
 * The walsender could not send a column's value in the change of the relation
 * that came last, or not the change as a whole (column ""): see unsendable.c.
 * The shapes that want the value end with an error, those of the relation and
 * those of the tables that it is a partition of.  To be called before the next
 * change is applied, since shapes are known by their matches of the last one.
 */
extern void ecm_change_unsendable(Oid relid, const char *column);

#endif							/* ECM_APPLY_CHANGE_H */
