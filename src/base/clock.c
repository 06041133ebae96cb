/*-------------------------------------------------------------------------
 *
 * clock.c
 *	  Two clocks: one to measure time with, and one to show.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "portability/instr_time.h"
#include "utils/timestamp.h"

#include "base/clock.h"

/*
 * Offset of ecm_now().  The system's monotonic clock may count from the
 * machine's start, a moment ago perhaps.  With a year added, the time 0
 * ("never") is longer ago than any interval that is compared with it, so "has
 * it been a minute since the last time?" is true for what has never happened.
 */
#define LONG_AGO	(365 * USECS_PER_DAY)

EcmTime
ecm_now(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return LONG_AGO + (int64) INSTR_TIME_GET_MICROSEC(now);
}

TimestampTz
ecm_wall_clock(void)
{
	return GetCurrentTimestamp();
}

TimestampTz
ecm_shown_time(EcmTime time)
{
	return time == 0 ? 0 : GetCurrentTimestamp() + (time - ecm_now());
}

long
ecm_ms_until(EcmTime now, EcmTime then)
{
	int64		ms = (then - now + 999) / 1000;

	return then <= now ? 0 : (long) Min(ms, INT_MAX);
}

EcmTime
ecm_earlier(EcmTime a, EcmTime b)
{
	if (a == 0 || b == 0)
		return Max(a, b);
	return Min(a, b);
}
