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

/* In each round: does for each entry what stack_decision.c says. */
extern void ecm_supervise_all(EcmTime now);

/*
 * In each round: reports managers that hang, or that go on again, and asks those to
 * end that have hung for a minute (ECM_HANG_PATIENCE_US).
 */
extern void ecm_supervisor_watch_hangs(EcmTime now);

/* The earliest start of a manager that waits for its time; 0: none does. */
extern EcmTime ecm_supervisor_next_start(EcmTime now);

/* Begins notes about an entry that is new, or has another database than before. */
extern void ecm_supervisor_meet(int index, const EcmEntry *entry);

/*
 * Starts a manager, unless a stop or a pause has been requested meanwhile.  look_only:
 * it is to end when it has seen what is there.  Returns false if no background
 * worker was free, which it reports.
 */
extern bool ecm_supervisor_start(int index, const EcmEntry *entry,
								 bool look_only);

/* Says that too few workers are free; once, until a manager has been started. */
extern void ecm_supervisor_report_no_worker(int index, const EcmEntry *entry,
											int nfree);

/*
 * Frees an entry.  If somebody has just put a request there, it stays, unless the
 * database is gone, and the next round sees to the request.
 */
extern void ecm_supervisor_free_entry(int index, bool database_exists);

/* How many workers must stay free for looks into other databases: 1 or 0. */
extern int	ecm_worker_reserve(EcmTime now);

#endif							/* ECM_STACK_SUPERVISOR_H */
