/*-------------------------------------------------------------------------
 *
 * hooks.h
 *	  The consequences of other people's commands for the stacks of this
 *	  server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_HOOKS_H
#define ECM_HOOKS_H

/* Installs the hooks; called once from _PG_init under preloading. */
extern void ecm_hooks_init(void);

#endif							/* ECM_HOOKS_H */
