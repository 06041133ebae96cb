/*-------------------------------------------------------------------------
 *
 * manager_wal.c
 *	  The WAL that the stack's slot retains: samples, and what a limit costs.
 *
 * retained_wal.c samples the slot and says whether it has to go, for the sake of
 * electric_cm.retained_wal_limit or min_wal_free_space (EcmWalAction).  This file has
 * what the manager does about that.  To drop the slot costs a resync of all shapes, so
 * it is the last resort: a stream that is cut off, or is just catching up, gets its chance
 * first.  But each such delay is bounded, as a full disk stops the server.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/standby.h"
#include "utils/builtins.h"

#include "base/settings.h"
#include "base/shmem.h"
#include "base/text.h"
#include "connection/conn.h"
#include "manager/consumer_queues.h"
#include "manager/manager.h"
#include "manager/stack_report.h"
#include "slot/retained_wal.h"

/* A consumer without progress for so long is not waited for any more. */
#define CONSUMER_HANGS_MS		3000
/* The walsender has so long to answer before its stream is given up for a limit. */
#define LAST_WORD_MS			2000
/* A slot whose restart_lsn stays the same for so long is helped on. */
#define SLOT_STANDS_MS			60000

/*
 * Before the slot is dropped: has the walsender answered, so that the retained WAL is
 * not the fault of a connection that is cut off?  The first call asks.  A walsender
 * that works, or waits for a lock, can't answer; it gets the time that a stream may
 * have to catch up.  False: not yet, or not in time; only then 'lost' is filled.
 */
static bool
has_last_word(Manager *m, EcmTime now, EcmStepFailure *lost)
{
	EcmTime		asked = m->flow.last_word_asked;

	if (asked == 0 || now - asked > 2 * LAST_WORD_MS * INT64CONST(1000))
	{
		m->flow.last_word_asked = now;
		m->flow.last_word = true;
		ecm_replication_look_at_walsender(&m->replication);
		SetLatch(MyLatch);		/* ask at once */
		return false;
	}
	if (ecm_conn_heard_at(m->replication.conn) >= asked)
		return true;
	if (ecm_replication_may_be_silent(&m->replication))
		return !ecm_manager_may_catch_up(m, now);
	if (ecm_has_passed(asked, now, LAST_WORD_MS))
		ecm_replication_set_silent(&m->replication, now - asked, lost);
	return false;
}

/* Is the disk so full that nothing can be waited for? */
static bool
is_no_time_left(const Manager *m, bool urgent)
{
	EcmWalLimits limits;

	ecm_retained_wal_effective_limits(&m->stack->wal_settings, &limits);
	return urgent && m->stack->slot.sample.wal_free_bytes < limits.min_free / 2;
}

/*
 * The slot retains too much.  In this order: nothing, while the stream may catch up;
 * or one shape is given up, if it holds up the others; or the stream is opened anew, if it seems to be cut off; or the slot goes.  If the
 * stack is connected, the machine drops the slot and makes a new one, which counts as
 * a recreation.  Else it is dropped right here, and the step create_slot finds none
 * when it comes to that.  Free space below its limit allows no delay (urgent).
 * True: 'in' is filled.
 */
static bool
enforce_wal_limit(Manager *m, EcmTime now, const EcmWalAction *action,
				  RoundInput *in)
{
	EcmStepFailure lost = {.kind = ECM_ERROR_RETRY};
	bool		urgent = (action->why & ECM_WAL_DROP_FREE) != 0;

	if (!urgent && now < m->loss.catches_up_until)
		return false;
	if (m->state.streaming_up && !is_no_time_left(m, urgent) &&
		ecm_manager_relieves_slot(m, now, urgent))
		return false;

	/* a stream that is cut off, or hangs, is opened anew first, once */
	if (m->state.streaming_up &&
		(ecm_replication_has_lost_slot(&m->replication, true, &lost) ||
		 (!urgent && !m->flow.congested && !has_last_word(m, now, &lost))))
	{
		if (lost.err.sqlstate[0] == '\0')
			return false;
		if (ecm_manager_may_catch_up(m, now))
		{
			in->failure = lost;
			return round_failed(in, ECM_INPUT_REPLICATION_LOST);
		}
	}
	if (!m->state.lock_held || !m->state.replication_up ||
		ecm_replication_slot_is_held_up(&m->replication))
	{
		ecm_retained_wal_drop_slot(m->stack_index, action);
		return false;
	}
	if (m->replication.creation.drop_first)
		return false;			/* create_slot is about to drop it */
	m->last_reported = action->reason;	/* so no second event: the one of
										 * ecm_retained_wal_slot_goes() says
										 * more */
	m->wal.slot_horizon = ReadNextTransactionId();
	ecm_retained_wal_slot_goes(m->stack_index, action);
	in->failure.err = action->reason;
	in->failure.kind = ECM_ERROR_RECREATE;
	return round_failed(in, ECM_INPUT_REPLICATION_LOST);
}

/*
 * The slot that is being created retains too much, and goes with the session
 * that creates it, or is dropped.  No shape depends on it yet, so this is no recreation.
 */
static bool
end_slot_creation(Manager *m, const EcmWalAction *action, RoundInput *in)
{
	m->last_reported = action->reason;
	m->wal.slot_horizon = ReadNextTransactionId();
	ecm_retained_wal_creation_ends(m->stack_index, action);
	if (m->replication.creation.unsettled)
	{
		EcmError	err;

		if (!ecm_slot_drop(m->stack->slot.name, &err))
			m->replication.creation.drop_first = true;
	}
	in->failure.err = action->reason;
	in->failure.kind = ECM_ERROR_RETRY;
	return round_failed(in, ECM_INPUT_REPLICATION_LOST);
}

/*
 * Fills 'pin' with the consumer that may hold the slot back: one that hangs; or else
 * the one that is farthest behind, if any has work, which is not certain.  by "": no
 * consumer does.
 */
static void
suspect_consumer(Manager *m, EcmTime now, EcmPin *pin)
{
	EcmStalledConsumer last;
	XLogRecPtr	durable;
	XLogRecPtr	end = GetXLogWriteRecPtr();
	char		idle[64] = "";

	*pin = m->wal.consumer_pin;
	if (pin->by[0] != '\0' || !m->state.streaming_up ||
		!ecm_queues_find_last(now, &last, &durable) || durable >= end)
		return;
	if (ecm_has_passed(last.since, now, CONSUMER_HANGS_MS))
		snprintf(idle, sizeof(idle), ", which has made no progress for " INT64_FORMAT " s",
				 (now - last.since) / USECS_PER_SEC);
	/* a consumer's position stands still while the stream has nothing for it */
	durable = Min(Max(durable, m->replication.stream.acknowledged_lsn), end);
	snprintf(pin->by, sizeof(pin->by), "consumer %d (PID %d)%s, with %s of WAL to come",
			 last.worker + 1, last.pid, idle, ecm_size_text((int64) (end - durable)));
	pin->since = ecm_shown_time(last.since);
	pin->certain = false;
}

/*
 * Closes the stream of a slot that the next checkpoint will invalidate, if it is not
 * read since a consumer hangs.  The checkpointer ends the walsender first and waits
 * for that; but a walsender that has something to send which nobody reads does not
 * end, and all checkpoints would wait with it.  While the consumer makes progress,
 * so does the walsender, and to start over would only cost time.
 */
static bool
let_go_of_slot(Manager *m, EcmTime now, RoundInput *in)
{
	EcmStalledConsumer consumer;

	if (!ecm_queues_find_stalled(now, CONSUMER_HANGS_MS, &consumer))
		return false;
	(void) ecm_failure_make(&in->failure, ECM_ERROR_RETRY, "55000",
							psprintf("replication slot \"%s\" will be lost at the next checkpoint",
									 m->stack->slot.name),
							"The stream is not read, since a consumer hangs.", "");
	return round_failed(in, ECM_INPUT_REPLICATION_LOST);
}

/*
 * Will the server invalidate the slot soon?  It does so at a checkpoint, without asking
 * anybody: something has to be done about it before.
 */
static bool
is_near_server_limit(const Manager *m)
{
	const EcmWalSample *sample = &m->stack->slot.sample;
	int64		limit = ecm_max_slot_wal_keep_bytes();

	return sample->slot_exists && limit >= 0 &&
		(strcmp(sample->wal_status, "unreserved") == 0 ||
		 (sample->safe_wal_size >= 0 && sample->safe_wal_size < limit / 4));
}

/*
 * Writes a record of the running transactions, which a slot's restart_lsn needs to
 * move on, if it has not moved for SLOT_STANDS_MS though the stream keeps up.  The
 * server writes such records by a clock that may have been set back, and then not at
 * all for a long time.
 */
static void
help_slot_on(Manager *m, EcmTime now)
{
	const EcmWalSample *wal = &m->stack->slot.sample;

	if (wal->restart_lsn != m->wal.restart_lsn)
	{
		m->wal.restart_lsn = wal->restart_lsn;
		m->wal.stands_since = now;
	}
	if (!m->state.streaming_up || !wal->slot_exists ||
		wal->retained_wal_bytes < wal_segment_size ||
		wal->retained_wal_bytes < 2 * wal->flush_lag_bytes ||
		!ecm_has_passed(m->wal.stands_since, now, SLOT_STANDS_MS))
		return;
	m->wal.stands_since = now;
	LogStandbySnapshot();
}

/*
 * Part of the round: samples the slot, if that is due or somebody has asked for it,
 * and acts on what the sample says.
 */
bool
ecm_manager_sample_wal(Manager *m, EcmTime now, RoundInput *in)
{
	EcmWalAction action;
	EcmPin		pin;
	bool		found = false;

	m->wal.sampled = now >= m->wal.sample_at || m->stack->requests.sample;
	if (!m->wal.sampled)
	{
		ecm_manager_wake_at(m, m->wal.sample_at);
		return false;
	}
	ecm_report_connections(m->replication.conn);	/* whose walsender it is */
	suspect_consumer(m, now, &pin);
	m->wal.sample_at = ecm_retained_wal_watch(m->stack_index, &pin, &action);
	ecm_manager_wake_at(m, m->wal.sample_at);
	if (action.why == 0 && !is_near_server_limit(m))
		ecm_manager_relief_over(m);
	else if (action.why == 0 && m->state.streaming_up &&
			 ecm_manager_relieves_slot(m, now, false))
		return false;
	if (action.why != 0 && ecm_replication_creates_slot(&m->replication))
		found = end_slot_creation(m, &action, in);
	else if (action.why != 0 && (m->stack->slot.owned || ecm_slot_temporary))
		found = enforce_wal_limit(m, now, &action, in);
	else if (action.why != 0)
		ecm_retained_wal_drop_slot(m->stack_index, &action);	/* says that it stays */
	else if (m->state.streaming_up && m->flow.congested &&
			 strcmp(m->stack->slot.sample.wal_status, "unreserved") == 0)
		found = let_go_of_slot(m, now, in);
	return found;
}

/*
 * Part of the round, after a sample: says whether a slot may be created, as the last
 * part may have dropped it, and helps one on that stands still.
 */
bool
ecm_manager_after_sample(Manager *m, EcmTime now,
						 RoundInput *in pg_attribute_unused())
{
	if (!m->wal.sampled)
		return false;
	ecm_manager_hold_slot(m);
	help_slot_on(m, now);
	return false;
}
