/*-------------------------------------------------------------------------
 *
 * clock.h
 *	  Two clocks: one to measure time with, and one to show.
 *
 * Whoever waits, retries, or asks how long something has lasted goes by
 * ecm_now(), which nobody can set: a wall clock that is set back by an hour
 * would put off everything by that hour, and one that is set forward would let
 * every deadline pass at once.  The wall clock is for what people read.
 *
 * ecm_now() is the same in all processes of the machine, so its times may be in
 * shared memory; they mean nothing after a restart.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_CLOCK_H
#define ECM_CLOCK_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* Microseconds.  0 is long ago, and may stand for none or never. */
typedef int64 EcmTime;

extern EcmTime ecm_now(void);
extern TimestampTz ecm_wall_clock(void);

/* A time as the wall clock has it, as of now; 0 stays 0. */
extern TimestampTz ecm_shown_time(EcmTime time);

/* That many milliseconds later. */
#define ecm_later(time, ms)		((time) + (ms) * INT64CONST(1000))

/* Milliseconds until then, rounded up; 0 if that is over. */
extern long ecm_ms_until(EcmTime now, EcmTime then);

/* The earlier of two deadlines, where 0 means none. */
extern EcmTime ecm_earlier(EcmTime a, EcmTime b);

/* Has it been that many milliseconds, or more? */
static inline bool
ecm_has_passed(EcmTime since, EcmTime now, int64 ms)
{
	return now - since >= ms * INT64CONST(1000);
}

#endif							/* ECM_CLOCK_H */
