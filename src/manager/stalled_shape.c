/*-------------------------------------------------------------------------
 *
 * stalled_shape.c
 *	  One shape that holds up all others is given up: the manager's part.
 *
 * A consumer cancels work for a shape that takes longer than
 * electric_cm.shape_stall_timeout by itself (shape_stall.c).  But when a limit of
 * retained WAL is about to cost all shapes, there is no time to wait for that: the one
 * that takes most of a consumer's time goes first, and the limit waits for what this
 * frees.
 *
 * A consumer that computes something which can't be interrupted does not react.  It is
 * not killed, as that would restart the user's server.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"

#include "base/settings.h"
#include "base/shmem.h"
#include "manager/consumer_queues.h"
#include "manager/manager.h"

/* What a consumer shows counts for so long. */
#define FRESH_MS			2000

/* After a shape was given up, a limit waits for so long without any progress ... */
#define RELIEF_MS			10000
/* ... and for so long in all; or, where the disk is about to be full, this: */
#define MAX_RELIEF_MS		120000
#define MAX_URGENT_MS		20000

static void
give_up(Manager *m, int worker, int64 shape)
{
	m->stack->consumers[worker].give_up = shape;
}

/*
 * Reports a consumer that goes on with work for a shape though that was cancelled:
 * PostgreSQL can't interrupt all that it computes.
 */
void
ecm_manager_find_deaf(Manager *m)
{
	for (int i = 0; i < Min(m->stack->nconsumers, ECM_MAX_SHAPE_WORKERS); i++)
	{
		const EcmConsumerSlot *slot = &m->stack->consumers[i];
		int64		shape = slot->deaf;

		if (shape != 0 && shape != m->stalled.deaf[i])
			ecm_manager_event(m, ECM_EVENT_CONSUMER_STALLED,
							  "It computes something that PostgreSQL can't interrupt. When that ends, the shape that it is for becomes errored, and the others go on.",
							  psprintf("consumer %d (PID %d) does not react to the end of electric_cm.shape_stall_timeout",
									   i + 1, slot->pid));
		m->stalled.deaf[i] = shape;
	}
}

/*
 * Which shape is to blame for what the slot retains?  The one that takes most of the
 * time of the consumer that is farthest behind, if that accounts for most of the WAL.
 */
static int64
find_culprit(Manager *m, EcmTime now, int *worker)
{
	EcmStalledConsumer last;
	XLogRecPtr	durable;
	XLogRecPtr	end = GetXLogWriteRecPtr();
	const EcmWalSample *sample = &m->stack->slot.sample;
	const EcmConsumerSlot *slot;

	if (!m->state.streaming_up || !ecm_queues_find_last(now, &last, &durable))
		return 0;
	durable = Max(durable, m->replication.stream.acknowledged_lsn);
	if (durable >= end ||
		(int64) (end - durable) < sample->retained_wal_bytes / 2)
		return 0;
	slot = &m->stack->consumers[last.worker];
	*worker = last.worker;
	/* a process that is stopped does not know what time it is */
	return ecm_has_passed(slot->busy_at, now, FRESH_MS) ? 0 : slot->busy_with;
}

void
ecm_manager_relief_over(Manager *m)
{
	if (m->stalled.given_up != 0)
		give_up(m, m->stalled.worker, 0);
	m->stalled.given_up = 0;
	m->stalled.since = 0;
}

bool
ecm_manager_relieves_slot(Manager *m, EcmTime now, bool urgent)
{
	XLogRecPtr	applied = ecm_queues_applied_lsn();
	int			worker;
	int64		shape;

	if (ecm_shape_stall_timeout == 0 ||
		(m->stalled.since != 0 &&
		 ecm_has_passed(m->stalled.since, now, urgent ? MAX_URGENT_MS : MAX_RELIEF_MS)))
		return false;

	shape = find_culprit(m, now, &worker);
	if (shape != 0 && shape != m->stalled.given_up)
	{
		if (m->stalled.given_up != 0)
			give_up(m, m->stalled.worker, 0);
		else
			m->stalled.since = now;
		m->stalled.given_up = shape;
		m->stalled.worker = worker;
		m->stalled.moved_at = now;
		give_up(m, worker, shape);
	}
	if (m->stalled.given_up == 0)
		return false;
	if (applied != m->stalled.applied)
		m->stalled.moved_at = now;
	m->stalled.applied = applied;
	return !ecm_has_passed(m->stalled.moved_at, now, RELIEF_MS);
}
