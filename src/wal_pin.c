/*-------------------------------------------------------------------------
 *
 * wal_pin.c
 *	  What holds a replication slot back, in words.
 *
 * A slot can't move past the beginning of the oldest transaction that was
 * running when the server last logged the running ones, whatever database that
 * is in: its changes are still to be decoded.  The walsender keeps that
 * transaction's ID as the slot's catalog_xmin.  So if the oldest transaction
 * that runs now is that one, it is to blame.
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

static void
describe_backend(int pid, EcmPin *pin, TimestampTz now)
{
	int			nbackends;

	pgstat_clear_snapshot();
	nbackends = pgstat_fetch_stat_numbackends();
	for (int i = 1; i <= nbackends; i++)
	{
		PgBackendStatus *backend = ecm_backend_status(i);
		int64		seconds;
		char		appname[NAMEDATALEN];

		if (backend->st_procpid != pid)
			continue;
		pin->since = backend->st_xact_start_timestamp;
		if (pin->since == 0 || now - pin->since < OPEN_TRANSACTION_US)
			return;
		seconds = (now - pin->since) / USECS_PER_SEC;
		ecm_copy_text(appname, sizeof(appname), backend->st_appname);
		snprintf(pin->by, sizeof(pin->by),
				 "an open transaction of PID %d%s%s%s, for " INT64_FORMAT ":%02d:%02d",
				 pid, appname[0] ? " (" : "", appname, appname[0] ? ")" : "",
				 seconds / 3600, (int) (seconds / 60 % 60), (int) (seconds % 60));
		return;
	}
}

static void
find_open_transaction(TransactionId horizon, EcmPin *pin, TimestampTz now)
{
	TransactionId oldest;
	int			pid;

	if (RecoveryInProgress() || !TransactionIdIsNormal(horizon))
		return;
	oldest = GetOldestActiveTransactionId();
	if (oldest != horizon)
		return;
	pid = BackendXidGetPid(oldest);
	if (pid != 0)
		describe_backend(pid, pin, now);
	else if (TransactionIdIsInProgress(oldest))
	{
		/* since when, only its state file knows: the caller remembers */
		snprintf(pin->by, sizeof(pin->by),
				 "a prepared transaction, with ID %u in pg_prepared_xacts", oldest);
		pin->since = now;
	}
}

void
ecm_wal_find_pin(const EcmWalSample *sample, TimestampTz inactive_since,
				 EcmPin *pin)
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
	find_open_transaction(sample->catalog_xmin, pin, sample->sampled_at);
	if (pin->by[0] == '\0')
		pin->since = 0;
}
