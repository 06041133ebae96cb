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
 * Runs SPI as the bootstrap superuser with search_path pinned, whoever calls;
 * end restores everything.  An ERROR in between restores it too.
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

/* Likewise, and keeps the plan for as long as the process lives. */
struct _SPI_plan;
extern void ecm_spi_run_kept(struct _SPI_plan **kept, const char *sql,
							 int expected, int nargs, Oid *types,
							 Datum *values, const char *nulls);

/*
 * Likewise, but the snapshot is the latest one, also in a REPEATABLE READ
 * transaction: that must not overlook a row only because it was written after
 * the transaction began.
 */
extern void ecm_spi_run_latest(const char *sql, int expected, int nargs,
							   Oid *types, Datum *values, const char *nulls);

#endif							/* ECM_SPI_H */
