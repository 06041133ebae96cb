/*-------------------------------------------------------------------------
 *
 * slot_tail.c
 *	  A slot that has nothing to consume any more, at a clean stop.
 *
 * From 17 on pg_upgrade refuses a cluster while a slot has not consumed all
 * that was committed in its database.  The last commit there is the stack's own:
 * it says that the stack has come to a clean end, and nobody is left to stream
 * it.  So the slot is moved past it, without being read, if nobody else has
 * committed anything since.
 *
 * Where the slot is, is part of what is committed: if it has moved by the next
 * start, somebody else has consumed it.  So its position is chosen before, far
 * enough ahead for the commit to come before it, and WAL is written up to there.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/rmgr.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_control.h"
#include "miscadmin.h"
#include "replication/logical.h"
#include "replication/slot.h"

#include "base/bgworker.h"
#include "base/compat.h"
#include "slot/slot.h"
#include "slot/slot_tail.h"
#include "slot/wal_commits.h"

/* One row is changed: some hundred bytes, and at most its page. */
#define ROOM_FOR_COMMIT		(2 * BLCKSZ)

/* A slot that is farther behind has missed more than the stack's own. */
#define MAX_TAIL			(16 * 1024 * 1024)

/* Events, the end, and what else a manager writes in its last moments. */
#define MAX_OWN				16

static TransactionId own_xids[MAX_OWN];
static int	n_own = 0;

typedef struct Tail
{
	const char *slot_name;
	XLogRecPtr	slot_at;
	XLogRecPtr	from;			/* the tail begins, what is before is logged */
	XLogRecPtr	to;
	bool		result;
	bool		moved;
} Tail;

static void
note_own_xid(XactEvent event, void *arg pg_attribute_unused())
{
	TransactionId xid = GetTopTransactionIdIfAny();

	if (event == XACT_EVENT_PRE_COMMIT && TransactionIdIsValid(xid) && n_own < MAX_OWN)
		own_xids[n_own++] = xid;
}

void
ecm_slot_tail_begin(void)
{
	RegisterXactCallback(note_own_xid, NULL);
}

/* What was aborted is nothing to anybody, though pg_upgrade counts it, too. */
static void
look(void *arg)
{
	Tail	   *tail = arg;

	tail->result = ecm_wal_has_no_commits(tail->from, tail->to, own_xids, n_own);
}

bool
ecm_slot_tail_is_ours(XLogRecPtr from)
{
	Tail		tail = {.from = from, .to = ecm_end_of_wal()};
	EcmError	err;

	return !XLogRecPtrIsInvalid(from) && tail.to < from + MAX_TAIL &&
		ecm_worker_try(look, &tail, &err) && tail.result;
}

XLogRecPtr
ecm_slot_tail_end(void)
{
	return ecm_end_of_wal() + ROOM_FOR_COMMIT;
}

/* Records that mean nothing to anybody, up to there. */
static void
fill_wal(XLogRecPtr to)
{
	static char nothing[1024];
	XLogRecPtr	end;

	/* others write, too: the end is asked for once for each record */
	while ((end = ecm_end_of_wal()) < to)
	{
		XLogBeginInsert();
		XLogRegisterData(nothing, (int) Min(sizeof(nothing), to - end));
		(void) XLogInsert(RM_XLOG_ID, XLOG_NOOP);
	}
	/* the last of them may end beyond it, and is to be read as a whole */
	XLogFlush(ecm_end_of_wal());
}

static void
skip(void *arg)
{
	Tail	   *tail = arg;

	fill_wal(tail->to);
	look(tail);
	if (!tail->result)
		return;
	ecm_slot_acquire(tail->slot_name);
	tail->result = MyReplicationSlot->data.confirmed_flush == tail->slot_at;
	if (tail->result)
	{
		/* in memory at once: an error that comes now does not undo it */
		tail->moved = true;
		ecm_slot_advance_acquired(tail->to);
	}
	ReplicationSlotRelease();
}

bool
ecm_slot_tail_skip(const char *slot_name, XLogRecPtr from, XLogRecPtr logged, XLogRecPtr to)
{
	Tail		tail = {.slot_name = slot_name, .slot_at = from, .from = logged, .to = to};
	EcmError	err;

	if (XactLastCommitEnd > to)
		return false;
	(void) ecm_worker_try(skip, &tail, &err);
	if (MyReplicationSlot != NULL)
		ReplicationSlotRelease();
	return tail.moved;
}
