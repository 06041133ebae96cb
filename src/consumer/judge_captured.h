/*-------------------------------------------------------------------------
 *
 * judge_captured.h
 *	  What becomes of the captured entries of a shape, once rows have been read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_JUDGE_CAPTURED_H
#define ECM_JUDGE_CAPTURED_H

#include "postgres.h"

#include "consumer/followed_shapes.h"

/*
 * Where a message commits that tells of rows that were read: those captured entries
 * are removed whose changes these rows have.
 *
 * piece: of a reading, so far.  again: the rows that were read once more.  live: all
 * rows; 'reading' is 0 if one query has read them, with that snapshot.
 *
 * NULL: done.  Otherwise the shape is to end with this error, which is tagged
 * (errors.h), and nothing has been changed.  An ERROR is not the shape's fault.
 * ecm_judge_at_live() returns false as well if the shape is gone, or another attempt
 * to create it has begun.
 */
extern const char *ecm_judge_at_piece(EcmShape *shape, int64 reading, int number);
extern const char *ecm_judge_at_again(EcmShape *shape);
extern bool ecm_judge_at_live(EcmShape *shape, int64 reading, const char *snapshot,
							  const char **reason);

#endif							/* ECM_JUDGE_CAPTURED_H */
