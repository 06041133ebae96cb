/*-------------------------------------------------------------------------
 *
 * worker_budget.c
 *	  How many background workers are free, and how many a stack needs.
 *
 * A manager that gets no workers for its consumers is of no use, and takes one that
 * another stack could run with.  So the launcher counts before it starts one.
 *
 * The server does not tell how many are free.  But every process has an entry in
 * ProcGlobal, and the server tells for a PID whether that is a background worker, and
 * of which type.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/proc.h"

#include "base/compat.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "launcher/worker_budget.h"

int
ecm_workers_needed(const EcmEntry *entry)
{
	return 1 + (entry->manager.shape_workers > 0 ?
				entry->manager.shape_workers : ecm_shape_workers);
}

/*
 * Free workers, when our own stacks are to have 'reserved' of them: consumers that a
 * running manager has not started yet count as started.
 */
static int
count_free(int reserved)
{
	int			others = 1;		/* the launcher */
	int			ours = 0;

	for (uint32 i = 0; i < ProcGlobal->allProcCount; i++)
	{
		int			pid = ProcGlobal->allProcs[i].pid;
		const char *type;

		if (pid == 0 || pid == MyProcPid ||
			(type = GetBackgroundWorkerTypeByPid(pid)) == NULL)
			continue;
		if (strncmp(type, "electric_cm ", strlen("electric_cm ")) == 0)
			ours++;
		else
			others++;
	}
	return max_worker_processes - others - Max(ours, reserved);
}

int
ecm_workers_free(int *looking)
{
	int			reserved = 0;

	*looking = 0;
	for (int i = 0; i < ecm_stack_count(); i++)
	{
		EcmEntry	entry;

		ecm_entry_read(i, &entry);
		if (!entry.in_use ||
			(!ecm_supervised(i)->running && entry.manager.pid == 0))
			continue;
		reserved += entry.lifecycle.look_only ? 1 : ecm_workers_needed(&entry);
		*looking += entry.lifecycle.look_only ? 1 : 0;
	}
	return count_free(reserved);
}
