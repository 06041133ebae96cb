/*-------------------------------------------------------------------------
 *
 * unsendable.h
 *	  Rows that pgoutput can't send.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_UNSENDABLE_H
#define ECM_UNSENDABLE_H

#include "postgres.h"

/*
 * To be called in our own walsender, before the stream starts.  From then on values
 * that can't be sent are left out of their change, and consumers are told right
 * after it, by the transactional message "unsendable <relation> <column>" (no
 * column: the whole change was left out).  Nothing happens if it is called again.
 */
extern void ecm_watch_unsendable(void);

#endif							/* ECM_UNSENDABLE_H */
