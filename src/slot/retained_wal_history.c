/*-------------------------------------------------------------------------
 *
 * retained_wal_history.c
 *	  The last samples of each stack's retained WAL.
 *
 * The samples are not in the stacks' entries, since these are copied as a
 * whole all the time.  The same lock protects them.  There is one ring per
 * entry.  It belongs to the database whose OID it has, and is emptied when the
 * entry gets another database.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "slot/retained_wal_history.h"

typedef struct Ring
{
	Oid			dboid;
	uint64		n;				/* entries so far: the i-th is at i % size */
} Ring;

static Ring *rings = NULL;		/* one per stack, the entries after them */
static EcmHistoryEntry *entries;
static int	size;				/* entries per ring: the setting as of the
								 * server's start */

static Size
shared_size(void)
{
	return add_size(MAXALIGN(mul_size(ecm_max_managers, sizeof(Ring))),
					mul_size(mul_size(ecm_max_managers,
									  ecm_retained_wal_history_size),
							 sizeof(EcmHistoryEntry)));
}

void
ecm_history_request(void)
{
	RequestAddinShmemSpace(shared_size());
}

void
ecm_history_startup(void)
{
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	rings = ShmemInitStruct("electric_cm retained WAL", shared_size(), &found);
	size = ecm_retained_wal_history_size;
	entries = (EcmHistoryEntry *) ((char *) rings +
								   MAXALIGN(mul_size(ecm_max_managers, sizeof(Ring))));

	if (!found)
		memset(rings, 0, MAXALIGN(mul_size(ecm_max_managers, sizeof(Ring))));
	LWLockRelease(AddinShmemInitLock);
}

static EcmHistoryEntry *
entry_at(int index, uint64 i)
{
	return &entries[(Size) index * size + i % size];
}

static uint64
first_of(const Ring *ring)
{
	return ring->n > (uint64) size ? ring->n - size : 0;
}

/* Is the sample due, or worth being kept before it is? */
static bool
is_wanted(const EcmHistoryEntry *last, const EcmHistoryEntry *this,
		  int interval_ms)
{
	/*
	 * samples are due every interval_ms; a tenth is allowed for, since timers
	 * are not precise
	 */
	EcmTime		due = last->taken_at + interval_ms * INT64CONST(1000) * 9 / 10;

	return this->taken_at >= due ||
		strcmp(this->wal_status, last->wal_status) != 0;
}

void
ecm_history_add(int index, const EcmWalSample *sample, int interval_ms)
{
	Ring	   *ring = &rings[index];
	EcmHistoryEntry entry = {0};
	bool		known = sample->slot_exists && sample->sizes_known;

	entry.sampled_at = sample->sampled_at;
	entry.taken_at = sample->taken_at;
	entry.current_lsn = sample->current_lsn;
	entry.retained_wal_bytes = known ? sample->retained_wal_bytes : -1;
	entry.flush_lag_bytes = known ? sample->flush_lag_bytes : -1;
	if (sample->slot_exists)
		strlcpy(entry.wal_status, sample->wal_status, sizeof(entry.wal_status));

	ecm_lock(LW_EXCLUSIVE);
	if (ring->dboid != ecm_stack_at(index)->dboid)
	{
		ring->dboid = ecm_stack_at(index)->dboid;
		ring->n = 0;
	}
	if (ring->n == 0 || is_wanted(entry_at(index, ring->n - 1), &entry, interval_ms))
		*entry_at(index, ring->n++) = entry;
	ecm_unlock();
}

int
ecm_history_copy(int index, Oid dboid, EcmHistoryEntry **copy)
{
	Ring	   *ring = &rings[index];
	int			n = 0;

	*copy = palloc(sizeof(EcmHistoryEntry) * size);
	ecm_lock(LW_SHARED);
	if (ring->dboid == dboid)
		for (uint64 i = first_of(ring); i < ring->n; i++)
			(*copy)[n++] = *entry_at(index, i);
	ecm_unlock();
	return n;
}

int64
ecm_history_age_of(int index, Oid dboid, XLogRecPtr lsn,
				   XLogRecPtr current_lsn, EcmTime now)
{
	Ring	   *ring = &rings[index];
	XLogRecPtr	newer_lsn = current_lsn;
	EcmTime		newer_at = now;
	int64		age = -1;

	if (lsn >= current_lsn)
		return 0;
	ecm_lock(LW_SHARED);
	for (uint64 i = ring->n; ring->dboid == dboid && i > first_of(ring); i--)
	{
		EcmHistoryEntry *entry = entry_at(index, i - 1);

		age = now - entry->taken_at;
		if (entry->current_lsn <= lsn)
		{
			age = (now - newer_at) +
				(int64) ((double) (newer_lsn - lsn) /
						 (double) (newer_lsn - entry->current_lsn) *
						 (double) (newer_at - entry->taken_at));
			break;
		}
		newer_lsn = entry->current_lsn;
		newer_at = entry->taken_at;
	}
	ecm_unlock();
	return Max(age, -1);
}
