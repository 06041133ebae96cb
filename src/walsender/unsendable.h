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
 * In our own walsender, before the stream starts: what can't be sent of a row
 * is left out from now on, and the consumers are told, by the transactional
 * message "unsendable <relation> <column>" (no column: it is the whole row).
 */
extern void ecm_watch_unsendable(void);

#endif							/* ECM_UNSENDABLE_H */
