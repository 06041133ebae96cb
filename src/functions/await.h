/*-------------------------------------------------------------------------
 *
 * await.h
 *	  What all functions that wait for this database's stack have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_AWAIT_H
#define ECM_AWAIT_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "base/clock.h"
#include "base/shmem.h"
#include "base/wait_event.h"

/*
 * ERROR 55000 if the caller can't wait for the stack here: without the library
 * preloaded, in single-user mode, in recovery, in a transaction that has made changes
 * or is above READ COMMITTED.  function: its name, for the message.
 */
extern void ecm_check_may_wait(const char *function);

/*
 * Of a copy of an entry.  running: a manager runs, has found that it is wanted, and
 * nobody has asked it to end.  stopped: no manager runs, nobody has asked for one, and
 * no command has the stack paused.
 */
extern bool ecm_stack_is_running(const EcmStack *stack);

extern bool ecm_stack_is_stopped(const EcmStack *stack);

/* ERROR 55000 if the stack has failed or is stopped: to wait for it is of no use. */
extern void ecm_check_stack_alive(const EcmStack *stack);

/* ERROR 55000: it is stopped, and why; or its extension is gone. */
extern void ecm_report_stopped(const EcmStack *stack);
extern void ecm_report_stack_gone(void);

/*
 * Sees to it that this database has an entry, and that the launcher looks after it.
 * ERROR 55000 if electric_cm.databases does not list the database, 53400 if no entry
 * is free.
 */
extern void ecm_ensure_own_stack(void);

/*
 * When a wait with that timeout ends, by ecm_now(); 0: never (NULL or infinite).  ERROR
 * 22023 if it is negative.
 */
extern EcmTime ecm_await_until(const Interval *timeout);

/*
 * The timeout in milliseconds, for a wait that holds a snapshot, so that VACUUM waits
 * with it.  ERROR 22023 also if it is NULL, infinite or longer than an hour.
 */
extern int64 ecm_bounded_timeout_ms(const Interval *timeout);

/*
 * Sleeps until the latch is set, which the caller resets, or for a time (-1: as long as
 * it takes).  Ends the session if the client is gone, where the platform can tell; and
 * serves interrupts.
 */
extern void ecm_sleep(long timeout_ms, EcmWaitEvent what_for);

/*
 * The same on a standby, until more WAL is replayed than up to an LSN, but for pause_ms at
 * least: nobody is to look all the time while WAL comes in.
 */
extern void ecm_sleep_for_replay(XLogRecPtr replayed, long timeout_ms, long pause_ms, EcmWaitEvent what_for);

/*
 * Sleeps until the entry changes; for a loop of looks and sleeps.  The first sleep only
 * enters the queue, and returns at once: a change between the caller's look and the
 * sleep would be missed otherwise.  True if the deadline (0: none) has passed.  After
 * the loop the caller has to call ConditionVariableCancelSleep().
 */
extern bool ecm_sleep_until_change(int index, EcmTime deadline);

/*
 * The stack's status, step and wait, as sentences for the DETAIL of a timeout; palloc'd.
 */
extern char *ecm_describe_wait(const EcmStack *stack);

/* The reason why a shape is not created yet, palloc'd; NULL if not known. */
extern char *ecm_creation_waiting_for(int64 shape, Oid relation);

/*
 * Waits until this database's stack is active.  It may not have been looked at yet; then
 * that happens now.  ERROR 57014 if the deadline (0: none) has passed; else as
 * ecm_ensure_own_stack() and ecm_check_stack_alive().
 */
extern void ecm_await_active(EcmTime deadline);

#endif							/* ECM_AWAIT_H */
