/*-------------------------------------------------------------------------
 *
 * worker_budget.h
 *	  How many background workers are free.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_WORKER_BUDGET_H
#define ECM_WORKER_BUDGET_H

/*
 * max_worker_processes, less what other libraries and parallel queries use now,
 * and less our own: those that run, or 'reserved' if those are more.  (The
 * launcher is not among them.)
 */
extern int	ecm_free_workers(int reserved);

#endif							/* ECM_WORKER_BUDGET_H */
