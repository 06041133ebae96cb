/*-------------------------------------------------------------------------
 *
 * spi.h
 *	  SQL on our own tables, whoever the caller is.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SPI_H
#define ECM_SPI_H

#include "postgres.h"

/*
 * Between ecm_spi_begin() and ecm_spi_end() the process is connected to SPI,
 * runs as the bootstrap superuser, and has search_path pinned.  The state keeps
 * what the latter restores; after an ERROR in between, the end of the
 * transaction restores it.
 */
typedef struct EcmSpiState
{
	Oid			save_userid;
	int			save_sec_context;
	int			save_nestlevel;
} EcmSpiState;

extern void ecm_spi_begin(EcmSpiState *state);
extern void ecm_spi_end(EcmSpiState *state);

/*
 * Within these two: run one statement, and check that its result is the
 * expected one (SPI_OK_...).  'nulls' is as for SPI, NULL if none is null.
 */
extern void ecm_spi_run(const char *sql, int expected, int nargs, Oid *types,
						Datum *values, const char *nulls);

/*
 * Likewise, for a statement that is run often: the plan is kept in *kept (NULL
 * at first) for as long as the process lives.
 */
struct _SPI_plan;
extern void ecm_spi_run_kept(struct _SPI_plan **kept, const char *sql,
							 int expected, int nargs, Oid *types,
							 Datum *values, const char *nulls);

/*
 * Likewise, but with the latest snapshot, also in a REPEATABLE READ
 * transaction.  For a statement that must not overlook a row just because it
 * was written after the transaction began.
 */
extern void ecm_spi_run_latest(const char *sql, int expected, int nargs,
							   Oid *types, Datum *values, const char *nulls);

#endif							/* ECM_SPI_H */
