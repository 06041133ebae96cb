/*-------------------------------------------------------------------------
 *
 * test_backoff.c
 *	  Delays between retries, and the total time spent retrying.
 *
 *-------------------------------------------------------------------------
 */
#include <limits.h>

#include "base/backoff.h"
#include "unit.h"

#define SECOND	INT64_C(1000000)

static void
test_delays(void)
{
	static const int expected[] = {1, 2, 4, 8, 10, 10, 10};
	EcmBackoff	b;
	int64_t		now = 1000 * SECOND;
	int			i;

	ecm_backoff_init(&b, 1000, 10000);
	for (i = 0; i < 7; i++)
		CHECK(ecm_backoff_fail(&b, now) == now + expected[i] * SECOND);
	CHECK(b.retries == 7);
	checked("the delays are 1, 2, 4, 8, 10, 10, 10 s");

	ecm_backoff_reset(&b, now);
	is_int(b.retries, 0, "a reset forgets the retries");
	is_int(ecm_backoff_fail(&b, now) - now, SECOND,
		   "after a reset the first delay is the initial one");

	ecm_backoff_init(&b, 3000, 3000);
	CHECK(ecm_backoff_fail(&b, now) == now + 3 * SECOND);
	CHECK(ecm_backoff_fail(&b, now) == now + 3 * SECOND);
	checked("equal delays stay equal");

	ecm_backoff_init(&b, 20000, 5000);
	is_int(ecm_backoff_fail(&b, now) - now, 5 * SECOND,
		   "an initial delay above the maximum is cut to the maximum");

	ecm_backoff_init(&b, 0, 0);
	ok(ecm_backoff_fail(&b, now) > now, "a delay of 0 is a pause all the same");
	ecm_backoff_init(&b, -5, -7);
	ok(ecm_backoff_fail(&b, now) > now, "and so is a negative one");
}

static void
test_total(void)
{
	EcmBackoff	b;
	int64_t		now = 50 * SECOND;

	ecm_backoff_init(&b, 1000, 10000);
	is_int(ecm_backoff_total(&b, now), 0, "no failure, no time lost");
	ecm_backoff_reset(&b, now);
	is_int(ecm_backoff_total(&b, now + SECOND), 0,
		   "a reset without a failure adds nothing");

	ecm_backoff_fail(&b, now);
	ecm_backoff_fail(&b, now + SECOND);
	is_int(ecm_backoff_total(&b, now + 3 * SECOND), 3 * SECOND,
		   "the total counts from the first failure on");
	ecm_backoff_reset(&b, now + 4 * SECOND);
	is_int(ecm_backoff_total(&b, now + 100 * SECOND), 4 * SECOND,
		   "and stands still after the reset");
	ecm_backoff_fail(&b, now + 100 * SECOND);
	is_int(ecm_backoff_total(&b, now + 102 * SECOND), 6 * SECOND,
		   "runs of failures add up");
}

static void
test_many(void)
{
	EcmBackoff	b;
	int64_t		now = SECOND;
	int			i;

	ecm_backoff_init(&b, 1000, INT64_MAX);
	for (i = 0; i < 1000000; i++)
	{
		int64_t		at = ecm_backoff_fail(&b, now);

		CHECK(at > now && at - now <= INT64_C(1000) * INT_MAX);
	}
	CHECK(b.retries == 1000000);
	checked("a million failures with no upper limit don't overflow");

	b.retries = INT_MAX;
	ecm_backoff_fail(&b, now);
	is_int(b.retries, INT_MAX, "the retry count stops at its maximum");
	is_int(ecm_backoff_total(&b, now + 7), 7, "and the total is still right");
}

void
test_backoff(void)
{
	test_delays();
	test_total();
	test_many();
}
