/*-------------------------------------------------------------------------
 *
 * retained_wal_guard.h
 *	  When a slot's retained WAL is worth a warning, and when it is too much:
 *	  (state, figures, limits) -> (state, actions).
 *
 * Pure: no server, no I/O, the clock is passed in (microseconds).  Compiled
 * into the extension and into the unit tests.  A number that is unknown, or a
 * limit that is not set, is -1.
 *
 * retained_wal.c calls it with each sample.  The state starts as zeros.  It
 * lives in shared memory, since the manager and, while there is none, the
 * launcher take turns.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_RETAINED_WAL_GUARD_H
#define ECM_RETAINED_WAL_GUARD_H

#include <stdbool.h>
#include <stdint.h>

/*
 * A slot is not dropped for the sake of free space if it retains less than
 * this, or if that would free less than this or less than one segment.
 */
#define ECM_WAL_BLAME_BYTES		(INT64_C(64) * 1024 * 1024)

/* Time between two samples near a limit. */
#define ECM_WAL_NEAR_INTERVAL_US	INT64_C(1000000)

/* A sample, as far as the guard needs it. */
typedef struct EcmWalFigures
{
	int64_t		at;
	bool		exists;			/* there is a slot; if not, only "at",
								 * current_lsn and "free" are meaningful */
	bool		unreserved;		/* wal_status is "unreserved" */
	bool		lost;			/* ... or "lost" */
	uint64_t	current_lsn;
	uint64_t	restart_lsn;	/* 0: unknown */
	bool		connected;		/* a walsender uses the slot */
	bool		being_made;		/* the slot's creation is not complete */
	bool		pinned;			/* the slot's holder is known */
	int64_t		flush_lag;		/* bytes of WAL that are not confirmed */
	int64_t		retained;		/* bytes of WAL that the slot retains */
	int64_t		safe;			/* bytes that may be written before the
								 * server's own limit (max_slot_wal_keep_size) */
	int64_t		free;			/* free bytes in the file system of pg_wal */

	/*
	 * Bytes, in whole segments, that nobody but this slot needs, so that the
	 * server could remove them, or write over them, if the slot were dropped.
	 * They differ between the two limits, since other slots may be about to
	 * be dropped for the same limit. -1: everything that the slot retains.
	 */
	int64_t		frees_for_limit;
	int64_t		frees_for_room;
	int64_t		segment;		/* size of a WAL segment, bytes; 0: ignore it */
	int64_t		recycled;		/* bytes of freed segments that the server
								 * would keep for later use (min_wal_size) */
	bool		relieved;		/* a slot has just been dropped to make room,
								 * and its WAL may not have been removed yet */
} EcmWalFigures;

typedef struct EcmWalLimits
{
	int64_t		warning;		/* bytes retained */
	int64_t		limit;			/* bytes retained */
	int64_t		min_free;		/* bytes free */
	int64_t		server_limit;	/* max_slot_wal_keep_size, bytes */
	int64_t		interval_us;	/* time between two samples */
} EcmWalLimits;

/*
 * Actions, as bits.  The actions to drop the slot are returned with each
 * sample for as long as the slot is there; all others, once when they are due.
 */
#define ECM_WAL_WARN			0x0001	/* warn of retained WAL */
#define ECM_WAL_WARN_OVER		0x0002
#define ECM_WAL_UNRESERVED		0x0004	/* the server is about to remove WAL
										 * that the slot needs */
#define ECM_WAL_LOST			0x0008
#define ECM_WAL_FREE_LOW		0x0010	/* too little space is free, for
										 * whatever reason */
#define ECM_WAL_FREE_OVER		0x0020
#define ECM_WAL_MAKE_ROOM		0x0100	/* the slot has been dropped, or has
										 * advanced, for want of space:
										 * request a checkpoint, which removes
										 * the WAL */
#define ECM_WAL_LET_FOLLOW		0x0200	/* log the running transactions, so
										 * that the slot can advance */
#define ECM_WAL_DROP_LIMIT		0x0040	/* drop the slot: it retains too much
										 * ... */
#define ECM_WAL_DROP_FREE		0x0080	/* ... or the disk is about to be full */
#define ECM_WAL_DROP			(ECM_WAL_DROP_LIMIT | ECM_WAL_DROP_FREE)
#define ECM_WAL_SPARE_LIMIT		0x0400	/* report that the slot would be
										 * dropped for its size ... */
#define ECM_WAL_SPARE_FREE		0x0800	/* ... or for want of space, if others
										 * did not need the same WAL */

/* Which limit is reached first. */
typedef enum EcmWalLimitKind
{
	ECM_WAL_LIMIT_NONE,
	ECM_WAL_LIMIT_RETAINED,
	ECM_WAL_LIMIT_SERVER,
	ECM_WAL_LIMIT_FREE
} EcmWalLimitKind;

/* The guard's memory of a slot, from one sample to the next. */
typedef struct EcmWalGuard
{
	/* the last sample that rates were computed from; at 0: none */
	int64_t		at;
	uint64_t	current_lsn;
	uint64_t	restart_lsn;	/* 0: unknown */
	bool		wal_rate_known;
	double		seconds;		/* time for which the slot has been observed,
								 * up to the time constant of the averages */

	/* conditions that have been reported, and are not over yet */
	int64_t		warned_at;		/* bytes of the last warning, 0: none */
	bool		unreserved;
	bool		lost;
	bool		free_low;
	unsigned	spared;			/* ECM_WAL_SPARE_... */

	/*
	 * The slot was dropped lest the disk fill up.  No new one is made before
	 * there is room again, or it would fill the disk once more.
	 */
	bool		short_of_room;
	bool		room_made;		/* ECM_WAL_MAKE_ROOM has been returned since */

	/* chances to advance, that a slot gets before it is dropped */
	int64_t		follow_at;		/* time of the last one, 0: never */
	int			chances;		/* number of them past a limit */
	bool		follow_for_room;	/* the last one was given for want of
									 * space: once the slot has advanced,
									 * ECM_WAL_MAKE_ROOM is due */

	/* results */
	double		wal_rate;		/* bytes/s written; an average over a minute */
	double		growth;			/* bytes/s by which the slot falls behind */
	int64_t		time_to_limit_us;	/* until next_limit is reached, at this
									 * growth; -1: none is in sight, or the
									 * slot keeps up */
	EcmWalLimitKind next_limit;
	bool		near_limit;		/* samples are to be taken more often */
} EcmWalGuard;

/* Judges a sample.  Returns the actions that are due, ECM_WAL_... */
extern unsigned ecm_retained_wal_guard_step(EcmWalGuard *guard,
											const EcmWalFigures *figures,
											const EcmWalLimits *limits);

/*
 * How many bytes of WAL may be written now for work that could as well be done
 * later, such as deleting the logs of dropped shapes.  Such work alone must
 * not lead to a limit, so the slot may come to retain a quarter of one at
 * most, and half of the space may be used that is free beyond 125 % of
 * min_free. 0: none now.
 */
extern int64_t ecm_retained_wal_guard_allowance(const EcmWalFigures *figures,
												const EcmWalLimits *limits);

/*
 * Was a slot with these positions (0: unknown) there already when the end of
 * WAL was at "seen"?  See slot_owner.c.
 */
extern bool ecm_retained_wal_guard_slot_is_older(uint64_t restart_lsn, uint64_t confirmed_lsn,
												 uint64_t seen);

/* To be called when the slot has been dropped; why: ECM_WAL_DROP_... */
extern void ecm_retained_wal_guard_dropped(EcmWalGuard *guard, unsigned why);

#endif							/* ECM_RETAINED_WAL_GUARD_H */
