/*-------------------------------------------------------------------------
 *
 * slot_notes.h
 *	  A durable note of the slots that we have created.
 *
 * For the launcher, and for the worker of a standby, where there is none.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SLOT_NOTES_H
#define ECM_SLOT_NOTES_H

#include "postgres.h"

/* Reads the notes of earlier launchers. */
extern void ecm_slot_notes_load(void);

/* Do these have that slot of that database? */
extern bool ecm_slot_notes_have(Oid dboid, const char *slot_name);

/*
 * Brings the notes up to date: the slots that stacks own, and those that wait
 * to be dropped.  Writes them to the file if they have changed.  To be called
 * regularly.
 */
extern void ecm_slot_notes_update(void);

/*
 * To be called when a database turns out to have no extension: has the slots
 * dropped that the notes say it has left there.
 */
extern void ecm_slot_notes_leave(Oid dboid, const char *datname);

#endif							/* ECM_SLOT_NOTES_H */
