/*-------------------------------------------------------------------------
 *
 * wait_event.h
 *	  The wait events of our processes and functions, for pg_stat_activity.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_WAIT_EVENT_H
#define ECM_WAIT_EVENT_H

#include "postgres.h"

typedef enum EcmWaitEvent
{
	ECM_WAIT_LAUNCHER_MAIN,		/* main loops, with nothing to do */
	ECM_WAIT_MANAGER_MAIN,
	ECM_WAIT_CONSUMER_MAIN,
	ECM_WAIT_STANDBY_MAIN,
	ECM_WAIT_GATHER,			/* consumer or walsender: for more to be
								 * written or sent with */
	ECM_WAIT_STACK,				/* a function, for the stack to change */
	ECM_WAIT_SHAPE_LOG,			/* a reader, for entries, or the first rows */
	ECM_WAIT_SLOT_RELEASE,		/* for a walsender to let go of the slot */
	ECM_WAIT_STACK_PAUSE		/* a command, for the stack to make way */
} EcmWaitEvent;

/* For WaitLatch() and the like. */
extern uint32 ecm_wait_event(EcmWaitEvent event);

#endif							/* ECM_WAIT_EVENT_H */
