/*-------------------------------------------------------------------------
 *
 * stack_entry.h
 *	  What the launcher knows of each stack: a copy of what it decides from, and
 *	  notes of its own.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STACK_ENTRY_H
#define ECM_STACK_ENTRY_H

#include "postgres.h"

#include "postmaster/bgworker.h"

#include "base/backoff.h"
#include "base/clock.h"
#include "base/shmem.h"

/* The part of an entry that decisions are made from. */
typedef struct EcmEntry
{
	bool		in_use;
	Oid			dboid;
	char		datname[NAMEDATALEN];
	bool		registered;
	EcmStackRequests requests;
	EcmStackPause pause;
	EcmStackLifecycle lifecycle;
	EcmStackManager manager;
	EcmStatus	status;
} EcmEntry;

/* What the launcher alone knows about an entry. */
typedef struct EcmSupervised
{
	Oid			dboid;			/* the entry's when last seen; or InvalidOid */
	BackgroundWorkerHandle *handle; /* NULL: no worker, or not started by us */
	bool		running;		/* a manager, or what is to be one */
	bool		asked_to_end;
	uint64		runs_before;	/* entry's "runs" when we started it */
	EcmTime		started_at;
	EcmTime		retry_at;		/* 0: at once */
	EcmBackoff	backoff;
	char		announced[ECM_TEXT_LEN];	/* why it is stopped, if an event
											 * said so */
	bool		short_reported; /* an event said that workers are lacking */
	EcmTime		hangs_since;	/* that a manager does, 0: it does not */
	bool		paused;			/* a command needed it out of the way ... */
	bool		made_way;		/* ... and a manager has ended for it */
	EcmTime		sample_at;		/* when its slot is due, if no manager looks
								 * after it */
} EcmSupervised;

extern void ecm_supervised_init(void);
extern EcmSupervised *ecm_supervised(int index);

/* Copies an entry. */
extern void ecm_entry_read(int index, EcmEntry *entry);

/* When was the manager of that database started?  0: there is none. */
extern EcmTime ecm_manager_started_at(Oid dboid);

/* Was there none free for the next database, and none has been freed since? */
extern bool ecm_entries_are_exhausted(void);
extern void ecm_entries_note_exhausted(bool exhausted);

#endif							/* ECM_STACK_ENTRY_H */
