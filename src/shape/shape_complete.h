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
 * Begins for a reader who reads a log forwards, from its base at base_lsn up to
 * and including an offset.
 */
extern EcmCompleter *ecm_completer_begin(const EcmShapeDef *shape,
										 Snapshot snapshot, XLogRecPtr base_lsn,
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

/*
 * For a caller whose transactions must be short, though the walk goes through
 * the whole log.  He asks knows() before he calls fill() for an insert.  If it
 * says no, he has walk_begin() called with the first offset of the chunk and the
 * one of the insert, and walk() until that returns true, for about max_bytes of
 * the log each time.  Then fill() needs no walk of its own.
 *
 * He suspends the completer before his transaction ends, and goes on with a
 * snapshot of the next one. ERROR 55006 if the table has been rewritten
 * meanwhile.
 */
extern bool ecm_completer_knows(EcmCompleter *completer, const EcmChunkReader *r);
extern void ecm_completer_walk_begin(EcmCompleter *completer,
									 XLogRecPtr chunk_lsn, int64 chunk_op,
									 uint64 lsn, uint64 op);
extern bool ecm_completer_walk(EcmCompleter *completer, int64 max_bytes);
extern void ecm_completer_suspend(EcmCompleter *completer);
extern void ecm_completer_go_on(EcmCompleter *completer, Snapshot snapshot);

#endif							/* ECM_SHAPE_COMPLETE_H */
