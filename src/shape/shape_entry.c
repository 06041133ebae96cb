/*-------------------------------------------------------------------------
 *
 * shape_entry.c
 *	  Entries of shape logs: decoded and checked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "shape/shape.h"
#include "shape/shape_chunk.h"
#include "shape/shape_entry.h"
#include "shape/shape_log.h"

/*
 * Values of fewer bytes than this can be read in any case, even if each byte
 * has to be escaped and takes more bytes in the client's encoding.
 */
#define SURELY_READABLE		(64 * 1024 * 1024)

/* Room for the rest of a row of the result: offset, key, braces. */
#define ENTRY_OVERHEAD		(64 * 1024)

void
ecm_entry_report_corrupt(const EcmShapeDef *shape, uint64 lsn, uint64 op)
{
	char		offset[ECM_OFFSET_LEN];

	ecm_offset_format(offset, lsn, op);
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("log of shape \"%s\" is corrupt at or after offset %s",
					shape->handle, offset),
			 errhint("Drop the shape with electric_cm_drop_shape() and create it again with electric_cm_create_shape().")));
}

/* Columns that the shape has got since the entry was written. */
static void
add_columns(const EcmShapeDef *shape, EcmValue *values, int *n, EcmValueKind kind)
{
	if (*n == 0)
		return;
	for (; *n < shape->ncolumns; (*n)++)
		values[*n] = (EcmValue)
	{
		.kind = kind
	};
}

bool
ecm_entry_next(const EcmShapeDef *shape, const EcmChunkScan *cs, EcmChunkReader *r)
{
	uint64		lsn = r->in_txn ? r->lsn : cs->first_lsn;
	uint64		op = r->in_txn ? r->next_op : (uint64) cs->first_op;
	EcmChunkResult result = ecm_chunk_next(r);

	if (result == ECM_CHUNK_END)
		return false;

	if (result == ECM_CHUNK_CORRUPT ||
		r->n_new > shape->ncolumns || r->n_old > shape->ncolumns ||
		(r->op == ECM_OP_DELETE ? r->n_old : r->n_new) == 0)
		ecm_entry_report_corrupt(shape, lsn, op);
	add_columns(shape, r->new_values, &r->n_new,
				r->op == ECM_OP_UPDATE ? ECM_VALUE_UNCHANGED : ECM_VALUE_ABSENT);
	add_columns(shape, r->old_values, &r->n_old, ECM_VALUE_ABSENT);
	return true;
}

const EcmValue *
ecm_entry_key_column(EcmOp op, const EcmValue *new_values,
					 const EcmValue *old_values, int column)
{
	if (op != ECM_OP_DELETE &&
		(new_values[column].kind != ECM_VALUE_UNCHANGED || old_values == NULL))
		return &new_values[column];
	return &old_values[column];
}

/* Sizes of a tuple as a jsonb object, and of that as text. */
typedef struct JsonSize
{
	Size		binary;
	Size		text;
} JsonSize;

/* The factor by which a client's encoding may lengthen a text, at worst. */
static int
encoding_growth(void)
{
	if (GetDatabaseEncoding() == PG_UTF8 || GetDatabaseEncoding() == PG_SQL_ASCII)
		return 1;
	return pg_database_encoding_max_length() == 1 ? 3 : 2;
}

/* The size of a text as escape_json() writes it. */
static Size
escaped_size(const char *text, Size len, int growth)
{
	Size		size = 2;

	for (Size i = 0; i < len; i++)
	{
		unsigned char c = text[i];

		if (c >= 0x80)
			size += growth;
		else if (c >= ' ')
			size += c == '"' || c == '\\' ? 2 : 1;
		else
			size += strchr("\b\f\n\r\t", c) != NULL && c != '\0' ? 2 : 6;
	}
	return size;
}

static void
add_json_size(JsonSize *size, const char *name, const EcmValue *value, int growth)
{
	Size		name_len = strlen(name);

	if (!ecm_value_is_shown(value))
		return;
	size->binary += 2 * sizeof(JEntry) + name_len;
	size->text += escaped_size(name, name_len, growth) + strlen(": , ");
	if (value->kind == ECM_VALUE_NULL)
		size->text += strlen("null");
	else
	{
		size->binary += value->len;
		size->text += escaped_size(value->text, value->len, growth);
	}
}

const char *
ecm_entry_unreadable(EcmOp op, char *const *names, int ncolumns,
					 const EcmValue *new_values, const EcmValue *old_values)
{
	JsonSize	new_size = {.binary = offsetof(JsonbContainer, children)};
	JsonSize	old_size = new_size;
	Size		total = 0;
	int			growth;

	for (int i = 0; i < ncolumns; i++)
		total += (new_values ? new_values[i].len : 0) +
			(old_values ? old_values[i].len : 0);
	if (likely(total < SURELY_READABLE))
		return NULL;

	growth = encoding_growth();
	for (int i = 0; i < ncolumns; i++)
	{
		if (new_values != NULL)
			add_json_size(&new_size, names[i], &new_values[i], growth);
		/* of an update's old values, readers get only those that have changed */
		if (old_values != NULL &&
			(op != ECM_OP_UPDATE || !ecm_same_value(&new_values[i], &old_values[i])))
			add_json_size(&old_size, names[i], &old_values[i], growth);
	}
	if (Max(new_size.binary, old_size.binary) > JENTRY_OFFLENMASK)
		return psprintf("a row is too large to be read: it would have %zu bytes as a jsonb object, which can have no more than %d",
						Max(new_size.binary, old_size.binary), JENTRY_OFFLENMASK);
	if (new_size.text + old_size.text > MaxAllocSize - ENTRY_OVERHEAD)
		return psprintf("a change is too large to be read: it would have up to %zu bytes as text, and the server can send no more than %zu",
						new_size.text + old_size.text, MaxAllocSize - ENTRY_OVERHEAD);
	return NULL;
}

void
ecm_entry_check_readable(EcmOp op, const EcmShapeDef *shape,
						 const EcmValue *new_values, const EcmValue *old_values)
{
	const char *reason = ecm_entry_unreadable(op, shape->column_names, shape->ncolumns,
											  new_values, old_values);

	if (reason != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s", reason),
				 errhint("Leave the table's large columns out of the shape, or the row, by its where clause.")));
}

int
ecm_entry_missing(const EcmValue *values, int nvalues)
{
	int			missing = 0;

	for (int i = 0; i < nvalues; i++)
	{
		if (values[i].kind == ECM_VALUE_UNCHANGED)
			missing++;
	}
	return missing;
}
