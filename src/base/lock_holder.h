/*-------------------------------------------------------------------------
 *
 * lock_holder.h
 *	  Who has a lock, for those who wait for it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_LOCK_HOLDER_H
#define ECM_LOCK_HOLDER_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "storage/lock.h"
#include "storage/proc.h"

/*
 * The process that runs a virtual transaction.  NULL if it has left it: a
 * prepared transaction keeps the number that it was prepared under, while its
 * former process goes on to others.
 */
extern PGPROC *ecm_vxid_process(VirtualTransactionId vxid);

/* Appends "PID 123", or "prepared transaction 456". */
extern void ecm_append_holder(StringInfo text, VirtualTransactionId vxid);

/* All who have the lock in a mode that conflicts with this one, likewise. */
extern char *ecm_lock_holders(const LOCKTAG *tag, LOCKMODE mode);

#endif							/* ECM_LOCK_HOLDER_H */
