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

/*
 * How much a log may grow before its consumer says so, in bytes; 0: it need
 * not.
 */
extern int64 ecm_retention_step(void);

extern void ecm_retention_init(int stack_index);

/* To be called now and then: it is not worth a wake-up of its own. */
extern void ecm_retention_poll(EcmTime now);

/* Ends what is going on: a new slot would have to wait for its transaction. */
extern void ecm_retention_stream_lost(void);

#endif							/* ECM_SHAPE_RETENTION_H */
