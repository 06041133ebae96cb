/*-------------------------------------------------------------------------
 *
 * hooks.c
 *	  The consequences of other people's commands for the stacks of this
 *	  server.
 *
 * The hooks run in every session of the server.  object_access_hook only notes what
 * DDL changes; when the command is over, the shapes that it makes wrong are deleted,
 * in its own transaction: see shape_ddl.c.  Some commands don't call that hook, so
 * their statements are looked at once they have run.  Databases that come and go, and
 * the extension's end, make the launcher look again after the commit.
 *
 * The extension may be dropped by DROP EXTENSION, DROP SCHEMA ... CASCADE or DROP OWNED.
 * Each drops _electric_cm.stack with it, so that is noticed; it is the last moment to
 * read which slot the stack has created.  The slot is dropped after the commit, since
 * that can't be rolled back; the publication depends on the extension and goes with
 * it.
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
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
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

#include "base/compat.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/version.h"
#include "hooks/hooks.h"
#include "hooks/own_tables.h"
#include "hooks/shape_ddl.h"
#include "hooks/unpublish.h"
#include "jobs/unpublish_tables.h"
#include "shape/shape_owner.h"
#include "slot/left_slot.h"
#include "slot/server_runs.h"
#include "slot/slot.h"

/* Our extension was dropped in this transaction. */
typedef struct DroppedExtension
{
	NameData	slot_name;		/* the slot to be dropped; empty: none */
	SubTransactionId subid;		/* that has dropped it */
} DroppedExtension;

/* Of DroppedExtension, in TopTransactionContext; NIL after each transaction. */
static List *dropped_extensions = NIL;
static bool look_again = false; /* this transaction has changed databases, the
								 * extension or a publication */

static object_access_hook_type next_object_access_hook = NULL;
static ProcessUtility_hook_type next_process_utility = NULL;

/* ------------------------------------------------- the extension's end -- */

/* The slot that the stack's row says it has created; "" if none. */
static void
read_created_slot(Oid stack_table, NameData *slot_name)
{
	Relation	rel = table_open(stack_table, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = ecm_table_beginscan(rel, snapshot);
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
 * The slot to be dropped with the extension; "" if there is none.  A slot of the default
 * name is ours even if it was not recorded; a slot that the settings name may have been
 * made by the user, and is ours only if it was recorded.
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

/* Our extension is being dropped: notes which slot has to go after the commit. */
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

/*
 * CREATE and ALTER EXTENSION come here with the new version noted, and before
 * its script runs: which is refused if the library does not know it, for that
 * would find no function of a newer one, or a stack that can't go on with its
 * tables.
 */
static void
check_new_version(Oid changed)
{
	Oid			extension;
	char	   *version = ecm_sql_version(SnapshotSelf, &extension);	/* not visible yet */

	if (extension != changed || ecm_sql_fit_of(version) != ECM_SQL_UNKNOWN)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("version %s of the extension electric_cm is not known to the library that the server has loaded, %s",
					version, ecm_library_version()),
			 errhint("Restart the server, so that it loads the library that is installed now, and repeat the command.")));
}

/* -------------------------------------------------------- object access -- */

/* Notes a change of a table, an index or a composite type; column 0: as a whole. */
static void
on_relation_access(ObjectAccessType access, Oid relid, int column)
{
	char		relkind = get_rel_relkind(relid);

	if (relkind == RELKIND_INDEX || relkind == RELKIND_PARTITIONED_INDEX)
	{
		if (access == OAT_DROP)
		{
			ecm_ddl_note_index(relid);
			ecm_unpublish_note_index(relid);
		}
	}
	else if (access == OAT_TRUNCATE)
		ecm_ddl_note_resync(relid, "the table was truncated");
	else if (access == OAT_DROP && column == 0)
	{
		ecm_ddl_note_void(relid, "the table was dropped");
		if (is_stack_table(relid))
			note_dropped_extension(relid);
	}
	else if (access == OAT_POST_ALTER && column != 0 && relkind != RELKIND_COMPOSITE_TYPE)
		ecm_ddl_note_column(relid);
	else if (column != 0 &&
			 (access == OAT_DROP || access == OAT_POST_CREATE ||
			  access == OAT_POST_ALTER))
	{
		if (access == OAT_DROP)
			ecm_ddl_note_dropped_column(relid, column);
		else
			ecm_ddl_note_perhaps(relid);
		ecm_ddl_note_row_type(relid);
		if (access == OAT_POST_CREATE)
			ecm_unpublish_note(relid);	/* it may be virtual */
	}
	else if (access == OAT_POST_ALTER)
		ecm_ddl_note_altered(relid);
}

/*
 * object_access_hook.  Called in the middle of a command, where no SQL may be run, so it
 * only takes notes.
 */
static void
on_object_access(ObjectAccessType access, Oid class_id, Oid object_id,
				 int sub_id, void *arg)
{
	bool		changed = access == OAT_POST_CREATE || access == OAT_DROP ||
	access == OAT_POST_ALTER;

	if (next_object_access_hook)
		next_object_access_hook(access, class_id, object_id, sub_id, arg);

	if (class_id == RelationRelationId && object_id >= FirstNormalObjectId)
		on_relation_access(access, object_id, sub_id);
	else if (class_id == IndexRelationId && access == OAT_POST_ALTER)
		ecm_ddl_note_index(object_id);
	else if (class_id == InheritsRelationId && access == OAT_POST_ALTER)
	{
		Oid			parent = ((ObjectAccessPostAlter *) arg)->auxiliary_id;

		/* of a plain table, inheritance children are not part */
		if (get_rel_relkind(parent) == RELKIND_PARTITIONED_TABLE)
			ecm_ddl_note_resync(parent, "partitions were attached or detached");
		ecm_ddl_note_perhaps(object_id);
		ecm_ddl_note_published(object_id);	/* it may have been published by
											 * its parent only */
		ecm_unpublish_note(object_id);
	}
	else if (class_id == NamespaceRelationId && access == OAT_POST_ALTER)
		ecm_ddl_note_schema(object_id);
	else if (class_id == AuthIdRelationId && access == OAT_DROP)
		ecm_ddl_note_owner(object_id, "its owner was dropped");
	else if (class_id == PublicationRelationId && changed)
	{
		ecm_ddl_note_publication(object_id);
		look_again = true;
	}
	else if (class_id == PublicationRelRelationId && changed && !ecm_is_unpublishing)
	{
		ecm_ddl_note_member(object_id);
		look_again = true;
	}
	else if (class_id == PublicationNamespaceRelationId && access == OAT_DROP)
		ecm_ddl_note_published_schema(object_id);
	else if ((class_id == DatabaseRelationId || class_id == ExtensionRelationId) &&
			 changed)
	{
		look_again = true;
		if (class_id == ExtensionRelationId && access != OAT_DROP)
			check_new_version(object_id);
	}
}

/*
 * After the commit: leaves slots to the launcher, has it look for databases, and this
 * database's manager for the extension.  May not fail, as the commit is done.
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
			ecm_leave_slot(MyDatabaseId, NameStr(dropped->slot_name));
	}

	ecm_launcher_request_scan();
	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0)
	{
		EcmStack   *stack = ecm_stack_at(index);

		ecm_stack_set_request(stack, ECM_REQUEST_CHECK);
		if (dropped_extensions != NIL && stack->manager.pid == 0)

			/*
			 * No manager runs that could notice that the extension is gone:
			 * the launcher starts one to have a look.
			 */
			ecm_stack_set_request(stack, ECM_REQUEST_UNSTOP);
		else if (stack->manager.pid == 0 &&
				 (stack->manager.probe == ECM_PROBE_OUTDATED ||
				  stack->manager.probe == ECM_PROBE_UNKNOWN_VERSION))
			ecm_stack_set_request(stack, ECM_REQUEST_REPROBE);	/* ALTER EXTENSION */
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

			/*
			 * Our callbacks don't run at COMMIT PREPARED, so the slot would
			 * stay.
			 */
			if (dropped_extensions != NIL)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot PREPARE a transaction that has dropped the extension electric_cm")));
			pg_fallthrough;
		case XACT_EVENT_PRE_COMMIT:
			ecm_unpublish_keyless();
			ecm_ddl_apply_at_commit();
			if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
				ecm_run_mark();
			break;
		case XACT_EVENT_COMMIT:
			if ((look_again || dropped_extensions != NIL) && ecm_shared != NULL)
				request_look();
			pg_fallthrough;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			ecm_ddl_forget();
			ecm_unpublish_forget();
			look_again = false;
			dropped_extensions = NIL;
			break;
		default:
			break;
	}
}

/*
 * Notes of a subtransaction that is rolled back are forgotten; of one that commits, they
 * become its parent's.
 */
static void
on_subxact_event(SubXactEvent event, SubTransactionId subid,
				 SubTransactionId parent,
				 void *arg pg_attribute_unused())
{
	ListCell   *lc;

	if (event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB)
		return;
	ecm_ddl_subxact_end(subid, parent, event == SUBXACT_EVENT_COMMIT_SUB);
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

/*
 * Notes what statements have changed that object_access_hook is not called for, or not
 * with enough detail.  They have run, so the user had the rights, and the names in them
 * can still be looked up.
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

					ecm_ddl_note_perhaps(relid);
					foreach(lc, alter->cmds)
					{
						if (((AlterTableCmd *) lfirst(lc))->subtype != AT_ReplicaIdentity)
							continue;
						ecm_ddl_note_identity(relid);
						ecm_unpublish_note(relid);
					}
				}
				break;
			}
		case T_AlterEnumStmt:
			{
				AlterEnumStmt *alter = (AlterEnumStmt *) stmt;

				if (alter->oldVal != NULL)
					ecm_ddl_note_type(typenameTypeId(NULL, makeTypeNameFromNameList(alter->typeName)),
									  "a value of a column's type was renamed");
				break;
			}
		case T_AlterPublicationStmt:
			if (ecm_alters_whole_publication((AlterPublicationStmt *) stmt))
			{
				ecm_ddl_note_publication(get_publication_oid(((AlterPublicationStmt *) stmt)->pubname, false));
				look_again = true;
			}
			break;
		case T_DropOwnedStmt:
			foreach(lc, ((DropOwnedStmt *) stmt)->roles)
				ecm_ddl_note_owner(get_rolespec_oid(lfirst(lc), false),
								   "all that its owner had was dropped");
			break;
		case T_ReassignOwnedStmt:
			CommandCounterIncrement();
			if (!ecm_ddl_has_extension())
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
 * Notes what must be noted before a statement runs.  DETACH PARTITION CONCURRENTLY
 * commits in the middle: from then on the rows are not the parent's any more, and the
 * partition is not published by it.  If the statement is cancelled after that, nothing
 * would run that ends the shapes; so they end with that first commit.
 */
static void
before_statement(Node *stmt)
{
	ListCell   *lc;

	/*
	 * Any commit with our library loaded is to be marked in the WAL before
	 * (server_runs.c).  A prepared transaction commits within this statement,
	 * before the usual place in on_xact_event() is reached.
	 */
	if (IsA(stmt, TransactionStmt) &&
		((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED)
		ecm_run_mark();
	ecm_own_tables_check_repack(stmt);
	if (!IsA(stmt, AlterTableStmt))
		return;
	foreach(lc, ((AlterTableStmt *) stmt)->cmds)
	{
		AlterTableCmd *cmd = lfirst(lc);
		Oid			parent;
		Oid			partition;

		if (cmd->subtype != AT_DetachPartition ||
			!((PartitionCmd *) cmd->def)->concurrent)
			continue;
		parent = RangeVarGetRelid(((AlterTableStmt *) stmt)->relation, NoLock, true);
		if (!OidIsValid(parent))
			continue;
		ecm_ddl_note_resync(parent, "partitions were attached or detached");
		partition = RangeVarGetRelid(((PartitionCmd *) cmd->def)->name, NoLock, true);
		if (OidIsValid(partition))
			ecm_ddl_note_published(partition);
	}
}

/*
 * ProcessUtility_hook.  Notes are applied before a statement and after it.  Before,
 * since statements nest: a function or DO that is not over yet may have changed
 * something, and the stream has the changes that follow as of these catalogs.
 */
static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *query_env, DestReceiver *dest,
				QueryCompletion *completion)
{
	Node	   *stmt = pstmt->utilityStmt;
	NodeTag		tag = nodeTag(stmt);	/* a CALL may be gone when it has run */

	/*
	 * A part of a statement, such as a command of CREATE SCHEMA, counts with
	 * its whole; at COMMIT and the like the callbacks do the rest.
	 */
	bool		whole = context != PROCESS_UTILITY_SUBCOMMAND && tag != T_TransactionStmt;

	if (whole)
		ecm_ddl_apply();
	before_statement(stmt);
	ecm_ddl_enter_statement();
	PG_TRY();
	{
		if (next_process_utility)
			next_process_utility(pstmt, query, read_only_tree, context, params,
								 query_env, dest, completion);
		else
			standard_ProcessUtility(pstmt, query, read_only_tree, context, params,
									query_env, dest, completion);
	}
	PG_FINALLY();
	{
		ecm_ddl_leave_statement();
	}
	PG_END_TRY();
	after_statement(tag, stmt);
	if (context != PROCESS_UTILITY_SUBCOMMAND)	/* else the whole is not over */
		ecm_unpublish_keyless();
	if (whole)
		ecm_ddl_apply();
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
