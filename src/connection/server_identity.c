/*-------------------------------------------------------------------------
 *
 * server_identity.c
 *	  Does a connection lead back into this server and this database?
 *
 * A connection string of the user's may lead elsewhere.  Then the stack would
 * stream another database's changes, or call functions on another server.  The
 * system identifier does not tell: a physical copy of this server has the same
 * one.  Its start time, to the microsecond, is another one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "connection/server_identity.h"

const char *
ecm_whereabouts_sql(void)
{
	return "SELECT (extract(epoch FROM pg_catalog.pg_postmaster_start_time())"
		" * 1000000)::pg_catalog.int8, (SELECT oid FROM pg_catalog.pg_database"
		" WHERE datname = pg_catalog.current_database())";
}

bool
ecm_leads_here(const EcmConn *conn, EcmStepFailure *failure)
{
	const char *start = ecm_conn_value(conn, 0, 0);
	const char *database = ecm_conn_value(conn, 0, 1);
	const int64 epoch_us = (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
	USECS_PER_DAY;

	if (start == NULL || strtoi64(start, NULL, 10) - epoch_us != PgStartTime)
		(void) ecm_failure_make(failure, ECM_ERROR_FATAL, "F0000",
								"the configured connection leads to another server",
								"Its start time differs from this server's.",
								"Correct electric_cm.connection and electric_cm.pooled_connection, or leave them empty.");
	else if (database == NULL || strtoul(database, NULL, 10) != MyDatabaseId)
		(void) ecm_failure_make(failure, ECM_ERROR_FATAL, "F0000",
								"the configured connection leads to another database",
								"Each database's stack needs a connection to that database.",
								"Take dbname out of electric_cm.connection and electric_cm.pooled_connection, or set it for each database.");
	else
		return true;
	return false;
}
