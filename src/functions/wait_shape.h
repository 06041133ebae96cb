/*-------------------------------------------------------------------------
 *
 * wait_shape.h
 *	  A reader's wait for what comes to a shape's log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_WAIT_SHAPE_H
#define ECM_WAIT_SHAPE_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "portability/instr_time.h"

/*
 * A wait for something to be committed about a shape.  It is timed by a clock
 * that nobody sets.
 */
typedef struct EcmLogWait
{
	int64		shape;			/* its id; 0: not known yet */
	instr_time	began;			/* of the whole wait */
	int64		timeout_ms;		/* -1: none */
	bool		standby;		/* the server is one: nobody wakes us */
	XLogRecPtr	replayed;		/* if so: its position before the last look */
	int			pause_ms;		/* time until another look, even if nobody
								 * wakes us; 0: there is no need for one */
} EcmLogWait;

/* After a wake-up that brought nothing: the first pause until another look. */
#define ECM_FIRST_PAUSE_MS	10

/*
 * Registers this session as one that waits for the shape: whatever is committed about it
 * from now on wakes it.  To be followed by a look with a fresh snapshot, then by
 * ecm_log_wait_sleep(); in the reverse order a commit could be missed.  ERROR unless
 * this database's stack runs, or is about to.  After the wait, also after an ERROR, the
 * caller has to call ecm_waiters_leave().
 */
extern void ecm_log_wait_prepare(EcmLogWait *wait);

/*
 * Sleeps until something may have been committed about the shape since
 * ecm_log_wait_prepare().  False: there is no time left.
 */
extern bool ecm_log_wait_sleep(EcmLogWait *wait);

/* ERROR if the extension has been dropped while we wait. */
extern void ecm_log_wait_check_extension(void);

#endif							/* ECM_WAIT_SHAPE_H */
