/*-------------------------------------------------------------------------
 *
 * own_tables.h
 *	  Keeps others away from what our tables have out of line, and from rewriting
 *	  them in a way that loses rows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_OWN_TABLES_H
#define ECM_OWN_TABLES_H

#include "nodes/nodes.h"

/* Installs the hook; called once from _PG_init under preloading. */
extern void ecm_own_tables_init(void);

/* ERROR 0A000 if the statement is REPACK (CONCURRENTLY) of one of our tables. */
extern void ecm_own_tables_check_repack(Node *stmt);

#endif							/* ECM_OWN_TABLES_H */
