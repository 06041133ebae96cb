/*-------------------------------------------------------------------------
 *
 * wait_event.c
 *	  What our processes, and functions, wait for, as pg_stat_activity has it.
 *
 * The type is always Extension.  Names of our own exist from 17 on: each
 * process looks one up when it first waits.
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
