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

/* A copy of the part of an entry that decisions are made from; see shmem.h. */
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

/* The launcher's own notes about an entry, in its memory. */
typedef struct EcmSupervised
{
	Oid			dboid;			/* the entry's when last seen; invalid: it was
								 * free */

	/* the manager */
	BackgroundWorkerHandle *handle; /* NULL: there is no worker, or an earlier
									 * launcher has started it */
	bool		running;		/* there is a manager, or a worker that is to
								 * become one */
	bool		asked_to_end;	/* SIGTERM was sent to it */
	uint64		runs_before;	/* the entry's manager.runs when it was
								 * started: more now means that it got as far
								 * as to claim the entry */
	EcmTime		started_at;
	EcmTime		hangs_since;	/* when it was first seen to hang; 0: it does
								 * not */

	/* the next manager */
	EcmTime		retry_at;		/* not started before; 0: at once */
	EcmBackoff	backoff;		/* of starts after failures */

	/* events so far */
	char		announced[ECM_TEXT_LEN];	/* why the stack is stopped, as
											 * the last event said; "": a
											 * manager has run since */
	bool		short_reported; /* workers are lacking */
	bool		paused;			/* a command needs, or needed, the stack out
								 * of its way */
	bool		made_way;		/* ... and a manager has ended for it */

	EcmTime		sample_at;		/* when its slot is to be sampled, if no
								 * manager does that */
} EcmSupervised;

extern void ecm_supervised_init(void);
extern EcmSupervised *ecm_supervised(int index);

/* Copies an entry. */
extern void ecm_entry_read(int index, EcmEntry *entry);

/* When was the manager of that database started?  0: there is none. */
extern EcmTime ecm_manager_started_at(Oid dboid);

/* Was no entry free for a look, and has none been freed since? */
extern bool ecm_entries_are_exhausted(void);
extern void ecm_entries_note_exhausted(bool exhausted);

#endif							/* ECM_STACK_ENTRY_H */
