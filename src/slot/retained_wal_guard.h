/*-------------------------------------------------------------------------
 *
 * retained_wal_guard.h
 *	  When a slot's retained WAL is worth a warning, and when it is too much:
 *	  (state, figures, limits) -> (state, actions).
 *
 * Pure: no server, no I/O, the clock is passed in (microseconds).  What is
 * unknown, or has no limit, is -1.  The state starts as zeros, and lives in
 * shared memory, for a manager and the launcher take turns.
 *
 * Compiled into the extension and into the unit tests.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_RETAINED_WAL_GUARD_H
#define ECM_RETAINED_WAL_GUARD_H

#include <stdbool.h>
#include <stdint.h>

/*
 * A slot that holds less than this, or less than a segment, is not to blame for
 * a full disk; nor is one whose end would free less.
 */
#define ECM_WAL_BLAME_BYTES		(INT64_C(64) * 1024 * 1024)

/* Times between two samples near a limit. */
#define ECM_WAL_NEAR_INTERVAL_US	INT64_C(1000000)

/* What a sample says. */
typedef struct EcmWalFigures
{
	int64_t		at;
	bool		exists;			/* the slot; if not, only "at", current_lsn
								 * and free_bytes are meaningful */
	bool		unreserved;
	bool		lost;
	uint64_t	current_lsn;
	uint64_t	restart_lsn;	/* 0: unknown */
	bool		connected;		/* somebody uses it */
	bool		being_made;		/* its creation is not complete */
	bool		pinned;			/* it is known what pins it */
	int64_t		flush_lag;		/* bytes that are not confirmed */
	int64_t		retained;		/* bytes */
	int64_t		safe;			/* bytes until the server's own limit */
	int64_t		free;			/* bytes under pg_wal */

	/*
	 * Bytes, in whole segments, that nobody but this slot needs: what the
	 * server could remove, or write over, if it were dropped.  Not the same
	 * for both limits, since others may be about to be dropped, too.  -1:
	 * everything that it holds.
	 */
	int64_t		frees_for_limit;
	int64_t		frees_for_room;
	int64_t		segment;		/* bytes; 0: of no account */
	int64_t		recycled;		/* so much of that would be kept as room for
								 * WAL to come (min_wal_size) */
	bool		relieved;		/* a slot has just been dropped to make room */
} EcmWalFigures;

typedef struct EcmWalLimits
{
	int64_t		warning;		/* bytes retained */
	int64_t		limit;			/* bytes retained */
	int64_t		min_free;		/* bytes free */
	int64_t		server_limit;	/* max_slot_wal_keep_size, bytes */
	int64_t		interval_us;
} EcmWalLimits;

/*
 * Actions, as bits.  Those to drop the slot come as long as it is there, all
 * others when there is something to do.
 */
#define ECM_WAL_WARN			0x0001	/* retained WAL has crossed warned_at */
#define ECM_WAL_WARN_OVER		0x0002
#define ECM_WAL_UNRESERVED		0x0004	/* the server is about to give it up */
#define ECM_WAL_LOST			0x0008
#define ECM_WAL_FREE_LOW		0x0010	/* too little is free, whoever has it */
#define ECM_WAL_FREE_OVER		0x0020
#define ECM_WAL_MAKE_ROOM		0x0100	/* it has been dropped for that: let
										 * the server remove its WAL */
#define ECM_WAL_LET_FOLLOW		0x0200	/* log the running transactions, which
										 * is what the slot waits for */
#define ECM_WAL_DROP_LIMIT		0x0040	/* drop the slot: it holds too much
										 * ... */
#define ECM_WAL_DROP_FREE		0x0080	/* ... or the disk is about to be full */
#define ECM_WAL_DROP			(ECM_WAL_DROP_LIMIT | ECM_WAL_DROP_FREE)
#define ECM_WAL_SPARE_LIMIT		0x0400	/* it would be, but for those who hold
										 * ... */
#define ECM_WAL_SPARE_FREE		0x0800	/* ... the same WAL */

/* Which limit is reached first. */
typedef enum EcmWalLimitKind
{
	ECM_WAL_LIMIT_NONE,
	ECM_WAL_LIMIT_RETAINED,
	ECM_WAL_LIMIT_SERVER,
	ECM_WAL_LIMIT_FREE
} EcmWalLimitKind;

typedef struct EcmWalGuard
{
	/* the last sample that rates were computed from; at 0: none */
	int64_t		at;
	uint64_t	current_lsn;
	uint64_t	restart_lsn;	/* 0: unknown */
	bool		wal_rate_known;
	double		seconds;		/* for so long the slot has been observed, up
								 * to the time constant of the averages */

	/* what has been said */
	int64_t		warned_at;		/* bytes of the last warning, 0: none */
	bool		unreserved;
	bool		lost;
	bool		free_low;
	unsigned	spared;			/* ECM_WAL_SPARE_... */

	/*
	 * The slot was dropped lest the disk fill up: no new one before there is
	 * room again.
	 */
	bool		short_of_room;
	bool		room_made;		/* that has been acted on */

	/* a slot that could follow is given the chance before it is dropped */
	int64_t		follow_at;		/* when it was last, 0: never */
	int			chances;		/* so often beyond a limit */
	bool		follow_for_room;	/* what it lets go of shall be removed */

	/* results */
	double		wal_rate;		/* bytes/s written; an average over a minute */
	double		growth;			/* bytes/s by which the slot falls behind */
	int64_t		time_to_limit_us;	/* if it goes on like that; -1: no limit
									 * is near, or the slot keeps up */
	EcmWalLimitKind next_limit; /* the one that is meant by that */
	bool		near_limit;
} EcmWalGuard;

extern unsigned ecm_retained_wal_guard_step(EcmWalGuard *guard,
											const EcmWalFigures *figures,
											const EcmWalLimits *limits);

/*
 * How many bytes of WAL may be written for what could as well be done later,
 * lest that alone leads to a limit: as long as the slot holds less than a
 * quarter of one, and half of what is free may be used.  0: none now.
 */
extern int64_t ecm_retained_wal_guard_allowance(const EcmWalFigures *figures,
												const EcmWalLimits *limits);

/*
 * Was a slot with these positions (0: unknown) there when all WAL that there was
 * had been seen, up to "seen"?
 */
extern bool ecm_retained_wal_guard_slot_is_older(uint64_t restart_lsn, uint64_t confirmed_lsn,
												 uint64_t seen);

/* To be called when the slot has been dropped for that reason. */
extern void ecm_retained_wal_guard_dropped(EcmWalGuard *guard, unsigned why);

#endif							/* ECM_RETAINED_WAL_GUARD_H */
