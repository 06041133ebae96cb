/*-------------------------------------------------------------------------
 *
 * wait_event.c
 *	  The wait events of our processes and functions, for pg_stat_activity.
 *
 * Their type is always Extension.  From PostgreSQL 17 on they have names of
 * their own, which each process looks up when it first waits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/compat.h"
#include "base/wait_event.h"

static const char *const names[] = {
	[ECM_WAIT_LAUNCHER_MAIN] = "ElectricCmLauncherMain",
	[ECM_WAIT_MANAGER_MAIN] = "ElectricCmManagerMain",
	[ECM_WAIT_CONSUMER_MAIN] = "ElectricCmConsumerMain",
	[ECM_WAIT_STANDBY_MAIN] = "ElectricCmStandbyMain",
	[ECM_WAIT_GATHER] = "ElectricCmGather",
	[ECM_WAIT_STACK] = "ElectricCmStack",
	[ECM_WAIT_SHAPE_LOG] = "ElectricCmShapeLog",
	[ECM_WAIT_SLOT_RELEASE] = "ElectricCmSlotRelease",
	[ECM_WAIT_STACK_PAUSE] = "ElectricCmStackPause"
};

uint32
ecm_wait_event(EcmWaitEvent event)
{
	static uint32 known[lengthof(names)];

	if (known[event] == 0)
		known[event] = ecm_new_wait_event(names[event]);
	return known[event];
}
