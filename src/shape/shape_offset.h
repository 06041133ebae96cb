/*-------------------------------------------------------------------------
 *
 * shape_offset.h
 *	  Where in a log an offset is, if it is one of this log's.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_OFFSET_H
#define ECM_SHAPE_OFFSET_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "utils/snapshot.h"

#include "base/compat.h"
#include "shape/shape.h"
#include "shape/shape_chunk.h"
#include "shape/shape_log.h"

/* The SQLSTATE of an offset that a log doesn't have, or has no more. */
#define ECM_ERRCODE_OFFSET	MAKE_SQLSTATE('E', 'C', '0', '0', '1')

/*
 * The entries after an offset begin in the chunk with that first offset, or in the
 * next one.
 */
typedef struct EcmLogStart
{
	XLogRecPtr	lsn;
	int64		op;
	bool		known;			/* it is an offset of this log; else the chunk
								 * has to have an entry there */
} EcmLogStart;

/* EC001 if what comes after the offset has been folded. */
extern void ecm_offset_start(const EcmShapeDef *shape, Snapshot snapshot,
							 const EcmLogBase *base, const EcmOffset *after,
							 EcmLogStart *start);

/*
 * The log has no entry at an offset.  Returns if it may have one yet: if this
 * server does not have all that was ever in the log.  If that can't be: EC001.
 *
 * logged_lsn: what the stack's position was before the snapshot was taken.
 */
extern void ecm_offset_check_may_come(const EcmShapeDef *shape, Snapshot snapshot,
									  const EcmLogBase *base,
									  const EcmOffset *after,
									  XLogRecPtr logged_lsn);

/* An offset has been waited for in vain: 55000. */
pg_noreturn extern void ecm_offset_report_not_yet(const char *handle,
												  const EcmOffset *after);

#endif							/* ECM_SHAPE_OFFSET_H */
