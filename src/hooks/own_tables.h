/*-------------------------------------------------------------------------
 *
 * own_tables.h
 *	  Keeps others away from what our tables have out of line.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_OWN_TABLES_H
#define ECM_OWN_TABLES_H

/* Installs the hook; called once from _PG_init under preloading. */
extern void ecm_own_tables_init(void);

#endif							/* ECM_OWN_TABLES_H */
