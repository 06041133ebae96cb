/*-------------------------------------------------------------------------
 *
 * worker_budget.h
 *	  How many background workers are free, and how many a stack needs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_WORKER_BUDGET_H
#define ECM_WORKER_BUDGET_H

#include "launcher/stack_entry.h"

/* The background workers that a stack needs: its manager and its consumers. */
extern int	ecm_workers_needed(const EcmEntry *entry);

/*
 * The number of free background workers: max_worker_processes, less those that other
 * libraries and parallel queries use now, less our own, or those that our running
 * stacks need, if these are more.  May be negative.  *looking: the number of managers
 * that only have a look, and soon give their worker back.
 */
extern int	ecm_workers_free(int *looking);

#endif							/* ECM_WORKER_BUDGET_H */
