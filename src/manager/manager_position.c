/*-------------------------------------------------------------------------
 *
 * manager_position.c
 *	  How far the logs are, as rows say: what may be acknowledged to the slot.
 *
 * The slot's position outlives this process, the server's run and a crash.  A later
 * manager has only the tables to tell whether the slot that it finds goes on where
 * the logs end (base/continuity.c).  So nothing is acknowledged that no row says is
 * logged, and that row is flushed before.
 *
 * Consumers write such rows, but only with entries.  Beyond that a marker is written
 * by a pool session: when MARK_BYTES have come together, or MARK_MIN_BYTES and
 * MARK_MS.  What is less is no marker worth: each is WAL, which would want another one,
 * and an idle server is to write nothing.  It is acknowledged if the WAL shows that
 * nobody but the stack has committed anything there; a later manager can see that, too.
 * Otherwise a marker is written for less where it lets the slot retain less WAL.
 *
 * A marker that can't be written holds the slot back, and is shown in waiting_for.
 *
 * A standby that keeps the slot in step moves its own up to where it has the WAL.  That
 * says nothing of the row, which comes later in the WAL.  So what a row says is
 * acknowledged when the standbys have that row; only that waits.  Those that nobody has
 * named, and that are too slow, are not waited for when the slot retains too much:
 * a standby that is promoted with a slot ahead of its logs notices, and resyncs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/timeline.h"
#include "access/xlog.h"
#include "miscadmin.h"

#include "base/bgworker.h"
#include "base/clock.h"
#include "base/continuity.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/stack_catalog.h"
#include "connection/pool.h"
#include "manager/consumer_queues.h"
#include "manager/manager.h"
#include "slot/slot.h"
#include "slot/slot_moved.h"
#include "slot/slot_upgraded.h"
#include "slot/standbys.h"
#include "slot/wal_commits.h"

#define MARK_BYTES			(16 * 1024 * 1024)
#define MARK_MIN_BYTES		(64 * 1024)
#define MARK_MS				10000
/* If the slot retains so much, it is looked whether a marker lets it retain less. */
#define FREES_BYTES			(1024 * 1024)
#define FREES_LOOK_MS		500
/* How often it is looked whether standbys have a row. */
#define STANDBYS_LOOK_MS	100
/* How soon a marker that could not be written is tried again. */
#define MARK_RETRY_MS		1000
/* A marker that takes so long is shown as what the stack waits for. */
#define MARK_SLOW_MS		5000

/* ------------------------------------------------------ is it our slot? -- */

typedef struct RecordLook
{
	Manager    *m;
	XLogRecPtr	confirmed_lsn;	/* where the slot is */

	/* results */
	EcmLogsRecord record;
	XLogRecPtr	switch_lsn;		/* where the recorded timeline was left;
								 * invalid: it wasn't */
} RecordLook;

/*
 * Where this server's history has left a timeline; invalid: it was never on that.  An
 * ERROR if the history can't be read.
 */
static XLogRecPtr
end_of_timeline(TimeLineID timeline, TimeLineID present)
{
	ListCell   *lc;

	foreach(lc, readTimeLineHistory(present))
	{
		TimeLineHistoryEntry *entry = lfirst(lc);

		if (entry->tli == timeline && entry->tli != present)
			return entry->end;
	}
	return InvalidXLogRecPtr;
}

/* In a transaction: what is recorded.  arg: RecordLook. */
static void
read_record(void *arg)
{
	RecordLook *look = arg;
	EcmLogsRecord *record = &look->record;
	Manager    *m = look->m;
	const EcmStackRow *row = &m->remembered;

	ecm_stack_row_read(&m->remembered);
	record->known = row->known;
	record->system_identifier = row->system_identifier;
	record->timeline_id = row->timeline_id;
	record->database_oid = row->database_oid;
	record->publication = NameStr(row->publication);
	record->publication_dropped = row->publication_dropped;
	record->clean_stop_lsn = row->clean_stop_lsn;

	if (ecm_stack_row_is_of_other_history(row, &m->replication.info))
	{
		record->newest_lsn = ecm_stack_newest_lsn();
		look->switch_lsn = end_of_timeline(row->timeline_id, m->replication.info.timeline_id);
	}

	/* what this process has acknowledged needs no look at the tables */
	record->logged_lsn = m->position.slot;
	if (look->confirmed_lsn > record->logged_lsn)
		record->logged_lsn = ecm_stack_logged_lsn();
}

/* Where the WAL is to be read for commits, and whether there are none. */
typedef struct IdleLook
{
	XLogRecPtr	from;
	XLogRecPtr	to;
	bool		marker_only;	/* of our own, only the marker's don't count */
	bool		idle;			/* result */
} IdleLook;

/* In a transaction.  arg: IdleLook. */
static void
read_commits(void *arg)
{
	IdleLook   *look = arg;
	TransactionId *xids;
	int			n;

	n = ecm_stack_progress_xids(look->marker_only, &xids);
	look->idle = ecm_wal_has_no_commits(look->from, look->to, xids, n);
}

/* In a transaction: has a command moved the slot?  arg: EcmStreamFound. */
static void
read_move(void *arg)
{
	EcmStreamFound *found = arg;

	found->moved_from = ecm_slot_moved_from(found->confirmed_lsn);
}

/* Fills what counts on another timeline than was recorded. */
static void
look_at_failover(XLogRecPtr switch_lsn, const EcmSlotFacts *facts, EcmStreamFound *found)
{
	found->switch_lsn = switch_lsn;
	found->slot_invalidated = facts->invalidation != NULL;
	found->slot_synced = facts->synced && !facts->temporary;
	found->slot_wal_gone = ecm_slot_wal_is_gone(facts->restart_lsn);
}

typedef struct BeginningLook
{
	const EcmSlotFacts *facts;
	bool		result;
} BeginningLook;

/* In a transaction: is the slot as pg_upgrade makes it?  arg: BeginningLook. */
static void
read_beginning(void *arg)
{
	BeginningLook *look = arg;

	look->result = ecm_slot_begins_cluster(look->facts);
}

static bool
slot_begins_cluster(Manager *m)
{
	EcmSlotFacts facts;
	BeginningLook look = {.facts = &facts};
	EcmError	err;

	if (!m->remembered.known || m->remembered.system_identifier == m->replication.info.system_identifier ||
		XLogRecPtrIsInvalid(m->remembered.clean_stop_lsn) || m->replication.info.timeline_id != 1 ||
		!ecm_manager_slot_is_usable(m->stack->slot.name, &facts) || facts.temporary ||
		facts.invalidation != NULL)
		return false;
	return ecm_worker_try(read_beginning, &look, &err) && look.result;
}

/* Compares a slot at that position with the logs.  False: that can't be done now (err). */
static bool
compare(Manager *m, XLogRecPtr confirmed_lsn, EcmStreamFound *found,
		EcmContinuity *verdict, EcmError *err)
{
	const EcmReplicationInfo *info = &m->replication.info;
	RecordLook	look = {.m = m, .confirmed_lsn = confirmed_lsn};
	EcmSlotFacts facts;
	EcmError	unreadable;

	*found = (EcmStreamFound)
	{
		.system_identifier = info->system_identifier,
			.timeline_id = info->timeline_id,
			.database_oid = MyDatabaseId,
			.publication = ecm_publication_name,
			.slot_created = info->slot_created,
			.confirmed_lsn = confirmed_lsn,
			.begins_cluster = slot_begins_cluster(m)
	};
	if (!ecm_worker_try(read_record, &look, err))
		return false;
	if (ecm_stack_row_is_of_other_history(&m->remembered, info) &&
		ecm_slot_lookup(m->stack->slot.name, &facts))
		look_at_failover(look.switch_lsn, &facts, found);
	*verdict = ecm_continuity_judge(&look.record, found);

	if (*verdict == ECM_OTHER_SLOT || *verdict == ECM_SLOT_AHEAD)
	{
		IdleLook	idle = {.from = look.record.logged_lsn, .to = confirmed_lsn};

		/*
		 * WAL that can't be read there says nothing, and has nothing to
		 * stream
		 */
		if (idle.to - idle.from < MARK_BYTES && ecm_worker_try(read_commits, &idle, &unreadable))
			found->nothing_between = idle.idle;
		(void) ecm_worker_try(read_move, found, &unreadable);
		*verdict = ecm_continuity_judge(&look.record, found);
	}
	return true;
}

bool
ecm_manager_slot_survives(Manager *m)
{
	EcmSlotFacts facts;
	EcmStreamFound found;
	EcmContinuity verdict;
	EcmError	err;

	/* what was refused before has gone since then, maybe */
	if (!ecm_slot_lookup(m->stack->slot.name, &facts) ||
		!compare(m, facts.confirmed_flush_lsn, &found, &verdict, &err) ||
		ecm_continuity_goes_on(verdict))
		return true;
	m->compared.refused = verdict;
	return false;
}

bool
ecm_manager_compare_slot(Manager *m, const char **mismatch, EcmError *err)
{
	EcmStreamFound found;
	EcmContinuity verdict;

	if (!compare(m, m->replication.info.confirmed_flush_lsn, &found, &verdict, err))
		return false;
	m->compared.upgraded = verdict == ECM_CONTINUES_UPGRADE;
	m->compared.switch_lsn = m->compared.upgraded ? found.confirmed_lsn : found.switch_lsn;
	/* the slot that was there has had to go */
	if (verdict == ECM_OTHER_TIMELINE && m->compared.refused != ECM_CONTINUES)
		verdict = m->compared.refused;
	*mismatch = ecm_continuity_reason(verdict);
	return true;
}

void
ecm_manager_slot_compared(Manager *m, bool mismatch, bool marked)
{
	LogPosition *p = &m->position;
	XLogRecPtr	lsn = m->replication.info.confirmed_flush_lsn;

	if (mismatch)
		p->slot = p->marker = p->idle_lsn = p->known = InvalidXLogRecPtr;
	p->candidate = InvalidXLogRecPtr;
	p->slot = Max(p->slot, lsn);
	if (marked)
	{
		p->marker = Max(p->marker, lsn);
		p->marker_end = GetFlushRecPtr(NULL);
		p->marked_at = ecm_now();
	}
}

/*
 * Between the look at the slot and the stream's begin nobody holds the slot, so
 * somebody else may have consumed it, or made another one of that name.
 */
bool
ecm_manager_slot_is_as_compared(Manager *m, EcmStepFailure *failure)
{
	EcmSlotFacts facts;

	if (ecm_slot_lookup(m->stack->slot.name, &facts) &&
		facts.confirmed_flush_lsn == m->replication.info.confirmed_flush_lsn)
		return true;
	(void) ecm_failure_make(failure, ECM_ERROR_RETRY, "55006",
							psprintf("somebody else has used replication slot \"%s\" just before the stream began",
									 m->stack->slot.name), "", "");
	return false;
}

/* -------------------------------------------------------- acknowledging -- */

/*
 * Are the standbys too slow to be waited for?  Not if the administrator has named them:
 * then the stream waits for them, too.
 */
static bool
standbys_are_given_up(const Manager *m)
{
	EcmSlotFacts facts;

	return ecm_retained_wal_warning >= 0 && !ecm_standbys_are_named() &&
		ecm_slot_lookup(m->stack->slot.name, &facts) &&
		ecm_current_lsn() - facts.restart_lsn > ecm_retained_wal_warning * UINT64CONST(1024) * 1024;
}

/*
 * The part of what is recorded here that standbys know of, too.  One position after the
 * other is waited for: if it moved on with the load, they would never have it.
 */
static XLogRecPtr
known_to_standbys(Manager *m, EcmTime now, XLogRecPtr recorded)
{
	LogPosition *p = &m->position;

	if (XLogRecPtrIsInvalid(p->candidate) && recorded > p->known)
	{
		p->candidate = recorded;
		/* of an idle server, a standby has to know all rows of progress */
		p->candidate_end = recorded <= p->idle_lsn ? GetFlushRecPtr(NULL) :
			ecm_queues_recorded_end(p->marker, p->marker_end);
		p->standbys_look_at = now;
	}
	if (XLogRecPtrIsInvalid(p->candidate))
		return p->known;
	if (now >= p->standbys_look_at)
	{
		p->standbys_look_at = ecm_later(now, STANDBYS_LOOK_MS);
		if (ecm_standbys_have(p->candidate_end) || standbys_are_given_up(m))
		{
			p->known = p->candidate;
			p->candidate = InvalidXLogRecPtr;
			return p->known;
		}
	}
	ecm_manager_wake_at(m, p->standbys_look_at);
	return p->known;
}

XLogRecPtr
ecm_manager_acknowledgeable_lsn(Manager *m, EcmTime now, XLogRecPtr flushed)
{
	LogPosition *p = &m->position;
	XLogRecPtr	recorded = Min(flushed, Max(ecm_queues_recorded_lsn(p->marker), p->idle_lsn));

	if (ecm_slot_is_for_failover())
		return Min(flushed, known_to_standbys(m, now, recorded));
	p->known = recorded;
	p->candidate = InvalidXLogRecPtr;
	return recorded;
}

void
ecm_manager_note_acknowledged(Manager *m, XLogRecPtr lsn)
{
	m->position.slot = Max(m->position.slot, lsn);
}

/* ----------------------------------------------------------- the marker -- */

static void
marked(void *arg, EcmConn *conn pg_attribute_unused(), const EcmError *err)
{
	Manager    *m = arg;
	LogPosition *p = &m->position;

	p->job = 0;
	p->error[0] = '\0';
	if (err == NULL)
	{
		p->marker = Max(p->marker, p->marking);
		p->marker_end = GetFlushRecPtr(NULL);
		p->marked_at = ecm_now();
		p->frees_wal = false;
		return;
	}
	p->retry_at = ecm_later(ecm_now(), MARK_RETRY_MS);
	strlcpy(p->error, err->message, sizeof(p->error));
}

/*
 * So much may be unacknowledged.  Under a limit on retained WAL it is less: the slot
 * must not come near to it only because of that.
 */
static int64
mark_bytes(void)
{
	int64		bytes = MARK_BYTES;
	int64		keep = ecm_max_slot_wal_keep_bytes();

	if (keep >= 0)
		bytes = Min(bytes, keep / 8);
	if (ecm_retained_wal_limit > 0)
		bytes = Min(bytes, ecm_retained_wal_limit * INT64CONST(1024) * 1024 / 8);
	return Max(bytes, MARK_MIN_BYTES);
}

/* Shows that the slot is held back since no marker can be written. */
static void
show_wait(Manager *m, EcmTime now, int64 behind)
{
	LogPosition *p = &m->position;
	Waiting    *w = &m->waiting;
	bool		waits = behind >= mark_bytes() &&
	(p->error[0] != '\0' ||
	 (p->job != 0 && ecm_has_passed(p->marking_at, now, MARK_SLOW_MS)));

	if (waits && (w->text[0] == '\0' || w->marker_shown))
		snprintf(w->text, sizeof(w->text),
				 "a pool session to record that the shape logs are at %X/%X: the slot is held back until then%s%s",
				 LSN_FORMAT_ARGS(p->marking), p->error[0] != '\0' ? ": " : "", p->error);
	else if (w->marker_shown)
	{
		ecm_manager_forget_wait(m);
		waits = false;
	}
	else
		waits = false;
	w->marker_shown = waits;
}

/*
 * Looks whether the slot would retain less WAL if that were acknowledged.  Little may be
 * missing, and yet it may be the record by which the slot moves on, over as much WAL as
 * a long transaction has made it retain.
 */
static void
look_at_slot(Manager *m, EcmTime now, XLogRecPtr flushed)
{
	LogPosition *p = &m->position;
	EcmSlotFacts facts;

	if (now < p->frees_look_at)
		return;
	p->frees_look_at = ecm_later(now, FREES_LOOK_MS);
	p->frees_wal = ecm_slot_lookup(m->stack->slot.name, &facts) &&
		flushed - facts.restart_lsn >= FREES_BYTES &&
		!XLogRecPtrIsInvalid(facts.moves_at) && facts.moves_at <= flushed &&
		facts.moves_at > facts.confirmed_flush_lsn;
}

/*
 * Looks whether the little that is no marker worth can be acknowledged without one.
 * A consumer's row is written over later, while the rows of others may stay as they
 * are; so only where there is one consumer do its commits count as our own.
 */
static void
look_at_idle(Manager *m, EcmTime now, XLogRecPtr recorded, XLogRecPtr flushed)
{
	LogPosition *p = &m->position;
	IdleLook	look = {.from = recorded, .to = flushed, .marker_only = ecm_shape_workers > 1};
	EcmError	err;

	if (flushed <= recorded || flushed <= p->idle_tried)
		return;
	if (now < p->idle_look_at)
	{
		ecm_manager_wake_at(m, p->idle_look_at);
		return;
	}
	p->idle_look_at = ecm_later(now, MARK_MS);
	p->idle_tried = flushed;
	if (ecm_worker_try(read_commits, &look, &err) && look.idle)
		p->idle_lsn = flushed;
}

/*
 * Part of the round: has the marker written, if that is due.  Not while a command has
 * the stack paused, nor before the stream's slot was compared with the logs.
 */
bool
ecm_manager_mark_position(Manager *m, EcmTime now,
						  RoundInput *in pg_attribute_unused())
{
	LogPosition *p = &m->position;
	XLogRecPtr	flushed;
	XLogRecPtr	recorded;
	int64		behind;
	EcmTime		due;

	if (!m->state.streaming_up || XLogRecPtrIsInvalid(p->slot))
		return false;
	flushed = ecm_manager_flushed_lsn(m);
	recorded = Min(flushed, ecm_queues_recorded_lsn(p->marker));
	behind = (int64) (flushed - recorded);
	show_wait(m, now, behind);
	if (behind < MARK_MIN_BYTES)
		look_at_idle(m, now, recorded, flushed);
	if (behind > 0)
		look_at_slot(m, now, flushed);
	if (p->job != 0 || (behind < MARK_MIN_BYTES && !p->frees_wal))
		return false;
	due = behind >= mark_bytes() || p->frees_wal ? now : ecm_later(p->marked_at, MARK_MS);
	due = Max(due, p->retry_at);
	if (now < due)
	{
		ecm_manager_wake_at(m, due);
		return false;
	}
	if (!m->state.pool_up || m->job.id != 0 || m->stack->pause.count > 0)
		return false;
	p->marking = flushed;
	p->marking_at = now;
	p->job = ecm_pool_submit(ecm_stack_mark_sql(flushed), ECM_MANAGER_JOB_MS, marked, m);
	return false;
}

void
ecm_manager_forget_marker(Manager *m)
{
	LogPosition *p = &m->position;

	/* what it may have written all the same is true, and harmless */
	if (p->job != 0)
		ecm_pool_cancel(p->job);
	p->job = 0;
	p->retry_at = 0;
	p->error[0] = '\0';
}
