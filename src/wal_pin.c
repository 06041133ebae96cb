/*-------------------------------------------------------------------------
 *
 * wal_pin.c
 *	  What holds a replication slot back, in words.
 *
 * A slot can't move past the beginning of a transaction that is still open, in
 * whatever database, for its changes are still to be decoded.  So if everything
 * has been decoded and confirmed that is younger than the oldest transaction
 * with an ID, that one is what the slot waits for.  A slot that is being made
 * has nothing confirmed, and waits for all that were running.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xlog.h"
#include "pgstat.h"
#include "storage/procarray.h"
#include "utils/backend_status.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "wal_pin.h"

/* A transaction that is younger is nobody's fault. */
#define OPEN_TRANSACTION_US		(5 * USECS_PER_SEC)

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

static void
describe_transaction(int pid, const EcmWalSample *sample, EcmPin *pin)
{
	PgBackendStatus *backend = find_backend(pid);
	TimestampTz began = backend != NULL ? backend->st_xact_start_timestamp : 0;
	int64		open_us = sample->sampled_at - began;
	int64		seconds = open_us / USECS_PER_SEC;
	bool		being_made = XLogRecPtrIsInvalid(sample->confirmed_flush_lsn);

	if (began == 0 || open_us < OPEN_TRANSACTION_US)
		return;
	if (!being_made &&
		(sample->flush_lag_us < 0 || sample->flush_lag_us >= open_us))
		return;
	snprintf(pin->by, sizeof(pin->by),
			 "an open transaction of %s, for " INT64_FORMAT ":%02d:%02d",
			 name_backend(pid, backend),
			 seconds / 3600, (int) (seconds / 60 % 60), (int) (seconds % 60));
	pin->since = began;
}

static void
find_open_transaction(const EcmWalSample *sample, EcmPin *pin)
{
	TransactionId oldest;
	int			pid;

	if (RecoveryInProgress() || !TransactionIdIsNormal(sample->catalog_xmin))
		return;
	oldest = GetOldestActiveTransactionId();
	if (TransactionIdFollowsOrEquals(oldest, ReadNextTransactionId()))
		return;					/* none has an ID */
	pid = BackendXidGetPid(oldest);
	if (pid != 0)
		describe_transaction(pid, sample, pin);
	else if (TransactionIdIsInProgress(oldest))
	{
		/* since when, only its state file knows: the caller remembers */
		snprintf(pin->by, sizeof(pin->by),
				 "a prepared transaction, with ID %u in pg_prepared_xacts", oldest);
		pin->since = sample->sampled_at;
	}
}

void
ecm_wal_find_pin(const EcmWalSample *sample, TimestampTz inactive_since,
				 int walsender, EcmPin *pin)
{
	memset(pin, 0, sizeof(*pin));
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
		/* since when, nobody knows: the caller remembers */
		snprintf(pin->by, sizeof(pin->by), "%s, which uses the slot",
				 name_backend(sample->active_pid, find_backend(sample->active_pid)));
		pin->since = sample->sampled_at;
		return;
	}
	find_open_transaction(sample, pin);
}
