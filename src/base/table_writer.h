/*-------------------------------------------------------------------------
 *
 * table_writer.h
 *	  Inserts into the stack's own tables without logical decoding.
 *
 * The stack's own slot would decode an INSERT into a shape log, and a
 * publication FOR ALL TABLES would send it to subscribers, which don't have
 * the table and would fail.  So rows are inserted below SQL, with
 * TABLE_INSERT_NO_LOGICAL.  There is no such option for deletes, which are
 * decoded; they are not sent, since the tables have REPLICA IDENTITY NOTHING.
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

/*
 * Enters a tuple that an update has just put into the table into its indexes.
 * summarizing: only into those that summarize.
 */
extern void ecm_table_writer_put_again(EcmTableWriter *writer, HeapTuple tuple, bool summarizing);

/*
 * Ends writing.  The rows are visible to the rest of the transaction; the lock
 * is kept until its end.
 */
extern void ecm_table_writer_end(EcmTableWriter *writer);

#endif							/* ECM_TABLE_WRITER_H */
