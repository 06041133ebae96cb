/*-------------------------------------------------------------------------
 *
 * launcher.h
 *	  The launcher, the one static worker: which managers should run.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_LAUNCHER_H
#define ECM_LAUNCHER_H

#include "postgres.h"

/* Registers the worker; call while shared_preload_libraries are loaded. */
extern void ecm_launcher_register(void);

/* Entry point of the worker. */
extern PGDLLEXPORT void ecm_launcher_main(Datum arg);

#endif							/* ECM_LAUNCHER_H */
