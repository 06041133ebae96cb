/*-------------------------------------------------------------------------
 *
 * shape_entry.h
 *	  Entries of shape logs: decoded and checked.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_ENTRY_H
#define ECM_SHAPE_ENTRY_H

#include "postgres.h"

#include "compat.h"
#include "shape.h"
#include "shape_chunk.h"
#include "shape_log.h"

/* XX001, naming the offset. */
pg_noreturn extern void ecm_entry_report_corrupt(const EcmShapeDef *shape,
												 uint64 lsn, uint64 op);

/*
 * The next entry of a chunk; false at its end.  What comes out is what the
 * operation should have: the tuples it needs, with all the shape's columns.
 */
extern bool ecm_entry_next(const EcmShapeDef *shape, const EcmChunkScan *cs,
						   EcmChunkReader *r);

/*
 * A key column of an entry: the new one; the old one in a delete, and where
 * an update of a row with a TOASTed, unchanged key leaves the new one out.
 * old_values may be NULL.
 */
extern const EcmValue *ecm_entry_key_column(EcmOp op, const EcmValue *new_values,
											const EcmValue *old_values,
											int column);

/* How many of the values were not sent. */
extern int	ecm_entry_missing(const EcmValue *values, int nvalues);

#endif							/* ECM_SHAPE_ENTRY_H */
