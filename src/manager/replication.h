/*-------------------------------------------------------------------------
 *
 * replication.h
 *	  The replication connection: its setup steps, the stream, the feedback.
 *
 * A manager has one.  A setup step is started, then polled in each round; nothing
 * blocks.  The functions return failures to the caller, who steps the machine.
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
	int			query;			/* which of the step's queries runs, from 0 */
	EcmTime		started;
	EcmTime		deadline;		/* poll again then, even if nothing comes from
								 * the socket; 0: no need to */
} SetupStep;

/* Step create_slot: its task, and how far it is */
typedef struct SlotCreation
{
	bool		drop_first;		/* the slot that is there is of no use any
								 * more: drop it and create another.  (For
								 * that one, check_timeline has all shapes
								 * resynced.) */
	char		drop_why[128];	/* ... as was to be expected; or "" */
	char		hold_why[256];	/* why no slot may be created now, or "" */
	int			hold_pid;		/* of the process to blame; 0: none known */
	bool		may_alter;		/* a slot that is there is ours */
	bool		held_up;		/* the step waits until hold_why is "" */
	bool		running;		/* the server is creating the slot */
	bool		made_unheard;	/* the connection was lost while it was: a
								 * slot that is there now may be that one */
	bool		unsettled;		/* a slot that is there is not to be used yet,
								 * see replication_slot.c */
	bool		recorded;		/* the stack's row has the slot since the
								 * manager last looked */
	TransactionId fence;		/* the step waits for transactions older than
								 * this; invalid: it does not wait */
	EcmTime		fence_at;		/* since when */
	int			user_pid;		/* another process that uses the slot, which
								 * the step waits for; 0: none */
	char		waiting_for[256];	/* the same in words */
} SlotCreation;

/* The stream; all zero when it begins */
typedef struct StreamState
{
	int			pid;			/* of the walsender: who had the slot when the
								 * stream began */
	XLogRecPtr	keepalive_lsn;	/* the highest position that a keepalive
								 * vouched for: all before it has been sent */
	XLogRecPtr	acknowledged_lsn;	/* last sent to the walsender */
	XLogRecPtr	told_lsn;		/* last sent as durable, which may be more */
	bool		reply_requested;	/* the walsender wants feedback at once */
	EcmTime		last_feedback;	/* when it was sent */
	EcmTime		last_asked;		/* when feedback last asked for an answer */
	EcmTime		asked_at;		/* when the walsender was first asked for a
								 * sign of life and has given none since; 0:
								 * it owes none */
	EcmBackendLook asked_look;	/* what the walsender was at then ... */
	EcmBackendLook last_look;	/* ... and at
								 * ecm_replication_look_at_walsender() */
	EcmTime		other_user_at;	/* since when 'pid' has been seen without the
								 * slot; 0: it has it */
} StreamState;

typedef struct Replication
{
	char	   *dbname;
	char	   *slot;
	char	   *publication;

	EcmConn    *conn;			/* NULL: closed */
	int			sender_timeout_ms;	/* wal_sender_timeout of this session */
	int			walsender_pid;	/* of the present connection, or the last */
	int			former_pid;		/* a walsender of an earlier connection, which
								 * had the slot still when that was closed; 0:
								 * none ever did */
	EcmTime		former_asked_at;	/* when that one was sent SIGTERM */

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
 * Starts a step, one of those that concern this connection.  Only start_streaming
 * uses start_lsn: the stream begins there, or at the slot's position if that is
 * later.
 */
extern void ecm_replication_start_step(Replication *rep, EcmStep step,
									   XLogRecPtr start_lsn);
extern EcmStepResult ecm_replication_poll_step(Replication *rep, EcmStep step,
											   EcmStepFailure *failure);

/*
 * Has step create_slot wait instead of creating a slot, for the reason 'why'; NULL:
 * it need not wait any more.  pid: the process to blame for that, 0: none known.
 * It applies until the next call, also while other steps run.
 */
extern void ecm_replication_hold_slot(Replication *rep, const char *why, int pid);

/* Is the slot being created now: by the server, or does the step wait for its sake? */
extern bool ecm_replication_creates_slot(const Replication *rep);

/*
 * Looks at the publication while the stream uses it, in a transaction of this
 * process.  False if it has been dropped (failure RECREATE) or altered so that
 * changes are missing (FATAL).  True also if that can't be told now.
 */
extern bool ecm_replication_publication_is_good(Replication *rep,
												EcmStepFailure *failure);

/*
 * The reason why create_slot waits, in words, or NULL; and the PID of the process
 * to blame, or 0.
 */
extern const char *ecm_replication_waiting_for(const Replication *rep, int *pid);

/* The process that uses the slot, whosever it is; 0: none, or there is no slot. */
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

/* For setup steps: a query may take so long, unless it waits for others. */
#define ECM_SETUP_QUERY_TIMEOUT_MS	30000

/* Makes the session a walsender of ours, see walsender.c; may be repeated. */
#define ECM_TUNE_WALSENDER_SQL	"SELECT _electric_cm.tune_walsender()"

/* The failure of the connection or of the query that has just ended. */
extern EcmStepResult ecm_replication_conn_failed(Replication *rep, EcmStepFailure *failure,
												 EcmErrorContext context);

/* Polls the running query: PENDING, DONE (its result is in rep->conn) or FAILED. */
extern EcmStepResult ecm_replication_poll_query(Replication *rep, EcmStepFailure *failure,
												EcmErrorContext context);

/* -------------------------------------------------- replication_slot.c -- */

/* Polls step create_slot. */
extern EcmStepResult ecm_replication_poll_slot(Replication *rep, EcmStepFailure *failure);

/* ------------------------------------------------ replication_stream.c -- */

/* Reading and feedback are parts of the manager's round: see manager.h. */

/*
 * may_be_silent: can the walsender not be expected to answer, as it has been at work
 * since the last look_at_walsender(), or waits for somebody's lock?
 */
extern void ecm_replication_look_at_walsender(Replication *rep);
extern bool ecm_replication_may_be_silent(const Replication *rep);

/* The failure of a walsender that has been silent for so many microseconds. */
extern void ecm_replication_set_silent(const Replication *rep, int64 us,
									   EcmStepFailure *failure);

/*
 * Has the walsender that the stream began with lost the slot, without the stream's
 * having ended?  A stream that ends tells so itself, a moment later.  So, unless
 * at_once, the answer is yes only if an earlier call has found the same, a second
 * ago or more.  If yes, 'failure' is filled.
 */
extern bool ecm_replication_has_lost_slot(Replication *rep, bool at_once,
										  EcmStepFailure *failure);

/*
 * After a failure of the stream, or of its beginning: makes it one of kind RECREATE if the
 * slot can't be used any more.
 */
extern void ecm_replication_judge_slot(const Replication *rep, EcmStepFailure *failure);

#endif							/* ECM_REPLICATION_H */
