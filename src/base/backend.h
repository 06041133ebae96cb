/*-------------------------------------------------------------------------
 *
 * backend.h
 *	  What another process of this server is doing, as far as can be seen
 *	  from here without asking it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_BACKEND_H
#define ECM_BACKEND_H

#include "postgres.h"

typedef struct EcmBackendLook
{
	uint32		wait_event;		/* wait_event_info; 0: it waits for nothing */
	bool		in_queue;		/* for a lock that it has not been given yet */
	int64		cpu_us;			/* CPU time so far; -1: unknown */
} EcmBackendLook;

/* False: there is no such process in this database (any more). */
extern bool ecm_backend_look(int pid, EcmBackendLook *look);

/* It waits for its client's next command. */
extern bool ecm_backend_waits_for_command(const EcmBackendLook *look);

/* It waits for somebody's lock, which may take as long as it takes. */
extern bool ecm_backend_waits_for_lock(const EcmBackendLook *look);

/*
 * Has it not moved since the earlier look, though it waits for nobody that we
 * know of?  Then it may be stopped, or hang in the kernel.
 */
extern bool ecm_backend_stands_still(const EcmBackendLook *before,
									 const EcmBackendLook *now);

/*
 * Has it been at work since the earlier look?  Then it waits for neither client
 * nor anybody else, and has used the CPU.
 */
extern bool ecm_backend_works(const EcmBackendLook *before,
							  const EcmBackendLook *now);

#endif							/* ECM_BACKEND_H */
