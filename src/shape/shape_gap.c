/*-------------------------------------------------------------------------
 *
 * shape_gap.c
 *	  The rows of _electric_cm.shape_gap.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/pg_lsn.h"
#include "utils/xid8.h"

#include "base/compat.h"
#include "base/spi.h"
#include "base/table_writer.h"
#include "shape/arrays.h"
#include "shape/shape_gap.h"

/* columns of _electric_cm.shape_gap */
#define GAP_SHAPE		1
#define GAP_LSN			3
#define GAP_ENTRIES		7
#define GAP_BYTES		8

EcmLogTotals
ecm_gap_totals(int64 shape, XLogRecPtr lsn, int64 op, XLogRecPtr up_to, Snapshot snapshot)
{
	Relation	rel = table_open(ecm_own_relid("shape_gap"), AccessShareLock);
	Relation	index = index_open(ecm_own_relid("shape_gap_pkey"), AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	IndexScanDesc scan = ecm_index_beginscan(rel, index, snapshot, 1);
	ScanKeyData key;
	EcmLogTotals totals = {0, 0};

	ScanKeyInit(&key, GAP_SHAPE, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(shape));
	index_rescan(scan, &key, 1, NULL, 0);
	while (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		XLogRecPtr	at;

		slot_getallattrs(slot);
		if (slot->tts_isnull[GAP_LSN - 1])
			continue;			/* not begun yet */
		at = DatumGetLSN(slot->tts_values[GAP_LSN - 1]);
		if (at > up_to || ecm_offset_cmp(at, ECM_FIRST_DIFFERENCE, lsn, op) <= 0)
			continue;
		totals.entries += DatumGetInt64(slot->tts_values[GAP_ENTRIES - 1]);
		totals.bytes += DatumGetInt64(slot->tts_values[GAP_BYTES - 1]);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(rel, NoLock);
	return totals;
}

void
ecm_gap_log_sizes(int64 shape, const EcmLogBase *base, Snapshot snapshot,
				  EcmLogTotals *base_size, EcmLogTotals *stream_size)
{
	EcmLogTotals gaps = ecm_gap_totals(shape, base->lsn, base->op, PG_UINT64_MAX, snapshot);

	ecm_log_sizes(shape, base, snapshot, base_size, stream_size);
	stream_size->entries += gaps.entries;
	stream_size->bytes += gaps.bytes;
}

#define CLOSE_SQL \
	"WITH closed AS (UPDATE _electric_cm.shape_gap g SET closed_at = pg_catalog.clock_timestamp()" \
	"  FROM _electric_cm.shape_state t WHERE g.shape = ANY ($1) AND t.shape = g.shape" \
	"  AND g.lsn = t.gap_lsn RETURNING g.shape, g.compared, g.entries, g.reason)" \
	" SELECT pg_catalog.count(*)::pg_catalog.int4, coalesce(pg_catalog.sum(compared), 0)::pg_catalog.int8," \
	"  coalesce(pg_catalog.sum(entries), 0)::pg_catalog.int8," \
	"  (SELECT s.handle FROM _electric_cm.shape s WHERE s.id = pg_catalog.min(closed.shape))," \
	"  (SELECT c.reason FROM closed c ORDER BY c.shape LIMIT 1) FROM closed"

void
ecm_gaps_close(Datum shapes, EcmClosedGaps *closed)
{
	static struct _SPI_plan *plan;
	static struct _SPI_plan *overtaken_plan;
	MemoryContext context = CurrentMemoryContext;
	Oid			type = INT8ARRAYOID;
	HeapTuple	row;
	TupleDesc	desc;
	char	   *text;
	bool		isnull;
	EcmSpiState spi;

	memset(closed, 0, sizeof(*closed));
	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&overtaken_plan, "DELETE FROM _electric_cm.shape_gap WHERE shape = ANY ($1)"
					 " AND lsn IS NULL AND closed_at IS NOT NULL",
					 SPI_OK_DELETE, 1, &type, &shapes, NULL);
	ecm_spi_run_kept(&plan, CLOSE_SQL, SPI_OK_SELECT, 1, &type, &shapes, NULL);
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	closed->n = DatumGetInt32(SPI_getbinval(row, desc, 1, &isnull));
	closed->compared = DatumGetInt64(SPI_getbinval(row, desc, 2, &isnull));
	closed->differing = DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull));
	text = SPI_getvalue(row, desc, 4);
	closed->handle = text ? MemoryContextStrdup(context, text) : NULL;
	text = SPI_getvalue(row, desc, 5);
	closed->reason = text ? MemoryContextStrdup(context, text) : NULL;
	ecm_spi_end(&spi);
	MemoryContextSwitchTo(context);
}

void
ecm_gaps_count(const EcmGapCount *counts, int n)
{
	Oid			types[] = {INT8ARRAYOID, PG_LSNARRAYOID, INT8ARRAYOID, INT8ARRAYOID, INT8ARRAYOID};
	Datum		args[5];
	Datum	   *elems[5];
	EcmSpiState spi;

	for (int i = 0; i < 5; i++)
		elems[i] = palloc(sizeof(Datum) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		elems[0][i] = Int64GetDatum(counts[i].shape);
		elems[1][i] = LSNGetDatum(counts[i].gap_lsn);
		elems[2][i] = Int64GetDatum(counts[i].compared);
		elems[3][i] = Int64GetDatum(counts[i].written.entries);
		elems[4][i] = Int64GetDatum(counts[i].written.bytes);
	}
	for (int i = 0; i < 5; i++)
		args[i] = i == 1 ? ecm_array_of_lsn(elems[i], n) : ecm_array_of_int8(elems[i], n);
	ecm_spi_begin(&spi);
	ecm_spi_run("UPDATE _electric_cm.shape_gap g SET compared = g.compared + d.compared,"
				" entries = g.entries + d.entries, bytes = g.bytes + d.bytes"
				" FROM unnest($1, $2, $3, $4, $5) AS d (shape, lsn, compared, entries, bytes)"
				" WHERE g.shape = d.shape AND g.lsn = d.lsn AND g.closed_at IS NULL",
				SPI_OK_UPDATE, 5, types, args, NULL);
	if (SPI_processed != (uint64) n)
		elog(ERROR, "could not count what was compared for all shapes");
	ecm_spi_end(&spi);
}

/*
 * A log that goes beyond the end of the WAL, as after pg_resetwal, can't be continued:
 * what comes now would be before that.  Its shape is created again, under its handle.
 */
static void
begin_again_what_is_beyond(void)
{
	ecm_spi_run("WITH beyond AS MATERIALIZED (SELECT t.shape FROM _electric_cm.shape_state t"
				"  WHERE t.state IN ('live', 'capturing') AND EXISTS"
				"   (SELECT FROM _electric_cm.shape_log l WHERE l.shape = t.shape"
				"    AND l.first_lsn > pg_current_wal_insert_lsn())),"
				" base AS (DELETE FROM _electric_cm.shape_base b USING beyond"
				"  WHERE b.shape = beyond.shape),"
				" fold AS (DELETE FROM _electric_cm.shape_fold f USING beyond"
				"  WHERE f.shape = beyond.shape),"
				" gap AS (DELETE FROM _electric_cm.shape_gap g USING beyond"
				"  WHERE g.shape = beyond.shape)"
				" UPDATE _electric_cm.shape_state t SET state = 'capturing', generation = 0,"
				"  gap_lsn = NULL, gap_xid = NULL, live_at = NULL FROM beyond WHERE t.shape = beyond.shape",
				SPI_OK_UPDATE, 0, NULL, NULL, NULL);
}

/*
 * A shape that is being resynced already keeps its gap: its log goes no further.  Those
 * that are being created, or resynced, begin another attempt, as none is captured.
 * Nobody's lock is waited for: users lock rows of _electric_cm.shape only.
 */
#define BEGIN_SQL(lsn, xid, condition) \
	"UPDATE _electric_cm.shape_state SET state = 'capturing', generation = 0," \
	" gap_lsn = CASE state WHEN 'live' THEN " lsn " ELSE gap_lsn END," \
	" gap_xid = CASE state WHEN 'live' THEN " xid " ELSE gap_xid END" \
	" WHERE state IN ('live', 'capturing') AND " condition

int
ecm_gaps_begin_all(const char *reason)
{
	Oid			type = TEXTOID;
	Datum		arg = CStringGetTextDatum(reason);

	begin_again_what_is_beyond();
	ecm_spi_run("INSERT INTO _electric_cm.shape_gap (shape, order_xid, reason)"
				" SELECT shape, pg_current_xact_id(), $1 FROM _electric_cm.shape_state"
				" WHERE state = 'live' ON CONFLICT DO NOTHING",
				SPI_OK_INSERT, 1, &type, &arg, NULL);
	ecm_spi_run(BEGIN_SQL("pg_current_wal_insert_lsn()", "pg_current_xact_id()", "true"),
				SPI_OK_UPDATE, 0, NULL, NULL, NULL);
	return (int) SPI_processed;
}

void
ecm_gaps_begin(Datum shapes, XLogRecPtr lsn, uint64 xid)
{
	static struct _SPI_plan *plan;
	Oid			types[] = {INT8ARRAYOID, LSNOID, XID8OID};
	Datum		args[] = {shapes, LSNGetDatum(lsn),
	FullTransactionIdGetDatum(FullTransactionIdFromU64(xid))};
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&plan, BEGIN_SQL("$2", "$3", "shape = ANY ($1)"), SPI_OK_UPDATE, 3,
					 types, args, NULL);
	ecm_spi_end(&spi);
}

void
ecm_gaps_note(Datum shapes, uint64 xid, const char *reason)
{
	static struct _SPI_plan *plan;
	Oid			types[] = {INT8ARRAYOID, XID8OID, TEXTOID};
	Datum		args[] = {shapes, FullTransactionIdGetDatum(FullTransactionIdFromU64(xid)),
	CStringGetTextDatum(reason)};
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&plan, "INSERT INTO _electric_cm.shape_gap (shape, order_xid, reason)"
					 " SELECT unnest($1), $2, $3 ON CONFLICT DO NOTHING",
					 SPI_OK_INSERT, 3, types, args, NULL);
	ecm_spi_end(&spi);
}
