/*-------------------------------------------------------------------------
 *
 * continuity.h
 *	  Does the stream that is about to start continue what the shape logs have?
 *	  (what is recorded, what is found) -> verdict.
 *
 * Pure: no server, no I/O.  Compiled into the extension and into the unit tests.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_CONTINUITY_H
#define ECM_CONTINUITY_H

#include <stdbool.h>
#include <stdint.h>

/* What the tables say about the stream that the logs were made from. */
typedef struct EcmLogsRecord
{
	bool		known;			/* a stack has run before: the next two are
								 * set */
	uint64_t	system_identifier;
	uint32_t	timeline_id;
	uint32_t	database_oid;
	const char *publication;	/* "": there was no stream yet */
	bool		publication_dropped;	/* since then */
	uint64_t	logged_lsn;		/* the logs have everything before this;
								 * UINT64_MAX: there are none */
	uint64_t	clean_stop_lsn; /* where a clean stop has put the slot, with
								 * nothing but its own commits skipped; 0:
								 * there was none since the last start */
	uint64_t	newest_lsn;		/* nothing is recorded that is beyond this;
								 * need be known only if the timeline differs */
} EcmLogsRecord;

/* The stream as it would be now. */
typedef struct EcmStreamFound
{
	uint64_t	system_identifier;
	uint32_t	timeline_id;
	uint32_t	database_oid;
	const char *publication;
	bool		slot_created;	/* this process has made the slot */
	uint64_t	confirmed_lsn;	/* the stream begins here */
	uint64_t	moved_from;		/* a command has moved the slot from here to
								 * confirmed_lsn, past nothing but what the
								 * stack has written; 0: none has */
	bool		nothing_between;	/* from logged_lsn to confirmed_lsn nobody
									 * but the stack has committed anything */

	/* if the timeline differs */
	uint64_t	switch_lsn;		/* the recorded one is an ancestor of this
								 * one, and was left there; 0: it is none */
	bool		slot_invalidated;
	bool		slot_synced;	/* slot synchronization has made the slot */
	bool		slot_wal_gone;	/* it lacks the WAL that it needs */

	bool		begins_cluster; /* nobody has committed anything here since
								 * this cluster's WAL began: the slot is as
								 * pg_upgrade has made it */
} EcmStreamFound;

typedef enum EcmContinuity
{
	ECM_CONTINUES,
	ECM_CONTINUES_FAILOVER,		/* on another timeline than was recorded */
	ECM_CONTINUES_UPGRADE,		/* in the cluster that pg_upgrade has made */
	ECM_OTHER_SYSTEM,
	ECM_OTHER_TIMELINE,			/* with a new slot */
	ECM_OTHER_HISTORY,			/* which the recorded timeline is not part of */
	ECM_LOGS_AHEAD,				/* another timeline, and ... */
	ECM_SLOT_INVALIDATED,
	ECM_SLOT_NOT_SYNCED,
	ECM_SLOT_WAL_GONE,
	ECM_SLOT_AHEAD,
	ECM_OTHER_DATABASE,
	ECM_NEW_SLOT,
	ECM_OTHER_SLOT,				/* changes between the logs' end and the
								 * slot's position are missing */
	ECM_OTHER_PUBLICATION
} EcmContinuity;

extern EcmContinuity ecm_continuity_judge(const EcmLogsRecord *record,
										  const EcmStreamFound *found);

/* May the shapes go on? */
static inline bool
ecm_continuity_goes_on(EcmContinuity verdict)
{
	return verdict == ECM_CONTINUES || verdict == ECM_CONTINUES_FAILOVER ||
		verdict == ECM_CONTINUES_UPGRADE;
}

/* The reason why all shapes are resynced, in words; NULL: they are not. */
extern const char *ecm_continuity_reason(EcmContinuity verdict);

#endif							/* ECM_CONTINUITY_H */
