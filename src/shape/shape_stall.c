/*-------------------------------------------------------------------------
 *
 * shape_stall.c
 *	  Work for one shape that takes too long is cancelled, and the shape is to
 *	  blame: electric_cm.shape_stall_timeout.
 *
 * While there is work, a timer ticks, and its handler looks at what is being worked
 * on: nothing has to be armed for each row.  If it is the same piece of work, tick
 * after tick for the timeout, that is cancelled as by pg_cancel_backend().  Ticks are
 * counted instead of time, so a process that was stopped for an hour, or a machine
 * that was asleep, costs no shape.  (Timers go by the wall clock.  While one waits that
 * was set before the clock was set back, nothing is cancelled.)
 *
 * Pieces of work are told apart by ecm_stall_work.steps.  A session that reads a table
 * for a shape does so in one piece, which may take hours; there it is progress, too, if
 * buffers are used.  Ticks within a wait that any shape would meet don't count.
 *
 * The handler also takes the shape that it finds at work for a vote.  A shape that
 * gets most of the votes takes most of the process's time, be it in many small
 * pieces; if the slot is about to be dropped, the manager has that one given up.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/instrument.h"
#include "storage/lock.h"
#include "utils/guc.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "base/clock.h"
#include "base/settings.h"
#include "shape/shape_blame.h"
#include "shape/shape_stall.h"

/* Time between two ticks; a short timeout has at least TICKS of them. */
#define TICK_MS			250
#define TICKS			8

/* Ticks without work, after which the timer is let go of. */
#define IDLE_TICKS		2

/*
 * Votes for a shape and against it (at 250 ms a tick): it is shown from the former on,
 * and what is older than the latter does not count.
 */
#define ENOUGH_VOTES	4
#define MAX_VOTES		40

EcmStallWork ecm_stall_work;
bool		ecm_stall_watching;

static int64 nobody;
const volatile int64 *ecm_stall_give_up = &nobody;

static struct
{
	TimeoutId	timeout;
	bool		registered;
	bool		reads;			/* buffers used are progress */
	int			tick_ms;		/* 0: off, as the setting says */
	EcmStallShown shown;		/* all NULL: there is no manager to show to */

	/* written by the handler only */
	uint64		seen;			/* progress at the last tick */
	int			ticks;			/* that have found no progress since */
	volatile int idle_ticks;	/* that have found no work */
	int64		candidate;		/* who has the votes */
	int			votes;
}			stall;

/* Grows with whatever is a sign of progress. */
static uint64
progress(void)
{
	const BufferUsage *usage = &pgBufferUsage;

	if (!stall.reads)
		return ecm_stall_work.steps;
	return ecm_stall_work.steps + usage->shared_blks_hit + usage->shared_blks_read +
		usage->shared_blks_dirtied + usage->temp_blks_read + usage->temp_blks_written;
}

/*
 * Is what this process does, or waits for, the work for the shape itself?  It would have
 * to wait for locks of tables, for the disk and the like with any other shape, too.
 */
static bool
is_at_work(uint32 wait_event_info)
{
	switch (wait_event_info & 0xFF000000)
	{
		case 0:					/* computing */
		case PG_WAIT_TIMEOUT:
		case PG_WAIT_EXTENSION:
			return true;
		case PG_WAIT_LOCK:
			switch (wait_event_info & 0xFFFF)
			{
				case LOCKTAG_TUPLE:
				case LOCKTAG_TRANSACTION:
				case LOCKTAG_VIRTUALTRANSACTION:
				case LOCKTAG_SPECULATIVE_TOKEN:
				case LOCKTAG_USERLOCK:
				case LOCKTAG_ADVISORY:
					return true;
				default:
					return false;
			}
		default:
			return false;
	}
}

/* Counts a vote for the shape at work (0: against whoever has the votes). */
static void
vote(int64 shape)
{
	if (shape == stall.candidate)
		stall.votes = Min(stall.votes + 1, MAX_VOTES);
	else if (stall.votes > 0)
		stall.votes--;
	else
	{
		stall.candidate = shape;
		stall.votes = 1;
	}
	if (stall.shown.busy_with == NULL)
		return;
	*stall.shown.busy_with = stall.votes >= ENOUGH_VOTES ? stall.candidate : 0;
	*stall.shown.busy_at = ecm_now();
}

/* The timer's handler. */
static void
tick(void)
{
	int64		shape = ecm_here->shape;
	uint64		now = progress();
	bool		at_work = is_at_work(*my_wait_event_info);

	vote(at_work ? shape : 0);
	if (now != stall.seen || (shape == 0 && !ecm_stall_work.value))
	{
		stall.idle_ticks = now != stall.seen ? 0 : stall.idle_ticks + 1;
		stall.seen = now;
		stall.ticks = 0;
	}
	else if (at_work)
		stall.ticks++;
	if (stall.tick_ms == 0 ||
		(stall.ticks < ecm_shape_stall_timeout / stall.tick_ms &&
		 !ecm_stall_is_given_up(shape)))
		return;
	if (ecm_stall_work.fired && stall.ticks > 0 && stall.shown.deaf != NULL)
		*stall.shown.deaf = shape;
	stall.ticks = 0;
	ecm_stall_work.fired = true;
	InterruptPending = true;
	QueryCancelPending = true;
}

/* A process can register only a few timers in its life. */
static void
register_timer(void)
{
	if (!stall.registered)
		stall.timeout = RegisterTimeout(USER_TIMEOUT, tick);
	stall.registered = true;
}

void
ecm_stall_init(const EcmStallShown *shown)
{
	register_timer();
	stall.shown = *shown;
	ecm_stall_give_up = shown->give_up;
}

void
ecm_stall_watch_reading(void)
{
	register_timer();
	stall.reads = true;
	ecm_stall_watch();
}

void
ecm_stall_start(void)
{
	ecm_stall_watching = true;
	stall.tick_ms = ecm_shape_stall_timeout == 0 ? 0 :
		Max(1, Min(TICK_MS, ecm_shape_stall_timeout / TICKS));
	stall.ticks = stall.idle_ticks = stall.votes = 0;
	stall.seen = progress();
	if (stall.tick_ms > 0)
		enable_timeout_every(stall.timeout,
							 TimestampTzPlusMilliseconds(ecm_wall_clock(), stall.tick_ms),
							 stall.tick_ms);
}

void
ecm_stall_stop(void)
{
	if (ecm_stall_watching && stall.tick_ms > 0)
		disable_timeout(stall.timeout, false);
	ecm_stall_watching = false;
	ecm_stall_take_back();
	if (stall.shown.busy_with != NULL)
		*stall.shown.busy_with = 0;
}

void
ecm_stall_rest(void)
{
	if (ecm_stall_watching && stall.idle_ticks >= IDLE_TICKS)
		ecm_stall_stop();
}

void
ecm_stall_take_back(void)
{
	if (!ecm_stall_work.fired)
		return;
	QueryCancelPending = false;
	ecm_stall_work.fired = false;
	if (stall.shown.deaf != NULL)
		*stall.shown.deaf = 0;
}

const char *
ecm_stall_given_up_text(void)
{
	return "it took most of the time of its consumer while the replication slot was at a limit of retained WAL, which would have cost all shapes (see electric_cm.shape_stall_timeout)";
}

bool
ecm_stall_take(ErrorData *edata)
{
	bool		given_up = ecm_stall_is_given_up(ecm_here->shape);
	bool		stalled = edata->sqlerrcode == ERRCODE_QUERY_CANCELED &&
	(ecm_stall_work.fired || given_up);

	ecm_stall_take_back();
	ecm_stall_work.value = false;
	if (!stalled)
		return false;
	edata->sqlerrcode = ECM_ERRCODE_SHAPE_STALLED;
	edata->message = given_up ? pstrdup(ecm_stall_given_up_text()) :
		psprintf("one piece of work for it has held up the others for electric_cm.shape_stall_timeout (%s)",
				 GetConfigOptionByName("electric_cm.shape_stall_timeout", NULL, false));
	edata->detail = edata->hint = NULL;
	return true;
}

void
ecm_stall_rethrow(MemoryContext context)
{
	ErrorData  *edata;

	MemoryContextSwitchTo(context);
	edata = CopyErrorData();
	if (!ecm_stall_take(edata))
		PG_RE_THROW();
	FlushErrorState();
	ReThrowError(edata);
}
