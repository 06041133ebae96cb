/*-------------------------------------------------------------------------
 *
 * stack_lifecycle.h
 *	  Whether a database's stack is wanted, and why a manager ends.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STACK_LIFECYCLE_H
#define ECM_STACK_LIFECYCLE_H

/* What the manager found out about a database before it started anything. */
typedef enum EcmProbe
{
	ECM_PROBE_UNKNOWN,			/* not looked at yet */
	ECM_PROBE_RUN,				/* a stack is wanted and runs or may run */
	ECM_PROBE_LOOKED,			/* a stack is wanted, but this was only a look */
	ECM_PROBE_NO_EXTENSION,
	ECM_PROBE_CLOSED,			/* a template, or no connections allowed */
	ECM_PROBE_UNLISTED,			/* not in electric_cm.databases */
	ECM_PROBE_DISABLED,			/* electric_cm.enabled is off */
	ECM_PROBE_OUTDATED,			/* the extension has to be updated first */
	ECM_PROBE_UNKNOWN_VERSION,	/* ... or the library: see version.c */
	ECM_PROBE_STOPPED,			/* by electric_cm_stop() */
	ECM_PROBE_UPGRADE,			/* by electric_cm_prepare_upgrade() */
	ECM_PROBE_NOT_STARTED,		/* created stopped, and never started */
	ECM_PROBE_CLONED			/* database OID differs from the recorded one */
} EcmProbe;

/*
 * Why the launcher ends a manager.  It sets the reason before it sends SIGTERM,
 * so that the manager knows what to leave behind.
 */
typedef enum EcmEndReason
{
	ECM_END_NONE,				/* the launcher has not: it was
								 * pg_terminate_backend(), or a shutdown */
	ECM_END_STOP,				/* electric_cm_stop(), _prepare_upgrade() */
	ECM_END_RESTART,			/* electric_cm_restart() */
	ECM_END_PAUSE,				/* a command needs the stack out of its way */
	ECM_END_UNWANTED			/* not listed any more, or no connections
								 * allowed */
} EcmEndReason;

#endif							/* ECM_STACK_LIFECYCLE_H */
