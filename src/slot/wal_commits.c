/*-------------------------------------------------------------------------
 *
 * wal_commits.c
 *	  Has anybody but the stack committed something in this database?
 *
 * A slot that is moved past WAL without such commits has lost nothing by that,
 * whoever has moved it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/rmgr.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"

#include "base/compat.h"
#include "slot/slot.h"
#include "slot/wal_commits.h"
#include "slot/wal_scan.h"

typedef struct CommitScan
{
	const TransactionId *but;
	int			nbut;
	bool		found;
} CommitScan;

static bool
look_for_commit(XLogReaderState *reader, void *arg)
{
	CommitScan *scan = arg;
	uint8		info = XLogRecGetInfo(reader);
	uint8		kind = info & XLOG_XACT_OPMASK;
	xl_xact_parsed_commit parsed;

	if (XLogRecGetRmid(reader) != RM_XACT_ID ||
		(kind != XLOG_XACT_COMMIT && kind != XLOG_XACT_COMMIT_PREPARED))
		return true;
	ParseCommitRecord(info, (xl_xact_commit *) XLogRecGetData(reader), &parsed);
	if (OidIsValid(parsed.dbId) && parsed.dbId != MyDatabaseId)
		return true;
	for (int i = 0; i < scan->nbut && kind == XLOG_XACT_COMMIT; i++)
		if (scan->but[i] == XLogRecGetXid(reader))
			return true;
	scan->found = true;
	return false;
}

bool
ecm_wal_has_no_commits(XLogRecPtr from, XLogRecPtr to, const TransactionId *but, int nbut)
{
	CommitScan	scan = {.but = but, .nbut = nbut};

	if (from >= to)
		return true;
	if (to > ecm_end_of_wal() || ecm_slot_wal_is_gone(from))
		return false;
	XLogFlush(to);
	return ecm_wal_scan(from, to, look_for_commit, &scan) >= to && !scan.found;
}
