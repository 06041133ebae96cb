/*-------------------------------------------------------------------------
 *
 * electric_cm.h
 *	  The library's entry point.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_ELECTRIC_CM_H
#define ECM_ELECTRIC_CM_H

#include "postgres.h"

#include "fmgr.h"

extern PGDLLEXPORT void _PG_init(void);

#endif							/* ECM_ELECTRIC_CM_H */
