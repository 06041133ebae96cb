/*-------------------------------------------------------------------------
 *
 * standbys.c
 *	  What the server's standbys have of its WAL.
 *
 * Which of them may be promoted is said by synchronized_standby_slots.  Without that,
 * it is taken for granted of all that are connected.  A receiver that has never said
 * what it has flushed, as a backup's, is none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "replication/slot.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/spin.h"

#include "base/compat.h"
#include "slot/standbys.h"

bool
ecm_standbys_are_named(void)
{
	return ECM_SYNCHRONIZED_STANDBY_SLOTS != NULL && ECM_SYNCHRONIZED_STANDBY_SLOTS[0] != '\0';
}

bool
ecm_standbys_have(XLogRecPtr lsn)
{
	if (ecm_standbys_are_named())
		return ecm_standby_slots_have(lsn);
	for (int i = 0; i < max_wal_senders; i++)
	{
		WalSnd	   *sender = &WalSndCtl->walsnds[i];
		bool		lacks;

		/* the fetch of one that comes or goes right now may be missed */
		if (sender->pid == 0)
			continue;
		SpinLockAcquire(&sender->mutex);
		lacks = sender->pid != 0 && ecm_sends_to_standby(sender) &&
			sender->state >= WALSNDSTATE_CATCHUP &&
			!XLogRecPtrIsInvalid(sender->flush) && sender->flush < lsn;
		SpinLockRelease(&sender->mutex);
		if (lacks)
			return false;
	}
	return true;
}
