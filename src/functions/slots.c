/*-------------------------------------------------------------------------
 *
 * slots.c
 *	  All replication slots of the server, ours or not, and the retained-WAL
 *	  history: the SQL functions behind two views.
 *
 * Slots of others are shown as well: any slot that nobody looks after can fill the
 * disk, and stop the server with our stacks on it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "base/text.h"
#include "slot/retained_wal_history.h"
#include "slot/slot.h"
#include "slot/slot_inactive.h"

PG_FUNCTION_INFO_V1(electric_cm_slots);
PG_FUNCTION_INFO_V1(electric_cm_retained_wal_history);

#define SLOT_COLUMNS	18
#define HISTORY_COLUMNS	5

/* Does a stack use that slot, or would it if it ran? */
static bool
is_ours(const EcmSlotRow *slot)
{
	bool		ours = false;

	ecm_lock(LW_SHARED);
	for (int i = 0; i < ecm_stack_count() && !ours; i++)
	{
		EcmStack   *stack = ecm_stack_at(i);

		ours = stack->in_use && stack->dboid == slot->database &&
			(strcmp(stack->slot.name, slot->name) == 0 ||
			 strcmp(stack->former.name, slot->name) == 0);
	}
	ecm_unlock();
	return ours;
}

/* The slot's state in a few words, for the view's column "verdict". */
static const char *
verdict(const EcmSlotRow *slot)
{
	if (strcmp(slot->wal_status, "lost") == 0)
		return "lost";
	if (strcmp(slot->wal_status, "unreserved") == 0)
		return "will be invalidated at the next checkpoint";
	if (slot->active_pid == 0 && !XLogRecPtrIsInvalid(slot->restart_lsn))
		return psprintf("idle and holding %s", ecm_size_text(slot->retained_wal_bytes));
	if (ecm_retained_wal_warning > 0 &&
		slot->retained_wal_bytes / (1024 * 1024) >= ecm_retained_wal_warning)
		return psprintf("active, but holding %s", ecm_size_text(slot->retained_wal_bytes));
	return "ok";
}

static void
put_slot(ReturnSetInfo *rsinfo, const EcmSlotRow *slot)
{
	Datum		values[SLOT_COLUMNS] = {0};
	bool		nulls[SLOT_COLUMNS] = {0};
	char	   *datname = OidIsValid(slot->database) ?
	get_database_name(slot->database) : NULL;
	bool		holds = !XLogRecPtrIsInvalid(slot->restart_lsn);
	int			n = 0;

#define PUT(value, isnull)	(nulls[n] = (isnull), values[n++] = (isnull) ? (Datum) 0 : (value))
	PUT(DirectFunctionCall1(namein, CStringGetDatum(slot->name)), false);
	PUT(CStringGetTextDatum(OidIsValid(slot->database) ? "logical" : "physical"), false);
	PUT(DirectFunctionCall1(namein, CStringGetDatum(slot->plugin)), slot->plugin[0] == '\0');
	PUT(DirectFunctionCall1(namein, CStringGetDatum(ecm_valid_text(datname))),
		datname == NULL);
	PUT(BoolGetDatum(is_ours(slot)), false);
	PUT(BoolGetDatum(slot->temporary), false);
	PUT(BoolGetDatum(slot->active_pid != 0), false);
	PUT(Int32GetDatum(slot->active_pid), slot->active_pid == 0);
	PUT(TimestampTzGetDatum(slot->inactive_since), slot->inactive_since == 0);
	PUT(CStringGetTextDatum(slot->wal_status), slot->wal_status[0] == '\0');
	PUT(CStringGetTextDatum(slot->invalidation), slot->invalidation == NULL);
	PUT(LSNGetDatum(slot->restart_lsn), !holds);
	PUT(LSNGetDatum(slot->confirmed_flush_lsn),
		XLogRecPtrIsInvalid(slot->confirmed_flush_lsn));
	PUT(Int64GetDatum(slot->retained_wal_bytes), !holds);
	PUT(Int64GetDatum(slot->safe_wal_size), slot->safe_wal_size < 0);
	PUT(Int32GetDatum(slot->xmin_age), slot->xmin_age < 0);
	PUT(Int32GetDatum(slot->catalog_xmin_age), slot->catalog_xmin_age < 0);
	PUT(CStringGetTextDatum(verdict(slot)), false);
#undef PUT
	Assert(n == SLOT_COLUMNS);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * electric_cm_slots() -> setof record: one row per replication slot of the
 * server, as of now
 */
Datum
electric_cm_slots(PG_FUNCTION_ARGS)
{
	EcmSlotRow *rows;
	int			n;

	ecm_require_shared();
	InitMaterializedSRF(fcinfo, 0);
	rows = palloc(sizeof(EcmSlotRow) * Max(ecm_total_slots(), 1));
	n = ecm_slots_read(rows);
	ecm_slot_activity_note(rows, n);
	for (int i = 0; i < n; i++)
		put_slot((ReturnSetInfo *) fcinfo->resultinfo, &rows[i]);
	return (Datum) 0;
}

/*
 * electric_cm_retained_wal_history() -> setof record: the samples that are
 * kept, of each stack, the oldest first
 */
Datum
electric_cm_retained_wal_history(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EcmStack   *stack;

	ecm_require_shared();
	InitMaterializedSRF(fcinfo, 0);
	stack = palloc(sizeof(EcmStack));
	for (int i = 0; i < ecm_stack_count(); i++)
	{
		EcmHistoryEntry *history;
		int			n;

		if (!ecm_stack_copy_head(i, stack) || !stack->registered)
			continue;
		n = ecm_history_copy(i, stack->dboid, &history);
		for (int j = 0; j < n; j++)
		{
			EcmHistoryEntry *entry = &history[j];
			Datum		values[HISTORY_COLUMNS] = {0};
			bool		nulls[HISTORY_COLUMNS] = {0};

			values[0] = DirectFunctionCall1(namein, CStringGetDatum(ecm_valid_text(stack->datname)));
			values[1] = TimestampTzGetDatum(entry->sampled_at);
			values[2] = Int64GetDatum(entry->retained_wal_bytes);
			nulls[2] = entry->retained_wal_bytes < 0;
			values[3] = Int64GetDatum(entry->flush_lag_bytes);
			nulls[3] = entry->flush_lag_bytes < 0;
			values[4] = CStringGetTextDatum(entry->wal_status);
			nulls[4] = entry->wal_status[0] == '\0';
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
		pfree(history);
	}
	return (Datum) 0;
}
