/*-------------------------------------------------------------------------
 *
 * retained_wal_blame.h
 *	  Who else needs the WAL that a replication slot retains?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_RETAINED_WAL_BLAME_H
#define ECM_RETAINED_WAL_BLAME_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "base/shmem.h"
#include "slot/slot.h"

typedef struct EcmWalBlame
{
	int64		frees;			/* bytes, in whole segments, that the server
								 * could free if the slot were dropped; -1:
								 * all that the slot retains */
	char		others[ECM_TEXT_LEN];	/* a sentence that says who needs the
										 * rest; "": nobody */
} EcmWalBlame;

/*
 * Finds out who else needs WAL that the slot retains: other slots (except
 * those for which ignore() returns true), wal_keep_size, and the archiver.
 * Reads the directory archive_status if there is an archiver.  Waits for
 * nothing.
 */
extern void ecm_retained_wal_blame(const char *slot_name, XLogRecPtr restart_lsn,
								   XLogRecPtr current_lsn,
								   bool (*ignore) (const EcmSlotRow *row, void *arg),
								   void *arg, EcmWalBlame *blame);

#endif							/* ECM_RETAINED_WAL_BLAME_H */
