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
 * Installs the hooks; called once from _PG_init under preloading, before
 * ecm_hooks_init().  Callbacks that were registered last are called first.  So at the
 * end of DROP EXTENSION, hooks.c leaves the slot to the launcher before the pause that
 * was made here ends, and a new stack can't take the slot in between.
 */
extern void ecm_database_commands_init(void);

#endif							/* ECM_DATABASE_COMMANDS_H */
