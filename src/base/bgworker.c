/*-------------------------------------------------------------------------
 *
 * bgworker.c
 *	  What our background workers have in common: how they are registered,
 *	  and how managers and consumers start, run SQL and take a SIGTERM.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/bgworker.h"
#include "base/compat.h"
#include "base/pinned_settings.h"
#include "base/settings.h"

volatile sig_atomic_t ecm_got_sigterm = false;
static volatile sig_atomic_t leaving = false;

/*
 * SIGTERM sets our flag and calls die() as well.  A flag alone would not
 * interrupt a wait inside core (for a lock, or for a synchronous standby), so
 * a worker in such a wait could not be ended. die() alone would end the worker
 * by a FATAL error wherever it is, with no place to clean up.  With both, the
 * main loop finds the flag first and leaves in good order, and only a wait
 * inside core is interrupted.
 *
 * Once the worker has begun to leave (ecm_worker_leave()), a further SIGTERM
 * changes nothing.
 */
static void
handle_sigterm(SIGNAL_ARGS)
{
	ecm_got_sigterm = true;
	if (!leaving)
		die(ECM_SIGNAL_ARGS_OF_MINE);
}

/*
 * Forgets the SIGTERM that has come, and makes handle_sigterm() ignore those
 * still to come: the launcher may send one and the postmaster, in a shutdown,
 * another.
 */
void
ecm_worker_leave(void)
{
	leaving = true;
	ProcDiePending = false;
}

/*
 * Settings that a worker overrides. ecm_worker_init() keeps the values of
 * ALTER DATABASE and ALTER ROLE away, but postgresql.conf may have the same
 * ones.  Each of these could end a worker (exit_on_error, a timeout), make its
 * writes fail or wait for a standby that is gone
 * (default_transaction_read_only, synchronous_commit), or change which objects
 * and rows it sees (search_path, role, row_security). ecm_text_settings has
 * those that decide how values are written as text.
 */
static const char *const worker_settings[][2] = {
	{"search_path", ""},
	{"role", "none"},
	{"exit_on_error", "off"},
	{"synchronous_commit", "local"},
	{"default_transaction_read_only", "off"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_deferrable", "off"},
	{"statement_timeout", "0"},
	{"lock_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},
	ECM_TRANSACTION_TIMEOUT_SETTING
	{"row_security", "on"},
	{"lc_messages", "C"},		/* libpq's texts are recognised by errors.c */
};

void
ecm_worker_set(const char *name, const char *value)
{
	SetConfigOption(name, value, PGC_SUSET, PGC_S_OVERRIDE);
}

void
ecm_worker_init(Oid dboid)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, handle_sigterm);
	BackgroundWorkerUnblockSignals();

	/*
	 * A database that allows no connections is entered as well
	 * (BYPASS_ALLOWCONN): the manager finds out that no stack may run there,
	 * and reports it.  Otherwise a FATAL error would end the worker here, and
	 * the launcher would have to guess why.
	 */
	ecm_shelter_settings();
	BackgroundWorkerInitializeConnectionByOid(dboid, InvalidOid,
											  BGWORKER_BYPASS_ALLOWCONN);
	ecm_unshelter_settings();

	for (int i = 0; ecm_text_settings[i][0] != NULL; i++)
		ecm_worker_set(ecm_text_settings[i][0], ecm_text_settings[i][1]);
	for (int i = 0; i < (int) lengthof(worker_settings); i++)
		ecm_worker_set(worker_settings[i][0], worker_settings[i][1]);
}

bool
ecm_worker_try(void (*fn) (void *arg), void *arg, EcmError *err)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool ok = true;

	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		fn(arg);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		ecm_error_set(err, unpack_sql_state(edata->sqlerrcode),
					  edata->message ? edata->message : "",
					  edata->detail ? edata->detail : "",
					  edata->hint ? edata->hint : "");
		FreeErrorData(edata);
		ok = false;
	}
	PG_END_TRY();

	MemoryContextSwitchTo(context);
	return ok;
}

void
ecm_bgworker_init(BackgroundWorker *worker, const char *function,
				  const char *type)
{
	memset(worker, 0, sizeof(*worker));
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker->bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker->bgw_library_name, ECM_LIBRARY_NAME, BGW_MAXLEN);
	strlcpy(worker->bgw_function_name, function, BGW_MAXLEN);
	strlcpy(worker->bgw_name, type, BGW_MAXLEN);
	strlcpy(worker->bgw_type, type, BGW_MAXLEN);
}

BackgroundWorkerHandle *
ecm_bgworker_start(BackgroundWorker *worker, MemoryContext context)
{
	BackgroundWorkerHandle *handle;
	MemoryContext old = MemoryContextSwitchTo(context);
	bool		registered;

	worker->bgw_notify_pid = MyProcPid;
	registered = RegisterDynamicBackgroundWorker(worker, &handle);
	MemoryContextSwitchTo(old);
	return registered ? handle : NULL;
}
