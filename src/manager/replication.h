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

#include "base/backend.h"
#include "base/clock.h"
#include "base/failure.h"
#include "base/server_info.h"
#include "base/state.h"
#include "connection/conn.h"

/* Progress within the setup step that runs */
typedef struct SetupStep
{
	int			query;			/* which of the step's queries runs */
	EcmTime		started;
	EcmTime		deadline;		/* to poll again without socket activity, 0:
								 * none */
} SetupStep;

/* Step create_slot: its task, and how far it is */
typedef struct SlotCreation
{
	bool		drop_first;		/* the slot that is there is of no use any
								 * more: check_timeline then throws the shapes
								 * away */
	char		hold_why[256];	/* why no slot may be created now, or "" */
	int			hold_pid;		/* of the process to blame; 0: none known */
	bool		held_up;		/* the step waits for that */
	bool		running;		/* the server is at it */
	bool		made_unheard;	/* it was, when the connection was lost */
	int			user_pid;		/* another process that uses the slot, 0: none */
	char		waiting_for[256];	/* the same in words */
} SlotCreation;

/* The stream; all zero when it begins */
typedef struct StreamState
{
	int			pid;			/* who had the slot when the stream began */
	XLogRecPtr	keepalive_lsn;	/* the highest position that a keepalive
								 * vouched for: all before it has been sent */
	XLogRecPtr	acknowledged_lsn;
	bool		reply_requested;	/* the walsender wants to hear from us */
	EcmTime		last_feedback;
	EcmTime		last_asked;
	EcmTime		asked_at;		/* for a sign of life; 0: there was one since */
	EcmBackendLook asked_look;	/* the walsender then */
	EcmBackendLook last_look;	/* ... and when its last word was asked for */
	EcmTime		other_user_at;	/* since when 'pid' has the slot no more; 0:
								 * it has it */
} StreamState;

typedef struct Replication
{
	char	   *dbname;
	char	   *slot;
	char	   *publication;

	EcmConn    *conn;			/* NULL: closed */
	int			sender_timeout_ms;	/* of the session */
	int			walsender_pid;	/* of the present connection, or the last */
	int			former_pid;		/* of an earlier one: it still has the slot */
	EcmTime		former_asked_at;	/* to end */

	EcmReplicationInfo info;	/* found out by the setup steps */
	SetupStep	step;
	SlotCreation creation;
	StreamState stream;
} Replication;

/* ------------------------------------------------- replication_setup.c -- */

extern void ecm_replication_init(Replication *rep, const char *dbname,
								 const char *slot_name,
								 const char *publication_name);

/*
 * Starts a step (those from connect_replication to start_streaming that
 * concern this connection); start_lsn is used by start_streaming.
 */
extern void ecm_replication_start_step(Replication *rep, EcmStep step,
									   XLogRecPtr start_lsn);
extern EcmStepResult ecm_replication_poll_step(Replication *rep, EcmStep step,
											   EcmStepFailure *failure);

/*
 * Lets create_slot wait instead of creating a slot; NULL: not any more.  pid: the
 * process to blame for that, 0: none known.
 */
extern void ecm_replication_hold_slot(Replication *rep, const char *why, int pid);

/* Does the server create the slot now? */
extern bool ecm_replication_creates_slot(const Replication *rep);

/*
 * Looks at the publication while it is in use: false if it has been dropped
 * (RECREATE) or altered so that changes are missing (FATAL).
 */
extern bool ecm_replication_publication_is_good(Replication *rep,
												EcmStepFailure *failure);

/*
 * The reason why create_slot waits, in words, or NULL; and the PID of the process
 * to blame, or 0.
 */
extern const char *ecm_replication_waiting_for(const Replication *rep, int *pid);

/* The process that uses the slot; 0: none. */
extern int	ecm_replication_slot_pid(const Replication *rep);

/* Does a walsender of an earlier connection still have the slot? */
extern bool ecm_replication_slot_is_held_up(const Replication *rep);

/* Closes the connection and ends its walsender. */
extern void ecm_replication_close(Replication *rep);

/*
 * Clean-up in this process, for the end of the manager: waits for at most
 * timeout_ms until our walsender is gone.  Returns whether it is.
 */
extern bool ecm_replication_wait_slot_free(Replication *rep, int timeout_ms);

/* ------------------------------------------------ replication_stream.c -- */

/* Reading and feedback are parts of the manager's round: see manager.h. */

/*
 * Has the walsender been at work, or does it wait for somebody's lock, since the
 * last look at it?  Then it can't be expected to answer.
 */
extern void ecm_replication_look_at_walsender(Replication *rep);
extern bool ecm_replication_may_be_silent(const Replication *rep);

/* The failure of a walsender that has been silent for so many microseconds. */
extern void ecm_replication_set_silent(const Replication *rep, int64 us,
									   EcmStepFailure *failure);

/*
 * Is the slot not in use by the walsender that the stream began with any more?
 * Not at once: only if it was not so an earlier time, and the stream should
 * have told since.  (failure filled.)
 */
extern bool ecm_replication_has_lost_slot(Replication *rep, bool at_once,
										  EcmStepFailure *failure);

#endif							/* ECM_REPLICATION_H */
