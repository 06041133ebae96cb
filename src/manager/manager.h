/*-------------------------------------------------------------------------
 *
 * manager.h
 *	  The manager of one database's stack: its state, and its files' functions.
 *
 * Private to the manager's own files.  The launcher starts ecm_manager_main()
 * by its name.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_MANAGER_H
#define ECM_MANAGER_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "base/clock.h"
#include "base/continuity.h"
#include "base/event_name.h"
#include "base/failure.h"
#include "base/shmem.h"
#include "base/stack_catalog.h"
#include "base/state.h"
#include "manager/exclusive_lock.h"
#include "manager/replication.h"
#include "slot/retained_wal.h"
#include "slot/slot.h"

/* Longest time for a pool job of the manager's own. */
#define ECM_MANAGER_JOB_MS		60000
/* How often a slot creation that waits for old transactions is helped. */
#define ECM_SLOT_HELP_MS		1000

/*
 * The pool job of the step that runs.  While id is not 0 it is in the pool;
 * afterwards the other two say how it has ended.
 */
typedef struct StepJob
{
	uint64		id;				/* 0: none */
	EcmStepResult result;
	EcmStepFailure failure;		/* if result is FAILED */
} StepJob;

/*
 * The text that is shown as waiting_for; see manager_waiting.c.  Several functions
 * write it.  Each notes that the text is its own, so that it takes back no other's.
 */
typedef struct Waiting
{
	char		text[ECM_TEXT_LEN]; /* "": the stack waits for nothing that is
									 * known */
	int			pid;			/* of the process to blame; 0: none known */
	bool		blocker_shown;	/* the text is ecm_manager_show_blocker()'s */
	bool		doubt_shown;	/* ... ecm_manager_show_doubt()'s */
	bool		standby_shown;	/* ... ecm_manager_show_standby()'s */
	bool		lock_shown;		/* ... ecm_manager_show_lock_blocker()'s */
	bool		marker_shown;	/* ... ecm_manager_mark_position()'s */
	EcmStep		lock_step;		/* if so: the step that the lock holds up */
	EcmTime		lock_look_at;	/* when to look for a lock's holder; 0: no
								 * step runs that may wait for a lock */
	bool		creation_reported;	/* an event has said that the slot's
									 * creation is blocked */
} Waiting;

/* Reading the stream */
typedef struct StreamFlow
{
	EcmTime		pause_until;	/* the socket is not read before; 0: it may be
								 * read at any time */
	bool		congested;		/* a consumer's queue is full: don't read */
	bool		closed_unread;	/* the walsender has closed the connection
								 * while it was not read */

	/* asking the walsender how far it is, for sessions that wait */
	EcmTime		ask_at;			/* when to ask next; 0: nobody waits */
	int			ask_delay_ms;	/* from then to the next time; grows */
	XLogRecPtr	asked_for;		/* the highest position waited for so far */

	/* asking it for a sign of life before the stream is given up for a limit */
	bool		last_word;		/* ask with the next feedback */
	EcmTime		last_word_asked;	/* when it was asked, in this stream; 0:
									 * not yet */
} StreamFlow;

/*
 * The place where the stream was lost.  A new stream counts as doubtful until it is
 * beyond it: an error that comes from the WAL there will come again.
 */
typedef struct StreamLoss
{
	XLogRecPtr	at;				/* the farthest that was durable in the
								 * streams that were lost */
	XLogRecPtr	end;			/* the end of WAL at the first of these losses */

	/* the slot at the last loss that allowed a stream to catch up */
	XLogRecPtr	slot_restart_lsn;
	XLogRecPtr	slot_confirmed_lsn;
	EcmTime		catches_up_until;	/* limits on retained WAL don't count
									 * before, unless the disk is full */
} StreamLoss;

/* Opening the replication connection anew behind a giant row or message */
typedef struct StreamRenewal
{
	XLogRecPtr	giant;			/* the last giant precedes this; invalid:
								 * there was none in this stream */
	EcmTime		look_at;		/* when to look whether the slot is beyond it */
	int			delay_ms;		/* from one look to the next; grows */
	EcmTime		renewed_at;		/* when that was last done; 0: never */
} StreamRenewal;

/* The checks that come round by the clock */
typedef struct Checks
{
	EcmTime		status_at;		/* next ecm_manager_check_status() */
	EcmTime		alive_at;		/* next ecm_manager_check_alive() */
	EcmTime		reported_stall; /* begin of the stall that an event has
								 * reported; 0: none lasts */
	EcmTime		shown_stall;	/* ... that is shown in the entry */
} Checks;

/* Shapes that hold up all others: stalled_shape.c */
typedef struct Stalled
{
	int64		deaf[ECM_MAX_SHAPE_WORKERS];	/* reported shapes, by
												 * consumer */

	/* while a limit of retained WAL is exceeded */
	int64		given_up;		/* the shape that was given up last for that;
								 * 0: none */
	EcmTime		since;			/* when the first one was */
	int			worker;			/* its consumer */
	XLogRecPtr	applied;		/* what all consumers had applied, at the last
								 * look ... */
	EcmTime		moved_at;		/* ... and when that moved last */
} Stalled;

/* The WAL that the slot retains */
typedef struct RetainedWal
{
	EcmTime		sample_at;		/* next sample; 0: in this round */
	bool		sampled;		/* a sample was taken in this round */
	EcmPin		consumer_pin;	/* a consumer that hangs, and so holds the
								 * slot back; by "": none */
	TransactionId slot_horizon; /* no slot is created while transactions run
								 * that are older; invalid: no matter */
	XLogRecPtr	restart_lsn;	/* of the slot, at the last sample ... */
	EcmTime		stands_since;	/* ... and since when it is that */
} RetainedWal;

/* How far the logs are, as rows say: see manager_position.c */
typedef struct LogPosition
{
	XLogRecPtr	slot;			/* our slot is not beyond this: there it was
								 * when it was compared with the logs, or this
								 * has been acknowledged since; invalid: it
								 * has not been compared yet */
	XLogRecPtr	marker;			/* the marker says this, and is flushed ... */
	XLogRecPtr	marker_end;		/* ... by WAL that ends there */
	EcmTime		marked_at;		/* when it was written */

	uint64		job;			/* the pool job that writes it; 0: none */
	XLogRecPtr	marking;		/* ... and what it writes */
	EcmTime		marking_at;		/* when that was submitted */
	EcmTime		retry_at;		/* not before, since the last has failed ... */
	char		error[ECM_TEXT_LEN];	/* ... by this; "": it has not */

	XLogRecPtr	idle_lsn;		/* up to there nobody else has committed
								 * anything that no row says is logged */
	XLogRecPtr	idle_tried;		/* ... which was last looked at up to there */
	EcmTime		idle_look_at;	/* not looked at again before */
	bool		frees_wal;		/* if the marker said that all is logged, the
								 * slot would retain less WAL */
	EcmTime		frees_look_at;	/* not looked at again before */

	/* what may be acknowledged, as standbys know that it is logged */
	XLogRecPtr	known;			/* this */
	XLogRecPtr	candidate;		/* then this; invalid: nothing is waited for */
	XLogRecPtr	candidate_end;	/* ... when they have the WAL up to there */
	EcmTime		standbys_look_at;	/* not looked at again before */

	XLogRecPtr	at_end;			/* at the end of the manager: all logs had
								 * everything before this */
} LogPosition;

/*
 * A manager; its process has one.  It reads its entry in shared memory freely,
 * as far as it is the only one that writes there, and writes under the lock.
 */
typedef struct Manager
{
	int			stack_index;
	EcmStack   *stack;			/* our entry */
	MemoryContext loop_context; /* reset before each round */
	EcmTime		deadline;		/* the wait after this round ends then at the
								 * latest; 0: no part needs that */

	EcmState	state;			/* of the machine in state.c */
	EcmStackRow remembered;		/* the row of _electric_cm.stack, as last read */
	char	   *settings_signature; /* settings whose change needs a new
									 * manager; see manager_settings.c */
	bool		reload_again;	/* the database's settings could not be read:
								 * reload once more at the next check */
	Oid			extension_oid;	/* as of our start; another one means that it
								 * was dropped, and maybe created again */

	SlotLock	lock;
	Replication replication;
	StepJob		job;
	int			worker_failures;	/* attempts in a row to start consumers
									 * that failed since no worker was free */
	Waiting		waiting;
	StreamFlow	flow;
	StreamLoss	loss;
	StreamRenewal renewal;
	Checks		checks;
	RetainedWal wal;
	LogPosition position;
	struct
	{
		bool		mismatch;	/* the slot does not continue the logs */
		bool		marked;		/* the marker is written */
		XLogRecPtr	switch_lsn; /* another timeline or cluster was left there;
								 * invalid: none was */
		bool		upgraded;	/* pg_upgrade has brought the shapes along */
		EcmContinuity refused;	/* why a slot was not used on another
								 * timeline; ECM_CONTINUES: none was there */
	}			compared;		/* what step check_timeline has its job do */
	Stalled		stalled;

	/* reported so far */
	EcmError	last_reported;	/* the same failure again is no event */
	bool		was_active;		/* the stack, after the last round */
	bool		too_many_recreations;	/* the stack has failed for that
										 * reason: only a reload may try again */

	/* the end */
	bool		extension_gone; /* DROP EXTENSION was found to be committed */
	bool		cleaned_up;		/* or there is nothing to clean up */
} Manager;

/*
 * An input for the state machine that a part of the round has found, and the
 * reason if it says that a part has failed or was lost.
 */
typedef struct RoundInput
{
	EcmInputType type;
	bool		failed;			/* 'failure' is filled, and will be reported */
	EcmStepFailure failure;
	bool		no_consumers;	/* a step is done, after which none is there */
	bool		again;			/* run the part again once the machine has
								 * been stepped: it may have more to tell */
} RoundInput;

/*
 * A part of the round.  True: 'in' is filled, and the machine is stepped with it
 * before the next part runs.  So each part finds the state as the parts before it
 * have left it, and none uses a stream that was lost.
 */
typedef bool (*RoundPart) (Manager *m, EcmTime now, RoundInput *in);

/* Returns an input that goes with in->failure, which the caller has filled. */
static inline bool
round_failed(RoundInput *in, EcmInputType type)
{
	in->type = type;
	in->failed = true;
	return true;
}

/* ---------------------------------------------------------- manager.c -- */

extern PGDLLEXPORT void ecm_manager_main(Datum arg);

/* Records an event of this database. */
extern void ecm_manager_event(const Manager *m, EcmEventName name,
							  const char *detail,
							  const char *message);

/* Shows a failure, and logs it unless it is the same one again. */
extern void ecm_manager_report_failure(Manager *m, const EcmStepFailure *failure);

/* The wait after this round ends at this time at the latest; 0: no matter. */
extern void ecm_manager_wake_at(Manager *m, EcmTime at);

/* ---------------------------------------------------- manager_start.c -- */

/*
 * Finds out whether the database wants a stack, sets all up and starts the first
 * step.  If no stack is wanted, says so in the entry, and ends the process.
 */
extern void ecm_manager_start_up(Manager *m);

/* In a transaction: reads the row of _electric_cm.stack; arg is the Manager. */
extern void ecm_manager_read_remembered(void *arg);

/* ------------------------------------------------- manager_settings.c -- */

/*
 * At start: takes the database's settings as the catalog has them now.  False: it
 * can't be read (err).  *one_is_gone: a setting that this process was started with
 * has been reset since.  Only a new process can start without it, so this one has
 * to end.
 */
extern bool ecm_manager_catch_up_with_settings(EcmError *err, bool *one_is_gone);

/* At start: notes the settings whose change needs a new manager. */
extern void ecm_manager_note_settings(Manager *m);

/* Part of the round: reads the configuration again, after SIGHUP. */
extern bool ecm_manager_reload(Manager *m, EcmTime now, RoundInput *in);

/* Would the settings, as they are now, disable the stack? */
extern bool ecm_manager_is_disabled(void);

/* ---------------------------------------------------- manager_steps.c -- */

/* Starts the state machine's current step. */
extern void ecm_manager_run_step(Manager *m);

/* Parts of the round. */
extern bool ecm_manager_poll_step(Manager *m, EcmTime now, RoundInput *in);
extern bool ecm_manager_poll_idle_replication(Manager *m, EcmTime now,
											  RoundInput *in);

/*
 * Drops the slot that we have made under a former name of electric_cm.slot_name, if
 * the slot of the new name can be used and nobody uses the former one.
 */
extern void ecm_manager_retire_former_slot(Manager *m);

/* Is there a slot of that name that the stack could use?  Fills facts if so. */
extern bool ecm_manager_slot_is_usable(const char *name, EcmSlotFacts *facts);

/* Does the row of _electric_cm.stack say that the slot is ours? */
extern bool ecm_manager_slot_is_recorded(const Manager *m);

/* -------------------------------------------------- manager_waiting.c -- */

/* The stack waits for nothing any more. */
extern void ecm_manager_forget_wait(Manager *m);

/* While the server creates the slot: shows who holds that up, and helps it on. */
extern void ecm_manager_help_slot_creation(Manager *m);

/* Tells step create_slot whether a slot may be created now, and if not, why. */
extern void ecm_manager_hold_slot(Manager *m);

/* Parts of the round, and of its end. */
extern bool ecm_manager_show_blocker(Manager *m, EcmTime now, RoundInput *in);
extern bool ecm_manager_show_lock_blocker(Manager *m, EcmTime now,
										  RoundInput *in);
extern void ecm_manager_show_doubt(Manager *m);
extern void ecm_manager_show_standby(Manager *m, EcmTime now);

/* --------------------------------------------------- manager_checks.c -- */

/* Parts of the round. */
extern bool ecm_manager_find_dead_consumer(Manager *m, EcmTime now,
										   RoundInput *in);
extern bool ecm_manager_find_dead_pool(Manager *m, EcmTime now, RoundInput *in);
extern bool ecm_manager_check_alive(Manager *m, EcmTime now, RoundInput *in);
extern bool ecm_manager_check_status(Manager *m, EcmTime now, RoundInput *in);

/* The consumers are gone: none of them stalls. */
extern void ecm_manager_forget_stalled(Manager *m);

/* ------------------------------------------------------ manager_wal.c -- */

/* Parts of the round. */
extern bool ecm_manager_sample_wal(Manager *m, EcmTime now, RoundInput *in);
extern bool ecm_manager_after_sample(Manager *m, EcmTime now, RoundInput *in);

/* ----------------------------------------------- replication_stream.c -- */

/* Parts of the round. */
extern bool ecm_manager_read_stream(Manager *m, EcmTime now, RoundInput *in);
extern bool ecm_manager_note_progress(Manager *m, EcmTime now, RoundInput *in);
extern bool ecm_manager_give_feedback(Manager *m, EcmTime now, RoundInput *in);
extern bool ecm_manager_renew_stream(Manager *m, EcmTime now, RoundInput *in);

/* Everything before this is durable, or concerns none of our shapes; never less. */
extern XLogRecPtr ecm_manager_flushed_lsn(const Manager *m);

/* Notes how far the stream had come when it was lost. */
extern void ecm_manager_note_loss(Manager *m);

/* Forgets what was known of a stream that has ended. */
extern void ecm_manager_forget_stream(Manager *m);

/*
 * Lets the next stream catch up, for a bounded time, before a limit on retained WAL
 * counts.  False: the slot has not moved since the last time, so it may not.
 */
extern bool ecm_manager_may_catch_up(Manager *m, EcmTime now);

/* ------------------------------------------------- manager_position.c -- */

/*
 * Does the slot that create_slot has found continue the logs?  *mismatch NULL: yes;
 * or the reason why all shapes are resynced.  False: that can't be found out now (err).
 */
extern bool ecm_manager_compare_slot(Manager *m, const char **mismatch, EcmError *err);

/*
 * Before create_slot, on another timeline than was recorded: can the slot that is
 * there continue the logs?  If not, notes why.  True also if that can't be found out.
 */
extern bool ecm_manager_slot_survives(Manager *m);

/*
 * The step check_timeline is done: what it has recorded is in the tables.  mismatch:
 * all shapes are resynced; marked: the marker was written.
 */
extern void ecm_manager_slot_compared(Manager *m, bool mismatch, bool marked);

/*
 * The stream has begun.  Is the slot still where it was when it was compared with
 * the logs?  If not, fills 'failure'.
 */
extern bool ecm_manager_slot_is_as_compared(Manager *m, EcmStepFailure *failure);

/*
 * The part of 'flushed' that may be acknowledged, since rows that are flushed say
 * that it is logged, here and on standbys.
 */
extern XLogRecPtr ecm_manager_acknowledgeable_lsn(Manager *m, EcmTime now, XLogRecPtr flushed);

/* Notes that this position is about to be sent to the slot. */
extern void ecm_manager_note_acknowledged(Manager *m, XLogRecPtr lsn);

/* Part of the round: has the marker written. */
extern bool ecm_manager_mark_position(Manager *m, EcmTime now, RoundInput *in);

/* The stream is lost, or everything is closed: nobody waits for the marker any more. */
extern void ecm_manager_forget_marker(Manager *m);

/* ----------------------------------------------------- manager_stop.c -- */

/*
 * Closes connections, ends consumers, and records how far the slot is, or drops it:
 * the end that a stop, a restart or a shutdown wants.  Waits a second at most for
 * each of the slot and locks.  Does nothing the second time.
 */
extern void ecm_manager_clean_up(Manager *m);

/* The same when the process ends in another way; arg is the Manager. */
extern void ecm_manager_at_exit(int code, Datum arg);

/* -------------------------------------------------- stalled_shape.c -- */

/* Reports consumers that can't be interrupted. */
extern void ecm_manager_find_deaf(Manager *m);

/*
 * The slot exceeds a limit, and would have to go.  True: one shape that is to blame
 * has been given up instead, and it is too early to say that this does not help.
 */
extern bool ecm_manager_relieves_slot(Manager *m, EcmTime now, bool urgent);

/* The slot exceeds no limit any more. */
extern void ecm_manager_relief_over(Manager *m);

#endif							/* ECM_MANAGER_H */
