/*-------------------------------------------------------------------------
 *
 * lower_case.c
 *	  Columns in lower case, once per row, for all where clauses with ILIKE.
 *
 * In an encoding with characters of several bytes, texticlike() puts its value and its
 * pattern into lower case, by lower(), and then does what LIKE does: a thousand clauses
 * on a column have a thousand times the work.  Here the value is put into lower case
 * when the first clause asks for it, and the pattern when the clause is compiled.  In
 * other encodings texticlike() goes by characters, and clauses stay as they are.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/attnum.h"
#include "access/detoast.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "mb/pg_wchar.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "base/compat.h"
#include "shape/lower_case.h"

/*
 * A value that has more bytes is not put into lower case before it is known that some
 * clause looks at it: "length(a) < 1000 AND a ILIKE ..." does not.
 */
#define MAX_BYTES			(64 * 1024)

/* The operator of NOT LIKE, to which the server's headers give no name. */
#define TEXT_NOT_LIKE_OP	1210

typedef struct LowerColumn
{
	AttrNumber	attno;			/* of the scan tuple */
	Oid			collation;
	bool		made;			/* of this row */
} LowerColumn;

struct EcmLowerCase
{
	MemoryContext context;
	MemoryContext row_context;	/* the values */
	int			ncolumns;
	int			max_columns;
	LowerColumn *columns;
	TupleTableSlot *slot;		/* attribute n is columns[n - 1]; NULL: to be
								 * made, as there is another column */
};

EcmLowerCase *
ecm_lower_case_create(MemoryContext context)
{
	EcmLowerCase *rows = MemoryContextAllocZero(context, sizeof(EcmLowerCase));

	rows->context = context;
	rows->row_context = AllocSetContextCreate(context, "electric_cm lower case",
											  ALLOCSET_DEFAULT_SIZES);
	rows->max_columns = 4;
	rows->columns = MemoryContextAlloc(context, rows->max_columns * sizeof(LowerColumn));
	return rows;
}

static int
find_column(EcmLowerCase *rows, AttrNumber attno, Oid collation)
{
	for (int i = 0; i < rows->ncolumns; i++)
		if (rows->columns[i].attno == attno && rows->columns[i].collation == collation)
			return i;
	if (rows->ncolumns == rows->max_columns)
	{
		rows->columns = repalloc(rows->columns, 2 * rows->max_columns * sizeof(LowerColumn));
		rows->max_columns *= 2;
	}
	rows->columns[rows->ncolumns].attno = attno;
	rows->columns[rows->ncolumns].collation = collation;
	rows->columns[rows->ncolumns].made = false;
	if (rows->slot != NULL)
		ExecDropSingleTupleTableSlot(rows->slot);
	rows->slot = NULL;
	return rows->ncolumns++;
}

/* ----------------------------------------------------------------
 * Clauses
 * ----------------------------------------------------------------
 */

typedef struct ReplaceContext
{
	EcmLowerCase *rows;
	Bitmapset  *used;
} ReplaceContext;

static Node *
without_relabel(Node *node)
{
	while (node != NULL && IsA(node, RelabelType))
		node = (Node *) ((RelabelType *) node)->arg;
	return node;
}

/* The operator in place of this one; NULL: it stays as it is. */
static Node *
replace_operator(const OpExpr *op, ReplaceContext *context)
{
	Node	   *column;
	Node	   *constant;
	int			index;
	Datum		pattern;

	if (op->opfuncid != F_TEXTICLIKE && op->opfuncid != F_TEXTICNLIKE)
		return NULL;
	column = without_relabel(linitial(op->args));
	constant = without_relabel(lsecond(op->args));

	/*
	 * without a collation, or with one that it refuses, ILIKE shall say so
	 * itself
	 */
	if (!IsA(column, Var) || !IsA(constant, Const) || ((Const *) constant)->constisnull ||
		!OidIsValid(op->inputcollid) || !get_collation_isdeterministic(op->inputcollid))
		return NULL;

	index = find_column(context->rows, ((Var *) column)->varattno, op->inputcollid);
	context->used = bms_add_member(context->used, index);
	pattern = DirectFunctionCall1Coll(lower, op->inputcollid, ((Const *) constant)->constvalue);
	return (Node *) make_opclause(op->opfuncid == F_TEXTICLIKE ? OID_TEXT_LIKE_OP : TEXT_NOT_LIKE_OP,
								  BOOLOID, false,
								  (Expr *) makeVar(INNER_VAR, index + 1, TEXTOID, -1,
												   op->inputcollid, 0),
								  (Expr *) makeConst(TEXTOID, -1, op->inputcollid, -1,
													 pattern, false, false),
								  InvalidOid, op->inputcollid);
}

static Node *
replace_mutator(Node *node, void *arg)
{
	Node	   *other = NULL;

	if (node == NULL)
		return NULL;
	if (IsA(node, OpExpr))
		other = replace_operator((OpExpr *) node, arg);
	if (other == NULL)
		return expression_tree_mutator(node, replace_mutator, arg);
	set_opfuncid((OpExpr *) other);
	return other;
}

List *
ecm_lower_case_replace(EcmLowerCase *rows, List *quals, Bitmapset **used)
{
	ReplaceContext context = {.rows = rows};

	*used = NULL;
	if (pg_database_encoding_max_length() == 1)
		return quals;
	quals = (List *) replace_mutator((Node *) quals, &context);
	*used = context.used;
	return quals;
}

/* ----------------------------------------------------------------
 * Rows
 * ----------------------------------------------------------------
 */

void
ecm_lower_case_next_row(EcmLowerCase *rows)
{
	for (int i = 0; i < rows->ncolumns; i++)
		rows->columns[i].made = false;
	MemoryContextReset(rows->row_context);
}

/* A slot for all columns, in which none is made. */
static void
make_slot(EcmLowerCase *rows)
{
	MemoryContext old_context = MemoryContextSwitchTo(rows->context);
	TupleDesc	desc = CreateTemplateTupleDesc(rows->ncolumns);

	for (int i = 0; i < rows->ncolumns; i++)
	{
		TupleDescInitEntry(desc, i + 1, NULL, TEXTOID, -1, 0);
		rows->columns[i].made = false;
	}
	ecm_tupledesc_finalize(desc);
	rows->slot = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);
	memset(rows->slot->tts_isnull, true, rows->ncolumns * sizeof(bool));
	ExecStoreVirtualTuple(rows->slot);
	MemoryContextSwitchTo(old_context);
}

bool
ecm_lower_case_make(EcmLowerCase *rows, const Bitmapset *used, ExprContext *econtext)
{
	const TupleTableSlot *from = econtext->ecxt_scantuple;
	int			i = -1;

	if (rows->slot == NULL)
		make_slot(rows);
	while ((i = bms_next_member(used, i)) >= 0)
	{
		LowerColumn *column = &rows->columns[i];
		Datum		value = from->tts_values[column->attno - 1];
		bool		isnull = from->tts_isnull[column->attno - 1];
		MemoryContext old_context;

		if (column->made)
			continue;
		if (!isnull && toast_raw_datum_size(value) > MAX_BYTES)
			return false;
		if (!isnull)
		{
			old_context = MemoryContextSwitchTo(rows->row_context);
			rows->slot->tts_values[i] = DirectFunctionCall1Coll(lower, column->collation, value);
			MemoryContextSwitchTo(old_context);
		}
		rows->slot->tts_isnull[i] = isnull;
		column->made = true;
	}
	econtext->ecxt_innertuple = rows->slot;
	return true;
}
