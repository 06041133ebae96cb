/*-------------------------------------------------------------------------
 *
 * load.h
 *	  The shapes that a consumer has to follow, taken up when they are needed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_LOAD_H
#define ECM_LOAD_H

#include "postgres.h"

#include "shape.h"

/*
 * At start, in a transaction: hands those that are being captured to 'follow',
 * and notes all others of this worker.
 */
extern void ecm_load_start(int worker, void (*follow) (const EcmShapeDef *def));

/*
 * Are there any of the table that 'follow' has not been called for?  Do that,
 * in a transaction; an ERROR is the fault of the shape that is worked on.
 */
extern bool ecm_load_is_due(Oid relation);
extern void ecm_load_table(Oid relation);

/* One that is gone; nothing happens if it was not noted. */
extern void ecm_load_forget(int64 shape);

/* How many are noted. */
extern int	ecm_load_count(void);

#endif							/* ECM_LOAD_H */
