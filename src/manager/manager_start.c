/*-------------------------------------------------------------------------
 *
 * manager_start.c
 *	  A manager's start: is a stack wanted, and with which slot?
 *
 * Only a process in the database can see whether the extension is there, so the
 * launcher starts a manager to find out.  Its verdict, the probe, goes into the
 * entry; with any other one than "run" the process ends, without clean-up, as it
 * has not touched anything.
 *
 * The slot's name, and whether the slot is the stack's own, goes into the entry even
 * if no stack is wanted: the launcher then watches the slot in its place.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "base/bgworker.h"
#include "base/clock.h"
#include "base/errors.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/stack_catalog.h"
#include "base/version.h"
#include "connection/pool.h"
#include "manager/consumer_queues.h"
#include "manager/manager.h"
#include "manager/shape_creation.h"
#include "manager/shape_expiry.h"
#include "manager/shape_retention.h"
#include "manager/stack_report.h"
#include "slot/retained_wal.h"
#include "slot/slot_name.h"

/* The argument of probe(). */
typedef struct ProbeArg
{
	Manager    *m;
	EcmProbe	result;
	bool		override;		/* electric_cm_start() has asked: run,
								 * whatever the table says */
} ProbeArg;

/*
 * Does the database take connections?  The launcher sends a manager to those that
 * don't, too, for their slots' sake.
 */
static bool
database_is_open(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	Form_pg_database form;
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_database) GETSTRUCT(tuple);
	result = form->datallowconn && !form->datistemplate;
	ReleaseSysCache(tuple);
	return result;
}

/* pg_upgrade has made another server of the one that was stopped for it. */
static bool
has_been_upgraded(const EcmStackRow *remembered)
{
	return remembered->known &&
		remembered->system_identifier != GetSystemIdentifier();
}

/*
 * In a transaction: is a stack wanted in this database?  The reasons against it are
 * looked at in the order in which they are named to users.
 */
static void
probe(void *arg)
{
	ProbeArg   *p = arg;
	Manager    *m = p->m;
	EcmSqlFit	fit;

	p->result = ECM_PROBE_NO_EXTENSION;
	m->extension_oid = get_extension_oid("electric_cm", true);
	if (!OidIsValid(m->extension_oid))
		return;
	p->result = ECM_PROBE_CLOSED;
	if (!database_is_open())
		return;
	p->result = ECM_PROBE_UNLISTED;
	if (!ecm_database_is_listed(m->stack->datname))
		return;
	p->result = ECM_PROBE_DISABLED;
	if (!ecm_enabled)
		return;
	fit = ecm_sql_fit();
	if (fit != ECM_SQL_FITS)
	{
		p->result = fit == ECM_SQL_OUTDATED ? ECM_PROBE_OUTDATED : ECM_PROBE_UNKNOWN_VERSION;
		return;
	}
	ecm_stack_row_read(&m->remembered);
	if (p->override)
		p->result = ECM_PROBE_RUN;
	else if (m->remembered.stopped_for_upgrade && !has_been_upgraded(&m->remembered))
		p->result = ECM_PROBE_UPGRADE;
	else if (m->remembered.stopped && !m->remembered.stopped_for_upgrade)
		p->result = m->remembered.known ? ECM_PROBE_STOPPED : ECM_PROBE_NOT_STARTED;
	else if (m->remembered.database_oid != MyDatabaseId)
		p->result = ECM_PROBE_CLONED;
	else
		p->result = ECM_PROBE_RUN;
}

void
ecm_manager_read_remembered(void *arg)
{
	ecm_stack_row_read(&((Manager *) arg)->remembered);
}

/*
 * Is the slot that the table records still the one that the stack has made?  *seen:
 * where WAL ended when it was last seen; a slot of the same name that begins beyond
 * that is somebody else's (slot_owner.c).  What this server run has seen, as the
 * entry has it, counts more than the table, which is as old as the last stop.
 */
static bool
recorded_slot_is_ours(Manager *m, XLogRecPtr *seen)
{
	const char *name = NameStr(m->remembered.slot_name);

	if (!m->remembered.owns_slot)
		return false;
	if (strcmp(m->stack->slot.name, name) == 0)
	{
		*seen = Max(m->stack->slot.seen_lsn, m->stack->progress.acknowledged_lsn);
		return m->stack->slot.owned;
	}
	if (strcmp(m->stack->former.name, name) == 0)
		*seen = m->stack->former.seen_lsn;
	else if (m->remembered.known &&
			 m->remembered.system_identifier != GetSystemIdentifier())
		*seen = InvalidXLogRecPtr;	/* the row has come with a dump, say: its
									 * positions are another server's */
	else if (XLogRecPtrIsInvalid(m->remembered.clean_stop_lsn))
		*seen = ecm_first_lsn();
	else
		*seen = m->remembered.clean_stop_lsn + 1;	/* another slot may begin
													 * at that very place */
	return true;
}

/*
 * Puts the stack's slot into the entry, and whether it is ours: the launcher goes by
 * that when this process is gone.  If electric_cm.slot_name has changed, the slot of
 * the old name goes there as the former one.
 */
static void
show_slot(Manager *m)
{
	const char *recorded = NameStr(m->remembered.slot_name);
	XLogRecPtr	seen = InvalidXLogRecPtr;
	bool		ours = recorded_slot_is_ours(m, &seen);
	int			attempts = 0;
	const char *name;
	bool		former;

	/*
	 * A default name avoids names that other stacks show.  Two stacks that
	 * start at the same time may still choose the same, so the second one
	 * chooses again.
	 */
	do
	{
		name = ecm_slot_name_of_stack(&m->remembered, m->stack->datname);
		former = ours && strcmp(name, recorded) != 0;
	} while (!ecm_report_slot(m->stack_index, name, ours && !former, seen,
							  ecm_slot_name[0] == '\0' && ++attempts < 3));

	if (former)
		ecm_report_former_slot(m->stack_index, recorded, seen);
	else if (strcmp(m->stack->former.name, name) == 0)
		ecm_report_former_slot(m->stack_index, "", InvalidXLogRecPtr);
	ecm_retained_wal_publish_settings(m->stack_index);
}

/*
 * Probes.  If no stack is wanted, leaves the verdict in the entry and ends the
 * process.  FATAL if the database can't be looked into: the launcher then tries
 * again, with backoff.
 */
static void
end_unless_wanted(Manager *m)
{
	ProbeArg	arg;
	EcmError	err;
	bool		one_is_gone;

	arg.m = m;
	arg.override = m->stack->requests.adopt;
	if (!ecm_manager_catch_up_with_settings(&err, &one_is_gone) ||
		!ecm_worker_try(probe, &arg, &err))
		ereport(FATAL,
				(errmsg("could not look into database \"%s\": %s",
						m->stack->datname, err.message)));
	if (one_is_gone)
	{
		m->cleaned_up = true;
		(void) ecm_stack_request(MyDatabaseId, ECM_REQUEST_REPROBE);
		proc_exit(0);
	}
	if (arg.result != ECM_PROBE_RUN)
	{
		m->cleaned_up = true;

		/* the launcher watches the slot from here on, and views show it */
		if (arg.result != ECM_PROBE_NO_EXTENSION &&
			ecm_worker_try(ecm_manager_read_remembered, m, &err))
			show_slot(m);
		ecm_stack_set_probe(m->stack_index, arg.result);
		proc_exit(0);
	}
}

void
ecm_manager_start_up(Manager *m)
{
	/* the manager must not block: what it does itself waits briefly for locks */
	ecm_worker_set("lock_timeout", "100ms");

	/*
	 * Before the settings are read: a change in between is then found by the
	 * next reload, at worst for nothing.
	 */
	ecm_manager_note_settings(m);

	end_unless_wanted(m);

	/*
	 * Before the probe says that a stack runs: from then on the launcher
	 * counts so many workers for it.
	 */
	ecm_lock(LW_EXCLUSIVE);
	m->stack->manager.shape_workers = ecm_shape_workers;
	ecm_unlock();
	show_slot(m);
	if (m->stack->lifecycle.look_only)
	{
		m->cleaned_up = true;
		ecm_stack_set_probe(m->stack_index, ECM_PROBE_LOOKED);
		proc_exit(0);
	}
	ecm_report_init(m->stack_index);
	ecm_report_options();
	ecm_stack_set_probe(m->stack_index, ECM_PROBE_RUN);

	ecm_exclusive_lock_init(&m->lock, m->stack->datname, m->stack->slot.name);
	ecm_replication_init(&m->replication, m->stack->datname,
						 m->stack->slot.name, m->stack->report.publication_name);
	m->replication.creation.unsettled = m->remembered.slot_unfinished;
	m->replication.creation.made_unheard = m->remembered.slot_unfinished &&
		ecm_manager_slot_is_recorded(m);
	ecm_pool_init(m->stack->datname);
	ecm_queues_init(m->stack_index, m->stack->datname);
	ecm_queues_set_message_callback(m->remembered.message_prefix, ecm_creations_message);
	ecm_creations_init(m->stack_index);
	ecm_retention_init(m->stack_index);
	ecm_expiry_init(m->stack_index);
	ecm_state_init(&m->state, ecm_reconnect_initial_delay, ecm_reconnect_max_delay);
	m->state.running = true;
	(void) ecm_manager_may_catch_up(m, ecm_now());
	ecm_manager_run_step(m);
}
