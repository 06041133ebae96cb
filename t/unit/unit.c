/*-------------------------------------------------------------------------
 *
 * unit.c
 *	  Runs the unit tests; no server needed.  Exits with 1 if any has failed.
 *
 *	  cc -std=c99 -Wall -Wextra -Isrc t/unit/?*.c src/base/state.c \
 *		  src/base/errors.c src/base/backoff.c src/base/stream_message.c \
 *		  src/shape/offset_epoch.c src/shape/shape_chunk.c src/shape/shape_judge.c \
 *		  src/slot/retained_wal_guard.c -o unit && ./unit
 *
 *-------------------------------------------------------------------------
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "unit.h"

/* Print no more than this many failures of CHECK() between two reports. */
#define MAX_SHOWN	10

static int	tests;
static int	failures;
static uint64_t checks;
static int	checks_failed;		/* since the last checked() */
static uint64_t random_state;

bool
ok(bool passed, const char *name)
{
	tests++;
	if (!passed)
		failures++;
	printf("%sok %d - %s\n", passed ? "" : "not ", tests, name);
	return passed;
}

bool
is_int(int64_t got, int64_t expected, const char *name)
{
	if (ok(got == expected, name))
		return true;
	printf("#   got %" PRId64 ", expected %" PRId64 "\n", got, expected);
	return false;
}

bool
is_str(const char *got, const char *expected, const char *name)
{
	bool		same;

	if (got == NULL || expected == NULL)
		same = (got == expected);
	else
		same = (strcmp(got, expected) == 0);

	if (ok(same, name))
		return true;
	printf("#   got \"%s\", expected \"%s\"\n", got ? got : "(null)",
		   expected ? expected : "(null)");
	return false;
}

bool
check_that(bool passed, const char *condition, const char *file, int line)
{
	checks++;
	if (passed)
		return true;
	if (checks_failed++ < MAX_SHOWN)
		printf("#   %s:%d: %s\n", file, line, condition);
	return false;
}

bool
checked(const char *name)
{
	bool		passed = (checks_failed == 0);

	checks_failed = 0;
	return ok(passed, name);
}

void
random_start(uint64_t seed)
{
	random_state = seed;
}

/* splitmix64 */
uint64_t
random_uint64(void)
{
	uint64_t	z = (random_state += UINT64_C(0x9E3779B97F4A7C15));

	z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
	return z ^ (z >> 31);
}

uint32_t
random_below(uint32_t n)
{
	return (uint32_t) (random_uint64() % n);
}

int
main(void)
{
	test_backoff();
	test_continuity();
	test_errors();
	test_event_name();
	test_offset_epoch();
	test_shape_chunk();
	test_shape_judge();
	test_stack_decision();
	test_state();
	test_stream_message();
	test_wal_guard();

	printf("1..%d\n", tests);
	printf("# %d tests, %" PRIu64 " checks in loops, %d failed\n",
		   tests, checks, failures);
	return failures > 0 ? 1 : 0;
}
