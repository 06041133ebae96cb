/*-------------------------------------------------------------------------
 *
 * replication.h
 *	  The replication connection: its setup steps, the stream, the feedback.
 *
 * One per manager process.  A setup step is started, then polled whenever the
 * connection made progress; nothing blocks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_REPLICATION_H
#define ECM_REPLICATION_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "base/clock.h"
#include "base/failure.h"
#include "base/server_info.h"
#include "base/state.h"
#include "connection/conn.h"

extern void ecm_replication_init(const char *dbname, const char *slot_name,
								 const char *publication_name);

/* Starts a step (those from connect_replication to start_streaming that
 * concern this connection); start_lsn is used by start_streaming. */
extern void ecm_replication_start_step(EcmStep step, XLogRecPtr start_lsn);
extern EcmStepResult ecm_replication_poll_step(EcmStep step,
											   EcmStepFailure *failure);

/* When a pending step wants to be polled again without socket activity. */
extern EcmTime ecm_replication_deadline(void);

extern const EcmReplicationInfo *ecm_replication_info(void);
extern EcmConn *ecm_replication_conn(void); /* NULL: closed */

/*
 * The slot is of no use any more: the next create_slot drops it first, and
 * check_timeline then throws the shapes away.
 */
extern void ecm_replication_recreate_slot(void);

extern bool ecm_replication_recreates_slot(void);

/*
 * Lets create_slot wait instead of making one; NULL: not any more.  pid: who is
 * to blame for that, 0: nobody known.
 */
extern void ecm_replication_hold_slot(const char *why, int pid);

/* Does the server create the slot now? */
extern bool ecm_replication_creates_slot(void);

/*
 * Looks at the publication while it is in use: false if it has been dropped
 * (RECREATE) or altered so that changes are missing (FATAL).
 */
extern bool ecm_replication_publication_is_good(EcmStepFailure *failure);

/*
 * What create_slot waits for, in words, or NULL; and the PID of whoever uses the
 * slot that it wants, or 0.
 */
extern const char *ecm_replication_waiting_for(int *pid);

/* The shapes were thrown away: the slot no longer counts as new. */
extern void ecm_replication_slot_settled(void);

/*
 * The stream.  Next XLogData payload (1; valid until the next call), nothing
 * for now (0), or the stream has ended (-1; failure filled).  Keepalives are
 * taken care of inside.
 */
extern int	ecm_replication_next(const char **data, int *len,
								 EcmStepFailure *failure);

/* Takes what the socket has; false: connection lost (failure filled). */
extern bool ecm_replication_read(EcmStepFailure *failure);

/*
 * The highest WAL position that a keepalive vouched for since the stream
 * started: everything before it has been sent already.
 */
extern XLogRecPtr ecm_replication_keepalive_lsn(void);
extern bool ecm_replication_reply_requested(void);

/*
 * Standby status update.  ask: let the walsender answer with a keepalive.
 * False: connection lost (failure filled).
 */
extern bool ecm_replication_feedback(XLogRecPtr received, XLogRecPtr flushed,
									 bool ask, EcmStepFailure *failure);
extern XLogRecPtr ecm_replication_acknowledged(void);
extern EcmTime ecm_replication_last_feedback(void);

/*
 * Has the walsender been asked for a sign of life longer than
 * wal_sender_timeout ago, and nothing has come since, though it does not seem
 * to be at work?  (failure filled.)  Who does not listen must excuse it.
 */
extern bool ecm_replication_is_silent(EcmTime now, EcmStepFailure *failure);
extern void ecm_replication_excuse_silence(void);

/*
 * Has the walsender been at work, or does it wait for somebody's lock, since the
 * last look at it?  Then it can't be expected to answer.
 */
extern void ecm_replication_look_at_walsender(void);
extern bool ecm_replication_may_be_silent(void);

/* The same for who has found out in another way, after so many microseconds. */
extern void ecm_replication_set_silent(int64 us, EcmStepFailure *failure);

/*
 * Is the slot not in use by the walsender that the stream began with any more?
 * Not at once: only if it was not so an earlier time, and the stream should
 * have told since.  (failure filled.)
 */
extern bool ecm_replication_has_lost_slot(bool at_once,
										  EcmStepFailure *failure);

/* When it was asked last, and when it counts as silent; 0: it is not asked. */
extern EcmTime ecm_replication_last_asked(void);
extern EcmTime ecm_replication_silence_deadline(void);

/* Does a walsender of an earlier connection still have the slot? */
extern bool ecm_replication_slot_is_held_up(void);

/* The walsender wants to hear from us at least this often, in ms. */
extern int	ecm_replication_feedback_interval(void);

/*
 * Closes the connection and ends its walsender.  The slot is free when
 * ecm_replication_slot_is_free() says so.
 */
extern void ecm_replication_close(void);
extern bool ecm_replication_slot_is_free(void);

/*
 * Clean-up in this process, for the end of the manager: waits for at most
 * timeout_ms until our walsender is gone.  Returns whether it is.
 */
extern bool ecm_replication_wait_slot_free(int timeout_ms);

#endif							/* ECM_REPLICATION_H */
