/*-------------------------------------------------------------------------
 *
 * shape_pieces.h
 *	  The pieces that a shape's rows have been read in, for judging captured
 *	  entries.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_PIECES_H
#define ECM_SHAPE_PIECES_H

#include "postgres.h"

#include "shape/shape.h"
#include "shape/shape_judge.h"

/*
 * In a transaction: makes a judge for a message that tells of the pieces up to
 * a number; 0: of the last one, behind which there are no keys.  Pieces are
 * loaded when they are asked for.  All memory is in the current context.
 *
 * Errors, here and when the judge is asked: XX001 a piece is missing, or is
 * malformed; and those of ecm_key_cmp_begin() and of types' input functions.
 */
extern EcmJudge *ecm_pieces_judge(const EcmShapeDef *shape, int64 reading, int last);

/*
 * The same for a shape whose rows one query has read, with that snapshot (a
 * pg_snapshot as text).
 */
extern EcmJudge *ecm_snapshot_judge(const char *snapshot);

#endif							/* ECM_SHAPE_PIECES_H */
