/*-------------------------------------------------------------------------
 *
 * retained_wal_history.h
 *	  The last samples of each stack's retained WAL, in a ring in shared
 *	  memory of electric_cm.retained_wal_history_size entries.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_RETAINED_WAL_HISTORY_H
#define ECM_RETAINED_WAL_HISTORY_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"

#include "base/shmem.h"

typedef struct EcmHistoryEntry
{
	TimestampTz sampled_at;
	EcmTime		taken_at;		/* the same by the other clock */
	XLogRecPtr	current_lsn;
	int64		retained_wal_bytes; /* -1: no slot, or unknown */
	int64		flush_lag_bytes;	/* likewise */
	char		wal_status[16]; /* "": no slot */
} EcmHistoryEntry;

extern void ecm_history_request(void);	/* shmem_request_hook */
extern void ecm_history_startup(void);	/* shmem_startup_hook */

/*
 * Adds a sample of the stack with that index; for the entry's writer.  Samples
 * that are taken more often than every interval_ms, since a limit is near or
 * somebody has asked, are left out unless the slot's status has changed: the
 * ring shall always reach back equally far.
 */
extern void ecm_history_add(int index, const EcmWalSample *sample,
							int interval_ms);

/* A copy, palloc'd, the oldest first; returns the number of entries. */
extern int	ecm_history_copy(int index, Oid dboid, EcmHistoryEntry **copy);

/*
 * How long ago the end of WAL was at a position, in microseconds, by
 * interpolation up to where it is now; -1 if that is not known.  Before the
 * first sample nothing is known either: it is as long ago as that, at least.
 */
extern int64 ecm_history_age_of(int index, Oid dboid, XLogRecPtr lsn,
								XLogRecPtr current_lsn, EcmTime now);

#endif							/* ECM_RETAINED_WAL_HISTORY_H */
