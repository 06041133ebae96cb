/*-------------------------------------------------------------------------
 *
 * fold_catalog.c
 *	  Folding: what is written about it, and deleted after it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/pg_lsn.h"
#include "utils/resowner.h"

#include "base/compat.h"
#include "base/spi.h"
#include "jobs/fold.h"
#include "shape/shape_readers.h"

/* Bytes of folded entries that are deleted in one transaction. */
#define DELETE_BYTES		(64 * 1024 * 1024)

pg_noreturn static void
report_gone(const EcmShapeDef *shape)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("shape \"%s\" does not exist any more", shape->handle)));
}

/* Locks the shape's row, if that is possible at once. */
static bool
lock_shape(const EcmShapeDef *shape)
{
	Oid			type = INT8OID;
	Datum		value = Int64GetDatum(shape->id);

	ecm_spi_run("SELECT FROM _electric_cm.shape WHERE id = $1 FOR KEY SHARE SKIP LOCKED",
				SPI_OK_SELECT, 1, &type, &value, NULL);
	return SPI_processed > 0;
}

pg_noreturn static void
report_locked(const EcmShapeDef *shape)
{
	Oid			type = INT8OID;
	Datum		value = Int64GetDatum(shape->id);

	ecm_spi_run("SELECT FROM _electric_cm.shape WHERE id = $1",
				SPI_OK_SELECT, 1, &type, &value, NULL);
	if (SPI_processed == 0)
		report_gone(shape);
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("shape \"%s\" is locked, by somebody who drops it perhaps",
					shape->handle)));
}

/*
 * The whole work of folding would be in vain then, and no other log could be
 * folded meanwhile.  The lock that this takes to find out is released again.
 */
void
ecm_fold_check_lockable(const EcmFold *fold)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	EcmSpiState spi;

	BeginInternalSubTransaction(NULL);
	ecm_spi_begin(&spi);
	if (!lock_shape(fold->shape))
		report_locked(fold->shape);
	ecm_spi_end(&spi);
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

bool
ecm_fold_load(EcmFold *fold)
{
	Oid			type = INT8OID;
	Datum		value = Int64GetDatum(fold->shape->id);
	Datum		columns[10];
	EcmSpiState spi;
	bool		found;

	ecm_spi_begin(&spi);
	ecm_spi_run("SELECT lsn, op, origin_entries, origin_bytes, first_op, partitions,"
				" done, rows, bytes, abandoned FROM _electric_cm.shape_fold WHERE shape = $1",
				SPI_OK_SELECT, 1, &type, &value, NULL);
	found = SPI_processed > 0;
	for (int i = 0; found && i < (int) lengthof(columns); i++)
	{
		bool		isnull;

		columns[i] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
								   i + 1, &isnull);
	}
	if (found)
	{
		fold->new_base.lsn = DatumGetLSN(columns[0]);
		fold->new_base.op = DatumGetInt64(columns[1]);
		fold->new_base.origin.entries = DatumGetInt64(columns[2]);
		fold->new_base.origin.bytes = DatumGetInt64(columns[3]);
		fold->first_op = DatumGetInt64(columns[4]);
		fold->partitions = DatumGetInt32(columns[5]);
		fold->done = DatumGetInt32(columns[6]);
		fold->written.entries = DatumGetInt64(columns[7]);
		fold->written.bytes = DatumGetInt64(columns[8]);
		fold->abandoned = DatumGetBool(columns[9]);
	}
	ecm_spi_end(&spi);
	return found;
}

/*
 * The lock is held until the commit, lest the shape be dropped meanwhile: a job
 * for dropped shapes may have deleted all that it had, and nobody would delete
 * what the transaction at hand has written.  Since others wait for that lock, it
 * is taken only at the end.
 */
void
ecm_fold_save(const EcmFold *fold)
{
	EcmSpiState spi;
	Oid			types[] = {INT8OID, LSNOID, INT8OID, INT8OID, INT8OID, INT8OID,
	INT4OID, INT4OID, INT8OID, INT8OID, BOOLOID};
	Datum		values[] = {
		Int64GetDatum(fold->shape->id),
		LSNGetDatum(fold->new_base.lsn),
		Int64GetDatum(fold->new_base.op),
		Int64GetDatum(fold->new_base.origin.entries),
		Int64GetDatum(fold->new_base.origin.bytes),
		Int64GetDatum(fold->first_op),
		Int32GetDatum(fold->partitions),
		Int32GetDatum(fold->done),
		Int64GetDatum(fold->written.entries),
		Int64GetDatum(fold->written.bytes),
		BoolGetDatum(fold->abandoned)
	};

	ecm_spi_begin(&spi);
	if (!lock_shape(fold->shape))
		report_locked(fold->shape);
	ecm_spi_run("INSERT INTO _electric_cm.shape_fold (shape, lsn, op, origin_entries,"
				" origin_bytes, first_op, partitions, done, rows, bytes, abandoned)"
				" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
				" ON CONFLICT (shape) DO UPDATE SET done = excluded.done,"
				" rows = excluded.rows, bytes = excluded.bytes,"
				" abandoned = excluded.abandoned",
				SPI_OK_INSERT, lengthof(types), types, values, NULL);
	ecm_spi_end(&spi);
}

/* The shape's row is locked as in ecm_fold_save(). */
void
ecm_fold_set_base(EcmFold *fold)
{
	EcmSpiState spi;
	Oid			types[] = {INT8OID, LSNOID, INT8OID, INT8OID, INT8OID};
	Datum		values[] = {
		Int64GetDatum(fold->shape->id),
		LSNGetDatum(fold->new_base.lsn),
		Int64GetDatum(fold->new_base.op),
		Int64GetDatum(fold->new_base.origin.entries),
		Int64GetDatum(fold->new_base.origin.bytes)
	};

	fold->lost = ecm_readers_pass(fold->shape->id, fold->reader_retention,
								  fold->new_base.lsn, fold->new_base.op);
	ecm_spi_begin(&spi);
	ecm_spi_run("SELECT FROM _electric_cm.shape WHERE id = $1 FOR KEY SHARE",
				SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		report_gone(fold->shape);
	ecm_spi_run("INSERT INTO _electric_cm.shape_base"
				" (shape, lsn, op, origin_entries, origin_bytes)"
				" VALUES ($1, $2, $3, $4, $5)"
				" ON CONFLICT (shape) DO UPDATE SET lsn = excluded.lsn,"
				" op = excluded.op,"
				" origin_entries = excluded.origin_entries,"
				" origin_bytes = excluded.origin_bytes",
				SPI_OK_INSERT, lengthof(types), types, values, NULL);
	ecm_spi_run("DELETE FROM _electric_cm.shape_fold WHERE shape = $1",
				SPI_OK_DELETE, 1, types, values, NULL);
	values[3] = Int64GetDatum((int64) ECM_FIRST_DIFFERENCE);
	ecm_spi_run("DELETE FROM _electric_cm.shape_gap WHERE shape = $1 AND"
				" (lsn < $2 OR (lsn = $2 AND $3 >= $4))",
				SPI_OK_DELETE, 4, types, values, NULL);
	ecm_spi_end(&spi);
}

bool
ecm_fold_delete_some(const EcmFold *fold)
{
	EcmChunkScan cs;
	int64		bytes = 0;
	bool		more = true;

	ecm_chunk_scan_begin(&cs, fold->shape->id, BTGreaterEqualStrategyNumber,
						 fold->new_base.lsn, fold->first_op, fold->snapshot,
						 RowExclusiveLock);
	while (bytes < DELETE_BYTES &&
		   (more = ecm_chunk_scan_next(&cs) && cs.first_lsn == fold->new_base.lsn))
	{
		bytes += ecm_chunk_scan_bytes(&cs);
		(void) ecm_chunk_scan_delete(&cs);
	}
	ecm_chunk_scan_end(&cs);
	CommandCounterIncrement();
	if (!more)
	{
		Oid			type = INT8OID;
		Datum		value = Int64GetDatum(fold->shape->id);
		EcmSpiState spi;

		ecm_spi_begin(&spi);
		ecm_spi_run("DELETE FROM _electric_cm.shape_fold WHERE shape = $1",
					SPI_OK_DELETE, 1, &type, &value, NULL);
		ecm_spi_end(&spi);
	}
	return more;
}

bool
ecm_fold_delete_folded(const EcmFold *fold)
{
	EcmChunkScan cs;
	int64		bytes = 0;

	ecm_chunk_scan_begin(&cs, fold->shape->id, InvalidStrategy, 0, 0,
						 fold->snapshot, RowExclusiveLock);
	while (bytes < DELETE_BYTES && ecm_chunk_scan_next(&cs) &&
		   ecm_offset_cmp(cs.first_lsn, cs.first_op,
						  fold->old_base.lsn, fold->old_base.op) <= 0)
	{
		bytes += ecm_chunk_scan_bytes(&cs);
		(void) ecm_chunk_scan_delete(&cs);
	}
	ecm_chunk_scan_end(&cs);
	CommandCounterIncrement();
	return bytes > 0;
}
