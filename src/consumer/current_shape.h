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

/* At start, once ecm_here is there: on none in particular. */
extern void ecm_work_init(int stack_index, int worker);

/*
 * Names the shape (0: none) that what follows is about.  An ERROR from here on
 * is its fault, or the death of the process; and it is shown as the shape that
 * a stalled consumer is stuck at.
 */
extern void ecm_work_on(int64 shape);
extern int64 ecm_working_on(void);

#endif							/* ECM_CURRENT_SHAPE_H */
