/*-------------------------------------------------------------------------
 *
 * shape_ddl.c
 *	  What DDL does to shapes: noted while a command runs, dealt with after it.
 *
 * object_access_hook is called in the middle of a command, where no SQL may be run, so
 * it only notes what has changed.  The consequences for shapes are looked up as soon
 * as the command is over, and before the next one.  Not at the commit: the stream has
 * each change as the catalogs were when it was made.  If a partition is detached,
 * changed and attached again in one transaction, the changes in between are missing
 * from the parent's shapes.  And a shape that is declared after a command has nothing
 * to do with it.
 *
 * Shapes that other sessions declare meanwhile can't be seen here.  Their creation
 * waits for this transaction, by its lock on the table or by ecm_barrier_hold(), and
 * then sees what it has done.  Some commands take no lock on the table, and to hold
 * the barrier from then on would make all creations wait for a transaction that may
 * last.  For these there is a second look at the commit, behind a barrier that is
 * held from there on only; it spares the shapes that this transaction has declared.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_namespace.h"
#include "catalog/pg_publication_rel.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/partition.h"
#include "base/spi.h"
#include "base/version.h"
#include "hooks/shape_ddl.h"
#include "shape/arrays.h"
#include "shape/barrier_lock.h"
#include "shape/publication.h"
#include "shape/shape_catalog.h"
#include "shape/shape_owner.h"
#include "shape/shape_settings.h"
#include "shape/shape_verify.h"
#include "slot/server_runs.h"

/*
 * The kind of object that a note is about, and so what has to be done; see shape_ddl.h.  In the order in
 * which notes are dealt with: the first reason that ends a shape is told.
 */
typedef enum NoteKind
{
	NOTE_VOID,					/* a table, whose shapes end */
	NOTE_RESYNC,				/* a table, whose shapes are resynced */
	NOTE_TYPE,					/* a type that has changed */
	NOTE_COLUMNS,				/* a table that has lost columns, though it
								 * may have others of the same names by now */
	NOTE_OWNER,					/* a role that is gone */
	NOTE_IDENTITY,				/* a table whose replica identity was set */
	NOTE_PERHAPS,				/* a table, which its shapes are compared with */
	NOTE_PUBLICATION,			/* a publication, perhaps ours */
	NOTE_MEMBER,				/* a row of pg_publication_rel that is new */
	NOTE_PUBLISHED				/* a table; it, or one below it, may not be
								 * published any more */
} NoteKind;

#define NUM_NOTE_KINDS	(NOTE_PUBLISHED + 1)

typedef struct NoteKey
{
	NoteKind	kind;
	Oid			object;
} NoteKey;

typedef struct Note
{
	NoteKey		key;
	const char *reason;			/* a constant, or NULL */
	NameData	name;			/* a publication's, before the change */
	List	   *columns;		/* names of those that were lost */
	SubTransactionId subid;		/* that has made the change first */
} Note;

/* An object that is remembered for longer than the command. */
typedef struct Remembered
{
	Oid			object;
	const char *reason;			/* a constant, or NULL */
	int			level;			/* ddl.statement_level of the command */
	SubTransactionId subid;		/* that has made the change */
} Remembered;

/*
 * All in TopTransactionContext; gone at the end of each transaction, except for
 * the level.  The lists are of Remembered.
 */
static struct
{
	HTAB	   *notes;			/* of Note; NULL: there is none yet */
	List	   *touched;		/* tables of which a column was altered by a
								 * command that is not over yet */

	/* for the look at the commit */
	List	   *renamed_tables; /* tables with shapes: these end only if the
								 * name is another one at the commit */
	List	   *renamed_schemas;	/* likewise */
	List	   *changed_types;
	List	   *unpublished_tables;
	List	   *unpublishers;	/* the tables above unpublished ones that were
								 * altered, so that they are not published */

	int			statement_level;	/* how deep statements are nested now */
}			ddl;

/* More objects than this are held as all of their kind at the commit. */
#define MAX_HOLDS	1000

/* ------------------------------------------------------------- noting -- */

/* Notes an object, if it has not been noted already. */
static Note *
note(NoteKind kind, Oid object, const char *reason)
{
	NoteKey		key;
	Note	   *entry;
	bool		found;

	if (ddl.notes == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(NoteKey), .entrysize = sizeof(Note),
		.hcxt = TopTransactionContext};

		ddl.notes = hash_create("electric_cm changes by DDL", 64, &ctl,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	memset(&key, 0, sizeof(key));
	key.kind = kind;
	key.object = object;
	entry = hash_search(ddl.notes, &key, HASH_ENTER, &found);
	if (!found)
	{
		entry->subid = GetCurrentSubTransactionId();
		memset(&entry->name, 0, sizeof(entry->name));
		entry->columns = NIL;
	}

	/*
	 * The last reason counts: DROP TABLE first drops columns and so on, and
	 * the table last.
	 */
	entry->reason = reason;
	return entry;
}

static List *
remember(List *list, Oid object, const char *reason)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	Remembered *r = palloc(sizeof(Remembered));

	r->object = object;
	r->reason = reason;
	r->level = ddl.statement_level;
	r->subid = GetCurrentSubTransactionId();
	list = lappend(list, r);
	MemoryContextSwitchTo(old);
	return list;
}

static bool
is_remembered(const List *list, Oid object)
{
	ListCell   *lc;

	foreach(lc, list)
	{
		if (((Remembered *) lfirst(lc))->object == object)
			return true;
	}
	return false;
}

static bool
is_table(Oid relid)
{
	char		relkind = get_rel_relkind(relid);

	return relkind == RELKIND_RELATION || relkind == RELKIND_PARTITIONED_TABLE;
}

/*
 * Notes a table; shapes of those that it is a partition of lack what becomes of its rows.
 * Ancestors are looked up now, as after a DROP nobody could tell which they were.
 */
static void
note_with_ancestors(NoteKind kind, Oid relid, const char *reason)
{
	ListCell   *lc;

	/*
	 * Temporary and unlogged tables have no shapes.  A temporary one may be
	 * changed in a read-only transaction, in which nothing can be
	 * invalidated.
	 */
	if (!is_table(relid) || get_rel_persistence(relid) != RELPERSISTENCE_PERMANENT)
		return;
	(void) note(kind, relid, reason);
	foreach(lc, ecm_partition_ancestors(relid))
		(void) note(NOTE_RESYNC, lfirst_oid(lc), reason);
}

void
ecm_ddl_note_void(Oid relid, const char *reason)
{
	note_with_ancestors(NOTE_VOID, relid, reason);
}

void
ecm_ddl_note_resync(Oid relid, const char *reason)
{
	note_with_ancestors(NOTE_RESYNC, relid, reason);
}

/* Unlogged tables, too: the command may have made the table one (SET UNLOGGED). */
void
ecm_ddl_note_perhaps(Oid relid)
{
	if (is_table(relid) && get_rel_persistence(relid) != RELPERSISTENCE_TEMP)
		(void) note(NOTE_PERHAPS, relid, NULL);
}

void
ecm_ddl_note_published(Oid relid)
{
	if (is_table(relid) && get_rel_persistence(relid) != RELPERSISTENCE_TEMP)
		(void) note(NOTE_PUBLISHED, relid, NULL);
}

/* The table that a row of pg_publication_rel is about, if it can be seen. */
static Oid
member_table(Oid member)
{
	HeapTuple	tuple = SearchSysCache1(PUBLICATIONREL, ObjectIdGetDatum(member));
	Oid			relid = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		relid = ((Form_pg_publication_rel) GETSTRUCT(tuple))->prrelid;
		ReleaseSysCache(tuple);
	}
	return relid;
}

/*
 * A row that goes can be seen only now, so its table is noted.  A row that has just come
 * can't be seen yet, so the row itself is noted.
 */
void
ecm_ddl_note_member(Oid member)
{
	Oid			relid = member_table(member);

	if (OidIsValid(relid))
		ecm_ddl_note_published(relid);
	else
		(void) note(NOTE_MEMBER, member, NULL);
}

void
ecm_ddl_note_index(Oid index)
{
	Oid			table = IndexGetRelation(index, true);

	if (OidIsValid(table))
		ecm_ddl_note_perhaps(table);
}

void
ecm_ddl_note_type(Oid type, const char *reason)
{
	(void) note(NOTE_TYPE, type, reason);
}

void
ecm_ddl_note_row_type(Oid relid)
{
	Oid			type = get_rel_type_id(relid);

	if (OidIsValid(type) && get_rel_persistence(relid) == RELPERSISTENCE_PERMANENT)
		ecm_ddl_note_type(type, "the type of a column was changed");
}

void
ecm_ddl_note_identity(Oid relid)
{
	(void) note(NOTE_IDENTITY, relid, NULL);
}

void
ecm_ddl_note_schema(Oid schema)
{
	if (!is_remembered(ddl.renamed_schemas, schema))
		ddl.renamed_schemas = remember(ddl.renamed_schemas, schema, NULL);
}

void
ecm_ddl_note_publication(Oid publication)
{
	Note	   *entry = note(NOTE_PUBLICATION, publication, NULL);
	char	   *name = get_publication_name(publication, true);

	/* as it was before the first change */
	if (NameStr(entry->name)[0] == '\0' && name != NULL)
		namestrcpy(&entry->name, name);
}

void
ecm_ddl_note_published_schema(Oid member)
{
	HeapTuple	tuple = SearchSysCache1(PUBLICATIONNAMESPACE, ObjectIdGetDatum(member));

	if (!HeapTupleIsValid(tuple))
		return;
	ecm_ddl_note_publication(((Form_pg_publication_namespace) GETSTRUCT(tuple))->pnpubid);
	ReleaseSysCache(tuple);
}

void
ecm_ddl_note_owner(Oid role, const char *reason)
{
	(void) note(NOTE_OWNER, role, reason);
}

/* While the column is there still. */
void
ecm_ddl_note_dropped_column(Oid relid, AttrNumber column)
{
	char	   *name = get_attname(relid, column, true);
	Note	   *entry;
	MemoryContext old;

	ecm_ddl_note_perhaps(relid);
	if (name == NULL || !is_table(relid) ||
		get_rel_persistence(relid) != RELPERSISTENCE_PERMANENT)
		return;
	entry = note(NOTE_COLUMNS, relid, NULL);
	old = MemoryContextSwitchTo(TopTransactionContext);
	entry->columns = lappend(entry->columns, pstrdup(name));
	MemoryContextSwitchTo(old);
}

/*
 * Most changes of a column don't matter to shapes (a default, statistics).  A change that
 * does shows in the column's definition, which is compared (perhaps), or rewrites the
 * table, which ecm_ddl_note_altered() sees.
 */
void
ecm_ddl_note_column(Oid relid)
{
	ecm_ddl_note_perhaps(relid);
	if (!is_remembered(ddl.touched, relid))
		ddl.touched = remember(ddl.touched, relid, NULL);
}

/*
 * Compares a table's row in pg_class as it was (by the syscache, which does not have the
 * change yet) with what the command has made of it.  With another file node the table
 * was rewritten: if a column was altered, its values may be others (USING).
 */
void
ecm_ddl_note_altered(Oid relid)
{
	Relation	rel;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;
	HeapTuple	before;

	if (!is_table(relid))
		return;
	ecm_ddl_note_perhaps(relid);
	before = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	if (!HeapTupleIsValid(before))
		return;
	rel = table_open(RelationRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_class_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(rel, ClassOidIndexId, true, SnapshotSelf, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_class was = (Form_pg_class) GETSTRUCT(before);
		Form_pg_class is = (Form_pg_class) GETSTRUCT(tuple);

		if (was->relnamespace != is->relnamespace)
			ecm_ddl_note_published(relid);
		if (was->relfilenode != is->relfilenode && is_remembered(ddl.touched, relid))
			ecm_ddl_note_resync(relid, "the table's columns were changed");
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	ReleaseSysCache(before);
}

/* ------------------------------------------------------ dealing with it -- */

/*
 * While our own script runs, the tables of ours may be half made or half
 * altered, and it changes nobody else's; pg_upgrade makes the extension's objects
 * one by one, without shapes.  Of an extension that we don't know nobody can say
 * what a change does to its shapes, so they are resynced at the next start of a stack;
 * nobody's command fails for it.
 */
bool
ecm_ddl_has_extension(void)
{
	Oid			extension = get_extension_oid("electric_cm", true);

	if (!OidIsValid(extension) || IsBinaryUpgrade ||
		(creating_extension && CurrentExtensionObject == extension))
		return false;
	if (ecm_sql_fit() == ECM_SQL_FITS)
		return true;
	ecm_run_mark_unseen();
	return false;
}

/* Notes that are to be dealt with. */
typedef struct Pending
{
	List	   *objects[NUM_NOTE_KINDS];	/* OIDs, by kind */
	List	   *reasons[NUM_NOTE_KINDS];	/* theirs; NULL for most kinds */
	List	   *columns;		/* of NOTE_COLUMNS: lists of names */
	bool		publication;	/* one of the publications is ours */
} Pending;

/* Does the publication have our name, or had it before the command? */
static bool
is_own_publication(const Note *entry, const char *own)
{
	char	   *name = get_publication_name(entry->key.object, true);

	return strcmp(NameStr(entry->name), own) == 0 ||
		(name != NULL && strcmp(name, own) == 0);
}

/*
 * Collects all notes.  Those of this subtransaction are taken; those of its parents stay,
 * to be dealt with once more when it has ended: if it is rolled back, so is what was
 * done about them in it.
 */
static void
take_notes(Pending *pending)
{
	SubTransactionId subid = GetCurrentSubTransactionId();
	HASH_SEQ_STATUS seq;
	Note	   *entry;
	char	   *own = NULL;

	memset(pending, 0, sizeof(*pending));
	hash_seq_init(&seq, ddl.notes);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		NoteKind	kind = entry->key.kind;

		if (kind == NOTE_PUBLICATION)
		{
			if (own == NULL)
				own = ecm_own_publication_name();
			pending->publication |= is_own_publication(entry, own);
		}
		if (kind == NOTE_COLUMNS)
			pending->columns = lappend(pending->columns, list_copy(entry->columns));
		pending->objects[kind] = lappend_oid(pending->objects[kind], entry->key.object);
		pending->reasons[kind] = lappend(pending->reasons[kind],
										 unconstify(char *, entry->reason));
		if (entry->subid == subid)
			(void) hash_search(ddl.notes, &entry->key, HASH_REMOVE, NULL);
	}
}

static void
resync_tables(List *relids, const char *reason)
{
	Oid			type = OIDARRAYOID;
	Datum		value = ecm_array_of_oid_list(relids);
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	(void) ecm_shapes_resync("relation = ANY ($1)", 1, &type, &value, NULL, reason);
	ecm_spi_end(&spi);
}

/*
 * Deals with the shapes of tables noted as void, or for a resync, all those with one
 * reason at once.  Reasons are constants, so pointers tell them apart.
 */
static void
apply_tables(const Pending *pending, NoteKind kind)
{
	List	   *told = NIL;
	ListCell   *lc;
	ListCell   *lc2;
	ListCell   *lc3;

	foreach(lc, pending->reasons[kind])
	{
		List	   *relids = NIL;

		if (list_member_ptr(told, lfirst(lc)))
			continue;
		told = lappend(told, lfirst(lc));
		forboth(lc2, pending->objects[kind], lc3, pending->reasons[kind])
		{
			if (lfirst(lc3) == lfirst(lc))
				relids = lappend_oid(relids, lfirst_oid(lc2));
		}
		relids = ecm_tables_with_shapes(relids);
		if (relids == NIL)
			continue;
		if (kind == NOTE_VOID)
			(void) ecm_shapes_invalidate(relids, lfirst(lc));
		else
			resync_tables(relids, lfirst(lc));
	}
}

/* Invalidates shapes with columns of these types; remembers the types. */
static void
apply_types(const Pending *pending)
{
	ListCell   *lc;
	ListCell   *lc2;

	forboth(lc, pending->objects[NOTE_TYPE], lc2, pending->reasons[NOTE_TYPE])
	{
		Oid			type = lfirst_oid(lc);
		char		relkind = get_rel_relkind(get_typ_typrelid(type));

		/*
		 * Every table has a row type, which hardly ever is a column's type.
		 * One that no shape has is not worth a barrier at the commit.
		 */
		if ((ecm_shapes_type_changed(type, lfirst(lc2)) ||
			 (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)) &&
			!is_remembered(ddl.changed_types, type))
			ddl.changed_types = remember(ddl.changed_types, type, lfirst(lc2));
	}
}

/*
 * Shapes that have, or select by, a column which was dropped.  If there is another one of
 * that name by now, a comparison of definitions does not tell.
 */
static void
apply_columns(const Pending *pending)
{
	ListCell   *lc;
	ListCell   *lc2;

	forboth(lc, pending->objects[NOTE_COLUMNS], lc2, pending->columns)
	{
		Oid			types[] = {OIDOID, TEXTARRAYOID};
		Datum		values[2] = {ObjectIdGetDatum(lfirst_oid(lc)), (Datum) 0};
		List	   *list = lfirst(lc2);
		char	  **names = palloc(sizeof(char *) * (list_length(list) + 1));
		int			n = 0;
		ListCell   *lc3;
		EcmSpiState spi;

		if (ecm_tables_with_shapes(list_make1_oid(lfirst_oid(lc))) == NIL)
			continue;
		foreach(lc3, list)
			names[n++] = lfirst(lc3);
		ecm_spi_begin(&spi);
		values[1] = ecm_array_of_names(names, n);
		(void) ecm_shapes_resync("relation = $1 AND (column_names && $2 OR where_names && $2)",
								 2, types, values, NULL, "the table's columns were changed");
		ecm_spi_end(&spi);
	}
}

static void
apply_owners(const Pending *pending)
{
	ListCell   *lc;
	ListCell   *lc2;

	forboth(lc, pending->objects[NOTE_OWNER], lc2, pending->reasons[NOTE_OWNER])
		ecm_shapes_invalidate_owner(lfirst_oid(lc), lfirst(lc2));
}

/*
 * Has shapes resynced whose tables are not published any more as they have to be.
 * A change of our publication itself concerns all tables, and is held at once, as
 * that is rare.
 */
static void
apply_publication(const Pending *pending)
{
	List	   *relids = pending->objects[NOTE_PUBLISHED];
	List	   *above = NIL;
	ListCell   *lc;

	foreach(lc, pending->objects[NOTE_MEMBER])
	{
		Oid			relid = member_table(lfirst_oid(lc));

		if (OidIsValid(relid))
			relids = list_append_unique_oid(relids, relid);
	}
	if (pending->publication)
	{
		ecm_barrier_hold(PublicationRelationId, InvalidOid);
		ecm_shapes_verify_publication();
	}
	if (relids == NIL)
		return;
	foreach(lc, relids)
	{
		if (get_rel_relkind(lfirst_oid(lc)) == RELKIND_PARTITIONED_TABLE)
			ecm_tell_published_below(lfirst_oid(lc));
	}
	foreach(lc, ecm_shapes_verify_published(relids, &above))
		ddl.unpublished_tables = remember(ddl.unpublished_tables, lfirst_oid(lc), NULL);
	foreach(lc, above)
	{
		if (!is_remembered(ddl.unpublishers, lfirst_oid(lc)))
			ddl.unpublishers = remember(ddl.unpublishers, lfirst_oid(lc), NULL);
	}
}

/* Invalidates shapes that their tables don't fit any more; remembers new names. */
static void
apply_perhaps(const Pending *pending)
{
	List	   *renamed;
	ListCell   *lc;

	if (pending->objects[NOTE_PERHAPS] == NIL)
		return;
	renamed = ecm_shapes_verify(pending->objects[NOTE_PERHAPS], pending->objects[NOTE_RESYNC],
								pending->objects[NOTE_IDENTITY]);
	foreach(lc, renamed)
	{
		if (!is_remembered(ddl.renamed_tables, lfirst_oid(lc)))
			ddl.renamed_tables = remember(ddl.renamed_tables, lfirst_oid(lc), NULL);
	}
}

void
ecm_ddl_apply(void)
{
	bool		read_only = XactReadOnly;
	MemoryContext context;
	MemoryContext old;
	Pending		pending;

	if (ddl.notes == NULL || hash_get_num_entries(ddl.notes) == 0 || !IsTransactionState())
		return;

	CommandCounterIncrement();
	if (!ecm_ddl_has_extension())
	{
		/* free them now: a transaction may have very many statements */
		hash_destroy(ddl.notes);
		ecm_ddl_forget();
		return;
	}
	context = AllocSetContextCreate(CurrentMemoryContext, "electric_cm DDL",
									ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);

	/*
	 * The transaction may be read-only by now (SET TRANSACTION READ ONLY
	 * after the command), or the command be allowed in such a one (VACUUM
	 * FULL).
	 */
	XactReadOnly = false;
	PushActiveSnapshot(GetTransactionSnapshot());
	take_notes(&pending);
	apply_tables(&pending, NOTE_VOID);
	apply_tables(&pending, NOTE_RESYNC);
	apply_types(&pending);
	apply_columns(&pending);
	apply_owners(&pending);
	apply_perhaps(&pending);
	apply_publication(&pending);
	PopActiveSnapshot();
	XactReadOnly = read_only;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	CommandCounterIncrement();
}

static List *
objects_of(const List *remembered)
{
	List	   *objects = NIL;
	ListCell   *lc;

	foreach(lc, remembered)
		objects = lappend_oid(objects, ((Remembered *) lfirst(lc))->object);
	return objects;
}

/*
 * Holds the barrier for each object by itself, so that a transaction that is prepared
 * holds up only creations that it concerns.  Of many objects, for all of the kind: the
 * server's table of locks has limited room.
 */
static void
hold_all(Oid catalog, const List *remembered)
{
	ListCell   *lc;

	if (list_length(remembered) > MAX_HOLDS)
		ecm_barrier_hold(catalog, InvalidOid);
	else
		foreach(lc, remembered)
			ecm_barrier_hold(catalog, ((Remembered *) lfirst(lc))->object);
}

/*
 * First the barrier is held, then shapes are looked for: a creation that is not seen
 * here comes to the barrier later, and waits for the end of this transaction.
 */
static void
look_again_at_commit(void)
{
	List	   *schemas = objects_of(ddl.renamed_schemas);
	ListCell   *lc;

	hold_all(NamespaceRelationId, ddl.renamed_schemas);
	hold_all(TypeRelationId, ddl.changed_types);
	hold_all(PublicationRelationId, ddl.unpublishers);

	ecm_shapes_verify_names(objects_of(ddl.renamed_tables), schemas);
	foreach(lc, ddl.changed_types)
	{
		Remembered *r = lfirst(lc);

		(void) ecm_shapes_type_changed(r->object, r->reason);
	}
	ecm_shapes_resync_unpublished(objects_of(ddl.unpublished_tables));
}

/*
 * Names are compared only here: a table that has its name back by the commit keeps its
 * shapes.  (Entries have the name that the shape was declared with.)
 */
void
ecm_ddl_apply_at_commit(void)
{
	bool		read_only = XactReadOnly;

	ecm_ddl_apply();
	if (ddl.renamed_tables == NIL && ddl.renamed_schemas == NIL && ddl.changed_types == NIL &&
		ddl.unpublished_tables == NIL)
		return;
	CommandCounterIncrement();
	if (ecm_ddl_has_extension())
	{
		XactReadOnly = false;
		PushActiveSnapshot(GetTransactionSnapshot());
		look_again_at_commit();
		PopActiveSnapshot();
		XactReadOnly = read_only;
	}
	ecm_ddl_forget();
}

/* ---------------------------------------------------- ends and levels -- */

void
ecm_ddl_enter_statement(void)
{
	ddl.statement_level++;
}

/* Forgets which columns the statement has altered: a later rewrite is another's. */
void
ecm_ddl_leave_statement(void)
{
	ListCell   *lc;

	foreach(lc, ddl.touched)
	{
		if (((Remembered *) lfirst(lc))->level >= ddl.statement_level)
			ddl.touched = foreach_delete_current(ddl.touched, lc);
	}
	ddl.statement_level--;
}

void
ecm_ddl_forget(void)
{
	ddl.notes = NULL;
	ddl.touched = ddl.renamed_tables = ddl.renamed_schemas = NIL;
	ddl.changed_types = ddl.unpublished_tables = ddl.unpublishers = NIL;
}

static List *
end_remembered(List *list, SubTransactionId subid, SubTransactionId parent,
			   bool committed)
{
	ListCell   *lc;

	foreach(lc, list)
	{
		Remembered *r = lfirst(lc);

		if (r->subid != subid)
			continue;
		if (committed)
			r->subid = parent;
		else
			list = foreach_delete_current(list, lc);
	}
	return list;
}

/*
 * Notes of a subtransaction that is rolled back are forgotten; of one that commits, they
 * become its parent's.
 */
void
ecm_ddl_subxact_end(SubTransactionId subid, SubTransactionId parent,
					bool committed)
{
	HASH_SEQ_STATUS seq;
	Note	   *entry;

	ddl.touched = end_remembered(ddl.touched, subid, parent, committed);
	ddl.renamed_tables = end_remembered(ddl.renamed_tables, subid, parent, committed);
	ddl.renamed_schemas = end_remembered(ddl.renamed_schemas, subid, parent, committed);
	ddl.changed_types = end_remembered(ddl.changed_types, subid, parent, committed);
	ddl.unpublished_tables = end_remembered(ddl.unpublished_tables, subid, parent, committed);
	ddl.unpublishers = end_remembered(ddl.unpublishers, subid, parent, committed);
	if (ddl.notes == NULL || hash_get_num_entries(ddl.notes) == 0)
		return;
	hash_seq_init(&seq, ddl.notes);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		if (entry->subid != subid)
			continue;
		if (committed)
			entry->subid = parent;
		else
			(void) hash_search(ddl.notes, &entry->key, HASH_REMOVE, NULL);
	}
}
