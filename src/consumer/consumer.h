/*-------------------------------------------------------------------------
 *
 * consumer.h
 *	  The worker that follows the stream for shapes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_CONSUMER_H
#define ECM_CONSUMER_H

#include "postgres.h"

extern PGDLLEXPORT void ecm_consumer_main(Datum arg);

#endif							/* ECM_CONSUMER_H */
