/*-------------------------------------------------------------------------
 *
 * bgworker.c
 *	  What managers and consumers have in common as background workers.
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
 * A flag alone would leave core's own waits (for a lock, for a synchronous
 * standby) deaf; die() alone could not be told from a crash.  So both: the
 * main loop sees the flag first and leaves quietly, and whatever waits inside
 * core is interrupted.
 */
static void
handle_sigterm(SIGNAL_ARGS)
{
	ecm_got_sigterm = true;
	if (!leaving)
		die(ECM_SIGNAL_ARGS_OF_MINE);
}

/* More than one may come: the postmaster's, and whoever else's. */
void
ecm_worker_leave(void)
{
	leaving = true;
	ProcDiePending = false;
}

/*
 * What ALTER DATABASE says is kept away; but the server's configuration may
 * say the same, so everything that could stop a worker or change what it reads
 * and writes is set here, besides what decides how that is written as text.
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

	/* whether a stack may run there, its manager sees for itself */
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
