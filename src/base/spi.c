/*-------------------------------------------------------------------------
 *
 * spi.c
 *	  SQL on our own tables, whoever the caller is.
 *
 * The tables belong to the extension's owner, and nobody else may touch them.
 * So statements run as the bootstrap superuser, with search_path pinned, lest
 * a user's function or operator be called with a superuser's rights.  Callers
 * check the user's own rights before.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

#include "base/spi.h"

void
ecm_spi_begin(EcmSpiState *state)
{
	GetUserIdAndSecContext(&state->save_userid, &state->save_sec_context);
	state->save_nestlevel = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   state->save_sec_context | SECURITY_LOCAL_USERID_CHANGE);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
ecm_spi_end(EcmSpiState *state)
{
	SPI_finish();
	SetUserIdAndSecContext(state->save_userid, state->save_sec_context);
	AtEOXact_GUC(false, state->save_nestlevel);
}

static void
check_result(int rc, int expected, const char *sql)
{
	if (rc != expected)
		elog(ERROR, "unexpected result %s of \"%s\"",
			 SPI_result_code_string(rc), sql);
}

void
ecm_spi_run(const char *sql, int expected, int nargs, Oid *types, Datum *values,
			const char *nulls)
{
	check_result(SPI_execute_with_args(sql, nargs, types, values, nulls,
									   false, 0),
				 expected, sql);
}

void
ecm_spi_run_kept(SPIPlanPtr *kept, const char *sql, int expected, int nargs,
				 Oid *types, Datum *values, const char *nulls)
{
	if (*kept == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(sql, nargs, types);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare \"%s\"", sql);
		*kept = plan;
	}
	check_result(SPI_execute_plan(*kept, values, nulls, false, 0), expected, sql);
}

void
ecm_spi_run_latest(const char *sql, int expected, int nargs, Oid *types,
				   Datum *values, const char *nulls)
{
	SPIPlanPtr	plan = SPI_prepare(sql, nargs, types);
	int			rc = SPI_result;

	if (plan != NULL)
		rc = SPI_execute_snapshot(plan, values, nulls, GetLatestSnapshot(),
								  InvalidSnapshot, false, true, 0);
	check_result(rc, expected, sql);
}
