/*-------------------------------------------------------------------------
 *
 * shape_retention.h
 *	  The manager's part in keeping shape logs from growing for ever.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_RETENTION_H
#define ECM_SHAPE_RETENTION_H

#include "postgres.h"

#include "base/clock.h"

extern void ecm_retention_init(int stack_index);

/*
 * To be called in each round while the stream is up.  It asks for no wake-up: the
 * manager's other parts see to it that there is a round every few seconds.
 */
extern void ecm_retention_poll(EcmTime now);

/* Cancels a job that runs: a new slot would have to wait for its transaction. */
extern void ecm_retention_stream_lost(void);

#endif							/* ECM_SHAPE_RETENTION_H */
