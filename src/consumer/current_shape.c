/*-------------------------------------------------------------------------
 *
 * current_shape.c
 *	  The shape that a consumer works on: the error context of its errors.
 *
 * A function that works for one shape names it, and says 0 at its end.  An ERROR
 * in between leaves the name as it is.  So the PG_CATCH that gets the ERROR, in
 * shape_match.c or consumer.c, knows whose fault it was.
 *
 * The name goes to four readers: this process after an ERROR; its successor
 * after a death without one, by way of ecm_here, which is in a file; the
 * manager, by way of shared memory, for the report of a stalled consumer; and
 * the timer that cancels the work for a shape if it takes too long (shape_stall.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/shmem.h"
#include "consumer/current_shape.h"
#include "shape/shape_blame.h"
#include "shape/shape_stall.h"

static struct
{
	int64		shape;			/* 0: none in particular */
	volatile int64 *shown;		/* the same, in the consumer's slot in shared
								 * memory; written without the lock */
}			current;

void
ecm_work_init(int stack_index, int worker)
{
	EcmConsumerSlot *slot = &ecm_stack_at(stack_index)->consumers[worker];
	EcmStallShown shown;

	current.shown = &slot->working_on;
	ecm_work_on(0);
	shown.busy_with = &slot->busy_with;
	shown.busy_at = &slot->busy_at;
	shown.deaf = &slot->deaf;
	shown.give_up = &slot->give_up;
	ecm_stall_init(&shown);
}

void
ecm_work_on(int64 shape)
{
	current.shape = shape;
	ecm_here->shape = shape;
	*current.shown = shape;
	ecm_stall_step();
}

int64
ecm_working_on(void)
{
	return current.shape;
}
