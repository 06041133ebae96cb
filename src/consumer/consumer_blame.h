/*-------------------------------------------------------------------------
 *
 * consumer_blame.h
 *	  The shapes that a consumer's end is blamed on become errored.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_CONSUMER_BLAME_H
#define ECM_CONSUMER_BLAME_H

#include "postgres.h"

#include "shape/shape_blame.h"

extern void ecm_consumer_blame_init(int worker);

/*
 * Makes all shapes errored that are to blame for the death of this process or of
 * its predecessor.  message: tagged, see errors.h.
 */
extern void ecm_consumer_blame_death(EcmBlame blame, const EcmPlace *place,
									 const char *message);

/*
 * Blames an error that ends the consumer: on the shape at work, or, in doubt, as a
 * death.
 */
extern void ecm_consumer_blame_error(int64 shape, const char *sqlstate,
									 const char *message);

#endif							/* ECM_CONSUMER_BLAME_H */
