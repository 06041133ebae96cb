/*-------------------------------------------------------------------------
 *
 * manager.h
 *	  Main function of the manager, the worker of one database's stack.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_MANAGER_H
#define ECM_MANAGER_H

#include "postgres.h"

extern PGDLLEXPORT void ecm_manager_main(Datum arg);

#endif							/* ECM_MANAGER_H */
