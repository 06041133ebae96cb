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
								 * could do without if the slot were dropped;
								 * -1: all that it holds */
	char		others[ECM_TEXT_LEN];	/* who needs the rest, as a sentence;
										 * "" */
} EcmWalBlame;

/*
 * Looks for those who need WAL from before the end: other slots (but not those
 * that "ignore" says to leave out), wal_keep_size, and an archiver that is
 * behind.  May read a directory; waits for nothing.
 */
extern void ecm_retained_wal_blame(const char *slot_name, XLogRecPtr restart_lsn,
								   XLogRecPtr current_lsn,
								   bool (*ignore) (const EcmSlotRow *row, void *arg),
								   void *arg, EcmWalBlame *blame);

#endif							/* ECM_RETAINED_WAL_BLAME_H */
