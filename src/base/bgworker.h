/*-------------------------------------------------------------------------
 *
 * bgworker.h
 *	  What our background workers have in common: how they are registered,
 *	  and how managers and consumers start, run SQL and take a SIGTERM.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_BGWORKER_H
#define ECM_BGWORKER_H

#include "postgres.h"

#include <signal.h>

#include "postmaster/bgworker.h"

#include "base/errors.h"

/*
 * SIGTERM has arrived.  The worker's main loop looks at this before it checks
 * for interrupts, and leaves in good order: CHECK_FOR_INTERRUPTS() would raise
 * a FATAL error.
 */
extern volatile sig_atomic_t ecm_got_sigterm;

/*
 * From here on SIGTERM interrupts nothing any more.  A worker that has decided
 * to end calls this before it cleans up (drops its slot, say), which must take
 * a bounded time.
 */
extern void ecm_worker_leave(void);

/*
 * Starts a manager or a consumer: installs the signal handlers, connects to
 * the database as the bootstrap superuser, and sets everything that we rely
 * on, whatever postgresql.conf, ALTER DATABASE and ALTER ROLE say.
 */
extern void ecm_worker_init(Oid dboid);

/* Sets a parameter for this process, overriding all other sources. */
extern void ecm_worker_set(const char *name, const char *value);

/*
 * Runs fn(arg) in a transaction of its own, with a snapshot.  False: fn raised
 * an ERROR; the transaction is rolled back, and err has the error.  The caller
 * must not be in a transaction, and finds itself in the memory context in
 * which it called.
 */
extern bool ecm_worker_try(void (*fn) (void *arg), void *arg, EcmError *err);

/*
 * Fills a registration with what all our workers have in common.  The
 * postmaster does not start such a worker again, whoever has registered it
 * does.  Name and type are both 'type'; the caller may give it another name
 * afterwards.
 */
extern void ecm_bgworker_init(BackgroundWorker *worker, const char *function,
							  const char *type);

/*
 * Starts such a worker dynamically.  The postmaster signals this process, and
 * so sets its latch, when the worker starts and ends.  Returns the worker's
 * handle, palloc'd in 'context'; NULL: max_worker_processes are in use.
 */
extern BackgroundWorkerHandle *ecm_bgworker_start(BackgroundWorker *worker,
												  MemoryContext context);

#endif							/* ECM_BGWORKER_H */
