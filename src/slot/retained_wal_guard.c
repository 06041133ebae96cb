/*-------------------------------------------------------------------------
 *
 * retained_wal_guard.c
 *	  Thresholds and limits of retained WAL.
 *
 * Why averages, and a margin: the slot of a healthy stack advances in steps,
 * up to 15 seconds apart (see let_follow() in retained_wal.c).  In between it
 * retains more and more WAL, so what it retains goes up and down all the time.
 * Rates are averages over many steps, and a warning is over only when the
 * figure has fallen below the threshold by a margin.
 *
 * Why a slot gets chances: each of those steps needs a record of the running
 * transactions in the WAL, which the server may not write in time.  So from
 * half of a limit on, the guard asks for such records.  A slot that is past a
 * limit, that a walsender reads from, and that nothing is known to pin, is not
 * dropped at once, even if it is behind: it may just have met a large
 * transaction.
 *
 * Why a slot is spared: WAL that others need as well is not freed by dropping
 * the slot.  All shapes would be resynced for nothing, so the guard only warns.
 *
 *-------------------------------------------------------------------------
 */
#include "slot/retained_wal_guard.h"

#define SECOND_US		INT64_C(1000000)

/* Samples that are closer to each other than this give no useful rate. */
#define MIN_RATE_US		(SECOND_US / 5)
/*
 * Time constant of the averages, in seconds.  If the slot has been observed
 * for a shorter time, the rate is the plain average over that time, but over
 * at least MIN_SECONDS, so that a burst in the first moments does not look
 * like a rate.
 */
#define RATE_SECONDS	60.0
#define MIN_SECONDS		10.0
/*
 * Between two steps, STEP_SECONDS apart, even a healthy slot falls behind by
 * all that is written: over a minute of observation, by a quarter of it.  So a
 * slot that falls behind by less than this share of the WAL written keeps up.
 */
#define STEP_SECONDS	15.0
#define KEEPS_UP		0.33
/* A limit that is reached later than this (seconds) is not shown. */
#define FAR_AWAY		(365 * 86400.0)

/*
 * Time between two requests for a record of the running transactions, which a
 * slot needs in order to advance.
 */
#define FOLLOW_US		(SECOND_US / 2)
/* Chances that a slot past a limit gets before it is dropped. */
#define MAX_CHANCES		3

/*
 * A limit that may be reached within this many sampling intervals is near:
 * samples are taken more often then.
 */
#define NEAR_INTERVALS	10

static double
larger(double a, double b)
{
	return a > b ? a : b;
}

/* The average over 'before' seconds at 'rate' and 'seconds' more at 'now'. */
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

	/* times are compared such that a clock that goes back does no harm */
	if (g->at != 0 && f->at >= g->at && f->at - g->at < MIN_RATE_US)
		return;
	if (g->at != 0 && f->at > g->at && f->current_lsn >= g->current_lsn)
	{
		double		written = (double) (f->current_lsn - g->current_lsn) / seconds;

		/* a slot that has just been made is observed from here on */
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

			/*
			 * a slot that catches up has no growth, rather than a negative
			 * one, which would hide for a while that it falls behind again
			 */
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
 * Does the slot fall behind?  A slot that nobody reads from does, whatever its
 * growth.  A slot in use may just be between two steps, so its growth must be
 * a considerable share of the WAL that is written.
 */
static bool
falls_behind(const EcmWalGuard *g, bool connected)
{
	if (g->growth <= 0 || g->seconds <= 0)
		return false;
	return !connected ||
		g->growth >= g->wal_rate * larger(KEEPS_UP, STEP_SECONDS / g->seconds);
}

/*
 * Notes when a limit of some kind will be reached, if 'room' bytes are left
 * until then and the slot goes on growing as it does.  The limit that is
 * reached first is kept.
 */
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
	/* a slot that is being made retains all WAL, and may do so for long */
	g->near_limit |= f->being_made;
	/* before the first step, no rate is known that could warn in time */
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

/*
 * Warns when retained WAL reaches the threshold, and again whenever it has
 * doubled since the last warning.  The warning is over when it has fallen
 * below three quarters of the threshold.
 */
static unsigned
judge_retained(EcmWalGuard *g, const EcmWalFigures *f, const EcmWalLimits *l)
{
	int64_t		retained = f->exists && !f->lost ? f->retained : 0;
	int64_t		level = g->warned_at;

	/*
	 * a lost slot retains nothing any more, but that does not end a warning:
	 * event replication_slot_lost is what is said
	 */
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

/*
 * Would a step bring the slot well below a limit?  The consumers must have
 * confirmed more than half of the WAL that the slot retains, and all but half
 * of the limit; and nothing may pin the slot.
 */
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

/*
 * Would dropping the slot free any WAL?  The user has set
 * electric_cm.retained_wal_limit for the slot itself, so any amount will do.
 */
static bool
relieves_limit(const EcmWalFigures *f)
{
	return f->frees_for_limit != 0;
}

/*
 * Would dropping the slot free enough space on the disk to be worth it?  The
 * server keeps some of the freed segments for later use (min_wal_size), so
 * these don't make the disk emptier.  They count only when less than half of
 * min_wal_free_space is left: the server then writes over them instead of
 * making new ones.
 */
static bool
relieves_disk(const EcmWalFigures *f, const EcmWalLimits *l)
{
	int64_t		frees = f->frees_for_room < 0 ? f->retained : f->frees_for_room;

	if (f->frees_for_room >= 0 && f->free >= l->min_free / 2)
		frees -= f->recycled;
	return frees >= ECM_WAL_BLAME_BYTES && frees >= f->segment;
}

/*
 * Of the limits because of which the slot would be dropped if that were of
 * use: those that have not been reported yet.
 */
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

	/*
	 * no chance is given where none would help, where less than half of
	 * min_wal_free_space is left, and after the last one
	 */
	if (drop != 0 &&
		(!may_recover || (drop_low && no_time) || g->chances >= MAX_CHANCES))
		return actions | drop;
	if (drop == 0 && !for_limit && !for_server && !for_free)
		return actions;

	/* chances are at least FOLLOW_US apart */
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
	 * Our slot may begin just at "seen", if everything before it had been
	 * confirmed.  So may one that was made at that moment; but that one has
	 * confirmed, beyond "seen", the record of running transactions with which
	 * its creation ended.
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
