/*-------------------------------------------------------------------------
 *
 * store_snapshot.h
 *	  The end of the creation of shapes: their rows are in the log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STORE_SNAPSHOT_H
#define ECM_STORE_SNAPSHOT_H

#include "postgres.h"

#include "jobs/read_table.h"

/*
 * Notes the snapshot (a pg_snapshot as text) in the rows of the shapes that are done,
 * and tells the consumers by the message "live".
 */
extern void ecm_snapshot_store(const EcmReadShape *shapes, int n, const char *snapshot);

/*
 * Locks the shapes' rows until the transaction ends, for ids (int8[]).  ERROR 55P03 if
 * somebody else has; 40001 if another attempt to create one of them has begun.
 */
extern void ecm_snapshot_lock(Datum ids);

/* The snapshot of this transaction, as text. */
extern char *ecm_snapshot_text(void);

#endif							/* ECM_STORE_SNAPSHOT_H */
