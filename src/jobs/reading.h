/*-------------------------------------------------------------------------
 *
 * reading.h
 *	  Readings of tables in pieces.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_READING_H
#define ECM_READING_H

#include "postgres.h"

#include "jobs/read_table.h"

/*
 * Begins a reading for shapes that one query reads, within their attempt to be
 * created.  'planned': what the planner thinks of reading all of it.  Returns its
 * number.
 */
extern int64 ecm_reading_begin(EcmReadShape **shapes, int n, const EcmReadResult *planned);

#endif							/* ECM_READING_H */
