/*-------------------------------------------------------------------------
 *
 * slot_notes.c
 *	  A durable note of the slots that we have created.
 *
 * The table that says which slot is ours goes with the extension.  If the
 * extension is dropped while the slot can't be (it is in use, the server
 * crashes, or the server runs in single-user mode or without the library), the
 * slot has no keeper, and would retain WAL for ever.  So the launcher keeps a
 * list of our slots in a file.  When it next looks into a database and finds
 * no extension, the list says which slots were left there.
 *
 * A note is no proof: somebody may have dropped the slot, and made another one
 * of the same name.  But a slot that is older than the server's start, is of
 * our kind, and is in a database that had our slot of that name when the
 * server ended, is ours as far as anybody can tell, and is dropped.  If a slot
 * has the name that ours would have, but there is no note of it, an event only
 * warns of it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xlog.h"
#include "replication/slot.h"
#include "storage/fd.h"

#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/text.h"
#include "slot/left_slot.h"
#include "slot/slot.h"
#include "slot/slot_notes.h"

#define NOTES_FILE		"electric_cm.slots"
#define NOTES_TEMP		NOTES_FILE ".tmp"
#define MAX_NOTES		256

typedef struct Note
{
	Oid			dboid;
	char		slot_name[NAMEDATALEN];
} Note;

typedef struct Notes
{
	int			n;
	Note		items[MAX_NOTES];
} Notes;

static Notes notes;				/* the contents of the file */

static bool
is_noted(const Notes *list, Oid dboid, const char *slot_name)
{
	for (int i = 0; i < list->n; i++)
		if (list->items[i].dboid == dboid &&
			strcmp(list->items[i].slot_name, slot_name) == 0)
			return true;
	return false;
}

static void
add_note(Notes *list, Oid dboid, const char *slot_name)
{
	Note	   *note;

	if (slot_name[0] == '\0' || list->n >= MAX_NOTES ||
		is_noted(list, dboid, slot_name))
		return;
	note = &list->items[list->n++];
	note->dboid = dboid;
	strlcpy(note->slot_name, slot_name, NAMEDATALEN);
}

/* Is there a slot of that name which we could have created? */
static bool
slot_exists(Oid dboid, const char *slot_name, EcmSlotFacts *facts)
{
	return ecm_slot_lookup(slot_name, facts) &&
		ecm_slot_is_of_our_kind(facts, dboid) && !facts->temporary;
}

void
ecm_slot_notes_load(void)
{
	FILE	   *file = AllocateFile(NOTES_FILE, "r");
	char		line[256];

	notes.n = 0;
	if (file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not open file \"%s\": %m", NOTES_FILE)));
		return;
	}
	while (fgets(line, sizeof(line), file) != NULL)
	{
		unsigned	dboid;
		char		slot_name[NAMEDATALEN];

		/* a slot's name has only lower-case letters, digits and underscores */
		if (sscanf(line, "%u %63[a-z0-9_]", &dboid, slot_name) == 2)
			add_note(&notes, dboid, slot_name);
	}
	FreeFile(file);
}

bool
ecm_slot_notes_have(Oid dboid, const char *slot_name)
{
	return is_noted(&notes, dboid, slot_name);
}

/*
 * Replaces the file.  A failure is logged, and leaves the old file; the next
 * update tries again.
 */
static bool
write_notes(const Notes *list)
{
	FILE	   *file = AllocateFile(NOTES_TEMP, "w");
	bool		ok = file != NULL;

	for (int i = 0; i < list->n && ok; i++)
		ok = fprintf(file, "%u %s\n", list->items[i].dboid, list->items[i].slot_name) > 0;
	if (file != NULL && FreeFile(file) != 0)
		ok = false;
	if (!ok)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", NOTES_TEMP)));
		(void) unlink(NOTES_TEMP);
		return false;
	}
	return durable_rename(NOTES_TEMP, NOTES_FILE, LOG) == 0;
}

/*
 * Has the database been probed, and does it have the extension?  Then its
 * entry says which slot is its own, and an older note does not count.
 */
static bool
is_settled(Oid dboid)
{
	bool		settled = false;
	int			index;

	ecm_lock(LW_SHARED);
	index = ecm_stack_find_locked(dboid);
	if (index >= 0)
		settled = ecm_stack_at(index)->manager.probe != ECM_PROBE_UNKNOWN &&
			ecm_stack_at(index)->manager.probe != ECM_PROBE_NO_EXTENSION;
	ecm_unlock();
	return settled;
}

void
ecm_slot_notes_update(void)
{
	Notes	   *now = palloc0(sizeof(Notes));
	bool		same;

	ecm_lock(LW_SHARED);
	for (int i = 0; i < ecm_stack_count(); i++)
	{
		const EcmStack *stack = ecm_stack_at(i);

		if (!stack->in_use)
			continue;
		if (stack->slot.owned)
			add_note(now, stack->dboid, stack->slot.name);
		add_note(now, stack->dboid, stack->former.name);
	}
	for (int i = 0; i < ecm_shared->nleft_slots; i++)
		add_note(now, ecm_shared->left_slots[i].dboid,
				 ecm_shared->left_slots[i].slot_name);
	ecm_unlock();

	/* keep the notes of databases that have not been probed yet */
	for (int i = 0; i < notes.n; i++)
	{
		const Note *note = &notes.items[i];
		EcmSlotFacts facts;

		if (!is_settled(note->dboid) &&
			slot_exists(note->dboid, note->slot_name, &facts))
			add_note(now, note->dboid, note->slot_name);
	}

	same = now->n == notes.n;
	for (int i = 0; i < now->n && same; i++)
		same = is_noted(&notes, now->items[i].dboid, now->items[i].slot_name);
	if (!same && write_notes(now))
		notes = *now;
	pfree(now);
}

/* Warns of a slot that has our name, but no note. */
static void
report_left(Oid dboid, const char *datname, const char *slot_name,
			const EcmSlotFacts *facts)
{
	XLogRecPtr	end = ecm_current_lsn();

	ecm_event_in(dboid, datname, ECM_EVENT_REPLICATION_SLOT_LEFT,
				 psprintf("It retains %s of WAL. If nobody needs it: SELECT pg_drop_replication_slot('%s')",
						  ecm_size_text(facts->restart_lsn < end &&
										!XLogRecPtrIsInvalid(facts->restart_lsn) ?
										(int64) (end - facts->restart_lsn) : 0),
						  slot_name),
				 "replication slot \"%s\" of database \"%s\" seems to have been left by electric_cm, which is not there any more",
				 slot_name, datname);
}

void
ecm_slot_notes_leave(Oid dboid, const char *datname)
{
	EcmSlotFacts facts;
	const char *default_name = ecm_default_slot_name(datname);
	bool		noted = false;
	int			kept = 0;

	for (int i = 0; i < notes.n; i++)
	{
		const Note *note = &notes.items[i];

		if (note->dboid != dboid)
			notes.items[kept++] = *note;
		else if (slot_exists(dboid, note->slot_name, &facts) &&
				 (XLogRecPtrIsInvalid(facts.restart_lsn) ||
				  facts.restart_lsn < ecm_first_lsn()))
		{
			noted |= strcmp(note->slot_name, default_name) == 0;
			ecm_leave_slot(dboid, note->slot_name);
		}
	}
	notes.n = kept;				/* slots that wait to be dropped are noted
								 * again by the next update */
	if (!noted && slot_exists(dboid, default_name, &facts) &&
		facts.active_pid == 0)
		report_left(dboid, datname, default_name, &facts);
}
