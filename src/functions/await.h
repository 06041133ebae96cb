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

/* ERROR 55000 if this is no place or transaction to wait for the stack in. */
extern void ecm_check_may_wait(const char *function);

/* A manager runs, knows that it is wanted, and nobody has asked it to end. */
extern bool ecm_stack_is_running(const EcmStack *stack);

/* ERROR 55000 if the stack has failed or is stopped. */
extern void ecm_check_stack_alive(const EcmStack *stack);
extern bool ecm_stack_is_stopped(const EcmStack *stack);
extern void ecm_report_stopped(const EcmStack *stack);
extern void ecm_report_stack_gone(void);

/* An entry for this database, and the launcher to look after it; or ERROR. */
extern void ecm_ensure_own_stack(void);

/* When a wait (by ecm_now()) ends, or 0: never.  22023 if the timeout is negative. */
extern EcmTime ecm_await_until(const Interval *timeout);

/*
 * The same for a wait that holds a snapshot, so that it must have an end: in
 * milliseconds.  22023 also if it is NULL or longer than an hour.
 */
extern int64 ecm_bounded_timeout_ms(const Interval *timeout);

/*
 * Sleeps until the latch is set, which stays so, or for a time (-1: as long as
 * it takes).  FATAL if the client is gone, where the platform can tell; and
 * whatever else interrupts.
 */
extern void ecm_sleep(long timeout_ms, EcmWaitEvent what_for);

/*
 * Sleeps until the entry changes.  The first sleep of a loop returns at once,
 * so that a change since the caller's look can't be missed.  True if the
 * deadline has passed.  When the loop is over: ConditionVariableCancelSleep().
 */
extern bool ecm_sleep_until_change(int index, EcmTime deadline);

/* What the stack is waiting for, as a sentence, for the DETAIL of a timeout. */
extern char *ecm_describe_wait(const EcmStack *stack);

/* What a shape's creation is waiting for, palloc'd; NULL if not known. */
extern char *ecm_creation_waiting_for(int64 shape, Oid relation);

/*
 * Waits until this database's stack is active, which starts it where it is
 * allowed to.  57014: the deadline has passed; else as the checks above.
 */
extern void ecm_await_active(EcmTime deadline);

#endif							/* ECM_AWAIT_H */
