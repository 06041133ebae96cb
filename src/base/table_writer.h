/*-------------------------------------------------------------------------
 *
 * table_writer.h
 *	  Inserts into the stack's own tables without logical decoding.
 *
 * An INSERT would be decoded by the stack's own slot, and a publication FOR
 * ALL TABLES would send it to subscribers that don't have the table.  So these
 * tables are written below SQL, and have REPLICA IDENTITY NOTHING for the
 * deletes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_TABLE_WRITER_H
#define ECM_TABLE_WRITER_H

#include "postgres.h"

#include "nodes/execnodes.h"
#include "storage/lockdefs.h"
#include "utils/relcache.h"

#define ECM_SCHEMA			"_electric_cm"

typedef struct EcmTableWriter
{
	Relation	rel;
	TupleTableSlot *slot;		/* for the next row */
	EState	   *estate;
	ResultRelInfo *result_rel;
} EcmTableWriter;

/* A table or index in our schema.  ERROR if there is none of that name. */
extern Oid	ecm_own_relid(const char *name);

/*
 * Needs an open transaction; one writer serves any number of rows in it.  Its
 * memory is the current context's.
 */
extern void ecm_table_writer_begin(EcmTableWriter *writer, const char *table,
								   LOCKMODE lockmode);

/* Inserts the row whose values and nulls the caller has put into the slot. */
extern void ecm_table_writer_put(EcmTableWriter *writer);

/* Keeps the lock, and makes the rows visible to the rest of the transaction. */
extern void ecm_table_writer_end(EcmTableWriter *writer);

#endif							/* ECM_TABLE_WRITER_H */
