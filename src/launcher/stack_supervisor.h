/*-------------------------------------------------------------------------
 *
 * stack_supervisor.h
 *	  Starts, watches and ends managers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STACK_SUPERVISOR_H
#define ECM_STACK_SUPERVISOR_H

#include "postgres.h"

#include "base/clock.h"
#include "launcher/stack_entry.h"

/* Does what is due for each entry. */
extern void ecm_supervise_all(EcmTime now);

/* Managers that hang: says so, and asks them to end when that has lasted. */
extern void ecm_supervisor_watch_hangs(EcmTime now);

/* The earliest start of a manager that waits for its time; 0: none does. */
extern EcmTime ecm_supervisor_next_start(EcmTime now);

/* An entry that the launcher sees for the first time, or with another database. */
extern void ecm_supervisor_meet(int index, const EcmEntry *entry);

/*
 * Starts a manager.  A request to stop or to pause that has come in meanwhile
 * wins.  look_only: it is to end when it has seen what is there.  Returns false
 * if there was no free worker slot.
 */
extern bool ecm_supervisor_start(int index, const EcmEntry *entry,
								 bool look_only);

/* Too few workers are free.  Said once, until a manager has been started. */
extern void ecm_supervisor_report_no_worker(int index, const EcmEntry *entry,
											int nfree);

/*
 * Frees an entry, unless somebody has just asked for something; the next time
 * round sees to that then.
 */
extern void ecm_supervisor_free_entry(int index, bool database_exists);

/* How many workers must stay free for looking into other databases? */
extern int	ecm_worker_reserve(EcmTime now);

#endif							/* ECM_STACK_SUPERVISOR_H */
