/*-------------------------------------------------------------------------
 *
 * lock_holder.c
 *	  Who has a lock, for those who wait for it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/twophase.h"
#include "storage/procarray.h"

#include "base/compat.h"
#include "base/lock_holder.h"

PGPROC *
ecm_vxid_process(VirtualTransactionId vxid)
{
	PGPROC	   *proc = ecm_vxid_is_prepared(vxid) ? NULL : ecm_vxid_proc(vxid);

	return proc != NULL && ecm_proc_lxid(proc) == vxid.localTransactionId ?
		proc : NULL;
}

void
ecm_append_holder(StringInfo text, VirtualTransactionId vxid)
{
	PGPROC	   *proc = ecm_vxid_process(vxid);
	bool		have_more;

	if (proc != NULL)
		appendStringInfo(text, "PID %d", proc->pid);
	else
		appendStringInfo(text, "prepared transaction %u",
						 ecm_vxid_is_prepared(vxid) ? vxid.localTransactionId :
						 TwoPhaseGetXidByVirtualXID(vxid, &have_more));
}

char *
ecm_lock_holders(const LOCKTAG *tag, LOCKMODE mode)
{
	int			n;
	VirtualTransactionId *vxids = GetLockConflicts(tag, mode, &n);
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < n; i++)
	{
		appendStringInfoString(&text, i > 0 ? ", " : "");
		ecm_append_holder(&text, vxids[i]);
	}
	return n > 0 ? text.data : "nobody any more";
}
