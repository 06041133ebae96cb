/*-------------------------------------------------------------------------
 *
 * manager_start.c
 *	  A manager's start: is a stack wanted, and with which slot?
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
#include "connection/pool.h"
#include "manager/consumer_queues.h"
#include "manager/manager.h"
#include "manager/shape_creation.h"
#include "manager/shape_retention.h"
#include "manager/stack_report.h"
#include "slot/retained_wal.h"
#include "slot/slot_name.h"

typedef struct ProbeArg
{
	Manager    *m;
	EcmProbe	result;
	bool		override;		/* electric_cm_start() has asked */
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

/*
 * Is a stack wanted in this database?
 */
static void
probe(void *arg)
{
	ProbeArg   *p = arg;
	Manager    *m = p->m;

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
	ecm_stack_row_read(&m->remembered);
	if (p->override)
		p->result = ECM_PROBE_RUN;
	else if (m->remembered.stopped)
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
 * Is the recorded slot ours still?  What has been seen since the server started
 * counts more than the table.
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
		*seen = InvalidXLogRecPtr;	/* positions there mean nothing here */
	else if (XLogRecPtrIsInvalid(m->remembered.clean_stop_lsn))
		*seen = ecm_first_lsn();
	else
		*seen = m->remembered.clean_stop_lsn + 1;	/* another one may begin
													 * there */
	return true;
}

/*
 * Shows the stack's slot and whether it is ours: others go by that, too, when this
 * process is gone.  A change of electric_cm.slot_name leaves a former slot behind.
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

	/* two stacks whose names would be the same may start at the same time */
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
 * Is a stack wanted?  If not, says why, and the process ends here: there is
 * nothing to clean up.
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

		/* the launcher looks after a stopped stack's slot, and views show it */
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
	/* nothing that the manager does itself may wait long for a lock */
	ecm_worker_set("lock_timeout", "100ms");

	/* first: the next reload finds all changes that are made after this */
	ecm_manager_note_settings(m);

	end_unless_wanted(m);

	/* before the probe's result says that a stack runs */
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
	ecm_pool_init(m->stack->datname);
	ecm_queues_init(m->stack_index, m->stack->datname);
	ecm_queues_set_message_callback(m->remembered.message_prefix, ecm_creations_message);
	ecm_creations_init(m->stack_index);
	ecm_retention_init(m->stack_index);
	ecm_state_init(&m->state, ecm_reconnect_initial_delay, ecm_reconnect_max_delay);
	m->state.running = true;
	(void) ecm_manager_may_catch_up(m, ecm_now());
	ecm_manager_run_step(m);
}
