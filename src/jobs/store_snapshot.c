/*-------------------------------------------------------------------------
 *
 * store_snapshot.c
 *	  The end of the creation of shapes: their rows are in the log.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"

#include "base/spi.h"
#include "base/stream_message.h"
#include "base/stream_message_io.h"
#include "jobs/store_snapshot.h"
#include "shape/arrays.h"
#include "shape/shape.h"

char *
ecm_snapshot_text(void)
{
	return OidOutputFunctionCall(F_PG_SNAPSHOT_OUT, OidFunctionCall0(F_PG_CURRENT_SNAPSHOT));
}

/*
 * A session that has a row locked may be waiting for our lock on the table: it is not
 * waited for.
 */
void
ecm_snapshot_lock(Datum ids)
{
	Oid			type = INT8ARRAYOID;
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_spi_run("SELECT FROM _electric_cm.shape WHERE id = ANY ($1)"
				" ORDER BY id FOR NO KEY UPDATE NOWAIT",
				SPI_OK_SELECT, 1, &type, &ids, NULL);
	ecm_spi_end(&spi);
}

void
ecm_snapshot_store(const EcmReadShape *shapes, int n, const char *snapshot)
{
	EcmSpiState spi;
	EcmStreamMessage message = {.kind = ECM_MESSAGE_LIVE, .snapshot = snapshot,
	.snapshot_len = strlen(snapshot)};
	Oid			types[] = {INT8ARRAYOID, INT4ARRAYOID, INT8ARRAYOID, TEXTOID};
	Datum		args[4];
	Datum	   *ids = palloc(sizeof(Datum) * Max(n, 1));
	Datum	   *generations = palloc(sizeof(Datum) * Max(n, 1));
	Datum	   *rows = palloc(sizeof(Datum) * Max(n, 1));
	int			ndone = 0;

	message.shapes = palloc(sizeof(EcmMessageShape) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		const EcmReadShape *shape = &shapes[i];

		if (!shape->done)
			continue;
		ids[ndone] = Int64GetDatum(shape->def->id);
		generations[ndone] = Int32GetDatum(shape->def->generation);
		/* a log that was there before keeps the number that it began with */
		rows[ndone++] = Int64GetDatum(XLogRecPtrIsInvalid(shape->def->gap_lsn) ? shape->rows : -1);
		message.shapes[message.nshapes++] =
			(EcmMessageShape)
		{
			shape->def->id, shape->def->generation
		};
	}
	if (ndone == 0)
		return;
	args[0] = ecm_array_of_int8(ids, ndone);
	args[1] = ecm_array_of_int4(generations, ndone);
	args[2] = ecm_array_of_int8(rows, ndone);
	args[3] = CStringGetTextDatum(snapshot);

	ecm_snapshot_lock(args[0]);
	ecm_spi_begin(&spi);
	ecm_spi_run("UPDATE _electric_cm.shape s SET snapshot = $4::pg_catalog.pg_snapshot,"
				" order_xid = pg_current_xact_id(), snapshot_generation = d.generation,"
				" snapshot_rows = CASE WHEN d.rows >= 0 THEN d.rows ELSE s.snapshot_rows END"
				" FROM unnest($1, $2, $3) AS d (id, generation, rows) WHERE s.id = d.id",
				SPI_OK_UPDATE, 4, types, args, NULL);
	if (SPI_processed != (uint64) ndone)
		elog(ERROR, "could not update all shapes");
	ecm_spi_end(&spi);
	ecm_message_emit(&message);
}
