/*-------------------------------------------------------------------------
 *
 * slot_moved.c
 *	  A slot that a command moves past what only the stack has written.
 *
 * A slot that begins beyond the end of the logs counts as somebody else's, unless
 * there is a record that says otherwise.  While the command runs nobody may write
 * in the stack's database, and the command itself is in another one.  So the record
 * is in the WAL, of a kind that neither a standby nor decoding looks at, and that
 * can't be written with SQL; the slot is moved to the very position where it begins.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/rmgr.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_control.h"
#include "miscadmin.h"

#include "base/compat.h"
#include "slot/slot.h"
#include "slot/slot_moved.h"
#include "slot/wal_scan.h"

/* Told from other records of that kind by its length, too: see server_runs.c. */
#define MOVED_TEXT		"electric_cm moves its slot to here"

typedef struct MovedMark
{
	char		text[sizeof(MOVED_TEXT)];
	Oid			database;
	XLogRecPtr	from;
} MovedMark;

typedef struct Look
{
	XLogRecPtr	at;
	XLogRecPtr	from;			/* result */
} Look;

XLogRecPtr
ecm_slot_move_mark(Oid dboid, XLogRecPtr from)
{
	MovedMark	moved;
	XLogRecPtr	end;

	memset(&moved, 0, sizeof(moved));
	strlcpy(moved.text, MOVED_TEXT, sizeof(moved.text));
	moved.database = dboid;
	moved.from = from;
	XLogBeginInsert();
	XLogRegisterData((char *) &moved, sizeof(moved));
	end = XLogInsert(RM_XLOG_ID, XLOG_NOOP);
	XLogFlush(end);
	return ProcLastRecPtr;
}

static bool
look_at_record(XLogReaderState *reader, void *arg)
{
	Look	   *look = arg;
	MovedMark	moved;

	if (reader->ReadRecPtr != look->at || XLogRecGetRmid(reader) != RM_XLOG_ID ||
		(XLogRecGetInfo(reader) & ~XLR_INFO_MASK) != XLOG_NOOP ||
		XLogRecGetDataLen(reader) != sizeof(moved))
		return false;
	memcpy(&moved, XLogRecGetData(reader), sizeof(moved));
	if (strcmp(moved.text, MOVED_TEXT) == 0 && moved.database == MyDatabaseId)
		look->from = moved.from;
	return false;
}

XLogRecPtr
ecm_slot_moved_from(XLogRecPtr to)
{
	Look		look = {.at = to};

	/* a slot may begin where nothing has been written yet, or not any more */
	if (to < ecm_end_of_wal() && !ecm_slot_wal_is_gone(to))
	{
		XLogFlush(ecm_end_of_wal());
		(void) ecm_wal_scan(to, ecm_end_of_wal(), look_at_record, &look);
	}
	return look.from;
}
