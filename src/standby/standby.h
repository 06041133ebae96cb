/*-------------------------------------------------------------------------
 *
 * standby.h
 *	  The worker on a standby that was a primary before.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STANDBY_H
#define ECM_STANDBY_H

#include "postgres.h"

/*
 * Registers the worker if the server is starting as a standby; call while
 * shared_preload_libraries are loaded.
 */
extern void ecm_standby_register(void);

/* Entry point of the worker. */
extern PGDLLEXPORT void ecm_standby_main(Datum arg);

#endif							/* ECM_STANDBY_H */
