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

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"

#include "base/clock.h"
#include "base/failure.h"
#include "base/shmem.h"

typedef struct SlotLock
{
	char	   *datname;
	char	   *slot;
	int64		key;			/* of the advisory lock; made of the slot's
								 * name */
	bool		held;
	EcmTime		retry_at;		/* 0: not tried yet */

	/* while it is waited for: who has it, in words, or "" */
	char		waiting_for[ECM_TEXT_LEN];
	int			blocking_pid;	/* 0: none */

	/* who holds it and does nothing with the slot */
	int			holder_pid;		/* 0: nobody */
	TimestampTz holder_started; /* tells it from a later namesake */
	EcmTime		idle_since;		/* seen so at a status check; 0: not yet */
	XLogRecPtr	idle_lsn;		/* the slot's confirmed_flush_lsn then */
	char		terminated[ECM_TEXT_LEN];	/* who was ended, in words */
} SlotLock;

extern void ecm_exclusive_lock_init(SlotLock *lock, const char *datname,
									const char *slot_name);

/* The step acquire_lock; while it is pending, when it is to be polled again. */
extern void ecm_exclusive_lock_start(SlotLock *lock);
extern EcmStepResult ecm_exclusive_lock_poll(SlotLock *lock,
											 EcmStepFailure *failure);
extern EcmTime ecm_exclusive_lock_deadline(const SlotLock *lock);

/* Who holds the lock, in words, or NULL; and its PID (0: none). */
extern const char *ecm_exclusive_lock_waiting_for(const SlotLock *lock,
												  int *pid);

/*
 * At each status check during that step: ends a holder that does not use the
 * slot, if electric_cm.break_abandoned_lock says so.
 */
extern void ecm_exclusive_lock_check(SlotLock *lock, EcmTime now);

#endif							/* ECM_EXCLUSIVE_LOCK_H */
