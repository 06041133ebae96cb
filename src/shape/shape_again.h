/*-------------------------------------------------------------------------
 *
 * shape_again.h
 *	  Keys that are read again, for entries that lack values (see
 *	  shape_judge.h).
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_AGAIN_H
#define ECM_SHAPE_AGAIN_H

#include "postgres.h"

#include "shape/shape.h"
#include "shape/shape_captured.h"
#include "shape/shape_chunk.h"

/* Asks for the key of an insert to be read again. */
extern void ecm_again_ask(const EcmShapeDef *shape, const EcmChunkReader *insert);

/*
 * Uses the answers that transaction xid has given for the shape: removes what the
 * rows that were read have, and puts these into their places.  May ask for other
 * keys.  False: that transaction has given none.
 *
 * Errors: XX001 the log or an answer is malformed; and those of
 * ecm_key_cmp_begin() and of types' input functions.
 */
extern bool ecm_again_use(const EcmShapeDef *shape, TransactionId xid);

/* Is a key still to be read again? */
extern bool ecm_again_waits(int64 shape, int generation);

#endif							/* ECM_SHAPE_AGAIN_H */
