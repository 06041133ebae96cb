/*-------------------------------------------------------------------------
 *
 * create_shape.c
 *	  electric_cm_create_shape(): what may be a shape, and its row.
 *
 * To create a shape means to insert its row and to emit the message "create": the
 * manager meets that in the stream when the caller's transaction has committed, and
 * does the rest (shape_creation.c).  So a shape whose transaction is rolled back never
 * existed, and the caller does not wait.
 *
 * The caller's rights on the table are checked as the caller.  Our own tables are
 * nobody's to write, so they are accessed as shape_catalog.c says.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/stream_message.h"
#include "base/stream_message_io.h"
#include "base/table_writer.h"
#include "base/text.h"
#include "base/version.h"
#include "functions/await.h"
#include "hooks/shape_ddl.h"
#include "shape/arrays.h"
#include "shape/publication.h"
#include "shape/shape.h"
#include "shape/shape_catalog.h"
#include "shape/shape_filter.h"
#include "shape/shape_requirements.h"
#include "shape/shape_rights.h"
#include "shape/shape_settings.h"
#include "shape/shape_verify.h"

PG_FUNCTION_INFO_V1(electric_cm_create_shape);

/* This session's last count of the shapes: see check_max_shapes(). */
static struct
{
	int64		allowed;		/* so many may still be created without a
								 * count */
	int			max_shapes;		/* the setting, when they were counted */
}			counted;

/*
 * Refuses relations of which the stream does not have all changes, and tables whose
 * UPDATE and DELETE would fail once they are published.
 */
static void
check_relation(Relation rel)
{
	const char *name = RelationGetRelationName(rel);

	if (rel->rd_rel->relkind != RELKIND_RELATION &&
		rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", name),
				 errdetail_relkind_not_supported(rel->rd_rel->relkind)));
	if (!RelationIsPermanent(rel) || IsCatalogRelation(rel) ||
		strcmp(get_namespace_name(RelationGetNamespace(rel)), ECM_SCHEMA) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot create a shape of table \"%s\"", name),
				 errdetail("Temporary, unlogged and system tables are not replicated.")));
	if (rel->rd_rel->relkind == RELKIND_RELATION &&
		has_subclass(RelationGetRelid(rel)) &&
		find_inheritance_children(RelationGetRelid(rel), NoLock) != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot create a shape of inheritance parent \"%s\"", name),
				 errhint("Create shapes of the child tables, or use declarative partitioning.")));
	if (rel->rd_rel->relreplident == REPLICA_IDENTITY_NOTHING)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" has no replica identity", name),
				 errhint("ALTER TABLE %s REPLICA IDENTITY DEFAULT",
						 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)), name))));
}

/* The name of a deferrable primary key, which can't identify rows; or NULL. */
static char *
deferrable_key(Relation rel)
{
	char	   *name = NULL;
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(rel))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if (index->rd_index->indisprimary && !index->rd_index->indimmediate)
			name = pstrdup(RelationGetRelationName(index));
		index_close(index, AccessShareLock);
	}
	return name;
}

/*
 * The index whose columns identify a row of the shape's log.  ERROR 0A000 if the table
 * has none.
 */
static Oid
key_index(Relation rel)
{
	Oid			index = ecm_key_index(rel);
	char	   *deferrable = OidIsValid(index) ? NULL : deferrable_key(rel);

	if (deferrable != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the primary key of table \"%s\" is deferrable",
						RelationGetRelationName(rel)),
				 errdetail("Two rows can have the same key for a while, and the server does not identify rows by it in the stream."),
				 errhint("Make constraint \"%s\" NOT DEFERRABLE by dropping it and adding it again, or use ALTER TABLE ... REPLICA IDENTITY USING INDEX with another unique index on columns that are NOT NULL.",
						 deferrable)));
	if (!OidIsValid(index))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" has neither a primary key nor a replica identity index",
						RelationGetRelationName(rel)),
				 errdetail("Once it is published, UPDATE and DELETE on it would fail."),
				 errhint("Add a primary key, or use ALTER TABLE ... REPLICA IDENTITY USING INDEX.")));
	return index;
}

/* A shape's columns, as they are stored in its row; and as attribute numbers. */
typedef struct ShapeColumns
{
	ArrayType  *requested;		/* names; NULL: all of the table's */
	ArrayType  *names;			/* in the table's order */
	ArrayType  *types;			/* theirs */
	ArrayType  *keys;			/* positions in names, from 1 */
	Bitmapset  *attnums;
	Bitmapset  *key_attnums;
} ShapeColumns;

/*
 * The columns that were asked for, as attribute numbers.
 */
static Bitmapset *
requested_columns(Relation rel, ArrayType *columns)
{
	Bitmapset  *attnums = NULL;
	Datum	   *elems;
	bool	   *nulls;
	int			n;

	if (ARR_NDIM(columns) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("columns must be a one-dimensional array")));
	deconstruct_array(columns, TEXTOID, -1, false, TYPALIGN_INT, &elems, &nulls, &n);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("columns must not be empty"),
				 errhint("Pass NULL for all columns of the table.")));
	for (int i = 0; i < n; i++)
	{
		char	   *name;
		AttrNumber	attnum;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("columns must not contain nulls")));
		name = TextDatumGetCString(elems[i]);
		attnum = get_attnum(RelationGetRelid(rel), name);
		if (attnum == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\" does not exist",
							name, RelationGetRelationName(rel)),
					 errhint("Names in columns are taken as they are: without quotes, and with the same case.")));
		if (attnum < 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("system column \"%s\" cannot be part of a shape", name)));
		if (!ecm_is_streamed(TupleDescAttr(RelationGetDescr(rel), attnum - 1)))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("generated column \"%s\" cannot be part of a shape", name),
					 errdetail(ECM_UNSTREAMED_DETAIL)));
		if (bms_is_member(attnum, attnums))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg("column \"%s\" is named twice", name)));
		attnums = bms_add_member(attnums, attnum);
	}
	return attnums;
}

/*
 * A row without a key could not be told from others of that kind.  The server
 * takes the index for a replica identity all the same.
 */
static void
report_nulls(Relation rel, Form_pg_attribute att)
{
	HeapTuple	constraint = ecm_not_null_constraint(RelationGetRelid(rel), att->attnum);
	char	   *table = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												   RelationGetRelationName(rel));

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the key of table \"%s\" has column \"%s\", which may have nulls",
					RelationGetRelationName(rel), NameStr(att->attname)),
			 errdetail("Its NOT NULL constraint is NOT VALID."),
			 HeapTupleIsValid(constraint) ?
			 errhint("ALTER TABLE %s VALIDATE CONSTRAINT %s", table,
					 quote_identifier(NameStr(((Form_pg_constraint) GETSTRUCT(constraint))->conname))) : 0));
}

/*
 * The columns that were asked for, in the table's order, or all (NULL); except
 * generated ones that the stream does not carry.
 */
static ShapeColumns
shape_columns(Relation rel, ArrayType *columns)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Relation	index = index_open(key_index(rel), AccessShareLock);
	Bitmapset  *requested = columns ? requested_columns(rel, columns) : NULL;
	Datum	   *names = palloc(sizeof(Datum) * desc->natts);
	Datum	   *types = palloc(sizeof(Datum) * desc->natts);
	Datum	   *keys = palloc(sizeof(Datum) * index->rd_index->indnkeyatts);
	int		   *position = palloc0(sizeof(int) * (desc->natts + 1));
	int			n = 0;
	ShapeColumns result = {0};

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || !ecm_is_streamed(att))
			continue;
		if (columns != NULL && !bms_is_member(att->attnum, requested))
			continue;
		names[n] = CStringGetTextDatum(NameStr(att->attname));
		types[n] = ObjectIdGetDatum(att->atttypid);
		position[att->attnum] = ++n;
		result.attnums = bms_add_member(result.attnums, att->attnum);
	}
	for (int i = 0; i < index->rd_index->indnkeyatts; i++)
	{
		AttrNumber	attnum = index->rd_index->indkey.values[i];
		Form_pg_attribute att = TupleDescAttr(desc, attnum - 1);

		if (!ecm_has_no_nulls(desc, attnum))
			report_nulls(rel, att);
		if (!ecm_is_streamed(att))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("the key of table \"%s\" has generated column \"%s\"",
							RelationGetRelationName(rel), NameStr(att->attname)),
					 errdetail(ECM_UNSTREAMED_DETAIL),
					 errhint("Use ALTER TABLE ... REPLICA IDENTITY USING INDEX with a unique index on other columns that are NOT NULL.")));
		if (ecm_type_has_names(att->atttypid))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("the key of table \"%s\" has column \"%s\" of type %s",
							RelationGetRelationName(rel), NameStr(att->attname),
							format_type_be(att->atttypid)),
					 errdetail("The stream has names for its values, and a row could not be told by them after a change of the name."),
					 errhint("Use ALTER TABLE ... REPLICA IDENTITY USING INDEX with other columns.")));
		if (position[attnum] == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
					 errmsg("columns must include \"%s\"", NameStr(att->attname)),
					 errdetail("It is part of the key of table \"%s\", by which rows are told apart.",
							   RelationGetRelationName(rel))));
		keys[i] = Int16GetDatum(position[attnum]);
		result.key_attnums = bms_add_member(result.key_attnums, attnum);
	}
	result.names = construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT);
	result.types = construct_array(types, n, OIDOID, sizeof(Oid), true, TYPALIGN_INT);
	result.keys = construct_array(keys, index->rd_index->indnkeyatts, INT2OID,
								  sizeof(int16), true, TYPALIGN_SHORT);
	result.requested = columns != NULL ? result.names : NULL;
	index_close(index, NoLock);
	return result;
}

/*
 * ERROR 54000 if there are more shapes than electric_cm.max_shapes, the new one included.
 * Within ecm_spi_begin/end.
 *
 * Counting takes long if there are many.  A session that declares many counts them anew
 * only after it has created 1/16 of those that were still allowed.  So several sessions
 * at a time may exceed the limit, each by 1/16 of the number that was left.
 */
static void
check_max_shapes(void)
{
	int			max_now = ecm_shapes_allowed();
	int64		n;
	bool		isnull;

	if (counted.max_shapes == max_now && counted.allowed > 0)
	{
		counted.allowed--;
		return;
	}
	ecm_spi_run("SELECT count(*) FROM _electric_cm.shape", SPI_OK_SELECT,
				0, NULL, NULL, NULL);
	n = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
									1, &isnull));
	if (n > max_now)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("there are already %d shapes", max_now),
				 errhint("Drop shapes that nobody reads, or raise electric_cm.max_shapes.")));
	counted.allowed = (max_now - n) / 16;
	counted.max_shapes = max_now;
}

/*
 * Locks the shape's owner as a dependency would.  DROP ROLE, which drops the role's
 * shapes, waits for this transaction then, and does not overlook the new one.
 */
static void
lock_owner(Oid owner)
{
	LockSharedObject(AuthIdRelationId, owner, 0, AccessShareLock);
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role %u was concurrently dropped", owner)));
}

/* A new shape, as it is to be stored. */
typedef struct NewShape
{
	Oid			owner;
	Oid			relation;
	const char *relation_name;
	ShapeColumns columns;
	EcmFilterDef *filter;		/* NULL: no where clause */
	Bitmapset  *where_attnums;
} NewShape;

/* A number for the handle, so that shapes of one moment have different ones. */
static uint32
hash_definition(const NewShape *shape)
{
	uint32		hash = hash_bytes((const unsigned char *) shape->relation_name,
								  strlen(shape->relation_name)) ^ shape->owner;

	if (shape->filter != NULL)
		hash = hash_combine(hash, hash_bytes((const unsigned char *) shape->filter->clause,
											 strlen(shape->filter->clause)));
	if (shape->columns.requested != NULL)
		hash = hash_combine(hash, hash_bytes((const unsigned char *) shape->columns.requested,
											 VARSIZE(shape->columns.requested)));
	return hash;
}

/*
 * The digest of where clause and requested columns.  Shapes of one owner and table with
 * the same digest are the same shape; a unique index sees to that.  The definition
 * itself may be too long for an index.
 */
static Datum
digest_definition(const NewShape *shape)
{
	StringInfoData text;
	bytea	   *definition;

	initStringInfo(&text);
	appendStringInfoSpaces(&text, VARHDRSZ);
	if (shape->filter != NULL)
		appendStringInfoString(&text, shape->filter->clause);
	appendStringInfoChar(&text, '\0');
	if (shape->columns.requested != NULL)
		appendBinaryStringInfo(&text, (char *) shape->columns.requested,
							   VARSIZE(shape->columns.requested));
	definition = (bytea *) text.data;
	SET_VARSIZE(definition, text.len);
	return DirectFunctionCall1(sha256_bytea, PointerGetDatum(definition));
}

/* The columns of _electric_cm.shape that a new row has. */
typedef enum RowColumn
{
	ROW_HANDLE,
	ROW_OWNER,
	ROW_RELATION,
	ROW_RELATION_NAME,
	ROW_REQUESTED_COLUMNS,
	ROW_COLUMN_NAMES,
	ROW_COLUMN_TYPES,
	ROW_KEY_POSITIONS,
	ROW_WHERE_CLAUSE,
	ROW_WHERE_NAMES,
	ROW_WHERE_TYPES,
	ROW_WHERE_COLLATIONS,
	ROW_DEFINITION
} RowColumn;

#define ROW_NCOLUMNS	(ROW_DEFINITION + 1)

typedef struct RowColumnInfo
{
	const char *name;
	Oid			type;
} RowColumnInfo;

static const RowColumnInfo row_columns[ROW_NCOLUMNS] =
{
	[ROW_HANDLE] = {"handle", TEXTOID},
	[ROW_OWNER] = {"owner", OIDOID},
	[ROW_RELATION] = {"relation", OIDOID},
	[ROW_RELATION_NAME] = {"relation_name", TEXTOID},
	[ROW_REQUESTED_COLUMNS] = {"requested_columns", TEXTARRAYOID},
	[ROW_COLUMN_NAMES] = {"column_names", TEXTARRAYOID},
	[ROW_COLUMN_TYPES] = {"column_types", OIDARRAYOID},
	[ROW_KEY_POSITIONS] = {"key_positions", INT2ARRAYOID},
	[ROW_WHERE_CLAUSE] = {"where_clause", TEXTOID},
	[ROW_WHERE_NAMES] = {"where_names", TEXTARRAYOID},
	[ROW_WHERE_TYPES] = {"where_types", OIDARRAYOID},
	[ROW_WHERE_COLLATIONS] = {"where_collations", OIDARRAYOID},
	[ROW_DEFINITION] = {"definition", BYTEAOID}
};

typedef struct NewRow
{
	Datum		values[ROW_NCOLUMNS];
	char		nulls[ROW_NCOLUMNS];	/* as for SPI */
} NewRow;

static void
set_column(NewRow *row, RowColumn column, Datum value)
{
	row->values[column] = value;
	row->nulls[column] = ' ';
}

static void
fill_row(NewRow *row, const NewShape *shape, const char *handle)
{
	const EcmFilterDef *filter = shape->filter;

	memset(row->values, 0, sizeof(row->values));
	memset(row->nulls, 'n', sizeof(row->nulls));
	set_column(row, ROW_HANDLE, CStringGetTextDatum(handle));
	set_column(row, ROW_OWNER, ObjectIdGetDatum(shape->owner));
	set_column(row, ROW_RELATION, ObjectIdGetDatum(shape->relation));
	set_column(row, ROW_RELATION_NAME, CStringGetTextDatum(shape->relation_name));
	if (shape->columns.requested != NULL)
		set_column(row, ROW_REQUESTED_COLUMNS, PointerGetDatum(shape->columns.requested));
	set_column(row, ROW_COLUMN_NAMES, PointerGetDatum(shape->columns.names));
	set_column(row, ROW_COLUMN_TYPES, PointerGetDatum(shape->columns.types));
	set_column(row, ROW_KEY_POSITIONS, PointerGetDatum(shape->columns.keys));
	if (filter != NULL)
	{
		set_column(row, ROW_WHERE_CLAUSE, CStringGetTextDatum(filter->clause));
		set_column(row, ROW_WHERE_NAMES,
				   ecm_array_of_names(filter->names, filter->ncolumns));
		set_column(row, ROW_WHERE_TYPES,
				   ecm_array_of_oids(filter->types, filter->ncolumns));
		set_column(row, ROW_WHERE_COLLATIONS,
				   ecm_array_of_oids(filter->collations, filter->ncolumns));
	}
	set_column(row, ROW_DEFINITION, digest_definition(shape));
}

static char *
insert_sql(void)
{
	StringInfoData names;
	StringInfoData values;

	initStringInfo(&names);
	initStringInfo(&values);
	for (int i = 0; i < ROW_NCOLUMNS; i++)
	{
		appendStringInfo(&names, "%s%s", i > 0 ? ", " : "", row_columns[i].name);
		appendStringInfo(&values, "%s$%d", i > 0 ? ", " : "", i + 1);
	}
	return psprintf("INSERT INTO _electric_cm.shape (%s) VALUES (%s)"
					" ON CONFLICT DO NOTHING RETURNING id", names.data, values.data);
}

/* Inserts a row.  The new shape's id, or 0 if there is one of that definition. */
static int64
insert_row(NewRow *row)
{
	static SPIPlanPtr plan;
	Oid			types[ROW_NCOLUMNS];
	bool		isnull;

	for (int i = 0; i < ROW_NCOLUMNS; i++)
		types[i] = row_columns[i].type;
	ecm_spi_run_kept(&plan, plan == NULL ? insert_sql() : "INSERT INTO _electric_cm.shape",
					 SPI_OK_INSERT_RETURNING, ROW_NCOLUMNS, types, row->values, row->nulls);
	return SPI_processed == 0 ? 0 :
		DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
									1, &isnull));
}

/*
 * The handle and id of the shape that has the same definition.  *gone: it has ended, but
 * its row could not be deleted yet.  NULL: the shape can't be seen in this snapshot, or
 * was declared when its table had another name.
 */
static char *
find_same(const NewShape *shape, Datum definition, int64 *id, bool *gone)
{
	static SPIPlanPtr plan;
	Oid			types[] = {OIDOID, OIDOID, BYTEAOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(shape->owner),
		ObjectIdGetDatum(shape->relation), definition,
	CStringGetTextDatum(shape->relation_name)};

	bool		isnull;

	ecm_spi_run_kept(&plan, "SELECT s.handle, s.id, t.state IS NOT DISTINCT FROM 'gone'"
					 " OR EXISTS (SELECT FROM _electric_cm.lost_shape l WHERE l.shape = s.id)"
					 " FROM _electric_cm.shape s"
					 " LEFT JOIN _electric_cm.shape_state t ON t.shape = s.id"
					 " WHERE s.owner = $1 AND s.relation = $2 AND s.definition = $3"
					 " AND s.relation_name = $4",
					 SPI_OK_SELECT, lengthof(types), types, values, NULL);
	if (SPI_processed == 0)
		return NULL;
	*id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
									  2, &isnull));
	*gone = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
									   3, &isnull));
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
}

/*
 * Inserts a shape, or finds the one that has the same definition already, and returns
 * the handle, palloc'd in 'context'.  *created: the new shape's id; 0: there was one.
 * may_replace: a shape that has ended, but still has its row, is deleted first.  Within
 * ecm_spi_begin/end.
 */
static char *
insert_shape(const NewShape *shape, MemoryContext context, int64 *created,
			 bool may_replace)
{
	char	   *handle;
	MemoryContext old;
	NewRow		row;

	/* unique by the clock, and by the hash if several are of the same moment */
	handle = psprintf("%u-" INT64_FORMAT, hash_definition(shape),
					  (int64) (ecm_wall_clock() +
							   (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY));
	fill_row(&row, shape, handle);
	*created = insert_row(&row);
	if (*created == 0)
	{
		int64		id;
		bool		gone = false;
		char	   *found = find_same(shape, row.values[ROW_DEFINITION], &id, &gone);

		if (found != NULL && gone && may_replace)
		{
			ecm_shape_delete(id, "");
			return insert_shape(shape, context, created, false);
		}

		if (found == NULL)
		{
			/*
			 * The table may have been renamed in this transaction, and the
			 * shape with the old name not have ended yet: see to that first.
			 */
			ecm_shapes_verify_names(list_make1_oid(shape->relation), NIL);
			*created = insert_row(&row);
		}
		else
			handle = found;
		if (found == NULL && *created == 0)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not create the shape because of a concurrent one"),
					 errhint("Try again.")));
	}
	if (*created != 0)
		check_max_shapes();
	old = MemoryContextSwitchTo(context);
	handle = pstrdup(handle);
	MemoryContextSwitchTo(old);
	return handle;
}

/*
 * ERROR: the table is not published, and the caller does not own it.  Only the owner may
 * have it published, as every later UPDATE and DELETE on it depends on its replica
 * identity.
 */
static void
report_unpublished(Relation rel)
{
	char	   *table = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												   RelationGetRelationName(rel));

	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("must be owner of table %s", RelationGetRelationName(rel)),
			 errdetail("Table %s is not in publication \"%s\" yet, and only its owner can have it put in.",
					   table, ecm_publication_name),
			 errhint("Let its owner create a shape of it, for which electric_cm_create_shape() has to be granted, or a superuser run: ALTER PUBLICATION %s ADD TABLE %s",
					 quote_identifier(ecm_publication_name), table)));
}

/* Emits the message "create", for the manager. */
static void
tell_created(int64 id, Oid relation, const char *handle)
{
	EcmMessageShape shape = {.id = id};
	EcmStreamMessage message = {.kind = ECM_MESSAGE_CREATE, .shapes = &shape,
	.nshapes = 1, .relation = relation};

	strlcpy(message.handle, handle, sizeof(message.handle));
	ecm_message_emit(&message);
}

/*
 * NOTICE if no stack runs that would create the shape: whoever reads from it would wait.
 * Without an entry nothing is said, as in the transaction of CREATE EXTENSION, whose
 * stack starts after the commit.
 */
static void
warn_if_nothing_runs(void)
{
	EcmStack   *stack = palloc(sizeof(EcmStack));

	if (ecm_own_stack_head(stack) < 0)
	{
		pfree(stack);
		return;
	}
	if (stack->report.status == ECM_STATUS_FAILED)
		ereport(NOTICE,
				(errmsg("the shape is not made before the stack runs, which has failed"),
				 errhint("electric_cm_check() says why. When that is mended: SELECT electric_cm_start()")));
	else if (ecm_stack_is_stopped(stack))
		ereport(NOTICE,
				(errmsg("the shape is not made before the stack runs, which is stopped: %s",
						stack->report.waiting_for),
				 errhint("electric_cm_check() says what is missing; SELECT electric_cm_start() starts a stack that was stopped.")));
	else if (stack->lifecycle.no_worker)
		ereport(NOTICE,
				(errmsg("the shape is not made before the stack runs, which waits for a free background worker slot"),
				 errhint("Raise max_worker_processes and restart the server.")));
	pfree(stack);
}

/* The values of the where clause's parameters. */
static EcmParams
params_arg(FunctionCallInfo fcinfo, int argno)
{
	EcmParams	params = {0};
	ArrayType  *array;
	Datum	   *values;
	bool	   *nulls;

	if (PG_ARGISNULL(argno))
		return params;
	array = PG_GETARG_ARRAYTYPE_P(argno);
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("params must be a one-dimensional array")));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &params.n);
	params.texts = palloc0(Max(params.n, 1) * sizeof(char *));
	for (int i = 0; i < params.n; i++)
		params.texts[i] = nulls[i] ? NULL : TextDatumGetCString(values[i]);
	return params;
}

/*
 * electric_cm_create_shape(relation regclass, where_clause text DEFAULT NULL,
 *							columns text[] DEFAULT NULL, params text[] DEFAULT NULL)
 *		RETURNS text
 *
 * Declares a shape of a table and returns its handle at once; the stack does
 * the work after the caller's transaction has committed.  The same definition
 * by the same owner gives the same handle.
 *
 * where_clause (NULL: all rows) follows the rules of a publication's row
 * filter; columns (NULL: all that are streamed) must include the key's; params are the
 * values of $1, $2 and so on in the where clause, as text.
 *
 * Errors: 55000 not preloaded, the replica identity must be FULL for the where
 * clause, or the key's NOT NULL is NOT VALID; 22004 NULL relation or column; 42809 not a table; 0A000 no key,
 * inheritance parent, not replicated (be it a partition), row-level security, a generated column
 * that is not streamed, or that forbids the replica identity FULL,
 * something in the where clause that may not be there; 42601, 42703, 42804 and
 * others in the where clause; those of ecm_params_replace(), 2202E and 22023 in params; 42703, 42701, 22023, 42P10 in columns; 42501 no
 * SELECT right, or not the table's owner while it is not published yet or has
 * to get another replica identity; 54000 over electric_cm.max_shapes.
 */
Datum
electric_cm_create_shape(PG_FUNCTION_ARGS)
{
	Oid			relid;
	Relation	rel;
	EcmSpiState spi;
	MemoryContext context = CurrentMemoryContext;
	NewShape	shape = {0};
	EcmShapeNeeds needs;
	char	   *handle;
	int64		created;

	ecm_require_shared();
	ecm_require_sql_fit();
	ecm_ddl_apply();			/* in an event trigger, the command is not
								 * over; end older shapes before this one is
								 * there */
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("relation must not be null")));
	relid = PG_GETARG_OID(0);

	rel = try_relation_open(relid, AccessShareLock);
	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	check_relation(rel);
	ecm_check_leaves(relid, AccessShareLock);

	shape.owner = GetUserId();
	lock_owner(shape.owner);
	shape.relation = relid;
	shape.relation_name = ecm_relation_name(relid);
	shape.columns = shape_columns(rel, PG_ARGISNULL(2) ? NULL : PG_GETARG_ARRAYTYPE_P(2));
	if (!PG_ARGISNULL(1))
	{
		EcmParams	params = params_arg(fcinfo, 3);

		shape.filter = ecm_filter_parse(rel, text_to_cstring(PG_GETARG_TEXT_PP(1)),
										&params, &shape.where_attnums);
	}
	else if (!PG_ARGISNULL(3))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("params are for a where clause, and there is none")));
	ecm_check_may_read_columns(relid, shape.owner,
							   bms_union(shape.columns.attnums, shape.where_attnums));
	needs.key = shape.columns.key_attnums;
	needs.where = shape.where_attnums;
	needs.columns = shape.columns.attnums;
	(void) ecm_leaves_to_alter(relid, &needs, shape.owner, AccessShareLock);

	ecm_spi_begin(&spi);
	if (!ecm_is_published(relid))
	{
		char	   *publication = ecm_own_publication_name();

		if (ecm_is_excepted(relid))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table \"%s\" is excepted from publication \"%s\"",
							RelationGetRelationName(rel), publication),
					 errhint("ALTER PUBLICATION %s SET ALL TABLES takes back all its exceptions; list in EXCEPT (TABLE ...) those that are to stay.",
							 quote_identifier(publication))));
		if (ecm_publishes_manually())
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table \"%s\" is not in publication \"%s\"",
							RelationGetRelationName(rel), publication),
					 errhint("ALTER PUBLICATION %s ADD TABLE %s",
							 quote_identifier(publication),
							 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
														RelationGetRelationName(rel)))));
		if (!ecm_table_is_owned(relid, spi.save_userid) && !ecm_was_published(relid))
			report_unpublished(rel);
	}
	handle = insert_shape(&shape, context, &created, true);
	ecm_spi_end(&spi);

	/* the stack is woken by the stream itself, when the transaction commits */
	if (created != 0)
		tell_created(created, relid, handle);

	relation_close(rel, NoLock);
	if (created != 0)
		warn_if_nothing_runs();
	PG_RETURN_TEXT_P(cstring_to_text(handle));
}
