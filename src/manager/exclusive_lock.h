/*-------------------------------------------------------------------------
 *
 * exclusive_lock.h
 *	  The lock by which one stack, or one Electric service, owns the slot.
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
	bool		held;			/* by this process */
	EcmTime		retry_at;		/* when to try again; 0: not tried yet */

	/* while the step waits for the lock: who has it, in words, or "" */
	char		waiting_for[ECM_TEXT_LEN];
	int			blocking_pid;	/* 0: a prepared transaction, or nobody */

	/*
	 * of ecm_exclusive_lock_check(): a holder that may have abandoned the
	 * lock
	 */
	int			holder_pid;		/* 0: none */
	TimestampTz holder_started; /* tells the process from a later one that has
								 * got the same number */
	EcmTime		idle_since;		/* the first check that found the slot unused;
								 * 0: none has */
	XLogRecPtr	idle_lsn;		/* the slot's confirmed_flush_lsn then */
	char		terminated[ECM_TEXT_LEN];	/* who was ended, in words, or "" */
} SlotLock;

extern void ecm_exclusive_lock_init(SlotLock *lock, const char *datname,
									const char *slot_name);

/*
 * The step acquire_lock.  It never fails for want of the lock, but stays PENDING until
 * the lock is free; deadline: when to poll it again meanwhile.
 */
extern void ecm_exclusive_lock_start(SlotLock *lock);
extern EcmStepResult ecm_exclusive_lock_poll(SlotLock *lock,
											 EcmStepFailure *failure);
extern EcmTime ecm_exclusive_lock_deadline(const SlotLock *lock);

/* The holder of the lock, in words, or NULL; and its PID (0: it has none). */
extern const char *ecm_exclusive_lock_waiting_for(const SlotLock *lock,
												  int *pid);

/*
 * To be called at each status check during that step: if
 * electric_cm.break_abandoned_lock is on, ends a holder that does not use the slot,
 * as of two checks electric_cm.status_check_interval apart.
 */
extern void ecm_exclusive_lock_check(SlotLock *lock, EcmTime now);

#endif							/* ECM_EXCLUSIVE_LOCK_H */
