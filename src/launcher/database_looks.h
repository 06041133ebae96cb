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

/* Starts the next look, if none is on its way and there is a worker for it. */
extern void ecm_look_into_next(EcmTime now);

/* When that is tried again, for lack of a worker; 0: it is not. */
extern EcmTime ecm_look_retry_at(void);

#endif							/* ECM_DATABASE_LOOKS_H */
