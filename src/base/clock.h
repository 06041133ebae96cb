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

/*
 * Converts a time to the wall clock as it is set now, for people to read; 0
 * stays 0.
 */
extern TimestampTz ecm_shown_time(EcmTime time);

/* The time 'ms' milliseconds after 'time'. */
#define ecm_later(time, ms)		((time) + (ms) * INT64CONST(1000))

/*
 * Milliseconds from 'now' until 'then', rounded up, so that whoever sleeps for
 * them does not wake too early and spin; 0 if 'then' has passed.
 */
extern long ecm_ms_until(EcmTime now, EcmTime then);

/* The earlier of two deadlines, where 0 means none. */
extern EcmTime ecm_earlier(EcmTime a, EcmTime b);

/* Have 'ms' milliseconds or more gone by since 'since'? */
static inline bool
ecm_has_passed(EcmTime since, EcmTime now, int64 ms)
{
	return now - since >= ms * INT64CONST(1000);
}

#endif							/* ECM_CLOCK_H */
