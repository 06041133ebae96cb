/*-------------------------------------------------------------------------
 *
 * database_looks.c
 *	  Looks into databases of which nothing is known yet.
 *
 * Only a manager can tell whether there is an extension, so to look into a database
 * means to start one.  There is one look at a time, so that a server with a hundred
 * databases needs neither a hundred workers nor a hundred entries for it.  The entry
 * of a look is not "registered"; it is freed afterwards, unless a stack is wanted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "storage/latch.h"

#include "base/compat.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "launcher/database_looks.h"
#include "launcher/databases.h"
#include "launcher/stack_decision.h"
#include "launcher/stack_entry.h"
#include "launcher/stack_supervisor.h"
#include "launcher/worker_budget.h"
#include "slot/slot.h"

static struct
{
	EcmTime		retry_at;		/* the next look, as no worker was free for
								 * the last; 0: one was */
	bool		postponed;		/* an event has said that workers are lacking */
}			look_state;

EcmTime
ecm_look_retry_at(void)
{
	return look_state.retry_at;
}

/*
 * Says that there is no entry for a look into this database; once, until an entry has
 * been freed.  Slots of databases that can't be looked into are named, as they may be
 * ours, and no limit on retained WAL is kept for them.
 */
static void
report_too_many_stacks(const EcmDatabase *first, EcmTime now)
{
	StringInfoData slots;
	EcmSlotRow *rows;
	int			n;

	if (ecm_entries_are_exhausted())
		return;
	ecm_entries_note_exhausted(true);

	initStringInfo(&slots);
	rows = palloc(sizeof(EcmSlotRow) * Max(ecm_total_slots(), 1));
	n = ecm_slots_read(rows);
	for (int i = 0; i < n; i++)
	{
		EcmDatabase *database = ecm_database_find(rows[i].database);

		if (database != NULL && strcmp(rows[i].plugin, "pgoutput") == 0 &&
			ecm_stack_find(database->dboid) < 0 &&
			ecm_database_needs_look(database, now))
			appendStringInfo(&slots, "%s\"%s\"", slots.len > 0 ? ", " : "",
							 rows[i].name);
	}
	ecm_event_in(InvalidOid, NULL, ECM_EVENT_TOO_MANY_STACKS,
				 psprintf("%sRaise electric_cm.max_managers and restart the server, or list the databases that need a stack in electric_cm.databases.",
						  slots.len == 0 ? "" :
						  psprintf("No limit on retained WAL is watched for slots %s. ",
								   slots.data)),
				 "all %d stacks are taken: database \"%s\" is not looked at, nor any after it",
				 ecm_stack_count(), NameStr(first->datname));
}

/* Is there a stack that waits for workers?  It comes before stacks that a look finds. */
static bool
somebody_waits(void)
{
	for (int i = 0; i < ecm_stack_count(); i++)
	{
		EcmEntry	entry;

		ecm_entry_read(i, &entry);
		if (entry.in_use && entry.registered && !ecm_supervised(i)->running &&
			entry.manager.pid == 0 && entry.status == ECM_STATUS_WAITING)
			return true;
	}
	return false;
}

static bool
a_look_is_on_its_way(void)
{
	for (int i = 0; i < ecm_stack_count(); i++)
	{
		EcmEntry	entry;

		ecm_entry_read(i, &entry);
		if (entry.in_use && !entry.registered)
			return true;
	}
	return false;
}

/*
 * Allocates an entry for the database.  -1: none is free, or the database has one by
 * now, since a session has asked for a stack there.  ecm_stack_alloc() requests a
 * scan of pg_database for the sake of sessions; this database was just found by one.
 */
static int
entry_for(const EcmDatabase *database, EcmTime now)
{
	int			index;
	bool		rescan;

	ecm_lock(LW_EXCLUSIVE);
	if (ecm_stack_find_locked(database->dboid) >= 0)
	{
		ecm_unlock();
		SetLatch(MyLatch);		/* ecm_supervise_all() looks after it */
		return -1;
	}
	rescan = ecm_shared->rescan_requested;
	index = ecm_stack_alloc(database->dboid, NameStr(database->datname));
	ecm_shared->rescan_requested = rescan;
	ecm_unlock();

	if (index < 0)
		report_too_many_stacks(database, now);
	return index;
}

/*
 * Starts the manager that looks into a database.  If a stack is wanted there and there
 * are workers for all of it, that manager goes on and runs.
 */
static void
look_into(const EcmDatabase *database, int index, EcmTime now)
{
	EcmSupervised *sup = ecm_supervised(index);
	EcmEntry	entry;
	Oid			dboid = database->dboid;
	EcmStartFacts facts = {.unseen = true};
	EcmStartAction action;

	ecm_entry_read(index, &entry);
	ecm_supervisor_meet(index, &entry);

	/*
	 * A lack of workers is worth an event only if a stack is likely to be
	 * wanted there, as there is a slot; and once for all looks.
	 */
	sup->short_reported = look_state.postponed || !ecm_database_has_slot(dboid);

	facts.needed = ecm_workers_needed(&entry);
	facts.free = ecm_workers_free(&facts.looking);
	facts.reserve = ecm_worker_reserve(now);
	action = ecm_start_decide(&facts);
	if (action == ECM_START_LATER ||
		!ecm_supervisor_start(index, &entry, action == ECM_START_LOOK ||
							  somebody_waits()))
	{
		bool		silent = sup->short_reported;

		look_state.postponed |= !silent;
		ecm_supervisor_report_no_worker(index, &entry, facts.free);
		ecm_supervisor_free_entry(index, true);

		/* an entry that CREATE EXTENSION has come to want meanwhile stays */
		if (silent)
			sup->short_reported = false;
		look_state.retry_at = now + ecm_reconnect_max_delay * INT64CONST(1000);
	}
	else
	{
		look_state.postponed = false;

		/* if the look finds that a stack is wanted, a lack is worth an event */
		sup->short_reported = false;
	}
}

void
ecm_look_into_next(EcmTime now)
{
	EcmDatabase *database;
	int			index;

	if (look_state.retry_at > now)
		return;
	look_state.retry_at = 0;

	if (a_look_is_on_its_way())
		return;

	/* databases with a slot first, so that its retained WAL is watched soon */
	database = ecm_database_next_to_look(now, true);
	if (database == NULL)
		database = ecm_database_next_to_look(now, false);
	if (database == NULL)
		return;
	index = entry_for(database, now);
	if (index >= 0)
		look_into(database, index, now);
}
