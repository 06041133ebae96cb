/*-------------------------------------------------------------------------
 *
 * stack_entry.c
 *	  What the launcher knows of each stack.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "launcher/stack_entry.h"

static EcmSupervised *supervised;	/* one per entry */
static bool exhausted = false;

void
ecm_supervised_init(void)
{
	supervised = MemoryContextAllocZero(TopMemoryContext,
										ecm_shared->nstacks * sizeof(EcmSupervised));
}

EcmSupervised *
ecm_supervised(int index)
{
	Assert(index >= 0 && index < ecm_shared->nstacks);
	return &supervised[index];
}

void
ecm_entry_read(int index, EcmEntry *entry)
{
	EcmStack   *stack = &ecm_shared->stacks[index];

	ecm_lock(LW_SHARED);
	entry->in_use = stack->in_use;
	entry->dboid = stack->dboid;
	strlcpy(entry->datname, stack->datname, NAMEDATALEN);
	entry->registered = stack->registered;
	entry->requests = stack->requests;
	entry->pause = stack->pause;
	entry->lifecycle = stack->lifecycle;
	entry->manager = stack->manager;
	entry->status = stack->report.status;
	ecm_unlock();
}

EcmTime
ecm_manager_started_at(Oid dboid)
{
	for (int i = 0; i < ecm_shared->nstacks; i++)
		if (supervised[i].dboid == dboid && supervised[i].running)
			return supervised[i].started_at;
	return 0;
}

bool
ecm_entries_are_exhausted(void)
{
	return exhausted;
}

void
ecm_entries_note_exhausted(bool are_exhausted)
{
	exhausted = are_exhausted;
}
