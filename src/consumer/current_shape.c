/*-------------------------------------------------------------------------
 *
 * current_shape.c
 *	  The shape that a consumer works on: the error context of its errors.
 *
 * A function that works on one shape names it, and takes it back.  An ERROR in
 * between leaves the name, so that the PG_CATCH that gets it, in shape_match.c or
 * consumer.c, knows whose fault it was.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/shmem.h"
#include "consumer/current_shape.h"
#include "shape/shape_blame.h"

static struct
{
	int64		shape;			/* 0: none in particular */
	volatile int64 *shown;		/* in shared memory, for the manager */
}			current;

void
ecm_work_init(int stack_index, int worker)
{
	current.shown = &ecm_stack_at(stack_index)->consumers[worker].working_on;
	ecm_work_on(0);
}

void
ecm_work_on(int64 shape)
{
	current.shape = shape;
	ecm_here->shape = shape;
	*current.shown = shape;
}

int64
ecm_working_on(void)
{
	return current.shape;
}
