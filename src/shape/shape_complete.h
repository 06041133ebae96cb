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

/* For who reads a log forwards, up to an offset (that one included). */
extern EcmCompleter *ecm_completer_begin(const EcmShapeDef *shape,
										 Snapshot snapshot,
										 uint64 end_lsn, uint64 end_op);

/*
 * Fills in the values that an insert lacks: the current entry of a reader of
 * the scan's current chunk.  The caller will want that many entries from there
 * on (0: all), and fills them in their order; looking for the values of them
 * all costs one walk back through the log.  The texts are copies.
 */
extern void ecm_completer_fill(EcmCompleter *completer, const EcmChunkScan *cs,
							   const EcmChunkReader *r, int64 max_entries);

extern void ecm_completer_end(EcmCompleter *completer);

#endif							/* ECM_SHAPE_COMPLETE_H */
