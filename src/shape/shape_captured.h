/*-------------------------------------------------------------------------
 *
 * shape_captured.h
 *	  The captured entries of a shape's log: those that are not to stay are
 *	  removed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_CAPTURED_H
#define ECM_SHAPE_CAPTURED_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "shape/shape.h"
#include "shape/shape_judge.h"
#include "shape/shape_log.h"

/*
 * A place in a log behind which entries may have to be judged again, and what
 * precedes it.  Zeroed: the log's beginning.
 */
typedef struct EcmCapturedMark
{
	XLogRecPtr	lsn;
	int64		op;
	EcmLogTotals kept;			/* size of the captured entries before it */
	EcmLogTotals last;			/* running totals of the last of these */
} EcmCapturedMark;

/* Who decides.  Called in the order of the log. */
typedef struct EcmCapturedRules
{
	void	   *arg;			/* for the functions */

	/* ECM_STAYS, ECM_GOES, or ECM_BY_ENTRY */
	EcmVerdict	(*transaction) (void *arg, uint64 xid);

	/*
	 * ECM_STAYS, ECM_GOES, or ECM_REPLACED: by an insert with these values at
	 * the same offset, which stay valid until the function is called again.
	 */
	EcmVerdict	(*entry) (void *arg, const EcmChunkReader *entry, const EcmValue **row);
} EcmCapturedRules;

/*
 * Removes entries from a log, from the mark on, and moves the mark on to the first
 * transaction all of whose entries stay, if there is any; else to the end of the log.
 * A reader must have no access to the log yet.
 *
 * The result is what the running totals of the log's last chunk have counted that is
 * not in the log.
 *
 * 'shape' may be NULL if no entry is judged by itself.  ERROR XX001 if the log is
 * corrupt, and those of the rules.
 */
extern EcmLogTotals ecm_captured_judge(int64 id, const EcmShapeDef *shape,
									   const EcmCapturedRules *rules, EcmCapturedMark *mark);

/* Where captured entries begin: behind the gap that is to be closed, if there is one. */
extern void ecm_captured_begin(int64 id, XLogRecPtr gap_lsn, EcmCapturedMark *mark);

/* Is there anything in the log from the mark on? */
extern bool ecm_captured_any(int64 id, const EcmCapturedMark *mark);

#endif							/* ECM_SHAPE_CAPTURED_H */
