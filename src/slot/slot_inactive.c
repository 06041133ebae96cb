/*-------------------------------------------------------------------------
 *
 * slot_inactive.c
 *	  Since when each replication slot of the server has been inactive.
 *
 * Any process writes, under the lock of the shared struct.  Names are as old
 * as the last look: a slot that was dropped and made again between two looks,
 * and is inactive at both, counts as one slot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "slot/slot_inactive.h"

typedef struct InactiveSlot
{
	char		name[NAMEDATALEN];	/* "": a free entry */
	TimestampTz since;
	bool		seen;			/* used by ecm_slot_activity_note() only */
} InactiveSlot;

static InactiveSlot *inactive = NULL;	/* as many as slots */

static Size
shared_size(void)
{
	return mul_size(ecm_total_slots(), sizeof(InactiveSlot));
}

void
ecm_slot_activity_request(void)
{
	RequestAddinShmemSpace(shared_size());
}

void
ecm_slot_activity_startup(void)
{
	bool		found;

	if (ecm_total_slots() == 0)
		return;
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	inactive = ShmemInitStruct("electric_cm inactive slots", shared_size(), &found);
	if (!found)
		memset(inactive, 0, shared_size());
	LWLockRelease(AddinShmemInitLock);
}

/*
 * The slot's entry, or else a free one; NULL: all are taken by slots that were
 * inactive at the last look.
 */
static InactiveSlot *
find_entry(const char *name)
{
	InactiveSlot *free_entry = NULL;

	for (int i = 0; i < ecm_total_slots(); i++)
	{
		if (strcmp(inactive[i].name, name) == 0)
			return &inactive[i];
		if (free_entry == NULL && inactive[i].name[0] == '\0')
			free_entry = &inactive[i];
	}
	return free_entry;
}

static void
note_inactive(EcmSlotRow *row, TimestampTz now)
{
	InactiveSlot *entry = find_entry(row->name);

	if (entry != NULL && entry->name[0] == '\0')
	{
		strlcpy(entry->name, row->name, NAMEDATALEN);
		entry->since = now;
	}
	if (entry != NULL)
		entry->seen = true;
	if (row->inactive_since == 0)
		row->inactive_since = entry != NULL ? entry->since : now;
}

void
ecm_slot_activity_note(EcmSlotRow *rows, int nrows)
{
	TimestampTz now = ecm_wall_clock();

	if (inactive == NULL)
		return;
	ecm_lock(LW_EXCLUSIVE);
	for (int i = 0; i < ecm_total_slots(); i++)
		inactive[i].seen = false;
	for (int i = 0; i < nrows; i++)
		if (rows[i].active_pid == 0)
			note_inactive(&rows[i], now);

	/* free the entries of slots that are active again, or dropped */
	for (int i = 0; i < ecm_total_slots(); i++)
		if (!inactive[i].seen)
			inactive[i].name[0] = '\0';
	ecm_unlock();
}
