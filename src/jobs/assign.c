/*-------------------------------------------------------------------------
 *
 * assign.c
 *	  Which consumer follows which shape.
 *
 * A shape's consumer is a function of its id and the number of consumers, and
 * is stored when an attempt to create it begins, beside the shape's own row,
 * which a user may have locked.  Only when a
 * stack starts with another number of consumers do shapes change hands.  Then
 * consumers may have come to different positions: the new one of a shape must
 * neither skip what the old one had not come to yet, nor log again what it
 * had.  So every shape is told how far its consumer was, to skip until there,
 * and all consumers start over from what the slot still has.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lock.h"

#include "base/shmem.h"
#include "base/spi.h"
#include "shape/shape.h"

PG_FUNCTION_INFO_V1(electric_cm_assign_shapes);

/* A class of advisory locks that SQL's functions don't use. */
#define CONSUMER_LOCK_CLASS	3

void
ecm_shape_lock_progress(int worker, bool until_exit)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, worker, CONSUMER_LOCK_CLASS);
	(void) LockAcquire(&tag, ExclusiveLock, until_exit, false);
}

int
ecm_shape_workers_running(void)
{
	int			index = ecm_stack_find(MyDatabaseId);
	int			n;

	if (index < 0)
		return 1;
	ecm_lock(LW_SHARED);
	n = ecm_stack_at(index)->nconsumers;
	ecm_unlock();
	return Max(n, 1);
}

static void
run(const char *sql, int expected, int workers)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(workers);
	int			rc = SPI_execute_with_args(sql, 1, &type, &value, NULL, false, 0);

	if (rc != expected)
		elog(ERROR, "unexpected result %s of \"%s\"", SPI_result_code_string(rc), sql);
}

/*
 * _electric_cm.assign_shapes(workers int4) RETURNS bool
 *
 * Makes 'workers' consumers share the shapes, in a pool session, before any
 * consumer runs.  Returns whether shapes have changed hands.  A shape that is
 * still waiting for its first attempt gets its consumer then.
 *
 * Waits for consumers that a former manager has left behind: what they commit
 * is part of how far they were.
 */
Datum
electric_cm_assign_shapes(PG_FUNCTION_ARGS)
{
	int			workers = PG_GETARG_INT32(0);
	EcmSpiState spi;
	bool		any;

	if (workers < 1 || workers > ECM_MAX_SHAPE_WORKERS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("number of workers must be between 1 and %d",
						ECM_MAX_SHAPE_WORKERS)));

	ecm_spi_begin(&spi);
	run("SELECT FROM _electric_cm.shape_worker WHERE worker <> shape % $1"
		" LIMIT 1", SPI_OK_SELECT, workers);
	any = SPI_processed > 0;
	if (any)
	{
		for (int i = 0; i < ECM_MAX_SHAPE_WORKERS; i++)
			ecm_shape_lock_progress(i, false);

		/* a consumer without a row has not logged anything yet */
		run("UPDATE _electric_cm.shape_worker w SET skip_until = greatest(w.skip_until,"
			" (SELECT max(p.lsn) FROM _electric_cm.progress p WHERE p.worker = w.worker)),"
			" worker = w.shape % $1", SPI_OK_UPDATE, workers);
		run("DELETE FROM _electric_cm.progress WHERE $1 > 0", SPI_OK_DELETE, workers);
	}
	ecm_spi_end(&spi);
	PG_RETURN_BOOL(any);
}
