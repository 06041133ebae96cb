/*-------------------------------------------------------------------------
 *
 * retained_wal.c
 *	  Watches over the WAL that a stack's slot retains.
 *
 * The manager of the stack calls this for each sample, and the launcher does
 * while there is no manager or it hangs.  So a slot is watched in every status
 * of its stack.  Everything is read from shared memory and the file system:
 * nothing here waits, needs a transaction, or depends on the stack's being
 * well.
 *
 * What a sample means is decided in retained_wal_guard.c; what is said of it,
 * in retained_wal_report.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/xlog.h"
#include "fmgr.h"
#include "pgstat.h"
#include "postmaster/bgwriter.h"
#include "replication/slot.h"
#include "storage/standby.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/event.h"
#include "base/text.h"
#include "slot/retained_wal.h"
#include "slot/retained_wal_history.h"
#include "slot/retained_wal_internal.h"
#include "slot/slot.h"
#include "slot/slot_inactive.h"
#include "slot/slot_owner.h"

#define MB	(INT64CONST(1024) * 1024)

/*
 * Time that the checkpoint is given which removes the WAL of a slot that was
 * dropped for want of space.  Other slots are not dropped meanwhile for the
 * same reason.
 */
#define RELIEF_US	(5 * USECS_PER_SEC)

/* ------------------------------------------------------------- settings -- */

/* A setting's value if it is of the database, else INT_MIN. */
static int
published(const char *name, int value)
{
	return ecm_setting_is_of_database(name) ? value : INT_MIN;
}

void
ecm_retained_wal_publish_settings(int stack_index)
{
	EcmStack   *stack = ecm_stack_at(stack_index);
	EcmWalSettings settings;

	settings.known = true;
	settings.report_interval = published("electric_cm.wal_report_interval",
										 ecm_wal_report_interval);
	settings.warning = published("electric_cm.retained_wal_warning",
								 ecm_retained_wal_warning);
	settings.limit = published("electric_cm.retained_wal_limit",
							   ecm_retained_wal_limit);
	settings.min_free = published("electric_cm.min_wal_free_space",
								  ecm_min_wal_free_space);
	ecm_lock(LW_EXCLUSIVE);
	stack->wal_settings = settings;
	ecm_unlock();
}

/* A setting in MB as bytes; -1 stays -1. */
static int64
megabytes(int setting)
{
	return setting < 0 ? -1 : setting * MB;
}

void
ecm_retained_wal_effective_limits(const EcmWalSettings *of_database, EcmWalLimits *limits)
{
#define EFFECTIVE(setting, own) \
	(!of_database->known || of_database->setting == INT_MIN ? (own) : of_database->setting)
	limits->warning = megabytes(EFFECTIVE(warning, ecm_retained_wal_warning));
	limits->limit = megabytes(EFFECTIVE(limit, ecm_retained_wal_limit));
	limits->min_free = megabytes(EFFECTIVE(min_free, ecm_min_wal_free_space));
	limits->interval_us = INT64CONST(1000) *
		EFFECTIVE(report_interval, ecm_wal_report_interval);
	limits->server_limit = ecm_max_slot_wal_keep_bytes();
#undef EFFECTIVE
}

/* ------------------------------------------------------------- sampling -- */

static void
sample_decoding(const char *slot_name, EcmDecoding *decoding)
{
	NameData	name;
	PgStat_StatReplSlotEntry *entry;

	memset(decoding, 0, sizeof(*decoding));
	namestrcpy(&name, slot_name);
	pgstat_clear_snapshot();
	entry = pgstat_fetch_replslot(name);
	if (entry == NULL)
		return;
	decoding->known = true;
	decoding->spill_txns = entry->spill_txns;
	decoding->spill_bytes = entry->spill_bytes;
	decoding->stream_txns = entry->stream_txns;
	decoding->stream_bytes = entry->stream_bytes;
	decoding->total_txns = entry->total_txns;
	decoding->total_bytes = entry->total_bytes;
	decoding->stats_reset = entry->stat_reset_timestamp;
}

/*
 * Notes which slots of the server are inactive (see slot_inactive.c).  Returns
 * since when this one has been; 0: it is active, or does not exist.
 */
static TimestampTz
note_activity(const char *slot_name)
{
	EcmSlotRow *rows = palloc(sizeof(EcmSlotRow) * Max(ecm_total_slots(), 1));
	int			n = ecm_slots_read(rows);
	TimestampTz since = 0;

	ecm_slot_activity_note(rows, n);
	for (int i = 0; i < n; i++)
		if (strcmp(rows[i].name, slot_name) == 0)
			since = rows[i].inactive_since;
	pfree(rows);
	return since;
}

static void
figures_of(const EcmWalSample *sample, bool pinned, EcmWalFigures *figures)
{
	figures->at = sample->taken_at;
	figures->exists = sample->slot_exists;
	figures->unreserved = strcmp(sample->wal_status, "unreserved") == 0;
	figures->lost = strcmp(sample->wal_status, "lost") == 0;
	figures->current_lsn = sample->current_lsn;
	figures->restart_lsn = sample->restart_lsn;
	figures->connected = sample->active;
	figures->being_made = ecm_retained_wal_is_being_made(sample);
	figures->pinned = pinned;

	/*
	 * The lag is unknown unless a walsender is connected and has confirmed a
	 * position.  Any other slot can't be about to advance, so the guard must
	 * not give it another chance.
	 */
	figures->flush_lag = sample->active &&
		!XLogRecPtrIsInvalid(sample->confirmed_flush_lsn) ?
		sample->flush_lag_bytes : -1;
	figures->retained = sample->retained_wal_bytes;
	figures->safe = sample->safe_wal_size;
	figures->free = sample->wal_free_bytes;
	figures->frees_for_limit = figures->frees_for_room = -1;
	figures->segment = wal_segment_size;
	figures->recycled = min_wal_size_mb * MB;
	figures->relieved = false;
}

/* ---------------------------------------------------------------- blame -- */

typedef struct IgnoreArg
{
	unsigned	why;			/* ECM_WAL_DROP_...: which limit */
	const EcmWalSample *sample;
} IgnoreArg;

/*
 * Is this the slot of another stack of ours, which will be dropped for the
 * same limit as soon as that stack looks?  Such a slot does not count among
 * those that need the same WAL.  If each of two slots were spared because of
 * the other, neither would go.
 */
static bool
goes_as_well(const EcmSlotRow *row, void *arg)
{
	const IgnoreArg *a = arg;
	bool		goes = false;

	ecm_lock(LW_SHARED);
	for (int i = 0; i < ecm_stack_count() && !goes; i++)
	{
		const EcmStack *stack = ecm_stack_at(i);
		EcmWalLimits limits;

		if (!stack->in_use || !ecm_slot_owner_has(stack, row->name))
			continue;
		ecm_retained_wal_effective_limits(&stack->wal_settings, &limits);
		goes = a->why == ECM_WAL_DROP_LIMIT ?
			limits.limit >= 0 && row->retained_wal_bytes > limits.limit :
			limits.min_free > 0 && a->sample->wal_free_bytes < limits.min_free &&
			row->retained_wal_bytes >= ECM_WAL_BLAME_BYTES;
	}
	ecm_unlock();
	return goes;
}

/*
 * Where a limit is exceeded, finds out how much dropping the slot would free,
 * and who else needs the WAL.
 */
static void
blame(EcmWalLook *look, EcmWalFigures *figures)
{
	const EcmWalLimits *limits = &look->limits;
	const EcmWalSample *sample = &look->slot.sample;
	IgnoreArg	arg = {ECM_WAL_DROP_LIMIT, sample};
	EcmTime		made_room_at;

	memset(&look->for_limit, 0, sizeof(look->for_limit));
	memset(&look->for_room, 0, sizeof(look->for_room));
	if (!figures->exists || figures->lost)
		return;
	if (limits->limit >= 0 && figures->retained > limits->limit)
	{
		ecm_retained_wal_blame(look->slot.name, sample->restart_lsn, sample->current_lsn,
							   goes_as_well, &arg, &look->for_limit);
		if (look->for_limit.others[0] != '\0')
			figures->frees_for_limit = look->for_limit.frees;
	}
	if (limits->min_free > 0 && figures->free >= 0 &&
		figures->free < limits->min_free)
	{
		arg.why = ECM_WAL_DROP_FREE;
		ecm_retained_wal_blame(look->slot.name, sample->restart_lsn, sample->current_lsn,
							   goes_as_well, &arg, &look->for_room);
		figures->frees_for_room = look->for_room.frees;
	}
	ecm_lock(LW_SHARED);
	made_room_at = ecm_shared->made_room_at;
	ecm_unlock();
	figures->relieved = made_room_at != 0 &&
		figures->at - made_room_at < RELIEF_US;
}

/* Notes, for the other stacks, that a slot is dropped for want of space. */
static void
note_relief(unsigned why)
{
	if ((why & ECM_WAL_DROP_FREE) == 0)
		return;
	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->made_room_at = ecm_now();
	ecm_unlock();
}

/* ------------------------------------------------------------- watching -- */

/*
 * Lets slots advance.  A slot's restart_lsn advances only when its walsender
 * decodes a record of the running transactions.  The server writes such a
 * record every 15 seconds, and in checkpoints; this writes one now.
 */
static void
let_follow(void)
{
	if (!RecoveryInProgress() && XLogStandbyInfoActive())
		(void) LogStandbySnapshot();
}

/*
 * Begins a look at the stack's slot, or at its former one: copies from the
 * entry what is needed. palloc'd.
 */
static EcmWalLook *
begin_look(int stack_index, bool former)
{
	EcmStack   *stack = ecm_stack_at(stack_index);
	EcmWalLook *look = palloc0(sizeof(EcmWalLook));

	look->shared = former ? &stack->former : &stack->slot;
	ecm_lock(LW_SHARED);
	look->dboid = stack->dboid;
	strlcpy(look->datname, stack->datname, NAMEDATALEN);
	look->has_manager = stack->manager.pid != 0;
	look->walsender = look->has_manager ? stack->conns[0].backend_pid : 0;
	for (int i = 0; i < Min(stack->nconsumers, ECM_MAX_SHAPE_WORKERS); i++)
		if (stack->consumers[i].used)
			look->shapes += stack->consumers[i].shapes;
	ecm_retained_wal_effective_limits(&stack->wal_settings, &look->limits);
	look->slot = *look->shared;
	ecm_unlock();
	return look;
}

/* Has the guard judge the sample.  Returns its actions. */
static unsigned
judge(EcmWalLook *look)
{
	EcmWalFigures figures;

	figures_of(&look->slot.sample, look->pin.by[0] != '\0', &figures);
	blame(look, &figures);
	return ecm_retained_wal_guard_step(&look->slot.guard, &figures, &look->limits);
}

/*
 * Watches the slot that electric_cm.slot_name named before it was changed.
 * The stack drops it when it streams by the new one; until then it can fill
 * the disk like any other slot, so the limits apply to it, too.  Free space is
 * reported for the stack's present slot only, lest it be reported twice.
 */
static void
watch_former_slot(int stack_index)
{
	EcmWalLook *look;
	EcmWalAction action;
	EcmError	err;
	unsigned	actions;
	bool		dropped;

	if (!ecm_slot_owner_look(stack_index, true))
		return;
	look = begin_look(stack_index, true);
	memset(&look->slot.sample, 0, sizeof(look->slot.sample));
	(void) ecm_slot_sample(look->slot.name, &look->slot.sample);
	actions = judge(look);
	ecm_retained_wal_conclude(look, actions & ~(ECM_WAL_FREE_LOW | ECM_WAL_FREE_OVER), 0, &action);
	dropped = action.why != 0 && ecm_slot_drop(look->slot.name, &err);
	if (dropped)
		note_relief(action.why);

	ecm_lock(LW_EXCLUSIVE);
	look->shared->guard = look->slot.guard;
	look->shared->drop_reported = action.why != 0;
	if (dropped)
		memset(look->shared, 0, sizeof(*look->shared));
	ecm_unlock();
	if (action.why != 0 && (dropped || !look->slot.drop_reported))
		ecm_event_in(look->dboid, look->datname, ecm_retained_wal_limit_event(&action),
					 dropped ? "The slot is dropped: electric_cm.slot_name has another name." :
					 psprintf("The slot could not be dropped: %s.", err.message),
					 "%s", action.reason.message);
	pfree(look);
}

/*
 * The slot has been lost since the last look: estimates what it retained in
 * the end, from its last position.  Returns how long ago the last look was, in
 * microseconds; 0: there was none.
 */
static int64
note_loss(EcmWalSample *sample, EcmTime last_look)
{
	if (sample->sizes_known && sample->current_lsn > sample->restart_lsn)
		sample->retained_wal_bytes =
			(int64) (sample->current_lsn - sample->restart_lsn);
	return last_look == 0 ? 0 : sample->taken_at - last_look;
}

/* Fills in the members that ecm_slot_sample() leaves to its caller. */
static void
complete_sample(int stack_index, EcmWalLook *look)
{
	EcmWalSample *sample = &look->slot.sample;
	XLogRecPtr	logged = sample->confirmed_flush_lsn;

	if (!sample->slot_exists)
		return;
	sample_decoding(look->slot.name, &sample->decoding);

	/*
	 * what is logged is not late, though a little of it may not be
	 * acknowledged
	 */
	if (sample->active)
		logged = Max(logged, ecm_stack_at(stack_index)->progress.flushed_lsn);
	if (XLogRecPtrIsInvalid(sample->confirmed_flush_lsn))
		sample->flush_lag_us = -1;
	else if (strcmp(sample->wal_status, "lost") != 0)
		sample->flush_lag_us =
			ecm_history_age_of(stack_index, look->dboid,
							   logged,
							   sample->current_lsn, sample->taken_at);
}

/*
 * Notes the slot's holder, and since when it has pinned the slot.  If the same
 * holder was found in the last sample, that is since when it was found first.
 */
static void
note_pin(EcmWalLook *look)
{
	EcmWatchedSlot *slot = &look->slot;
	EcmPin	   *pin = &look->pin;

	/* the same holder as in the last sample */
	if (pin->since >= slot->sample.sampled_at && strcmp(pin->by, slot->pinned_by) == 0)
		pin->since = slot->pinned_since;
	if (pin->by[0] == '\0')
		slot->pinned_at = 0;
	else if (slot->pinned_at == 0 || pin->since != slot->pinned_since)
		slot->pinned_at = slot->sample.taken_at -
			Max(slot->sample.sampled_at - pin->since, 0);
	strlcpy(slot->pinned_by, pin->by, sizeof(slot->pinned_by));
	slot->pinned_since = pin->since;
}

EcmTime
ecm_retained_wal_watch(int stack_index, const EcmPin *consumer_pin, EcmWalAction *action)
{
	EcmStack   *stack = ecm_stack_at(stack_index);
	EcmWalLook *look = begin_look(stack_index, false);
	EcmWatchedSlot *slot = &look->slot;
	EcmPin		guess;
	TimestampTz inactive_since = note_activity(slot->name);
	EcmTime		last_look = slot->sample.taken_at;
	EcmTime		due;
	bool		was_in_danger = slot->guard.unreserved;
	int64		unseen_us = 0;
	unsigned	actions;

	/*
	 * The request for a sample is cleared before the sample is taken.  One
	 * that comes later is not satisfied by this sample, and must not be lost.
	 */
	ecm_lock(LW_EXCLUSIVE);
	stack->requests.sample = false;
	ecm_unlock();

	(void) ecm_slot_sample(slot->name, &slot->sample);
	(void) ecm_slot_owner_look(stack_index, false);
	complete_sample(stack_index, look);
	if (consumer_pin != NULL && consumer_pin->by[0] != '\0' && consumer_pin->certain)
		look->pin = *consumer_pin;
	else
		ecm_slot_holder_find(&slot->sample, inactive_since, look->walsender, &look->pin);
	actions = judge(look);
	if (actions & ECM_WAL_LOST)
		unseen_us = note_loss(&slot->sample, last_look);
	if (was_in_danger)
		unseen_us = 0;

	/*
	 * Without a certain holder, the best guess is shown when there is
	 * something to report.  The guess is made each time, since it remembers
	 * since when the walsender has stood still.
	 */
	ecm_slot_holder_guess(&slot->sample, look->walsender, &guess);
	if (look->pin.by[0] == '\0' &&
		((actions & ~ECM_WAL_LET_FOLLOW) != 0 || slot->guard.warned_at > 0))
		look->pin = consumer_pin != NULL && consumer_pin->by[0] != '\0' ? *consumer_pin : guess;
	note_pin(look);

	ecm_lock(LW_EXCLUSIVE);
	look->shared->sample = slot->sample;
	look->shared->guard = slot->guard;
	strlcpy(look->shared->pinned_by, slot->pinned_by, sizeof(slot->pinned_by));
	look->shared->pinned_since = slot->pinned_since;
	look->shared->pinned_at = slot->pinned_at;
	if ((actions & ECM_WAL_DROP) == 0)
		look->shared->drop_reported = false;
	ecm_unlock();
	ecm_history_add(stack_index, &slot->sample, (int) (look->limits.interval_us / 1000));
	ConditionVariableBroadcast(&stack->cv);

	ecm_retained_wal_conclude(look, actions, unseen_us, action);
	if (actions & ECM_WAL_LET_FOLLOW)
		let_follow();
	if (actions & ECM_WAL_MAKE_ROOM)
		RequestCheckpoint(ECM_CHECKPOINT_FAST | CHECKPOINT_FORCE);
	watch_former_slot(stack_index);

	due = slot->sample.taken_at +
		(slot->guard.near_limit ?
		 Min(look->limits.interval_us, ECM_WAL_NEAR_INTERVAL_US) :
		 look->limits.interval_us);

	pfree(look);
	return due;
}

int64
ecm_retained_wal_allowance(int stack_index, int64 wanted)
{
	EcmWalLook *look = begin_look(stack_index, false);
	EcmWalSample sample = {0};
	EcmWalFigures figures;
	int64		allowance;

	(void) ecm_slot_sample(look->slot.name, &sample);
	figures_of(&sample, false, &figures);
	allowance = ecm_retained_wal_guard_allowance(&figures, &look->limits);
	pfree(look);
	if (allowance < wanted &&
		figures.retained > Max(figures.flush_lag, 0) + wanted)
		let_follow();
	return allowance;
}

/* ---------------------------------------------------- dropping the slot -- */

/* Records the event of a limit, with what is done about it, unless it has been. */
static void
report_action(EcmWalLook *look, const EcmWalAction *action, const char *outcome)
{
	if (look->slot.drop_reported)
		return;
	look->slot.drop_reported = true;
	ecm_lock(LW_EXCLUSIVE);
	look->shared->drop_reported = true;
	ecm_unlock();
	ecm_event_in(look->dboid, look->datname, ecm_retained_wal_limit_event(action),
				 psprintf("%s%s%s %s", action->reason.detail,
						  action->reason.detail[0] != '\0' ? " " : "", outcome,
						  action->reason.hint),
				 "%s", action->reason.message);
}

/* The slot is dropped, or will be in a moment: records that. */
static void
slot_goes(EcmWalLook *look, const EcmWalAction *action, const char *outcome)
{
	report_action(look, action, outcome);
	note_relief(action->why);
	ecm_lock(LW_EXCLUSIVE);
	ecm_retained_wal_guard_dropped(&look->shared->guard, action->why);
	ecm_unlock();
}

void
ecm_retained_wal_slot_goes(int stack_index, const EcmWalAction *action)
{
	EcmWalLook *look = begin_look(stack_index, false);

	slot_goes(look, action,
			  psprintf("The slot is dropped. %s", ecm_retained_wal_describe_loss(look, "")));
	pfree(look);
}

void
ecm_retained_wal_creation_ends(int stack_index, const EcmWalAction *action)
{
	EcmWalLook *look = begin_look(stack_index, false);

	slot_goes(look, action,
			  "The creation is given up until the transactions that it waits for have ended.");
	pfree(look);
}

void
ecm_retained_wal_drop_slot(int stack_index, const EcmWalAction *action)
{
	EcmWalLook *look = begin_look(stack_index, false);
	const char *slot_name = look->slot.name;
	EcmSlotFacts facts;
	EcmError	err;
	bool		ours = ecm_slot_owner_look(stack_index, false);

	if (!ecm_slot_lookup(slot_name, &facts))
		;						/* somebody else has dropped it meanwhile */
	else if (facts.active_pid != 0 && XLogRecPtrIsInvalid(facts.confirmed_flush_lsn))
		report_action(look, action,
					  psprintf("PID %d is creating it, and has to be ended first.",
							   facts.active_pid));
	else if (!ours)
		report_action(look, action,
					  "The slot stays, since it was not made by electric_cm: drop it with pg_drop_replication_slot() if nobody needs it.");
	else if (facts.active_pid != 0)
		report_action(look, action,
					  psprintf("The slot can't be dropped, since PID %d uses it.",
							   facts.active_pid));
	else if (!ecm_slot_drop(slot_name, &err))
		report_action(look, action,
					  psprintf("The slot could not be dropped: %s.", err.message));
	else
	{
		slot_goes(look, action,
				  psprintf("The slot is dropped. %s", ecm_retained_wal_describe_loss(look, "")));
		ecm_event_in(look->dboid, look->datname, ECM_EVENT_REPLICATION_SLOT_DROPPED,
					 ecm_retained_wal_describe_loss(look, " when the stack runs again"),
					 "dropped replication slot \"%s\"", slot_name);
	}
	pfree(look);
}

char *
ecm_retained_wal_no_room(int stack_index)
{
	EcmWalLook *look = begin_look(stack_index, false);
	char	   *reason = NULL;

	if (look->slot.guard.short_of_room)
		reason = psprintf("free space under pg_wal: %s; an eighth more than electric_cm.min_wal_free_space (%s) is needed for a new slot",
						  ecm_size_text(look->slot.sample.wal_free_bytes),
						  ecm_size_text(Max(look->limits.min_free, 0)));
	pfree(look);
	return reason;
}
