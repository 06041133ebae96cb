/*-------------------------------------------------------------------------
 *
 * waiters.h
 *	  Who waits for what comes to which shape's log.
 *
 * Each backend has one place in shared memory, in which it can put down one
 * shape.  Whoever has committed something about shapes wakes those who wait
 * for these, and nobody else.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_WAITERS_H
#define ECM_WAITERS_H

#include "postgres.h"

/* For shmem.c, which gives us room. */
extern Size ecm_waiters_size(void);
extern void ecm_waiters_attach(void *space, bool found);

/*
 * Puts down that this backend waits for a shape of its database, in place of
 * what it has put down before: what is committed from now on is told by its
 * latch.  So look after that, and then sleep unless woken.
 */
extern void ecm_waiters_join(int64 shape);
extern bool ecm_waiters_woken(void);
extern void ecm_waiters_leave(void);

/*
 * Something about these shapes has been committed.  Costs nothing while nobody
 * waits, and never raises.
 */
extern void ecm_waiters_wake(Oid dboid, const int64 *shapes, int nshapes);

/* Something has happened that all are concerned by who wait in a database. */
extern void ecm_waiters_wake_all(Oid dboid);

#endif							/* ECM_WAITERS_H */
