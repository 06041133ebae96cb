/*-------------------------------------------------------------------------
 *
 * shape_worker.h
 *	  What all agree on about the consumers of a database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_WORKER_H
#define ECM_SHAPE_WORKER_H

#include "postgres.h"


/*
 * Locks a consumer's progress, waiting for whoever has it; until the process
 * ends, or else the transaction.
 */
extern void ecm_shape_lock_progress(int worker, bool until_exit);

/* How many consumers this database's stack has; 1 if there is none. */
extern int	ecm_shape_workers_running(void);

#endif							/* ECM_SHAPE_WORKER_H */
