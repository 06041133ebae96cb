/*-------------------------------------------------------------------------
 *
 * stack_entry.c
 *	  What the launcher knows of each stack.
 *
 * Notes are kept by the index of the entry.  The entry may be freed and be given to
 * another database meanwhile; a note's dboid tells, see ecm_supervisor_meet().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "launcher/stack_entry.h"

static struct
{
	EcmSupervised *supervised;	/* one per entry */
	bool		exhausted;		/* none was free for the next database */
}			entries;

void
ecm_supervised_init(void)
{
	entries.supervised = MemoryContextAllocZero(TopMemoryContext,
												ecm_stack_count() * sizeof(EcmSupervised));
}

EcmSupervised *
ecm_supervised(int index)
{
	Assert(index >= 0 && index < ecm_stack_count());
	return &entries.supervised[index];
}

void
ecm_entry_read(int index, EcmEntry *entry)
{
	EcmStack   *stack = ecm_stack_at(index);

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
	for (int i = 0; i < ecm_stack_count(); i++)
	{
		const EcmSupervised *sup = &entries.supervised[i];

		if (sup->dboid == dboid && sup->running)
			return sup->started_at;
	}
	return 0;
}

bool
ecm_entries_are_exhausted(void)
{
	return entries.exhausted;
}

void
ecm_entries_note_exhausted(bool exhausted)
{
	entries.exhausted = exhausted;
}
