/*-------------------------------------------------------------------------
 *
 * worker_budget.c
 *	  How many background workers are free.
 *
 * The server doesn't tell.  But every process has an entry in shared memory, and
 * the server does tell of a PID whether it is a background worker, and which.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/proc.h"

#include "base/compat.h"
#include "launcher/worker_budget.h"

int
ecm_free_workers(int reserved)
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
