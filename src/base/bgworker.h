/*-------------------------------------------------------------------------
 *
 * bgworker.h
 *	  What managers and consumers have in common as background workers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_BGWORKER_H
#define ECM_BGWORKER_H

#include "postgres.h"

#include <signal.h>

#include "postmaster/bgworker.h"

#include "base/errors.h"

/* SIGTERM has arrived: leave at the next safe place, without a FATAL. */
extern volatile sig_atomic_t ecm_got_sigterm;

/*
 * From here on SIGTERM interrupts nothing any more: for what a worker still
 * has to do, bounded, when it has decided to end.
 */
extern void ecm_worker_leave(void);

/*
 * Signal handlers, connection to the database as bootstrap superuser, and the
 * settings that we rely on, whatever the database's own settings are.
 */
extern void ecm_worker_init(Oid dboid);

/* Gives a setting a value for this process, above all other sources. */
extern void ecm_worker_set(const char *name, const char *value);

/*
 * Runs fn(arg) in a transaction of its own with a snapshot.  False: it raised
 * an ERROR, which is in err; everything is rolled back.
 */
extern bool ecm_worker_try(void (*fn) (void *arg), void *arg, EcmError *err);

/*
 * What all our workers have in common, for a worker to be registered: it is not
 * started again by the postmaster, and its name is its type's unless the caller
 * gives it another one.
 */
extern void ecm_bgworker_init(BackgroundWorker *worker, const char *function,
							  const char *type);

/*
 * Starts such a worker; the postmaster tells this process of its start and end.
 * Returns its handle, palloc'd in that context; NULL: no worker slot is free.
 */
extern BackgroundWorkerHandle *ecm_bgworker_start(BackgroundWorker *worker,
												  MemoryContext context);

#endif							/* ECM_BGWORKER_H */
