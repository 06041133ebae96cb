/*-------------------------------------------------------------------------
 *
 * databases.c
 *	  The databases of this server, as far as the launcher knows them.
 *
 * The launcher sees pg_database, and no more of a database than that.  Whether there
 * is an extension only a process inside the database can tell; what such a process
 * has found is remembered here, as long as this launcher lives.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "launcher/databases.h"
#include "slot/slot.h"

#define RESCAN_INTERVAL		(INT64CONST(60) * USECS_PER_SEC)

/* A database that needs no look. */
typedef struct Known
{
	Oid			dboid;			/* hash key */
	EcmTime		again_at;		/* 0: it has no extension; else the last look
								 * has failed, and the next one is due then */
} Known;

static struct
{
	MemoryContext context;		/* of the list */
	List	   *list;			/* of EcmDatabase */
	EcmTime		scanned_at;		/* 0: a scan is due */
	HTAB	   *known;			/* of Known */
}			databases;

void
ecm_databases_init(void)
{
	HASHCTL		hash_info = {0};

	databases.context = AllocSetContextCreate(TopMemoryContext,
											  "electric_cm databases",
											  ALLOCSET_DEFAULT_SIZES);

	hash_info.keysize = sizeof(Oid);
	hash_info.entrysize = sizeof(Known);
	databases.known = hash_create("electric_cm known databases", 64, &hash_info,
								  HASH_ELEM | HASH_BLOBS);
}

/* Why no stack may run in this database; NULL: one may. */
static const char *
why_unwanted(Form_pg_database form)
{
	if (form->datistemplate)
		return "a template database has no stack";
	if (!form->datallowconn)
		return "the database does not allow connections";
	if (form->datconnlimit == ECM_CONNLIMIT_INVALID_DB)
		return "the database is what an interrupted DROP DATABASE has left";
	if (!ecm_database_is_listed(NameStr(form->datname)))
		return "not listed in electric_cm.databases";
	return NULL;
}

EcmDatabase *
ecm_database_find(Oid dboid)
{
	ListCell   *lc;

	foreach(lc, databases.list)
	{
		EcmDatabase *database = lfirst(lc);

		if (database->dboid == dboid)
			return database;
	}
	return NULL;
}

const char *
ecm_database_name(Oid dboid)
{
	EcmDatabase *database = ecm_database_find(dboid);

	return database != NULL ? NameStr(database->datname) : NULL;
}

/* Forgets what is known about databases that don't exist any more. */
static void
forget_dropped_databases(void)
{
	HASH_SEQ_STATUS status;
	Known	   *item;

	hash_seq_init(&status, databases.known);
	while ((item = hash_seq_search(&status)) != NULL)
		if (ecm_database_find(item->dboid) == NULL)
			hash_search(databases.known, &item->dboid, HASH_REMOVE, NULL);
}

void
ecm_databases_scan(void)
{
	MemoryContext caller = CurrentMemoryContext;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->rescan_requested = false;
	ecm_unlock();

	MemoryContextReset(databases.context);
	databases.list = NIL;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old = MemoryContextSwitchTo(databases.context);
		EcmDatabase *database = palloc0(sizeof(EcmDatabase));

		database->dboid = form->oid;
		database->datname = form->datname;
		database->unwanted = why_unwanted(form);
		database->may_look = form->datconnlimit != ECM_CONNLIMIT_INVALID_DB;
		databases.list = lappend(databases.list, database);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);

	databases.scanned_at = ecm_now();
	forget_dropped_databases();
}

EcmTime
ecm_databases_scan_due(void)
{
	return databases.scanned_at + RESCAN_INTERVAL;
}

bool
ecm_databases_scan_is_due(EcmTime now)
{
	bool		requested;

	ecm_lock(LW_SHARED);
	requested = ecm_shared->rescan_requested;
	ecm_unlock();
	return requested || now >= ecm_databases_scan_due();
}

void
ecm_databases_forget_scan(void)
{
	databases.scanned_at = 0;
}

void
ecm_database_note_known(Oid dboid, EcmTime again_at)
{
	Known	   *item = hash_search(databases.known, &dboid, HASH_ENTER, NULL);

	item->again_at = again_at;
}

void
ecm_database_forget_known(Oid dboid)
{
	hash_search(databases.known, &dboid, HASH_REMOVE, NULL);
}

void
ecm_databases_forget_known_if_requested(void)
{
	HASH_SEQ_STATUS status;
	Known	   *item;
	bool		requested;

	ecm_lock(LW_EXCLUSIVE);
	requested = ecm_shared->reprobe_all_requested;
	ecm_shared->reprobe_all_requested = false;
	ecm_unlock();
	if (!requested)
		return;

	hash_seq_init(&status, databases.known);
	while ((item = hash_seq_search(&status)) != NULL)
		hash_search(databases.known, &item->dboid, HASH_REMOVE, NULL);
}

/*
 * A database where no stack may run matters only if it has a slot, which may be ours,
 * from before: a manager has to find out, so that the launcher can watch the slot.
 */
bool
ecm_database_needs_look(const EcmDatabase *database, EcmTime now)
{
	Known	   *item;

	if (database->unwanted != NULL &&
		!(database->may_look && ecm_database_has_slot(database->dboid)))
		return false;
	item = hash_search(databases.known, &database->dboid, HASH_FIND, NULL);
	return item == NULL || (item->again_at != 0 && item->again_at <= now);
}

EcmDatabase *
ecm_database_next_to_look(EcmTime now, bool with_slot)
{
	ListCell   *lc;

	foreach(lc, databases.list)
	{
		EcmDatabase *database = lfirst(lc);

		if (ecm_database_needs_look(database, now) &&
			ecm_stack_find(database->dboid) < 0 &&
			(!with_slot || ecm_database_has_slot(database->dboid)))
			return database;
	}
	return NULL;
}
