/*-------------------------------------------------------------------------
 *
 * shape_offset.c
 *	  Where in a log an offset is, if it is one of this log's.
 *
 * A reader who goes on from an offset that he was not given for this log would
 * miss entries and never know.  He may have it from another shape; from before
 * the oldest part was folded; from a base or a snapshot that another server
 * has made, or this one before it was recovered to an earlier point; or from a
 * primary that is ahead of this standby.  So an offset must be that of an entry
 * (or of the last one that was folded, which the log's base remembers).
 *
 * What a lost primary has committed beyond the point where another server took over
 * is at LSNs that this log comes to as well; such an offset has another epoch
 * (shape_epoch.h).
 *
 * One kind of offset is right although there is no entry: one that the log
 * will have.  A reader may have read entries that a crash of the server has
 * taken from the log; they come back by the stream.  And a standby may not
 * have replayed entries that a reader has read at the primary.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/spi.h"
#include "shape/shape.h"
#include "shape/shape_chunk.h"
#include "shape/shape_epoch.h"
#include "shape/shape_log.h"
#include "shape/shape_offset.h"

#define READ_AGAIN_HINT \
	"Read the log from its beginning, after_offset => '-1', in place of what has been read so far."

pg_noreturn static void
report_folded(const EcmShapeDef *shape, const EcmLogBase *base,
			  const EcmOffset *after)
{
	char		offset[ECM_OFFSET_LEN];
	char		base_offset[ECM_OFFSET_LEN];

	ecm_offset_format(offset, after->lsn, after->op);
	ecm_offset_format(base_offset, base->lsn, base->op);
	ereport(ERROR,
			(errcode(ECM_ERRCODE_OFFSET),
			 errmsg("offset %s is not in the log of shape \"%s\" any more",
					offset, shape->handle),
			 errdetail("What came before %s has been folded: see electric_cm.shape_log_retention.",
					   base_offset),
			 errhint(READ_AGAIN_HINT)));
}

/*
 * Was the offset given in this server's history?  A standby may not have replayed the row
 * of the offset's epoch yet, though it has the WAL at the offset's LSN: the one comes after
 * the other.  A primary has all epochs of its history.
 */
static EcmEpochVerdict
judge_history(const EcmOffset *after)
{
	Snapshot	snapshot;
	EcmEpochVerdict verdict;

	if (after->lsn == 0 || !ecm_op_is_stream(after->op))
		return ECM_EPOCH_RIGHT;
	/* the reader's own snapshot may be older than an epoch */
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	verdict = ecm_epoch_judge_offset(snapshot, after->lsn, after->op);
	UnregisterSnapshot(snapshot);
	return verdict == ECM_EPOCH_UNKNOWN && !RecoveryInProgress() ? ECM_EPOCH_OTHER : verdict;
}

/* Everything that readers have had was flushed. */
static bool
is_beyond_end(const EcmOffset *after)
{
	return !RecoveryInProgress() && after->lsn >= GetFlushRecPtr(NULL);
}

bool
ecm_offset_is_before_log(const EcmShapeDef *shape, const EcmOffset *offset)
{
	return !offset->before_all && ecm_op_is_cut(offset->op) && offset->lsn < shape->live_lsn;
}

/*
 * A cut is no entry's offset.  It is good if it was given in this server's history.
 */
static bool
is_good_cut(const EcmOffset *after)
{
	return ecm_op_is_cut(after->op) && judge_history(after) == ECM_EPOCH_RIGHT &&
		!is_beyond_end(after);
}

void
ecm_offset_start(const EcmShapeDef *shape, Snapshot snapshot,
				 const EcmLogBase *base, const EcmOffset *after,
				 bool is_position, EcmLogStart *start)
{
	EcmChunkScan cs;
	int			cmp;

	/* entries before the base have been folded, and are about to be deleted */
	start->lsn = base->lsn;
	start->op = base->op + 1;
	start->known = after->before_all;
	if (after->before_all)
		return;

	cmp = ecm_offset_cmp(after->lsn, after->op, base->lsn, base->op);
	if (cmp < 0)
		report_folded(shape, base, after);
	if (cmp == 0 ||
		(base->lsn != 0 && after->lsn == base->lsn && ecm_op_is_stream(after->op) &&
		 (is_position || is_good_cut(after))))
	{
		/*
		 * The offset is that of the last entry that was folded, or a later
		 * one in the same transaction, of another shape.  A reader who has
		 * read the log up to there, before the fold, has all rows of the
		 * base, so he goes on after it.  At 0_0, though, no reader has read
		 * anything; it stands for the offset of a log without entries.
		 */
		start->known = true;
		if (base->lsn != 0)
		{
			start->lsn = base->lsn + 1;
			start->op = 0;
		}
		return;
	}

	/* the offset is in the last chunk that does not begin after it */
	ecm_chunk_scan_begin(&cs, shape->id, BTLessEqualStrategyNumber,
						 after->lsn, after->op, snapshot, AccessShareLock);
	ecm_chunk_scan_one_base(&cs, base->lsn);
	if (ecm_chunk_scan_next(&cs) &&
		ecm_offset_cmp(cs.first_lsn, cs.first_op, start->lsn, start->op) >= 0)
	{
		start->lsn = cs.first_lsn;
		start->op = cs.first_op;

		/* a chunk of one entry, which may be large, need not be read again */
		if (cs.entries == 1)
		{
			cmp = ecm_offset_cmp(cs.first_lsn, cs.first_op, after->lsn, after->op);
			start->known = cmp == 0;
			if (cmp == 0 || is_position || ecm_op_is_cut(after->op))
				start->op++;
		}
	}
	ecm_chunk_scan_end(&cs);
	start->known |= is_position || is_good_cut(after);
}

void
ecm_offset_check_here(const EcmOffset *position)
{
	bool		other = judge_history(position) == ECM_EPOCH_OTHER;
	char		offset[ECM_OFFSET_LEN];

	if (!other && !is_beyond_end(position))
		return;
	ecm_offset_format(offset, position->lsn, position->op);
	ereport(ERROR,
			(errcode(ECM_ERRCODE_OFFSET),
			 errmsg("offset %s was not given by this server", offset),
			 other ? errdetail("It was given by a server that others went on without, after a failover: this server does not have that history.") :
			 errdetail("It is beyond the end of this server's WAL.")));
}

XLogRecPtr
ecm_stored_progress(int worker, Snapshot snapshot)
{
	static SPIPlanPtr plan;
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(worker);
	EcmSpiState spi;
	XLogRecPtr	lsn = InvalidXLogRecPtr;

	PushActiveSnapshot(snapshot);
	ecm_spi_begin(&spi);
	if (plan == NULL)
	{
		plan = SPI_prepare("SELECT max(lsn) FROM _electric_cm.progress WHERE worker = $1",
						   1, &type);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare the look at progress");
	}
	if (SPI_execute_plan(plan, &value, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look at progress");
	if (SPI_processed > 0)
	{
		bool		isnull;
		Datum		max = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
										1, &isnull);

		if (!isnull)
			lsn = DatumGetLSN(max);
	}
	ecm_spi_end(&spi);
	PopActiveSnapshot();
	return lsn;
}

/*
 * May the log have an entry at an offset that it does not have now?  Two facts
 * decide.  An entry that a reader could read has been flushed at the primary,
 * and so has the WAL that it was made of; so its LSN is below the end of
 * flushed WAL.  And transactions come to the log in the order of their LSNs,
 * each as a whole; so an offset can't come any more if the log, or its
 * consumer's progress, is beyond it.
 */
static bool
may_come(const EcmShapeDef *shape, Snapshot snapshot, const EcmLogBase *base,
		 const EcmOffset *after, XLogRecPtr logged_lsn)
{
	bool		standby = RecoveryInProgress();
	uint64		last_lsn;
	uint64		last_op;

	/* a standby may not have replayed the primary's latest base yet */
	if (ecm_op_is_base(after->op))
		return standby && after->lsn > base->lsn;
	if (after->lsn == 0)
		return false;
	if (ecm_log_last_offset(shape->id, shape->gap_lsn, snapshot, &last_lsn, &last_op) &&
		after->lsn <= last_lsn)
		return false;
	if (is_beyond_end(after) || (!standby && after->lsn < logged_lsn))
		return false;
	return after->lsn >= ecm_stored_progress(shape->worker, snapshot);
}

void
ecm_offset_check_may_come(const EcmShapeDef *shape, Snapshot snapshot,
						  const EcmLogBase *base, const EcmOffset *after,
						  XLogRecPtr logged_lsn)
{
	bool		other = judge_history(after) == ECM_EPOCH_OTHER;
	bool		beyond = is_beyond_end(after);
	char		offset[ECM_OFFSET_LEN];

	if (!other && may_come(shape, snapshot, base, after, logged_lsn))
		return;
	ecm_offset_format(offset, after->lsn, after->op);
	ereport(ERROR,
			(errcode(ECM_ERRCODE_OFFSET),
			 errmsg("offset %s is not in the log of shape \"%s\"",
					offset, shape->handle),
			 other ? errdetail("It was given by a server that others went on without, after a failover: this server does not have that history.") :
			 beyond ? errdetail("It is beyond the end of this server's WAL.") :
			 errdetail("It is an offset of another shape, or of this log as another server has it, or had it."),
			 errhint(READ_AGAIN_HINT)));
}

void
ecm_offset_report_not_yet(const char *handle, const EcmOffset *after)
{
	bool		standby = RecoveryInProgress();
	char		offset[ECM_OFFSET_LEN];

	ecm_offset_format(offset, after->lsn, after->op);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("offset %s is not in the log of shape \"%s\" yet",
					offset, handle),
			 standby ?
			 errdetail("This standby has replayed WAL up to %X/%X.",
					   LSN_FORMAT_ARGS(GetXLogReplayRecPtr(NULL))) :
			 errdetail("The stack has not come that far in the stream."),
			 standby ?
			 errhint("Try again, or go on reading at the primary.") :
			 errhint("Try again; see electric_cm_status().")));
}
