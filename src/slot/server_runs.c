/*-------------------------------------------------------------------------
 *
 * server_runs.c
 *	  Was the library loaded each time that the server ran?
 *
 * While the server runs without the library, our hooks see no DDL, but the
 * slot is still there afterwards, and decoding goes on as if nothing had
 * happened.  Shapes would go on although their tables have changed.  So a
 * stack asks at its start whether there was such a run.
 *
 * No file tells such a run from one of ours that was killed, but the WAL does,
 * however the server was started, and also in a copy of the data directory.
 * Each run of the server begins after a record of a kind of its own: the
 * shutdown checkpoint of the run before it, or the end of crash recovery.  In
 * a run with the library, a mark (below) precedes the first commit that could
 * change a catalog.  So if a run has committed changes of this database's
 * catalogs before a mark, or without any, the library was not loaded.  Changes
 * of statistics don't count, lest autovacuum have all shapes resynced.
 *
 * Another mark precedes the commit of what a run with the library could not look
 * at, since it did not know the extension's version (see version.c).
 *
 * A mark is a record that neither a standby nor decoding looks at, and that
 * can't be written with SQL.  The WAL is read when a stack starts, from where
 * the last look ended (seen_lsn).  After a clean stop that is next to nothing;
 * after a crash, about as much as the slot has to decode anyway.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam_xlog.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xloginsert.h"
#include "access/xlogreader.h"
#include "catalog/pg_class.h"
#include "catalog/pg_control.h"
#include "catalog/pg_statistic.h"
#include "catalog/pg_statistic_ext_data.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/procarray.h"
#include "storage/sinval.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/event.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/stack_catalog.h"
#include "slot/server_runs.h"
#include "slot/slot.h"
#include "slot/wal_scan.h"

PG_FUNCTION_INFO_V1(electric_cm_check_runs);

static char mark[] = "electric_cm is loaded";

/* ... but could not look at this.  Told from the other by its length, too. */
#define UNSEEN_TEXT		"electric_cm has not seen this"

typedef struct UnseenMark
{
	char		text[sizeof(UNSEEN_TEXT)];
	Oid			database;
} UnseenMark;

/* State of the scan; "the run" is the one whose WAL is being read. */
typedef struct RunScan
{
	bool		ours;			/* the run's mark has been met */
	bool		suspect;		/* the run has committed changes of catalogs
								 * before its mark */
	XLogRecPtr	began;			/* where the run's WAL begins */
	XLogRecPtr	unseen;			/* where the last run without the library
								 * begins; invalid: there was none */
	bool		not_known;		/* ... or where the library last did not know
								 * the extension's version */
	List	   *prepared;		/* xids (in a list of OIDs) of transactions
								 * that have changed catalogs and were
								 * prepared in runs without the library */
	HTAB	   *changers;		/* xids of the run that have changed catalogs */
	List	   *statistics;		/* files of the catalogs of statistics */
} RunScan;

void
ecm_run_mark(void)
{
	if (ecm_shared == NULL || RecoveryInProgress() ||
		pg_atomic_read_u32(&ecm_shared->run_marked) != 0)
		return;
	XLogBeginInsert();
	XLogRegisterData(mark, sizeof(mark));
	(void) XLogInsert(RM_XLOG_ID, XLOG_NOOP);

	/*
	 * set after the insertion: a process that finds it set will commit after
	 * the mark
	 */
	pg_atomic_write_u32(&ecm_shared->run_marked, 1);
}

void
ecm_run_mark_unseen(void)
{
	UnseenMark	unseen;
	XLogRecPtr	end;

	if (ecm_shared == NULL || RecoveryInProgress())
		return;
	memset(&unseen, 0, sizeof(unseen));
	strlcpy(unseen.text, UNSEEN_TEXT, sizeof(unseen.text));
	unseen.database = MyDatabaseId;
	XLogBeginInsert();
	XLogRegisterData((char *) &unseen, sizeof(unseen));
	end = XLogInsert(RM_XLOG_ID, XLOG_NOOP);
	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->unseen_lsn = Max(ecm_shared->unseen_lsn, end);
	ecm_unlock();
}

/* Where the last such mark of this run ends; invalid: there is none. */
static XLogRecPtr
unseen_lsn(void)
{
	XLogRecPtr	lsn;

	ecm_lock(LW_SHARED);
	lsn = ecm_shared->unseen_lsn;
	ecm_unlock();
	return lsn;
}

bool
ecm_runs_seen(XLogRecPtr seen_lsn)
{
	return seen_lsn >= Max(ecm_first_lsn(), unseen_lsn());
}

/* Do a commit's invalidation messages concern catalogs of this database? */
static bool
changes_catalogs(const SharedInvalidationMessage *msgs, int n)
{
	for (int i = 0; i < n; i++)
	{
		Oid			database = InvalidOid;

		if (msgs[i].id >= 0)
			database = msgs[i].cc.dbId;
		else if (msgs[i].id == SHAREDINVALCATALOG_ID)
			database = msgs[i].cat.dbId;
		else if (msgs[i].id == SHAREDINVALRELCACHE_ID)
			database = msgs[i].rc.dbId;
		else if (msgs[i].id == SHAREDINVALRELMAP_ID)
			database = msgs[i].rm.dbId;
		if (OidIsValid(database) && database == MyDatabaseId)
			return true;
	}
	return false;
}

/* Adds the files of a catalog and of its TOAST table to a list. */
static List *
add_files(List *files, Oid catalog)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(catalog));
	Form_pg_class form;
	Oid			toast;

	if (!HeapTupleIsValid(tuple))
		return files;
	form = (Form_pg_class) GETSTRUCT(tuple);
	files = lappend_oid(files, form->relfilenode);
	toast = form->reltoastrelid;
	ReleaseSysCache(tuple);
	return OidIsValid(toast) ? add_files(files, toast) : files;
}

static HTAB *
create_changers(void)
{
	HASHCTL		ctl = {.keysize = sizeof(TransactionId), .entrysize = sizeof(TransactionId),
	.hcxt = CurrentMemoryContext};

	return hash_create("electric_cm unseen transactions", 64, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * Notes the transaction that has changed a catalog: such a change is logged in
 * a record of its own, for decoding.
 */
static void
look_at_catalog(RunScan *scan, XLogReaderState *reader)
{
	xl_heap_new_cid *rec = (xl_heap_new_cid *) XLogRecGetData(reader);

	if (!scan->ours &&
		(XLogRecGetInfo(reader) & XLOG_HEAP_OPMASK) == XLOG_HEAP2_NEW_CID &&
		ecm_new_cid_database(rec) == MyDatabaseId &&
		!list_member_oid(scan->statistics, ecm_new_cid_relation(rec)))
		(void) hash_search(scan->changers, &rec->top_xid, HASH_ENTER, NULL);
}

static bool
is_changer(const RunScan *scan, TransactionId xid)
{
	return hash_search(scan->changers, &xid, HASH_FIND, NULL) != NULL;
}

static void
look_at_run(RunScan *scan, XLogReaderState *reader)
{
	uint8		info = XLogRecGetInfo(reader) & ~XLR_INFO_MASK;

	if (info == XLOG_NOOP && XLogRecGetDataLen(reader) == sizeof(UnseenMark))
	{
		UnseenMark *unseen = (UnseenMark *) XLogRecGetData(reader);

		if (memcmp(unseen->text, UNSEEN_TEXT, sizeof(unseen->text)) != 0 ||
			unseen->database != MyDatabaseId)
			return;
		scan->unseen = reader->ReadRecPtr;
		scan->not_known = true;
		if (TransactionIdIsValid(XLogRecGetXid(reader)))
			scan->prepared = lappend_oid(scan->prepared, XLogRecGetXid(reader));
		return;
	}
	if (info == XLOG_NOOP)
	{
		if (XLogRecGetDataLen(reader) == sizeof(mark) &&
			memcmp(XLogRecGetData(reader), mark, sizeof(mark)) == 0)
			scan->ours = true;
		return;
	}
	if (info != XLOG_CHECKPOINT_SHUTDOWN && info != XLOG_END_OF_RECOVERY)
		return;

	/*
	 * A run ends here, and the next one begins.  (The scan ends before the
	 * present run, so that is never judged.)
	 */
	if (scan->suspect)
		scan->unseen = scan->began;
	scan->suspect = scan->ours = false;
	scan->began = reader->EndRecPtr;
	hash_destroy(scan->changers);
	scan->changers = create_changers();
}

static void
look_at_transaction(RunScan *scan, XLogReaderState *reader)
{
	uint8		info = XLogRecGetInfo(reader);
	uint8		kind = info & XLOG_XACT_OPMASK;

	if (scan->ours)
		return;
	if (kind == XLOG_XACT_COMMIT || kind == XLOG_XACT_COMMIT_PREPARED)
	{
		xl_xact_parsed_commit parsed;

		/*
		 * the changes of a prepared transaction may be in the WAL of a run
		 * before, so "changers" need not have it
		 */
		ParseCommitRecord(info, (xl_xact_commit *) XLogRecGetData(reader), &parsed);
		scan->suspect |= changes_catalogs(parsed.msgs, parsed.nmsgs) &&
			(kind == XLOG_XACT_COMMIT_PREPARED ||
			 is_changer(scan, XLogRecGetXid(reader)));
	}
	else if (kind == XLOG_XACT_PREPARE)
	{
		xl_xact_prepare *rec = (xl_xact_prepare *) XLogRecGetData(reader);
		xl_xact_parsed_prepare parsed;

		ParsePrepareRecord(info, rec, &parsed);
		if (!changes_catalogs(parsed.msgs, parsed.nmsgs) || !is_changer(scan, rec->xid))
			return;
		scan->suspect = true;
		scan->prepared = lappend_oid(scan->prepared, rec->xid);
	}
}

static bool
look_at_record(XLogReaderState *reader, void *arg)
{
	RunScan    *scan = arg;

	if (XLogRecGetRmid(reader) == RM_XLOG_ID)
		look_at_run(scan, reader);
	else if (XLogRecGetRmid(reader) == RM_HEAP2_ID)
		look_at_catalog(scan, reader);
	else if (XLogRecGetRmid(reader) == RM_XACT_ID)
		look_at_transaction(scan, reader);
	return true;
}

/*
 * Reads the WAL from 'from', which is in a run with the library, to 'to', the
 * beginning of the present run.  All WAL of former runs is on disk, so the
 * scan may end where the WAL on disk ends.
 */
static void
scan_runs(RunScan *scan, XLogRecPtr from, XLogRecPtr to)
{
	memset(scan, 0, sizeof(*scan));
	scan->ours = true;
	scan->changers = create_changers();
	scan->statistics = add_files(add_files(NIL, StatisticRelationId),
								 StatisticExtDataRelationId);
	(void) ecm_wal_scan(from, to, look_at_record, scan);
}

/*
 * Raises an ERROR if a transaction that was prepared in a run without the
 * library is still open.  Our hooks have not seen its DDL, so shapes that are
 * created now would not notice when it is committed.
 */
static void
check_prepared(const RunScan *scan)
{
	ListCell   *lc;

	foreach(lc, scan->prepared)
	{
		if (TransactionIdIsInProgress(lfirst_oid(lc)))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("%s transaction %u is to end first",
							scan->not_known ? "open or prepared" : "prepared", lfirst_oid(lc)),
					 scan->not_known ?
					 errdetail("It has changed tables or types while electric_cm and its extension were not of one version.") :
					 errdetail("It was prepared while the server ran without electric_cm, and has changed tables or types."),
					 errhint("Look for it in pg_prepared_xacts; then COMMIT PREPARED, or ROLLBACK PREPARED.")));
	}
}

static void
resync_all(const RunScan *scan)
{
	Oid			type = TEXTOID;
	Datum		reason = CStringGetTextDatum(scan->not_known ?
											 "the library did not know the extension's version" :
											 "the server ran without electric_cm in shared_preload_libraries");
	char	   *datname = get_database_name(MyDatabaseId);

	ecm_spi_run("SELECT _electric_cm.resync_all($1)", SPI_OK_SELECT,
				1, &type, &reason, NULL);
	ecm_event_in(MyDatabaseId, datname, ECM_EVENT_SHAPES_RESYNCING,
				 psprintf(scan->not_known ?
						  "The library that the server had loaded did not know the extension's version, and tables or types were changed, up to WAL position %X/%X." :
						  "The server ran without electric_cm in shared_preload_libraries, from WAL position %X/%X on, and tables or types may have been changed.",
						  LSN_FORMAT_ARGS(scan->unseen)),
				 "all shapes of this database are compared with their tables");
}

/*
 * _electric_cm.check_runs(slot_name name) RETURNS bool
 *
 * Has all shapes resynced if the server has run without the library since the
 * last look, and changed catalogs of this database; returns whether it has.
 * Runs in a pool session, before any consumer does.
 *
 * Only managers that have had this look done advance the slot.  So WAL before
 * the slot's restart_lsn need not be looked at.
 *
 * Errors: 55000 a transaction that such a run has prepared is still open.
 */
Datum
electric_cm_check_runs(PG_FUNCTION_ARGS)
{
	const char *slot_name = NameStr(*PG_GETARG_NAME(0));
	EcmSlotFacts facts;
	EcmSpiState spi;
	RunScan		scan = {0};
	EcmStackRow remembered;
	XLogRecPtr	from;

	ecm_require_shared();
	ecm_stack_row_read(&remembered);
	from = remembered.seen_lsn;
	ecm_spi_begin(&spi);
	if (ecm_slot_lookup(slot_name, &facts))
		from = Max(from, facts.restart_lsn);
	if (facts.exists && ecm_slot_wal_is_gone(facts.restart_lsn))
	{
		/* the slot is of no use; the stream will fail, and it is made anew */
		ecm_spi_end(&spi);
		PG_RETURN_BOOL(false);
	}
	if (!XLogRecPtrIsInvalid(from) && !ecm_runs_seen(from))
	{
		if (ecm_slot_wal_is_gone(from))
			scan.unseen = from; /* it can't be read, so assume the worst */
		else
		{
			XLogRecPtr	unseen = unseen_lsn();

			/* what this run has not seen may not be on disk yet */
			if (!XLogRecPtrIsInvalid(unseen))
				XLogFlush(unseen);
			scan_runs(&scan, from, Max(ecm_first_lsn(), unseen));
		}
	}
	if (!XLogRecPtrIsInvalid(scan.unseen))
	{
		check_prepared(&scan);
		resync_all(&scan);
	}
	ecm_stack_row_seen_all();
	ecm_spi_end(&spi);
	PG_RETURN_BOOL(!XLogRecPtrIsInvalid(scan.unseen));
}
