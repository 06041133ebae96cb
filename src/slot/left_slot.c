/*-------------------------------------------------------------------------
 *
 * left_slot.c
 *	  Slots of ours that are to be dropped as soon as nobody uses them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"

#include "base/event.h"
#include "base/shmem.h"
#include "slot/left_slot.h"

void
ecm_leave_slot(Oid dboid, const char *slot_name)
{
	EcmLeftSlot *item = NULL;

	ecm_lock(LW_EXCLUSIVE);
	for (int i = 0; i < ecm_shared->nleft_slots && item == NULL; i++)
		if (ecm_shared->left_slots[i].dboid == dboid &&
			strcmp(ecm_shared->left_slots[i].slot_name, slot_name) == 0)
			item = &ecm_shared->left_slots[i];
	if (item == NULL && ecm_shared->nleft_slots < ECM_MAX_LEFT_SLOTS)
		item = &ecm_shared->left_slots[ecm_shared->nleft_slots++];
	if (item != NULL)
	{
		item->dboid = dboid;
		strlcpy(item->slot_name, slot_name, NAMEDATALEN);
		item->lsn = GetXLogInsertRecPtr();
		item->at = ecm_now();
		item->reported = false;
	}
	ecm_unlock();

	if (item == NULL)
		ecm_event_in(dboid, NULL, ECM_EVENT_WARNING,
					 "Drop it with pg_drop_replication_slot().",
					 "replication slot \"%s\" stays behind: too many are waiting to be dropped",
					 slot_name);
	ecm_launcher_wake();
}
