/*-------------------------------------------------------------------------
 *
 * continuity.c
 *	  Does the stream that is about to start continue what the shape logs have?
 *
 * A shape's log begins with a snapshot and goes on with the changes of one unbroken
 * stream.  If the stream is another one, changes between the two are missing, or
 * undone, so all shapes are resynced.  That is so after a failover or a point-in-time
 * recovery (the timeline differs), after a restore (the system identifier or the
 * database's OID differs; pg_upgrade is an exception, if it has taken the slot along),
 * with a new slot, by another publication, and when somebody else has consumed changes
 * from the slot.
 *
 * A slot has no identity, so it is not asked who has made it, moved it or copied it,
 * but whether it begins beyond the end of the logs.  A slot that is made anew always
 * does: it begins after a record of WAL that was written for it, and the logs have
 * nothing that was not in the WAL before.  So it does not matter at which moment a
 * process dies, as long as nothing is acknowledged that no row says is logged.
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

/*
 * pg_upgrade gives the new cluster another identity, timeline 1, and WAL that begins
 * beyond the old one's.  It takes a slot along only if that has consumed everything
 * which was committed there.  So after a clean stop, whose position tells what the slot
 * had consumed then, the slot in the new cluster goes on where the logs end.
 */
bool
ecm_continuity_is_upgrade(const EcmLogsRecord *record, const EcmStreamFound *found)
{
	return record->known && record->system_identifier != found->system_identifier &&
		record->clean_stop_lsn != 0 && found->confirmed_lsn > record->clean_stop_lsn &&
		found->timeline_id == 1 && found->begins_cluster && !found->slot_created;
}

EcmContinuity
ecm_continuity_judge(const EcmLogsRecord *record, const EcmStreamFound *found)
{
	bool		upgraded = ecm_continuity_is_upgrade(record, found);

	if (record->known && record->system_identifier != found->system_identifier && !upgraded)
		return ECM_OTHER_SYSTEM;
	if (record->known && !upgraded && record->timeline_id != found->timeline_id)
		return ECM_OTHER_TIMELINE;
	if (record->database_oid != found->database_oid)
		return ECM_OTHER_DATABASE;
	if (found->slot_created)
		return ECM_NEW_SLOT;
	if (!upgraded && !is_covered(record, found))
		return ECM_OTHER_SLOT;
	if (record->publication_dropped ||
		(record->publication[0] != '\0' &&
		 strcmp(record->publication, found->publication) != 0))
		return ECM_OTHER_PUBLICATION;
	return ECM_CONTINUES;
}

const char *
ecm_continuity_reason(EcmContinuity verdict)
{
	switch (verdict)
	{
		case ECM_CONTINUES:
			return NULL;
		case ECM_OTHER_SYSTEM:
			return "the system identifier has changed";
		case ECM_OTHER_TIMELINE:
			return "the timeline has changed";
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
