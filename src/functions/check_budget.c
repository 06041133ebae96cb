/*-------------------------------------------------------------------------
 *
 * check_budget.c
 *	  electric_cm_check(): does the server have room for all stacks?
 *
 * Each check compares a limit of the server with what others use now plus what all
 * stacks need, if they were at full size.  It is a failure if this database's stack
 * lacks something, a warning if it has all but others could not get theirs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "replication/slot.h"
#include "replication/walsender.h"

#include "base/settings.h"
#include "functions/check.h"
#include "slot/slot.h"

/* A fix raises a limit by so many more than is needed. */
#define HEADROOM			2

/*
 * The needs of this server's stacks, and what they have now.  This database's stack
 * counts in any case, others unless they are stopped.
 */
typedef struct Demand
{
	int			stacks;			/* each needs one slot and one walsender */
	int			slots_have;
	int			senders_have;
	int			workers;		/* managers and consumers */
	int			sessions;		/* of the pools */
	int			sessions_have;

	/* does this database's stack have what it needs? */
	bool		own_slot;
	bool		own_sender;
	bool		own_workers;
	bool		own_session;	/* at least one */
} Demand;

/* A number among the settings that a stack shows. */
static int
published_option(const EcmStack *stack, const char *name, int otherwise)
{
	for (int i = 0; i < Min(stack->noptions, ECM_MAX_OPTIONS); i++)
		if (strcmp(stack->options[i].name, name) == 0)
			return Max(atoi(stack->options[i].setting), 1);
	return otherwise;
}

static bool
consumers_run(const EcmStack *stack, int wanted)
{
	int			n = 0;

	for (int i = 0; i < ECM_MAX_SHAPE_WORKERS; i++)
		if (stack->consumers[i].used && stack->consumers[i].pid != 0)
			n++;
	return n >= wanted;
}

static void
add_demand(Demand *d, const EcmStack *stack, const char *slot_name,
		   int workers, int sessions, bool own)
{
	EcmSlotFacts facts;
	bool		slot = ecm_slot_lookup(slot_name, &facts);
	bool		sender = stack->manager.pid != 0 && stack->conns[0].backend_pid != 0;
	int			sessions_have = 0;

	for (int i = 1; i < (int) lengthof(stack->conns); i++)
		if (stack->manager.pid != 0 && stack->conns[i].used &&
			stack->conns[i].backend_pid != 0)
			sessions_have++;

	d->stacks++;
	d->slots_have += slot;
	d->senders_have += sender;
	d->workers += 1 + workers;
	d->sessions += sessions;
	d->sessions_have += sessions_have;
	if (own)
	{
		d->own_slot = slot;
		d->own_sender = sender;
		d->own_workers = stack->manager.pid != 0 && consumers_run(stack, workers);
		d->own_session = sessions_have > 0 || stack->report.status == ECM_STATUS_ACTIVE;
	}
}

static Demand
stacks_demand(const EcmSituation *s)
{
	Demand		d = {0};
	EcmStack   *stack = palloc(sizeof(EcmStack));

	add_demand(&d, s->stack, s->slot_name, ecm_check_int(s, "shape_workers"),
			   ecm_check_int(s, "pool_size"), true);
	for (int i = 0; s->preloaded && i < ecm_stack_count(); i++)
		if (ecm_stack_copy(i, stack) && stack->registered &&
			stack->dboid != MyDatabaseId &&
			stack->report.status != ECM_STATUS_STOPPED)
			add_demand(&d, stack, ecm_check_slot_name(stack),
					   published_option(stack, "electric_cm.shape_workers", 1),
					   published_option(stack, "electric_cm.pool_size", 1),
					   false);
	pfree(stack);
	return d;
}

/*
 * Judges one limit of the server.  others: used by others now; needed: by all stacks;
 * own_met: this database's stack has what it needs.  what: what is counted, for the text.
 */
static void
judge_budget(EcmFinding *f, const char *name, int limit, int others, int needed,
			 bool own_met, const char *what)
{
	int			total = Max(others, 0) + needed;

	if (total <= limit)
		ecm_check_pass(f, "%s is %d: others use %d %s now, the stacks need %d",
					   name, limit, others, what, needed);
	else if (own_met)
		ecm_check_warn(f, ecm_check_raise(name, total + HEADROOM),
					   "%s is %d: others use %d %s now, all stacks together need %d",
					   name, limit, others, what, needed);
	else
		ecm_check_fail(f, ecm_check_raise(name, total + HEADROOM),
					   "%s is %d: others use %d %s now, the stacks need %d",
					   name, limit, others, what, needed);
}

static int
count_processes(const char *condition)
{
	int			n;
	char	  **v = ecm_check_query(1, &n,
									"SELECT count(*) FROM pg_stat_activity WHERE %s",
									condition);

	return atoi(v[0]);
}

void
ecm_check_replication_slots(const EcmSituation *s, EcmFinding *f)
{
	Demand		d = stacks_demand(s);
	int			used = 0;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
		used += ReplicationSlotCtl->replication_slots[i].in_use;
	LWLockRelease(ReplicationSlotControlLock);
	judge_budget(f, "max_replication_slots", max_replication_slots,
				 used - d.slots_have, d.stacks, d.own_slot, "slots");
}

void
ecm_check_wal_senders(const EcmSituation *s, EcmFinding *f)
{
	Demand		d = stacks_demand(s);

	judge_budget(f, "max_wal_senders", max_wal_senders,
				 count_processes("backend_type = 'walsender'") - d.senders_have,
				 d.stacks, d.own_sender, "walsenders");
}

/*
 * Parallel workers are not counted: they come and go, and a query does without them if
 * none is free.
 */
void
ecm_check_worker_processes(const EcmSituation *s, EcmFinding *f)
{
	Demand		d = stacks_demand(s);
	int			others =
	count_processes("NOT starts_with(backend_type, 'electric_cm ')"
					" AND backend_type NOT IN ('archiver', 'autovacuum launcher',"
					" 'autovacuum worker', 'background writer', 'checkpointer',"
					" 'client backend', 'io worker', 'logger', 'parallel worker',"
					" 'slotsync worker', 'standalone backend', 'startup',"
					" 'walreceiver', 'walsender', 'walsummarizer', 'walwriter')");

	judge_budget(f, "max_worker_processes", max_worker_processes, others,
				 1 + d.workers, d.own_workers,
				 "background workers (without parallel ones)");
}

/* The pool makes do with fewer sessions than its size, but it needs one. */
void
ecm_check_connections(const EcmSituation *s, EcmFinding *f)
{
	Demand		d = stacks_demand(s);
	int			others = count_processes("backend_type = 'client backend'") -
	d.sessions_have;

	judge_budget(f, "max_connections", MaxConnections, others, d.sessions,
				 d.own_session || others < MaxConnections, "sessions");
}

void
ecm_check_stacks(const EcmSituation *s, EcmFinding *f)
{
	int			taken = 0;

	if (!s->preloaded)
	{
		ecm_check_pass(f, "no database has a stack");
		return;
	}
	ecm_lock(LW_SHARED);
	for (int i = 0; i < ecm_stack_count(); i++)
		taken += ecm_stack_at(i)->in_use && ecm_stack_at(i)->registered;
	ecm_unlock();

	if (taken >= ecm_stack_count() && !s->has_stack)
		ecm_check_fail(f, ecm_check_raise("electric_cm.max_managers", taken + HEADROOM),
					   "all %d stacks that electric_cm.max_managers allows are taken by other databases",
					   taken);
	else
		ecm_check_pass(f, "%d of the %d stacks that electric_cm.max_managers allows are taken",
					   taken, ecm_stack_count());
}
