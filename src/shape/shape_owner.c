/*-------------------------------------------------------------------------
 *
 * shape_owner.c
 *	  What becomes of shapes when their owners go.
 *
 * The server knows of no dependency of a shape on its owner, and roles are
 * shared by all databases, so a role can be dropped in another database while
 * it has shapes here.  Nobody can read these any more, and they are removed
 * when the next stream starts.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/latch.h"

#include "base/clock.h"
#include "base/spi.h"
#include "base/stream_message.h"
#include "base/stream_message_io.h"
#include "base/wait_event.h"
#include "shape/shape.h"
#include "shape/shape_catalog.h"
#include "shape/shape_owner.h"
#include "shape/shape_readers.h"
#include "shape/shape_rights.h"

/* How long REASSIGN OWNED waits for shapes that somebody has locked. */
#define LOCK_WAIT_MS	3000
#define LOCK_POLL_MS	50

void
ecm_shapes_invalidate_owner(Oid owner, const char *reason)
{
	EcmSpiState spi;
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(owner);

	ecm_spi_begin(&spi);
	(void) ecm_shapes_delete("owner = $1", 1, &type, &value, NULL, reason);
	ecm_readers_delete_of(owner);
	ecm_grants_delete_of(owner);
	ecm_spi_end(&spi);
}

/*
 * Locks a shape's row, waiting until 'until' at most.  A fold has the row
 * locked for some seconds, and is waited for.  A user who drops the shape may
 * have it locked for days, and is not.
 */
static bool
lock_shape(int64 id, EcmTime until)
{
	Oid			type = INT8OID;
	Datum		value = Int64GetDatum(id);

	for (;;)
	{
		ecm_shapes_query("SELECT FROM _electric_cm.shape WHERE id = $1"
						 " FOR UPDATE SKIP LOCKED", 1, &type, &value);
		if (SPI_processed > 0)
			return true;
		if (ecm_now() >= until)
			return false;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOCK_POLL_MS, ecm_wait_event(ECM_WAIT_STACK));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
tell_owner(int64 id, Oid owner)
{
	EcmMessageShape shape = {.id = id};
	EcmStreamMessage message = {.kind = ECM_MESSAGE_OWNER, .shapes = &shape,
	.nshapes = 1, .owner = owner};

	ecm_message_emit(&message);
}

static void
give_shape(const EcmShapeDef *shape, Oid to, EcmTime until)
{
	Oid			types[] = {INT8OID, OIDOID};
	Datum		values[] = {Int64GetDatum(shape->id), ObjectIdGetDatum(to)};
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	if (!lock_shape(shape->id, until))
		(void) ecm_shapes_delete("id = $1 AND $2 <> 0", 2, types, values, NULL,
								 "its owner has changed while somebody was dropping it");
	else if (!ecm_shape_may_read(shape, to))
		(void) ecm_shapes_delete("id = $1 AND $2 <> 0", 2, types, values, NULL,
								 "its new owner may not read the table");
	else
	{
		ecm_shapes_update("UPDATE _electric_cm.shape s SET owner = $2 WHERE id = $1"
						  " AND NOT EXISTS (SELECT FROM _electric_cm.shape o"
						  " WHERE o.owner = $2 AND o.relation = s.relation"
						  " AND o.definition = s.definition)",
						  2, types, values);
		if (SPI_processed > 0)
			tell_owner(shape->id, to);
		else
			(void) ecm_shapes_delete("id = $1 AND $2 <> 0", 2, types, values, NULL,
									 "its new owner has the same shape");
	}
	ecm_spi_end(&spi);
}

void
ecm_shapes_reassign(Oid from, Oid to)
{
	EcmTime		until = ecm_later(ecm_now(), LOCK_WAIT_MS);
	ListCell   *lc;

	if (from == to)
		return;
	foreach(lc, ecm_shapes_of_owner(from))
		give_shape(lfirst(lc), to, until);
	ecm_readers_reassign(from, to);
}
