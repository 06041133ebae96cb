/*-------------------------------------------------------------------------
 *
 * retained_wal_blame.c
 *	  Who else needs the WAL that a replication slot retains?
 *
 * The server removes whole segments of WAL, and only those that nobody needs
 * any more: no slot, not wal_keep_size, and not the archiver, which may not
 * have copied them yet.  Among the others, the one that needs the oldest WAL
 * decides how much could be freed by dropping our slot.  (The last checkpoint
 * needs WAL, too, but is followed by another one when a slot has been
 * dropped.)
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "replication/slot.h"
#include "storage/fd.h"

#include "base/compat.h"
#include "base/text.h"
#include "slot/retained_wal_blame.h"

#define STATUS_DIR	XLOGDIR "/archive_status"
#define READY		".ready"

/* The one that needs the oldest WAL, of those considered so far. */
typedef struct Holder
{
	XLogRecPtr	lsn;			/* invalid: none found yet */
	char		name[ECM_TEXT_LEN];
} Holder;

/* Something needs the WAL from 'lsn' on. */
static void
consider(Holder *first, XLogRecPtr lsn, const char *name)
{
	if (XLogRecPtrIsInvalid(lsn) ||
		(!XLogRecPtrIsInvalid(first->lsn) && first->lsn <= lsn))
		return;
	first->lsn = lsn;
	strlcpy(first->name, name, sizeof(first->name));
}

static XLogRecPtr
back_from(XLogRecPtr lsn, int64 bytes)
{
	return lsn > (uint64) bytes ? lsn - bytes : 1;
}

/* The oldest segment that is complete, but not archived; invalid: none. */
static XLogRecPtr
oldest_to_archive(void)
{
	DIR		   *dir;
	struct dirent *entry;
	XLogSegNo	oldest = 0;
	XLogRecPtr	lsn;

	if (!XLogArchivingActive())
		return InvalidXLogRecPtr;
	dir = AllocateDir(STATUS_DIR);
	while ((entry = ReadDirExtended(dir, STATUS_DIR, LOG)) != NULL)
	{
		char		name[XLOG_FNAME_LEN + 1];
		TimeLineID	timeline;
		XLogSegNo	segment;

		if (strlen(entry->d_name) != XLOG_FNAME_LEN + strlen(READY) ||
			strcmp(entry->d_name + XLOG_FNAME_LEN, READY) != 0)
			continue;
		strlcpy(name, entry->d_name, sizeof(name));
		if (!IsXLogFileName(name))
			continue;
		XLogFromFileName(name, &timeline, &segment, wal_segment_size);
		if (oldest == 0 || segment < oldest)
			oldest = segment;
	}
	if (dir != NULL)
		FreeDir(dir);
	if (oldest == 0)
		return InvalidXLogRecPtr;
	XLogSegNoOffsetToRecPtr(oldest, 0, wal_segment_size, lsn);
	return lsn;
}

static void
consider_slots(Holder *first, const char *slot_name, XLogRecPtr current_lsn,
			   bool (*ignore) (const EcmSlotRow *row, void *arg), void *arg)
{
	EcmSlotRow *rows = palloc(sizeof(EcmSlotRow) * Max(ecm_total_slots(), 1));
	int64		keep = ecm_max_slot_wal_keep_bytes();
	int			n = ecm_slots_read(rows);

	for (int i = 0; i < n; i++)
	{
		XLogRecPtr	lsn = rows[i].restart_lsn;

		if (XLogRecPtrIsInvalid(lsn) || strcmp(rows[i].name, slot_name) == 0 ||
			ignore(&rows[i], arg))
			continue;

		/*
		 * of WAL beyond max_slot_wal_keep_size, the next checkpoint deprives
		 * the slot
		 */
		if (keep >= 0)
			lsn = Max(lsn, back_from(current_lsn, keep));
		consider(first, lsn, psprintf("replication slot \"%s\"", rows[i].name));
	}
	pfree(rows);
}

void
ecm_retained_wal_blame(const char *slot_name, XLogRecPtr restart_lsn,
					   XLogRecPtr current_lsn,
					   bool (*ignore) (const EcmSlotRow *row, void *arg), void *arg,
					   EcmWalBlame *blame)
{
	Holder		first = {0};
	XLogSegNo	ours;
	XLogSegNo	theirs;

	blame->frees = -1;
	blame->others[0] = '\0';
	if (XLogRecPtrIsInvalid(restart_lsn))
		return;
	consider_slots(&first, slot_name, current_lsn, ignore, arg);
	if (wal_keep_size_mb > 0)
		consider(&first, back_from(current_lsn, wal_keep_size_mb * INT64CONST(1048576)),
				 psprintf("wal_keep_size (%s)",
						  ecm_size_text(wal_keep_size_mb * INT64CONST(1048576))));
	consider(&first, oldest_to_archive(), "the archiver, which has not archived it yet,");

	/* whole segments are freed, and never the one that is being written */
	XLByteToSeg(restart_lsn, ours, wal_segment_size);
	XLByteToSeg(XLogRecPtrIsInvalid(first.lsn) ? current_lsn :
				Min(first.lsn, current_lsn), theirs, wal_segment_size);
	blame->frees = theirs > ours ? (int64) (theirs - ours) * wal_segment_size : 0;
	if (XLogRecPtrIsInvalid(first.lsn) || first.lsn >= current_lsn)
		return;
	snprintf(blame->others, sizeof(blame->others), "%s needs the last %s of WAL.",
			 first.name, ecm_size_text((int64) (current_lsn - first.lsn)));
	blame->others[0] = pg_toupper((unsigned char) blame->others[0]);
}
