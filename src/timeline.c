/*-------------------------------------------------------------------------
 *
 * timeline.c
 *	  What the stack remembers, and whether its shapes still belong here.
 *
 * A shape log continues a snapshot through one unbroken stream.  The stream is
 * another one after a failover or a point-in-time recovery (the timeline
 * differs), after a restore (the system identifier or the database's OID
 * differs), with a new slot, and when somebody else has consumed the slot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"

#include "conn.h"
#include "shape.h"
#include "timeline.h"

void
ecm_timeline_read(EcmRemembered *remembered)
{
	EcmSpiState spi;
	HeapTuple	row;
	TupleDesc	desc;
	Datum		datum;
	bool		isnull;

	memset(remembered, 0, sizeof(*remembered));
	ecm_spi_begin(&spi);
	if (SPI_execute("SELECT database_oid, system_identifier, timeline_id, stopped,"
					" clean_stop_lsn, slot_name, publication_name"
					" FROM _electric_cm.stack", true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table _electric_cm.stack has no row"),
				 errhint("Drop the extension and create it again.")));
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
	(void) SPI_getbinval(row, desc, 6, &isnull);
	remembered->owns_slot = !isnull;
	datum = SPI_getbinval(row, desc, 7, &isnull);
	remembered->owns_publication = !isnull;
	if (!isnull)
		namestrcpy(&remembered->publication_name, NameStr(*DatumGetName(datum)));
	ecm_spi_end(&spi);
	strlcpy(remembered->message_prefix, ecm_message_prefix(),
			sizeof(remembered->message_prefix));
}

const char *
ecm_timeline_mismatch(const EcmRemembered *remembered,
					  const EcmReplicationInfo *info, Oid database_oid)
{
	if (remembered->known &&
		remembered->system_identifier != info->system_identifier)
		return "the system identifier has changed";
	if (remembered->known && remembered->timeline_id != info->timeline_id)
		return "the timeline has changed";
	if (remembered->database_oid != database_oid)
		return "the database is a copy of another one";
	if (info->slot_created)
		return "the replication slot is a new one";
	if (!XLogRecPtrIsInvalid(remembered->clean_stop_lsn) &&
		info->confirmed_flush_lsn > remembered->clean_stop_lsn)
		return "the replication slot was consumed by somebody else";
	return NULL;
}

bool
ecm_timeline_left(const EcmRemembered *remembered,
				  const EcmReplicationInfo *info)
{
	return remembered->known &&
		(remembered->system_identifier != info->system_identifier ||
		 remembered->timeline_id != info->timeline_id);
}

char *
ecm_timeline_record_sql(const EcmRemembered *remembered,
						const EcmReplicationInfo *info, Oid database_oid,
						const char *mismatch)
{
	StringInfoData sql;

	if (mismatch == NULL && remembered->known && !remembered->stopped &&
		XLogRecPtrIsInvalid(remembered->clean_stop_lsn))
		return NULL;

	initStringInfo(&sql);
	if (mismatch != NULL)
		appendStringInfo(&sql, "SELECT _electric_cm.invalidate_all(%s);",
						 ecm_quote_literal(mismatch));
	appendStringInfo(&sql,
					 "UPDATE _electric_cm.stack SET database_oid = %u,"
					 " system_identifier = " INT64_FORMAT ", timeline_id = %d,"
					 " stopped = false, clean_stop_lsn = NULL",
					 database_oid, (int64) info->system_identifier,
					 (int) info->timeline_id);
	return sql.data;
}

void
ecm_timeline_record_stop(XLogRecPtr lsn)
{
	EcmSpiState spi;
	Oid			type = LSNOID;
	Datum		value = LSNGetDatum(lsn);

	ecm_spi_begin(&spi);
	if (SPI_execute_with_args("UPDATE _electric_cm.stack SET clean_stop_lsn = $1",
							  1, &type, &value, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not record the end of the stack");
	ecm_spi_end(&spi);
}
