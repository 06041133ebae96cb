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

/* The pool job of the step that runs */
typedef struct StepJob
{
	uint64		id;				/* 0: none */
	EcmStepResult result;
	EcmStepFailure failure;
} StepJob;

/* The stack waits for this; see manager_waiting.c */
typedef struct Waiting
{
	char		text[ECM_TEXT_LEN];
	int			pid;			/* of the process to blame; 0: none known */
	bool		blocker_shown;	/* the text is show_blocker()'s */
	bool		doubt_shown;	/* ... show_doubt()'s */
	bool		lock_shown;		/* ... show_lock_blocker()'s, of this step: */
	EcmStep		lock_step;
	EcmTime		lock_look_at;	/* 0: no need to */
	bool		creation_reported;	/* that the slot's creation is blocked */
} Waiting;

/* Reading the stream */
typedef struct StreamFlow
{
	EcmTime		pause_until;	/* not to be read before; 0: at any time */
	bool		congested;		/* a consumer's queue is full */
	bool		closed_unread;	/* the other side has gone meanwhile */

	/* asking the walsender how far it is, for somebody who waits */
	EcmTime		ask_at;			/* 0: nobody waits */
	int			ask_delay_ms;
	XLogRecPtr	asked_for;		/* the highest await_lsn seen */

	/* asking it for a last word before the stream is given up */
	bool		last_word;		/* to be asked for */
	EcmTime		last_word_asked;	/* of this stream; 0: not yet */
} StreamFlow;

/* The place where the stream was lost: it counts again once it is beyond that */
typedef struct StreamLoss
{
	XLogRecPtr	at;				/* the farthest that was acknowledged by then */
	XLogRecPtr	end;			/* the end of WAL, then */

	/*
	 * the stream may catch up first, if the slot has moved since the last
	 * loss
	 */
	XLogRecPtr	slot_restart_lsn;
	XLogRecPtr	slot_confirmed_lsn;
	EcmTime		catches_up_until;	/* no limit on retained WAL before */
} StreamLoss;

/* Opening the replication connection anew behind a giant row or message */
typedef struct StreamRenewal
{
	XLogRecPtr	giant;			/* its end; invalid: none is waited for */
	EcmTime		look_at;
	int			delay_ms;
	EcmTime		renewed_at;		/* last; 0: never */
} StreamRenewal;

/* The checks that come round by the clock */
typedef struct Checks
{
	EcmTime		status_at;
	EcmTime		alive_at;
	EcmTime		reported_stall; /* begin of the stall that was reported as an
								 * event; 0: none */
	EcmTime		shown_stall;	/* ... of the one that is shown */
} Checks;

/* The WAL that the slot retains */
typedef struct RetainedWal
{
	EcmTime		sample_at;		/* 0: now */
	bool		sampled;		/* in this round */
	EcmPin		consumer_pin;	/* a consumer that holds the slot back */
	TransactionId slot_horizon; /* no new slot while older ones run */
	XLogRecPtr	restart_lsn;	/* of the slot ... */
	EcmTime		stands_since;	/* ... which has stayed there since */
} RetainedWal;

/*
 * A manager; its process has one.  It reads its entry in shared memory freely,
 * as far as it is the only one that writes there, and writes under the lock.
 */
typedef struct Manager
{
	int			stack_index;
	EcmStack   *stack;			/* our entry */
	MemoryContext loop_context; /* reset each time round */
	EcmTime		deadline;		/* of this round; 0: none */

	EcmState	state;
	EcmRemembered remembered;	/* the row of _electric_cm.stack */
	char	   *settings_signature;
	bool		reload_again;	/* the catalog could not be read */
	Oid			extension_oid;	/* another one means: dropped and created
								 * again */

	SlotLock	lock;
	Replication replication;
	StepJob		job;
	int			worker_failures;	/* attempts to get consumers, when no
									 * worker was free */
	Waiting		waiting;
	StreamFlow	flow;
	StreamLoss	loss;
	StreamRenewal renewal;
	Checks		checks;
	RetainedWal wal;

	/* reported so far */
	EcmError	last_reported;
	bool		was_active;
	bool		too_many_recreations;	/* the reason why it has failed */

	/* the end */
	bool		extension_gone;
	bool		cleaned_up;
} Manager;

/*
 * An input for the state machine that a part of the round has found, and the
 * reason if it says that a part has failed or was lost.
 */
typedef struct RoundInput
{
	EcmInputType type;
	bool		failed;			/* 'failure' is filled */
	EcmStepFailure failure;
	bool		again;			/* the part has more to tell once the machine
								 * has been stepped */
} RoundInput;

/*
 * A part of the round.  True: 'in' is filled, and the machine is stepped with it
 * before the next part runs.  So each part finds the state as the parts before it
 * have left it, and none uses a stream that was lost.
 */
typedef bool (*RoundPart) (Manager *m, EcmTime now, RoundInput *in);

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
extern void ecm_manager_event(const Manager *m, const char *name,
							  EcmSeverity severity, const char *detail,
							  const char *message);

/* Shows a failure, and logs it unless it is the same one again. */
extern void ecm_manager_report_failure(Manager *m, const EcmStepFailure *failure);

/* The round ends at this time at the latest; 0: no matter. */
extern void ecm_manager_wake_at(Manager *m, EcmTime at);

/* ---------------------------------------------------- manager_start.c -- */

/* Returns only if the database wants a stack. */
extern void ecm_manager_start_up(Manager *m);

/* Reads the row of _electric_cm.stack; arg is the manager. */
extern void ecm_manager_read_remembered(void *arg);

/* ------------------------------------------------- manager_settings.c -- */

/*
 * At start: takes the database's settings as the catalog has them now.  False:
 * that can't be read (err).  A setting that this process was started with may
 * have been reset since: then another process has to start without it.
 */
extern bool ecm_manager_catch_up_with_settings(EcmError *err, bool *one_is_gone);

/* Notes the settings whose change needs a new manager. */
extern void ecm_manager_note_settings(Manager *m);

/* Part of the round. */
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

/* Drops the slot that we have made under a former name, when that is due. */
extern void ecm_manager_retire_former_slot(Manager *m);

/* Is there a slot of that name that the stack could use? */
extern bool ecm_manager_slot_is_usable(const char *name, EcmSlotFacts *facts);

/* Does the table say that the slot is ours?  And how it is told otherwise. */
extern bool ecm_manager_slot_is_recorded(const Manager *m);
extern char *ecm_manager_disown_slot_sql(const char *name);

/* -------------------------------------------------- manager_waiting.c -- */

extern void ecm_manager_forget_wait(Manager *m);

/*
 * Finds out what the slot's creation waits for, and helps it on; and whether
 * none may be created now.
 */
extern void ecm_manager_help_slot_creation(Manager *m);
extern void ecm_manager_hold_slot(Manager *m);

/* Parts of the round, and of its end. */
extern bool ecm_manager_show_blocker(Manager *m, EcmTime now, RoundInput *in);
extern bool ecm_manager_show_lock_blocker(Manager *m, EcmTime now,
										  RoundInput *in);
extern void ecm_manager_show_doubt(Manager *m);

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

/* Notes how far the stream had come when it was lost. */
extern void ecm_manager_note_loss(Manager *m);

/* Forgets what was known of a stream that has ended. */
extern void ecm_manager_forget_stream(Manager *m);

/*
 * The next stream may catch up before a limit on retained WAL counts.  False:
 * the slot has not moved since the last time, so it may not.
 */
extern bool ecm_manager_may_catch_up(Manager *m, EcmTime now);

/* ----------------------------------------------------- manager_stop.c -- */

/* Leaves everything as the next manager, or nobody, should find it. */
extern void ecm_manager_clean_up(Manager *m);

/* The same when the process ends by itself; registered with the manager. */
extern void ecm_manager_at_exit(int code, Datum arg);

#endif							/* ECM_MANAGER_H */
