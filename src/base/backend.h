/*-------------------------------------------------------------------------
 *
 * backend.h
 *	  What another process of this server is doing, as far as can be seen
 *	  from here without asking it: for the manager, about its sessions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_BACKEND_H
#define ECM_BACKEND_H

#include "postgres.h"

/* What one look at a process has found. */
typedef struct EcmBackendLook
{
	uint32		wait_event;		/* wait_event_info; 0: it waits for nothing */
	bool		in_queue;		/* it is in the wait queue of a heavyweight
								 * lock */
	int64		cpu_us;			/* CPU time so far; -1: unknown */
} EcmBackendLook;

/*
 * Looks at a process by its PID.  False: there is no such process in this
 * database (any more); *look says then that nothing is known.
 */
extern bool ecm_backend_look(int pid, EcmBackendLook *look);

/* Does the process wait for its client's next command? */
extern bool ecm_backend_waits_for_command(const EcmBackendLook *look);

/*
 * Does the process wait for a heavyweight lock of somebody else's?  Such a wait
 * can last as long as that other transaction, so it is no sign of a fault.
 */
extern bool ecm_backend_waits_for_lock(const EcmBackendLook *look);

/*
 * Has the process used no CPU time since the earlier look, although it waits
 * neither for a lock nor for anything else that can legitimately take long?
 * Then it may be stopped, or hang in the kernel (on a file system that does
 * not answer, say).  False if the system does not tell the CPU time.
 */
extern bool ecm_backend_stands_still(const EcmBackendLook *before,
									 const EcmBackendLook *now);

/*
 * Has the process been at work since the earlier look: has it used the CPU,
 * and does it wait for neither its client nor another process?  False if the
 * system does not tell the CPU time.
 */
extern bool ecm_backend_works(const EcmBackendLook *before,
							  const EcmBackendLook *now);

#endif							/* ECM_BACKEND_H */
