/*-------------------------------------------------------------------------
 *
 * slot_notes.h
 *	  A durable note of the slots that we have created.
 *
 * For the launcher alone.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SLOT_NOTES_H
#define ECM_SLOT_NOTES_H

#include "postgres.h"

/* Reads what an earlier launcher has left. */
extern void ecm_slot_notes_load(void);

/*
 * Brings the notes up to date with the stacks' slots, and with what waits to be
 * dropped, and writes them if they have changed.  To be called now and then.
 */
extern void ecm_slot_notes_update(void);

/*
 * There is no extension in that database: what it has left there, while nobody
 * was looking, is to be dropped.
 */
extern void ecm_slot_notes_leave(Oid dboid, const char *datname);

#endif							/* ECM_SLOT_NOTES_H */
