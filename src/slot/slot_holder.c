/*-------------------------------------------------------------------------
 *
 * slot_holder.c
 *	  What holds a replication slot back, in words.
 *
 * A slot's restart_lsn can't advance past the beginning of a transaction that
 * is still open, in whatever database, since its changes are still to be
 * decoded.  So if everything has been decoded and confirmed that is younger
 * than the oldest transaction with an ID, the slot waits for that transaction.
 * A slot that is being made has confirmed nothing yet, and waits for all
 * transactions that were running.
 *
 * When a warning is due, there may be no certain holder.  Then the likeliest
 * one is named, and said to be a guess.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xlog.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/spin.h"
#include "utils/backend_status.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "base/compat.h"
#include "base/text.h"
#include "slot/slot.h"
#include "slot/slot_holder.h"

/* A transaction that has been open for less than this is not named. */
#define OPEN_TRANSACTION_US		(5 * USECS_PER_SEC)
/* A walsender that has less than this (bytes) to decode is not named. */
#define MUCH_TO_DECODE			(1024 * 1024)
/* A walsender that has sent nothing for this time stands still. */
#define SENDER_STANDS_US		(3 * USECS_PER_SEC)

/* The oldest transaction of the last look, and since when it has been so. */
static struct
{
	TransactionId xid;
	TimestampTz since;
}			oldest_seen;

/* How far a walsender had sent at the last look, and since when. */
static struct
{
	int			pid;
	XLogRecPtr	at;
	EcmTime		since;
}			sender_seen;

/* Since when a walsender has waited for a standby, without coming on. */
static struct
{
	int			pid;			/* 0: none does */
	XLogRecPtr	at;
	EcmTime		since;
}			standby_wait;

static PgBackendStatus *
find_backend(int pid)
{
	int			nbackends;

	pgstat_clear_snapshot();
	nbackends = pgstat_fetch_stat_numbackends();
	for (int i = 1; i <= nbackends; i++)
	{
		PgBackendStatus *backend = ecm_backend_status(i);

		if (backend->st_procpid == pid)
			return backend;
	}
	return NULL;
}

/* "PID 123 (name)", palloc'd. */
static char *
name_backend(int pid, const PgBackendStatus *backend)
{
	char		appname[NAMEDATALEN] = "";

	if (backend != NULL)
		ecm_copy_text(appname, sizeof(appname), backend->st_appname);
	return psprintf("PID %d%s%s%s", pid, appname[0] ? " (" : "", appname,
					appname[0] ? ")" : "");
}

/*
 * When a transaction began; if its backend has track_activities = off, when it
 * was first seen.
 */
static TimestampTz
transaction_began(TransactionId xid, const PgBackendStatus *backend,
				  TimestampTz now)
{
	if (xid != oldest_seen.xid || oldest_seen.since > now)
		oldest_seen.since = now;
	oldest_seen.xid = xid;
	if (backend != NULL && backend->st_xact_start_timestamp != 0)
		return backend->st_xact_start_timestamp;
	return oldest_seen.since;
}

/*
 * Names a transaction as the holder if it has been open for min_us.  Unless
 * the slot is being made, or a guess will do (min_us is 0), everything that is
 * younger must be confirmed: else the slot waits for its consumers, not for
 * the transaction.
 */
static void
describe_transaction(int pid, TransactionId xid, const EcmWalSample *sample,
					 int64 min_us, EcmPin *pin)
{
	PgBackendStatus *backend = find_backend(pid);
	TimestampTz began = transaction_began(xid, backend, sample->sampled_at);
	int64		open_us = sample->sampled_at - began;
	int64		seconds = open_us / USECS_PER_SEC;
	bool		being_made = XLogRecPtrIsInvalid(sample->confirmed_flush_lsn);

	if (open_us < min_us)
		return;
	if (!being_made && min_us > 0 &&
		(sample->flush_lag_us < 0 || sample->flush_lag_us >= open_us))
		return;
	snprintf(pin->by, sizeof(pin->by),
			 "an open transaction of %s, for " INT64_FORMAT ":%02d:%02d",
			 name_backend(pid, backend),
			 seconds / 3600, (int) (seconds / 60 % 60), (int) (seconds % 60));
	pin->since = began;
}

/* Names the oldest transaction with an ID, if it has been open for min_us. */
static void
find_open_transaction(const EcmWalSample *sample, int64 min_us, EcmPin *pin)
{
	TransactionId oldest;
	int			pid;

	if (RecoveryInProgress() || !TransactionIdIsNormal(sample->catalog_xmin))
		return;
	oldest = ecm_oldest_active_xid();
	if (TransactionIdFollowsOrEquals(oldest, ReadNextTransactionId()))
		return;					/* none has an ID */
	pid = BackendXidGetPid(oldest);
	if (pid != 0)
		describe_transaction(pid, oldest, sample, min_us, pin);
	else if (TransactionIdIsInProgress(oldest))
	{
		/*
		 * its age is in its state file only; the caller remembers its first
		 * look
		 */
		snprintf(pin->by, sizeof(pin->by),
				 "a prepared transaction, with ID %u in pg_prepared_xacts", oldest);
		pin->since = sample->sampled_at;
	}
}

/* Where a walsender is; invalid: there is none of that PID. */
static XLogRecPtr
sent_by(int pid)
{
	XLogRecPtr	sent = InvalidXLogRecPtr;

	for (int i = 0; i < max_wal_senders && XLogRecPtrIsInvalid(sent); i++)
	{
		WalSnd	   *sender = &WalSndCtl->walsnds[i];

		SpinLockAcquire(&sender->mutex);
		if (sender->pid == pid)
			sent = sender->sentPtr;
		SpinLockRelease(&sender->mutex);
	}
	return sent;
}

/*
 * Of the slots that changes are to have been flushed by, one that is away, or else
 * the one that is farthest behind.
 */
static void
describe_standby(char *text, Size size)
{
	char	   *copy = pstrdup(ECM_SYNCHRONIZED_STANDBY_SLOTS);
	List	   *names = NIL;
	ListCell   *lc;
	XLogRecPtr	last = InvalidXLogRecPtr;
	char	   *what = "a standby";

	(void) SplitIdentifierString(copy, ',', &names);
	foreach(lc, names)
	{
		const char *name = lfirst(lc);
		EcmSlotFacts facts;
		bool		away = !ecm_slot_lookup(name, &facts) || facts.active_pid == 0;

		if (away)
			what = psprintf("the standby of replication slot \"%s\", %s", name,
							facts.exists ? "which is not connected" : "which does not exist");
		else if (XLogRecPtrIsInvalid(last) || facts.restart_lsn < last)
		{
			last = facts.restart_lsn;
			what = psprintf("the standby of replication slot \"%s\", which is at %X/%X",
							name, LSN_FORMAT_ARGS(last));
		}
		if (away)
			break;
	}
	snprintf(text, size,
			 "%s (let it catch up, or take it out of synchronized_standby_slots and reload)", what);
}

EcmTime
ecm_slot_holder_standby(int walsender, EcmTime now, char *text, Size size)
{
	PGPROC	   *proc = walsender != 0 ? BackendPidGetProc(walsender) : NULL;
	XLogRecPtr	at = InvalidXLogRecPtr;

	if (proc != NULL && ecm_is_standby_wait(proc->wait_event_info))
		at = sent_by(walsender);
	if (XLogRecPtrIsInvalid(at))
		standby_wait.pid = 0;
	else if (walsender != standby_wait.pid || at != standby_wait.at)
	{
		standby_wait.pid = walsender;
		standby_wait.at = at;
		standby_wait.since = now;
	}
	if (standby_wait.pid == 0 || now - standby_wait.since < SENDER_STANDS_US)
		return 0;
	describe_standby(text, size);
	return standby_wait.since;
}

void
ecm_slot_holder_find(const EcmWalSample *sample, TimestampTz inactive_since,
					 int walsender, EcmPin *pin)
{
	char		standby[ECM_TEXT_LEN - 64];
	EcmTime		since;

	memset(pin, 0, sizeof(*pin));
	pin->certain = true;
	if (!sample->slot_exists || strcmp(sample->wal_status, "lost") == 0)
		return;
	if (!sample->active)
	{
		strlcpy(pin->by, "nobody is connected to the slot", sizeof(pin->by));
		pin->since = inactive_since;
		return;
	}
	if (sample->active_pid != walsender)
	{
		/* since when is unknown; the caller remembers its first look */
		snprintf(pin->by, sizeof(pin->by), "%s, which uses the slot",
				 name_backend(sample->active_pid, find_backend(sample->active_pid)));
		pin->since = sample->sampled_at;
		return;
	}
	since = ecm_slot_holder_standby(walsender, sample->taken_at, standby, sizeof(standby));
	if (since != 0)
	{
		snprintf(pin->by, sizeof(pin->by), "its walsender (PID %d), which waits for %s",
				 walsender, standby);
		pin->since = ecm_shown_time(since);
		return;
	}
	find_open_transaction(sample, OPEN_TRANSACTION_US, pin);
}

/* Notes how far a walsender has sent.  False: there is none of that PID. */
static bool
look_at_sender(int pid, EcmTime now)
{
	XLogRecPtr	sent = sent_by(pid);

	if (pid != sender_seen.pid || sent != sender_seen.at)
		sender_seen.since = now;
	sender_seen.pid = pid;
	sender_seen.at = sent;
	return !XLogRecPtrIsInvalid(sent);
}

/* What a process waits for, as in pg_stat_activity; palloc'd, "": nothing. */
static char *
name_wait(int pid)
{
	PGPROC	   *proc = BackendPidGetProc(pid);
	uint32		info = proc != NULL ? proc->wait_event_info : 0;
	const char *type = pgstat_get_wait_event_type(info);
	const char *event = pgstat_get_wait_event(info);

	/* these waits mean that the walsender has nothing to do */
	if (type == NULL || event == NULL ||
		pg_strcasecmp(event, "WalSenderWaitForWAL") == 0 ||
		pg_strcasecmp(event, "WalSenderMain") == 0)
		return "";
	return psprintf(" and waits for %s (%s)", event, type);
}

void
ecm_slot_holder_guess(const EcmWalSample *sample, int walsender, EcmPin *pin)
{
	memset(pin, 0, sizeof(*pin));
	if (!sample->slot_exists || strcmp(sample->wal_status, "lost") == 0 ||
		!sample->active || sample->active_pid != walsender)
		return;
	if (look_at_sender(walsender, sample->taken_at) &&
		sender_seen.at < sample->current_lsn &&
		sample->taken_at - sender_seen.since >= SENDER_STANDS_US)
	{
		snprintf(pin->by, sizeof(pin->by),
				 "its walsender (PID %d), which has sent nothing for " INT64_FORMAT " s%s",
				 walsender, (sample->taken_at - sender_seen.since) / USECS_PER_SEC,
				 name_wait(walsender));
		pin->since = ecm_shown_time(sender_seen.since);
		return;
	}
	if (XLogRecPtrIsInvalid(sample->confirmed_flush_lsn) ||
		sender_seen.at + MUCH_TO_DECODE > sample->current_lsn)
	{
		find_open_transaction(sample, 0, pin);
		return;
	}
	snprintf(pin->by, sizeof(pin->by),
			 "its walsender (PID %d), which has %s of WAL still to decode%s",
			 walsender,
			 ecm_size_text(XLogRecPtrIsInvalid(sender_seen.at) ? sample->flush_lag_bytes :
						   (int64) (sample->current_lsn - sender_seen.at)),
			 name_wait(walsender));
	pin->since = sample->sampled_at;
}
