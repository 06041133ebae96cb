/*-------------------------------------------------------------------------
 *
 * resync.c
 *	  A function for pool sessions: begins the resync of all shapes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"

#include "base/spi.h"
#include "shape/shape_gap.h"
#include "shape/shape_verify.h"
#include "shape/shape_worker.h"

PG_FUNCTION_INFO_V1(electric_cm_resync_all);
PG_FUNCTION_INFO_V1(electric_cm_verify_all);

/*
 * _electric_cm.resync_all(reason text) RETURNS int4
 *
 * To be called before a stream starts that does not continue the one which the logs
 * were made from.  All shapes that have a log are compared with their tables, which
 * closes the gap; of those that are being created, the creation starts again.  Those
 * that their tables don't fit any more, as nobody may have seen DDL, end.  The
 * consumers' progress is deleted as well, since after a point-in-time recovery its
 * positions can be beyond the end of WAL.  Returns the number of shapes.
 *
 * Waits for consumers of the former stream, which have been told to end: one that is at
 * work yet might log changes of then behind what a comparison has written, or set a shape
 * live.
 */
Datum
electric_cm_resync_all(PG_FUNCTION_ARGS)
{
	char	   *reason = text_to_cstring(PG_GETARG_TEXT_PP(0));
	EcmSpiState spi;
	int			n;

	ecm_shape_lock_all_progress();
	ecm_spi_begin(&spi);
	n = ecm_gaps_begin_all(reason);
	/* afterwards, since an attempt to resync may mend a replica identity */
	ecm_shapes_verify_all();
	ecm_spi_run("DELETE FROM _electric_cm.shape_worker", SPI_OK_DELETE, 0, NULL, NULL, NULL);
	ecm_spi_run("DELETE FROM _electric_cm.progress", SPI_OK_DELETE, 0, NULL, NULL, NULL);
	ecm_spi_end(&spi);
	PG_RETURN_INT32(n);
}

/*
 * _electric_cm.verify_all() RETURNS void
 *
 * To be called before a stream starts that continues the logs in a cluster that pg_upgrade
 * has made.  Shapes that their tables don't fit any more, as the new version has other
 * rules, end.
 */
Datum
electric_cm_verify_all(PG_FUNCTION_ARGS)
{
	ecm_shape_lock_all_progress();
	ecm_shapes_verify_all();
	PG_RETURN_VOID();
}
