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
	int64		shape;			/* 0: not known yet */
	instr_time	began;
	int64		timeout_ms;		/* -1: none */
	bool		standby;		/* nobody wakes us */
	XLogRecPtr	replayed;		/* a standby's position before we looked */
	int			pause_ms;		/* until another look; 0: when woken */
} EcmLogWait;

/* After a wake-up that brought nothing: the first pause until another look. */
#define ECM_FIRST_PAUSE_MS	10

/*
 * Sees to it that a later change will be told of; to be followed by a look with
 * a fresh snapshot.  ERROR unless this database's stack runs, or is about to.
 * In the end, also that of an ERROR: ecm_waiters_leave().
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
