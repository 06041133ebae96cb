/*-------------------------------------------------------------------------
 *
 * backoff.c
 *	  Exponential delay between retries, and the total time spent retrying.
 *
 * Pure: the caller passes the clock.  The delays are clamped so that no
 * setting, however odd, makes a retry loop without a pause or overflows.
 *
 *-------------------------------------------------------------------------
 */
#include <limits.h>

#include "base/backoff.h"

/*
 * Limits of both delays.  The lower one makes sure that a retry loop always
 * pauses, the upper one that doubling a delay cannot overflow.
 */
#define MIN_DELAY_MS	INT64_C(1)
#define MAX_DELAY_MS	((int64_t) INT_MAX)

static int64_t
clamp_ms(int64_t ms, int64_t lowest, int64_t highest)
{
	if (ms < lowest)
		return lowest;
	return ms > highest ? highest : ms;
}

void
ecm_backoff_init(EcmBackoff *b, int64_t initial_ms, int64_t max_ms)
{
	b->max_ms = clamp_ms(max_ms, MIN_DELAY_MS, MAX_DELAY_MS);
	b->initial_ms = clamp_ms(initial_ms, MIN_DELAY_MS, b->max_ms);
	b->next_ms = b->initial_ms;
	b->retries = 0;
	b->first_failure = 0;
	b->total_us = 0;
}

int64_t
ecm_backoff_fail(EcmBackoff *b, int64_t now)
{
	int64_t		delay_ms = b->next_ms;

	if (b->retries == 0)
		b->first_failure = now;
	if (b->retries < INT_MAX)
		b->retries++;
	b->next_ms = clamp_ms(delay_ms * 2, b->initial_ms, b->max_ms);
	return now + delay_ms * 1000;
}

void
ecm_backoff_reset(EcmBackoff *b, int64_t now)
{
	b->total_us = ecm_backoff_total(b, now);
	b->next_ms = b->initial_ms;
	b->retries = 0;
	b->first_failure = 0;
}

int64_t
ecm_backoff_total(const EcmBackoff *b, int64_t now)
{
	if (b->retries == 0)
		return b->total_us;
	return b->total_us + (now - b->first_failure);
}
