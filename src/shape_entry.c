/*-------------------------------------------------------------------------
 *
 * shape_entry.c
 *	  Entries of shape logs: decoded, checked, completed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "shape_entry.h"

/* Even if each byte has to be escaped, in a client's encoding. */
#define SURELY_READABLE		(64 * 1024 * 1024)

/* What else is in a row of the result: offset, key, braces. */
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

bool
ecm_entry_next(const EcmShapeDef *shape, const EcmChunkScan *cs, EcmChunkReader *r)
{
	uint64		lsn = r->in_txn ? r->lsn : cs->first_lsn;
	uint64		op = r->in_txn ? r->next_op : (uint64) cs->first_op;
	EcmChunkResult result = ecm_chunk_next(r);

	if (result == ECM_CHUNK_END)
		return false;

	if (result == ECM_CHUNK_CORRUPT ||
		(r->n_new != 0 && r->n_new != shape->ncolumns) ||
		(r->n_old != 0 && r->n_old != shape->ncolumns) ||
		(r->op == ECM_OP_DELETE ? r->n_old : r->n_new) == 0)
		ecm_entry_report_corrupt(shape, lsn, op);

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

/* By how much a client's encoding may make the text longer, at worst. */
static int
encoding_growth(void)
{
	if (GetDatabaseEncoding() == PG_UTF8 || GetDatabaseEncoding() == PG_SQL_ASCII)
		return 1;
	return pg_database_encoding_max_length() == 1 ? 3 : 2;
}

/* As escape_json() writes it. */
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

	if (value->kind == ECM_VALUE_UNCHANGED)
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
		/* readers of an update get what it has changed */
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

/* Takes the values that are still missing, with copies of their texts. */
static void
fill_missing(EcmValue *values, const EcmValue *from, int nvalues)
{
	for (int i = 0; i < nvalues; i++)
	{
		if (values[i].kind != ECM_VALUE_UNCHANGED ||
			from[i].kind == ECM_VALUE_UNCHANGED)
			continue;

		values[i] = from[i];
		if (from[i].kind == ECM_VALUE_TEXT)
			values[i].text = pnstrdup(from[i].text, from[i].len);
	}
}

/* An entry of a decoded chunk; the texts are the chunk's. */
typedef struct LogEntry
{
	EcmOp		op;
	uint64		lsn;
	uint64		opno;
	EcmValue   *new_values;		/* NULL: none */
	EcmValue   *old_values;		/* NULL: none */
} LogEntry;

static EcmValue *
copy_values(const EcmValue *values, int nvalues)
{
	EcmValue   *copy;

	if (nvalues == 0)
		return NULL;
	copy = palloc(nvalues * sizeof(EcmValue));
	memcpy(copy, values, nvalues * sizeof(EcmValue));
	return copy;
}

/* All entries of the current chunk: a chunk can only be decoded forwards. */
static List *
decode_chunk(const EcmShapeDef *shape, EcmChunkScan *cs)
{
	EcmValue   *new_values = palloc(shape->ncolumns * sizeof(EcmValue));
	EcmValue   *old_values = palloc(shape->ncolumns * sizeof(EcmValue));
	EcmChunkReader r;
	List	   *entries = NIL;

	ecm_chunk_scan_read(cs, &r, new_values, old_values, shape->ncolumns);
	while (ecm_entry_next(shape, cs, &r))
	{
		LogEntry   *entry = palloc(sizeof(LogEntry));

		entry->op = r.op;
		entry->lsn = r.lsn;
		entry->opno = r.opno;
		entry->new_values = copy_values(new_values, r.n_new);
		entry->old_values = copy_values(old_values, r.n_old);
		entries = lappend(entries, entry);
	}
	return entries;
}

/* Is it an entry of the row with that key? */
static bool
entry_has_key(const EcmShapeDef *shape, const LogEntry *entry,
			  const EcmValue *key)
{
	for (int i = 0; i < shape->nkeys; i++)
	{
		const EcmValue *column = ecm_entry_key_column(entry->op, entry->new_values,
													  entry->old_values,
													  shape->key_positions[i]);

		if (column->kind != ECM_VALUE_TEXT || column->len != key[i].len ||
			memcmp(column->text, key[i].text, key[i].len) != 0)
			return false;
	}
	return true;
}

/* The old key in a delete entry, with copies of the texts. */
static EcmValue *
copy_old_key(const EcmShapeDef *shape, const LogEntry *entry)
{
	EcmValue   *key = palloc(shape->nkeys * sizeof(EcmValue));

	for (int i = 0; i < shape->nkeys; i++)
	{
		key[i] = entry->old_values[shape->key_positions[i]];
		if (key[i].kind != ECM_VALUE_TEXT)
			ecm_entry_report_corrupt(shape, entry->lsn, entry->opno);
		key[i].text = pnstrdup(key[i].text, key[i].len);
	}
	return key;
}

/*
 * Finds the values that the insert at (lsn, op) lacks.
 *
 * When a row's key is updated, the log has a delete of the old key directly
 * followed by an insert of the new one, and values that are TOASTed and
 * unchanged are not in the stream.  They are what the log last said of the
 * row under its old key: so walk back, first over that delete, then to the
 * entries of that key, the latest first.  If one of those is such an insert
 * again, go on in the same way with the key before.
 */
void
ecm_entry_complete(const EcmShapeDef *shape, Snapshot snapshot, uint64 lsn,
				   uint64 op, EcmValue *values)
{
	MemoryContext chunk_context;
	MemoryContext result_context = CurrentMemoryContext;
	EcmChunkScan cs;
	EcmValue   *key = NULL;		/* NULL: at the insert of a key update */
	uint64		insert_lsn = lsn;
	uint64		insert_op = op;
	bool		done = false;

	chunk_context = AllocSetContextCreate(CurrentMemoryContext,
										  "electric_cm chunk walked back",
										  ALLOCSET_DEFAULT_SIZES);
	ecm_chunk_scan_begin(&cs, shape->id, BTLessStrategyNumber, lsn, op,
						 snapshot, AccessShareLock);

	while (!done && ecm_chunk_scan_next(&cs))
	{
		List	   *entries;

		MemoryContextReset(chunk_context);
		MemoryContextSwitchTo(chunk_context);
		entries = decode_chunk(shape, &cs);
		MemoryContextSwitchTo(result_context);

		for (int i = list_length(entries) - 1; i >= 0 && !done; i--)
		{
			LogEntry   *entry = list_nth(entries, i);

			/* the chunk may also have the insert itself, and what follows */
			if (ecm_offset_cmp(entry->lsn, entry->opno, lsn, op) >= 0)
				continue;

			if (key == NULL)
			{
				/* the delete of the same key update */
				if (entry->op != ECM_OP_DELETE ||
					entry->lsn != insert_lsn || entry->opno + 1 != insert_op)
					ecm_entry_report_corrupt(shape, insert_lsn, insert_op);
				key = copy_old_key(shape, entry);
				fill_missing(values, entry->old_values, shape->ncolumns);
			}
			else if (entry_has_key(shape, entry, key))
			{
				/* the row can't have been away in between */
				if (entry->op == ECM_OP_DELETE)
					ecm_entry_report_corrupt(shape, lsn, op);
				fill_missing(values, entry->new_values, shape->ncolumns);
				if (entry->op == ECM_OP_INSERT)
				{
					insert_lsn = entry->lsn;
					insert_op = entry->opno;
					key = NULL;
				}
			}
			done = ecm_entry_missing(values, shape->ncolumns) == 0;
		}
	}
	if (!done)
		ecm_entry_report_corrupt(shape, lsn, op);

	ecm_chunk_scan_end(&cs);
	MemoryContextDelete(chunk_context);
}
