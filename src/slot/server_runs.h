/*-------------------------------------------------------------------------
 *
 * server_runs.h
 *	  Was the library loaded each time that the server ran?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SERVER_RUNS_H
#define ECM_SERVER_RUNS_H

#include "postgres.h"

#include "access/xlogdefs.h"

/*
 * Before anything that may change a catalog is committed: has this run's WAL
 * say that the library is loaded.  Costs a look at shared memory, but for the
 * first time.
 */
extern void ecm_run_mark(void);

/* Has the WAL of all former runs been looked at, up to that position? */
extern bool ecm_runs_seen(XLogRecPtr seen_lsn);

#endif							/* ECM_SERVER_RUNS_H */
