/*-------------------------------------------------------------------------
 *
 * shape_key_cmp.c
 *	  The order of a shape's keys, in which its rows are read in pieces.
 *
 * Keys are in logs and in the catalog as texts, and have to be compared as the
 * server compares the values.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_am_d.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "fmgr.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "base/compat.h"
#include "shape/shape_entry.h"
#include "shape/shape_filter.h"
#include "shape/shape_key_cmp.h"

typedef struct KeyColumn
{
	int			position;		/* among the shape's columns */
	FmgrInfo	input;
	Oid			typioparam;
	FmgrInfo	compare;
	Oid			collation;
} KeyColumn;

struct EcmKeyCmp
{
	const EcmShapeDef *shape;
	KeyColumn  *columns;
};

/*
 * Does the type's input and comparison run built-in functions only, and give the
 * same value for the same text at any time?
 */
static bool
is_plain(Oid type)
{
	Oid			element = get_element_type(type);
	char		kind;

	if (OidIsValid(element))
		return is_plain(element);
	kind = get_typtype(type);
	if (kind == TYPTYPE_ENUM)
		return true;
	return type < FirstNormalObjectId && !ecm_type_has_names(type) &&
		(kind == TYPTYPE_BASE || kind == TYPTYPE_RANGE || kind == TYPTYPE_MULTIRANGE);
}

/* A domain's constraints have been checked when the row was written. */
static Oid
key_type(const EcmShapeDef *shape, int i)
{
	return getBaseType(shape->column_types[shape->key_positions[i]]);
}

bool
ecm_keys_comparable(const EcmShapeDef *shape)
{
	for (int i = 0; i < shape->nkeys; i++)
	{
		Oid			type = key_type(shape, i);
		Oid			opclass = GetDefaultOpClass(type, BTREE_AM_OID);

		if (!is_plain(type) || !OidIsValid(opclass) || opclass >= FirstNormalObjectId ||
			!OidIsValid(lookup_type_cache(type, TYPECACHE_CMP_PROC)->cmp_proc))
			return false;
	}
	return shape->nkeys > 0;
}

EcmKeyCmp *
ecm_key_cmp_begin(const EcmShapeDef *shape)
{
	EcmKeyCmp  *cmp = palloc(sizeof(EcmKeyCmp));

	if (!ecm_keys_comparable(shape))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the keys of shape \"%s\" have no order", shape->handle)));
	cmp->shape = shape;
	cmp->columns = palloc0(sizeof(KeyColumn) * shape->nkeys);
	for (int i = 0; i < shape->nkeys; i++)
	{
		KeyColumn  *column = &cmp->columns[i];
		Oid			type = key_type(shape, i);
		Oid			input;
		AttrNumber	attnum;
		Oid			ignored;
		int32		typmod;

		column->position = shape->key_positions[i];
		getTypeInputInfo(type, &input, &column->typioparam);
		fmgr_info(input, &column->input);
		fmgr_info(lookup_type_cache(type, TYPECACHE_CMP_PROC)->cmp_proc, &column->compare);
		attnum = get_attnum(shape->relation, shape->column_names[column->position]);
		if (attnum == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("table %s of shape \"%s\" has lost a column of its key",
							shape->relation_name, shape->handle)));
		get_atttypetypmodcoll(shape->relation, attnum, &ignored, &typmod, &column->collation);
	}
	return cmp;
}

Datum *
ecm_key_from_texts(EcmKeyCmp *cmp, char **texts)
{
	Datum	   *key = palloc(sizeof(Datum) * cmp->shape->nkeys);

	for (int i = 0; i < cmp->shape->nkeys; i++)
		key[i] = InputFunctionCall(&cmp->columns[i].input, texts[i],
								   cmp->columns[i].typioparam, -1);
	return key;
}

Datum *
ecm_key_or_null(EcmKeyCmp *cmp, char **texts)
{
	Datum	   *key = palloc(sizeof(Datum) * cmp->shape->nkeys);

	for (int i = 0; i < cmp->shape->nkeys; i++)
		if (!ecm_input_or_false(&cmp->columns[i].input, texts[i], cmp->columns[i].typioparam,
								&key[i]))
			return NULL;
	return key;
}

Datum *
ecm_key_from_entry(EcmKeyCmp *cmp, const EcmChunkReader *entry)
{
	int			n = cmp->shape->nkeys;
	char	  **texts = palloc(sizeof(char *) * n);

	for (int i = 0; i < n; i++)
	{
		const EcmValue *value = ecm_entry_key_column(entry->op, entry->new_values,
													 entry->n_old > 0 ? entry->old_values : NULL,
													 cmp->columns[i].position);

		if (value->kind != ECM_VALUE_TEXT)
			ecm_entry_report_corrupt(cmp->shape, entry->lsn, entry->opno);
		texts[i] = pnstrdup(value->text, value->len);
	}
	return ecm_key_from_texts(cmp, texts);
}

int
ecm_key_compare(EcmKeyCmp *cmp, const Datum *a, const Datum *b)
{
	for (int i = 0; i < cmp->shape->nkeys; i++)
	{
		int			result = DatumGetInt32(FunctionCall2Coll(&cmp->columns[i].compare,
															 cmp->columns[i].collation,
															 a[i], b[i]));

		if (result != 0)
			return result;
	}
	return 0;
}
