/*-------------------------------------------------------------------------
 *
 * hooks.c
 *	  What other people's commands mean for the stacks of this server.
 *
 * TRUNCATE, and DDL that changes a table's columns, invalidate the table's
 * shapes in the command's own transaction: an ALTER COLUMN TYPE ... USING
 * rewrites every row and the stream shows nothing of it.  Where the command
 * alone does not tell whether it matters (a change of the replica identity, of
 * a name, of row-level security), the shapes are compared with what the table
 * has become.
 *
 * object_access_hook is called in the middle of the command, where running SQL
 * is out of the question, so it only notes what has changed; the shapes are
 * dealt with just before the transaction commits or is prepared.  Some commands
 * call it not at all, so their statements are looked at, too, once they have
 * run.  Databases that come and go, and the extension's end, make the launcher
 * look again after the commit.
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
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/partition.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_namespace.h"
#include "catalog/pg_publication_rel.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "parser/parse_type.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "hooks.h"
#include "server_runs.h"
#include "settings.h"
#include "shape.h"
#include "shape_barrier.h"
#include "shmem.h"
#include "wal.h"

/* What happened in this transaction that concerns shapes. */
typedef enum ChangeKind
{
	CHANGE_TABLE,				/* its shapes, or a partition's, are void */
	CHANGE_TABLE_PERHAPS,		/* they may be: verify */
	CHANGE_SCHEMA,				/* a schema's name: likewise, of its tables */
	CHANGE_TYPE,				/* of a column, perhaps: values look different */
	CHANGE_ROLE					/* is no more */
} ChangeKind;

typedef struct Change
{
	ChangeKind	kind;
	Oid			object;
	const char *reason;			/* a constant, or NULL */
	SubTransactionId subid;		/* where it happened */
} Change;

/* Our extension was dropped in this transaction. */
typedef struct DroppedExtension
{
	NameData	slot_name;		/* empty: it has left none */
	SubTransactionId subid;		/* where it happened */
} DroppedExtension;

/* In TopTransactionContext; reset at the end of each transaction. */
static List *changes = NIL;
static List *dropped_extensions = NIL;	/* usually one */
static bool look_again = false; /* databases, the extension or a publication
								 * changed */
static bool publication_altered = false;	/* some publication was */
static bool publishing_changed = false; /* what is published, by way of an
									 * ancestor, a schema or all tables, may
									 * have become less */

static object_access_hook_type next_object_access_hook = NULL;
static ProcessUtility_hook_type next_process_utility = NULL;

static void
note(ChangeKind kind, Oid object, const char *reason)
{
	SubTransactionId subid = GetCurrentSubTransactionId();
	MemoryContext old;
	ListCell   *lc;
	Change	   *change;

	foreach(lc, changes)
	{
		change = lfirst(lc);
		if (change->kind == kind && change->object == object &&
			change->subid == subid)
		{
			/* of what a DROP TABLE does, it is the last that says so */
			change->reason = reason;
			return;
		}
	}
	old = MemoryContextSwitchTo(TopTransactionContext);
	change = palloc(sizeof(Change));
	change->kind = kind;
	change->object = object;
	change->reason = reason;
	change->subid = subid;
	changes = lappend(changes, change);
	MemoryContextSwitchTo(old);
}

/* Other tables have no shapes, and may be changed in a read-only transaction. */
static bool
may_have_shapes(Oid relid)
{
	char		relkind = get_rel_relkind(relid);

	return (relkind == RELKIND_RELATION || relkind == RELKIND_PARTITIONED_TABLE) &&
		get_rel_persistence(relid) == RELPERSISTENCE_PERMANENT;
}

/*
 * A partition's change is a change of its ancestors' shapes, too.  They must
 * be looked up now: a DROP takes that knowledge away.
 */
static void
note_table_and_ancestors(Oid relid, const char *reason)
{
	ListCell   *lc;

	if (!may_have_shapes(relid))
		return;
	note(CHANGE_TABLE, relid, reason);
	if (get_rel_relispartition(relid))
		foreach(lc, get_partition_ancestors(relid))
			note(CHANGE_TABLE, lfirst_oid(lc), reason);
}

/* Not only permanent ones: that may be what has changed. */
static void
note_table_perhaps(Oid relid)
{
	char		relkind = get_rel_relkind(relid);

	if ((relkind == RELKIND_RELATION || relkind == RELKIND_PARTITIONED_TABLE) &&
		get_rel_persistence(relid) != RELPERSISTENCE_TEMP)
		note(CHANGE_TABLE_PERHAPS, relid, NULL);
}

/* Every table has a type, which may be that of another table's column. */
static void
note_row_type(Oid relid)
{
	Oid			type = get_rel_type_id(relid);

	if (OidIsValid(type) && get_rel_persistence(relid) == RELPERSISTENCE_PERMANENT)
		note(CHANGE_TYPE, type, "the type of a column was changed");
}

/* An index may be the table's key, or its replica identity. */
static void
note_index(Oid index)
{
	Oid			table = IndexGetRelation(index, true);

	if (OidIsValid(table))
		note_table_perhaps(table);
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
on_relation_access(ObjectAccessType access, Oid relid, int column)
{
	char		relkind = get_rel_relkind(relid);

	if (relkind == RELKIND_INDEX || relkind == RELKIND_PARTITIONED_INDEX)
	{
		if (access == OAT_DROP)
		{
			note_index(relid);
			ecm_unpublish_note_index(relid);
		}
	}
	else if (access == OAT_TRUNCATE)
		note_table_and_ancestors(relid, "the table was truncated");
	else if (access == OAT_DROP && column == 0)
	{
		note_table_and_ancestors(relid, "the table was dropped");
		if (is_stack_table(relid))
			note_dropped_extension(relid);
	}
	else if (column != 0 &&
			 (access == OAT_DROP || access == OAT_POST_CREATE ||
			  access == OAT_POST_ALTER))
	{
		note_table_and_ancestors(relid, "the table's columns were changed");
		note_row_type(relid);
	}
	else if (access == OAT_POST_ALTER)
	{
		note_table_perhaps(relid);
		if (relkind == RELKIND_PARTITIONED_TABLE)
			publishing_changed = true;	/* in another schema now? */
	}
}

static void
on_object_access(ObjectAccessType access, Oid class_id, Oid object_id,
				 int sub_id, void *arg)
{
	if (next_object_access_hook)
		next_object_access_hook(access, class_id, object_id, sub_id, arg);

	if (class_id == RelationRelationId && object_id >= FirstNormalObjectId)
		on_relation_access(access, object_id, sub_id);
	else if (class_id == IndexRelationId && access == OAT_POST_ALTER)
		note_index(object_id);
	else if (class_id == InheritsRelationId && access == OAT_POST_ALTER)
	{
		note_table_and_ancestors(((ObjectAccessPostAlter *) arg)->auxiliary_id,
								 "partitions were attached or detached");
		note_table_perhaps(object_id);
		ecm_unpublish_note(object_id);
		publishing_changed = true;	/* with its parent only? */
	}
	else if (class_id == NamespaceRelationId && access == OAT_POST_ALTER)
		note(CHANGE_SCHEMA, object_id, NULL);
	else if (class_id == AuthIdRelationId && access == OAT_DROP)
		note(CHANGE_ROLE, object_id, "its owner was dropped");
	else if (class_id == PublicationRelationId)
	{
		if (access == OAT_POST_ALTER)
			publication_altered = publishing_changed = true;
		look_again = true;
	}
	else if (class_id == PublicationRelRelationId && !ecm_is_unpublishing)
	{
		if (access == OAT_DROP)
		{
			note_publication_member(object_id);
			publishing_changed = true;
		}
		look_again = true;		/* it may filter rows or columns now */
	}
	else if (class_id == PublicationNamespaceRelationId && access == OAT_DROP)
		publishing_changed = true;
	else if (class_id == DatabaseRelationId || class_id == ExtensionRelationId)
	{
		if (access == OAT_POST_CREATE || access == OAT_DROP ||
			access == OAT_POST_ALTER)
			look_again = true;
	}
}

static void
apply_change(const Change *change)
{
	switch (change->kind)
	{
		case CHANGE_TABLE:
			(void) ecm_shapes_invalidate(change->object, change->reason);
			break;
		case CHANGE_TABLE_PERHAPS:
			ecm_shapes_verify(change->object);
			break;
		case CHANGE_SCHEMA:
			ecm_shapes_verify_schema(change->object);
			break;
		case CHANGE_TYPE:
			ecm_shapes_invalidate_type(change->object, change->reason);
			break;
		case CHANGE_ROLE:
			ecm_shapes_invalidate_owner(change->object, change->reason);
			break;
	}
}

/*
 * A shape that is being created now is not seen here: its creation waits for
 * our end, and sees what we did.  Where we have a lock on its table it does so
 * anyway.
 */
static void
hold_barriers(List *what, bool publishing)
{
	bool		types = false;
	ListCell   *lc;

	foreach(lc, what)
	{
		const Change *change = lfirst(lc);

		if (change->kind == CHANGE_SCHEMA)
			ecm_barrier_hold(NamespaceRelationId, change->object);
		types |= change->kind == CHANGE_TYPE;
	}
	if (types)
		ecm_barrier_hold(TypeRelationId, InvalidOid);
	if (publishing)
		ecm_barrier_hold(PublicationRelationId, InvalidOid);
}

/*
 * Deletes the shapes that can't go on.  Runs as the last thing before the
 * commit, so everything that the transaction did is known.
 */
static void
invalidate_shapes(void)
{
	List	   *what;
	bool		altered;
	bool		publishing;
	bool		read_only = XactReadOnly;
	ListCell   *lc;

	ecm_unpublish_keyless();
	what = changes;
	altered = publication_altered;
	publishing = publishing_changed;
	changes = NIL;
	publication_altered = publishing_changed = false;
	if ((what == NIL && !altered && !publishing) || creating_extension ||
		!OidIsValid(get_extension_oid("electric_cm", true)))
		return;

	/* VACUUM FULL may be, and TRUNCATE; SET TRANSACTION READ ONLY */
	XactReadOnly = false;
	CommandCounterIncrement();
	hold_barriers(what, altered || publishing);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (ecm_shapes_exist())		/* a restore may have changed many tables */
	{
		foreach(lc, what)
			apply_change(lfirst(lc));
		if (altered && !ecm_publishes_everything())
			(void) ecm_shapes_invalidate(InvalidOid,
										 "the publication does not publish everything any more");
		else if (publishing)
			ecm_shapes_verify_published();
	}
	PopActiveSnapshot();
	XactReadOnly = read_only;
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
			if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
				ecm_run_mark();
			break;
		case XACT_EVENT_COMMIT:
			if ((look_again || dropped_extensions != NIL) && ecm_shared != NULL)
				request_look();
			/* FALLTHROUGH */
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			changes = NIL;
			ecm_unpublish_forget();
			publication_altered = publishing_changed = false;
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
	foreach(lc, changes)
	{
		Change	   *change = lfirst(lc);

		if (change->subid != subid)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			change->subid = parent;
		else
			changes = foreach_delete_current(changes, lc);
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

/* ------------------------------------------------------------ statements -- */

/* The command may have dropped it. */
static bool
has_extension(void)
{
	CommandCounterIncrement();
	return !creating_extension && OidIsValid(get_extension_oid("electric_cm", true));
}

/*
 * After a command that object_access_hook says too little about.  It has done
 * its own checks of rights, and the names in it are still good.
 */
static void
after_statement(NodeTag tag, Node *stmt)
{
	ListCell   *lc;

	switch (tag)
	{
		case T_AlterTableStmt:
			{
				/* REPLICA IDENTITY, ROW LEVEL SECURITY */
				AlterTableStmt *alter = (AlterTableStmt *) stmt;

				if (alter->objtype == OBJECT_TABLE)
				{
					Oid			relid = RangeVarGetRelid(alter->relation, NoLock, true);

					note_table_perhaps(relid);
					foreach(lc, alter->cmds)
						if (((AlterTableCmd *) lfirst(lc))->subtype == AT_ReplicaIdentity)
							ecm_unpublish_note(relid);
				}
				break;
			}
		case T_AlterEnumStmt:
			{
				AlterEnumStmt *alter = (AlterEnumStmt *) stmt;

				if (alter->oldVal != NULL)
					note(CHANGE_TYPE,
						 typenameTypeId(NULL, makeTypeNameFromNameList(alter->typeName)),
						 "a value of a column's type was renamed");
				break;
			}
		case T_DropOwnedStmt:
			if (!has_extension())
				break;
			foreach(lc, ((DropOwnedStmt *) stmt)->roles)
				ecm_shapes_invalidate_owner(get_rolespec_oid(lfirst(lc), false),
											"all that its owner had was dropped");
			break;
		case T_ReassignOwnedStmt:
			if (!has_extension())
				break;
			foreach(lc, ((ReassignOwnedStmt *) stmt)->roles)
				ecm_shapes_reassign(get_rolespec_oid(lfirst(lc), false),
									get_rolespec_oid(((ReassignOwnedStmt *) stmt)->newrole, false));
			break;
		default:
			break;
	}
}

/*
 * DETACH PARTITION CONCURRENTLY commits in the middle: the rows are not the
 * parent's any more, and nothing is published by it.  Should it end there,
 * nobody would come to say so.
 */
static void
before_statement(Node *stmt)
{
	ListCell   *lc;

	/* that commits before this statement's own transaction does */
	if (IsA(stmt, TransactionStmt) &&
		((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED)
		ecm_run_mark();
	if (!IsA(stmt, AlterTableStmt))
		return;
	foreach(lc, ((AlterTableStmt *) stmt)->cmds)
	{
		AlterTableCmd *cmd = lfirst(lc);
		Oid			parent;

		if (cmd->subtype != AT_DetachPartition ||
			!((PartitionCmd *) cmd->def)->concurrent)
			continue;
		parent = RangeVarGetRelid(((AlterTableStmt *) stmt)->relation, NoLock, true);
		if (!OidIsValid(parent))
			continue;
		note_table_and_ancestors(parent, "partitions were attached or detached");
		publishing_changed = true;
	}
}

static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *query_env, DestReceiver *dest,
				QueryCompletion *completion)
{
	Node	   *stmt = pstmt->utilityStmt;
	NodeTag		tag = nodeTag(stmt);	/* a CALL may be gone when it has run */

	before_statement(stmt);
	if (next_process_utility)
		next_process_utility(pstmt, query, read_only_tree, context, params,
							 query_env, dest, completion);
	else
		standard_ProcessUtility(pstmt, query, read_only_tree, context, params,
								query_env, dest, completion);
	after_statement(tag, stmt);
	if (context != PROCESS_UTILITY_SUBCOMMAND)	/* in the midst of another one */
		ecm_unpublish_keyless();
}

void
ecm_hooks_init(void)
{
	next_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	next_object_access_hook = object_access_hook;
	object_access_hook = on_object_access;
	RegisterXactCallback(on_xact_event, NULL);
	RegisterSubXactCallback(on_subxact_event, NULL);
}
