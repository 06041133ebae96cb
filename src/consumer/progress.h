/*-------------------------------------------------------------------------
 *
 * progress.h
 *	  The rows of _electric_cm.progress that a consumer reads and writes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_PROGRESS_H
#define ECM_PROGRESS_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "utils/snapshot.h"

/*
 * The end of the last transaction that a consumer has committed to the logs; invalid if
 * it has never committed any.
 */
extern XLogRecPtr ecm_progress_read(int worker, Snapshot snapshot);

/*
 * Writes, in the current transaction, that a consumer's logs have all up to 'lsn'.  To
 * be called once per transaction.
 */
extern void ecm_progress_write(int worker, XLogRecPtr lsn);

#endif							/* ECM_PROGRESS_H */
