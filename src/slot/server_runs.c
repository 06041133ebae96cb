/*-------------------------------------------------------------------------
 *
 * server_runs.c
 *	  Was the library loaded each time that the server ran?
 *
 * While the server runs without the library nobody sees DDL, and the slot
 * bridges that time as if nothing had happened.  No file tells such a run from
 * one of ours that was killed; the WAL does, in whatever way the server was
 * started, and in a copy of the data directory, too.  Each run begins after a
 * checkpoint of a kind of its own: the last record of the run before it, or of
 * crash recovery.  In a run of ours, a mark precedes the first commit.  So if a
 * run committed changes of this database's catalogs before a mark, or without
 * any, we were not there.  (Statistics don't count, lest autovacuum end all
 * shapes.)
 *
 * The mark is a record that nobody else looks at, on a standby or in decoding,
 * and that can't be written with SQL.  The WAL is read where a stack starts,
 * from where the last look ended; after a clean stop that is next to nothing,
 * after a crash about what the slot has to decode anyway.
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
#include "access/xlogutils.h"
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

PG_FUNCTION_INFO_V1(electric_cm_check_runs);

static char mark[] = "electric_cm is loaded";

typedef struct RunScan
{
	bool		ours;			/* the present run has a mark */
	bool		suspect;		/* it has changed catalogs before that */
	XLogRecPtr	began;			/* the checkpoint before it */
	XLogRecPtr	unseen;			/* likewise, of the last one without us */
	List	   *prepared;		/* by such runs: xids, as a list of OIDs */
	HTAB	   *changers;		/* xids that have changed catalogs in it */
	List	   *statistics;		/* files of those that don't count */
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

	/* only now: whoever finds it set commits behind the mark */
	pg_atomic_write_u32(&ecm_shared->run_marked, 1);
}

bool
ecm_runs_seen(XLogRecPtr seen_lsn)
{
	return seen_lsn >= ecm_first_lsn();
}

/* Are catalogs of this database concerned? */
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

/* A catalog's file, and that of what it has TOASTed. */
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

/* A row of a catalog has come or gone, which is logged for decoding. */
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

	if (info == XLOG_NOOP)
	{
		if (XLogRecGetDataLen(reader) == sizeof(mark) &&
			memcmp(XLogRecGetData(reader), mark, sizeof(mark)) == 0)
			scan->ours = true;
		return;
	}
	if (info != XLOG_CHECKPOINT_SHUTDOWN && info != XLOG_END_OF_RECOVERY)
		return;

	/* the last run, which is the present one, is never concluded */
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

		/* what was prepared may be of a run before */
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

/*
 * Reads the WAL from a position that is of a run of ours.  What a former run
 * has left is on disk, so the end of what is on disk is far enough.
 */
static void
scan_runs(RunScan *scan, XLogRecPtr from, XLogRecPtr to)
{
	ReadLocalXLogPageNoWaitPrivate private = {false};
	XLogReaderState *reader;
	char	   *error;

	memset(scan, 0, sizeof(*scan));
	scan->ours = true;
	scan->changers = create_changers();
	scan->statistics = add_files(add_files(NIL, StatisticRelationId),
								 StatisticExtDataRelationId);
	reader = XLogReaderAllocate(wal_segment_size, NULL,
								XL_ROUTINE(.page_read = read_local_xlog_page_no_wait,
										   .segment_open = wal_segment_open,
										   .segment_close = wal_segment_close),
								&private);
	if (reader == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	if (XLogRecPtrIsInvalid(ecm_find_next_record(reader, from, &error)) &&
		!private.end_of_wal)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("could not find a WAL record after %X/%X%s%s",
						LSN_FORMAT_ARGS(from),
						error ? ": " : "", error ? error : "")));
	while (!private.end_of_wal && reader->EndRecPtr < to)
	{
		CHECK_FOR_INTERRUPTS();
		if (XLogReadRecord(reader, &error) == NULL)
		{
			if (private.end_of_wal)
				break;
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("could not read WAL at %X/%X%s%s",
							LSN_FORMAT_ARGS(reader->EndRecPtr),
							error ? ": " : "", error ? error : "")));
		}
		if (XLogRecGetRmid(reader) == RM_XLOG_ID)
			look_at_run(scan, reader);
		else if (XLogRecGetRmid(reader) == RM_HEAP2_ID)
			look_at_catalog(scan, reader);
		else if (XLogRecGetRmid(reader) == RM_XACT_ID)
			look_at_transaction(scan, reader);
	}
	XLogReaderFree(reader);
}

/*
 * What a run without us has prepared is nobody's to see when it is committed.
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
					 errmsg("prepared transaction %u is to end first", lfirst_oid(lc)),
					 errdetail("It was prepared while the server ran without electric_cm, and has changed tables or types."),
					 errhint("Look for it in pg_prepared_xacts; then COMMIT PREPARED, or ROLLBACK PREPARED.")));
	}
}

static void
invalidate_all(XLogRecPtr since)
{
	Oid			type = TEXTOID;
	Datum		reason = CStringGetTextDatum("the server ran without electric_cm in shared_preload_libraries");
	char	   *datname = get_database_name(MyDatabaseId);

	ecm_spi_run("SELECT _electric_cm.invalidate_all($1)", SPI_OK_SELECT,
				1, &type, &reason, NULL);
	ecm_event_in(MyDatabaseId, datname, ECM_EVENT_SHAPES_INVALIDATED,
				 psprintf("The server ran without electric_cm in shared_preload_libraries, from WAL position %X/%X on, and tables or types may have been changed.",
						  LSN_FORMAT_ARGS(since)),
				 "all shapes made so far are invalid");
}

/*
 * _electric_cm.check_runs(slot_name name) RETURNS bool
 *
 * Throws the shapes away if the server has run without us since the last look
 * and changed catalogs of this database; returns whether it has.  Runs in a
 * pool session, before any consumer does.
 *
 * The slot goes forward under managers only that have had this look, so what
 * it does not need any more was in order.
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
		/* such a slot is of no use, as the stream will show */
		ecm_spi_end(&spi);
		PG_RETURN_BOOL(false);
	}
	if (!XLogRecPtrIsInvalid(from) && !ecm_runs_seen(from))
	{
		if (ecm_slot_wal_is_gone(from))
			scan.unseen = from; /* what can't be read may be anything */
		else
			scan_runs(&scan, from, ecm_first_lsn());
	}
	if (!XLogRecPtrIsInvalid(scan.unseen))
	{
		check_prepared(&scan);
		invalidate_all(scan.unseen);
	}
	ecm_stack_row_seen_all();
	ecm_spi_end(&spi);
	PG_RETURN_BOOL(!XLogRecPtrIsInvalid(scan.unseen));
}
