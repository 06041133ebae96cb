/*-------------------------------------------------------------------------
 *
 * test_wal_guard.c
 *	  Warnings about retained WAL, and when a slot is dropped for it.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "unit.h"
#include "slot/retained_wal_guard.h"

#define SECOND	INT64_C(1000000)
#define MB		(INT64_C(1024) * 1024)
#define START	(1000 * SECOND)

static EcmWalGuard guard;
static EcmWalFigures figures;
static EcmWalLimits limits;

static void
start(void)
{
	memset(&guard, 0, sizeof(guard));
	memset(&figures, 0, sizeof(figures));
	figures.at = START;
	figures.exists = true;
	figures.current_lsn = figures.restart_lsn = 100 * MB;
	figures.flush_lag = -1;
	figures.safe = -1;
	figures.frees_for_limit = figures.frees_for_room = -1;
	figures.segment = 16 * MB;
	figures.free = 100000 * MB;
	limits.warning = 1024 * MB;
	limits.limit = -1;
	limits.min_free = 512 * MB;
	limits.server_limit = -1;
	limits.interval_us = 10 * SECOND;
}

static unsigned
step(void)
{
	return ecm_retained_wal_guard_step(&guard, &figures, &limits);
}

/* Ten seconds later the slot holds so much. */
static unsigned
holds(int64_t bytes)
{
	figures.at += 10 * SECOND;
	figures.retained = bytes;
	return step();
}

static unsigned
has_free(int64_t bytes)
{
	figures.at += 10 * SECOND;
	figures.free = bytes;
	return step();
}

static void
test_warning(void)
{
	start();
	is_int(holds(1024 * MB - 1), 0, "below the threshold: nothing");
	is_int(holds(1024 * MB), ECM_WAL_WARN, "at the threshold: a warning");
	is_int(holds(1500 * MB), 0, "and no second one");
	is_int(holds(1024 * MB - 1), 0, "just below it, the warning is not over");
	is_int(holds(1100 * MB), 0, "so that crossing it again is no news");
	is_int(holds(2048 * MB), ECM_WAL_WARN, "at twice as much: a warning");
	is_int(holds(1500 * MB), 0, "half way back: nothing");
	is_int(holds(2500 * MB), 0, "twice as much again: nothing");
	is_int(holds(10000 * MB), ECM_WAL_WARN, "several doublings: one warning");
	is_int(guard.warned_at, 10000 * MB, "of what it holds");
	is_int(holds(10001 * MB), 0, "and not again a second later");
	is_int(holds(19999 * MB), 0, "nor before it is twice what was said");
	is_int(holds(20000 * MB), ECM_WAL_WARN, "then it is");
	is_int(holds(768 * MB), 0, "at three quarters of the threshold: not over");
	is_int(holds(768 * MB - 1), ECM_WAL_WARN_OVER, "below that, it is over");
	is_int(holds(10), 0, "once");
	is_int(holds(1024 * MB), ECM_WAL_WARN, "and may come again");
	figures.exists = false;
	is_int(holds(0), ECM_WAL_WARN_OVER, "without a slot it is over, too");

	start();
	(void) holds(1024 * MB);
	limits.warning = -1;
	is_int(holds(4096 * MB), ECM_WAL_WARN_OVER, "switched off: over");
	is_int(holds(8192 * MB), 0, "and nothing more");
	limits.warning = 16 * MB;
	is_int(holds(INT64_MAX / 2), ECM_WAL_WARN, "absurd sizes don't overflow");
}

static void
test_status(void)
{
	start();
	figures.unreserved = true;
	is_int(step(), ECM_WAL_UNRESERVED, "unreserved: at once");
	ok(guard.near_limit, "that is near a limit");
	is_int(step(), 0, "once");
	figures.unreserved = false;
	is_int(step(), 0, "reserved again: nothing");
	figures.unreserved = true;
	is_int(step(), ECM_WAL_UNRESERVED, "but it may come again");
	figures.lost = true;
	is_int(step(), ECM_WAL_LOST, "lost: at once");
	is_int(step(), 0, "once");

	start();
	(void) holds(2000 * MB);
	figures.lost = true;
	limits.limit = 100 * MB;
	is_int(holds(2000 * MB), ECM_WAL_LOST,
		   "a lost slot's last size is neither too much nor a warning over");
	is_int(guard.time_to_limit_us, -1, "and there is nothing left to wait for");
	figures.lost = false;
	is_int(holds(MB), ECM_WAL_WARN_OVER, "its successor ends the warning");
}

static void
test_limit(void)
{
	start();
	limits.limit = 100 * MB;
	is_int(holds(100 * MB), 0, "at the limit: nothing");
	ok(guard.near_limit, "but it is near");
	is_int(holds(100 * MB + 1), ECM_WAL_DROP_LIMIT, "above: drop the slot");
	is_int(holds(100 * MB + 2), ECM_WAL_DROP_LIMIT, "as long as it is there");
	figures.exists = false;
	is_int(holds(200 * MB), 0, "gone");
	ecm_retained_wal_guard_dropped(&guard, ECM_WAL_DROP_LIMIT);
	ok(!guard.short_of_room, "a new one may be made at once");
	figures.exists = true;
	is_int(holds(10), 0, "and may hold a little");
	ok(!guard.near_limit, "far from the limit");
}

/* A second later the slot holds so many MB, and lacks so many. */
static unsigned
lags(int64_t held, int64_t lag)
{
	figures.at += SECOND;
	figures.retained = held * MB;
	figures.flush_lag = lag * MB;
	return step();
}

static void
test_follow(void)
{
	start();
	figures.connected = true;
	limits.limit = 64 * MB;
	is_int(lags(32, 1), 0, "up to half the limit: nothing");
	is_int(lags(33, 1), ECM_WAL_LET_FOLLOW, "beyond, the slot is let follow");
	ok(guard.near_limit, "and looked at again soon");
	figures.at += SECOND / 10;
	is_int(step(), 0, "not all the time");
	is_int(lags(69, 5), ECM_WAL_LET_FOLLOW, "also beyond the limit");
	is_int(lags(10, 5), 0, "it has followed");
	is_int(lags(80, 5), ECM_WAL_LET_FOLLOW, "again: a chance");
	figures.at += SECOND / 10;
	is_int(step(), 0, "which takes some time");
	is_int(lags(80, 5), ECM_WAL_LET_FOLLOW, "a second one");
	is_int(lags(80, 5), ECM_WAL_LET_FOLLOW, "a third one");
	is_int(lags(80, 5), ECM_WAL_DROP_LIMIT, "but no fourth");
	is_int(lags(80, 5), ECM_WAL_DROP_LIMIT, "nor any later");
	is_int(lags(30, 5), 0, "below the limit, all is well");
	is_int(lags(165, 164), 0, "a burst is beyond it at once: one that lags has as much time");
	figures.at += SECOND / 10;
	is_int(step(), 0, "however often one looks");
	is_int(lags(165, 120), 0, "a second later");
	is_int(lags(165, 60), 0, "two seconds later");
	is_int(lags(165, 40), ECM_WAL_DROP_LIMIT, "three seconds later it is dropped");
	is_int(lags(20, 5), 0, "it has caught up");
	is_int(lags(165, 164), 0, "so the next burst has time again");
	is_int(lags(65, 31), ECM_WAL_LET_FOLLOW, "one that lags less is let follow as well");
	figures.pinned = true;
	is_int(lags(65, 1), ECM_WAL_DROP_LIMIT, "nor would one that something else pins");
	is_int(lags(60, 1), 0, "so it is not tried");
	figures.pinned = false;
	figures.flush_lag = -1;
	figures.at += SECOND;
	figures.retained = 65 * MB;
	is_int(step(), ECM_WAL_DROP_LIMIT, "nor one that nobody reads from");

	start();
	limits.server_limit = 64 * MB;
	figures.safe = 40 * MB;
	is_int(lags(40, 1), 0, "far from the server's own limit: nothing");
	figures.safe = 30 * MB;
	is_int(lags(50, 1), ECM_WAL_LET_FOLLOW, "half way: it is let follow");

	start();
	figures.connected = true;
	limits.min_free = 512 * MB;
	figures.free = 600 * MB;
	is_int(lags(31, 1), 0, "little is free, but it holds little");
	is_int(lags(32, 1), ECM_WAL_LET_FOLLOW, "it may be to blame soon: let it follow");
	figures.free = 500 * MB;
	is_int(lags(100, 1), ECM_WAL_FREE_LOW | ECM_WAL_LET_FOLLOW, "it is to blame: the same");
	is_int(lags(10, 1), ECM_WAL_MAKE_ROOM, "what it has let go of shall be removed");
	is_int(lags(10, 1), 0, "once");
	is_int(lags(100, 40), 0, "one that lags has a moment, too");
	figures.free = 255 * MB;
	is_int(lags(100, 1), ECM_WAL_DROP_FREE, "but none when there is no time");
	figures.free = 400 * MB;
	figures.connected = false;
	is_int(lags(100, 1), ECM_WAL_DROP_FREE, "and one that nobody reads from has none");
}

static int64_t
allowance(int64_t held)
{
	figures.retained = held * MB;
	return ecm_retained_wal_guard_allowance(&figures, &limits) / MB;
}

static void
test_allowance(void)
{
	start();
	ok(allowance(1000) > 40000, "no limit and much free: much may be written");
	limits.min_free = -1;
	ok(allowance(1000) > 1000000000, "without any limit, everything");
	limits.limit = 64 * MB;
	is_int(allowance(6), 10, "up to a quarter of the limit");
	is_int(allowance(16), 0, "no more than that");
	is_int(allowance(100), 0, "nor less than nothing");
	figures.lost = true;
	is_int(allowance(100), 16, "a lost slot holds nothing back");
	figures.lost = false;
	limits.server_limit = 32 * MB;
	is_int(allowance(6), 2, "the server's limit is one, too");
	limits.limit = limits.server_limit = -1;
	limits.min_free = 512 * MB;
	figures.free = 660 * MB;
	is_int(allowance(6), 10, "half of what is free, less what shall be, and some more");
	figures.free = 100 * MB;
	is_int(allowance(6), 0, "with too little free, nothing");
	figures.free = -1;
	ok(allowance(6) > 1000000000, "unknown is not too little");
}

static void
test_free(void)
{
	start();
	(void) holds(64 * MB - 1);
	is_int(has_free(512 * MB), 0, "just enough is free: nothing");
	ok(guard.near_limit, "but that is near");
	is_int(has_free(512 * MB - 1), ECM_WAL_FREE_LOW,
		   "too little is free, and our slot not to blame: a warning");
	is_int(has_free(0), 0, "once");
	is_int(holds(64 * MB), ECM_WAL_DROP_FREE, "our slot holds 64 MB: drop it");
	ecm_retained_wal_guard_dropped(&guard, ECM_WAL_DROP_FREE);
	ok(guard.short_of_room, "no new one for now");
	figures.exists = false;
	is_int(holds(0), ECM_WAL_MAKE_ROOM, "once it is gone, its WAL shall go");
	is_int(holds(0), 0, "nothing more to do");
	ok(guard.near_limit, "but to look often");
	is_int(has_free(550 * MB), 0, "enough is not plenty");
	ok(guard.short_of_room, "so there is no new one yet");
	is_int(has_free(576 * MB), ECM_WAL_FREE_OVER, "an eighth more is");
	ok(!guard.short_of_room, "now there may be");

	start();
	(void) holds(100 * MB);
	is_int(has_free(10), ECM_WAL_FREE_LOW | ECM_WAL_DROP_FREE,
		   "warned of and dropped in one go");
	is_int(has_free(520 * MB), 0, "within the margin, a slot is not dropped");
	limits.min_free = -1;
	is_int(has_free(1), ECM_WAL_FREE_OVER, "switched off: over");
	is_int(has_free(0), 0, "and nothing more");
	ok(!guard.short_of_room, "nothing is held up");
	limits.min_free = 512 * MB;
	is_int(has_free(-1), 0, "unknown is not too little");
}

/* The same WAL is held by others, in part. */
static void
test_blame(void)
{
	start();
	limits.limit = 100 * MB;
	figures.frees_for_limit = 0;
	is_int(holds(150 * MB), ECM_WAL_SPARE_LIMIT, "others hold all of it: it stays, and that is said");
	is_int(holds(250 * MB), 0, "once");
	ok(guard.near_limit, "but it is looked at often");
	figures.frees_for_limit = 16 * MB;
	is_int(holds(250 * MB), ECM_WAL_DROP_LIMIT, "a segment is ours alone: the limit counts");
	(void) holds(10 * MB);
	figures.frees_for_limit = 0;
	is_int(holds(150 * MB), ECM_WAL_SPARE_LIMIT, "the next time it is said again");

	start();
	figures.frees_for_room = 63 * MB;
	(void) holds(200 * MB);
	is_int(has_free(500 * MB), ECM_WAL_FREE_LOW | ECM_WAL_SPARE_FREE, "its end would free little: it stays");
	is_int(has_free(100 * MB), 0, "however little is free");
	figures.frees_for_room = 64 * MB;
	is_int(has_free(99 * MB), ECM_WAL_DROP_FREE, "unless 64 MB would be");
	figures.segment = 1024 * MB;
	is_int(has_free(98 * MB), ECM_WAL_SPARE_FREE, "less than a segment would not");
	figures.frees_for_room = 1024 * MB;
	is_int(has_free(97 * MB), ECM_WAL_DROP_FREE, "a segment would");

	start();
	figures.frees_for_room = 96 * MB;
	figures.recycled = 80 * MB;
	(void) holds(200 * MB);
	is_int(has_free(500 * MB), ECM_WAL_FREE_LOW | ECM_WAL_SPARE_FREE,
		   "segments that would be kept for later free nothing yet");
	is_int(has_free(255 * MB), ECM_WAL_DROP_FREE, "in need, they are better than new ones");

	start();
	figures.frees_for_room = 128 * MB;
	figures.relieved = true;
	(void) holds(200 * MB);
	is_int(has_free(500 * MB), ECM_WAL_FREE_LOW, "another slot has just been dropped: let that take effect");
	figures.relieved = false;
	is_int(has_free(500 * MB), ECM_WAL_DROP_FREE, "it was not enough");
}

/* A slot that is being made holds WAL, too. */
static void
test_being_made(void)
{
	start();
	figures.connected = figures.being_made = true;
	(void) holds(0);
	for (int i = 0; i < 10; i++)
		(void) holds(0);
	ok(guard.near_limit, "it is looked at often, however long that takes");
	limits.limit = 64 * MB;
	is_int(holds(65 * MB), ECM_WAL_DROP_LIMIT, "and has no time beyond a limit");
}

static void
test_older(void)
{
	ok(ecm_retained_wal_guard_slot_is_older(99, 150, 100), "a slot that begins before was there");
	ok(!ecm_retained_wal_guard_slot_is_older(101, 101, 100), "one that begins after was not");
	ok(ecm_retained_wal_guard_slot_is_older(100, 100, 100), "ours may begin at what it has confirmed last");
	ok(!ecm_retained_wal_guard_slot_is_older(100, 150, 100), "one that was made there has confirmed more");
	ok(!ecm_retained_wal_guard_slot_is_older(100, 0, 100), "or nothing yet");
	ok(!ecm_retained_wal_guard_slot_is_older(0, 0, 100), "a lost one can't be told");
}

static void
test_rates(void)
{
	int			i;

	start();
	(void) step();
	is_int(guard.time_to_limit_us, -1, "one sample has no rate");
	limits.limit = 1000 * MB;
	figures.at += 10 * SECOND;
	figures.current_lsn += 100 * MB;
	figures.retained = 100 * MB;
	(void) step();
	is_int((int64_t) guard.wal_rate, 10 * MB, "10 MB/s");
	is_int(guard.time_to_limit_us, 90 * SECOND, "900 MB take 90 s");
	is_int(guard.next_limit, ECM_WAL_LIMIT_RETAINED, "until retained_wal_limit");
	ok(guard.near_limit, "less than ten intervals: near");

	figures.at += SECOND / 10;
	figures.current_lsn += 100 * MB;
	(void) step();
	is_int((int64_t) guard.wal_rate, 10 * MB, "a tenth of a second says nothing");
	figures.at += SECOND * 99 / 10;
	(void) step();
	is_int((int64_t) guard.wal_rate, 10 * MB, "but nothing is left out");

	figures.safe = 500 * MB;
	limits.server_limit = 1000 * MB;
	(void) step();
	is_int(guard.time_to_limit_us, 50 * SECOND, "the server's limit is nearer");
	is_int(guard.next_limit, ECM_WAL_LIMIT_SERVER, "and is the one meant");
	figures.free = 612 * MB;
	(void) step();
	is_int(guard.time_to_limit_us, 10 * SECOND, "the disk's is nearer still");
	is_int(guard.next_limit, ECM_WAL_LIMIT_FREE, "and is the one meant");
	limits.min_free = -1;
	(void) step();
	is_int(guard.time_to_limit_us, 50 * SECOND, "not if it may fill up entirely");
	figures.retained = 1001 * MB;
	(void) step();
	is_int(guard.time_to_limit_us, 0, "beyond a limit: no time");

	figures.at -= 3600 * SECOND;
	(void) step();
	figures.at += 10 * SECOND;
	figures.current_lsn += 100 * MB;
	(void) step();
	is_int((int64_t) guard.wal_rate, 10 * MB, "the clock may be set back");

	for (i = 0; i < 100; i++)
	{
		figures.at += 10 * SECOND;
		(void) step();
	}
	ok(guard.wal_rate < 1024, "no WAL for long: no rate");
	is_int(guard.time_to_limit_us, 0, "a limit that is passed stays so");

	/* ten minutes of 50 MB/s, and the slot moves on every 15 seconds */
	start();
	limits.limit = 4000 * MB;
	figures.connected = true;
	for (i = 1; i <= 600; i++)
	{
		figures.at += SECOND;
		figures.current_lsn += 50 * MB;
		if (i % 15 == 0)
			figures.restart_lsn = figures.current_lsn - 10 * MB;
		figures.retained = (int64_t) (figures.current_lsn - figures.restart_lsn);
		(void) step();
		CHECK(i < 120 || guard.time_to_limit_us == -1);
		CHECK(i < 120 || !guard.near_limit);
	}
	checked("a slot that moves on in steps keeps up, for all that we know");

	/* it moves on, but half as fast as WAL is written */
	for (i = 1; i <= 40; i++)
	{
		figures.at += 10 * SECOND;
		figures.current_lsn += 50 * MB;
		figures.restart_lsn += 25 * MB;
		figures.retained = (int64_t) (figures.current_lsn - figures.restart_lsn);
		(void) step();
	}
	ok(guard.time_to_limit_us > 0, "one that falls behind comes to a limit");

	/* a new slot in place of one that held a lot, and it does not move at all */
	figures.at += SECOND;
	figures.restart_lsn = figures.current_lsn;
	for (i = 0; i < 60; i++)
	{
		figures.retained = (int64_t) (figures.current_lsn - figures.restart_lsn);
		(void) step();
		figures.at += SECOND;
		figures.current_lsn += 5 * MB;
	}
	ok(guard.time_to_limit_us > 0, "what an old slot held is no credit for a new one");
}

/* So many MB have been written, and the slot holds so many. */
static void
after(int64_t seconds, int64_t mb, int64_t held)
{
	figures.at += seconds * SECOND;
	figures.current_lsn += mb * MB;
	figures.retained = held * MB;
	figures.restart_lsn = figures.current_lsn - held * MB;
	(void) step();
}

/* The slot's first minute, in use. */
static void
test_first_rates(void)
{
	int			i;

	start();
	limits.limit = 2048 * MB;
	figures.connected = true;
	(void) step();
	ok(guard.near_limit, "a slot that is new is looked at often");
	after(2, 100, 100);
	is_int((int64_t) guard.wal_rate, 10 * MB, "a burst does not count in full");
	is_int(guard.time_to_limit_us, -1, "nor is anything foretold by it");
	after(2, 0, 0);
	for (i = 0; i < 7; i++)
	{
		after(8, 0, 0);
		CHECK(guard.time_to_limit_us == -1);
	}
	checked("once the slot has followed, nothing remains of it");
	ok(!guard.near_limit, "and it is left alone");
	is_int((int64_t) guard.wal_rate, 100 * MB / 60, "100 MB in a minute are so many per second");

	/* 50 MB/s from the beginning, in steps of 15 seconds */
	start();
	limits.limit = 4000 * MB;
	figures.connected = true;
	(void) step();
	for (i = 1; i <= 120; i++)
	{
		after(1, 50, 50 * (i % 15));
		CHECK(guard.time_to_limit_us == -1);
	}
	checked("a new slot that moves on in steps raises no alarm");

	/* it does not move at all */
	start();
	limits.limit = 4000 * MB;
	figures.connected = true;
	(void) step();
	for (i = 1; i <= 16; i++)
		after(1, 50, 50 * i);
	is_int(guard.time_to_limit_us / SECOND, 64, "one that does not, does so when a step was due");
}

/* It held a lot, and is rid of it: what is predicted is over, too. */
static void
test_catching_up(void)
{
	int			i;

	start();
	limits.limit = 2048 * MB;
	for (i = 1; i <= 10; i++)
		after(10, 100, 100 * i);
	ok(guard.time_to_limit_us > 0, "a slot that is pinned comes to a limit");
	figures.connected = true;
	after(10, 100, 10);
	is_int(guard.time_to_limit_us, -1, "when it has caught up, no longer");
}

void
test_wal_guard(void)
{
	test_warning();
	test_status();
	test_limit();
	test_follow();
	test_allowance();
	test_free();
	test_blame();
	test_being_made();
	test_older();
	test_rates();
	test_first_rates();
	test_catching_up();
}
