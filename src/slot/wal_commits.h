/*-------------------------------------------------------------------------
 *
 * wal_commits.h
 *	  Has anybody but the stack committed something in this database?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_WAL_COMMITS_H
#define ECM_WAL_COMMITS_H

#include "postgres.h"

#include "access/xlogdefs.h"

/*
 * Does the WAL between the two positions have no commits of this database, but for
 * those of the transactions given?  False also if it can't be read as a whole.  In
 * a transaction.
 */
extern bool ecm_wal_has_no_commits(XLogRecPtr from, XLogRecPtr to,
								   const TransactionId *but, int nbut);

#endif							/* ECM_WAL_COMMITS_H */
