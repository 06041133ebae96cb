/*-------------------------------------------------------------------------
 *
 * await_shapes.c
 *	  Waits for many shapes at a time.
 *
 * The session remembers, from one call to the next, which shapes it has waited for, and
 * stays on the lists of those who wait for them (waiters.c).  So a shape about which nothing
 * has been committed since it was looked at need not be looked at again: a call costs what
 * has changed.  What is remembered is forgotten when the extension, the role or the database's
 * stack may be another one.
 *
 * While it sleeps, the session has no snapshot and no lock, if it may let go of the
 * statement's snapshot: that is, if it was called by CALL, not from within a function.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/latch.h"
#include "tcop/pquery.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/errors.h"
#include "base/shmem.h"
#include "base/version.h"
#include "base/wait_event.h"
#include "base/waiters.h"
#include "functions/await.h"
#include "functions/reading_args.h"
#include "functions/shape_look.h"
#include "functions/wait_shape.h"
#include "shape/arrays.h"
#include "shape/shape_catalog.h"
#include "shape/shape_log.h"
#include "shape/shape_offset.h"

/* How often those without a place look again, and how long a standby does not. */
#define POLL_MS				100
#define STANDBY_PAUSE_MS	5
/* ... but they look no more than one part in so many of their time. */
#define POLL_FACTOR			9
/* The first and the longest pause until a shape that was woken is looked at again. */
#define FIRST_AGAIN_MS		10
#define LAST_AGAIN_MS		60000

PG_FUNCTION_INFO_V1(electric_cm_await);

/* A shape that the session has waited for. */
typedef struct Awaited
{
	char	   *handle;			/* the key */
	int64		id;				/* 0: not known yet */
	uint32		status;			/* of the hash table */
	int			place;			/* among those who wait, or ECM_NO_PLACE */
	bool		looked;			/* there is nothing after: */
	EcmOffset	seen;
	int			again_ms;		/* it was woken, and nothing was there: what
								 * has woken it may not be visible yet, and is
								 * looked for after ever longer pauses; 0: no */
	EcmTime		again_at;
	uint64		call;			/* of the last call that it was named in */
} Awaited;

#define SH_PREFIX awaited
#define SH_ELEMENT_TYPE Awaited
#define SH_KEY_TYPE char *
#define SH_KEY handle
#define SH_HASH_KEY(tb, key) hash_bytes((const unsigned char *) (key), (int) strlen(key))
#define SH_EQUAL(tb, a, b) (strcmp((a), (b)) == 0)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static struct
{
	MemoryContext context;		/* of the table and the handles */
	awaited_hash *table;
	uint64		call;
	Oid			role;
}			session;

/* One call. */
typedef struct Call
{
	EcmReadingArgs args;
	Awaited   **shapes;
	instr_time	began;
	int64		timeout_ms;
	bool		standby;
	XLogRecPtr	replayed;		/* on a standby, before the last look */
	bool		polls;			/* some have no place */
	long		poll_ms;		/* if so, or on a standby: the pause; it is
								 * longer if a look takes long */
	EcmTime		again_at;		/* the earliest of the shapes'; 0: none */
	bool	   *ready;			/* by number */
	int			nready;
} Call;

static void
forget_all(void)
{
	awaited_iterator it;
	Awaited    *shape;

	if (session.table == NULL)
		return;
	awaited_start_iterate(session.table, &it);
	while ((shape = awaited_iterate(session.table, &it)) != NULL)
		if (shape->place != ECM_NO_PLACE)
			ecm_waiters_remove(shape->place);
	MemoryContextDelete(session.context);
	session.table = NULL;
}

/* Finds, or begins, what the session knows of the call's shapes, and forgets the others. */
static void
remember(Call *call)
{
	awaited_iterator it;
	Awaited    *shape;

	if (session.table != NULL && session.role != GetUserId())
		forget_all();
	if (session.table == NULL)
	{
		session.context = AllocSetContextCreate(TopMemoryContext, "electric_cm awaited shapes",
												ALLOCSET_DEFAULT_SIZES);
		session.table = awaited_create(session.context, Max(call->args.n, 16), NULL);
		session.role = GetUserId();
	}
	session.call++;
	for (int i = 0; i < call->args.n; i++)
	{
		bool		found;

		shape = awaited_lookup(session.table, call->args.handles[i]);
		if (shape == NULL)
		{
			shape = awaited_insert(session.table,
								   MemoryContextStrdup(session.context, call->args.handles[i]), &found);
			shape->place = ECM_NO_PLACE;
			shape->looked = false;
			shape->again_ms = 0;
			shape->id = 0;
		}

		/*
		 * who waits reads: if nothing happens, the shape is not looked at
		 * again
		 */
		if (shape->id != 0)
			ecm_note_read(shape->id);
		shape->call = session.call;
	}
	if (session.table->members > (uint32) call->args.n)
	{
		awaited_start_iterate(session.table, &it);
		while ((shape = awaited_iterate(session.table, &it)) != NULL)
			if (shape->call != session.call)
			{
				char	   *handle = shape->handle;

				if (shape->place != ECM_NO_PLACE)
					ecm_waiters_remove(shape->place);
				awaited_delete_item(session.table, shape);
				pfree(handle);
			}
	}

	/* the table does not move any more */
	call->shapes = palloc(Max(call->args.n, 1) * sizeof(Awaited *));
	for (int i = 0; i < call->args.n; i++)
		call->shapes[i] = awaited_lookup(session.table, call->args.handles[i]);
}

/* ----------------------------------------------------------------
 * Looking
 * ----------------------------------------------------------------
 */

/* Gives places to those shapes that have none yet; to be called by ecm_undone(). */
static void
take_places(void *arg)
{
	Call	   *call = arg;
	char	  **handles = palloc(Max(call->args.n, 1) * sizeof(char *));
	int		   *numbers = palloc(Max(call->args.n, 1) * sizeof(int));
	int			n = 0;
	int64	   *ids;

	call->polls = false;
	for (int i = 0; i < call->args.n; i++)
		if (call->shapes[i]->place == ECM_NO_PLACE)
		{
			numbers[n] = i;
			handles[n++] = call->args.handles[i];
		}
	if (n == 0)
		return;
	ids = ecm_shape_ids(handles, n);
	for (int i = 0; i < n; i++)
	{
		Awaited    *shape = call->shapes[numbers[i]];

		shape->looked = false;
		if (ids[i] != 0)
			shape->place = ecm_waiters_add(ids[i]);
		call->polls |= shape->place == ECM_NO_PLACE;
	}
}

/* Is nothing to be found after the reader's offset? */
static bool
is_known_quiet(const Call *call, int i, EcmTime now)
{
	const Awaited *shape = call->shapes[i];
	const EcmOffset *after = &call->args.after[i];

	return !call->standby && shape->looked && shape->place != ECM_NO_PLACE &&
		ecm_waiters_listed(shape->place) &&
		(shape->again_ms == 0 || shape->again_at > now) &&
		(shape->seen.before_all ||
		 (!after->before_all &&
		  ecm_offset_cmp(after->lsn, after->op, shape->seen.lsn, shape->seen.op) >= 0));
}

/* Notes that a look has found nothing. */
static void
note_quiet(Awaited *shape, const EcmOffset *after, bool woken, EcmTime now)
{
	shape->looked = true;
	shape->seen = *after;
	if (woken)
		shape->again_ms = FIRST_AGAIN_MS;
	else if (shape->again_ms > 0 && shape->again_at <= now)
		shape->again_ms = shape->again_ms < LAST_AGAIN_MS ? 2 * shape->again_ms : 0;
	else
		return;
	shape->again_at = ecm_later(now, shape->again_ms);
}

/*
 * Has the shape something after the reader's offset, or has it ended?  Any error of a look
 * is for who reads it.
 */
static bool
is_ready(Call *call, int i, Snapshot snapshot, XLogRecPtr logged_lsn, bool *not_yet)
{
	EcmLookRequest request = {.handle = call->args.handles[i], .after = call->args.after[i],
	.wait = ECM_LOOK_NO_WAIT, .snapshot = snapshot, .logged_lsn = logged_lsn};
	MemoryContext context = CurrentMemoryContext;
	volatile bool ready = false;

	*not_yet = false;
	PG_TRY();
	{
		EcmLook    *look = ecm_look_at_shape(&request);

		call->shapes[i]->id = look->shape->id;
		ready = look->readable && look->cursor->found;
		*not_yet = look->readable && !look->cursor->known;
		ecm_look_end(look);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (ERRCODE_TO_CATEGORY(geterrcode()) == ERRCODE_OPERATOR_INTERVENTION ||
			ERRCODE_TO_CATEGORY(geterrcode()) == ERRCODE_INSUFFICIENT_RESOURCES)
			PG_RE_THROW();
		FlushErrorState();
		ready = true;
	}
	PG_END_TRY();
	return ready;
}

/*
 * Looks at all shapes of which it is not known that they are quiet.  Each is put on its list
 * before the snapshot is taken, so that no commit is missed.
 */
static void
look_at_all(Call *call)
{
	EcmTime		now = ecm_now();
	bool	   *woken = palloc0(Max(call->args.n, 1) * sizeof(bool));
	bool	   *quiet = palloc0(Max(call->args.n, 1) * sizeof(bool));
	MemoryContext look_context;
	MemoryContext old_context;
	XLogRecPtr	logged_lsn;
	Snapshot	snapshot;

	call->standby = RecoveryInProgress();
	call->replayed = call->standby ? GetXLogReplayRecPtr(NULL) : InvalidXLogRecPtr;
	if (!call->standby)
		ecm_undone(take_places, call);
	for (int i = 0; i < call->args.n; i++)
	{
		Awaited    *shape = call->shapes[i];

		quiet[i] = is_known_quiet(call, i, now);
		woken[i] = shape->looked && shape->place != ECM_NO_PLACE && !ecm_waiters_listed(shape->place);
		if (!quiet[i] && shape->place != ECM_NO_PLACE)
			ecm_waiters_renew(shape->place);
	}

	logged_lsn = ecm_own_flushed_lsn();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	look_context = AllocSetContextCreate(CurrentMemoryContext, "electric_cm looks",
										 ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(look_context);
	call->again_at = 0;
	for (int i = 0; i < call->args.n; i++)
	{
		Awaited    *shape = call->shapes[i];
		bool		not_yet = false;

		if (!quiet[i])
		{
			CHECK_FOR_INTERRUPTS();
			call->ready[i] = is_ready(call, i, snapshot, logged_lsn, &not_yet);
			if (call->ready[i])
			{
				call->nready++;
				shape->looked = false;
				shape->again_ms = 0;
			}
			else
				note_quiet(shape, &call->args.after[i], woken[i] || (not_yet && shape->again_ms == 0), now);
			MemoryContextReset(look_context);
		}
		if (shape->again_ms > 0 && (call->again_at == 0 || shape->again_at < call->again_at))
			call->again_at = shape->again_at;
	}
	call->poll_ms = Max(call->standby ? STANDBY_PAUSE_MS : POLL_MS, POLL_FACTOR * ecm_ms_until(now, ecm_now()));
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(look_context);
	UnregisterSnapshot(snapshot);
	pfree(woken);
	pfree(quiet);
}

/* ----------------------------------------------------------------
 * Waiting
 * ----------------------------------------------------------------
 */

/*
 * Lets go of the statement's snapshot, if nobody needs it: so do COMMIT in a procedure, and
 * commands like VACUUM.  A portal that is to return rows has registered it besides.
 */
static void
let_go_of_snapshot(void)
{
	Portal		portal = ActivePortal;

	if (portal != NULL && portal->portalSnapshot != NULL && ActiveSnapshotSet() &&
		GetActiveSnapshot() == portal->portalSnapshot)
	{
		PopActiveSnapshot();
		portal->portalSnapshot = NULL;
		if (portal->holdSnapshot != NULL)
		{
			UnregisterSnapshotFromOwner(portal->holdSnapshot, portal->resowner);
			portal->holdSnapshot = NULL;
		}
	}
	/* each look leaves one */
	InvalidateCatalogSnapshot();
}

static long
time_left(const Call *call)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, call->began);
	return (long) Max(call->timeout_ms - (int64) INSTR_TIME_GET_MILLISEC(now), 0);
}

/* Has something happened that may concern one of the shapes? */
static bool
is_woken(const Call *call)
{
	if (call->standby)
		return GetXLogReplayRecPtr(NULL) != call->replayed || !RecoveryInProgress();
	for (int i = 0; i < call->args.n; i++)
		if (call->shapes[i]->place != ECM_NO_PLACE && !ecm_waiters_listed(call->shapes[i]->place))
			return true;
	return false;
}

/* Sleeps until another look may find something; false: the time has passed. */
static bool
sleep_between_looks(const Call *call)
{
	for (;;)
	{
		long		left = time_left(call);
		long		pause = left;

		if (left == 0)
			return false;
		if (!call->standby && is_woken(call))
			return true;
		if (call->again_at != 0)
			pause = Min(pause, ecm_ms_until(ecm_now(), call->again_at));
		if (call->polls)
			pause = Min(pause, call->poll_ms);
		if (pause > 0)
		{
			if (call->standby)
				ecm_sleep_for_replay(call->replayed, pause, call->poll_ms, ECM_WAIT_SHAPE_LOG);
			else
				ecm_sleep(pause, ECM_WAIT_SHAPE_LOG);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
		if (call->polls || (call->standby && is_woken(call)) ||
			(call->again_at != 0 && call->again_at <= ecm_now()))
			return true;
	}
}

/* ERROR unless what is waited for can come, and be seen. */
static void
check_may_await(void)
{
	if (IsolationUsesXactSnapshot() || TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot wait for shapes in this transaction"),
				 errdetail("What comes next may have to wait for this transaction, or could not be seen by it."),
				 errhint("Commit first, and use the isolation level READ COMMITTED.")));
}

static void
await_ready(Call *call)
{
	for (;;)
	{
		EcmLogWait	wait = {0};

		ecm_log_wait_prepare(&wait);	/* a stack that works, or a standby */
		look_at_all(call);
		if (call->nready > 0)
			return;
		let_go_of_snapshot();
		if (!sleep_between_looks(call))
			return;
	}
}

/*
 * CALL electric_cm_await(handles text[], after_offsets electric_cm_offset[],
 *						  timeout interval DEFAULT '20 s', INOUT ready text[] DEFAULT NULL)
 *
 * Returns as soon as one of the shapes has an entry after its offset, or has ended: the
 * handles of those; or none of them when the timeout has passed.  A shape that is being
 * created is ready when it is live.  What "ended" means, and why, electric_cm_shape_logs()
 * tells.
 *
 * Errors: as ecm_reading_args(); 22023 the timeout is negative, NULL or above an hour; 55000
 * in a transaction that has made changes or is above READ COMMITTED, or if the stack has
 * failed or is stopped (not on a standby, where it never runs).
 */
Datum
electric_cm_await(PG_FUNCTION_ARGS)
{
	Call		call = {0};
	TupleDesc	tupdesc;
	char	  **ready;
	Datum		value;
	bool		null = false;
	int			n = 0;

	ecm_require_sql_fit();
	if (!RecoveryInProgress())
		ecm_require_shared();
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	tupdesc = BlessTupleDesc(tupdesc);
	INSTR_TIME_SET_CURRENT(call.began);
	ecm_reading_args(fcinfo, &call.args);
	call.timeout_ms = ecm_bounded_timeout_ms(PG_ARGISNULL(2) ? NULL : PG_GETARG_INTERVAL_P(2));
	check_may_await();

	call.ready = palloc0(Max(call.args.n, 1) * sizeof(bool));
	remember(&call);
	await_ready(&call);

	/* the caller goes on with a snapshot */
	EnsurePortalSnapshotExists();
	ready = palloc(Max(call.args.n, 1) * sizeof(char *));
	for (int i = 0; i < call.args.n; i++)
		if (call.ready[i])
			ready[n++] = call.args.handles[i];
	value = ecm_array_of_names(ready, n);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(tupdesc, &value, &null)));
}
