/*-------------------------------------------------------------------------
 *
 * reader_stat.c
 *	  How far named readers are: for the view electric_cm_stat_readers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "functions/offset_type.h"
#include "functions/reader.h"
#include "shape/shape_readers.h"
#include "slot/retained_wal_history.h"

PG_FUNCTION_INFO_V1(electric_cm_reader_stats);
PG_FUNCTION_INFO_V1(electric_cm_make_offset);

/* What a reader's row has. */
typedef struct Watched
{
	EcmReader	reader;
	TimestampTz created_at;
	TimestampTz acknowledged_at;	/* or created_at */
} Watched;

/*
 * Looks a reader up that the user may know of.  The view shows it to those who may; nobody
 * else asks.
 */
static bool
may_watch(int64 id, Watched *watched)
{
	Oid			type = INT8OID;
	Datum		value = Int64GetDatum(id);
	Oid			owner = InvalidOid;
	EcmSpiState spi;

	watched->reader.id = id;
	ecm_spi_begin(&spi);
	ecm_spi_run("SELECT owner, lsn, op, created_at, coalesce(acknowledged_at, created_at)"
				" FROM _electric_cm.reader WHERE id = $1",
				SPI_OK_SELECT, 1, &type, &value, NULL);
	if (SPI_processed > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		owner = DatumGetObjectId(SPI_getbinval(row, desc, 1, &isnull));
		watched->reader.position = ecm_position_of(DatumGetLSN(SPI_getbinval(row, desc, 2, &isnull)),
												   DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull)));
		watched->created_at = DatumGetTimestampTz(SPI_getbinval(row, desc, 4, &isnull));
		watched->acknowledged_at = DatumGetTimestampTz(SPI_getbinval(row, desc, 5, &isnull));
	}
	ecm_spi_end(&spi);
	return OidIsValid(owner) && (has_privs_of_role(GetUserId(), owner) ||
								 has_privs_of_role(GetUserId(), ROLE_PG_MONITOR));
}

/*
 * For how long a reader has had something to acknowledge, in microseconds: as long as that
 * has been committed, as far back as there are samples; or else since the reader has last
 * acknowledged anything.
 */
static int64
lag_of(const Watched *watched, XLogRecPtr oldest)
{
	int			index = ecm_shared == NULL || RecoveryInProgress() ? -1 : ecm_stack_find(MyDatabaseId);
	TimestampTz now = ecm_wall_clock();
	int64		age = -1;

	if (index >= 0 && oldest != InvalidXLogRecPtr)
		age = ecm_history_age_of(index, MyDatabaseId, oldest, GetInsertRecPtr(), ecm_now());
	if (age < 0)
		age = now - watched->acknowledged_at;
	return Max(0, Min(age, now - watched->created_at));
}

/*
 * _electric_cm.reader_stats(reader int8, OUT lag_bytes int8, OUT lag interval,
 *							 OUT last_read_at timestamptz)
 *
 * About how many bytes of its shapes' logs a reader has not acknowledged, and how old the
 * oldest of these is.  All NULL: the user may not know.
 */
Datum
electric_cm_reader_stats(PG_FUNCTION_ARGS)
{
	Watched		watched = {0};
	TupleDesc	desc;
	Datum		values[3] = {0};
	bool		nulls[3] = {true, true, true};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (may_watch(PG_GETARG_INT64(0), &watched))
	{
		int			n;
		EcmReaderShape *shapes = ecm_reader_shapes(&watched.reader, ECM_READER_FOLLOWED, 0, INT_MAX, &n);
		int64		bytes = 0;
		XLogRecPtr	oldest = InvalidXLogRecPtr;
		Interval   *lag = palloc0(sizeof(Interval));
		TimestampTz read_at = ecm_last_read(-watched.reader.id);

		for (int i = 0; i < n; i++)
		{
			XLogRecPtr	lsn;
			int64		more;

			CHECK_FOR_INTERRUPTS();
			more = ecm_log_bytes_after(shapes[i].shape, &shapes[i].position, &lsn);
			bytes += more;
			if (more > 0 && lsn != InvalidXLogRecPtr)
				oldest = oldest == InvalidXLogRecPtr ? lsn : Min(oldest, lsn);
		}
		lag->time = bytes > 0 ? lag_of(&watched, oldest) : 0;
		values[0] = Int64GetDatum(bytes);
		values[1] = IntervalPGetDatum(lag);
		values[2] = TimestampTzGetDatum(read_at);
		nulls[0] = nulls[1] = false;
		nulls[2] = read_at == 0;
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/* _electric_cm.offset(lsn pg_lsn, op int8) RETURNS electric_cm_offset */
Datum
electric_cm_make_offset(PG_FUNCTION_ARGS)
{
	EcmOffset	position = ecm_position_of(PG_GETARG_LSN(0), PG_GETARG_INT64(1));

	PG_RETURN_DATUM(ecm_offset_datum(&position));
}
