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
 * Marks this run of the server in WAL as one with the library.  To be called
 * before anything is committed that may change a catalog.  Only the first call
 * costs more than a look at shared memory.
 */
extern void ecm_run_mark(void);

/*
 * What this transaction does to tables or types of this database cannot be looked
 * at: has the WAL say so, for the next start of a stack here.
 */
extern void ecm_run_mark_unseen(void);

/* Does seen_lsn say that the WAL of all runs before this one has been read? */
extern bool ecm_runs_seen(XLogRecPtr seen_lsn);

#endif							/* ECM_SERVER_RUNS_H */
