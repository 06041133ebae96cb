/*-------------------------------------------------------------------------
 *
 * backend.c
 *	  What another process of this server is doing.
 *
 * The manager's connections lead back to this server, so each has a backend or
 * walsender of this server at its other end.  When such a connection is silent,
 * that process may be at work, may wait for a lock, may be stopped or hang in
 * the kernel, or something between the two (a proxy, a firewall) may have lost
 * the answer.  The manager treats each of these differently: it waits for a
 * process that works, and opens a connection anew whose answer is lost.  It
 * tells them apart by comparing two looks at the process: the wait event in
 * shared memory, and the CPU time, which the kernel knows.  Nothing here waits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>
#include <unistd.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/proc.h"
#include "storage/procarray.h"

#include "base/backend.h"
#include "base/compat.h"

/* the upper byte of a wait event is its class */
#define WAIT_CLASS(wait_event)	((wait_event) & 0xFF000000U)

/*
 * CPU time (us) that a process must have used between two looks to count as
 * working.  Less than that is spent by one that only wakes up and finds nothing
 * to do.
 */
#define MIN_WORK_US		2000

/*
 * CPU time of a process so far, in microseconds; -1: the system does not tell.
 */
static int64
cpu_time(int pid)
{
#if defined(_POSIX_CPUTIME) && _POSIX_CPUTIME != -1
	clockid_t	clock;
	struct timespec ts;

	if (clock_getcpuclockid(pid, &clock) == 0 && clock_gettime(clock, &ts) == 0)
		return (int64) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
#endif
	return -1;
}

bool
ecm_backend_look(int pid, EcmBackendLook *look)
{
	PGPROC	   *proc = pid > 0 ? BackendPidGetProc(pid) : NULL;

	look->wait_event = 0;
	look->in_queue = false;
	look->cpu_us = -1;
	if (proc == NULL || proc->databaseId != MyDatabaseId)
		return false;
	look->wait_event = *(volatile uint32 *) &proc->wait_event_info;
	look->in_queue = *(LOCK *volatile *) &proc->waitLock != NULL;
	look->cpu_us = cpu_time(pid);
	return true;
}

bool
ecm_backend_waits_for_command(const EcmBackendLook *look)
{
	return look->wait_event == WAIT_EVENT_CLIENT_READ;
}

/*
 * The wait event alone does not suffice: a process that has been granted its
 * lock still shows it until the process has run again, and one that is stopped
 * (SIGSTOP) does not.  Whoever releases the lock takes the process out of the
 * lock's queue at that moment.
 */
bool
ecm_backend_waits_for_lock(const EcmBackendLook *look)
{
	return WAIT_CLASS(look->wait_event) == PG_WAIT_LOCK && look->in_queue;
}

bool
ecm_backend_stands_still(const EcmBackendLook *before, const EcmBackendLook *now)
{
	switch (WAIT_CLASS(now->wait_event))
	{
		case PG_WAIT_ACTIVITY:
		case PG_WAIT_CLIENT:
		case PG_WAIT_EXTENSION:
		case PG_WAIT_IPC:
		case PG_WAIT_TIMEOUT:
			return false;
		default:
			return !ecm_backend_waits_for_lock(now) &&
				now->cpu_us >= 0 && now->cpu_us == before->cpu_us;
	}
}

bool
ecm_backend_works(const EcmBackendLook *before, const EcmBackendLook *now)
{
	switch (WAIT_CLASS(now->wait_event))
	{
		case PG_WAIT_ACTIVITY:
		case PG_WAIT_CLIENT:
		case PG_WAIT_EXTENSION:
		case PG_WAIT_IPC:
		case PG_WAIT_LOCK:
			return false;
		default:
			return before->cpu_us >= 0 && now->cpu_us >= 0 &&
				now->cpu_us - before->cpu_us >= MIN_WORK_US;
	}
}
