/*-------------------------------------------------------------------------
 *
 * slot_upgraded.c
 *	  Is a slot the one that pg_upgrade has made for the old cluster's?
 *
 * From 17 on pg_upgrade makes the old cluster's logical slots again in the new one,
 * if they have consumed everything there.  It does so last of all, with the server
 * that nobody else can use, and after pg_resetwal has begun the WAL anew.  So between
 * that beginning and such a slot nobody has committed anything.
 *
 * A slot has no identity, but whichever it is: one that has nothing before it has
 * everything behind it.  One that was made or moved later has commits before it,
 * unless nobody has written anything, and then it is as good.
 *
 * pg_resetwal begins with a checkpoint that follows no record, at the first place of a
 * segment.  The slots come so soon after that they are in the same segment.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/rmgr.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_control.h"
#include "miscadmin.h"

#include "slot/slot.h"
#include "slot/slot_upgraded.h"
#include "slot/wal_commits.h"
#include "slot/wal_scan.h"

typedef struct Beginning
{
	XLogRecPtr	at;				/* where the segment has its first record */
	bool		found;			/* ... which is the first of all */
} Beginning;

static bool
look_at_first(XLogReaderState *reader, void *arg)
{
	Beginning  *beginning = arg;

	beginning->found = reader->ReadRecPtr == beginning->at &&
		XLogRecPtrIsInvalid(XLogRecGetPrev(reader)) &&
		XLogRecGetRmid(reader) == RM_XLOG_ID &&
		(XLogRecGetInfo(reader) & ~XLR_INFO_MASK) == XLOG_CHECKPOINT_SHUTDOWN;
	return false;
}

bool
ecm_slot_begins_cluster(const EcmSlotFacts *facts)
{
	XLogRecPtr	segment = facts->restart_lsn - XLogSegmentOffset(facts->restart_lsn, wal_segment_size);
	Beginning	beginning = {.at = segment + SizeOfXLogLongPHD};

	if (XLogRecPtrIsInvalid(facts->restart_lsn) || ecm_slot_wal_is_gone(facts->restart_lsn))
		return false;
	(void) ecm_wal_scan(segment, facts->confirmed_flush_lsn, look_at_first, &beginning);
	return beginning.found &&
		ecm_wal_has_no_commits(beginning.at, facts->confirmed_flush_lsn, NULL, 0);
}
