/*-------------------------------------------------------------------------
 *
 * exclusive_lock.h
 *	  The lock by which one consumer owns the slot.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_EXCLUSIVE_LOCK_H
#define ECM_EXCLUSIVE_LOCK_H

#include "postgres.h"

#include "base/clock.h"
#include "base/failure.h"

extern void ecm_exclusive_lock_init(const char *datname, const char *slot_name);

/* The step acquire_lock; while it is pending, when it is to be polled again. */
extern void ecm_exclusive_lock_start(void);
extern EcmStepResult ecm_exclusive_lock_poll(EcmStepFailure *failure);
extern EcmTime ecm_exclusive_lock_deadline(void);

/* Who holds the lock, in words, or NULL; and its PID (0: none). */
extern const char *ecm_exclusive_lock_waiting_for(int *pid);

/*
 * At each status check during that step: ends a holder that does not use the
 * slot, if electric_cm.break_abandoned_lock says so.
 */
extern void ecm_exclusive_lock_check(EcmTime now);

#endif							/* ECM_EXCLUSIVE_LOCK_H */
