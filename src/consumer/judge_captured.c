/*-------------------------------------------------------------------------
 *
 * judge_captured.c
 *	  What becomes of the captured entries of a shape, once rows have been read.
 *
 * The rules are in shape_judge.h.  Here they are given what they need, and an error
 * that is the fault of the shape, such as a chunk that is corrupt, or a type that does
 * not read what it has written, is kept from all others: each shape is judged in a
 * subtransaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/errors.h"
#include "base/spi.h"
#include "consumer/current_shape.h"
#include "consumer/judge_captured.h"
#include "consumer/log_batch.h"
#include "shape/shape_again.h"
#include "shape/shape_captured.h"
#include "shape/shape_catalog.h"
#include "shape/shape_judge.h"
#include "shape/shape_pieces.h"

typedef struct Judging
{
	EcmShape   *shape;
	int64		reading;		/* 0: none */
	int			number;			/* of the piece; 0: all have been read */
	const char *snapshot;		/* without a reading */

	EcmShapeDef *def;			/* with a reading */
	EcmJudge   *judge;
	EcmHalves	halves;
	EcmCapturedMark mark;		/* for the shape, if all goes well */
	bool		gone;			/* nothing was done, as it is gone */
	const char *reason;			/* why the shape has to end all the same */
} Judging;

static EcmVerdict
judge_transaction(void *arg, uint64 xid)
{
	return ecm_judge_transaction(((Judging *) arg)->judge, xid);
}

static EcmVerdict
judge_entry(void *arg, const EcmChunkReader *entry,
			const EcmValue **row pg_attribute_unused())
{
	Judging    *j = arg;
	EcmVerdict	verdict = ecm_judge_entry(j->judge, entry);

	if (ecm_judge_lacks(&j->halves, entry, verdict))
		ecm_again_ask(j->def, entry);
	return verdict;
}

static EcmLogTotals
judge_log(Judging *j)
{
	EcmCapturedRules rules = {.arg = j, .transaction = judge_transaction,
	.entry = judge_entry};

	j->judge = j->reading != 0 ? ecm_pieces_judge(j->def, j->reading, j->number) :
		ecm_snapshot_judge(j->snapshot);
	return ecm_captured_judge(j->shape->id, j->def, &rules, &j->mark);
}

/* False: the shape has been dropped, or is in another attempt. */
static bool
find_definition(Judging *j)
{
	j->def = ecm_shape_by_id(j->shape->id);
	j->gone = j->def == NULL || j->def->generation != j->shape->generation;
	return !j->gone;
}

/* Of a thousand shapes that share a reading, most have nothing to be judged. */
static void
at_piece(Judging *j)
{
	if (ecm_captured_any(j->shape->id, &j->mark) && find_definition(j))
		(void) judge_log(j);
}

/* What was judged before the mark may have changed. */
static void
at_again(Judging *j)
{
	if (find_definition(j) && ecm_again_use(j->def, ecm_log_batch_xid()))
		ecm_captured_begin(j->def->id, j->def->gap_lsn, &j->mark);
}

/*
 * The running totals of the log have counted entries that are removed by now: the row
 * of the log's base gets their number, which readers of the totals subtract.
 */
static void
store_origin(int64 id, const EcmLogTotals *origin)
{
	static struct _SPI_plan *plan;
	Oid			types[] = {INT8OID, INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(id), Int64GetDatum(origin->entries),
	Int64GetDatum(origin->bytes)};
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&plan, "INSERT INTO _electric_cm.shape_base"
					 " AS b (shape, lsn, op, origin_entries, origin_bytes) VALUES ($1, '0/0', 0, $2, $3)"
					 " ON CONFLICT (shape) DO UPDATE"
					 " SET origin_entries = b.origin_entries + excluded.origin_entries,"
					 " origin_bytes = b.origin_bytes + excluded.origin_bytes",
					 SPI_OK_INSERT, 3, types, values, NULL);
	ecm_spi_end(&spi);
}

/*
 * All pieces have been judged before, and all keys been read again that had to be.
 * Judging once more finds nothing, unless a message was not obeyed; then a reader
 * could not make his rows from the log.
 */
static void
at_live(Judging *j)
{
	EcmLogTotals origin = {0};

	/*
	 * Most of a thousand shapes have captured nothing.  (That the order means
	 * them has been seen.)
	 */
	if (ecm_captured_any(j->shape->id, &j->mark))
	{
		if (j->reading != 0 && !find_definition(j))
			return;
		origin = judge_log(j);
	}
	if (j->reading != 0 && ecm_again_waits(j->shape->id, j->shape->generation))
		j->reason = ECM_ERROR_OWN_TEXT "a row was changed while the table was read, and a value of it was not read again";
	else if (origin.entries != 0 || origin.bytes != 0)
		store_origin(j->shape->id, &origin);
}

static const char *
try_to_judge(Judging *j, void (*judge) (Judging *j))
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	MemoryContext work = AllocSetContextCreate(context, "electric_cm judging",
											   ALLOCSET_DEFAULT_SIZES);
	const char *volatile reason = NULL;

	j->mark = j->shape->judged;
	ecm_work_on(j->shape->id);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(work);
	PG_TRY();
	{
		judge(j);
		ReleaseCurrentSubTransaction();
		j->shape->judged = j->mark;
		reason = j->reason;
	}
	PG_CATCH();
	{
		ErrorData  *edata;
		const char *sqlstate;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		sqlstate = unpack_sql_state(edata->sqlerrcode);
		if (ecm_error_fault(sqlstate, edata->message, ECM_WORK_FOLLOW) != ECM_FAULT_OF_IT)
			PG_RE_THROW();
		EmitErrorReport();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		reason = ecm_tag_error(sqlstate, edata->message);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	MemoryContextDelete(work);
	/* the next chunk goes on from the totals of the last one that was kept */
	j->shape->buffer.totals_epoch = 0;
	ecm_work_on(0);
	return reason;
}

const char *
ecm_judge_at_piece(EcmShape *shape, int64 reading, int number)
{
	Judging		j = {.shape = shape, .reading = reading, .number = number};

	return try_to_judge(&j, at_piece);
}

const char *
ecm_judge_at_again(EcmShape *shape)
{
	Judging		j = {.shape = shape};

	return try_to_judge(&j, at_again);
}

bool
ecm_judge_at_live(EcmShape *shape, int64 reading, const char *snapshot, const char **reason)
{
	Judging		j = {.shape = shape, .reading = reading, .snapshot = snapshot};

	*reason = try_to_judge(&j, at_live);
	return *reason == NULL && !j.gone;
}
