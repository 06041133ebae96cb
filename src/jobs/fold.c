/*-------------------------------------------------------------------------
 *
 * fold.c
 *	  A procedure for pool sessions: folds the oldest part of a shape's log,
 *	  lest it grow for ever.
 *
 * To fold a log, its entries up to a point F are replayed, and the rows as
 * they stand at F are stored in place of the entries, as the log's new base.
 * F is the end of a transaction.  The offsets of the rows, <F's lsn>_<identity
 * | n>, lie where the entries have been.  So readers who have read beyond F do
 * not notice.  A reader who has read half of the base gets an error if he goes
 * on where these rows do not exist: at another server, or here after the next
 * fold.
 *
 * One transaction writes the log's row in _electric_cm.shape_base, by which
 * readers know where the log begins.  If the log is short, the same transaction
 * writes the rows; otherwise, many before it do (fold_steps.c).  The chunks that
 * the base replaces are deleted afterwards, little by little, since each delete
 * is decoded.  No process has to wait: consumers append entries behind F, and
 * readers have their snapshots.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/event.h"
#include "base/partition.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "jobs/fold.h"
#include "shape/shape_catalog.h"
#include "shape/shape_gap.h"
#include "shape/shape_readers.h"

/*
 * The default retention (bytes): this, or twice the table's size, whichever is
 * larger.
 */
#define MIN_AUTO_RETENTION	(INT64CONST(1024) * 1024 * 1024)

/* A class of advisory locks that SQL's functions don't use. */
#define FOLD_LOCK_CLASS		4

PG_FUNCTION_INFO_V1(electric_cm_fold_shape);

/* ----------------------------------------------------------------
 * Whether, and up to where
 * ----------------------------------------------------------------
 */

/*
 * The size that the log may have before it is folded (bytes). retention 0: the
 * default.  A fold reads the base, too, so it must not be done each time when
 * a few entries have been added: the log may have twice the size of its base
 * in any case.
 */
static int64
size_limit(const EcmShapeDef *shape, int64 retention, int64 log_bytes,
		   int64 base_bytes)
{
	if (retention == 0)
	{
		retention = MIN_AUTO_RETENTION;
		if (log_bytes > retention)	/* else the table's size makes no
									 * difference */
			retention = Max(retention, 2 * ecm_table_bytes(shape->relation));
	}
	return Max(retention, 2 * base_bytes);
}

/* A chunk of the log, and the size of the stream's entries up to its end. */
typedef struct Chunk
{
	XLogRecPtr	lsn;
	int64		op;
	int64		end;
	int64		bytes;
} Chunk;

/*
 * Finds the last chunk that begins before an offset, if the base does not have it.
 */
static bool
find_chunk_before(const EcmFold *fold, uint64 lsn, uint64 op, Chunk *chunk)
{
	EcmChunkScan cs;
	bool		found;

	ecm_chunk_scan_begin(&cs, fold->shape->id, BTLessStrategyNumber, lsn, op,
						 fold->snapshot, AccessShareLock);
	found = ecm_chunk_scan_next(&cs) && cs.first_lsn > fold->old_base.lsn;
	if (found)
	{
		chunk->lsn = cs.first_lsn;
		chunk->op = cs.first_op;
		chunk->end = cs.totals.bytes;
		chunk->bytes = ecm_chunk_scan_bytes(&cs);
	}
	ecm_chunk_scan_end(&cs);
	return found;
}

/*
 * Finds the last chunk with an LSN such that 'keep' bytes follow its beginning; or
 * the one after it, which may be the first one of a large transaction, if 'keep'
 * bytes follow that one's beginning.  The running totals say how many follow, so
 * that not all of these have to be read.
 */
static bool
find_enough(const EcmFold *fold, int64 keep, Chunk *chunk)
{
	XLogRecPtr	low = fold->old_base.lsn;	/* enough follow here ... */
	XLogRecPtr	high;			/* ... but not here */
	Chunk		last;
	EcmChunkScan cs;

	if (!find_chunk_before(fold, PG_UINT64_MAX, PG_INT64_MAX, &last))
		return false;
	high = last.lsn + 1;
	if (last.bytes >= keep)
		low = last.lsn;
	while (high - low > 1)
	{
		XLogRecPtr	middle = low + (high - low) / 2;
		Chunk		at;

		if (!find_chunk_before(fold, middle, PG_INT64_MAX, &at) ||
			last.end - at.end + at.bytes >= keep)
			low = middle;
		else
			high = middle;
	}
	ecm_chunk_scan_begin(&cs, fold->shape->id, BTGreaterStrategyNumber, low,
						 PG_INT64_MAX, fold->snapshot, AccessShareLock);
	if (ecm_chunk_scan_next(&cs) &&
		last.end - cs.totals.bytes + ecm_chunk_scan_bytes(&cs) >= keep)
	{
		low = cs.first_lsn;
		chunk->lsn = cs.first_lsn;
		chunk->op = cs.first_op;
		ecm_chunk_scan_end(&cs);
		return true;
	}
	ecm_chunk_scan_end(&cs);
	return find_chunk_before(fold, low, PG_INT64_MAX, chunk);
}

/* The op with which the first chunk at an LSN begins; there must be one. */
static int64
first_op_at(const EcmFold *fold, XLogRecPtr lsn)
{
	EcmChunkScan cs;
	int64		op;

	ecm_chunk_scan_begin(&cs, fold->shape->id, BTGreaterEqualStrategyNumber, lsn, 0,
						 fold->snapshot, AccessShareLock);
	if (!ecm_chunk_scan_next(&cs) || cs.first_lsn != lsn)
		elog(ERROR, "shape " INT64_FORMAT " has no chunk at %X/%X", fold->shape->id, LSN_FORMAT_ARGS(lsn));
	op = cs.first_op;
	ecm_chunk_scan_end(&cs);
	return op;
}

/*
 * Moves the chunk back to the one in which a named reader is who has acknowledged least.
 * False: that is in the base.
 */
static bool
spare_readers(const EcmFold *fold, Chunk *chunk)
{
	EcmOffset	position;

	if (!ecm_readers_position(fold->shape->id, fold->reader_retention, &position))
		return true;
	if (position.before_all)
		return false;
	if (ecm_offset_cmp(position.lsn, position.op, chunk->lsn, (uint64) chunk->op) >= 0)
		return true;
	return find_chunk_before(fold, position.lsn, position.op + 1, chunk);
}

/*
 * Finds the point up to which to fold such that 'keep' bytes of entries stay
 * as they are, and what named readers have not acknowledged: the end of a chunk after
 * which a transaction begins.  False: there is none.
 */
static bool
find_point(EcmFold *fold, int64 keep)
{
	Chunk		chunk;

	if (!find_enough(fold, keep, &chunk) || !spare_readers(fold, &chunk))
		return false;
	for (;;)
	{
		EcmChunkScan cs;
		uint64		last;		/* LSN that the chunk before ends with */
		uint64		op;

		ecm_chunk_scan_begin(&cs, fold->shape->id, BTLessStrategyNumber,
							 chunk.lsn, chunk.op, fold->snapshot, AccessShareLock);
		if (!ecm_chunk_scan_next(&cs) || cs.first_lsn <= fold->old_base.lsn)
		{
			ecm_chunk_scan_end(&cs);
			return false;
		}
		ecm_chunk_scan_last(&cs, fold->shape->id, &last, &op);
		fold->new_base.lsn = last;
		fold->new_base.op = (int64) op;
		fold->new_base.origin = cs.totals;
		ecm_chunk_scan_end(&cs);
		if (last != chunk.lsn)
			return true;

		/*
		 * The chunk goes on with a transaction of the one before.  If that is
		 * a large one, the next to be looked at is its first chunk, not each.
		 */
		chunk.op = cs.first_lsn < chunk.lsn ? cs.first_op : first_op_at(fold, chunk.lsn);
		chunk.lsn = cs.first_lsn;
	}
}

/*
 * How much is to be replayed; the new base must be known.
 */
static void
measure(EcmFold *fold, const EcmLogTotals *base_size)
{
	EcmLogTotals gaps = ecm_gap_totals(fold->shape->id, fold->old_base.lsn, fold->old_base.op,
									   fold->new_base.lsn, fold->snapshot);

	fold->bytes = base_size->bytes + gaps.bytes +
		fold->new_base.origin.bytes - fold->old_base.origin.bytes;
	fold->entries = base_size->entries + gaps.entries +
		fold->new_base.origin.entries - fold->old_base.origin.entries;
}

/*
 * Is it time to fold, and is there something that can be folded?
 */
static bool
is_due(EcmFold *fold, int64 retention)
{
	EcmLogTotals base_size;
	EcmLogTotals stream_size;
	int64		bytes;
	int64		limit;

	ecm_gap_log_sizes(fold->shape->id, &fold->old_base, fold->snapshot,
					  &base_size, &stream_size);
	bytes = base_size.bytes + stream_size.bytes;
	limit = size_limit(fold->shape, retention, bytes, base_size.bytes);
	if (bytes <= limit || !find_point(fold, limit / 4))
		return false;
	measure(fold, &base_size);

	/*
	 * a large transaction at the end may leave so little before it that
	 * folding is not worth while
	 */
	return fold->bytes - base_size.bytes >= limit / 8;
}

/* ----------------------------------------------------------------
 * Folding
 * ----------------------------------------------------------------
 */

/* A fold in one transaction writes its rows here. */
typedef struct Rows
{
	EcmRowPacker *packer;
	int			ncolumns;
} Rows;

static void
put_in_base(void *arg, const bytea *key pg_attribute_unused(),
			EcmOp op pg_attribute_unused(), const EcmValue *values)
{
	Rows	   *rows = arg;

	ecm_row_packer_put(rows->packer, values, rows->ncolumns);
}

/* Folds in one transaction. */
static void
fold_at_once(EcmFold *fold, void *arg pg_attribute_unused())
{
	EcmFoldSort sort;
	EcmFoldPosition position;
	EcmCompleter *completer;
	EcmLogWriter *writer;
	Rows		rows;

	completer = ecm_completer_begin(fold->shape, fold->snapshot, fold->old_base.lsn,
									fold->new_base.lsn, fold->new_base.op);
	ecm_fold_sort_begin(&sort, fold);
	ecm_fold_begin_log(fold, &position);
	(void) ecm_fold_read_log(&sort, completer, &position, PG_INT64_MAX, NULL, NULL);
	ecm_completer_end(completer);

	writer = ecm_log_writer_begin();
	rows.ncolumns = fold->shape->ncolumns;
	rows.packer = ecm_row_packer_begin(writer, fold->shape->id, fold->new_base.lsn,
									   ecm_new_base_identity());
	ecm_fold_replay(&sort, false, put_in_base, &rows);
	fold->written.entries = ecm_row_packer_end(rows.packer);
	ecm_log_writer_end(writer);
	ecm_fold_sort_end(&sort);
	ecm_fold_set_base(fold);
}

/*
 * An update's entry has only those large values that have changed, so a row may
 * have become too large for any reader although no entry is.
 */
bool
ecm_fold_try(EcmFold *fold, void (*step) (EcmFold *fold, void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool ok = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		step(fold, arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (ecm_error_fault(unpack_sql_state(edata->sqlerrcode), edata->message,
							ECM_WORK_FOLD_LOG) != ECM_FAULT_OF_IT)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		CurrentResourceOwner = owner;
		ecm_shape_emit_failure(fold->shape,
							   psprintf(ECM_ERROR_OWN_TEXT "%s", edata->message));
		fold->abandoned = true;
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return ok;
}

/*
 * Lets only one fold run at a time in this database, until the transaction
 * ends; or if it commits in between (for_session), until it is unlocked, or an
 * ERROR ends it: so it is with locks that are not the users' own.  ERROR if
 * another one is running.
 */
static void
lock_folding(LOCKTAG *tag, bool for_session)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, 0, 0, FOLD_LOCK_CLASS);
	tag->locktag_lockmethodid = DEFAULT_LOCKMETHOD;
	if (LockAcquire(tag, ExclusiveLock, for_session, true) == LOCKACQUIRE_NOT_AVAIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("another shape log is being folded")));
}

/*
 * Folds, or goes on with that.  True: the log is folded.
 */
static bool
fold_log(EcmFold *fold)
{
	LOCKTAG		tag;
	bool		ok;

	ecm_fold_check_lockable(fold);
	if (fold->partitions == 0 && fold->bytes <= 2 * ecm_fold_step_bytes())
		return ecm_fold_try(fold, fold_at_once, NULL);

	lock_folding(&tag, true);
	ok = ecm_fold_in_steps(fold);
	/* what has been written is to be deleted */
	if (!ok && fold->abandoned && fold->done > 0)
		ecm_fold_save(fold);
	LockRelease(&tag, ExclusiveLock, true);
	return ok;
}

/*
 * One call's work.  True: there may be more to do; *folded: the log has been
 * folded.
 */
static bool
work_on(EcmFold *fold, int64 retention, bool *folded)
{
	bool		live = fold->shape->state == ECM_SHAPE_LIVE;
	bool		begun;

	ecm_log_base(fold->shape->id, fold->snapshot, &fold->old_base);
	if (live && ecm_fold_delete_folded(fold))
		return true;
	begun = ecm_fold_load(fold);
	if (begun && (!live || retention < 0 || fold->abandoned))
		return ecm_fold_delete_some(fold);
	if (begun)
	{
		EcmLogTotals base_size;
		EcmLogTotals stream_size;

		ecm_gap_log_sizes(fold->shape->id, &fold->old_base, fold->snapshot,
						  &base_size, &stream_size);
		measure(fold, &base_size);
	}
	else if (!live || retention < 0 || !is_due(fold, retention))
		return false;
	*folded = fold_log(fold);
	return *folded || fold->done > 0;
}

static void
report_lost(const EcmFold *fold)
{
	int			index = ecm_stack_find(MyDatabaseId);

	if (index >= 0)
		ecm_event(ecm_stack_at(index), ECM_EVENT_READER_LOST,
				  "See electric_cm_stat_readers, and electric_cm.reader_retention.",
				  "%d named readers have lost shape %s: what they had not acknowledged was folded",
				  fold->lost, fold->shape->handle);
}

/*
 * _electric_cm.fold_shape(shape int8, retention int8, OUT more bool,
 *						   OUT report text)
 *
 * Takes the next step, if there is one, to keep a shape's log within its
 * retention (bytes; 0: the default; below 0: logs are not folded).  What a named reader
 * has not acknowledged is not folded, up to electric_cm.reader_retention.  It deletes
 * some of the entries that have been folded, or of the rows of a fold that is
 * given up; or it folds, and report has a text about that. more: there may be
 * another step.  A long log is folded in many transactions, so this must not be
 * called within one: it commits.
 *
 * Errors: 42501 not called by a superuser; 55006 another fold is going on; 55P03
 * somebody has a lock on the shape; 42704 the shape was dropped meanwhile; XX001
 * the log is corrupt; 2D000 a long log within a transaction.
 */
Datum
electric_cm_fold_shape(PG_FUNCTION_ARGS)
{
	int64		retention = PG_GETARG_INT64(1);
	EcmFold		fold = {0};
	LOCKTAG		tag;
	TupleDesc	desc;
	Datum		values[2] = {BoolGetDatum(false), (Datum) 0};
	bool		nulls[2] = {false, true};
	char		report[200];
	bool		folded = false;
	bool		atomic = fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
	castNode(CallContext, fcinfo->context)->atomic;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(desc);
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to fold a shape's log")));

	if (SPI_connect_ext(atomic ? 0 : SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	lock_folding(&tag, false);
	fold.reader_retention = ecm_reader_retention < 0 ? -1 : ecm_reader_retention * INT64CONST(1024);
	fold.shape = ecm_shape_by_id(PG_GETARG_INT64(0));
	if (fold.shape != NULL)
	{
		fold.snapshot = RegisterSnapshot(GetLatestSnapshot());
		values[0] = BoolGetDatum(work_on(&fold, retention, &folded));
		UnregisterSnapshot(fold.snapshot);
	}
	if (folded)
		snprintf(report, sizeof(report),
				 "folded the oldest " INT64_FORMAT " entries of shape %s into " INT64_FORMAT,
				 fold.entries, fold.shape->handle, fold.written.entries);
	SPI_finish();
	if (folded)
	{
		values[1] = CStringGetTextDatum(report);
		nulls[1] = false;
	}
	if (folded && fold.lost > 0)
		report_lost(&fold);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
