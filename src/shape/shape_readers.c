/*-------------------------------------------------------------------------
 *
 * shape_readers.c
 *	  Named readers: what they have acknowledged of a shape's log.
 *
 * A reader who has read a part of what a log begins with can't go on when the log begins
 * with something else, and one whose position was folded would miss what came between.  So
 * whoever folds a log asks for the positions first, and again in the transaction that gives
 * the log its new base.  Who has read nothing begins with the new base.  A lock makes sure
 * that nobody is just about to acknowledge the first part of the old one.
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

/* Classes of advisory locks that SQL's functions don't use. */
#define BASE_LOCK_CLASS		6
#define READER_LOCK_CLASS	7

/* Readers of shape $1 who have read something of it, and not lost it; their positions. */
#define POSITIONS_SQL \
	"SELECT m.id AS member, coalesce(m.lsn, r.lsn) AS lsn, coalesce(m.op, r.op) AS op" \
	" FROM _electric_cm.reader_shape m JOIN _electric_cm.reader r ON r.id = m.reader" \
	" WHERE m.shape = $1 AND coalesce(m.op, r.op) >= 0" \
	" AND NOT EXISTS (SELECT FROM _electric_cm.reader_lost x WHERE x.member = m.id)"

static bool
lock_id(int64 id, int class, LOCKMODE mode, bool dont_wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (id >> 32), (uint32) id, class);
	tag.locktag_lockmethodid = DEFAULT_LOCKMETHOD;
	return LockAcquire(&tag, mode, false, dont_wait) != LOCKACQUIRE_NOT_AVAIL;
}

void
ecm_reader_lock(int64 reader)
{
	(void) lock_id(reader, READER_LOCK_CLASS, ExclusiveLock, false);
}

void
ecm_readers_keep_base(int64 shape)
{
	(void) lock_id(shape, BASE_LOCK_CLASS, ShareLock, false);
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
	EcmLogBase	base;
	EcmLogTotals base_size;
	EcmLogTotals stream_size;
	bool		in_base;
	int64		bytes;

	ecm_log_base(shape, snapshot, &base);
	ecm_gap_log_sizes(shape, &base, snapshot, &base_size, &stream_size);
	in_base = position->before_all || position->lsn <= base.lsn;
	bytes = stream_size.bytes;
	if (position->before_all)
		bytes += base_size.bytes;
	else if (!in_base)
		bytes -= Min(bytes, ecm_log_stream_bytes(shape, &base, position->lsn, snapshot));
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

		positions[i].lsn = DatumGetLSN(SPI_getbinval(row, desc, 1, &isnull));
		positions[i].op = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 2, &isnull));
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

	if (!lock_id(shape, BASE_LOCK_CLASS, ExclusiveLock, true))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("a named reader is reading the rows that the log begins with")));
	if (ecm_readers_position(shape, retention, &position) &&
		ecm_offset_cmp(position.lsn, position.op, lsn, (uint64) op) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("a named reader has not acknowledged what was to be folded")));

	ecm_spi_begin(&spi);
	ecm_spi_run("INSERT INTO _electric_cm.reader_lost (member)"
				" SELECT p.member FROM (" POSITIONS_SQL ") p"
				" WHERE (p.lsn, p.op) < ($2, $3)",
				SPI_OK_INSERT, lengthof(types), types, values, NULL);
	lost = (int) SPI_processed;
	ecm_spi_end(&spi);
	return lost;
}

/*
 * Deletes readers whose rows nobody has locked.  It leaves behind what says that they have
 * lost something: of which there may be more at any time.
 */
#define DELETE_SQL(condition) \
	"WITH gone AS (DELETE FROM _electric_cm.reader WHERE id IN" \
	"  (SELECT r.id FROM _electric_cm.reader r WHERE " condition " FOR UPDATE SKIP LOCKED) RETURNING id)" \
	" DELETE FROM _electric_cm.reader_shape m USING gone WHERE m.reader = gone.id"

void
ecm_readers_delete_of(Oid owner)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(owner);

	ecm_spi_run(DELETE_SQL("r.owner = $1"), SPI_OK_DELETE, 1, &type, &value, NULL);
}

void
ecm_readers_purge(void)
{
	ecm_spi_run(DELETE_SQL("NOT EXISTS (SELECT FROM pg_catalog.pg_authid a WHERE a.oid = r.owner)"),
				SPI_OK_DELETE, 0, NULL, NULL, NULL);
	ecm_spi_run("DELETE FROM _electric_cm.reader_lost x WHERE NOT EXISTS"
				" (SELECT FROM _electric_cm.reader_shape m WHERE m.id = x.member)",
				SPI_OK_DELETE, 0, NULL, NULL, NULL);
}

void
ecm_readers_reassign(Oid from, Oid to)
{
	Oid			types[] = {OIDOID, OIDOID};
	Datum		values[] = {ObjectIdGetDatum(from), ObjectIdGetDatum(to)};
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_spi_run("UPDATE _electric_cm.reader SET owner = $2 WHERE owner = $1",
				SPI_OK_UPDATE, 2, types, values, NULL);
	ecm_spi_end(&spi);
}
