/*-------------------------------------------------------------------------
 *
 * retained_wal_guard.c
 *	  Thresholds and limits of retained WAL.
 *
 * A slot that is well moves on in steps, up to 15 seconds apart, so that what
 * it retains goes up and down all the time.  Hence the averages, and the
 * hysteresis: a warning is over when it has been so by a margin.
 *
 * Such a step needs a record of the running transactions in the WAL, which the
 * server may not write in time.  So half way to a limit one is asked for, and a
 * slot that is read from, and that nothing is known to pin, is not dropped
 * at once: not even if it is behind, for it may just have met a large transaction.
 *
 * WAL that others hold as well is not freed by dropping a slot, so that it would
 * be sacrificed for nothing.  Then a warning has to do.
 *
 *-------------------------------------------------------------------------
 */
#include "slot/retained_wal_guard.h"

#define SECOND_US		INT64_C(1000000)

/* Two samples closer to each other than this say nothing about rates. */
#define MIN_RATE_US		(SECOND_US / 5)
/*
 * Time constant of the averages, seconds.  What was observed for a shorter time
 * is a plain average over that; a burst in the first moments counts as if it
 * had taken longer.
 */
#define RATE_SECONDS	60.0
#define MIN_SECONDS		10.0
/*
 * A slot that moves on in steps seems to fall behind by all that is written
 * between two steps, that is, by a quarter of what was written in a minute.
 */
#define STEP_SECONDS	15.0
#define KEEPS_UP		0.33
/* Nothing that is farther away is worth showing. */
#define FAR_AWAY		(365 * 86400.0)

/* Time between two records that a slot needs to follow. */
#define FOLLOW_US		(SECOND_US / 2)
/* So many does it get beyond a limit, before it is dropped. */
#define MAX_CHANCES		3

/* In how many intervals may a limit be reached before we look more often? */
#define NEAR_INTERVALS	10

static double
larger(double a, double b)
{
	return a > b ? a : b;
}

/* Adds what was seen for some seconds to the average over those before. */
static double
average(double rate, double before, double now, double seconds)
{
	return (rate * larger(before, MIN_SECONDS) + now * seconds) /
		larger(before + seconds, MIN_SECONDS);
}

static void
measure_rates(EcmWalGuard *g, const EcmWalFigures *f)
{
	uint64_t	restart_lsn = f->exists && !f->lost ? f->restart_lsn : 0;
	double		seconds = (double) (f->at - g->at) / SECOND_US;

	/* the clock may be set back, too */
	if (g->at != 0 && f->at >= g->at && f->at - g->at < MIN_RATE_US)
		return;
	if (g->at != 0 && f->at > g->at && f->current_lsn >= g->current_lsn)
	{
		double		written = (double) (f->current_lsn - g->current_lsn) / seconds;

		/* a new slot's growth is compared with what is written from then on */
		if (restart_lsn == 0 || g->restart_lsn == 0)
		{
			g->growth = 0;
			g->wal_rate = average(0, 0, written, seconds);
			g->seconds = 0;
		}
		else
		{
			g->wal_rate = average(g->wal_rate, g->seconds, written, seconds);
			if (restart_lsn >= g->restart_lsn)
				g->growth = average(g->growth, g->seconds,
									written - (double) (restart_lsn - g->restart_lsn) / seconds,
									seconds);
			/* what it has caught up with is no credit for later */
			g->growth = larger(g->growth, 0);
			g->seconds = g->seconds + seconds < RATE_SECONDS ?
				g->seconds + seconds : RATE_SECONDS;
		}
		g->wal_rate_known = true;
	}
	g->at = f->at;
	g->current_lsn = f->current_lsn;
	g->restart_lsn = restart_lsn;
}

/*
 * Does the slot fall behind, for all that we know?  One that nobody uses does,
 * from the first byte; one in use may be between two steps.
 */
static bool
falls_behind(const EcmWalGuard *g, bool connected)
{
	if (g->growth <= 0 || g->seconds <= 0)
		return false;
	return !connected ||
		g->growth >= g->wal_rate * larger(KEEPS_UP, STEP_SECONDS / g->seconds);
}

/* Notes how long it takes to use up that much room. */
static void
reckon(EcmWalGuard *g, const EcmWalFigures *f, EcmWalLimitKind kind, int64_t room)
{
	double		seconds;
	int64_t		us;

	if (room > 0 && !falls_behind(g, f->connected))
		return;
	seconds = room > 0 ? (double) room / g->growth : 0;
	if (seconds > FAR_AWAY)
		return;
	us = (int64_t) (seconds * SECOND_US);
	if (g->time_to_limit_us < 0 || us < g->time_to_limit_us)
	{
		g->time_to_limit_us = us;
		g->next_limit = kind;
	}
}

static void
look_ahead(EcmWalGuard *g, const EcmWalFigures *f, const EcmWalLimits *l)
{
	g->time_to_limit_us = -1;
	g->next_limit = ECM_WAL_LIMIT_NONE;
	g->near_limit = g->short_of_room;
	if (!f->exists || f->lost)
		return;
	/* it holds all WAL from its first moment on */
	g->near_limit |= f->being_made;
	/* nothing can be foretold yet, so look */
	g->near_limit |= f->connected && g->seconds < STEP_SECONDS;

	if (l->limit >= 0)
	{
		reckon(g, f, ECM_WAL_LIMIT_RETAINED, l->limit - f->retained);
		g->near_limit |= f->retained > l->limit - l->limit / 4;
	}
	if (f->safe >= 0)
	{
		reckon(g, f, ECM_WAL_LIMIT_SERVER, f->safe);
		g->near_limit |= f->safe < l->server_limit / 4;
	}
	if (f->free >= 0)
	{
		reckon(g, f, ECM_WAL_LIMIT_FREE,
			   l->min_free > 0 ? f->free - l->min_free : f->free);
		g->near_limit |= l->min_free > 0 &&
			f->free < l->min_free + l->min_free / 4;
	}
	g->near_limit |= f->unreserved ||
		(g->time_to_limit_us >= 0 &&
		 g->time_to_limit_us < NEAR_INTERVALS * l->interval_us);
}

/* Warns at the threshold, and at twice what was said last. */
static unsigned
judge_retained(EcmWalGuard *g, const EcmWalFigures *f, const EcmWalLimits *l)
{
	int64_t		retained = f->exists && !f->lost ? f->retained : 0;
	int64_t		level = g->warned_at;

	/* a lost slot's size is not news, and not good news either */
	if (f->exists && f->lost)
		return 0;
	if (level > 0 &&
		(l->warning <= 0 || retained < l->warning - l->warning / 4))
	{
		g->warned_at = 0;
		return ECM_WAL_WARN_OVER;
	}
	if (l->warning <= 0 || retained < l->warning)
		return 0;

	if (level < l->warning || retained / 2 >= level)
	{
		g->warned_at = retained;
		return ECM_WAL_WARN;
	}
	return 0;
}

static unsigned
judge_status(EcmWalGuard *g, const EcmWalFigures *f)
{
	unsigned	actions = 0;
	bool		lost = f->exists && f->lost;
	bool		unreserved = f->exists && f->unreserved && !lost;

	if (unreserved && !g->unreserved)
		actions |= ECM_WAL_UNRESERVED;
	if (lost && !g->lost)
		actions |= ECM_WAL_LOST;
	g->unreserved = unreserved;
	g->lost = lost;
	return actions;
}

static unsigned
judge_free(EcmWalGuard *g, const EcmWalFigures *f, const EcmWalLimits *l)
{
	bool		low = f->free >= 0 && l->min_free > 0 &&
	f->free < l->min_free;
	bool		enough = f->free < 0 || l->min_free <= 0 ||
	f->free >= l->min_free + l->min_free / 8;

	if (low && !g->free_low)
	{
		g->free_low = true;
		return ECM_WAL_FREE_LOW;
	}
	if (enough && g->free_low)
	{
		g->free_low = false;
		g->short_of_room = false;
		return ECM_WAL_FREE_OVER;
	}
	return 0;
}

/* Would a step make a difference to a limit of retained WAL, or of what is safe? */
static bool
could_follow(const EcmWalFigures *f, int64_t limit)
{
	return f->flush_lag >= 0 && !f->pinned &&
		f->flush_lag < limit / 2 && f->flush_lag < f->retained / 2;
}

static int64_t
smaller(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* Would dropping it free anything?  The limit is explicit, so that little is enough. */
static bool
relieves_limit(const EcmWalFigures *f)
{
	return f->frees_for_limit != 0;
}

/*
 * Would dropping it free so much that it is worth it?  Segments that are kept for
 * later count only when it is better to write over them than to make new ones.
 */
static bool
relieves_disk(const EcmWalFigures *f, const EcmWalLimits *l)
{
	int64_t		frees = f->frees_for_room < 0 ? f->retained : f->frees_for_room;

	if (f->frees_for_room >= 0 && f->free >= l->min_free / 2)
		frees -= f->recycled;
	return frees >= ECM_WAL_BLAME_BYTES && frees >= f->segment;
}

/* What is said, once, of a slot that stays for the sake of others. */
static unsigned
judge_spared(EcmWalGuard *g, unsigned spared)
{
	unsigned	news = spared & ~g->spared;

	g->spared = spared;
	return news;
}

static unsigned
judge_limits(EcmWalGuard *g, const EcmWalFigures *f, const EcmWalLimits *l)
{
	bool		over = l->limit >= 0 && f->retained > l->limit;
	bool		low = g->free_low && f->free < l->min_free &&
	f->retained >= ECM_WAL_BLAME_BYTES;
	bool		no_time = low && f->free < l->min_free / 2;
	bool		drop_over = over && relieves_limit(f);
	bool		drop_low = low && relieves_disk(f, l) && (no_time || !f->relieved);
	unsigned	drop = (drop_over ? ECM_WAL_DROP_LIMIT : 0) |
	(drop_low ? ECM_WAL_DROP_FREE : 0);
	bool		for_limit = l->limit >= 0 && f->retained > l->limit / 2 &&
	could_follow(f, l->limit);
	bool		for_server = f->safe >= 0 && f->safe < l->server_limit / 2 &&
	could_follow(f, l->server_limit);
	bool		for_free = l->min_free > 0 && f->free >= 0 &&
	f->free < l->min_free + l->min_free / 4 &&
	f->retained >= ECM_WAL_BLAME_BYTES / 2 &&
	could_follow(f, ECM_WAL_BLAME_BYTES);
	bool		may_recover = f->connected && !f->pinned && f->flush_lag >= 0;
	unsigned	actions;

	actions = judge_spared(g, (over && !drop_over ? ECM_WAL_SPARE_LIMIT : 0) |
						   (low && !relieves_disk(f, l) ? ECM_WAL_SPARE_FREE : 0));
	if (drop == 0)
		g->chances = 0;
	if (!low && g->follow_for_room)
	{
		g->follow_for_room = false;
		actions |= ECM_WAL_MAKE_ROOM;
	}
	g->near_limit |= over || low || for_limit || for_server || for_free;

	/* with half of what shall be free gone as well, there is no time for that */
	if (drop != 0 &&
		(!may_recover || (drop_low && no_time) || g->chances >= MAX_CHANCES))
		return actions | drop;
	if (drop == 0 && !for_limit && !for_server && !for_free)
		return actions;

	/* the clock may be set back, too */
	if (f->at >= g->follow_at && f->at - g->follow_at < FOLLOW_US)
		return actions;
	g->follow_at = f->at;
	if (drop != 0)
		g->chances++;
	if (!for_limit && !for_server && !for_free)
		return actions;
	g->follow_for_room |= low;
	return actions | ECM_WAL_LET_FOLLOW;
}

unsigned
ecm_retained_wal_guard_step(EcmWalGuard *guard, const EcmWalFigures *figures,
							const EcmWalLimits *limits)
{
	unsigned	actions;

	measure_rates(guard, figures);
	look_ahead(guard, figures, limits);
	actions = judge_retained(guard, figures, limits) |
		judge_status(guard, figures) | judge_free(guard, figures, limits);

	if (!guard->short_of_room)
		guard->room_made = false;
	else if (!figures->exists && !guard->room_made)
	{
		guard->room_made = true;
		actions |= ECM_WAL_MAKE_ROOM;
	}

	if (!figures->exists || figures->lost)
	{
		guard->chances = 0;
		guard->follow_for_room = false;
		guard->spared = 0;
		return actions;
	}
	return actions | judge_limits(guard, figures, limits);
}

int64_t
ecm_retained_wal_guard_allowance(const EcmWalFigures *f, const EcmWalLimits *l)
{
	int64_t		retained = f->exists && !f->lost ? f->retained : 0;
	int64_t		allowance = INT64_MAX;

	if (l->limit >= 0)
		allowance = smaller(allowance, l->limit / 4 - retained);
	if (l->server_limit >= 0)
		allowance = smaller(allowance, l->server_limit / 4 - retained);
	if (l->min_free > 0 && f->free >= 0)
		allowance = smaller(allowance,
							(f->free - l->min_free - l->min_free / 4) / 2);
	return allowance > 0 ? allowance : 0;
}

bool
ecm_retained_wal_guard_slot_is_older(uint64_t restart_lsn, uint64_t confirmed_lsn, uint64_t seen)
{
	if (restart_lsn == 0)
		return false;

	/*
	 * It may begin just there, if all that was written had been confirmed.
	 * One that was made there has confirmed the record that it began with as
	 * well.
	 */
	return restart_lsn < seen ||
		(restart_lsn == seen && confirmed_lsn != 0 && confirmed_lsn <= seen);
}

void
ecm_retained_wal_guard_dropped(EcmWalGuard *guard, unsigned why)
{
	if (why & ECM_WAL_DROP_FREE)
		guard->short_of_room = guard->free_low;
}
