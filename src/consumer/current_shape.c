/*-------------------------------------------------------------------------
 *
 * current_shape.c
 *	  The shape that a consumer works on: the error context of its errors.
 *
 * Whoever works on one shape says so, and takes it back.  An ERROR in between
 * leaves it as it is, so that consumer.c, or who catches it before, learns whose
 * fault that was.
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
	current.shown = &ecm_shared->stacks[stack_index].consumers[worker].working_on;
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
