/*-------------------------------------------------------------------------
 *
 * continuity.c
 *	  Does the stream that is about to start continue what the shape logs have?
 *
 * A shape's log begins with a snapshot and goes on with the changes of one unbroken
 * stream.  If the stream is another one, changes between the two are missing, or
 * undone, so all shapes are resynced.  That is so after a point-in-time recovery (the
 * timeline differs), after a restore (the system identifier or the
 * database's OID differs), with a new slot, by another publication, and when
 * somebody else has consumed changes from the slot.
 *
 * A slot has no identity, so it is not asked who has made it, moved it or copied it,
 * but whether it begins beyond the end of the logs.  A slot that is made anew always
 * does: it begins after a record of WAL that was written for it, and the logs have
 * nothing that was not in the WAL before.  So it does not matter at which moment a
 * process dies, as long as nothing is acknowledged that no row says is logged.
 *
 * A standby that is promoted goes on if it has a slot that synchronization has kept:
 * logs and tables have come in one WAL, so the logs are never wrong, only short.  If they
 * reach up to where the slot is, nothing is missing.  A slot that came in another way, as
 * with a copy of the data directory, may need rows of the catalogs that are gone.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>
#include <string.h>

#include "base/continuity.h"

/* Is the slot where the logs end, or before?  What comes twice is skipped. */
static bool
is_covered(const EcmLogsRecord *record, const EcmStreamFound *found)
{
	if (found->confirmed_lsn <= record->logged_lsn)
		return true;

	/* exactly there, since the record may be older than the move */
	if (record->clean_stop_lsn != 0 && found->confirmed_lsn == record->clean_stop_lsn)
		return true;
	return found->nothing_between ||
		(found->moved_from != 0 && found->moved_from <= record->logged_lsn);
}

/* The timeline is another one: may the shapes go on? */
static EcmContinuity
judge_timeline(const EcmLogsRecord *record, const EcmStreamFound *found)
{
	if (found->slot_created)
		return ECM_OTHER_TIMELINE;
	if (found->switch_lsn == 0)
		return ECM_OTHER_HISTORY;
	if (record->newest_lsn > found->switch_lsn || record->clean_stop_lsn > found->switch_lsn)
		return ECM_LOGS_AHEAD;
	if (found->slot_invalidated)
		return ECM_SLOT_INVALIDATED;
	if (!found->slot_synced)
		return ECM_SLOT_NOT_SYNCED;
	if (found->confirmed_lsn > found->switch_lsn || !is_covered(record, found))
		return ECM_SLOT_AHEAD;
	if (found->slot_wal_gone)
		return ECM_SLOT_WAL_GONE;
	return ECM_CONTINUES_FAILOVER;
}

EcmContinuity
ecm_continuity_judge(const EcmLogsRecord *record, const EcmStreamFound *found)
{
	EcmContinuity verdict = ECM_CONTINUES;

	if (record->known && record->system_identifier != found->system_identifier)
		return ECM_OTHER_SYSTEM;
	if (record->known && record->timeline_id != found->timeline_id)
		verdict = judge_timeline(record, found);
	if (!ecm_continuity_goes_on(verdict))
		return verdict;
	if (record->database_oid != found->database_oid)
		return ECM_OTHER_DATABASE;
	if (found->slot_created)
		return ECM_NEW_SLOT;
	if (!is_covered(record, found))
		return ECM_OTHER_SLOT;
	if (record->publication_dropped ||
		(record->publication[0] != '\0' &&
		 strcmp(record->publication, found->publication) != 0))
		return ECM_OTHER_PUBLICATION;
	return verdict;
}

const char *
ecm_continuity_reason(EcmContinuity verdict)
{
	switch (verdict)
	{
		case ECM_CONTINUES:
		case ECM_CONTINUES_FAILOVER:
			return NULL;
		case ECM_OTHER_SYSTEM:
			return "the system identifier has changed";
		case ECM_OTHER_TIMELINE:
			return "the timeline has changed";
		case ECM_OTHER_HISTORY:
			return "the timeline has changed, and the former one is not part of this server's history";
		case ECM_LOGS_AHEAD:
			return "the timeline has changed, and the logs go beyond the point where the former one was left";
		case ECM_SLOT_INVALIDATED:
			return "the timeline has changed, and the replication slot was invalidated";
		case ECM_SLOT_NOT_SYNCED:
			return "the timeline has changed, and the replication slot was not synchronized from the primary";
		case ECM_SLOT_WAL_GONE:
			return "the timeline has changed, and the replication slot lacks the WAL that it needs";
		case ECM_SLOT_AHEAD:
			return "the timeline has changed, and the replication slot is ahead of the logs";
		case ECM_OTHER_DATABASE:
			return "the database is a copy of another one";
		case ECM_NEW_SLOT:
			return "the replication slot is a new one";
		case ECM_OTHER_SLOT:
			return "the replication slot begins beyond the end of the logs: it was made anew, or consumed by somebody else";
		case ECM_OTHER_PUBLICATION:
			return "another publication is followed";
	}
	return NULL;
}
