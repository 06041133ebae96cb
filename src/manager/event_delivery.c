/*-------------------------------------------------------------------------
 *
 * event_delivery.c
 *	  The manager's part in delivering events: it has a pool session do it.
 *
 * Events are recorded in shared memory (event.c); delivering them means to write a
 * table and to NOTIFY, which the manager must not do itself, since the commit may
 * wait.  The session's part is in deliver_events.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/clock.h"
#include "base/errors.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "connection/pool.h"
#include "manager/event_delivery.h"

/* A user may have locked the table; other jobs need the session, too. */
#define JOB_TIMEOUT_MS		5000

static struct
{
	uint64		job;			/* 0: none runs */
	EcmTime		retry_at;		/* no job before */
	bool		failing;		/* the last job has failed, and that is logged */
}			delivery;

/* The job has ended.  A failure is logged once, until a job has succeeded. */
static void
delivered(void *arg, EcmConn *conn pg_attribute_unused(), const EcmError *err)
{
	EcmStack   *stack = arg;

	delivery.job = 0;
	if (err != NULL)
	{
		delivery.retry_at = ecm_later(ecm_now(), ecm_status_check_interval);
		if (!delivery.failing)
			ereport(LOG,
					(errmsg("electric_cm in database \"%s\": could not store events: %s",
							stack->datname, err->message)));
		delivery.failing = true;
		return;
	}
	delivery.failing = false;
}

/*
 * There is no wake-up for retry_at: after a failure the next attempt is made in the
 * first round after it, and the manager's checks see to it that there is one.
 */
void
ecm_events_poll(int stack_index, EcmTime now)
{
	if (delivery.job != 0 || now < delivery.retry_at ||
		!ecm_stack_has_events(stack_index))
		return;
	delivery.job = ecm_pool_submit("SELECT _electric_cm.deliver_events()",
								   JOB_TIMEOUT_MS, delivered,
								   ecm_stack_at(stack_index));
}

void
ecm_events_forget(void)
{
	delivery.job = 0;
}
