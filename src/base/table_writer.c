/*-------------------------------------------------------------------------
 *
 * table_writer.c
 *	  Inserts into the stack's own tables without logical decoding.
 *
 * table_tuple_insert() hands the insert options on to the insertion into the
 * TOAST table, so that is not decoded either.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "executor/executor.h"
#include "utils/lsyscache.h"

#include "base/compat.h"
#include "base/table_writer.h"

Oid
ecm_own_relid(const char *name)
{
	Oid			schema = get_namespace_oid(ECM_SCHEMA, false);
	Oid			relid = get_relname_relid(name, schema);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s.%s\" does not exist", ECM_SCHEMA, name)));
	return relid;
}

void
ecm_table_writer_begin(EcmTableWriter *writer, const char *table,
					   LOCKMODE lockmode)
{
	writer->rel = table_open(ecm_own_relid(table), lockmode);
	writer->estate = CreateExecutorState();
	writer->result_rel = makeNode(ResultRelInfo);
	InitResultRelInfo(writer->result_rel, writer->rel, 1, NULL, 0);
	ExecOpenIndices(writer->result_rel, false);
	writer->slot = table_slot_create(writer->rel, NULL);
}

void
ecm_table_writer_put(EcmTableWriter *writer)
{
	TupleTableSlot *slot = writer->slot;

	ExecStoreVirtualTuple(slot);
	table_tuple_insert(writer->rel, slot, GetCurrentCommandId(true),
					   TABLE_INSERT_NO_LOGICAL, NULL);
	ecm_insert_index_tuples(writer->result_rel, slot, writer->estate, false);

	ExecClearTuple(slot);
	ResetPerTupleExprContext(writer->estate);
}

void
ecm_table_writer_put_again(EcmTableWriter *writer, HeapTuple tuple, bool summarizing)
{
	TupleTableSlot *slot = writer->slot;

	ExecForceStoreHeapTuple(tuple, slot, false);
	slot->tts_tid = tuple->t_self;
	ecm_insert_index_tuples(writer->result_rel, slot, writer->estate, summarizing);

	ExecClearTuple(slot);
	ResetPerTupleExprContext(writer->estate);
}

void
ecm_table_writer_end(EcmTableWriter *writer)
{
	ExecCloseIndices(writer->result_rel);
	ExecDropSingleTupleTableSlot(writer->slot);
	FreeExecutorState(writer->estate);
	table_close(writer->rel, NoLock);
	pfree(writer->result_rel);

	CommandCounterIncrement();
}
