/*-------------------------------------------------------------------------
 *
 * slot.c
 *	  Samples of the WAL that a replication slot retains.
 *
 * The figures are those of pg_replication_slots, computed the same way, but
 * for one slot, outside SQL.  The slot's shared struct may change as soon as
 * its spinlock is released, so everything is computed from one copy.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

#include "access/timeline.h"
#include "access/transam.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogrecovery.h"
#include "miscadmin.h"
#include "replication/logical.h"
#include "replication/slot.h"
#include "replication/walreceiver.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/bgworker.h"
#include "base/compat.h"
#include "base/settings.h"
#include "slot/slot.h"

/*
 * Copies the slot of that name.  The control lock is held exclusively only
 * for moments (slot creation does its I/O under other locks), so this doesn't
 * block.
 */
static bool
copy_slot(const char *name, ReplicationSlot *copy)
{
	bool		found = false;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < ecm_total_slots() && !found; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];

		if (slot->in_use && strcmp(NameStr(slot->data.name), name) == 0)
		{
			SpinLockAcquire(&slot->mutex);
			*copy = *slot;
			SpinLockRelease(&slot->mutex);
			found = true;
		}
	}
	LWLockRelease(ReplicationSlotControlLock);

	return found;
}

/* A constant; NULL: the slot is valid. */
static const char *
invalidation(const ReplicationSlot *slot)
{
	return ecm_slot_is_invalidated(slot) ? ecm_slot_invalidation_cause(slot) : NULL;
}

const char *
ecm_slot_invalidation_text(const char *invalidation)
{
	if (strcmp(invalidation, "wal_removed") == 0)
		return "The WAL that it needed has been removed.";
	if (strcmp(invalidation, "idle_timeout") == 0)
		return "Nobody has used it for longer than idle_replication_slot_timeout.";
	if (strcmp(invalidation, "rows_removed") == 0)
		return "Rows of the catalogs that it needed have been removed.";
	if (strcmp(invalidation, "wal_level_insufficient") == 0)
		return "wal_level was too low for it.";
	return psprintf("Its invalidation_reason is \"%s\".", invalidation);
}

/* The availability of the WAL that a slot needs, as in pg_get_replication_slots(). */
static WALAvailability
wal_availability(ReplicationSlot *slot)
{
	WALAvailability result;

	if (ecm_slot_is_invalidated(slot))
		return WALAVAIL_REMOVED;

	result = GetWALAvailability(slot->data.restart_lsn);

	/*
	 * The walsender may have advanced the slot since the copy was taken, and
	 * the file may have been removed therefore.  As long as a walsender uses
	 * the slot, it is not lost.
	 */
	if (result == WALAVAIL_REMOVED && ecm_slot_active_pid(slot) != 0)
		result = WALAVAIL_UNRESERVED;

	return result;
}

static const char *
wal_status_name(WALAvailability availability)
{
	switch (availability)
	{
		case WALAVAIL_INVALID_LSN:
			return "";
		case WALAVAIL_RESERVED:
			return "reserved";
		case WALAVAIL_EXTENDED:
			return "extended";
		case WALAVAIL_UNRESERVED:
			return "unreserved";
		case WALAVAIL_REMOVED:
			return "lost";
	}
	return "";
}

/*
 * How much more WAL can be written before the slot is in danger of being
 * lost, 0 if it is already; -1 if the server sets no limit, or if the slot
 * holds nothing yet.
 */
static int64
safe_wal_size(XLogRecPtr restart_lsn, XLogRecPtr current_lsn)
{
	XLogSegNo	restart_seg;
	uint64		kept_segs;
	XLogRecPtr	fail_lsn;

	if (max_slot_wal_keep_size_mb < 0 || XLogRecPtrIsInvalid(restart_lsn))
		return -1;

	XLByteToSeg(restart_lsn, restart_seg, wal_segment_size);
	kept_segs = Max(XLogMBVarToSegs(max_slot_wal_keep_size_mb, wal_segment_size),
					XLogMBVarToSegs(wal_keep_size_mb, wal_segment_size));
	XLogSegNoOffsetToRecPtr(restart_seg + kept_segs + 1, 0, wal_segment_size,
							fail_lsn);
	if (fail_lsn < restart_lsn)
		fail_lsn = PG_UINT64_MAX;	/* the limit is beyond the end of the
									 * range */

	return fail_lsn > current_lsn ? (int64) (fail_lsn - current_lsn) : 0;
}

/* Bytes from one position to a later one; 0 if either is unknown. */
static int64
wal_distance(XLogRecPtr from, XLogRecPtr to)
{
	if (XLogRecPtrIsInvalid(from) || from >= to)
		return 0;
	return (int64) (to - from);
}

/* Like age(xid), but without a transaction; -1: no normal xid. */
static int32
age_of_xid(TransactionId xid)
{
	int32		age;

	if (!TransactionIdIsNormal(xid))
		return -1;
	age = (int32) (ReadNextTransactionId() - xid);
	return Max(age, 0);
}

/*
 * Bytes that an unprivileged user can still write to the file system of a
 * directory, which may be a symbolic link; -1: unknown.
 */
static int64
free_space(const char *path)
{
	struct statvfs fs;

	if (statvfs(path, &fs) != 0)
		return -1;
	return (int64) fs.f_bavail * (int64) fs.f_frsize;
}

XLogRecPtr
ecm_current_lsn(void)
{
	if (!RecoveryInProgress())
		return GetXLogWriteRecPtr();
	return Max(GetWalRcvFlushRecPtr(NULL, NULL), GetXLogReplayRecPtr(NULL));
}

int64
ecm_max_slot_wal_keep_bytes(void)
{
	return max_slot_wal_keep_size_mb < 0 ? -1 :
		(int64) max_slot_wal_keep_size_mb * 1024 * 1024;
}

int
ecm_idle_slot_timeout_s(void)
{
	return ecm_idle_replication_slot_timeout_secs;
}

static void
sample_slot(ReplicationSlot *slot, EcmWalSample *sample)
{
	WALAvailability availability = wal_availability(slot);

	sample->slot_exists = true;
	sample->active = ecm_slot_active_pid(slot) != 0;
	sample->active_pid = ecm_slot_active_pid(slot);
	sample->catalog_xmin = slot->data.catalog_xmin;
	sample->catalog_xmin_age = age_of_xid(slot->data.catalog_xmin);
	strlcpy(sample->wal_status, wal_status_name(availability),
			sizeof(sample->wal_status));
	if (availability == WALAVAIL_REMOVED)
		return;

	sample->sizes_known = true;
	sample->restart_lsn = slot->data.restart_lsn;
	sample->confirmed_flush_lsn = slot->data.confirmed_flush;
	sample->retained_wal_bytes = wal_distance(slot->data.restart_lsn,
											  sample->current_lsn);
	sample->flush_lag_bytes = wal_distance(slot->data.confirmed_flush,
										   sample->current_lsn);
	sample->safe_wal_size = safe_wal_size(slot->data.restart_lsn,
										  sample->current_lsn);
}

bool
ecm_slot_sample(const char *slot_name, EcmWalSample *sample)
{
	ReplicationSlot slot;
	bool		exists = copy_slot(slot_name, &slot);

	if (!exists)
	{
		memset(sample, 0, sizeof(*sample));
		sample->flush_lag_us = -1;
		sample->safe_wal_size = -1;
		sample->catalog_xmin_age = -1;
	}

	/* read after the copy, lest the slot's positions be beyond the end of WAL */
	sample->current_lsn = ecm_current_lsn();
	sample->sampled_at = ecm_wall_clock();
	sample->taken_at = ecm_now();
	sample->wal_free_bytes = free_space(XLOGDIR);
	sample->data_free_bytes = free_space(DataDir);
	if (exists)
		sample_slot(&slot, sample);
	return exists;
}

int
ecm_slots_read(EcmSlotRow *rows)
{
	ReplicationSlot *copies = palloc(sizeof(ReplicationSlot) * ecm_total_slots());
	XLogRecPtr	current_lsn;
	int			n = 0;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < ecm_total_slots(); i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];

		if (!slot->in_use)
			continue;
		SpinLockAcquire(&slot->mutex);
		copies[n++] = *slot;
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(ReplicationSlotControlLock);

	current_lsn = ecm_current_lsn();
	for (int i = 0; i < n; i++)
	{
		ReplicationSlot *slot = &copies[i];
		EcmSlotRow *row = &rows[i];
		WALAvailability availability = wal_availability(slot);
		XLogRecPtr	restart_lsn = availability == WALAVAIL_REMOVED ?
		InvalidXLogRecPtr : slot->data.restart_lsn;

		strlcpy(row->name, NameStr(slot->data.name), NAMEDATALEN);
		strlcpy(row->plugin, NameStr(slot->data.plugin), NAMEDATALEN);
		row->database = slot->data.database;
		row->temporary = slot->data.persistency == RS_TEMPORARY;
		row->active_pid = ecm_slot_active_pid(slot);
		row->wal_status = wal_status_name(availability);
		row->restart_lsn = restart_lsn;
		row->confirmed_flush_lsn = slot->data.confirmed_flush;
		row->retained_wal_bytes = wal_distance(restart_lsn, current_lsn);
		row->safe_wal_size = safe_wal_size(restart_lsn, current_lsn);
		row->xmin_age = age_of_xid(slot->data.xmin);
		row->catalog_xmin_age = age_of_xid(slot->data.catalog_xmin);
		row->inactive_since = row->active_pid != 0 ? 0 :
			ecm_slot_inactive_since(slot);
		row->invalidation = invalidation(slot);
	}
	pfree(copies);
	return n;
}

bool
ecm_slot_lookup(const char *name, EcmSlotFacts *facts)
{
	ReplicationSlot slot;

	memset(facts, 0, sizeof(*facts));
	if (!copy_slot(name, &slot))
		return false;

	facts->exists = true;
	facts->logical = SlotIsLogical(&slot);
	facts->temporary = slot.data.persistency == RS_TEMPORARY;
	facts->two_phase = slot.data.two_phase;
	facts->failover = ecm_slot_failover(&slot);
	facts->synced = ecm_slot_synced(&slot);
	facts->invalidation = invalidation(&slot);
	facts->database = slot.data.database;
	strlcpy(facts->plugin, NameStr(slot.data.plugin), sizeof(facts->plugin));
	facts->active_pid = ecm_slot_active_pid(&slot);
	facts->restart_lsn = slot.data.restart_lsn;
	facts->confirmed_flush_lsn = slot.data.confirmed_flush;
	facts->moves_at = slot.candidate_restart_valid;

	return true;
}

bool
ecm_slot_is_of_our_kind(const EcmSlotFacts *facts, Oid dboid)
{
	return facts->exists && facts->logical && facts->database == dboid &&
		strcmp(facts->plugin, "pgoutput") == 0;
}

bool
ecm_slot_is_for_failover(void)
{
	return ECM_HAS_FAILOVER_SLOTS && ecm_failover && !ecm_slot_temporary;
}

bool
ecm_database_has_slot(Oid dboid)
{
	bool		found = false;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < ecm_total_slots() && !found; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];

		/* these members never change while in_use, so no spinlock is needed */
		found = slot->in_use && slot->data.database == dboid &&
			strcmp(NameStr(slot->data.plugin), "pgoutput") == 0;
	}
	LWLockRelease(ReplicationSlotControlLock);
	return found;
}

static void
drop_slot(void *arg)
{
	ReplicationSlotDrop(arg, true);
}

void
ecm_slot_advance_acquired(XLogRecPtr lsn)
{
	LogicalConfirmReceivedLocation(lsn);
	ReplicationSlotMarkDirty();
	ReplicationSlotSave();
}

/* The arguments of ecm_slot_advance(). */
typedef struct Advance
{
	const char *name;
	XLogRecPtr	lsn;
} Advance;

static void
advance_slot(void *arg)
{
	Advance    *advance = arg;

	ecm_slot_acquire(advance->name);
	ecm_slot_advance_acquired(advance->lsn);
	ReplicationSlotRelease();
}

/* An aborted transaction does not release the slot. */
static bool
try_with_slot(void (*fn) (void *arg), void *arg, EcmError *err)
{
	if (ecm_worker_try(fn, arg, err))
		return true;
	if (MyReplicationSlot != NULL)
		ReplicationSlotRelease();
	return false;
}

bool
ecm_slot_drop(const char *name, EcmError *err)
{
	return try_with_slot(drop_slot, unconstify(char *, name), err);
}

bool
ecm_slot_advance(const char *name, XLogRecPtr lsn, EcmError *err)
{
	Advance		advance = {name, lsn};

	return try_with_slot(advance_slot, &advance, err);
}

bool
ecm_slot_wal_is_gone(XLogRecPtr lsn)
{
	XLogSegNo	segment;
	ListCell   *lc;

	XLByteToSeg(lsn, segment, wal_segment_size);
	foreach(lc, readTimeLineHistory(GetWALInsertionTimeLine()))
	{
		char		path[MAXPGPATH];
		struct stat st;

		XLogFilePath(path, ((TimeLineHistoryEntry *) lfirst(lc))->tli, segment,
					 wal_segment_size);
		if (stat(path, &st) == 0 || errno != ENOENT)
			return false;
	}
	return true;
}

XLogRecPtr
ecm_end_of_wal(void)
{
	XLogRecPtr	lsn = GetXLogInsertRecPtr();

	if (XLogSegmentOffset(lsn, wal_segment_size) == SizeOfXLogLongPHD)
		lsn -= SizeOfXLogLongPHD;
	else if (lsn % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		lsn -= SizeOfXLogShortPHD;
	return lsn;
}
