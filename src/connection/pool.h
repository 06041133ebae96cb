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
 * Lives in the manager's process only; everything is driven by ecm_pool_poll().
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
 * Queues a job.  sql is copied.  timeout_ms 0: no deadline once it runs.  A job
 * waits for a session as long as one is open or being opened; when none can be
 * opened, all jobs waiting get that error.  Returns an id (never 0).
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
 * The error that the place's last session ended with, or could not be opened for,
 * or NULL.  It stays when there is another session, as it tells what happened.
 */
extern const EcmError *ecm_pool_session_error(int ordinal);

/*
 * No session works, and none could be opened several times in a row; err says
 * why.
 */
extern bool ecm_pool_is_dead(EcmError *err);

/* To be called now and then: ends jobs whose answer has got lost. */
extern void ecm_pool_check(void);

/* Closes all sessions, forgets all jobs without calling back. */
extern void ecm_pool_close(void);

#endif							/* ECM_POOL_H */
