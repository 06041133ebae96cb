/*-------------------------------------------------------------------------
 *
 * shape_worker.h
 *	  The consumers of a database: their number, and the lock on the progress
 *	  of each.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_WORKER_H
#define ECM_SHAPE_WORKER_H

#include "postgres.h"


/*
 * Locks the progress of a consumer, waiting for any other process that has it
 * locked.  The consumer itself keeps the lock until it exits (until_exit);
 * others until their transaction ends.  So nobody changes the progress while a
 * consumer, perhaps of a former manager, still commits.
 */
extern void ecm_shape_lock_progress(int worker, bool until_exit);
extern void ecm_shape_lock_all_progress(void);

/* The number of consumers of this database's stack; 1 if there is no stack. */
extern int	ecm_shape_workers_running(void);

#endif							/* ECM_SHAPE_WORKER_H */
