/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  The one shared struct, its lock and condition variables.
 *
 * Nothing here but ecm_require_shared() may raise an ERROR once the struct
 * exists.  Entries are allocated in callbacks at commit, when an ERROR would be
 * a PANIC, and events are recorded while a process exits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "base/text.h"
#include "base/waiters.h"

#define TRANCHE_NAME	"electric_cm"

EcmShared  *ecm_shared = NULL;

static Size
shared_size(void)
{
	return add_size(offsetof(EcmShared, stacks),
					mul_size(ecm_max_managers, sizeof(EcmStack)));
}

void
ecm_shmem_request(void)
{
	RequestAddinShmemSpace(add_size(shared_size(), ecm_waiters_size()));
	RequestNamedLWLockTranche(TRANCHE_NAME, 1);
}

void
ecm_shmem_startup(void)
{
	bool		found;
	void	   *waiters;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	ecm_shared = ShmemInitStruct("electric_cm", shared_size(), &found);
	if (!found)
	{
		memset(ecm_shared, 0, shared_size());
		ecm_shared->lock = &GetNamedLWLockTranche(TRANCHE_NAME)->lock;
		ecm_shared->nstacks = ecm_max_managers;
		for (int i = 0; i < ECM_MAX_READS; i++)
			SpinLockInit(&ecm_shared->reads[i].mutex);
		ecm_shared->made_at = ecm_wall_clock();
		pg_atomic_init_u32(&ecm_shared->run_marked, 0);
		for (int i = 0; i < ecm_shared->nstacks; i++)
			ConditionVariableInit(&ecm_shared->stacks[i].cv);
	}
	waiters = ShmemInitStruct("electric_cm waiters", ecm_waiters_size(), &found);
	ecm_waiters_attach(waiters, found);
	LWLockRelease(AddinShmemInitLock);
}

/*
 * The hint's first line keeps the libraries that are preloaded already, so
 * that whoever pastes it does not lose them.
 */
char *
ecm_preload_hint(void)
{
	const char *others = shared_preload_libraries_string;

	if (others == NULL)
		others = "";
	return psprintf("Put into postgresql.conf, and restart the server:\n"
					"shared_preload_libraries = '%s%selectric_cm'%s",
					others, others[0] != '\0' ? "," : "",
					wal_level < ECM_LEAST_WAL_LEVEL ?
					"\nwal_level = " ECM_LEAST_WAL_LEVEL_NAME : "");
}

void
ecm_require_shared(void)
{
	if (ecm_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("electric_cm must be loaded via shared_preload_libraries"),
				 errhint("%s", ecm_preload_hint())));
}

int
ecm_stack_find_locked(Oid dboid)
{
	Assert(LWLockHeldByMe(ecm_shared->lock));

	for (int i = 0; i < ecm_shared->nstacks; i++)
	{
		EcmStack   *stack = &ecm_shared->stacks[i];

		if (stack->in_use && stack->dboid == dboid)
			return i;
	}
	return -1;
}

int
ecm_stack_find(Oid dboid)
{
	int			index;

	ecm_lock(LW_SHARED);
	index = ecm_stack_find_locked(dboid);
	ecm_unlock();
	return index;
}

int
ecm_stack_alloc(Oid dboid, const char *datname)
{
	int			index = ecm_stack_find_locked(dboid);

	Assert(LWLockHeldByMeInMode(ecm_shared->lock, LW_EXCLUSIVE));

	if (index >= 0)
		return index;

	for (int i = 0; i < ecm_shared->nstacks; i++)
	{
		EcmStack   *stack = &ecm_shared->stacks[i];

		if (stack->in_use)
			continue;

		/* sleepers may still be on its condition variables: leave them alone */
		memset(stack, 0, offsetof(EcmStack, cv));
		stack->in_use = true;
		stack->dboid = dboid;
		strlcpy(stack->datname, datname, NAMEDATALEN);
		stack->events.last = stack->events.delivered = ecm_shared->nevents;
		ecm_stack_set_status(stack, ECM_STATUS_WAITING,
							 "start of the manager");

		/*
		 * the launcher may not know the database yet, if it was created a
		 * moment ago
		 */
		ecm_shared->rescan_requested = true;
		return i;
	}
	return -1;
}

/* Broadcast the condition variable after having released the lock. */
void
ecm_stack_free(int index)
{
	Oid			dboid = ecm_shared->stacks[index].dboid;

	Assert(LWLockHeldByMeInMode(ecm_shared->lock, LW_EXCLUSIVE));
	memset(&ecm_shared->stacks[index], 0, offsetof(EcmStack, cv));
	ecm_waiters_wake_all(dboid);
}

/* The place of a shape of this database in the table of last reads. */
static EcmShapeRead *
shape_read(int64 shape)
{
	uint64		place = (uint64) shape + hash_bytes_uint32(MyDatabaseId);

	return &ecm_shared->reads[place % ECM_MAX_READS];
}

void
ecm_note_read(int64 shape)
{
	TimestampTz now = ecm_wall_clock();
	EcmShapeRead *read;

	if (ecm_shared == NULL)
		return;
	read = shape_read(shape);
	SpinLockAcquire(&read->mutex);
	read->dboid = MyDatabaseId;
	read->shape = shape;
	read->at = now;
	SpinLockRelease(&read->mutex);
}

TimestampTz
ecm_last_read(int64 shape)
{
	EcmShapeRead *read;
	TimestampTz at = 0;

	if (ecm_shared == NULL)
		return 0;
	read = shape_read(shape);
	SpinLockAcquire(&read->mutex);
	if (read->dboid == MyDatabaseId && read->shape == shape)
		at = read->at;
	SpinLockRelease(&read->mutex);
	return at;
}

TimestampTz
ecm_last_read_there(int64 shape)
{
	EcmShapeRead *read = shape_read(shape);
	TimestampTz at;

	SpinLockAcquire(&read->mutex);
	at = read->at;
	SpinLockRelease(&read->mutex);
	return at;
}

bool
ecm_manager_hangs(const EcmStack *stack)
{
	return stack->manager.pid != 0 && stack->manager.pid != MyProcPid &&
		ecm_has_passed(stack->manager.alive_at, ecm_now(), ECM_MANAGER_HANGS_MS);
}

bool
ecm_launcher_hangs(void)
{
	return ecm_shared->launcher_pid != 0 &&
		ecm_has_passed(ecm_shared->launcher_alive_at, ecm_now(),
					   ECM_LAUNCHER_HANGS_MS);
}

/*
 * If the manager hangs, says so in a copy of its entry.  The manager itself has
 * no chance to correct its last status, which may be "active".
 */
static void
reveal_hang(EcmStack *copy)
{
	if (!copy->in_use || !ecm_manager_hangs(copy))
		return;
	if (copy->report.status == ECM_STATUS_ACTIVE)
	{
		copy->report.status = ECM_STATUS_STARTING;
		copy->report.status_at = copy->manager.alive_at;
		copy->report.status_since = ecm_shown_time(copy->manager.alive_at);
	}
	snprintf(copy->report.waiting_for, sizeof(copy->report.waiting_for),
			 "manager PID %d, which has not moved for %d s", copy->manager.pid,
			 (int) ((ecm_now() - copy->manager.alive_at) / USECS_PER_SEC));
	copy->report.blocking_pid = copy->manager.pid;
}

static bool
copy_entry(int index, EcmStack *copy, Size size)
{
	if (index < 0 || index >= ecm_shared->nstacks)
		return false;

	/* most entries are free, and an entry is large */
	ecm_lock(LW_SHARED);
	if (ecm_shared->stacks[index].in_use)
		memcpy(copy, &ecm_shared->stacks[index], size);
	else
		copy->in_use = false;
	ecm_unlock();
	reveal_hang(copy);
	return copy->in_use;
}

bool
ecm_stack_copy(int index, EcmStack *copy)
{
	return copy_entry(index, copy, sizeof(EcmStack));
}

bool
ecm_stack_copy_head(int index, EcmStack *copy)
{
	return copy_entry(index, copy, offsetof(EcmStack, conns));
}

/* before_shmem_exit callback of a manager */
static void
stack_release(int code pg_attribute_unused(), Datum arg)
{
	EcmStack   *stack = &ecm_shared->stacks[DatumGetInt32(arg)];

	ecm_lock(LW_EXCLUSIVE);
	if (stack->manager.pid == MyProcPid)
	{
		stack->manager.pid = 0;
		stack->manager.latch = NULL;
		stack->report.lock_acquired = false;
		stack->report.pool_up = false;
		stack->report.consumers_up = false;
		stack->report.streaming_up = false;
		stack->report.failing_at = 0;
		stack->stall.text[0] = '\0';
		if (stack->lifecycle.end_reason != ECM_END_PAUSE)
			stack->requests.drop_on_stop = false;

		/*
		 * nothing runs any more; the launcher, which is woken below, decides
		 * what comes next and shows it
		 */
		if (stack->report.status == ECM_STATUS_ACTIVE ||
			stack->report.status == ECM_STATUS_STARTING)
			ecm_stack_set_status(stack, ECM_STATUS_WAITING,
								 "start of the manager");
	}
	ecm_unlock();
	ConditionVariableBroadcast(&stack->cv);
	ecm_launcher_wake();
}

bool
ecm_slot_name_is_taken(const char *slot_name, char datname[NAMEDATALEN])
{
	bool		taken = false;

	if (ecm_shared == NULL)
		return false;
	ecm_lock(LW_SHARED);
	for (int i = 0; i < ecm_shared->nstacks && !taken; i++)
	{
		const EcmStack *stack = &ecm_shared->stacks[i];

		taken = stack->in_use && stack->dboid != MyDatabaseId &&
			strcmp(stack->slot.name, slot_name) == 0;
		if (taken)
			strlcpy(datname, stack->datname, NAMEDATALEN);
	}
	ecm_unlock();
	return taken;
}

static int
copy_own(EcmStack *copy, Size size)
{
	int			index;

	ecm_lock(LW_SHARED);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0)
		memcpy(copy, &ecm_shared->stacks[index], size);
	ecm_unlock();
	if (index >= 0)
		reveal_hang(copy);
	return index;
}

int
ecm_own_stack(EcmStack *copy)
{
	return copy_own(copy, sizeof(EcmStack));
}

int
ecm_own_stack_head(EcmStack *copy)
{
	return copy_own(copy, offsetof(EcmStack, conns));
}

XLogRecPtr
ecm_own_flushed_lsn(void)
{
	XLogRecPtr	lsn = InvalidXLogRecPtr;
	int			index;

	if (ecm_shared == NULL)
		return lsn;
	ecm_lock(LW_SHARED);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0)
		lsn = ecm_shared->stacks[index].progress.flushed_lsn;
	ecm_unlock();
	return lsn;
}

uint64
ecm_own_applied_lsns(XLogRecPtr *lsns)
{
	uint64		assignments = 0;
	int			index;

	memset(lsns, 0, ECM_MAX_SHAPE_WORKERS * sizeof(XLogRecPtr));
	if (ecm_shared == NULL)
		return 0;
	ecm_lock(LW_SHARED);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0)
	{
		EcmStack   *stack = &ecm_shared->stacks[index];

		for (int i = 0; i < ECM_MAX_SHAPE_WORKERS; i++)
			lsns[i] = stack->consumers[i].applied_lsn;
		assignments = stack->assignments;
	}
	ecm_unlock();
	return assignments;
}

void
ecm_own_forget_applied_lsns(void)
{
	int			index;

	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0)
	{
		EcmStack   *stack = &ecm_shared->stacks[index];

		for (int i = 0; i < ECM_MAX_SHAPE_WORKERS; i++)
			stack->consumers[i].applied_lsn = InvalidXLogRecPtr;
		stack->assignments++;
	}
	ecm_unlock();
}

bool
ecm_stack_claim(int index)
{
	EcmStack   *stack = &ecm_shared->stacks[index];
	bool		claimed = false;

	ecm_lock(LW_EXCLUSIVE);
	if (stack->in_use && stack->manager.pid == 0)
	{
		stack->manager.pid = MyProcPid;
		stack->manager.latch = MyLatch;
		stack->manager.runs++;
		stack->manager.started_at = ecm_wall_clock();
		stack->manager.alive_at = ecm_now();
		claimed = true;
	}
	ecm_unlock();

	if (claimed)
	{
		before_shmem_exit(stack_release, Int32GetDatum(index));
		ConditionVariableBroadcast(&stack->cv);
	}
	return claimed;
}

void
ecm_stack_set_probe(int index, EcmProbe probe)
{
	EcmStack   *stack = &ecm_shared->stacks[index];

	ecm_lock(LW_EXCLUSIVE);
	stack->manager.probe = probe;
	if (probe != ECM_PROBE_NO_EXTENSION)
		stack->registered = true;
	ecm_unlock();
	ConditionVariableBroadcast(&stack->cv);
	ecm_launcher_wake();
}

void
ecm_stack_set_status(EcmStack *stack, EcmStatus status,
					 const char *waiting_for)
{
	if (stack->report.status != status || stack->report.status_since == 0)
	{
		stack->report.status = status;
		stack->report.status_since = ecm_wall_clock();
		stack->report.status_at = ecm_now();
		if (status == ECM_STATUS_STOPPED || status == ECM_STATUS_FAILED)
			ecm_waiters_wake_all(stack->dboid);
	}
	ecm_copy_text(stack->report.waiting_for, sizeof(stack->report.waiting_for), waiting_for);
	stack->report.blocking_pid = 0;
}

void
ecm_stack_set_request(EcmStack *stack, EcmStackRequest request)
{
	EcmStackRequests *requests = &stack->requests;

	Assert(LWLockHeldByMeInMode(ecm_shared->lock, LW_EXCLUSIVE));

	switch (request)
	{
		case ECM_REQUEST_START:
			requests->stop = false;
			requests->drop_slot = false;
			requests->upgrade = false;
			requests->adopt = true;
			requests->reprobe = true;
			stack->lifecycle.no_worker = false; /* it is tried anew */
			break;
		case ECM_REQUEST_STOP:
			requests->stop = true;
			requests->drop_slot = false;
			requests->upgrade = false;
			requests->adopt = false;
			requests->restart = false;
			requests->reprobe = false;
			break;
		case ECM_REQUEST_UNSTOP:
			requests->stop = false;
			requests->drop_slot = false;
			requests->upgrade = false;
			requests->reprobe = true;
			break;
		case ECM_REQUEST_RESTART:
			requests->restart = true;
			stack->lifecycle.no_worker = false;
			break;
		case ECM_REQUEST_REPROBE:
			requests->reprobe = true;
			break;
		case ECM_REQUEST_SAMPLE:
			requests->sample = true;
			break;
		case ECM_REQUEST_CHECK:
			requests->check = true;
			break;
	}
}

bool
ecm_stack_request(Oid dboid, EcmStackRequest request)
{
	Latch	   *latch = NULL;
	int			index;

	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_find_locked(dboid);
	if (index >= 0)
	{
		EcmStack   *stack = &ecm_shared->stacks[index];

		ecm_stack_set_request(stack, request);
		if (request == ECM_REQUEST_SAMPLE || request == ECM_REQUEST_CHECK)
			latch = stack->manager.latch;
		if (latch == NULL)
			latch = ecm_shared->launcher_latch;
		if (latch != NULL)
			SetLatch(latch);
	}
	ecm_unlock();
	return index >= 0;
}

void
ecm_stack_request_flush(Oid dboid, XLogRecPtr lsn)
{
	int			index;

	ecm_lock(LW_EXCLUSIVE);
	index = ecm_stack_find_locked(dboid);
	if (index >= 0)
	{
		EcmStack   *stack = &ecm_shared->stacks[index];

		stack->requests.await_lsn = Max(stack->requests.await_lsn, lsn);
		if (stack->manager.latch != NULL)
			SetLatch(stack->manager.latch);
	}
	ecm_unlock();
}

bool
ecm_stack_take_check(int index)
{
	EcmStack   *stack = &ecm_shared->stacks[index];
	bool		requested;

	if (!stack->requests.check)
		return false;
	ecm_lock(LW_EXCLUSIVE);
	requested = stack->requests.check;
	stack->requests.check = false;
	ecm_unlock();
	return requested;
}

bool
ecm_stack_has_events(int index)
{
	EcmStack   *stack = ecm_stack_at(index);
	bool		some;

	ecm_lock(LW_SHARED);
	some = stack->events.last > stack->events.delivered;
	ecm_unlock();
	return some;
}

XLogRecPtr
ecm_stack_awaited_lsn(int index)
{
	XLogRecPtr	lsn;

	ecm_lock(LW_SHARED);
	lsn = ecm_shared->stacks[index].requests.await_lsn;
	ecm_unlock();
	return lsn;
}

void
ecm_stack_wake(int index)
{
	ecm_lock(LW_SHARED);
	if (ecm_shared->stacks[index].manager.latch != NULL)
		SetLatch(ecm_shared->stacks[index].manager.latch);
	ecm_unlock();
}

void
ecm_launcher_wake(void)
{
	ecm_lock(LW_SHARED);
	if (ecm_shared->launcher_latch != NULL)
		SetLatch(ecm_shared->launcher_latch);
	ecm_unlock();
}

void
ecm_launcher_request_scan(void)
{
	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->rescan_requested = true;
	ecm_unlock();
	ecm_launcher_wake();
}

int
ecm_launcher_pid(void)
{
	int			pid;

	ecm_lock(LW_SHARED);
	pid = ecm_shared->launcher_pid;
	ecm_unlock();
	return pid;
}

XLogRecPtr
ecm_first_lsn(void)
{
	return ecm_shared->first_lsn;
}
