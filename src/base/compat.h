/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  The one place for differences between PostgreSQL 15, 16, 17, 18 and 19.
 *
 * Everything else in the tree is written against the newest spelling that
 * can be expressed as a macro here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_COMPAT_H
#define ECM_COMPAT_H

#include "postgres.h"

#include "access/heapam.h"
#include "access/tableam.h"
#include "access/xlog.h"
#include "commands/defrem.h"
#include "nodes/parsenodes.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif
#if PG_VERSION_NUM >= 190000
#include "access/xlogwait.h"
#endif
#if PG_VERSION_NUM < 170000
#include "storage/sinvaladt.h"
#endif
#if PG_VERSION_NUM < 160000
#include "access/xact.h"
#include "utils/resowner.h"
#else
#include "nodes/miscnodes.h"
#endif
#if PG_VERSION_NUM >= 170000
#include "storage/procnumber.h"
#endif
#include "utils/jsonb.h"
#include "utils/wait_event.h"

/* 18 says that a function does not return before its name, not after it. */
#if PG_VERSION_NUM < 180000 && !defined(pg_noreturn)
#define pg_noreturn pg_attribute_noreturn()
#endif

/* From 16 on, a type's input function can report an error without raising it. */
#if PG_VERSION_NUM < 160000
#define ereturn(context, dummy_value, ...) ereport(ERROR, __VA_ARGS__)
#endif

/* 16 renamed relfilenodes, also in WAL records. */
#if PG_VERSION_NUM >= 160000
#define ecm_new_cid_database(rec) ((rec)->target_locator.dbOid)
#define ecm_new_cid_relation(rec) ((rec)->target_locator.relNumber)
#else
#define ecm_new_cid_database(rec) ((rec)->target_node.dbNode)
#define ecm_new_cid_relation(rec) ((rec)->target_node.relNode)
#endif

/*
 * 17 gave wait event sets a resource owner instead of a memory context.  Ours
 * live as long as the process, so they have no owner.
 */
#if PG_VERSION_NUM >= 170000
#define ecm_create_wait_event_set(nevents) CreateWaitEventSet(NULL, (nevents))
#else
#define ecm_create_wait_event_set(nevents) \
	CreateWaitEventSet(TopMemoryContext, (nevents))
#endif

/*
 * A backend's wait for its client, as in libpq/libpq.h, which can't be included
 * where GSSAPI's headers are not installed: the server's don't depend on them.
 * 15 to 19 have it alike.
 */
extern PGDLLIMPORT WaitEventSet *FeBeWaitSet;

#define ECM_CLIENT_SOCKET_POS	0	/* FeBeWaitSetSocketPos */
#define ECM_CLIENT_NEVENTS		3	/* FeBeWaitSetNEvents */

/* 17 lets extensions name their wait events. */
#if PG_VERSION_NUM >= 170000
#define ecm_new_wait_event(name) WaitEventExtensionNew(name)
#else
#define ecm_new_wait_event(name) PG_WAIT_EXTENSION
#endif

/* 17 renamed the backend id inside a virtual transaction id. */
#if PG_VERSION_NUM >= 170000
#define ecm_vxid_is_prepared(vxid) ((vxid).procNumber == INVALID_PROC_NUMBER)
#define ecm_vxid_proc(vxid) ProcNumberGetProc((vxid).procNumber)
#define ecm_proc_lxid(proc) ((proc)->vxid.lxid)
#else
#define ecm_vxid_is_prepared(vxid) ((vxid).backendId == InvalidBackendId)
#define ecm_vxid_proc(vxid) BackendIdGetProc((vxid).backendId)
#define ecm_proc_lxid(proc) ((proc)->lxid)
#endif

/*
 * A process's index in ProcGlobal->allProcs, backends first; 17 gave it a type
 * and a variable.
 */
#if PG_VERSION_NUM >= 170000
#define ecm_my_proc_number() ((int) MyProcNumber)
#else
#define ecm_my_proc_number() (MyProc->pgprocno)
#endif

/* 16 and later have a slot's invalidation cause; 15 only an LSN. */
#if PG_VERSION_NUM >= 160000
#define ecm_slot_is_invalidated(slot) \
	((slot)->data.invalidated != RS_INVAL_NONE)
#else
#define ecm_slot_is_invalidated(slot) \
	(XLogRecPtrIsInvalid((slot)->data.restart_lsn) && \
	 !XLogRecPtrIsInvalid((slot)->data.invalidated_at))
#endif

/* 17 has names for these causes; before 16 there was only one. */
#if PG_VERSION_NUM >= 180000
#define ecm_slot_invalidation_cause(slot) \
	GetSlotInvalidationCauseName((slot)->data.invalidated)
#elif PG_VERSION_NUM >= 170000
#define ecm_slot_invalidation_cause(slot) \
	SlotInvalidationCauses[(slot)->data.invalidated]
#elif PG_VERSION_NUM >= 160000
#define ecm_slot_invalidation_cause(slot) \
	((slot)->data.invalidated == RS_INVAL_HORIZON ? "rows_removed" : \
	 (slot)->data.invalidated == RS_INVAL_WAL_LEVEL ? "wal_level_insufficient" : \
	 "wal_removed")
#else
#define ecm_slot_invalidation_cause(slot) "wal_removed"
#endif

/* 18 can invalidate a slot that nobody uses. */
#if PG_VERSION_NUM >= 180000
#define ecm_idle_replication_slot_timeout_secs idle_replication_slot_timeout_secs
#else
#define ecm_idle_replication_slot_timeout_secs 0
#endif

/*
 * 18 has generated columns that are stored nowhere, and can publish those that
 * are; an update of a table whose replica identity has a column that is not
 * published fails.
 */
#if PG_VERSION_NUM >= 180000
#define ecm_is_streamed(att) ((att)->attgenerated != ATTRIBUTE_GENERATED_VIRTUAL)
#define ecm_has_stored_generated(desc) \
	((desc)->constr != NULL && (desc)->constr->has_generated_stored)
#define ecm_is_virtual(att) ((att)->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
#define ecm_publishes_generated(publication) \
	((publication)->pubgencols_type == PUBLISH_GENCOLS_STORED)
#define ECM_PUBLISH_GENERATED	"publish_generated_columns = stored"
#define ECM_WITH_GENERATED		" WITH (" ECM_PUBLISH_GENERATED ")"
#define ECM_PUBLISHES_GENERATED_SQL	"p.pubgencols = 's'"
#define ECM_BROKEN_BY_VIRTUAL_SQL \
	"c.relreplident = 'f' AND EXISTS (SELECT FROM pg_attribute a" \
	" WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped)"
#else
#define ecm_is_streamed(att) ((att)->attgenerated == '\0')
#define ecm_has_stored_generated(desc) false
#define ecm_is_virtual(att) false
#define ecm_publishes_generated(publication) true
#define ECM_PUBLISH_GENERATED	""
#define ECM_WITH_GENERATED		""
#define ECM_PUBLISHES_GENERATED_SQL	"true"
#define ECM_BROKEN_BY_VIRTUAL_SQL	"false"
#endif

/* 18 has NOT NULL constraints that are not true of all rows yet. */
#if PG_VERSION_NUM >= 180000
#define ecm_has_no_nulls(desc, attnum) \
	(TupleDescCompactAttr((desc), (attnum) - 1)->attnullability == ATTNULLABLE_VALID)
#define ecm_not_null_constraint(relid, attnum) findNotNullConstraintAttnum((relid), (attnum))
#else
#define ecm_has_no_nulls(desc, attnum) TupleDescAttr((desc), (attnum) - 1)->attnotnull
#define ecm_not_null_constraint(relid, attnum) ((HeapTuple) NULL)
#endif

/* 18 shows a module's name and version. */
#if PG_VERSION_NUM >= 180000
#define ECM_MODULE_MAGIC(module) PG_MODULE_MAGIC_EXT(.name = module, .version = ECM_VERSION)
#else
#define ECM_MODULE_MAGIC(module) PG_MODULE_MAGIC
#endif

/* 17 added transaction_timeout; it is turned off in our own sessions. */
#if PG_VERSION_NUM >= 170000
#define ECM_TRANSACTION_TIMEOUT_SETTING {"transaction_timeout", "0"},
#else
#define ECM_TRANSACTION_TIMEOUT_SETTING
#endif

/*
 * 17 lets a logical message be flushed at once.  Ours are transactional, and
 * are flushed with the commit of their transaction.
 */
#if PG_VERSION_NUM >= 170000
#define ecm_log_message(prefix, text) \
	LogLogicalMessage((prefix), (text), strlen(text), true, false)
#else
#define ecm_log_message(prefix, text) \
	LogLogicalMessage((prefix), (text), strlen(text), true)
#endif

/* 17 can look for stronger lock modes too; we ask for one at a time. */
#if PG_VERSION_NUM >= 170000
#define ecm_lock_held_by_me(tag, mode) LockHeldByMe((tag), (mode), false)
#else
#define ecm_lock_held_by_me(tag, mode) LockHeldByMe((tag), (mode))
#endif

/* 16 can restrict index insertion to summarizing indexes; 19 has flags for it. */
#if PG_VERSION_NUM >= 190000
#define ecm_insert_index_tuples(rri, slot, estate, summarizing) \
	ExecInsertIndexTuples((rri), (estate), (summarizing) ? EIIT_IS_UPDATE | EIIT_ONLY_SUMMARIZING : 0, \
						  (slot), NIL, NULL)
#elif PG_VERSION_NUM >= 160000
#define ecm_insert_index_tuples(rri, slot, estate, summarizing) \
	ExecInsertIndexTuples((rri), (slot), (estate), (summarizing), false, NULL, NIL, (summarizing))
#else
#define ecm_insert_index_tuples(rri, slot, estate, summarizing) \
	((void) (summarizing), ExecInsertIndexTuples((rri), (slot), (estate), false, false, NULL, NIL))
#endif

/* 16 keeps permissions apart from the range table. */
#if PG_VERSION_NUM >= 160000
#define ECM_CHECK_PERMS_PARAMS	List *tables, List *infos, bool report
#define ECM_CHECK_PERMS_ARGS	tables, infos, report
#else
#define ECM_CHECK_PERMS_PARAMS	List *tables, bool report
#define ECM_CHECK_PERMS_ARGS	tables, report
#endif

/* 18 counts index searches; 19 has flags for all scans. */
#if PG_VERSION_NUM >= 190000
#define ecm_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), NULL, (nkeys), 0, SO_NONE)
#elif PG_VERSION_NUM >= 180000
#define ecm_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), NULL, (nkeys), 0)
#else
#define ecm_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), (nkeys), 0)
#endif
#if PG_VERSION_NUM >= 190000
#define ecm_table_beginscan(rel, snapshot) \
	table_beginscan((rel), (snapshot), 0, NULL, SO_NONE)
#else
#define ecm_table_beginscan(rel, snapshot) \
	table_beginscan((rel), (snapshot), 0, NULL)
#endif

/* 19 has options for a deletion; ours waits, and moves no row elsewhere. */
#if PG_VERSION_NUM >= 190000
#define ecm_table_tuple_delete(rel, tid, cid, snapshot, failure) \
	table_tuple_delete((rel), (tid), (cid), 0, (snapshot), \
					   InvalidSnapshot, true, (failure))
#else
#define ecm_table_tuple_delete(rel, tid, cid, snapshot, failure) \
	table_tuple_delete((rel), (tid), (cid), (snapshot), \
					   InvalidSnapshot, true, (failure), false)
#endif

/* 16 made one function of the object-specific privilege checks. */
#define ecm_table_acl_select(relid, roleid) \
	(pg_class_aclcheck((relid), (roleid), ACL_SELECT) == ACLCHECK_OK)
#if PG_VERSION_NUM >= 160000
#define ecm_schema_acl_usage(nspid, roleid) \
	(object_aclcheck(NamespaceRelationId, (nspid), (roleid), ACL_USAGE) == ACLCHECK_OK)
#define ecm_table_is_owned(relid, roleid) \
	object_ownercheck(RelationRelationId, (relid), (roleid))
#else
#define ecm_schema_acl_usage(nspid, roleid) \
	(pg_namespace_aclcheck((nspid), (roleid), ACL_USAGE) == ACLCHECK_OK)
#define ecm_table_is_owned(relid, roleid) \
	pg_class_ownercheck((relid), (roleid))
#endif

/* 16 can include files in pg_hba.conf, so that line numbers repeat. */
#if PG_VERSION_NUM >= 160000
#define ECM_HBA_ORDER "rule_number"
#else
#define ECM_HBA_ORDER "line_number"
#endif

#if PG_VERSION_NUM >= 160000
#define ecm_database_is_owned(dboid, roleid) \
	object_ownercheck(DatabaseRelationId, (dboid), (roleid))
#define ecm_extension_is_owned(extoid, roleid) \
	object_ownercheck(ExtensionRelationId, (extoid), (roleid))
#define ecm_schema_is_owned(nspoid, roleid) \
	object_ownercheck(NamespaceRelationId, (nspoid), (roleid))
#else
#define ecm_database_is_owned(dboid, roleid) \
	pg_database_ownercheck((dboid), (roleid))
#define ecm_extension_is_owned(extoid, roleid) \
	pg_extension_ownercheck((extoid), (roleid))
#define ecm_schema_is_owned(nspoid, roleid) \
	pg_namespace_ownercheck((nspoid), (roleid))
#endif

/*
 * The value of a text; false if there is none, as the text is not one of the type.  From
 * 16 on, input functions tell that without raising an error.
 */
static inline bool
ecm_input_or_false(FmgrInfo *input, char *text, Oid typioparam, Datum *value)
{
#if PG_VERSION_NUM >= 160000
	ErrorSaveContext escontext = {.type = T_ErrorSaveContext};

	return InputFunctionCallSafe(input, text, typioparam, -1, (Node *) &escontext, value);
#else
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool fits = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		*value = InputFunctionCall(input, text, typioparam, -1);
		ReleaseCurrentSubTransaction();
		fits = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return fits;
#endif
}

/*
 * datconnlimit of a database whose DROP DATABASE was interrupted.  Minor
 * releases from before August 2023 do not mark such a database.
 */
#ifdef DATCONNLIMIT_INVALID_DB
#define ECM_CONNLIMIT_INVALID_DB DATCONNLIMIT_INVALID_DB
#else
#define ECM_CONNLIMIT_INVALID_DB (-2)
#endif

/* 18 can refuse to acquire an invalidated slot. */
#if PG_VERSION_NUM >= 180000
#define ecm_slot_acquire(name) ReplicationSlotAcquire((name), true, false)
#else
#define ecm_slot_acquire(name) ReplicationSlotAcquire((name), true)
#endif

/*
 * 17 lets pg_upgrade ask whether a slot, which one has acquired, has consumed all
 * that was committed before the end of the WAL; 19 says how far that comes.
 */
#if PG_VERSION_NUM >= 190000
#define ecm_slot_has_pending_wal(end) \
	(!XLogRecPtrIsInvalid(LogicalReplicationSlotCheckPendingWal((end), InvalidXLogRecPtr)))
#elif PG_VERSION_NUM >= 170000
#define ecm_slot_has_pending_wal(end) LogicalReplicationSlotHasPendingWal(end)
#else
#define ecm_slot_has_pending_wal(end) ((void) (end), false)
#endif

/* 17 lets walsenders wait for standbys; before, nothing is waited for. */
#if PG_VERSION_NUM >= 170000
#define ECM_SYNCHRONIZED_STANDBY_SLOTS synchronized_standby_slots
#define ecm_is_standby_wait(info) ((info) == WAIT_EVENT_WAIT_FOR_STANDBY_CONFIRMATION)
#else
#define ECM_SYNCHRONIZED_STANDBY_SLOTS ""
#define ecm_is_standby_wait(info) ((void) (info), false)
#endif

/* 16 returns the number of settings along with them. */
#if PG_VERSION_NUM >= 160000
#define ecm_guc_variables(nvars) get_guc_variables(nvars)
#else
#define ecm_guc_variables(nvars) \
	(*(nvars) = GetNumConfigOptions(), get_guc_variables())
#endif

/* 17 lets standbys keep slots in step. */
#if PG_VERSION_NUM >= 170000
#define ECM_HAS_FAILOVER_SLOTS	true
#define ecm_slot_failover(slot) ((slot)->data.failover)
#define ecm_slot_synced(slot) ((slot)->data.synced)
#define ecm_standby_slots_have(lsn) StandbySlotsHaveCaughtup((lsn), DEBUG1)
#else
#define ECM_HAS_FAILOVER_SLOTS	false
#define ecm_slot_failover(slot) ((void) (slot), false)
#define ecm_slot_synced(slot) ((void) (slot), false)
#define ecm_standby_slots_have(lsn) ((void) (lsn), true)
#endif

/* 16 tells a walsender's kind. */
#if PG_VERSION_NUM >= 160000
#define ecm_sends_to_standby(walsnd) ((walsnd)->kind == REPLICATION_KIND_PHYSICAL)
#else
#define ecm_sends_to_standby(walsnd) ((void) (walsnd), false)
#endif

/* 17 knows since when a slot has been inactive. */
#if PG_VERSION_NUM >= 170000
#define ecm_slot_inactive_since(slot) ((slot)->inactive_since)
#else
#define ecm_slot_inactive_since(slot) ((TimestampTz) 0)
#endif

/* 16 renamed access by position, and counts from 1 all the same. */
#if PG_VERSION_NUM >= 160000
#define ecm_backend_status(i) (&pgstat_get_local_beentry_by_index(i)->backendStatus)
#else
#define ecm_backend_status(i) (&pgstat_fetch_stat_local_beentry(i)->backendStatus)
#endif

/* 19 knows a slot's user by its place among the processes. */
#if PG_VERSION_NUM >= 190000
#define ecm_slot_active_pid(slot) \
	((slot)->active_proc == INVALID_PROC_NUMBER ? 0 : \
	 GetPGProcByNumber((slot)->active_proc)->pid)
#else
#define ecm_slot_active_pid(slot) ((slot)->active_pid)
#endif

/*
 * 19 has publications FOR ALL SEQUENCES, which no table can be added to, and lets
 * ALTER make any other publication one of them.
 */
#if PG_VERSION_NUM >= 190000
#define ECM_PUBLISHES_SEQUENCES_SQL "p.puballsequences AND NOT p.puballtables"
#define ecm_alters_whole_publication(stmt) \
	((stmt)->for_all_tables || (stmt)->for_all_sequences)
#else
#define ECM_PUBLISHES_SEQUENCES_SQL "false"
#define ecm_alters_whole_publication(stmt) false
#endif

/* 19 raises wal_level = replica by itself while there is a logical slot. */
#if PG_VERSION_NUM >= 190000
#define ECM_LEAST_WAL_LEVEL WAL_LEVEL_REPLICA
#define ECM_LEAST_WAL_LEVEL_NAME "replica"
#else
#define ECM_LEAST_WAL_LEVEL WAL_LEVEL_LOGICAL
#define ECM_LEAST_WAL_LEVEL_NAME "logical"
#endif

/* The table that 19's REPACK is to rewrite by way of logical decoding, or NULL. */
static inline RangeVar *
ecm_repacked_concurrently(Node *stmt)
{
#if PG_VERSION_NUM >= 190000
	bool		concurrently = false;
	ListCell   *lc;

	if (!IsA(stmt, RepackStmt) || ((RepackStmt *) stmt)->relation == NULL)
		return NULL;
	foreach(lc, ((RepackStmt *) stmt)->params)
	{
		DefElem    *option = lfirst(lc);

		if (strcmp(option->defname, "concurrently") == 0)
			concurrently = defGetBoolean(option);
	}
	return concurrently ? ((RepackStmt *) stmt)->relation->relation : NULL;
#else
	(void) stmt;
	return NULL;
#endif
}

/* 19 has slots of their own for REPACK (CONCURRENTLY), after the others. */
#if PG_VERSION_NUM >= 190000
#define ecm_total_slots() (max_replication_slots + max_repack_replication_slots)
#else
#define ecm_total_slots() max_replication_slots
#endif

/* 19 can look at one database, or at those about to commit, alone. */
#if PG_VERSION_NUM >= 190000
#define ecm_oldest_active_xid() GetOldestActiveTransactionId(false, true)
#else
#define ecm_oldest_active_xid() GetOldestActiveTransactionId()
#endif

/* 19 says why there is no next record. */
#if PG_VERSION_NUM >= 190000
#define ecm_find_next_record(reader, from, error) \
	XLogFindNextRecord((reader), (from), (error))
#else
#define ecm_find_next_record(reader, from, error) \
	(*(error) = NULL, XLogFindNextRecord((reader), (from)))
#endif

/* 19 calls an immediate checkpoint fast. */
#if PG_VERSION_NUM >= 190000
#define ECM_CHECKPOINT_FAST CHECKPOINT_FAST
#else
#define ECM_CHECKPOINT_FAST CHECKPOINT_IMMEDIATE
#endif

/* What SIGNAL_ARGS declares, to hand it on; 19 tells who sent the signal. */
#if PG_VERSION_NUM >= 190000
#define ECM_SIGNAL_ARGS_OF_MINE postgres_signal_arg, pg_siginfo
#else
#define ECM_SIGNAL_ARGS_OF_MINE postgres_signal_arg
#endif

/* 19 has exceptions from publications of all tables, and tells them apart. */
#if PG_VERSION_NUM >= 190000
#define ecm_relation_publications(relid) GetRelationIncludedPublications(relid)
#define ecm_relation_exceptions(relid) GetRelationExcludedPublications(relid)
#else
#define ecm_relation_publications(relid) GetRelationPublications(relid)
#define ecm_relation_exceptions(relid) NIL
#endif

/* 19 has databases by name, too. */
#if PG_VERSION_NUM >= 190000
#define ECM_REGDATABASEOID REGDATABASEOID
#else
#define ECM_REGDATABASEOID InvalidOid
#endif

/* 19 has the result of building jsonb in the state. */
#if PG_VERSION_NUM >= 190000
typedef JsonbInState EcmJsonbState;
#define ecm_jsonb_push(state, token, value) \
	pushJsonbValue((state), (token), (value))
#else
typedef struct EcmJsonbState
{
	JsonbParseState *parse;
	JsonbValue *result;
} EcmJsonbState;
#define ecm_jsonb_push(state, token, value) \
	((state)->result = pushJsonbValue(&(state)->parse, (token), (value)))
#endif

/* 19 crashes on a tuple descriptor that it was not told to be complete. */
#if PG_VERSION_NUM >= 190000
#define ecm_tupledesc_finalize(desc) TupleDescFinalize(desc)
#else
#define ecm_tupledesc_finalize(desc) ((void) 0)
#endif

/* 19 has a word for a case that goes on with the next, and heeds no comment. */
#ifndef pg_fallthrough
#if __has_attribute(fallthrough)
#define pg_fallthrough __attribute__((fallthrough))
#else
#define pg_fallthrough ((void) 0)
#endif
#endif

/* 17 removed the struct around a decoded change's tuples. */
#if PG_VERSION_NUM >= 170000
#define ecm_change_new_tuple(change) ((change)->data.tp.newtuple)
#define ecm_change_old_tuple(change) ((change)->data.tp.oldtuple)
#else
#define ecm_change_new_tuple(change) \
	((change)->data.tp.newtuple ? &(change)->data.tp.newtuple->tuple : NULL)
#define ecm_change_old_tuple(change) \
	((change)->data.tp.oldtuple ? &(change)->data.tp.oldtuple->tuple : NULL)
#endif

/*
 * As simple_heap_update().  Do indexes have to get the new version?  *summarizing: only
 * those that summarize (16 has updates for which this is so).
 */
static inline bool
ecm_heap_update(Relation rel, ItemPointer otid, HeapTuple tuple, bool *summarizing)
{
#if PG_VERSION_NUM >= 160000
	TU_UpdateIndexes update_indexes;

	simple_heap_update(rel, otid, tuple, &update_indexes);
	*summarizing = update_indexes == TU_Summarizing;
	return update_indexes != TU_None;
#else
	simple_heap_update(rel, otid, tuple);
	*summarizing = false;
	return !HeapTupleIsHeapOnly(tuple);
#endif
}

/*
 * Waits on a standby until more WAL is replayed than up to an LSN, or the time has passed,
 * and serves interrupts.  False: this server does not say when it has replayed something.
 */
static inline bool
ecm_wait_for_replay(XLogRecPtr replayed pg_attribute_unused(), long timeout_ms pg_attribute_unused())
{
#if PG_VERSION_NUM >= 190000
	(void) WaitForLSN(WAIT_LSN_TYPE_STANDBY_REPLAY, replayed + 1, (int) timeout_ms);
	return true;
#else
	return false;
#endif
}

#endif							/* ECM_COMPAT_H */
