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
 * max_worker_processes, less what other libraries and parallel queries use now,
 * and less our own: those that run, or, if those are more, what all stacks that
 * run need.  *looking: how many managers are only having a look.
 */
extern int	ecm_workers_free(int *looking);

#endif							/* ECM_WORKER_BUDGET_H */
