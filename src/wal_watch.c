/*-------------------------------------------------------------------------
 *
 * wal_watch.c
 *	  Watches over the WAL that a stack's slot retains.
 *
 * Everything is read from shared memory and the file system; nothing here
 * waits, needs a transaction, or depends on the stack's being well.  What a
 * sample means is decided in wal_guard.c.
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

#include "slot_activity.h"
#include "slot_owner.h"
#include "wal.h"
#include "wal_history.h"
#include "wal_watch.h"

#define MB	(INT64CONST(1024) * 1024)

/*
 * Settings
 */

static int
published(const char *name, int value)
{
	return ecm_setting_is_of_database(name) ? value : INT_MIN;
}

void
ecm_wal_publish_settings(int stack_index)
{
	EcmStack   *stack = &ecm_shared->stacks[stack_index];
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

static int64
megabytes(int setting)
{
	return setting < 0 ? -1 : setting * MB;
}

void
ecm_wal_limits(const EcmStack *stack, EcmWalLimits *limits)
{
	const EcmWalSettings *s = &stack->wal_settings;

#define EFFECTIVE(of_database, own) \
	(!s->known || (of_database) == INT_MIN ? (own) : (of_database))
	limits->warning = megabytes(EFFECTIVE(s->warning, ecm_retained_wal_warning));
	limits->limit = megabytes(EFFECTIVE(s->limit, ecm_retained_wal_limit));
	limits->min_free = megabytes(EFFECTIVE(s->min_free, ecm_min_wal_free_space));
	limits->interval_us = INT64CONST(1000) *
		EFFECTIVE(s->report_interval, ecm_wal_report_interval);
	limits->server_limit = ecm_max_slot_wal_keep_bytes();
#undef EFFECTIVE
}

/*
 * Sampling
 */

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

/* When the slot was first seen inactive; 0: it is active, or not there. */
static TimestampTz
note_activity(const char *slot_name)
{
	EcmSlotRow *rows = palloc(sizeof(EcmSlotRow) * Max(max_replication_slots, 1));
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
	figures->at = sample->sampled_at;
	figures->exists = sample->slot_exists;
	figures->unreserved = strcmp(sample->wal_status, "unreserved") == 0;
	figures->lost = strcmp(sample->wal_status, "lost") == 0;
	figures->current_lsn = sample->current_lsn;
	figures->restart_lsn = sample->restart_lsn;
	figures->connected = sample->active;
	figures->pinned = pinned;
	/* of a slot that is still being made, or that nobody reads from, it is real */
	figures->flush_lag = sample->active &&
		!XLogRecPtrIsInvalid(sample->confirmed_flush_lsn) ?
		sample->flush_lag_bytes : -1;
	figures->retained = sample->retained_wal_bytes;
	figures->safe = sample->safe_wal_size;
	figures->free = sample->wal_free_bytes;
}

/*
 * Words
 */

static char *
describe_pin(const EcmPin *pin)
{
	return pin->by[0] == '\0' ? "" : psprintf(" It is held back by: %s.", pin->by);
}

static char *
describe_time_left(const EcmWalGuard *guard)
{
	int64		seconds = guard->time_to_limit_us / USECS_PER_SEC;

	if (guard->time_to_limit_us < 0)
		return "";
	return psprintf(" At this rate, a limit is reached in " INT64_FORMAT ":%02d:%02d.",
					seconds / 3600, (int) (seconds / 60 % 60), (int) (seconds % 60));
}

/* Everything that is news, and only that. */
static void
report(const EcmStack *stack, unsigned actions, const EcmWalLimits *limits,
	   const EcmPin *pin)
{
	const EcmWalSample *sample = &stack->wal;
	const char *held = ecm_size_text(sample->retained_wal_bytes);
	const char *unknown = "an unknown amount";

	if (actions & ECM_WAL_WARN)
		ecm_event(stack->dboid, stack->datname, "retained_wal_warning",
				  ECM_SEVERITY_WARNING,
				  psprintf("electric_cm.retained_wal_warning is %s.%s%s",
						   ecm_size_text(limits->warning), describe_pin(pin),
						   describe_time_left(&stack->wal_guard)),
				  "replication slot \"%s\" holds back %s of WAL",
				  stack->slot_name, held);
	if (actions & ECM_WAL_WARN_OVER)
		ecm_event(stack->dboid, stack->datname, "retained_wal_warning_over",
				  ECM_SEVERITY_LOG, NULL,
				  "replication slot \"%s\" holds back only %s of WAL now",
				  stack->slot_name, held);
	if (actions & ECM_WAL_UNRESERVED)
		ecm_event(stack->dboid, stack->datname, "replication_slot_unreserved",
				  ECM_SEVERITY_WARNING,
				  psprintf("It holds back %s of WAL, and max_slot_wal_keep_size is %s.%s",
						   held, ecm_size_text(Max(limits->server_limit, 0)),
						   describe_pin(pin)),
				  "replication slot \"%s\" will be lost at the next checkpoint",
				  stack->slot_name);
	if (actions & ECM_WAL_LOST)
		ecm_event(stack->dboid, stack->datname, "replication_slot_lost",
				  ECM_SEVERITY_ERROR,
				  psprintf("It held back %s of WAL when last seen. All shapes start afresh with a new slot.",
						   sample->sizes_known ? held : unknown),
				  "replication slot \"%s\" is lost", stack->slot_name);
	if (actions & ECM_WAL_FREE_LOW)
		ecm_event(stack->dboid, stack->datname, "wal_free_space_low",
				  ECM_SEVERITY_WARNING,
				  psprintf("electric_cm.min_wal_free_space is %s, and replication slot \"%s\" holds back %s. See electric_cm_slots for all slots.",
						   ecm_size_text(limits->min_free), stack->slot_name, held),
				  "only %s are free under pg_wal",
				  ecm_size_text(sample->wal_free_bytes));
	if (actions & ECM_WAL_FREE_OVER)
		ecm_event(stack->dboid, stack->datname, "wal_free_space_over",
				  ECM_SEVERITY_LOG, NULL, "%s are free under pg_wal",
				  ecm_size_text(sample->wal_free_bytes));
}

static void
give_order(const EcmStack *stack, unsigned why, const EcmWalLimits *limits,
		   const EcmPin *pin, EcmWalOrder *order)
{
	const EcmWalSample *sample = &stack->wal;
	const char *held = ecm_size_text(sample->retained_wal_bytes);
	char	   *detail = describe_pin(pin);

	order->why = why;
	if (why == 0)
		return;
	while (*detail == ' ')
		detail++;
	if (why & ECM_WAL_DROP_FREE)
		ecm_error_set(&order->reason, "53100",
					  psprintf("only %s are free under pg_wal, and replication slot \"%s\" holds back %s of WAL",
							   ecm_size_text(sample->wal_free_bytes),
							   stack->slot_name, held),
					  detail, "Make room for WAL, or lower electric_cm.min_wal_free_space.");
	else
		ecm_error_set(&order->reason, "54000",
					  psprintf("replication slot \"%s\" holds back %s of WAL, more than electric_cm.retained_wal_limit",
							   stack->slot_name, held),
					  detail, psprintf("Remove what holds it back, or raise electric_cm.retained_wal_limit from %s: the snapshot of any shape must be well within it.",
									   ecm_size_text(limits->limit)));
}

/*
 * Watching
 */

/*
 * A slot moves on when it decodes a record of the running transactions.  The
 * server writes one every 15 seconds, and in checkpoints.
 */
static void
let_follow(void)
{
	if (!RecoveryInProgress() && XLogStandbyInfoActive())
		(void) LogStandbySnapshot();
}

/* The part of the entry that is needed here, as a copy of our own. */
static EcmStack *
copy_stack(int stack_index)
{
	EcmStack   *copy = palloc(sizeof(EcmStack));

	(void) ecm_stack_copy(stack_index, copy);
	return copy;
}

/*
 * The slot that electric_cm.slot_name named before.  It goes when the stack
 * streams with the new one; until then it can fill the disk like any other.
 * What is said of free space is said on account of the stack's own slot.
 */
static void
watch_former_slot(int stack_index, const EcmWalLimits *limits)
{
	EcmStack   *shared = &ecm_shared->stacks[stack_index];
	EcmStack   *stack;
	EcmWalFigures figures;
	EcmWalOrder order;
	EcmPin		pin = {0};
	EcmError	err;
	unsigned	actions;
	bool		dropped;

	if (!ecm_slot_owner_look_former(stack_index))
		return;
	stack = copy_stack(stack_index);
	strlcpy(stack->slot_name, stack->former_slot, NAMEDATALEN);
	memset(&stack->wal, 0, sizeof(stack->wal));
	(void) ecm_wal_sample(stack->slot_name, &stack->wal);
	figures_of(&stack->wal, false, &figures);
	actions = ecm_wal_guard_step(&stack->former_guard, &figures, limits);
	stack->wal_guard = stack->former_guard;
	report(stack, actions & ~(ECM_WAL_FREE_LOW | ECM_WAL_FREE_OVER), limits, &pin);
	give_order(stack, actions & ECM_WAL_DROP, limits, &pin, &order);
	dropped = order.why != 0 && ecm_slot_drop(stack->slot_name, &err);

	ecm_lock(LW_EXCLUSIVE);
	shared->former_guard = stack->former_guard;
	shared->former_drop_reported = order.why != 0;
	if (dropped)
		shared->former_slot[0] = '\0';
	ecm_unlock();
	if (order.why != 0 && (dropped || !stack->former_drop_reported))
		ecm_event(stack->dboid, stack->datname,
				  order.why & ECM_WAL_DROP_FREE ? "wal_free_space_limit" : "retained_wal_limit",
				  ECM_SEVERITY_ERROR,
				  dropped ? "The slot is dropped: electric_cm.slot_name has another name." :
				  psprintf("The slot could not be dropped: %s.", err.message),
				  "%s", order.reason.message);
	pfree(stack);
}

TimestampTz
ecm_wal_watch(int stack_index, const EcmPin *consumer_pin, EcmWalOrder *order)
{
	EcmStack   *shared = &ecm_shared->stacks[stack_index];
	EcmStack   *stack = copy_stack(stack_index);
	EcmWalSample *sample = &stack->wal;
	EcmWalFigures figures;
	EcmWalLimits limits;
	EcmPin		pin;
	TimestampTz inactive_since;
	TimestampTz due;
	unsigned	actions;

	ecm_wal_limits(stack, &limits);
	inactive_since = note_activity(stack->slot_name);
	(void) ecm_wal_sample(stack->slot_name, sample);
	(void) ecm_slot_owner_look(stack_index);
	if (sample->slot_exists)
	{
		sample_decoding(stack->slot_name, &sample->decoding);
		if (XLogRecPtrIsInvalid(sample->confirmed_flush_lsn))
			sample->flush_lag_us = -1;
		else if (strcmp(sample->wal_status, "lost") != 0)
			sample->flush_lag_us =
				ecm_history_age_of(stack_index, stack->dboid,
								   sample->confirmed_flush_lsn,
								   sample->current_lsn, sample->sampled_at);
	}
	if (consumer_pin != NULL && consumer_pin->by[0] != '\0')
		pin = *consumer_pin;
	else
		ecm_wal_find_pin(sample, inactive_since,
						 stack->pid != 0 ? stack->conns[0].backend_pid : 0,
						 &pin);
	figures_of(sample, pin.by[0] != '\0', &figures);
	actions = ecm_wal_guard_step(&stack->wal_guard, &figures, &limits);

	/* found now, but not for the first time */
	if (pin.since >= sample->sampled_at && strcmp(pin.by, stack->pinned_by) == 0)
		pin.since = stack->pinned_since;

	ecm_lock(LW_EXCLUSIVE);
	shared->wal = *sample;
	shared->wal_guard = stack->wal_guard;
	strlcpy(shared->pinned_by, pin.by, sizeof(shared->pinned_by));
	shared->pinned_since = pin.since;
	shared->sample_requested = false;
	if ((actions & ECM_WAL_DROP) == 0)
		shared->wal_drop_reported = false;
	ecm_unlock();
	ecm_history_add(stack_index, sample, (int) (limits.interval_us / 1000));
	ConditionVariableBroadcast(&shared->cv);

	report(stack, actions, &limits, &pin);
	give_order(stack, actions & ECM_WAL_DROP, &limits, &pin, order);
	if (actions & ECM_WAL_LET_FOLLOW)
		let_follow();
	if (actions & ECM_WAL_MAKE_ROOM)
		RequestCheckpoint(CHECKPOINT_IMMEDIATE | CHECKPOINT_FORCE);
	watch_former_slot(stack_index, &limits);

	if (stack->wal_guard.near_limit)
		limits.interval_us = Min(limits.interval_us, ECM_WAL_NEAR_INTERVAL_US);
	due = sample->sampled_at + limits.interval_us;
	pfree(stack);
	return due;
}

int64
ecm_wal_allowance(int stack_index, int64 wanted)
{
	EcmStack   *stack = &ecm_shared->stacks[stack_index];
	EcmWalSample sample = {0};
	EcmWalFigures figures;
	EcmWalLimits limits;
	int64		allowance;

	ecm_wal_limits(stack, &limits);
	(void) ecm_wal_sample(stack->slot_name, &sample);
	figures_of(&sample, false, &figures);
	allowance = ecm_wal_guard_allowance(&figures, &limits);
	if (allowance < wanted &&
		figures.retained > Max(figures.flush_lag, 0) + wanted)
		let_follow();
	return allowance;
}

/*
 * Dropping the slot
 */

/* Says, once, what is being done about it. */
static void
report_order(int stack_index, const EcmWalOrder *order, const char *outcome)
{
	EcmStack   *shared = &ecm_shared->stacks[stack_index];
	EcmStack   *stack;

	if (shared->wal_drop_reported)
		return;
	stack = copy_stack(stack_index);
	ecm_lock(LW_EXCLUSIVE);
	shared->wal_drop_reported = true;
	ecm_unlock();
	ecm_event(stack->dboid, stack->datname,
			  order->why & ECM_WAL_DROP_FREE ? "wal_free_space_limit" : "retained_wal_limit",
			  ECM_SEVERITY_ERROR,
			  psprintf("%s%s%s %s", order->reason.detail,
					   order->reason.detail[0] != '\0' ? " " : "", outcome,
					   order->reason.hint),
			  "%s", order->reason.message);
	pfree(stack);
}

void
ecm_wal_slot_goes(int stack_index, const EcmWalOrder *order)
{
	report_order(stack_index, order,
				 "The slot is dropped, and all shapes start afresh.");
	ecm_lock(LW_EXCLUSIVE);
	ecm_wal_guard_dropped(&ecm_shared->stacks[stack_index].wal_guard, order->why);
	ecm_unlock();
}

void
ecm_wal_drop_slot(int stack_index, const EcmWalOrder *order)
{
	EcmStack   *stack = copy_stack(stack_index);
	EcmSlotFacts facts;
	EcmError	err;

	if (!ecm_slot_owner_look(stack_index) ||
		!ecm_slot_lookup(stack->slot_name, &facts))
		report_order(stack_index, order,
					 "The slot stays, since it was not made by electric_cm: drop it with pg_drop_replication_slot() if nobody needs it.");
	else if (facts.active_pid != 0)
		report_order(stack_index, order,
					 psprintf("The slot can't be dropped, since PID %d uses it.",
							  facts.active_pid));
	else if (!ecm_slot_drop(stack->slot_name, &err))
		report_order(stack_index, order,
					 psprintf("The slot could not be dropped: %s.", err.message));
	else
	{
		ecm_wal_slot_goes(stack_index, order);
		ecm_event(stack->dboid, stack->datname, "replication_slot_dropped",
				  ECM_SEVERITY_WARNING,
				  "All shapes start afresh when the stack runs again.",
				  "dropped replication slot \"%s\"", stack->slot_name);
	}
	pfree(stack);
}

char *
ecm_wal_no_room(int stack_index)
{
	const EcmStack *stack = &ecm_shared->stacks[stack_index];
	EcmWalLimits limits;

	if (!stack->wal_guard.short_of_room)
		return NULL;
	ecm_wal_limits(stack, &limits);
	return psprintf("free space under pg_wal: %s; an eighth more than electric_cm.min_wal_free_space (%s) is needed for a new slot",
					ecm_size_text(stack->wal.wal_free_bytes),
					ecm_size_text(Max(limits.min_free, 0)));
}
