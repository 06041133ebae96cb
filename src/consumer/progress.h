/*-------------------------------------------------------------------------
 *
 * progress.h
 *	  Writes how far a consumer has come (ecm_stored_progress() reads it).
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_PROGRESS_H
#define ECM_PROGRESS_H

#include "postgres.h"

#include "access/xlogdefs.h"

/*
 * Writes, in the current transaction, that a consumer's logs have all up to 'lsn'.  To
 * be called once per transaction.
 */
extern void ecm_progress_write(int worker, XLogRecPtr lsn);

#endif							/* ECM_PROGRESS_H */
