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
	EcmTime		taken_at;		/* the same moment, by ecm_now() */
	XLogRecPtr	current_lsn;
	int64		retained_wal_bytes; /* -1: no slot, or unknown */
	int64		flush_lag_bytes;	/* likewise */
	char		wal_status[16]; /* "": no slot */
} EcmHistoryEntry;

extern void ecm_history_request(void);	/* shmem_request_hook */
extern void ecm_history_startup(void);	/* shmem_startup_hook */

/*
 * Adds a sample of the stack with that index.  For the entry's writer.  A
 * sample that comes sooner than interval_ms after the last one, because a
 * limit is near or somebody has asked for it, is left out unless the slot's
 * status has changed.  Otherwise the ring would reach back less far just when
 * its history is of interest.
 */
extern void ecm_history_add(int index, const EcmWalSample *sample,
							int interval_ms);

/*
 * Copies the samples of a database, the oldest first, into *copy (palloc'd).
 * Returns their number.
 */
extern int	ecm_history_copy(int index, Oid dboid, EcmHistoryEntry **copy);

/*
 * How long ago the end of WAL was at 'lsn', in microseconds, interpolated
 * between the samples and the present (current_lsn at 'now').  If 'lsn' is
 * older than the first sample, the age of that sample, which is the least that
 * it can be. -1: there are no samples.
 */
extern int64 ecm_history_age_of(int index, Oid dboid, XLogRecPtr lsn,
								XLogRecPtr current_lsn, EcmTime now);

#endif							/* ECM_RETAINED_WAL_HISTORY_H */
