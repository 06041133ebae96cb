/*-------------------------------------------------------------------------
 *
 * read_guard.h
 *	  What happens to a shape whose rows can't be read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_READ_GUARD_H
#define ECM_READ_GUARD_H

#include "postgres.h"

#include "shape/shape.h"

typedef void (*EcmReadCallback) (void *arg);

/*
 * Calls fn, which reads the table for one shape: evaluating its where clause may
 * crash the server, or have the process killed for its use of memory.  If that has
 * happened twice for this shape (see shape_blame.c), raises an ERROR instead.
 * last_word: the shape is the only one at work, so the error ends it, and its
 * deaths are settled.
 */
extern void ecm_read_blamed(const EcmShapeDef *shape, bool last_word,
							EcmReadCallback fn, void *arg);

/*
 * Calls fn, for one shape alone, in a subtransaction.  False: there was an error, the
 * shape is to blame, and its consumer is told so by a message "fail".  Any other
 * error is raised.
 */
extern bool ecm_read_or_fail(int64 id, int generation, bool last_attempt,
							 EcmReadCallback fn, void *arg);

/* Raises an ERROR if a job that reads tables is not called as it should be. */
extern void ecm_read_check_session(void);

#endif							/* ECM_READ_GUARD_H */
