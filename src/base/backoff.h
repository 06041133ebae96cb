/*-------------------------------------------------------------------------
 *
 * backoff.h
 *	  Exponential delay between retries, and the total time spent retrying.
 *
 * Pure: the clock is passed in (microseconds, any epoch).  Compiled into the
 * extension and into the unit tests.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_BACKOFF_H
#define ECM_BACKOFF_H

#include <stdint.h>

typedef struct EcmBackoff
{
	int64_t		initial_ms;		/* first delay */
	int64_t		max_ms;			/* no delay is longer than this */
	int64_t		next_ms;		/* delay that the next failure gets */
	int			retries;		/* failures since the last reset */
	int64_t		first_failure;	/* when this run of failures began, or 0 */
	int64_t		total_us;		/* time spent retrying in earlier runs */
} EcmBackoff;

/*
 * Sets the delays (milliseconds; clamped to at least 1 ms, and the initial one
 * to at most the other) and forgets everything else.
 */
extern void ecm_backoff_init(EcmBackoff *b, int64_t initial_ms,
							 int64_t max_ms);

/* Notes a failure at 'now' and returns the time (same clock) to retry at. */
extern int64_t ecm_backoff_fail(EcmBackoff *b, int64_t now);

/*
 * To be called when the operation that was retried works again: the next
 * failure starts with the initial delay, and the time since the first failure
 * is added to the total.
 */
extern void ecm_backoff_reset(EcmBackoff *b, int64_t now);

/* Total time spent retrying up to 'now', in microseconds. */
extern int64_t ecm_backoff_total(const EcmBackoff *b, int64_t now);

#endif							/* ECM_BACKOFF_H */
