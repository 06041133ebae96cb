/*-------------------------------------------------------------------------
 *
 * state.h
 *	  The manager's state machine: (state, input) -> (state, action).
 *
 * Pure: no server, no I/O, the clock is passed in (microseconds, above 0).
 * Compiled into the extension and into the unit tests.
 *
 * The steps form one list.  A step brings up at most one part: the lock, the
 * replication connection, the pool, the consumers, or the stream.  When a part
 * is lost, the machine goes back to the step that brings it up again, and
 * walks forward from there, passing over the steps whose part is still up.
 *
 * manager.c alone steps the machine.  It hands in what has happened as an
 * input, and carries out the action that comes out.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STATE_H
#define ECM_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/backoff.h"
#include "base/errors.h"

typedef enum EcmStep
{
	ECM_STEP_ACQUIRE_LOCK,
	ECM_STEP_CONNECT_REPLICATION,
	ECM_STEP_IDENTIFY_SYSTEM,
	ECM_STEP_PG_INFO,
	ECM_STEP_CREATE_PUBLICATION,
	ECM_STEP_CREATE_SLOT,
	ECM_STEP_SET_DISPLAY_SETTINGS,
	ECM_STEP_READY_TO_STREAM,
	ECM_STEP_START_POOL,
	ECM_STEP_CHECK_TIMELINE,
	ECM_STEP_START_CONSUMERS,
	ECM_STEP_START_STREAMING,
	ECM_STEP_STREAMING
} EcmStep;

#define ECM_NUM_STEPS	(ECM_STEP_STREAMING + 1)

typedef enum EcmStatus
{
	ECM_STATUS_STOPPED,			/* zero: no manager runs */
	ECM_STATUS_WAITING,
	ECM_STATUS_STARTING,
	ECM_STATUS_ACTIVE,
	ECM_STATUS_FAILED
} EcmStatus;

typedef enum EcmInputType
{
	ECM_INPUT_STEP_DONE,		/* the current step succeeded */
	ECM_INPUT_STEP_FAILED,		/* it failed; kind says how */
	ECM_INPUT_REPLICATION_LOST, /* the replication connection died; kind */
	ECM_INPUT_CONSUMER_LOST,	/* a consumer died: costs the stream as well */
	ECM_INPUT_POOL_LOST,		/* the pool can't be reached any more; kind */
	ECM_INPUT_PROGRESS,			/* the stream is beyond where it was lost */
	ECM_INPUT_RELOAD,			/* configuration was reloaded */
	ECM_INPUT_TICK				/* time has passed */
} EcmInputType;

typedef struct EcmInput
{
	EcmInputType type;
	EcmErrorKind kind;			/* for *_FAILED and *_LOST */
	bool		stuck;			/* for REPLICATION_LOST: the error is about a
								 * place in the stream, so it will be met
								 * there again */
	bool		no_consumers;	/* for STEP_DONE: there are none, as a step
								 * may have ended them */
} EcmInput;

typedef enum EcmAction
{
	ECM_ACTION_NONE,			/* nothing to do but wait */
	ECM_ACTION_RUN_STEP,		/* start the current step */
	ECM_ACTION_CLOSE_REPLICATION,	/* end stream and connection, RESET the
									 * surviving consumers, then run the
									 * current step when next_retry_at is due
									 * (a TICK says so) */
	ECM_ACTION_RECREATE,		/* have create_slot drop the slot, which
								 * resyncs all shapes; else as above */
	ECM_ACTION_RESTART,			/* close everything; then as above */
	ECM_ACTION_FAIL				/* close everything, wait for a reload */
} EcmAction;

/*
 * Streaming that has lasted this long (us), and got beyond where it was lost,
 * resets the backoff.
 */
#define ECM_STREAMING_STABLE_US		INT64_C(5000000)

/*
 * A stream that has been stuck ECM_MAX_STUCK times without getting on in
 * between, over at least ECM_STUCK_US (microseconds), will never get beyond
 * that place: the slot is made anew behind it.
 */
#define ECM_MAX_STUCK				5
#define ECM_STUCK_US				INT64_C(60000000)

/* More recreations than this within an hour fail the stack. */
#define ECM_MAX_RECREATIONS_PER_HOUR	3

/* More consumer deaths than this within that time (us) restart the stack. */
#define ECM_MAX_CONSUMER_DEATHS		3
#define ECM_CONSUMER_DEATHS_US		INT64_C(5000000)

/*
 * Unless failed, either the current step is running (streaming is a step like
 * the others) or a retry of it is pending.  Only at the very beginning it is
 * neither: the first TICK starts the first step.
 */
typedef struct EcmState
{
	EcmStep		step;
	bool		lock_held;
	bool		replication_up; /* the replication connection is open */
	bool		pool_up;		/* the pool was initialised */
	bool		consumers_up;
	bool		streaming_up;	/* the stream runs; it goes on while the pool
								 * is brought up again */
	bool		failed;
	bool		running;		/* the current step has been started */
	EcmBackoff	backoff;
	int64_t		next_retry_at;	/* 0: none pending */
	int64_t		streaming_since;	/* since when the step is STREAMING; 0: it
									 * is another one.  Set to the moment of
									 * progress after a loss */
	bool		ever_streamed;	/* phase "running" once true */
	bool		reopened;		/* a lost stream was reopened at once, and has
								 * not been stable since */
	bool		behind;			/* the stream has not got beyond the place
								 * where it was lost ... */
	bool		doubtful;		/* ... and has not been reopened at once, or
								 * has been at it for ECM_STREAMING_STABLE_US,
								 * so it may be lost there again: the status
								 * is "starting", not "active" */
	int			stuck;			/* number of losses at the same place ... */
	int64_t		stuck_since;	/* ... and the time of the first one */
	int64_t		recreated_at[ECM_MAX_RECREATIONS_PER_HOUR]; /* oldest first */
	int			recreations;	/* how many of them are valid */
	int64_t		consumer_lost_at[ECM_MAX_CONSUMER_DEATHS];	/* oldest first; 0:
															 * never */
} EcmState;

extern void ecm_state_init(EcmState *s, int64_t reconnect_initial_ms,
						   int64_t reconnect_max_ms);

/*
 * The transition function. 'now' is in microseconds, of a clock that never
 * goes back.
 *
 * One failure may be reported more than once: a step fails because its
 * connection is lost, and the connection reports its loss as well.  While a
 * retry is pending, a further report changes which parts are up, but does not
 * count as another failure and does not put off the retry.
 *
 * If the machine has gone back because a part was lost, the caller must not
 * report the end of the step that was given up once the next step has been
 * started: the machine would take it for the end of that one.
 */
extern EcmAction ecm_state_step(EcmState *s, EcmInput input, int64_t now);

/*
 * When the machine needs a TICK next; 0: not by itself.  At that time a retry
 * is due, the backoff is to be reset, or a stream that is still behind becomes
 * doubtful.
 */
extern int64_t ecm_state_deadline(const EcmState *s);

extern EcmStatus ecm_state_status(const EcmState *s);
extern const char *ecm_status_name(EcmStatus status);
extern const char *ecm_step_name(EcmStep step);

/*
 * Does the stream run, but without having got beyond where it was lost before?
 * Then it is not "active" yet.
 */
extern bool ecm_state_is_doubtful(const EcmState *s);

/* "connection_setup" until the first streaming, "running" after it. */
extern const char *ecm_state_phase(const EcmState *s);

#endif							/* ECM_STATE_H */
