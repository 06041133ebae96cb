/*-------------------------------------------------------------------------
 *
 * key_order.c
 *	  The order of a shape's key, in SQL: conditions on ranges of keys.
 *
 * A consumer finds out by itself, without SQL, in which piece a key is (see
 * shape_pieces.c).  So both must mean the same order, that of the default btree
 * operator class.  ORDER BY has that in any case, and so has a comparison of rows, as
 * the types are built in, or enums (see shape_key_cmp.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "catalog/pg_am.h"
#include "catalog/pg_index.h"
#include "commands/defrem.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "jobs/key_order.h"
#include "shape/shape_key_cmp.h"
#include "shape/shape_requirements.h"

/* Does the index have the default order of its columns, or just the opposite? */
static bool
has_default_order(Relation index)
{
	int16		option = index->rd_indoption[0];

	if (index->rd_rel->relam != BTREE_AM_OID || !index->rd_index->indisvalid ||
		(option != 0 && option != (INDOPTION_DESC | INDOPTION_NULLS_FIRST)))
		return false;
	for (int i = 0; i < index->rd_index->indnkeyatts; i++)
		if (index->rd_indoption[i] != option)
			return false;
	return true;
}

/* One column; false: it is not the index's, or has no such order there. */
static bool
add_column(const EcmShapeDef *shape, Relation rel, Relation index, int i,
		   EcmKeyOrder *order)
{
	const char *name = shape->column_names[shape->key_positions[i]];
	AttrNumber	attnum = index->rd_index->indkey.values[i];
	Form_pg_attribute att;
	Oid			opclass;

	if (attnum <= 0)
		return false;
	att = TupleDescAttr(RelationGetDescr(rel), attnum - 1);
	opclass = GetDefaultOpClass(att->atttypid, BTREE_AM_OID);
	if (strcmp(NameStr(att->attname), name) != 0 || !OidIsValid(opclass) ||
		get_opclass_family(opclass) != index->rd_opfamily[i] ||
		index->rd_indcollation[i] != att->attcollation)
		return false;

	order->columns[i] = psprintf("t.%s", quote_identifier(name));
	/* not a domain, whose collation may be another than the column's */
	order->types[i] = getBaseType(att->atttypid);
	return true;
}

bool
ecm_key_order(const EcmShapeDef *shape, Relation rel, EcmKeyOrder *order)
{
	Oid			oid = ecm_key_index(rel);
	Relation	index;
	bool		usable;

	memset(order, 0, sizeof(*order));
	if (!OidIsValid(oid) || !ecm_keys_comparable(shape))
		return false;
	index = index_open(oid, AccessShareLock);
	usable = index->rd_index->indnkeyatts == shape->nkeys && has_default_order(index);
	for (int i = 0; usable && i < shape->nkeys; i++)
		usable = add_column(shape, rel, index, i, order);
	order->n = shape->nkeys;
	index_close(index, NoLock);
	return usable;
}

void
ecm_key_order_list(const EcmKeyOrder *order, StringInfo sql)
{
	for (int i = 0; i < order->n; i++)
		appendStringInfo(sql, "%s%s", i > 0 ? ", " : "", order->columns[i]);
}

/* A comparison of rows, which an index can be searched for. */
void
ecm_key_order_condition(const EcmKeyOrder *order, EcmKeyCondition condition, int first,
						StringInfo sql)
{
	static const char *const operators[] = {">", "<=", "="};

	appendStringInfoString(sql, "ROW(");
	ecm_key_order_list(order, sql);
	appendStringInfo(sql, ") OPERATOR(pg_catalog.%s) ROW(", operators[condition]);
	for (int i = 0; i < order->n; i++)
		appendStringInfo(sql, "%s$%d", i > 0 ? ", " : "", first + i);
	appendStringInfoChar(sql, ')');
}

void
ecm_key_order_params(const EcmKeyOrder *order, char **values, Oid *types, Datum *params)
{
	for (int i = 0; i < order->n; i++)
	{
		Oid			function;
		Oid			ioparam;

		getTypeInputInfo(order->types[i], &function, &ioparam);
		types[i] = order->types[i];
		params[i] = OidInputFunctionCall(function, values[i], ioparam, -1);
	}
}
