/*-------------------------------------------------------------------------
 *
 * current_shape.h
 *	  The shape that a consumer works on: the error context of its errors.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_CURRENT_SHAPE_H
#define ECM_CURRENT_SHAPE_H

#include "postgres.h"

/*
 * At start, after ecm_blame_open(), which moves ecm_here.  From then on the
 * consumer works on no shape in particular, and work can be watched over.
 */
extern void ecm_work_init(int stack_index, int worker);

/*
 * Names the shape that the code from here on works for; 0: for none in
 * particular.  If that code raises an ERROR, or the process dies in it, the
 * shape is blamed; a consumer that stalls is shown as working on this shape.  So
 * code that is done with a shape must say 0, lest it be blamed for what follows.
 * Costs four stores.
 */
extern void ecm_work_on(int64 shape);

/* The shape that was named last.  An ERROR does not change it. */
extern int64 ecm_working_on(void);

#endif							/* ECM_CURRENT_SHAPE_H */
