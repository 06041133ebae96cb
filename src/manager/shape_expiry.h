/*-------------------------------------------------------------------------
 *
 * shape_expiry.h
 *	  The manager's part in dropping shapes that nobody reads.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_EXPIRY_H
#define ECM_SHAPE_EXPIRY_H

#include "postgres.h"

#include "base/clock.h"

extern void ecm_expiry_init(int stack_index);

/* To be called in each round while the stream is up; it asks for no wake-up. */
extern void ecm_expiry_poll(EcmTime now);

/* Cancels a job that runs: a new slot would have to wait for its transaction. */
extern void ecm_expiry_stream_lost(void);

#endif							/* ECM_SHAPE_EXPIRY_H */
