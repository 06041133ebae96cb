/*-------------------------------------------------------------------------
 *
 * shape_stall.h
 *	  Work for one shape that takes too long is cancelled, and the shape is to
 *	  blame: electric_cm.shape_stall_timeout.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_STALL_H
#define ECM_SHAPE_STALL_H

#include "postgres.h"

#include "miscadmin.h"

#include "base/clock.h"
#include "base/compat.h"

/* SQLSTATE EC002: the shape has held up the others. */
#define ECM_ERRCODE_SHAPE_STALLED	MAKE_SQLSTATE('E', 'C', '0', '0', '2')

/* What the timer's handler looks at; written as the work goes on. */
typedef struct EcmStallWork
{
	volatile uint64 steps;		/* whatever shape is worked on, it is another
								 * piece of work than before */
	volatile bool value;		/* a value of a row is being read, maybe for
								 * no shape in particular */
	volatile bool fired;		/* the work has been cancelled, and the ERROR
								 * has not been caught yet */
} EcmStallWork;

extern EcmStallWork ecm_stall_work;

/* What a consumer and its manager tell each other, in shared memory. */
typedef struct EcmStallShown
{
	volatile int64 *busy_with;	/* the shape that has taken most of the
								 * consumer's time lately; 0: none */
	volatile EcmTime *busy_at;	/* as of this time */
	volatile int64 *deaf;		/* the shape whose work goes on though it was
								 * cancelled; 0: none */
	const volatile int64 *give_up;	/* the shape that is to be given up at
									 * once; 0: none */
} EcmStallShown;

/* At start of a consumer, before ecm_stall_watch(). */
extern void ecm_stall_init(const EcmStallShown *shown);

/*
 * In a session that reads a table for the shape which ecm_here names: watches over that
 * until ecm_stall_stop().  Buffers used are progress, too.
 */
extern void ecm_stall_watch_reading(void);

/*
 * Watches over the work for the shape that ecm_here names.  To be called whenever there
 * is something to do; costs a comparison if the timer runs.
 */
extern void ecm_stall_start(void);
extern bool ecm_stall_watching;

static inline void
ecm_stall_watch(void)
{
	if (unlikely(!ecm_stall_watching))
		ecm_stall_start();
}

/* There is nothing to do: lets go of the timer once that has lasted a moment. */
extern void ecm_stall_rest(void);

/* Lets go of it at once; the next ecm_stall_watch() goes by the setting of now. */
extern void ecm_stall_stop(void);

/*
 * Another piece of work begins.  A cancellation that the one before has escaped, by
 * coming to its end, is taken back: it must not hit this one.
 */
extern void ecm_stall_take_back(void);

static inline void
ecm_stall_step(void)
{
	ecm_stall_work.steps++;
	if (unlikely(ecm_stall_work.fired))
		ecm_stall_take_back();
}

/* Is this shape to be given up at once, as somebody else says? */
extern const volatile int64 *ecm_stall_give_up;

static inline bool
ecm_stall_is_given_up(int64 shape)
{
	return unlikely(*ecm_stall_give_up == shape) && shape != 0;
}

/*
 * To be called with each ERROR that was caught.  True: it is the cancellation of work
 * that has taken too long, and is changed into an ERROR that says so, with SQLSTATE
 * EC002; the shape that was worked on is to blame.
 */
extern bool ecm_stall_take(ErrorData *edata);

/* The same in PG_CATCH, for one that raises the ERROR again.  context: to go on in. */
pg_noreturn extern void ecm_stall_rethrow(MemoryContext context);

/* The text of such an ERROR about a shape that is given up on behalf of others. */
extern const char *ecm_stall_given_up_text(void);

#endif							/* ECM_SHAPE_STALL_H */
