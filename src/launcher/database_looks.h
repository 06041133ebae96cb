/*-------------------------------------------------------------------------
 *
 * database_looks.h
 *	  Looks into databases of which nothing is known yet.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_DATABASE_LOOKS_H
#define ECM_DATABASE_LOOKS_H

#include "postgres.h"

#include "base/clock.h"

/*
 * Starts a look into the next database that needs one, if no other look is on its way
 * and a worker is free for it.
 */
extern void ecm_look_into_next(EcmTime now);

/* When a look is tried again for which no worker was free; 0: none is. */
extern EcmTime ecm_look_retry_at(void);

#endif							/* ECM_DATABASE_LOOKS_H */
