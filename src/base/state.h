/*-------------------------------------------------------------------------
 *
 * state.h
 *	  The manager's state machine: (state, input) -> (state, action).
 *
 * Pure: no server, no I/O, the clock is passed in (microseconds, above 0).
 * The steps form one list.  Each has at most one thing it needs (the lock, the
 * replication connection, the pool, the consumers); when that is lost, the
 * machine goes back to the earliest step that brings it up again and walks
 * forward; steps whose result is still up are passed over at once.
 *
 * Compiled into the extension and into the unit tests.
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
	bool		stuck;			/* for REPLICATION_LOST: an error at something
								 * in the stream, which will be there again */
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
								 * invalidates all shapes; else as above */
	ECM_ACTION_RESTART,			/* close everything; then as above */
	ECM_ACTION_FAIL				/* close everything, wait for a reload */
} EcmAction;

/*
 * Streaming that has lasted this long (us), and got beyond where it was lost,
 * resets the backoff.
 */
#define ECM_STREAMING_STABLE_US		INT64_C(5000000)

/*
 * A stream that has been stuck so often at the same place, over at least this
 * time (us), will not get beyond it: the slot is made again.
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
	int64_t		streaming_since;	/* since when step STREAMING, 0: another */
	bool		ever_streamed;	/* phase "running" once true */
	bool		reopened;		/* a lost stream was reopened at once, and has
								 * not been stable since */
	bool		behind;			/* the stream has not got beyond where it was
								 * lost ... */
	bool		doubtful;		/* ... nor may it be expected to any more */
	int			stuck;			/* so often at the same place ... */
	int64_t		stuck_since;	/* ... for the first time at */
	int64_t		recreated_at[ECM_MAX_RECREATIONS_PER_HOUR]; /* oldest first */
	int			recreations;	/* how many of them are valid */
	int64_t		consumer_lost_at[ECM_MAX_CONSUMER_DEATHS];	/* oldest first; 0:
															 * never */
} EcmState;

extern void ecm_state_init(EcmState *s, int64_t reconnect_initial_ms,
						   int64_t reconnect_max_ms);

/*
 * The transition function.  'now' is in microseconds, of a clock that never goes
 * back.
 *
 * One failure may be reported more than once (a step that failed because its
 * connection was lost): while a retry is pending, later reports are noted but
 * neither counted nor put off.  A report about a step that was given up (the
 * machine went back because something was lost) must not be sent once the next
 * step has been started.
 */
extern EcmAction ecm_state_step(EcmState *s, EcmInput input, int64_t now);

/*
 * When a TICK is needed next, or 0: retry due, backoff to be reset, or a stream
 * that is still behind to be doubted.
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
