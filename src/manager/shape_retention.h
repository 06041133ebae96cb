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

/* To be called now and then: it is not worth a wake-up of its own. */
extern void ecm_retention_poll(EcmTime now);

/* Ends what is going on: a new slot would have to wait for its transaction. */
extern void ecm_retention_stream_lost(void);

#endif							/* ECM_SHAPE_RETENTION_H */
