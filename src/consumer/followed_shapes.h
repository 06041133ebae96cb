/*-------------------------------------------------------------------------
 *
 * followed_shapes.h
 *	  The shapes that a consumer has to follow, taken up when they are needed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_FOLLOWED_SHAPES_H
#define ECM_FOLLOWED_SHAPES_H

#include "postgres.h"

#include "shape/shape.h"

/*
 * At start, in a transaction: takes up those that are being captured, and
 * notes all others of this worker.
 */
extern void ecm_load_start(int worker);

/*
 * Takes one up, in a transaction.  ERROR: its where clause does not compile,
 * and that is the fault of the shape that is worked on.
 */
extern void ecm_load_shape(const EcmShapeDef *def);

/* An upstream transaction begins. */
extern void ecm_load_begin(void);

/*
 * Are there any of the table that have not been taken up?  Do that, in a
 * transaction; for errors see ecm_load_shape().
 */
extern bool ecm_load_is_due(Oid relation);
extern void ecm_load_table(Oid relation);

/* One that is gone; nothing happens if it was not noted. */
extern void ecm_load_forget(int64 shape);

/* How many there are, noted or taken up. */
extern int	ecm_load_count(void);

#endif							/* ECM_FOLLOWED_SHAPES_H */
