/*-------------------------------------------------------------------------
 *
 * purge.c
 *	  Functions for pool sessions: invalidate shapes, and delete what shapes
 *	  that are gone have left behind.
 *
 * The manager has them called by shape_purge.c, and before a stream begins.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/instrument.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/waiters.h"
#include "shape/arrays.h"
#include "shape/shape_catalog.h"
#include "shape/shape_fate.h"
#include "shape/shape_log.h"
#include "shape/shape_readers.h"
#include "shape/shape_rights.h"

PG_FUNCTION_INFO_V1(electric_cm_delete_gone);
PG_FUNCTION_INFO_V1(electric_cm_invalidate_ownerless);
PG_FUNCTION_INFO_V1(electric_cm_expire_shapes);
PG_FUNCTION_INFO_V1(electric_cm_purge_shapes);

/* ------------------------------------------------------- shapes that end -- */

/*
 * _electric_cm.invalidate_ownerless() RETURNS int4
 *
 * Deletes the shapes whose owner does not exist any more; returns how many there
 * were.
 */
Datum
electric_cm_invalidate_ownerless(PG_FUNCTION_ARGS)
{
	EcmSpiState spi;
	int			n;

	ecm_spi_begin(&spi);
	n = ecm_shapes_delete("NOT EXISTS (SELECT FROM pg_authid a WHERE a.oid = s.owner)",
						  0, NULL, NULL, NULL, "its owner was dropped");
	ecm_readers_purge();
	ecm_grants_purge();
	ecm_spi_end(&spi);
	PG_RETURN_INT32(n);
}

/* How long nobody has read something, in words. */
static char *
duration_text(int seconds)
{
	Interval	interval = {.time = seconds * USECS_PER_SEC};

	return DatumGetCString(DirectFunctionCall1(interval_out,
											   DirectFunctionCall1(interval_justify_hours,
																   IntervalPGetDatum(&interval))));
}

/* Has a shape been read since then, or one of its readers (int8[]), or does somebody wait for it? */
static bool
is_read_since(int64 shape, Datum readers, TimestampTz since)
{
	Datum	   *ids;
	int			n;

	if (ecm_last_read_there(shape) >= since || ecm_waiters_any(MyDatabaseId, shape))
		return true;
	deconstruct_array(DatumGetArrayTypeP(readers), INT8OID, sizeof(int64), FLOAT8PASSBYVAL,
					  TYPALIGN_DOUBLE, &ids, NULL, &n);
	for (int i = 0; i < n; i++)
		if (ecm_last_read_there(-DatumGetInt64(ids[i])) >= since)
			return true;
	return false;
}

/*
 * _electric_cm.expire_shapes(expiry int4) RETURNS int4
 *
 * Deletes the shapes that nobody has read for 'expiry' seconds, except those that somebody
 * has locked, that somebody waits for, or of which a named reader has read another shape
 * meanwhile; returns their number.  A shape that has not been live for so long, or may have
 * been read before it was noted here who reads, stays.
 */
Datum
electric_cm_expire_shapes(PG_FUNCTION_ARGS)
{
	int			expiry = PG_GETARG_INT32(0);
	TimestampTz before = ecm_wall_clock() - expiry * USECS_PER_SEC;
	Oid			type = TIMESTAMPTZOID;
	Datum		value = TimestampTzGetDatum(before);
	EcmSpiState spi;
	Datum	   *ids;
	int			index;
	int			n = 0;

	ecm_require_shared();
	index = ecm_stack_find(MyDatabaseId);
	if (index < 0 || ecm_stack_at(index)->reads_since == 0 || ecm_stack_at(index)->reads_since > before)
		PG_RETURN_INT32(0);
	ecm_spi_begin(&spi);
	ecm_shapes_query("SELECT s.id, ARRAY(SELECT m.reader FROM _electric_cm.reader_shape m WHERE m.shape = s.id)"
					 " FROM _electric_cm.shape s JOIN _electric_cm.shape_state t ON t.shape = s.id"
					 " WHERE t.state IN ('live', 'errored') AND coalesce(t.live_at, s.created_at) < $1",
					 1, &type, &value);
	ids = palloc(Max(SPI_processed, 1) * sizeof(Datum));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		int64		id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		Datum		readers = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull);

		CHECK_FOR_INTERRUPTS();
		if (!is_read_since(id, readers, before))
			ids[n++] = Int64GetDatum(id);
	}
	if (n > 0)
	{
		type = INT8ARRAYOID;
		value = PointerGetDatum(construct_array(ids, n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
		n = ecm_shapes_delete_unlocked("FROM _electric_cm.shape s WHERE s.id = ANY ($1)",
									   1, &type, &value,
									   psprintf("nobody has read it for %s", duration_text(expiry)));
	}
	ecm_spi_end(&spi);
	PG_RETURN_INT32(n);
}

/*
 * A shape is gone if its consumer has marked it, or if it has been noted as
 * lost.  The latter counts as well, since the mark may be missing: if the
 * shape was given to a consumer at that moment, each consumer may have left it
 * to another one to mark it.
 */
#define IS_GONE_SQL \
	"s.id IN (SELECT shape FROM _electric_cm.shape_state WHERE state = 'gone'" \
	" UNION SELECT shape FROM _electric_cm.lost_shape)"

/*
 * _electric_cm.delete_gone() RETURNS bool
 *
 * Deletes shapes that are gone, and which nobody has locked any more.  True:
 * there are others.
 */
Datum
electric_cm_delete_gone(PG_FUNCTION_ARGS pg_attribute_unused())
{
	EcmSpiState spi;
	bool		others;

	ecm_spi_begin(&spi);
	/* an empty reason: an event has given it already */
	(void) ecm_shapes_delete_unlocked("FROM _electric_cm.shape s WHERE " IS_GONE_SQL,
									  0, NULL, NULL, "");
	ecm_spi_run("SELECT FROM _electric_cm.shape s WHERE " IS_GONE_SQL " LIMIT 1",
				SPI_OK_SELECT, 0, NULL, NULL, NULL);
	others = SPI_processed > 0;
	ecm_spi_run("DELETE FROM _electric_cm.lost_shape l WHERE NOT EXISTS"
				" (SELECT FROM _electric_cm.shape s WHERE s.id = l.shape)",
				SPI_OK_DELETE, 0, NULL, NULL, NULL);
	ecm_spi_end(&spi);
	PG_RETURN_BOOL(others);
}

/* -------------------------------------------------- what they leave behind -- */

/*
 * _electric_cm.purge_shapes(shapes int8[], max_chunks int4, max_wal int8,
 *		OUT done int4, OUT postponed int8[])
 *
 * Deletes the logs and other rows of dropped shapes, in the given order, until
 * max_chunks chunks have been deleted or max_wal bytes of WAL been written.
 * done: the number of shapes that have been dealt with. postponed: those among
 * them whose row a transaction in progress is about to delete; the caller
 * tries again later.  A shape whose row nobody is deleting is left alone.
 * Chunks are deleted below SQL, since a consumer may be deleting the same
 * ones, and one of the two suffices.
 */
Datum
electric_cm_purge_shapes(PG_FUNCTION_ARGS)
{
	ArrayType  *shapes = PG_GETARG_ARRAYTYPE_P(0);
	int64		max_chunks = PG_GETARG_INT32(1);
	uint64		wal_end = pgWalUsage.wal_bytes + Max(PG_GETARG_INT64(2), 1);
	Oid			type = INT8ARRAYOID;
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {false, false};
	Datum	   *ids;
	Datum	   *freed;
	Datum	   *postponed;
	Datum		done;
	int			n;
	int			ndone = 0;
	int			nfreed = 0;
	int			npostponed = 0;
	EcmFates	fates;
	EcmSpiState spi;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	deconstruct_array(shapes, INT8OID, sizeof(int64), FLOAT8PASSBYVAL,
					  TYPALIGN_DOUBLE, &ids, NULL, &n);
	freed = palloc(sizeof(Datum) * Max(n, 1));
	postponed = palloc(sizeof(Datum) * Max(n, 1));
	(void) ecm_fates_begin(&fates, InvalidTransactionId, true);
	for (; ndone < n; ndone++)
	{
		EcmShapeFate fate = ecm_fate_of(&fates, DatumGetInt64(ids[ndone]));

		if (fate.in_doubt)
			postponed[npostponed++] = ids[ndone];
		else if (!fate.exists)
		{
			if (!ecm_log_delete_some(DatumGetInt64(ids[ndone]), &max_chunks, wal_end))
				break;
			freed[nfreed++] = ids[ndone];
		}
	}
	ecm_fates_end(&fates);
	if (nfreed > 0)
	{
		done = ecm_array_of_int8(freed, nfreed);
		ecm_spi_begin(&spi);
		ecm_spi_run("DELETE FROM _electric_cm.shape_state WHERE shape = ANY ($1)",
					SPI_OK_DELETE, 1, &type, &done, NULL);
		ecm_spi_run("DELETE FROM _electric_cm.shape_base WHERE shape = ANY ($1)",
					SPI_OK_DELETE, 1, &type, &done, NULL);
		ecm_spi_run("DELETE FROM _electric_cm.shape_fold WHERE shape = ANY ($1)",
					SPI_OK_DELETE, 1, &type, &done, NULL);
		ecm_spi_run("DELETE FROM _electric_cm.shape_gap WHERE shape = ANY ($1)",
					SPI_OK_DELETE, 1, &type, &done, NULL);
		ecm_spi_run("DELETE FROM _electric_cm.shape_worker WHERE shape = ANY ($1)",
					SPI_OK_DELETE, 1, &type, &done, NULL);
		ecm_spi_end(&spi);
	}
	values[0] = Int32GetDatum(ndone);
	values[1] = ecm_array_of_int8(postponed, npostponed);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
