/*-------------------------------------------------------------------------
 *
 * test_continuity.c
 *	  Does a stream continue the shape logs?
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "base/continuity.h"
#include "unit.h"

static EcmLogsRecord record;
static EcmStreamFound found;

/* A stack that has logged up to 1000, and a slot there. */
static void
begin(void)
{
	memset(&record, 0, sizeof(record));
	record.known = true;
	record.system_identifier = 7;
	record.timeline_id = 1;
	record.database_oid = 5;
	record.publication = "p";
	record.logged_lsn = 1000;
	memset(&found, 0, sizeof(found));
	found.system_identifier = 7;
	found.timeline_id = 1;
	found.database_oid = 5;
	found.publication = "p";
	found.confirmed_lsn = 1000;
}

/* The same, promoted with a slot that was kept in step; timeline 1 was left at 2000. */
static void
promote(void)
{
	begin();
	found.timeline_id = 2;
	found.switch_lsn = 2000;
	found.slot_synced = true;
}

static EcmContinuity
verdict(void)
{
	return ecm_continuity_judge(&record, &found);
}

void
test_continuity(void)
{
	begin();
	ok(verdict() == ECM_CONTINUES, "continuity: the slot is where the logs end");
	found.confirmed_lsn = 1;
	ok(verdict() == ECM_CONTINUES, "continuity: ... or before, as after a crash");
	found.confirmed_lsn = 1001;
	ok(verdict() == ECM_OTHER_SLOT, "continuity: ... not beyond");

	record.clean_stop_lsn = 2000;
	found.confirmed_lsn = 2000;
	ok(verdict() == ECM_CONTINUES, "continuity: a clean stop has moved it exactly there");
	found.confirmed_lsn = 1999;
	ok(verdict() == ECM_OTHER_SLOT, "continuity: ... not to another place before that");
	found.confirmed_lsn = 2001;
	ok(verdict() == ECM_OTHER_SLOT, "continuity: ... nor beyond");

	begin();
	found.confirmed_lsn = 3000;
	found.moved_from = 1000;
	ok(verdict() == ECM_CONTINUES, "continuity: a command has moved it, from where the logs end");
	found.moved_from = 1001;
	ok(verdict() == ECM_OTHER_SLOT, "continuity: ... not from beyond");

	begin();
	found.confirmed_lsn = 3000;
	found.nothing_between = true;
	ok(verdict() == ECM_CONTINUES, "continuity: beyond, but there is nothing in between");

	begin();
	record.logged_lsn = UINT64_MAX;
	found.confirmed_lsn = UINT64_MAX - 1;
	ok(verdict() == ECM_CONTINUES, "continuity: without logs nothing can be missing");

	begin();
	found.slot_created = true;
	ok(verdict() == ECM_NEW_SLOT, "continuity: a slot that we have made");
	begin();
	found.timeline_id = 2;
	found.slot_created = true;
	ok(verdict() == ECM_OTHER_TIMELINE, "continuity: another timeline");
	found.system_identifier = 8;
	ok(verdict() == ECM_OTHER_SYSTEM, "continuity: another system comes first");
	record.known = false;
	found.slot_created = false;
	ok(verdict() == ECM_CONTINUES, "continuity: a stack that has never run knows no system");
	begin();
	found.database_oid = 6;
	ok(verdict() == ECM_OTHER_DATABASE, "continuity: another database");
	begin();
	found.publication = "q";
	ok(verdict() == ECM_OTHER_PUBLICATION, "continuity: another publication");
	begin();
	record.publication_dropped = true;
	ok(verdict() == ECM_OTHER_PUBLICATION, "continuity: the publication has been made again");
	begin();
	found.publication = "q";
	record.publication = "";
	ok(verdict() == ECM_CONTINUES, "continuity: ... there was none yet");

	promote();
	ok(verdict() == ECM_CONTINUES_FAILOVER, "continuity: a promoted standby, with a synchronized slot");
	found.confirmed_lsn = 900;
	ok(verdict() == ECM_CONTINUES_FAILOVER, "continuity: ... that is behind the logs");
	found.confirmed_lsn = 1001;
	ok(verdict() == ECM_SLOT_AHEAD, "continuity: ... not ahead of them");
	found.nothing_between = true;
	ok(verdict() == ECM_CONTINUES_FAILOVER, "continuity: ... unless there is nothing in between");
	found.confirmed_lsn = 2001;
	ok(verdict() == ECM_SLOT_AHEAD, "continuity: ... nor beyond where the timeline was left");
	record.logged_lsn = UINT64_MAX;
	ok(verdict() == ECM_SLOT_AHEAD, "continuity: ... even if there are no logs");
	promote();
	record.clean_stop_lsn = 1500;
	found.confirmed_lsn = 1500;
	ok(verdict() == ECM_CONTINUES_FAILOVER, "continuity: ... where a clean stop has put it");
	record.clean_stop_lsn = 2001;
	ok(verdict() == ECM_LOGS_AHEAD, "continuity: a clean stop that is undone");
	promote();
	record.newest_lsn = 2000;
	ok(verdict() == ECM_CONTINUES_FAILOVER, "continuity: logs that go up to where the timeline was left");
	record.newest_lsn = 2001;
	ok(verdict() == ECM_LOGS_AHEAD, "continuity: ... and beyond");
	promote();
	found.switch_lsn = 0;
	ok(verdict() == ECM_OTHER_HISTORY, "continuity: a timeline that is no ancestor");
	promote();
	found.slot_synced = false;
	ok(verdict() == ECM_SLOT_NOT_SYNCED, "continuity: a slot that came in another way");
	promote();
	found.slot_invalidated = true;
	ok(verdict() == ECM_SLOT_INVALIDATED, "continuity: a slot that was invalidated");
	promote();
	found.slot_wal_gone = true;
	ok(verdict() == ECM_SLOT_WAL_GONE, "continuity: a slot without its WAL");
	promote();
	found.slot_created = true;
	ok(verdict() == ECM_OTHER_TIMELINE, "continuity: promoted, with a slot that we have made");
	promote();
	found.system_identifier = 8;
	ok(verdict() == ECM_OTHER_SYSTEM, "continuity: promoted, of another system");
	promote();
	found.database_oid = 6;
	ok(verdict() == ECM_OTHER_DATABASE, "continuity: promoted, another database");
	promote();
	found.publication = "q";
	ok(verdict() == ECM_OTHER_PUBLICATION, "continuity: promoted, another publication");

	for (int v = ECM_CONTINUES; v <= ECM_OTHER_PUBLICATION; v++)
		CHECK((ecm_continuity_reason((EcmContinuity) v) == NULL) ==
			  ecm_continuity_goes_on((EcmContinuity) v));
	checked("continuity: each end has a reason");
}
