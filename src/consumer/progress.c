/*-------------------------------------------------------------------------
 *
 * progress.c
 *	  Writes how far a consumer has come to _electric_cm.progress.
 *
 * The row is written with each commit, however small, so this goes below SQL, where
 * it takes a third of the time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "executor/tuptable.h"
#include "utils/fmgroids.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/table_writer.h"
#include "consumer/progress.h"

/* columns of _electric_cm.progress; the index has the first two */
#define PROGRESS_WORKER		1
#define PROGRESS_TURN		2
#define PROGRESS_LSN		3
#define PROGRESS_NATTS		3

/* A consumer's progress is in so many rows, in turn; the greatest LSN counts. */
#define PROGRESS_ROWS		32

static int	next_turn;

/* The values of a row; columns that a later version may add stay NULL. */
static void
fill_row(TupleDesc desc, int worker, XLogRecPtr lsn, Datum *values, bool *nulls)
{
	memset(nulls, true, desc->natts * sizeof(bool));
	memset(nulls, false, PROGRESS_NATTS * sizeof(bool));
	values[PROGRESS_WORKER - 1] = Int32GetDatum(worker);
	values[PROGRESS_TURN - 1] = Int32GetDatum(next_turn);
	values[PROGRESS_LSN - 1] = LSNGetDatum(lsn);
}

static void
insert_row(int worker, XLogRecPtr lsn)
{
	EcmTableWriter writer;

	ecm_table_writer_begin(&writer, "progress", RowExclusiveLock);
	ExecClearTuple(writer.slot);
	fill_row(writer.slot->tts_tupleDescriptor, worker, lsn, writer.slot->tts_values,
			 writer.slot->tts_isnull);
	ecm_table_writer_put(&writer);
	ecm_table_writer_end(&writer);
}

/* Usually the new version is on the same page, and indexes stay as they are. */
static void
update_row(Relation rel, HeapTuple old, int worker, XLogRecPtr lsn)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Datum	   *values = palloc0(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));
	HeapTuple	tuple;
	EcmTableWriter writer;
	bool		summarizing;

	fill_row(desc, worker, lsn, values, nulls);
	tuple = heap_form_tuple(desc, values, nulls);
	if (!ecm_heap_update(rel, &old->t_self, tuple, &summarizing))
		return;
	ecm_table_writer_begin(&writer, "progress", RowExclusiveLock);
	ecm_table_writer_put_again(&writer, tuple, summarizing);
	ecm_table_writer_end(&writer);
}

void
ecm_progress_write(int worker, XLogRecPtr lsn)
{
	Relation	rel = table_open(ecm_own_relid("progress"), RowExclusiveLock);
	SysScanDesc scan;
	HeapTuple	old;
	ScanKeyData key[2];

	ScanKeyInit(&key[0], PROGRESS_WORKER, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(worker));
	ScanKeyInit(&key[1], PROGRESS_TURN, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(next_turn));
	scan = systable_beginscan(rel, ecm_own_relid("progress_pkey"), true, GetActiveSnapshot(),
							  lengthof(key), key);
	old = systable_getnext(scan);
	if (old != NULL)
		update_row(rel, old, worker, lsn);
	else
		insert_row(worker, lsn);
	systable_endscan(scan);
	table_close(rel, NoLock);
	next_turn = (next_turn + 1) % PROGRESS_ROWS;
}
