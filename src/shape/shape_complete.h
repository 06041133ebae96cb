/*-------------------------------------------------------------------------
 *
 * shape_complete.h
 *	  Finds the values that inserts in a shape's log lack.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_COMPLETE_H
#define ECM_SHAPE_COMPLETE_H

#include "postgres.h"

#include "utils/snapshot.h"

#include "shape/shape.h"
#include "shape/shape_chunk.h"
#include "shape/shape_log.h"

typedef struct EcmCompleter EcmCompleter;

/*
 * Begins for a reader who reads a log forwards, up to and including an offset.
 */
extern EcmCompleter *ecm_completer_begin(const EcmShapeDef *shape,
										 Snapshot snapshot,
										 uint64 end_lsn, uint64 end_op);

/*
 * Fills in the values that the current entry of r, an insert, lacks; r reads
 * the scan's current chunk.  The texts are copies.
 *
 * The caller must call this for the inserts in the order of the log.
 * max_entries is the number of entries that it will read from here on (0:
 * all): one walk back through the log finds the values for all of them.
 */
extern void ecm_completer_fill(EcmCompleter *completer, const EcmChunkScan *cs,
							   const EcmChunkReader *r, int64 max_entries);

extern void ecm_completer_end(EcmCompleter *completer);

#endif							/* ECM_SHAPE_COMPLETE_H */
