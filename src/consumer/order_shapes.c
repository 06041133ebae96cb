/*-------------------------------------------------------------------------
 *
 * order_shapes.c
 *	  The shapes that an order names, and which of them it is meant for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/pg_lsn.h"

#include "base/spi.h"
#include "consumer/log_batch.h"
#include "consumer/order_shapes.h"
#include "shape/arrays.h"
#include "shape/shape_fate.h"

EcmOrderShapes
ecm_order_shapes_create(int max)
{
	EcmOrderShapes list = {0};

	list.ids = palloc(sizeof(Datum) * Max(max, 1));
	list.generations = palloc(sizeof(Datum) * Max(max, 1));
	list.readings = palloc(sizeof(int64) * Max(max, 1));
	return list;
}

void
ecm_order_shapes_add(EcmOrderShapes *list, int64 id, int generation, int64 reading)
{
	list->ids[list->n] = Int64GetDatum(id);
	list->generations[list->n] = Int32GetDatum(generation);
	list->readings[list->n++] = reading;
}

EcmOrderShapes
ecm_order_shapes_named(const EcmStreamMessage *message)
{
	EcmOrderShapes list = ecm_order_shapes_create(message->nshapes);

	for (int i = 0; i < message->nshapes; i++)
		ecm_order_shapes_add(&list, message->shapes[i].id, message->shapes[i].generation, 0);
	return list;
}

/* Has this transaction given the order, though others may not see that yet? */
static bool
is_given(const EcmStreamMessage *message, TransactionId xid)
{
	bool		given = false;
	EcmFates	fates;

	if (message->kind == ECM_MESSAGE_PIECE)
		return ecm_order_is_given("reading_piece", message->reading, (int) message->number, xid);
	if (message->kind == ECM_MESSAGE_AGAIN)
	{
		for (int i = 0; i < message->nshapes && !given; i++)
			given = ecm_order_is_given("reading_again", message->shapes[i].id, 0, xid);
		return given;
	}
	(void) ecm_fates_begin(&fates, xid, true);
	for (int i = 0; i < message->nshapes && !given; i++)
		given = ecm_fate_of(&fates, message->shapes[i].id).changed;
	ecm_fates_end(&fates);
	return given;
}

/*
 * Waits until others can see the commit of the transaction that has given the
 * order.  A commit is decoded as soon as it is in the WAL, and becomes visible a
 * moment later.  Sessions of the stack need no more than that moment.  But a forged
 * order may be in anybody's transaction, which may wait for a synchronous standby
 * for ever.  So a transaction that has not given the order is not waited for: its
 * message is ignored anyway.
 */
static void
await_order(const EcmStreamMessage *message, TransactionId xid)
{
	if (TransactionIdIsInProgress(xid) && is_given(message, xid))
		XactLockTableWait(xid, NULL, NULL, XLTW_None);
}

#define MEANT_SQL(condition) \
	"SELECT s.id, s.generation, coalesce(s.reading, 0) FROM unnest($1, $2) AS d (id, generation)" \
	" JOIN _electric_cm.shape s ON s.id = d.id" \
	" WHERE s.generation = d.generation AND " condition

EcmOrderShapes
ecm_order_shapes_meant(const EcmStreamMessage *message)
{
	static struct _SPI_plan *plan;
	static struct _SPI_plan *piece_plan;
	static struct _SPI_plan *again_plan;
	static struct _SPI_plan *fail_plan;
	EcmOrderShapes named = ecm_order_shapes_named(message);
	EcmOrderShapes result = ecm_order_shapes_create(named.n);
	TransactionId xid = ecm_log_batch_xid();
	Oid			types[] = {INT8ARRAYOID, INT4ARRAYOID, XIDOID, INT8OID, INT4OID};
	Datum		values[5];
	EcmSpiState spi;

	if (named.n == 0)
		return result;
	await_order(message, xid);
	values[0] = ecm_array_of_int8(named.ids, named.n);
	values[1] = ecm_array_of_int4(named.generations, named.n);
	values[2] = TransactionIdGetDatum(xid);
	values[3] = Int64GetDatum(message->reading);
	values[4] = Int32GetDatum((int32) message->number);
	ecm_spi_begin(&spi);
	if (message->kind == ECM_MESSAGE_PIECE)
		ecm_spi_run_kept(&piece_plan,
						 MEANT_SQL("s.reading = $4 AND EXISTS"
								   " (SELECT FROM _electric_cm.reading_piece"
								   "  WHERE reading = $4 AND number = $5 AND order_xid::xid = $3)"),
						 SPI_OK_SELECT, 5, types, values, NULL);
	else if (message->kind == ECM_MESSAGE_AGAIN)
		ecm_spi_run_kept(&again_plan, MEANT_SQL("s.reading = $4 AND EXISTS"
												" (SELECT FROM _electric_cm.reading_again"
												"  WHERE shape = s.id AND order_xid::xid = $3)"),
						 SPI_OK_SELECT, 4, types, values, NULL);
	else if (message->kind == ECM_MESSAGE_FAIL)
		/* an attempt that a command has ended meanwhile proves nothing */
		ecm_spi_run_kept(&fail_plan, MEANT_SQL("s.order_xid::xid = $3 AND EXISTS"
											   " (SELECT FROM _electric_cm.shape_state t"
											   "  WHERE t.shape = s.id AND t.generation = s.generation)"),
						 SPI_OK_SELECT, 3, types, values, NULL);
	else
		ecm_spi_run_kept(&plan, MEANT_SQL("s.order_xid::xid = $3"),
						 SPI_OK_SELECT, 3, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed && result.n < named.n; i++)
	{
		bool		isnull;
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		ecm_order_shapes_add(&result, DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull)),
							 DatumGetInt32(SPI_getbinval(row, desc, 2, &isnull)),
							 DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull)));
	}
	ecm_spi_end(&spi);
	return result;
}

void
ecm_order_shapes_set_states(struct _SPI_plan **plan, const char *sql,
							const EcmOrderShapes *list)
{
	Oid			types[3] = {INT8ARRAYOID, INT4ARRAYOID, LSNOID};
	Datum		values[3];
	EcmSpiState spi;

	if (list->n == 0)
		return;
	values[0] = ecm_array_of_int8(list->ids, list->n);
	values[1] = ecm_array_of_int4(list->generations, list->n);
	values[2] = LSNGetDatum(ecm_log_batch_lsn());
	ecm_spi_begin(&spi);
	ecm_spi_run_kept(plan, sql, SPI_OK_INSERT, 3, types, values, NULL);
	ecm_spi_end(&spi);
}
