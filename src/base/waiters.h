/*-------------------------------------------------------------------------
 *
 * waiters.h
 *	  The sessions that wait for new entries in shape logs.
 *
 * Each backend has one place in shared memory, in which it can note one shape
 * that it waits for.  Who waits for many takes a place for each; there are
 * electric_cm.max_awaited_shapes of these.  A process that has committed something
 * about shapes wakes those who wait for these shapes, and nobody else.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_WAITERS_H
#define ECM_WAITERS_H

#include "postgres.h"

/* For shmem.c, which allocates the memory. */
extern Size ecm_waiters_size(void);
extern void ecm_waiters_attach(void *space, bool found);

/*
 * join notes that this backend waits for a shape of its database, instead of
 * the shape that it has noted before.  Each commit about that shape from now on
 * sets its latch.  The caller joins, then looks into the log with a new
 * snapshot, and sleeps unless woken says that a commit has come meanwhile.
 * leave ends the wait; at exit it is called by itself.
 */
extern void ecm_waiters_join(int64 shape);
extern bool ecm_waiters_woken(void);
extern void ecm_waiters_leave(void);

/*
 * The same for many shapes at a time.  add takes a place for a shape, and returns its
 * number; ECM_NO_PLACE: all are taken.  listed: nothing has been committed about the shape
 * since add, or since renew.  remove gives the place back; at exit that is done by itself.
 */
#define ECM_NO_PLACE	(-1)
extern int	ecm_waiters_add(int64 shape);
extern bool ecm_waiters_listed(int place);
extern void ecm_waiters_renew(int place);
extern void ecm_waiters_remove(int place);

/*
 * How many sessions wait in a database, or have just waited and may go on doing so, and for
 * how many shapes, one counted as often as it is waited for.  Looks without locks at all
 * places that there are.
 */
extern void ecm_waiters_count(Oid dboid, int *sessions, int *shapes);

/* Does anybody wait for the shape? */
extern bool ecm_waiters_any(Oid dboid, int64 shape);

/*
 * Wakes those who wait for these shapes, to be called after the commit.  Costs
 * next to nothing while nobody waits, and never raises an error.
 */
extern void ecm_waiters_wake(Oid dboid, const int64 *shapes, int nshapes);

/* Wakes all who wait in a database: its stack has stopped or failed, say. */
extern void ecm_waiters_wake_all(Oid dboid);

#endif							/* ECM_WAITERS_H */
