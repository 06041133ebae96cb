/*-------------------------------------------------------------------------
 *
 * database_commands.h
 *	  Commands that a running stack would be in the way of.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_DATABASE_COMMANDS_H
#define ECM_DATABASE_COMMANDS_H

/*
 * Installs the hooks; called once from _PG_init under preloading.  Before
 * ecm_hooks_init(): what was installed last is called first, and a slot must
 * be known to be left before its stack may come back.
 */
extern void ecm_database_commands_init(void);

#endif							/* ECM_DATABASE_COMMANDS_H */
