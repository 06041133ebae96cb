/*-------------------------------------------------------------------------
 *
 * publish_capture.c
 *	  Functions for pool sessions that create shapes: publish a table, and
 *	  begin to capture its changes.
 *
 * Both may have to wait for locks, which the manager must not do.
 * shape_creation.c has them called, first one, then the other; snapshot.c has
 * what follows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/tuplestore.h"
#include "utils/xid8.h"

#include "base/lock_holder.h"
#include "base/spi.h"
#include "base/stream_message.h"
#include "base/stream_message_io.h"
#include "shape/arrays.h"
#include "shape/publication.h"
#include "shape/shape.h"
#include "shape/shape_catalog.h"
#include "shape/shape_columns.h"
#include "shape/shape_requirements.h"
#include "shape/shape_settings.h"
#include "shape/shape_worker.h"

PG_FUNCTION_INFO_V1(electric_cm_publish_table);
PG_FUNCTION_INFO_V1(electric_cm_capture_shapes);

/*
 * Time to wait for the ACCESS EXCLUSIVE lock that ALTER TABLE ... REPLICA
 * IDENTITY takes.  While we wait for it, all who come to the table later wait
 * behind us.  And if we hold such a lock on one leaf already, waiting for that
 * of another leaf may be a deadlock.
 */
#define IDENTITY_LOCK_TIMEOUT	"100ms"

/*
 * Time to wait for the lock by which a table is published.  It is in nobody's
 * way, but while a session of the pool waits, shapes of other tables can't
 * have it.
 */
#define PUBLISH_LOCK_TIMEOUT	"1s"

typedef struct LeavesArg
{
	MemoryContext context;
	Oid			relation;
	bool		any;			/* some of the shapes still exist */
	LOCKMODE	lockmode;		/* on the leaves */
	List	   *leaves;
} LeavesArg;

/* Leaves of the table that must get another replica identity for the shape. */
static void
collect_leaves(const EcmShapeDef *def, void *arg)
{
	LeavesArg  *a = arg;
	EcmShapeNeeds needs = {0};
	bool		missing = false;
	List	   *leaves;
	MemoryContext old;

	if (def->relation != a->relation)
		return;
	a->any = true;
	/* one that is gone, and has no namesake, is just missing */
	needs.columns = ecm_column_attnums(def->relation, def->column_names,
									   def->ncolumns, NULL, &missing);
	for (int i = 0; i < def->nkeys; i++)
		needs.key = ecm_column_attnums(def->relation,
									   &def->column_names[def->key_positions[i]],
									   1, needs.key, &missing);
	if (def->filter != NULL)
		needs.where = ecm_column_attnums(def->relation, def->filter->names,
										 def->filter->ncolumns, NULL, &missing);

	/*
	 * nobody waits for a FULL that only later columns need, see
	 * apply_change.c
	 */
	if (!ecm_may_set_identity() || ecm_publishes_manually())
		needs.columns = NULL;
	leaves = ecm_leaves_to_alter(def->relation, &needs, def->owner, a->lockmode);
	old = MemoryContextSwitchTo(a->context);
	a->leaves = list_concat_unique_oid(a->leaves, leaves);
	MemoryContextSwitchTo(old);
}

/* Sets lock_timeout until ecm_spi_end(). */
static void
be_impatient(const char *timeout)
{
	(void) set_config_option("lock_timeout", timeout,
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
}

/*
 * To be called when the table has been published.  From here on, a command
 * that takes the replica identity of a leaf away, or makes one that cannot be
 * published, finds that the table is
 * published, and ends its shapes.  This looks whether one has done so just
 * before, and raises an ERROR then.
 */
static void
check_identities(Oid relation, ArrayType *shapes)
{
	LeavesArg	arg = {.context = CurrentMemoryContext, .relation = relation,
	.lockmode = AccessShareLock};

	be_impatient(IDENTITY_LOCK_TIMEOUT);
	CommandCounterIncrement();
	ecm_check_leaves(relation, AccessShareLock);
	ecm_shapes_by_ids(shapes, collect_leaves, &arg);
	if (arg.leaves != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("the replica identity of table \"%s\" has changed",
						get_rel_name(linitial_oid(arg.leaves)))));
}

/*
 * Waits for a lock as long as lock_timeout says; else the ERROR has what is up, and by whom,
 * which the server's own would not.  The lock is kept.
 */
static void
lock_or_blame(const LOCKTAG *tag, LOCKMODE mode, const char *what)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		(void) LockAcquire(tag, mode, false, false);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE)
			PG_RE_THROW();
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("%s by %s", what, ecm_lock_holders(tag, mode))));
	}
	PG_END_TRY();
}

/* As ALTER PUBLICATION does. */
static void
lock_publication(const char *name)
{
	Oid			publication = get_publication_oid(name, false);
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, PublicationRelationId, publication, 0);
	lock_or_blame(&tag, AccessExclusiveLock, psprintf("publication \"%s\" is locked", name));
	AcceptInvalidationMessages();
}

/*
 * Waits for the commands that have begun the gaps of these shapes to be seen.  The stream
 * has their commit before anybody else: until it is seen (a synchronous standby may have
 * to have it first), the publication is as it was, and there is no gap to be closed.
 */
static void
wait_for_orders(ArrayType *shapes)
{
	Oid			type = INT8ARRAYOID;
	Datum		value = PointerGetDatum(shapes);

	ecm_spi_run("SELECT DISTINCT t.gap_xid FROM pg_catalog.unnest($1) AS a (id)"
				" CROSS JOIN LATERAL (SELECT * FROM _electric_cm.shape_state t WHERE t.shape = a.id OFFSET 0) t"
				" WHERE t.gap_xid IS NOT NULL"
				" AND NOT EXISTS (SELECT FROM _electric_cm.shape_gap g"
				"  WHERE g.shape = t.shape AND g.order_xid = t.gap_xid)",
				SPI_OK_SELECT, 1, &type, &value, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		xid = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		LOCKTAG		tag;

		SET_LOCKTAG_TRANSACTION(tag, XidFromFullTransactionId(DatumGetFullTransactionId(xid)));
		lock_or_blame(&tag, ShareLock, "the command that has ordered the resync is being committed");
	}
}

/*
 * _electric_cm.publish_table(relation oid, shapes int8[]) RETURNS bool
 *
 * Makes the stream have what the shapes of a table need: sets REPLICA IDENTITY
 * FULL on leaves whose replica identity does not suffice, if we may do that,
 * and adds the table to the publication unless it is published already.
 * False: there was nothing to do, because the table is gone, say, or none of
 * these are shapes of it (any more).
 *
 * Errors: 55000 the table is not published and
 * electric_cm.manual_table_publishing is on, or it is excepted from FOR ALL
 * TABLES, or the replica identity is not
 * enough and electric_cm.set_replica_identity is off; if that is on, 42501 not
 * the owner of a table that needs another one, 55P03 the table or the publication
 * is busy; 0A000 another publication, or a virtual column, forbids that, or a
 * partition is unlogged; and what ALTER PUBLICATION raises.
 */
Datum
electric_cm_publish_table(PG_FUNCTION_ARGS)
{
	Oid			relation = PG_GETARG_OID(0);
	char	   *name = get_rel_name(relation);
	char	   *publication = ecm_own_publication_name();
	LeavesArg	arg = {.context = CurrentMemoryContext, .relation = relation};
	bool		publish;
	EcmSpiState spi;

	if (name == NULL)
		PG_RETURN_BOOL(false);
	name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(relation)), name);

	ecm_spi_begin(&spi);
	be_impatient(PUBLISH_LOCK_TIMEOUT);
	wait_for_orders(PG_GETARG_ARRAYTYPE_P(1));
	ecm_spi_end(&spi);
	ecm_check_leaves(relation, NoLock);
	ecm_shapes_by_ids(PG_GETARG_ARRAYTYPE_P(1), collect_leaves, &arg);
	if (!arg.any)
		PG_RETURN_BOOL(false);
	ecm_forget_catalogs();
	ecm_spi_begin(&spi);
	be_impatient(PUBLISH_LOCK_TIMEOUT);
	ecm_hold_published(relation);
	if (arg.leaves != NIL)
	{
		be_impatient(IDENTITY_LOCK_TIMEOUT);
		ecm_spi_run(ecm_identity_commands(arg.leaves), SPI_OK_UTILITY,
					0, NULL, NULL, NULL);
	}
	publish = !ecm_is_published(relation);
	if (publish)
	{
		/*
		 * ALTER PUBLICATION takes this lock, too; another session may publish
		 * the table at the same time
		 */
		LockRelationOid(relation, ShareUpdateExclusiveLock);
		publish = !ecm_is_published(relation);
	}
	if (publish && (ecm_publishes_manually() || ecm_is_excepted(relation)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s is not in publication \"%s\"",
						name, publication)));
	if (publish)
	{
		lock_publication(publication);
		ecm_spi_run(psprintf("ALTER PUBLICATION %s ADD TABLE %s%s",
							 quote_identifier(publication),
							 get_rel_relkind(relation) == RELKIND_RELATION ? "ONLY " : "",
							 name),
					SPI_OK_UTILITY, 0, NULL, NULL, NULL);
		ecm_note_published(relation);
		check_identities(relation, PG_GETARG_ARRAYTYPE_P(1));
	}
	ecm_spi_end(&spi);
	PG_RETURN_BOOL(publish || arg.leaves != NIL);
}

/*
 * Gives each shape that is to be captured the next generation.  Rows that
 * somebody has locked are left alone.  A session whose snapshot is still in
 * doubt, because the manager has lost it, has the rows locked; so as soon as
 * this statement can take a row, the snapshot is committed or rolled back.
 * OFFSET 0, here and below: each shape is looked up by itself, and not all of
 * them read, however many there are.
 */
#define CAPTURE_SQL \
	"WITH locked AS MATERIALIZED (SELECT s.id, s.generation, s.snapshot_generation" \
	"  FROM _electric_cm.shape s WHERE s.id = ANY ($1) AND s.relation IS NOT DISTINCT FROM $2" \
	"  ORDER BY s.id FOR NO KEY UPDATE SKIP LOCKED)" \
	" SELECT s.id, l.generation, CASE WHEN s.relation <> $2 THEN 'other'" \
	"  WHEN l.id IS NULL THEN 'locked'" \
	"  WHEN t.state IN ('live', 'errored', 'gone') OR" \
	"   (l.generation > 0 AND l.snapshot_generation = l.generation" \
	"    AND t.generation = l.generation) THEN 'done'" \
	"  ELSE 'capture' END, s.relation" \
	" FROM _electric_cm.shape s LEFT JOIN locked l ON l.id = s.id" \
	"  LEFT JOIN LATERAL (SELECT * FROM _electric_cm.shape_state t WHERE t.shape = s.id OFFSET 0) t ON true" \
	" WHERE s.id = ANY ($1)"

/*
 * _electric_cm.capture_shapes(number int8, relation oid, shapes int8[],
 *		OUT shape int8, OUT generation int4, OUT action text,
 *		OUT shape_relation oid, OUT xid xid) RETURNS SETOF record
 *
 * Begins an attempt to create shapes: emits the message "capture", with that
 * number, by which consumers begin to capture their changes.  The result has a
 * row for each shape that is not gone. action: 'capture'; 'done' (it is live
 * or errored, or its snapshot is committed); 'locked' (by somebody else, so
 * nothing was done); or 'other' (it is a shape of shape_relation instead, and
 * nothing was done). xid: the transaction that has emitted the message.
 */
Datum
electric_cm_capture_shapes(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			types[2] = {INT8ARRAYOID, OIDOID};
	Datum		args[2] = {PG_GETARG_DATUM(2), PG_GETARG_DATUM(1)};
	TransactionId xid = GetTopTransactionId();
	EcmStreamMessage message = {.kind = ECM_MESSAGE_CAPTURE,
	.number = PG_GETARG_INT64(0)};
	Datum	   *ids;
	int			nids = 0;
	EcmSpiState spi;

	InitMaterializedSRF(fcinfo, 0);
	ecm_spi_begin(&spi);

	/*
	 * whatever has changed it is to be seen, even if that waits for a standby
	 * yet
	 */
	be_impatient(PUBLISH_LOCK_TIMEOUT);
	LockRelationOid(PG_GETARG_OID(1), AccessShareLock);
	ecm_spi_run(CAPTURE_SQL, SPI_OK_SELECT, 2, types, args, NULL);
	ids = palloc(sizeof(Datum) * (SPI_processed + 1));
	message.shapes = palloc(sizeof(EcmMessageShape) * (SPI_processed + 1));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Datum		values[5];
		bool		nulls[5];

		values[4] = TransactionIdGetDatum(xid);
		nulls[4] = false;
		for (int column = 0; column < 4; column++)
			values[column] = SPI_getbinval(row, desc, column + 1, &nulls[column]);
		if (strcmp(SPI_getvalue(row, desc, 3), "capture") == 0)
		{
			values[1] = Int32GetDatum(DatumGetInt32(values[1]) + 1);
			ids[nids++] = values[0];
			message.shapes[message.nshapes++] =
				(EcmMessageShape)
			{
				DatumGetInt64(values[0]), DatumGetInt32(values[1])
			};
		}
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	if (nids > 0)
	{
		args[0] = ecm_array_of_int8(ids, nids);
		ecm_shapes_renew_columns(PG_GETARG_OID(1), args[0]);
		ecm_spi_run("UPDATE _electric_cm.shape SET generation = generation + 1, reading = NULL,"
					" order_xid = pg_current_xact_id() WHERE id = ANY ($1)",
					SPI_OK_UPDATE, 1, types, args, NULL);
		/* what an attempt to close a gap has written is deleted by consumers */
		ecm_spi_run("UPDATE _electric_cm.shape_gap g"
					" SET lsn = t.gap_lsn, compared = 0, entries = 0, bytes = 0"
					" FROM pg_catalog.unnest($1) AS a (id)"
					" CROSS JOIN LATERAL (SELECT * FROM _electric_cm.shape_state t"
					"  WHERE t.shape = a.id AND t.gap_lsn IS NOT NULL OFFSET 0) t"
					" WHERE g.shape = t.shape AND g.order_xid = t.gap_xid",
					SPI_OK_UPDATE, 1, types, args, NULL);

		/*
		 * Orders that begin no gap of their own, as there is one.  Consumers
		 * look for them until they come to this attempt.
		 */
		ecm_spi_run("UPDATE _electric_cm.shape_gap g SET closed_at = pg_catalog.clock_timestamp()"
					" WHERE g.shape = ANY ($1) AND g.lsn IS NULL AND g.closed_at IS NULL",
					SPI_OK_UPDATE, 1, types, args, NULL);
		types[1] = INT4OID;
		args[1] = Int32GetDatum(ecm_shape_workers_running());
		ecm_spi_run("INSERT INTO _electric_cm.shape_worker AS w (shape, worker)"
					" SELECT id, id % $2 FROM unnest($1) AS id"
					" ON CONFLICT (shape) DO UPDATE SET worker = excluded.worker"
					" WHERE w.worker <> excluded.worker",
					SPI_OK_INSERT, 2, types, args, NULL);
		ecm_message_emit(&message);
	}
	ecm_spi_end(&spi);
	return (Datum) 0;
}
