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
#include "shmem.h"

/* ERROR 55000 if this is no place or transaction to wait for the stack in. */
extern void ecm_check_may_wait(const char *function);

/* ERROR 55000 if the stack has failed or is stopped. */
extern void ecm_check_stack_alive(const EcmStack *stack);
extern bool ecm_stack_is_stopped(const EcmStack *stack);
extern void ecm_report_stopped(const EcmStack *stack);
extern void ecm_report_stack_gone(void);

/* An entry for this database, and the launcher to look after it; or ERROR. */
extern void ecm_ensure_own_stack(void);

/* When a wait ends, or 0: never.  22023 if the timeout is negative. */
extern TimestampTz ecm_wait_deadline(const Interval *timeout);

#endif							/* ECM_AWAIT_H */
