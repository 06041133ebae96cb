/*-------------------------------------------------------------------------
 *
 * wait_shape.c
 *	  A reader's wait for what comes to a shape's log.
 *
 * Consumers wake those who wait for a shape after each commit about it (waiters.c).
 * On a standby there is nobody to do that, so it is polled whether WAL was replayed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "storage/latch.h"

#include "base/shmem.h"
#include "base/wait_event.h"
#include "base/waiters.h"
#include "functions/await.h"
#include "functions/wait_shape.h"

/* How long a standby that has looked does not look again. */
#define STANDBY_PAUSE_MS	5
/* Longer pauses than this are not needed: no wait is longer. */
#define MAX_SLEEP_MS		3600000

void
ecm_log_wait_check_extension(void)
{
	if (!OidIsValid(get_extension_oid("electric_cm", true)))
		ecm_report_stack_gone();
}

void
ecm_log_wait_prepare(EcmLogWait *wait)
{
	EcmStack   *copy;
	int			index;

	wait->standby = RecoveryInProgress();
	if (wait->standby)
	{
		wait->replayed = GetXLogReplayRecPtr(NULL);
		return;
	}

	ecm_require_shared();
	if (!IsUnderPostmaster)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot wait for a shape in single-user mode"),
				 errdetail("No stack runs there, so it would wait for ever."),
				 errhint("Start the server.")));
	if (wait->shape != 0)
		ecm_waiters_join(wait->shape);
	index = ecm_stack_find(MyDatabaseId);
	if (index < 0)
	{
		ecm_log_wait_check_extension();
		ecm_ensure_own_stack();
		index = ecm_stack_find(MyDatabaseId);
	}
	copy = palloc(sizeof(EcmStack));
	if (index < 0 || !ecm_stack_copy_head(index, copy) ||
		copy->dboid != MyDatabaseId)
		ecm_report_stack_gone();
	ecm_check_stack_alive(copy);
	pfree(copy);
}

/* Milliseconds that are left of a wait, up to a maximum; 0: it is over. */
static long
time_left(const EcmLogWait *wait, long max_ms)
{
	instr_time	now;
	int64		left;

	if (wait->timeout_ms < 0)
		return max_ms;
	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, wait->began);
	left = wait->timeout_ms - (int64) INSTR_TIME_GET_MILLISEC(now);
	return (long) Max(Min(left, max_ms), 0);
}

/*
 * A wake-up may come before its cause can be seen.  When a shape is dropped, the consumer
 * wakes its readers as soon as the stream has the commit; but that commit may still be
 * waiting for a synchronous standby, and nobody wakes us when it is visible.  So after
 * each wake-up there are further looks, after ever longer pauses.
 */
bool
ecm_log_wait_sleep(EcmLogWait *wait)
{
	instr_time	began;
	long		pause_ms = wait->pause_ms > 0 ? wait->pause_ms : MAX_SLEEP_MS;
	bool		woken = false;

	if (time_left(wait, 1) == 0)
		return false;
	INSTR_TIME_SET_CURRENT(began);
	for (;;)
	{
		EcmLogWait	pause = {.began = began, .timeout_ms = pause_ms};
		long		left = time_left(&pause, time_left(wait, MAX_SLEEP_MS));

		woken = !wait->standby && ecm_waiters_woken();
		if (woken || left == 0)
			break;
		if (wait->standby)
			ecm_sleep_for_replay(wait->replayed, left, STANDBY_PAUSE_MS, ECM_WAIT_SHAPE_LOG);
		else
			ecm_sleep(left, ECM_WAIT_SHAPE_LOG);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();

		/* after the sleep, lest we look all the time while WAL comes in */
		woken = wait->standby &&
			(GetXLogReplayRecPtr(NULL) != wait->replayed || !RecoveryInProgress());
		if (woken)
			break;
	}

	if (wait->standby)
		wait->pause_ms = 0;
	else if (woken)
		wait->pause_ms = ECM_FIRST_PAUSE_MS;
	else if (wait->pause_ms > 0 && wait->pause_ms < MAX_SLEEP_MS / 2)
		wait->pause_ms *= 2;
	return true;
}
