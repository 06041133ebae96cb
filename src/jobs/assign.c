/*-------------------------------------------------------------------------
 *
 * assign.c
 *	  Which consumer follows which shape.
 *
 * A shape's consumer is a function of the shape's id and the number of
 * consumers.  It is stored when an attempt to create the shape begins, in a
 * table beside that of the shapes, since a user may have locked the shape's
 * own row.
 *
 * Only when a stack starts with another number of consumers do shapes change
 * hands.  The former consumers may have come to different positions in the
 * stream by then.  The new consumer of a shape must neither skip transactions
 * that the former one had not come to yet, nor log again those that it had
 * logged.  So each shape is given the position of its former consumer
 * (skip_until), before which its transactions are skipped, and all consumers
 * start over at the slot's position.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"

#include "base/shmem.h"
#include "base/spi.h"
#include "shape/shape_worker.h"

PG_FUNCTION_INFO_V1(electric_cm_assign_shapes);

/*
 * _electric_cm.assign_shapes(workers int4) RETURNS bool
 *
 * Makes 'workers' consumers share the shapes, in a pool session, before any
 * consumer runs.  Returns whether shapes have changed hands.  A shape that is
 * still waiting for its first attempt gets its consumer then.
 *
 * Waits for consumers of a former manager that still run: their position is
 * not final until they have ended.
 */
Datum
electric_cm_assign_shapes(PG_FUNCTION_ARGS)
{
	int			workers = PG_GETARG_INT32(0);
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(workers);
	EcmSpiState spi;
	bool		any;

	if (workers < 1 || workers > ECM_MAX_SHAPE_WORKERS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("number of workers must be between 1 and %d",
						ECM_MAX_SHAPE_WORKERS)));

	ecm_spi_begin(&spi);
	ecm_spi_run("SELECT FROM _electric_cm.shape_worker WHERE worker <> shape % $1"
				" LIMIT 1", SPI_OK_SELECT, 1, &type, &value, NULL);
	any = SPI_processed > 0;
	if (any)
	{
		ecm_shape_lock_all_progress();
		ecm_own_forget_applied_lsns();

		/* a consumer without a row in progress has logged nothing yet */
		ecm_spi_run("UPDATE _electric_cm.shape_worker w SET skip_until = greatest(w.skip_until,"
					" (SELECT max(p.lsn) FROM _electric_cm.progress p WHERE p.worker = w.worker)),"
					" worker = w.shape % $1", SPI_OK_UPDATE, 1, &type, &value, NULL);
		ecm_spi_run("DELETE FROM _electric_cm.progress", SPI_OK_DELETE,
					0, NULL, NULL, NULL);
	}
	ecm_spi_end(&spi);
	PG_RETURN_BOOL(any);
}
