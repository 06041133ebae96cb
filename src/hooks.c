/*-------------------------------------------------------------------------
 *
 * hooks.c
 *	  What other people's commands mean for the stacks of this server.
 *
 * TRUNCATE, and DDL that changes a table's columns, invalidate the table's
 * shapes in the command's own transaction: an ALTER COLUMN TYPE ... USING
 * rewrites every row and the stream shows nothing of it.
 *
 * object_access_hook is called in the middle of the command, where running SQL
 * is out of the question, so it only notes the table; the shapes are deleted
 * just before the transaction commits or is prepared.  Databases that come and
 * go, and the extension's end, make the launcher look again after the commit.
 *
 * However the extension is dropped (DROP SCHEMA ... CASCADE and DROP OWNED do
 * it as well), its table goes with it: the last moment to read which slot the
 * stack has created.  The slot goes after the commit, since that can't be
 * rolled back; the publication depends on the extension and goes by itself.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/objectaccess.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_rel.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "hooks.h"
#include "settings.h"
#include "shape.h"
#include "shmem.h"
#include "wal.h"

/* A table that was changed in this transaction. */
typedef struct ChangedTable
{
	Oid			relid;			/* the table or one of its ancestors */
	const char *reason;			/* a constant */
	SubTransactionId subid;		/* where it happened */
} ChangedTable;

/* Our extension was dropped in this transaction. */
typedef struct DroppedExtension
{
	NameData	slot_name;		/* empty: it has left none */
	SubTransactionId subid;		/* where it happened */
} DroppedExtension;

/* In TopTransactionContext; reset at the end of each transaction. */
static List *changed_tables = NIL;
static List *dropped_extensions = NIL;	/* usually one */
static bool look_again = false; /* databases, the extension or a publication
								 * changed */
static bool publication_altered = false;	/* some publication was */

static object_access_hook_type next_object_access_hook = NULL;

static void
note_table(Oid relid, const char *reason)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	SubTransactionId subid = GetCurrentSubTransactionId();
	ListCell   *lc;
	ChangedTable *changed;

	foreach(lc, changed_tables)
	{
		changed = lfirst(lc);
		if (changed->relid == relid && changed->subid == subid)
		{
			/* of what a DROP TABLE does, it is the last that says so */
			changed->reason = reason;
			MemoryContextSwitchTo(old);
			return;
		}
	}
	changed = palloc(sizeof(ChangedTable));
	changed->relid = relid;
	changed->reason = reason;
	changed->subid = subid;
	changed_tables = lappend(changed_tables, changed);
	MemoryContextSwitchTo(old);
}

/*
 * A partition's change is a change of its ancestors' shapes, too.  They must
 * be looked up now: a DROP takes that knowledge away.
 */
static void
note_table_and_ancestors(Oid relid, const char *reason)
{
	char		relkind = get_rel_relkind(relid);
	ListCell   *lc;

	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		return;

	/* has no shapes, and may be changed in a read-only transaction */
	if (get_rel_persistence(relid) != RELPERSISTENCE_PERMANENT)
		return;
	note_table(relid, reason);
	if (get_rel_relispartition(relid))
		foreach(lc, get_partition_ancestors(relid))
			note_table(lfirst_oid(lc), reason);
}

/*
 * A table leaves a publication; if it is ours, its changes stop coming.
 */
static void
note_publication_member(Oid object_id)
{
	HeapTuple	tuple = SearchSysCache1(PUBLICATIONREL, ObjectIdGetDatum(object_id));
	Form_pg_publication_rel member;
	char	   *publication;

	if (!HeapTupleIsValid(tuple))
		return;
	member = (Form_pg_publication_rel) GETSTRUCT(tuple);
	publication = get_publication_name(member->prpubid, true);
	if (publication != NULL && strcmp(publication, ecm_publication_name) == 0)
		note_table_and_ancestors(member->prrelid, "the table has left the publication");
	ReleaseSysCache(tuple);
}

/* ------------------------------------------------- the extension's end -- */

/* The slot that this database's stack says it has created, "" if none. */
static void
read_created_slot(Oid stack_table, NameData *slot_name)
{
	Relation	rel = table_open(stack_table, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	HeapTuple	tuple = heap_getnext(scan, ForwardScanDirection);
	AttrNumber	column = get_attnum(stack_table, "slot_name");

	memset(slot_name, 0, sizeof(*slot_name));
	if (HeapTupleIsValid(tuple) && column != InvalidAttrNumber)
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, column, RelationGetDescr(rel), &isnull);

		if (!isnull)
			namestrcpy(slot_name, NameStr(*DatumGetName(value)));
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
}

/*
 * The slot of the default name is ours even if nobody has come to record it;
 * one that is named in the settings may have been made by the user.
 */
static void
find_slot_to_drop(Oid stack_table, NameData *slot_name)
{
	EcmSlotFacts facts;

	read_created_slot(stack_table, slot_name);
	if (NameStr(*slot_name)[0] == '\0' && ecm_slot_name[0] == '\0')
		namestrcpy(slot_name, ecm_effective_slot_name(get_database_name(MyDatabaseId)));
	if (NameStr(*slot_name)[0] != '\0' &&
		(!ecm_slot_lookup(NameStr(*slot_name), &facts) || !facts.logical ||
		 facts.temporary || facts.database != MyDatabaseId ||
		 strcmp(facts.plugin, "pgoutput") != 0))
		memset(slot_name, 0, sizeof(*slot_name));
}

/* Is it _electric_cm.stack, which goes only together with the extension? */
static bool
is_stack_table(Oid relid)
{
	char	   *relation = get_rel_name(relid);
	char	   *schema;
	char	   *extension;

	if (relation == NULL || strcmp(relation, "stack") != 0)
		return false;
	schema = get_namespace_name(get_rel_namespace(relid));
	if (schema == NULL || strcmp(schema, "_electric_cm") != 0)
		return false;
	extension = get_extension_name(getExtensionOfObject(RelationRelationId, relid));
	return extension != NULL && strcmp(extension, "electric_cm") == 0;
}

static void
note_dropped_extension(Oid stack_table)
{
	MemoryContext old;
	DroppedExtension *dropped;

	if (ecm_shared == NULL)
		return;
	old = MemoryContextSwitchTo(TopTransactionContext);
	dropped = palloc(sizeof(DroppedExtension));
	dropped->subid = GetCurrentSubTransactionId();
	find_slot_to_drop(stack_table, &dropped->slot_name);
	dropped_extensions = lappend(dropped_extensions, dropped);
	MemoryContextSwitchTo(old);

	if (NameStr(dropped->slot_name)[0] != '\0')
		ereport(NOTICE,
				(errmsg("replication slot \"%s\" will be dropped after commit",
						NameStr(dropped->slot_name))));
}

static void
on_object_access(ObjectAccessType access, Oid class_id, Oid object_id,
				 int sub_id, void *arg)
{
	if (next_object_access_hook)
		next_object_access_hook(access, class_id, object_id, sub_id, arg);

	if (class_id == RelationRelationId && object_id >= FirstNormalObjectId)
	{
		if (access == OAT_TRUNCATE)
			note_table_and_ancestors(object_id, "the table was truncated");
		else if (access == OAT_DROP && sub_id == 0)
		{
			note_table_and_ancestors(object_id, "the table was dropped");
			if (is_stack_table(object_id))
				note_dropped_extension(object_id);
		}
		else if (sub_id != 0 &&
				 (access == OAT_DROP || access == OAT_POST_CREATE ||
				  access == OAT_POST_ALTER))
			note_table_and_ancestors(object_id, "the table's columns were changed");
	}
	else if (class_id == InheritsRelationId && access == OAT_POST_ALTER)
		note_table_and_ancestors(((ObjectAccessPostAlter *) arg)->auxiliary_id,
								 "partitions were attached or detached");
	else if (class_id == PublicationRelationId)
	{
		if (access == OAT_POST_ALTER)
			publication_altered = true;
		look_again = true;
	}
	else if (class_id == PublicationRelRelationId)
	{
		if (access == OAT_DROP)
			note_publication_member(object_id);
		look_again = true;		/* it may filter rows or columns now */
	}
	else if (class_id == DatabaseRelationId || class_id == ExtensionRelationId)
	{
		if (access == OAT_POST_CREATE || access == OAT_DROP ||
			access == OAT_POST_ALTER)
			look_again = true;
	}
}

/*
 * Does our publication still publish all kinds of changes?  Where it doesn't,
 * even for a moment, changes are missing from the stream.
 */
static bool
publishes_everything(void)
{
	Publication *publication = GetPublicationByName(ecm_publication_name, true);

	return publication == NULL || /* noticed in the stream */
		(publication->pubactions.pubinsert && publication->pubactions.pubupdate &&
		 publication->pubactions.pubdelete && publication->pubactions.pubtruncate);
}

/*
 * Deletes the shapes of the tables that were changed.  Runs as the last thing
 * before the commit, so everything that the transaction did is known.
 */
static void
invalidate_shapes(void)
{
	List	   *tables = changed_tables;
	bool		check_publication = publication_altered;
	ListCell   *lc;

	changed_tables = NIL;
	publication_altered = false;
	if ((tables == NIL && !check_publication) || creating_extension ||
		!OidIsValid(get_extension_oid("electric_cm", true)))
		return;

	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	foreach(lc, tables)
	{
		ChangedTable *changed = lfirst(lc);

		(void) ecm_shapes_invalidate(changed->relid, changed->reason);
	}
	if (check_publication && !publishes_everything())
		(void) ecm_shapes_invalidate(InvalidOid,
									 "the publication does not publish everything any more");
	PopActiveSnapshot();
}

/*
 * The launcher looks for databases, this database's manager for the extension.
 */
static void
request_look(void)
{
	ListCell   *lc;
	int			index;

	foreach(lc, dropped_extensions)
	{
		DroppedExtension *dropped = lfirst(lc);

		if (NameStr(dropped->slot_name)[0] != '\0')
			ecm_abandon_slot(MyDatabaseId, NameStr(dropped->slot_name));
	}

	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->rescan_requested = true;
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0)
	{
		EcmStack   *stack = &ecm_shared->stacks[index];

		stack->check_requested = true;
		if (dropped_extensions != NIL && stack->pid == 0)
		{
			/* nobody runs who could notice: the launcher has another look */
			stack->stop_requested = false;
			stack->reprobe_requested = true;
		}
	}
	ecm_unlock();
	ecm_launcher_wake();
	if (index >= 0)
		ecm_stack_wake(index);
}

static void
on_xact_event(XactEvent event, void *arg pg_attribute_unused())
{
	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			/* nobody would be told of COMMIT PREPARED */
			if (dropped_extensions != NIL)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot PREPARE a transaction that has dropped the extension electric_cm")));
			/* FALLTHROUGH */
		case XACT_EVENT_PRE_COMMIT:
			invalidate_shapes();
			break;
		case XACT_EVENT_COMMIT:
			if ((look_again || dropped_extensions != NIL) && ecm_shared != NULL)
				request_look();
			/* FALLTHROUGH */
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			changed_tables = NIL;
			publication_altered = false;
			look_again = false;
			dropped_extensions = NIL;
			break;
		default:
			break;
	}
}

/*
 * What a rolled-back subtransaction did has not happened.
 */
static void
on_subxact_event(SubXactEvent event, SubTransactionId subid,
				 SubTransactionId parent,
				 void *arg pg_attribute_unused())
{
	ListCell   *lc;

	if (event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB)
		return;
	foreach(lc, changed_tables)
	{
		ChangedTable *changed = lfirst(lc);

		if (changed->subid != subid)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			changed->subid = parent;
		else
			changed_tables = foreach_delete_current(changed_tables, lc);
	}
	foreach(lc, dropped_extensions)
	{
		DroppedExtension *dropped = lfirst(lc);

		if (dropped->subid != subid)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			dropped->subid = parent;
		else
			dropped_extensions = foreach_delete_current(dropped_extensions, lc);
	}
}

void
ecm_hooks_init(void)
{
	next_object_access_hook = object_access_hook;
	object_access_hook = on_object_access;
	RegisterXactCallback(on_xact_event, NULL);
	RegisterSubXactCallback(on_subxact_event, NULL);
}
