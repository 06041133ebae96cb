/*-------------------------------------------------------------------------
 *
 * shape_expiry.c
 *	  The manager's part in dropping shapes that nobody reads.
 *
 * When a shape was last read is known to shared memory only (ecm_last_read()).  So nothing
 * expires before reads have been noted for as long as a shape may go without one: since the
 * server's start, or the promotion.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/clock.h"
#include "base/errors.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "connection/conn.h"
#include "connection/pool.h"
#include "manager/shape_expiry.h"

/* Shapes are looked at ten times until they could expire, and every so often. */
#define LOOKS			10
#define MIN_PAUSE_MS	1000
#define MAX_PAUSE_MS	600000

static struct
{
	uint64		job;			/* 0: none runs */
	EcmTime		look_at;		/* when to look next; 0: not set yet */
	EcmError	last_error;		/* the same one again is no event */
}			expiry;

void
ecm_expiry_init(int stack_index)
{
	EcmStack   *stack = ecm_stack_at(stack_index);

	ecm_lock(LW_EXCLUSIVE);
	if (stack->reads_since == 0)
		stack->reads_since = ecm_wall_clock();
	ecm_unlock();
}

static EcmTime
next_look(EcmTime now)
{
	int64		pause_ms = ecm_shape_expiry * INT64CONST(1000) / LOOKS;

	return ecm_later(now, (int) Min(Max(pause_ms, MIN_PAUSE_MS), MAX_PAUSE_MS));
}

static void
expire_done(void *arg pg_attribute_unused(), EcmConn *conn pg_attribute_unused(), const EcmError *err)
{
	expiry.job = 0;
	if (err != NULL && strcmp(err->message, expiry.last_error.message) != 0)
		ereport(LOG,
				(errmsg("could not look for shapes that nobody reads: %s", err->message)));
	if (err != NULL)
		expiry.last_error = *err;
	else
		expiry.last_error.message[0] = '\0';
}

void
ecm_expiry_poll(EcmTime now)
{
	if (expiry.job != 0 || ecm_shape_expiry == 0)
		return;
	if (expiry.look_at == 0 || expiry.look_at > next_look(now))
		expiry.look_at = next_look(now);
	if (now < expiry.look_at)
		return;
	expiry.look_at = next_look(now);
	expiry.job = ecm_pool_submit(psprintf("SELECT _electric_cm.expire_shapes(%d)", ecm_shape_expiry),
								 0, expire_done, NULL);
}

void
ecm_expiry_stream_lost(void)
{
	if (expiry.job != 0)
		ecm_pool_cancel(expiry.job);
	expiry.job = 0;
}
