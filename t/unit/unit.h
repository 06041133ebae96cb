/*-------------------------------------------------------------------------
 *
 * unit.h
 *	  A small TAP harness for the parts of the extension that are pure C.
 *
 * ok() and the is_*() family print one TAP line each.  CHECK() is for loops:
 * it counts, and prints only when it fails; report it with checked().
 *
 *-------------------------------------------------------------------------
 */
#ifndef UNIT_H
#define UNIT_H

#include <stdbool.h>
#include <stdint.h>

extern bool ok(bool passed, const char *name);
extern bool is_int(int64_t got, int64_t expected, const char *name);
extern bool is_str(const char *got, const char *expected, const char *name);

/* Reports whether all CHECK()s since the last call have passed. */
extern bool checked(const char *name);

#define CHECK(condition) \
	check_that((condition), #condition, __FILE__, __LINE__)
extern bool check_that(bool passed, const char *condition, const char *file,
					   int line);

/* A reproducible sequence of pseudo-random numbers. */
extern void random_start(uint64_t seed);
extern uint64_t random_uint64(void);

/* 0 to n - 1 */
extern uint32_t random_below(uint32_t n);

extern void test_backoff(void);
extern void test_continuity(void);
extern void test_errors(void);
extern void test_event_name(void);
extern void test_offset_epoch(void);
extern void test_shape_chunk(void);
extern void test_shape_judge(void);
extern void test_stack_decision(void);
extern void test_state(void);
extern void test_stream_message(void);
extern void test_wal_guard(void);

#endif							/* UNIT_H */
