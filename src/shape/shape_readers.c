/*-------------------------------------------------------------------------
 *
 * shape_readers.c
 *	  Named readers: what they have acknowledged of a shape's log.
 *
 * A reader who has read a part of what a log begins with can't go on when the log begins
 * with something else, and one whose position was folded would miss what came between.  So
 * whoever folds a log asks for the positions first, and again in the transaction that gives
 * the log its new base.  A lock makes sure that there is no reader then whose creation is not
 * committed yet, and who reads the old base.
 *
 * Users may hold locks on the rows of their readers for as long as they like.  Folding waits
 * for none of them, and notes in a table of its own who has lost something.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/spi.h"
#include "shape/shape_gap.h"
#include "shape/shape_log.h"
#include "shape/shape_readers.h"

/* A class of advisory locks that SQL's functions don't use. */
#define READERS_LOCK_CLASS	6

/* Readers of shape $1 who have not lost it, and their positions. */
#define POSITIONS_SQL \
	"SELECT m.reader, coalesce(m.lsn, r.lsn) AS lsn, coalesce(m.op, r.op) AS op" \
	" FROM _electric_cm.reader_shape m JOIN _electric_cm.reader r ON r.id = m.reader" \
	" WHERE m.shape = $1 AND NOT EXISTS (SELECT FROM _electric_cm.reader_lost x" \
	"  WHERE x.reader = m.reader AND x.shape = m.shape)"

static bool
lock_readers(LOCKMODE mode, bool dont_wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, 0, READERS_LOCK_CLASS);
	tag.locktag_lockmethodid = DEFAULT_LOCKMETHOD;
	return LockAcquire(&tag, mode, false, dont_wait) != LOCKACQUIRE_NOT_AVAIL;
}

void
ecm_readers_lock(void)
{
	(void) lock_readers(ShareLock, false);
}

/* The LSN of the first chunk after a position in the stream, or else the position's. */
static XLogRecPtr
next_lsn(int64 shape, const EcmOffset *position, Snapshot snapshot)
{
	EcmChunkScan cs;
	XLogRecPtr	lsn;

	ecm_chunk_scan_begin(&cs, shape, BTGreaterStrategyNumber, position->lsn,
						 (int64) position->op, snapshot, AccessShareLock);
	lsn = ecm_chunk_scan_next(&cs) ? cs.first_lsn : position->lsn;
	ecm_chunk_scan_end(&cs);
	return lsn;
}

int64
ecm_log_bytes_after(int64 shape, const EcmOffset *position, XLogRecPtr *first)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	bool		in_base = position->before_all || position->lsn == 0;
	int64		bytes;

	if (in_base)
	{
		EcmLogBase	base;
		EcmLogTotals base_size;
		EcmLogTotals stream_size;

		ecm_log_base(shape, snapshot, &base);
		ecm_gap_log_sizes(shape, &base, snapshot, &base_size, &stream_size);
		bytes = stream_size.bytes + (position->before_all ? base_size.bytes : 0);
	}
	else
	{
		int64		all = ecm_log_stream_totals(shape, PG_UINT64_MAX).bytes;

		bytes = all - Min(all, ecm_log_stream_totals(shape, position->lsn).bytes);
	}
	if (first != NULL)
		*first = bytes > 0 && !in_base ? next_lsn(shape, position, snapshot) : InvalidXLogRecPtr;
	UnregisterSnapshot(snapshot);
	return bytes;
}

bool
ecm_readers_position(int64 shape, int64 retention, EcmOffset *position)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			type = INT8OID;
	Datum		value = Int64GetDatum(shape);
	EcmSpiState spi;
	EcmOffset  *positions;
	int			n;
	bool		found = false;

	ecm_spi_begin(&spi);
	ecm_spi_run("SELECT DISTINCT p.lsn, p.op FROM (" POSITIONS_SQL ") p ORDER BY 1, 2",
				SPI_OK_SELECT, 1, &type, &value, NULL);
	n = (int) SPI_processed;
	positions = MemoryContextAllocZero(context, Max(n, 1) * sizeof(EcmOffset));
	for (int i = 0; i < n; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		int64		op = DatumGetInt64(SPI_getbinval(row, desc, 2, &isnull));

		positions[i].lsn = DatumGetLSN(SPI_getbinval(row, desc, 1, &isnull));
		positions[i].before_all = op < 0;
		positions[i].op = op < 0 ? 0 : (uint64) op;
	}
	ecm_spi_end(&spi);

	/* the lowest come first */
	for (int i = 0; i < n && !found; i++)
	{
		found = retention < 0 || ecm_log_bytes_after(shape, &positions[i], NULL) <= retention;
		*position = positions[i];
	}
	pfree(positions);
	return found;
}

int
ecm_readers_pass(int64 shape, int64 retention, XLogRecPtr lsn, int64 op)
{
	EcmOffset	position;
	EcmSpiState spi;
	Oid			types[] = {INT8OID, LSNOID, INT8OID};
	Datum		values[] = {Int64GetDatum(shape), LSNGetDatum(lsn), Int64GetDatum(op)};
	int			lost;

	if (!lock_readers(ExclusiveLock, true))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("named readers are being created")));
	if (ecm_readers_position(shape, retention, &position) &&
		(position.before_all ||
		 ecm_offset_cmp(position.lsn, position.op, lsn, (uint64) op) < 0))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("a named reader has not acknowledged what was to be folded")));

	ecm_spi_begin(&spi);
	ecm_spi_run("INSERT INTO _electric_cm.reader_lost (reader, shape)"
				" SELECT p.reader, $1 FROM (" POSITIONS_SQL ") p"
				" WHERE (p.lsn, p.op) < ($2, $3)",
				SPI_OK_INSERT, lengthof(types), types, values, NULL);
	lost = (int) SPI_processed;
	ecm_spi_end(&spi);
	return lost;
}
