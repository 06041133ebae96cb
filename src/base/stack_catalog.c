/*-------------------------------------------------------------------------
 *
 * stack_catalog.c
 *	  What the stack remembers, and how far its shapes' logs are.
 *
 * What is logged is in the table of progress: each consumer's own rows, and a
 * marker for all of them, since rows are written only with entries.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"

#include "base/settings.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/stack_catalog.h"
#include "base/table_writer.h"
#include "base/text.h"

/* The marker is the row of a consumer that there is none of. */
#define MARKER	"-1"

void
ecm_stack_row_read(EcmStackRow *remembered)
{
	EcmSpiState spi;
	HeapTuple	row;
	TupleDesc	desc;
	Datum		datum;
	bool		isnull;

	memset(remembered, 0, sizeof(*remembered));
	ecm_spi_begin(&spi);
	if (SPI_execute("SELECT database_oid, system_identifier, timeline_id, stopped,"
					" clean_stop_lsn, slot_name, followed_publication, publication_dropped, seen_lsn,"
					" stopped_for_upgrade, slot_unfinished"
					" FROM _electric_cm.stack", true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table _electric_cm.stack has no row"),
				 errhint("Only DROP EXTENSION and CREATE EXTENSION make a new one, and with them all shapes are gone.")));
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;

	remembered->database_oid = DatumGetObjectId(SPI_getbinval(row, desc, 1, &isnull));
	datum = SPI_getbinval(row, desc, 2, &isnull);
	remembered->known = !isnull;
	if (!isnull)
	{
		remembered->system_identifier = (uint64) DatumGetInt64(datum);
		datum = SPI_getbinval(row, desc, 3, &isnull);
		remembered->timeline_id = isnull ? 0 : (uint32) DatumGetInt32(datum);
	}
	remembered->stopped = DatumGetBool(SPI_getbinval(row, desc, 4, &isnull));
	datum = SPI_getbinval(row, desc, 5, &isnull);
	remembered->clean_stop_lsn = isnull ? InvalidXLogRecPtr : DatumGetLSN(datum);
	datum = SPI_getbinval(row, desc, 6, &isnull);
	remembered->owns_slot = !isnull;
	if (!isnull)
		namestrcpy(&remembered->slot_name, NameStr(*DatumGetName(datum)));
	datum = SPI_getbinval(row, desc, 7, &isnull);
	if (!isnull)
		namestrcpy(&remembered->publication, NameStr(*DatumGetName(datum)));
	remembered->publication_dropped = DatumGetBool(SPI_getbinval(row, desc, 8, &isnull));
	datum = SPI_getbinval(row, desc, 9, &isnull);
	remembered->seen_lsn = isnull ? InvalidXLogRecPtr : DatumGetLSN(datum);
	remembered->stopped_for_upgrade = DatumGetBool(SPI_getbinval(row, desc, 10, &isnull));
	remembered->slot_unfinished = DatumGetBool(SPI_getbinval(row, desc, 11, &isnull));
	ecm_spi_end(&spi);
	strlcpy(remembered->message_prefix, ecm_message_prefix(),
			sizeof(remembered->message_prefix));
}

/*
 * The prefix is read once for each process, and again only when the extension
 * has been dropped and created again, which gives the table another OID and
 * the stack another key.
 */
char *
ecm_message_prefix(void)
{
	static char prefix[64];
	static Oid	prefix_of;
	Oid			stack_table = get_relname_relid("stack", get_namespace_oid(ECM_SCHEMA, true));
	EcmSpiState spi;

	if (OidIsValid(stack_table) && stack_table == prefix_of)
		return pstrdup(prefix);

	ecm_spi_begin(&spi);

	/*
	 * a REPEATABLE READ transaction may have begun before the extension was
	 * created
	 */
	ecm_spi_run_latest("SELECT 'electric_cm/' || message_key FROM _electric_cm.stack",
					   SPI_OK_SELECT, 0, NULL, NULL, NULL);
	if (SPI_processed != 1)
		elog(ERROR, "table _electric_cm.stack has no row");
	strlcpy(prefix, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1),
			sizeof(prefix));
	prefix_of = stack_table;
	ecm_spi_end(&spi);
	return pstrdup(prefix);
}

bool
ecm_stack_row_is_of_other_history(const EcmStackRow *remembered,
								  const EcmReplicationInfo *info)
{
	return remembered->known &&
		(remembered->system_identifier != info->system_identifier ||
		 remembered->timeline_id != info->timeline_id);
}

XLogRecPtr
ecm_stack_logged_lsn(void)
{
	EcmSpiState spi;
	HeapTuple	row;
	TupleDesc	desc;
	Datum		datum;
	bool		no_shapes;
	bool		no_marker;
	XLogRecPtr	lsn;
	XLogRecPtr	marker;

	ecm_spi_begin(&spi);

	/* a consumer that has no shapes has nothing to log */
	if (SPI_execute("SELECT min(coalesce((SELECT max(p.lsn) FROM _electric_cm.progress p"
					" WHERE p.worker = w.worker), '0/0')),"
					" (SELECT max(p.lsn) FROM _electric_cm.progress p WHERE p.worker = " MARKER ")"
					" FROM (SELECT DISTINCT worker FROM _electric_cm.shape_worker) w",
					true, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not read progress");
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	datum = SPI_getbinval(row, desc, 1, &no_shapes);
	lsn = no_shapes ? PG_UINT64_MAX : DatumGetLSN(datum);
	datum = SPI_getbinval(row, desc, 2, &no_marker);
	marker = no_marker ? InvalidXLogRecPtr : DatumGetLSN(datum);
	ecm_spi_end(&spi);
	return Max(lsn, marker);
}

XLogRecPtr
ecm_stack_newest_lsn(void)
{
	EcmSpiState spi;
	Datum		datum;
	XLogRecPtr	lsn;
	bool		isnull;

	ecm_spi_begin(&spi);
	if (SPI_execute("SELECT greatest((SELECT max(lsn) FROM _electric_cm.progress),"
					" (SELECT max(lsn) FROM _electric_cm.shape_gap))", true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not read progress");
	datum = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	lsn = isnull ? InvalidXLogRecPtr : DatumGetLSN(datum);
	ecm_spi_end(&spi);
	return lsn;
}

int
ecm_stack_progress_xids(bool marker_only, TransactionId **xids)
{
	MemoryContext context = CurrentMemoryContext;
	EcmSpiState spi;
	int			n;

	ecm_spi_begin(&spi);
	if (SPI_execute(marker_only ?
					"SELECT xmin FROM _electric_cm.progress WHERE worker = " MARKER :
					"SELECT xmin FROM _electric_cm.progress", true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read progress");
	n = (int) SPI_processed;
	*xids = MemoryContextAlloc(context, Max(n, 1) * sizeof(TransactionId));
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		(*xids)[i] = DatumGetTransactionId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
														 1, &isnull));
	}
	ecm_spi_end(&spi);
	return n;
}

char *
ecm_stack_mark_sql(XLogRecPtr lsn)
{
	return psprintf("INSERT INTO _electric_cm.progress AS p (worker, turn, lsn)"
					" VALUES (" MARKER ", 0, '%X/%X')"
					" ON CONFLICT (worker, turn) DO UPDATE SET lsn = greatest(p.lsn, excluded.lsn)",
					LSN_FORMAT_ARGS(lsn));
}

char *
ecm_stack_row_record_sql(const EcmStackRow *remembered,
						 const EcmReplicationInfo *info, Oid database_oid,
						 const char *mismatch)
{
	StringInfoData sql;

	if (mismatch == NULL && remembered->known && !remembered->stopped &&
		remembered->timeline_id == info->timeline_id &&
		XLogRecPtrIsInvalid(remembered->clean_stop_lsn) &&
		strcmp(NameStr(remembered->publication), ecm_publication_name) == 0)
		return NULL;

	initStringInfo(&sql);

	/* before anything is compared with the catalogs */
	if (remembered->known &&
		remembered->system_identifier != info->system_identifier)
	{
		appendStringInfoString(&sql, "SELECT _electric_cm.restore_after_upgrade();");
		if (mismatch == NULL)
			appendStringInfoString(&sql, "SELECT _electric_cm.verify_all();");
	}
	if (mismatch != NULL)
		appendStringInfo(&sql, "SELECT _electric_cm.resync_all(%s);"
						 "UPDATE _electric_cm.stack SET seen_lsn = pg_catalog.pg_current_wal_insert_lsn();",
						 ecm_quote_literal(mismatch));
	appendStringInfo(&sql,
					 "UPDATE _electric_cm.stack SET database_oid = %u,"
					 " system_identifier = " INT64_FORMAT ", timeline_id = %d,"
					 " stopped = false, stopped_for_upgrade = false, clean_stop_lsn = NULL,"
					 " followed_publication = %s, publication_dropped = false",
					 database_oid, (int64) info->system_identifier,
					 (int) info->timeline_id,
					 ecm_quote_literal(ecm_publication_name));
	return sql.data;
}

char *
ecm_stack_begin_epoch_sql(XLogRecPtr switch_lsn, int32 epoch)
{
	return psprintf("INSERT INTO _electric_cm.epoch (began_at, epoch) VALUES ('%X/%X', %d)"
					" ON CONFLICT (began_at) DO UPDATE SET epoch = excluded.epoch;"
					"UPDATE _electric_cm.shape_state SET generation = 0 WHERE state = 'capturing';",
					LSN_FORMAT_ARGS(switch_lsn), epoch);
}

void
ecm_drop_own_publications(void)
{
	char	   *names;

	/* electric_cm_own_publication() has made them depend on the extension */
	if (SPI_execute("SELECT string_agg(quote_ident(p.pubname), ', ')"
					" FROM pg_publication p JOIN pg_depend d ON d.objid = p.oid"
					" JOIN pg_extension e ON e.oid = d.refobjid"
					" WHERE d.classid = 'pg_publication'::regclass"
					" AND d.refclassid = 'pg_extension'::regclass"
					" AND d.deptype = 'x' AND e.extname = 'electric_cm'",
					false, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not read pg_publication");
	names = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (names != NULL &&
		SPI_execute(psprintf("DROP PUBLICATION %s", names), false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not drop publication %s", names);
}

static uint64
update_row(const char *set_and_where, int nargs, Oid *types, Datum *values)
{
	EcmSpiState spi;
	uint64		n;

	ecm_spi_begin(&spi);
	ecm_spi_run(psprintf("UPDATE _electric_cm.stack SET %s", set_and_where),
				SPI_OK_UPDATE, nargs, types, values, NULL);
	n = SPI_processed;
	ecm_spi_end(&spi);
	return n;
}

void
ecm_stack_row_record_stop(XLogRecPtr lsn, bool for_upgrade)
{
	Oid			types[] = {LSNOID, LSNOID, BOOLOID};
	Datum		values[] = {LSNGetDatum(lsn), LSNGetDatum(ecm_first_lsn()), BoolGetDatum(for_upgrade)};

	/*
	 * seen_lsn moves on only if the runs of the server before this one have
	 * been looked at: WAL that nobody has examined must not count as seen
	 */
	(void) update_row("clean_stop_lsn = $1,"
					  " seen_lsn = CASE WHEN seen_lsn >= $2"
					  " THEN pg_current_wal_insert_lsn() ELSE seen_lsn END,"
					  " stopped = stopped OR $3, stopped_for_upgrade = stopped_for_upgrade OR $3",
					  3, types, values);
}

void
ecm_stack_row_stopped(void)
{
	(void) update_row("stopped = true, stopped_for_upgrade = false"
					  " WHERE NOT stopped OR stopped_for_upgrade", 0, NULL, NULL);
}

void
ecm_stack_row_stopped_for_upgrade(void)
{
	(void) update_row("stopped = true, stopped_for_upgrade = true"
					  " WHERE NOT stopped_for_upgrade", 0, NULL, NULL);
}

bool
ecm_stack_row_started(void)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(MyDatabaseId);

	return update_row("stopped = false, stopped_for_upgrade = false, database_oid = $1"
					  " WHERE stopped OR database_oid <> $1",
					  1, &type, &value) > 0;
}

void
ecm_stack_row_forget_created(void)
{
	/*
	 * Not clean_stop_lsn: where the slot could not be dropped, that alone
	 * tells the next manager that somebody else has consumed it since.
	 */
	(void) update_row("slot_name = NULL, publication_name = NULL,"
					  " publication_dropped = publication_dropped OR publication_name IS NOT NULL"
					  " WHERE slot_name IS NOT NULL OR publication_name IS NOT NULL",
					  0, NULL, NULL);
}

void
ecm_stack_row_disown_slot(const char *name)
{
	Oid			type = TEXTOID;
	Datum		value = CStringGetTextDatum(name);

	(void) update_row("slot_name = NULL WHERE slot_name = $1", 1, &type, &value);
}

char *
ecm_stack_row_disown_slot_sql(const char *name)
{
	return psprintf("UPDATE _electric_cm.stack SET slot_name = NULL WHERE slot_name = %s",
					ecm_quote_literal(name));
}

char *
ecm_stack_row_own_slot_sql(bool own, const char *name, bool unfinished)
{
	const char *slot_name = name != NULL ? ecm_quote_literal(name) : "NULL";

	return psprintf("UPDATE _electric_cm.stack SET slot_name = %s, slot_unfinished = %s",
					own ? slot_name : "slot_name", unfinished ? "true" : "false");
}

char *
ecm_stack_row_own_publication_sql(const char *name)
{
	return psprintf("UPDATE _electric_cm.stack SET publication_name = %s",
					ecm_quote_literal(name));
}

void
ecm_stack_row_seen_all(void)
{
	(void) update_row("seen_lsn = pg_current_wal_insert_lsn()", 0, NULL, NULL);
}

char *
ecm_stack_row_publication(void)
{
	MemoryContext context = CurrentMemoryContext;
	EcmSpiState spi;
	char	   *name = NULL;

	ecm_spi_begin(&spi);
	ecm_spi_run_latest("SELECT followed_publication FROM _electric_cm.stack",
					   SPI_OK_SELECT, 0, NULL, NULL, NULL);
	if (SPI_processed == 1)
		name = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (name != NULL)
		name = MemoryContextStrdup(context, name);
	ecm_spi_end(&spi);
	return name;
}
