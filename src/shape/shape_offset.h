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

/* SQLSTATE EC001: the log does not have that offset, or not any more. */
#define ECM_ERRCODE_OFFSET	MAKE_SQLSTATE('E', 'C', '0', '0', '1')

/*
 * Where to begin to read the entries after an offset: in the first chunk whose
 * first offset is not before this one.
 */
typedef struct EcmLogStart
{
	XLogRecPtr	lsn;
	int64		op;
	bool		known;			/* the reader's offset is one of this log; if
								 * not, the chunk must turn out to have an
								 * entry at it */
} EcmLogStart;

/*
 * The offset of a cut (see shape_log.h) from before the shape's log could be read: who
 * has it has nothing of the log yet.
 */
extern bool ecm_offset_is_before_log(const EcmShapeDef *shape, const EcmOffset *offset);

/*
 * The position up to which a consumer's logs are complete, by the progress that it stores
 * along with entries; invalid: it has not stored any.
 */
extern XLogRecPtr ecm_stored_progress(int worker, Snapshot snapshot);

/*
 * Finds where to begin for a reader who has read up to 'after'; or, with is_position, who
 * is there in the order of the stream, whether the log has an entry there or not.  ERROR
 * EC001 if entries after that have been folded.
 */
extern void ecm_offset_start(const EcmShapeDef *shape, Snapshot snapshot,
							 const EcmLogBase *base, const EcmOffset *after,
							 bool is_position, EcmLogStart *start);

/* ERROR EC001 unless a position was given in this server's history. */
extern void ecm_offset_check_here(const EcmOffset *position);

/*
 * To be called if the log has no entry at an offset.  Returns if an entry may
 * still come there, because this server does not have all entries that readers
 * have had; otherwise raises ERROR EC001.
 *
 * logged_lsn: flushed_lsn of the stack, read before the snapshot was taken.
 */
extern void ecm_offset_check_may_come(const EcmShapeDef *shape, Snapshot snapshot,
									  const EcmLogBase *base,
									  const EcmOffset *after,
									  XLogRecPtr logged_lsn);

/* ERROR 55000: the caller has waited for an offset in vain. */
pg_noreturn extern void ecm_offset_report_not_yet(const char *handle,
												  const EcmOffset *after);

#endif							/* ECM_SHAPE_OFFSET_H */
