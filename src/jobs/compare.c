/*-------------------------------------------------------------------------
 *
 * compare.c
 *	  Closes gaps in logs by the difference between log and table.
 *
 * Both are sorted by key, and merged.  A row that only the table has becomes an
 * insert, one that only the log has a delete, and one whose values differ an update
 * of these values.  They are compared as texts, as a log has them: the text that a
 * type's output function makes of a value may have changed with the server's major
 * version.  Then there is an update more than is needed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "jobs/compare.h"
#include "shape/shape_complete.h"
#include "shape/shape_entry.h"
#include "shape/shape_gap.h"

struct EcmCompare
{
	EcmReadShape **shapes;
	int			n;
	int			ncolumns;		/* all shapes have the same */
	Snapshot	snapshot;		/* registered */
	bool		full;			/* old values are known from the stream, too */
	EcmFold		fold;			/* of the first shape: for errors */
	EcmFoldSort logs;
	EcmFoldSort rows;

	/* merging */
	bool		any_row;		/* there is one at hand, which is: */
	int			member;
	bytea	   *key;
	EcmValue   *row;
	EcmValue   *changed;		/* room for an entry's values, new and old */
	EcmValue   *old;
	EcmLogWriter *writer;
	EcmRowPacker *packer;		/* NULL: nothing has differed yet, of ... */
	int			packs;			/* ... this member */
	EcmGapCount *counts;
};

void
ecm_compare_fold(const EcmShapeDef *def, Snapshot snapshot, EcmFold *fold)
{
	memset(fold, 0, sizeof(*fold));
	fold->shape = def;
	fold->snapshot = snapshot;
	ecm_log_base(def->id, snapshot, &fold->old_base);
	fold->new_base.lsn = def->gap_lsn;
	fold->new_base.op = ECM_FIRST_DIFFERENCE - 1;
}

int64
ecm_compare_log_bytes(EcmReadShape **shapes, int n)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int64		bytes = 0;

	for (int i = 0; i < n; i++)
	{
		EcmLogBase	base;
		EcmLogTotals base_size;
		EcmLogTotals stream_size;

		ecm_log_base(shapes[i]->def->id, snapshot, &base);
		ecm_gap_log_sizes(shapes[i]->def->id, &base, snapshot, &base_size, &stream_size);
		bytes += base_size.bytes + stream_size.bytes;
	}
	UnregisterSnapshot(snapshot);
	return bytes;
}

/* Do all of a table's leaves have REPLICA IDENTITY FULL? */
static bool
has_full_identity(Oid relation)
{
	List	   *oids = find_all_inheritors(relation, AccessShareLock, NULL);
	bool		full = true;
	ListCell   *lc;

	foreach(lc, oids)
	{
		Relation	rel = try_table_open(lfirst_oid(lc), NoLock);

		if (rel == NULL)
			continue;
		if (rel->rd_rel->relkind == RELKIND_RELATION)
			full = full && rel->rd_rel->relreplident == REPLICA_IDENTITY_FULL;
		table_close(rel, NoLock);
	}
	return full;
}

EcmCompare *
ecm_compare_begin(EcmReadShape **shapes, int n)
{
	EcmCompare *compare = palloc0(sizeof(EcmCompare));
	const EcmShapeDef *def = shapes[0]->def;

	compare->shapes = shapes;
	compare->n = n;
	compare->ncolumns = def->ncolumns;
	compare->snapshot = RegisterSnapshot(GetLatestSnapshot());
	compare->full = has_full_identity(def->relation);
	ecm_compare_fold(def, compare->snapshot, &compare->fold);
	ecm_fold_sort_begin(&compare->logs, &compare->fold);
	ecm_fold_sort_begin(&compare->rows, &compare->fold);
	compare->row = palloc(sizeof(EcmValue) * compare->ncolumns);
	compare->changed = palloc(sizeof(EcmValue) * compare->ncolumns);
	compare->old = palloc(sizeof(EcmValue) * compare->ncolumns);
	compare->counts = palloc0(sizeof(EcmGapCount) * n);
	for (int i = 0; i < n; i++)
	{
		compare->counts[i].shape = shapes[i]->def->id;
		compare->counts[i].gap_lsn = shapes[i]->def->gap_lsn;
	}
	return compare;
}

void
ecm_compare_log(EcmCompare *compare, int member)
{
	EcmFold		fold;
	EcmFoldPosition position;
	EcmCompleter *completer;

	ecm_compare_fold(compare->shapes[member]->def, compare->snapshot, &fold);
	ecm_fold_begin_log(&fold, &position);
	completer = ecm_completer_begin(fold.shape, fold.snapshot, fold.old_base.lsn,
									fold.new_base.lsn, fold.new_base.op);
	compare->logs.fold = &fold;
	compare->logs.member = member;
	(void) ecm_fold_read_log(&compare->logs, completer, &position, PG_INT64_MAX, NULL, NULL);
	compare->logs.fold = &compare->fold;
	ecm_completer_end(completer);
}

EcmFoldSort *
ecm_compare_entries(EcmCompare *compare)
{
	return &compare->logs;
}

void
ecm_compare_row(void *arg, int member, const EcmValue *values)
{
	EcmCompare *compare = arg;
	const EcmShapeDef *def = compare->shapes[member]->def;
	bytea	   *key = ecm_fold_row_key(def, values);
	bytea	   *entry = ecm_fold_pack(def, ECM_OP_INSERT, values);

	compare->rows.member = member;
	ecm_fold_sort_put(&compare->rows, key, entry);
	pfree(key);
	pfree(entry);
}

/* ------------------------------------------------------------- writing -- */

static void
end_packer(EcmCompare *compare)
{
	if (compare->packer != NULL)
		ecm_row_packer_end_gap(compare->packer, &compare->counts[compare->packs].written);
	compare->packer = NULL;
}

static void
write_difference(EcmCompare *compare, int member, EcmOp op, const EcmValue *new_values,
				 const EcmValue *old_values)
{
	const EcmShapeDef *def = compare->shapes[member]->def;
	int			n = compare->ncolumns;

	ecm_entry_check_readable(op, def, new_values, old_values);
	if (compare->packer != NULL && compare->packs != member)
		end_packer(compare);
	if (compare->writer == NULL)
		compare->writer = ecm_log_writer_begin();
	if (compare->packer == NULL)
		compare->packer = ecm_row_packer_close_gap(compare->writer, def->id, def->gap_lsn);
	compare->packs = member;
	ecm_row_packer_put_change(compare->packer, op, new_values, n, old_values, old_values ? n : 0);
}

static bool
is_key(const EcmShapeDef *def, int column)
{
	for (int i = 0; i < def->nkeys; i++)
		if (def->key_positions[i] == column)
			return true;
	return false;
}

/* Of a row that is gone: its key, or all of it, as the stream would have it. */
static void
write_delete(EcmCompare *compare, int member, const EcmValue *values)
{
	const EcmShapeDef *def = compare->shapes[member]->def;

	for (int i = 0; i < compare->ncolumns; i++)
	{
		compare->old[i] = values[i];
		if (!compare->full && !is_key(def, i))
			compare->old[i].kind = ECM_VALUE_UNCHANGED;
	}
	write_difference(compare, member, ECM_OP_DELETE, NULL, compare->old);
}

/* A column that was not there yet is no other than one without a value. */
static bool
is_same(const EcmValue *before, const EcmValue *after)
{
	if (after->kind == ECM_VALUE_ABSENT ||
		(before->kind == ECM_VALUE_ABSENT && after->kind == ECM_VALUE_NULL))
		return true;
	return ecm_same_value(before, after);
}

static void
write_update(EcmCompare *compare, int member, const EcmValue *before, const EcmValue *after)
{
	const EcmShapeDef *def = compare->shapes[member]->def;
	bool		differs = false;

	for (int i = 0; i < compare->ncolumns; i++)
	{
		bool		same = is_same(&before[i], &after[i]);

		differs |= !same;
		compare->changed[i] = after[i];
		compare->old[i] = before[i];
		if (same)
			compare->old[i].kind = ECM_VALUE_UNCHANGED;
		if (same && !is_key(def, i))
			compare->changed[i].kind = ECM_VALUE_UNCHANGED;
	}
	if (differs)
		write_difference(compare, member, ECM_OP_UPDATE, compare->changed,
						 compare->full ? compare->old : NULL);
}

/* ------------------------------------------------------------- merging -- */

static void
next_row(EcmCompare *compare)
{
	compare->any_row = ecm_fold_sort_next(&compare->rows, &compare->key, compare->row);
	compare->member = compare->rows.member;
}

/* The order of the sorts. */
static int
compare_key(const EcmCompare *compare, int member, const bytea *key)
{
	if (compare->member != member)
		return compare->member < member ? -1 : 1;
	return DatumGetInt32(DirectFunctionCall2(byteacmp, PointerGetDatum(compare->key),
											 PointerGetDatum(key)));
}

static void
write_insert(EcmCompare *compare)
{
	compare->counts[compare->member].compared++;
	write_difference(compare, compare->member, ECM_OP_INSERT, compare->row, NULL);
	next_row(compare);
}

/* A row that a log comes to. */
static void
meet_logged(void *arg, const bytea *key, EcmOp op pg_attribute_unused(),
			const EcmValue *values)
{
	EcmCompare *compare = arg;
	int			member = compare->logs.member;
	int			cmp = 1;

	while (compare->any_row && (cmp = compare_key(compare, member, key)) < 0)
		write_insert(compare);
	compare->counts[member].compared++;
	if (!compare->any_row || cmp > 0)
	{
		write_delete(compare, member, values);
		return;
	}
	write_update(compare, member, values, compare->row);
	next_row(compare);
}

void
ecm_compare_cancel(EcmCompare *compare)
{
	ecm_fold_sort_end(&compare->logs);
	ecm_fold_sort_end(&compare->rows);
	UnregisterSnapshot(compare->snapshot);
}

void
ecm_compare_end(EcmCompare *compare)
{
	EcmGapCount *counts = palloc(sizeof(EcmGapCount) * compare->n);
	int			ncounts = 0;

	tuplesort_performsort(compare->rows.state);
	next_row(compare);
	ecm_fold_replay(&compare->logs, false, meet_logged, compare);
	while (compare->any_row)
		write_insert(compare);
	end_packer(compare);
	if (compare->writer != NULL)
		ecm_log_writer_end(compare->writer);
	ecm_compare_cancel(compare);
	for (int i = 0; i < compare->n; i++)
		if (compare->counts[i].compared > 0)
			counts[ncounts++] = compare->counts[i];
	if (ncounts > 0)
		ecm_gaps_count(counts, ncounts);
}
