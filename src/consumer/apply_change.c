/*-------------------------------------------------------------------------
 *
 * apply_change.c
 *	  What an insert, update or delete is to the shapes that the row was in,
 *	  and to those that it is in now.
 *
 * A shape that the row was in and is in gets an update; a shape that it was in
 * only gets a delete, one that it is in only gets an insert.  An update comes
 * without its old tuple if the replica identity did not change.  Where clauses
 * refer to columns of the identity only (shape_requirements.c), so the row was in
 * the same shapes then as it is in now.
 *
 * A relation of the stream concerns the shapes of its own table, and those of the
 * partitioned tables above it.  Each such table has its own view of the tuple: a
 * binding (relation.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "libpq/pqformat.h"
#include "nodes/bitmapset.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "base/errors.h"
#include "base/partition.h"
#include "consumer/apply_change.h"
#include "consumer/current_shape.h"
#include "consumer/followed_shapes.h"
#include "consumer/log_batch.h"
#include "consumer/relation.h"
#include "consumer/shape_match.h"
#include "consumer/shape_orders.h"
#include "shape/shape_blame.h"
#include "shape/shape_catalog.h"
#include "shape/shape_chunk.h"
#include "shape/shape_entry.h"
#include "shape/shape_stall.h"

static struct
{
	uint64		number;			/* of the match that runs: a shape has matched
								 * if its mark is this.  One per change and
								 * table that it concerns. */
	uint64		last_number;	/* before the change that came last: greater
								 * marks are that change's */

	/*
	 * Scratch space for one change, by EcmWhich: the tuple as the table has
	 * its columns, and as a shape has them.  In TopMemoryContext.
	 */
	EcmValue   *table_values[2];
	EcmValue   *shape_values[2];
	int			max_values;
}			change;

static void
ensure_scratch(const EcmTable *table)
{
	int			ncolumns = Max(table->ncolumns, table->max_shape_columns);

	if (ncolumns <= change.max_values)
		return;
	change.max_values = Max(16, ncolumns * 2);
	for (int i = 0; i < 2; i++)
	{
		if (change.table_values[i] != NULL)
		{
			pfree(change.table_values[i]);
			pfree(change.shape_values[i]);
		}
		change.table_values[i] = MemoryContextAlloc(TopMemoryContext,
													sizeof(EcmValue) * change.max_values);
		change.shape_values[i] = MemoryContextAlloc(TopMemoryContext,
													sizeof(EcmValue) * change.max_values);
	}
}

/*
 * Reads a tuple of the stream into the table's columns.  old_key: the tuple has
 * the columns of the replica identity only, the others are sent as nulls, which
 * they need not be.  These count as unchanged.  So do columns that the relation
 * lacks; shapes that need them are not usable with the relation.  ERROR if the
 * tuple has fewer columns than its relation was described with.
 */
static void
read_tuple(EcmBinding *binding, EcmRelation *relation, LogicalRepTupleData *tuple,
		   bool old_key, EcmValue *values)
{
	for (int i = 0; i < binding->table->ncolumns; i++)
	{
		int			col = binding->map[i];
		EcmValue   *value = &values[i];

		value->text = NULL;
		value->len = 0;
		if (col >= tuple->ncols)
			elog(ERROR, "tuple of relation %u has %d columns, need %d",
				 relation->relid, tuple->ncols, col + 1);
		if (col < 0 || (old_key && !bms_is_member(col, relation->rel->attkeys)))
			value->kind = ECM_VALUE_UNCHANGED;
		else if (tuple->colstatus[col] == LOGICALREP_COLUMN_TEXT)
		{
			value->kind = ECM_VALUE_TEXT;
			value->text = tuple->colvalues[col].data;
			value->len = tuple->colvalues[col].len;
		}
		else if (tuple->colstatus[col] == LOGICALREP_COLUMN_UNCHANGED)
			value->kind = ECM_VALUE_UNCHANGED;
		else
			value->kind = ECM_VALUE_NULL;
	}
}

/*
 * The columns of the current tuple that the shape has, in its order.  Valid until
 * the next call with the same 'which'.
 */
static const EcmValue *
pick_columns(const EcmShape *shape, EcmWhich which)
{
	const EcmLayout *layout = shape->layout;
	const EcmValue absent = {.kind = ECM_VALUE_ABSENT};

	if (layout->whole)
		return change.table_values[which];
	for (int i = 0; i < layout->ncolumns; i++)
		change.shape_values[which][i] = layout->columns[i] < 0 ? absent :
			change.table_values[which][layout->columns[i]];
	return change.shape_values[which];
}

/*
 * Gathers an entry for a shape, unless the shape's log has this transaction
 * already, or the shape has failed in it.  A shape whose entry no reader could be
 * given, since it is too large, fails instead.  Leaves the shape named as the one
 * at work, see ecm_work_on().
 */
static void
emit(EcmShape *shape, EcmOp op, const EcmValue *newv, const EcmValue *oldv)
{
	const char *reason;

	if (ecm_log_batch_is_past(shape->skip_until) || ecm_match_has_failed(shape))
		return;
	ecm_work_on(shape->id);
	if (ecm_stall_is_given_up(shape->id))
	{
		ecm_log_batch_enter_transaction();
		ecm_match_fail(shape, ecm_tag_error(ECM_SQLSTATE_SHAPE_STALLED,
											ecm_stall_given_up_text()));
		return;
	}
	reason = ecm_entry_unreadable(op, shape->layout->names, shape->layout->ncolumns,
								  newv, oldv);
	if (reason != NULL)
	{
		ecm_log_batch_enter_transaction();
		ecm_match_fail(shape, psprintf(ECM_ERROR_OWN_TEXT "%s", reason));
		return;
	}
	ecm_log_batch_entry(&shape->buffer, op, newv, oldv);
}

/* Do two tuples of a shape have the same values? */
static bool
same_values(const EcmShape *shape, const EcmValue *a, const EcmValue *b)
{
	for (int i = 0; i < shape->layout->ncolumns; i++)
		if (!ecm_same_value(&a[i], &b[i]))
			return false;
	return true;
}

/*
 * A row stays in the shape.  An update that changes the key is a delete and an
 * insert.  An update that touches only columns that the shape leaves out is no
 * entry, if that is known: with REPLICA IDENTITY FULL.  has_old: the old tuple has
 * come, as a whole or its key.
 */
static void
emit_update(EcmShape *shape, EcmRelation *relation, bool has_old)
{
	const EcmValue *newv = pick_columns(shape, ECM_NEW_TUPLE);
	const EcmValue *oldv = has_old ? pick_columns(shape, ECM_OLD_TUPLE) : NULL;
	bool		key_changed = false;

	for (int i = 0; has_old && i < shape->layout->nkeys; i++)
	{
		int			k = shape->layout->keys[i];

		key_changed |= !ecm_same_value(&newv[k], &oldv[k]);
	}
	if (key_changed)
	{
		emit(shape, ECM_OP_DELETE, NULL, oldv);
		emit(shape, ECM_OP_INSERT, newv, NULL);
	}
	else if (!has_old || !relation->full)
		emit(shape, ECM_OP_UPDATE, newv, NULL);
	else if (shape->layout->ncolumns == relation->rel->natts ||
			 !same_values(shape, newv, oldv))
		emit(shape, ECM_OP_UPDATE, newv, oldv);
}

/*
 * An update has moved a row into the shape.  Its entry needs all values, as the
 * log has no earlier ones of this row.  A TOASTed value that the update did not
 * change is not in the new tuple, and in the old one only if the replica identity
 * has its column.  ecm_identity_lacks() sees to that when the shape is created; but a
 * column may have come since, or somebody have changed the identity unseen.  If a value is
 * missing, the shape is resynced, which finds it in the table: no reader could make the
 * row from its log.
 */
static void
emit_move_in(EcmShape *shape)
{
	const EcmValue *newv = pick_columns(shape, ECM_NEW_TUPLE);
	const EcmLayout *layout = shape->layout;

	for (int i = 0; i < layout->ncolumns; i++)
		if (newv[i].kind == ECM_VALUE_UNCHANGED)
		{
			if (!ecm_log_batch_is_past(shape->skip_until))
				ecm_orders_add_lacking(shape->id, shape->generation,
									   shape->table->columns[layout->columns[i]].name);
			ecm_match_leave_out(shape);
			return;
		}
	emit(shape, ECM_OP_INSERT, newv, NULL);
}

/* Does the relation have what the shape needs?  (As found when it was bound.) */
static bool
is_usable(const EcmBinding *binding, const EcmShape *shape)
{
	return binding->usable[shape->layout->number];
}

/*
 * Gathers what an insert (no old tuple), a delete (no new tuple) or an update with
 * both is to the shapes of one table.  Both tuples are matched before the first
 * entry is gathered, since an entry depends on both matches.
 */
static void
match_change(EcmBinding *binding, EcmRelation *relation, LogicalRepTupleData *oldtup,
			 LogicalRepTupleData *newtup)
{
	EcmTable   *table = binding->table;
	EcmShape  **were_in = NULL;
	EcmShape  **are_in = NULL;
	int			nwere = 0;
	int			nare = 0;

	ensure_scratch(table);
	if (table->any_filter)
		ecm_log_batch_enter_transaction();
	change.number++;

	if (oldtup != NULL)
		read_tuple(binding, relation, oldtup, !relation->full, change.table_values[ECM_OLD_TUPLE]);
	if (newtup != NULL)
	{
		read_tuple(binding, relation, newtup, false, change.table_values[ECM_NEW_TUPLE]);

		/* a TOASTed value that did not change is in a full old tuple only */
		for (int i = 0; oldtup != NULL && i < table->ncolumns; i++)
			if (change.table_values[ECM_NEW_TUPLE][i].kind == ECM_VALUE_UNCHANGED)
				change.table_values[ECM_NEW_TUPLE][i] = change.table_values[ECM_OLD_TUPLE][i];
	}
	if (oldtup != NULL)
		were_in = ecm_match_tuple(table, change.table_values[ECM_OLD_TUPLE],
								  ECM_OLD_TUPLE, change.number, &nwere);
	if (newtup != NULL)
		are_in = ecm_match_tuple(table, change.table_values[ECM_NEW_TUPLE],
								 ECM_NEW_TUPLE, change.number, &nare);

	for (int i = 0; i < nwere; i++)
		if (were_in[i]->marks[ECM_NEW_TUPLE] != change.number &&
			is_usable(binding, were_in[i]))
			emit(were_in[i], ECM_OP_DELETE, NULL, pick_columns(were_in[i], ECM_OLD_TUPLE));
	for (int i = 0; i < nare; i++)
	{
		EcmShape   *shape = are_in[i];

		if (!is_usable(binding, shape))
			continue;
		if (shape->marks[ECM_OLD_TUPLE] == change.number)
			emit_update(shape, relation, true);
		else if (oldtup != NULL)
			emit_move_in(shape);
		else
			emit(shape, ECM_OP_INSERT, pick_columns(shape, ECM_NEW_TUPLE), NULL);
	}
	ecm_work_on(0);
}

/*
 * The same for an update without an old tuple: the replica identity did not
 * change, and a where clause looks at nothing else.  So the shapes that have the
 * row now had it before.
 */
static void
match_update_in_place(EcmBinding *binding, EcmRelation *relation, LogicalRepTupleData *newtup)
{
	EcmTable   *table = binding->table;
	EcmShape  **are_in;
	int			n;

	ensure_scratch(table);
	if (table->any_filter)
		ecm_log_batch_enter_transaction();
	read_tuple(binding, relation, newtup, false, change.table_values[ECM_NEW_TUPLE]);
	are_in = ecm_match_tuple(table, change.table_values[ECM_NEW_TUPLE], ECM_NEW_TUPLE,
							 ++change.number, &n);
	for (int i = 0; i < n; i++)
		if (is_usable(binding, are_in[i]))
			emit_update(are_in[i], relation, false);
	ecm_work_on(0);
}

/* The relation's OID, with which all three messages begin. */
static Oid
peek_relation(StringInfo in)
{
	StringInfoData rest = *in;

	return pq_getmsgint(&rest, 4);
}

void
ecm_change_apply(StringInfo in, LogicalRepMsgType type)
{
	LogicalRepTupleData oldtup;
	LogicalRepTupleData newtup;
	EcmRelation *relation;
	bool		has_old = false;
	ListCell   *lc;

	/* first of all: if the process dies here, the table's shapes are to blame */
	ecm_here->relation = peek_relation(in);
	change.last_number = change.number;
	ecm_log_batch_figures.changes++;
	if (type == LOGICAL_REP_MSG_INSERT)
		relation = ecm_relation_find(logicalrep_read_insert(in, &newtup));
	else if (type == LOGICAL_REP_MSG_UPDATE)
		relation = ecm_relation_find(logicalrep_read_update(in, &has_old, &oldtup, &newtup));
	else
		relation = ecm_relation_find(logicalrep_read_delete(in, &oldtup));

	/* an update of a key is two entries, and comes with the old one */
	ecm_log_batch_change(has_old ? 2 : 1);
	foreach(lc, relation->bindings)
	{
		if (type == LOGICAL_REP_MSG_INSERT)
			match_change(lfirst(lc), relation, NULL, &newtup);
		else if (type == LOGICAL_REP_MSG_DELETE)
			match_change(lfirst(lc), relation, &oldtup, NULL);
		else if (has_old)
			match_change(lfirst(lc), relation, &oldtup, &newtup);
		else
			match_update_in_place(lfirst(lc), relation, &newtup);
	}
	ecm_here->relation = InvalidOid;
}

void
ecm_change_unsendable(Oid relid, const char *column)
{
	List	   *relations;
	List	   *shapes = NIL;
	ListCell   *lc;
	const char *reason;

	reason = column[0] == '\0' ?
		"54000: the server could not send a change of the table: it is too large, or has no text form" :
		psprintf("54000: the server could not send a change of the table with its value of column \"%s\", since it is too large",
				 column);
	ecm_log_batch_enter_transaction();
	relations = lappend_oid(ecm_partition_ancestors(relid), relid);
	foreach(lc, relations)
	{
		EcmTable   *table;

		if (ecm_follow_is_due(lfirst_oid(lc)))
			ecm_follow_table(lfirst_oid(lc));
		table = ecm_followed_table(lfirst_oid(lc));
		if (table != NULL)
			shapes = list_concat(shapes, ecm_followed_list(table, NULL));
	}
	foreach(lc, shapes)
	{
		EcmShape   *shape = lfirst(lc);

		if (!ecm_match_has_failed(shape) &&
			(column[0] == '\0' || ecm_match_lacks(shape, column, change.last_number)))
			ecm_match_fail(shape, reason);
	}
}
