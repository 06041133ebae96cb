/*-------------------------------------------------------------------------
 *
 * pool.h
 *	  Loopback sessions opened on demand, and the queue of jobs for them.
 *
 * A job is one query string and a callback.  Jobs are started in the order of
 * submission, up to electric_cm.pool_size at a time; a session that has been
 * idle for electric_cm.pool_idle_timeout is closed, since an idle ordinary
 * session would make a smart shutdown wait for ever.
 *
 * The pool is in the manager's process only.  The manager does not write
 * tables or wait for locks itself; whatever needs that is a job for a session.
 * Everything happens in ecm_pool_poll().
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_POOL_H
#define ECM_POOL_H

#include "postgres.h"

#include "base/clock.h"
#include "base/errors.h"
#include "base/settings.h"
#include "connection/conn.h"

/*
 * Called exactly once per job, from ecm_pool_poll().  err is NULL on success,
 * and then conn holds the rows; otherwise conn may be NULL.  May submit and
 * cancel jobs; must not raise an ERROR that the process survives.
 */
typedef void (*EcmPoolCallback) (void *arg, EcmConn *conn, const EcmError *err);

extern void ecm_pool_init(const char *dbname);

/*
 * Queues a job, and returns its id (never 0). sql is copied. timeout_ms counts
 * from when the job runs; 0: no deadline.  A job waits for a session as long
 * as any is open or being opened.  If none can be opened, all jobs that wait
 * fail with that error.
 */
extern uint64 ecm_pool_submit(const char *sql, int timeout_ms,
							  EcmPoolCallback callback, void *arg);

/*
 * Forgets a job without calling its callback.  If it runs already, its
 * backend gets SIGINT (query cancel) and the session is closed.
 */
extern void ecm_pool_cancel(uint64 id);

/* Makes progress on all sessions; callbacks run here. */
extern void ecm_pool_poll(EcmTime now);

/* For the wait loop: sessions by ordinal (NULL: closed), and the next deadline
 * (0: none), which includes idle timeouts and reconnection delays. */
extern EcmConn *ecm_pool_session(int ordinal);
extern EcmTime ecm_pool_deadline(void);

/* State of a session as a word: "connecting", "idle", "busy", "closed". */
extern const char *ecm_pool_session_state(int ordinal);

/*
 * The error that the last session of that ordinal has ended with, or could not
 * be opened because of; or NULL.  It stays when there is a new session, so
 * that users can see it.
 */
extern const EcmError *ecm_pool_session_error(int ordinal);

/*
 * True: there is no session, and several attempts in a row to open one have
 * failed; err has the last error.
 */
extern bool ecm_pool_is_dead(EcmError *err);

/* Fails jobs whose answer is lost; to be called regularly. */
extern void ecm_pool_check(void);

/* Closes all sessions, forgets all jobs without calling back. */
extern void ecm_pool_close(void);

#endif							/* ECM_POOL_H */
