/*-------------------------------------------------------------------------
 *
 * retained_wal.c
 *	  Watches over the WAL that a stack's slot retains.
 *
 * Everything is read from shared memory and the file system; nothing here
 * waits, needs a transaction, or depends on the stack's being well.  What a
 * sample means is decided in retained_wal_guard.c.
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

#include "slot/retained_wal.h"
#include "slot/retained_wal_blame.h"
#include "slot/retained_wal_history.h"
#include "slot/slot.h"
#include "slot/slot_inactive.h"
#include "slot/slot_owner.h"

#define MB	(INT64CONST(1024) * 1024)

/* So long it takes at most until what a slot has held is removed. */
#define RELIEF_US	(5 * USECS_PER_SEC)

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

/* Its creation reserves WAL at once, and may last. */
static bool
is_being_made(const EcmWalSample *sample)
{
	return sample->slot_exists && sample->active &&
		XLogRecPtrIsInvalid(sample->confirmed_flush_lsn);
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
	figures->being_made = is_being_made(sample);
	figures->pinned = pinned;
	/* of a slot that is still being made, or that nobody reads from, it is real */
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

/*
 * Blame
 */

typedef struct IgnoreArg
{
	unsigned	why;			/* ECM_WAL_DROP_...: which limit */
	const EcmWalSample *sample;
} IgnoreArg;

/*
 * Is that another slot of ours, which goes for the same reason as soon as its
 * own stack looks?  If each waited for the other, none would go.
 */
static bool
goes_as_well(const EcmSlotRow *row, void *arg)
{
	const IgnoreArg *a = arg;
	bool		goes = false;

	ecm_lock(LW_SHARED);
	for (int i = 0; i < ecm_shared->nstacks && !goes; i++)
	{
		const EcmStack *stack = &ecm_shared->stacks[i];
		EcmWalLimits limits;

		if (!stack->in_use ||
			!((stack->slot.owned && strcmp(stack->slot.name, row->name) == 0) ||
			  strcmp(stack->former.name, row->name) == 0))
			continue;
		ecm_wal_limits(stack, &limits);
		goes = a->why == ECM_WAL_DROP_LIMIT ?
			limits.limit >= 0 && row->retained_wal_bytes > limits.limit :
			limits.min_free > 0 && a->sample->wal_free_bytes < limits.min_free &&
			row->retained_wal_bytes >= ECM_WAL_BLAME_BYTES;
	}
	ecm_unlock();
	return goes;
}

/*
 * Who is to blame, where a limit is passed or nearly so.  Keeps quiet about
 * those who have no part in it.
 */
static void
blame(const EcmStack *stack, const EcmWalLimits *limits, EcmWalFigures *figures,
	  EcmWalBlame *for_limit, EcmWalBlame *for_room)
{
	IgnoreArg	arg = {ECM_WAL_DROP_LIMIT, &stack->slot.sample};
	EcmTime		made_room_at;

	memset(for_limit, 0, sizeof(*for_limit));
	memset(for_room, 0, sizeof(*for_room));
	if (!figures->exists || figures->lost)
		return;
	if (limits->limit >= 0 && figures->retained > limits->limit)
	{
		ecm_wal_blame(stack->slot.name, stack->slot.sample.restart_lsn,
					  stack->slot.sample.current_lsn, goes_as_well, &arg, for_limit);
		if (for_limit->others[0] != '\0')
			figures->frees_for_limit = for_limit->frees;
	}
	if (limits->min_free > 0 && figures->free >= 0 &&
		figures->free < limits->min_free)
	{
		arg.why = ECM_WAL_DROP_FREE;
		ecm_wal_blame(stack->slot.name, stack->slot.sample.restart_lsn,
					  stack->slot.sample.current_lsn, goes_as_well, &arg, for_room);
		figures->frees_for_room = for_room->frees;
	}
	ecm_lock(LW_SHARED);
	made_room_at = ecm_shared->made_room_at;
	ecm_unlock();
	figures->relieved = made_room_at != 0 &&
		figures->at - made_room_at < RELIEF_US;
}

/* A slot is dropped to make room. */
static void
note_relief(unsigned why)
{
	if ((why & ECM_WAL_DROP_FREE) == 0)
		return;
	ecm_lock(LW_EXCLUSIVE);
	ecm_shared->made_room_at = ecm_now();
	ecm_unlock();
}

/*
 * Words
 */

static char *
describe_pin(const EcmPin *pin)
{
	return pin->by[0] == '\0' ? "" :
		psprintf(" It %s held back by: %s.", pin->certain ? "is" : "seems to be",
				 pin->by);
}

/* "2 d 22 h", "3 min 20 s": two units are enough of what is an estimate. */
static char *
describe_duration(int64 seconds)
{
	if (seconds >= 86400)
		return psprintf(INT64_FORMAT " d " INT64_FORMAT " h",
						seconds / 86400, seconds / 3600 % 24);
	if (seconds >= 3600)
		return psprintf(INT64_FORMAT " h " INT64_FORMAT " min",
						seconds / 3600, seconds / 60 % 60);
	if (seconds >= 60)
		return psprintf(INT64_FORMAT " min " INT64_FORMAT " s",
						seconds / 60, seconds % 60);
	return psprintf(INT64_FORMAT " s", seconds);
}

static char *
describe_limit(const EcmWalGuard *guard, const EcmWalLimits *limits)
{
	switch (guard->next_limit)
	{
		case ECM_WAL_LIMIT_RETAINED:
			return psprintf("electric_cm.retained_wal_limit (%s) is reached",
							ecm_size_text(limits->limit));
		case ECM_WAL_LIMIT_SERVER:
			return psprintf("max_slot_wal_keep_size (%s) is reached",
							ecm_size_text(limits->server_limit));
		case ECM_WAL_LIMIT_FREE:
			return limits->min_free <= 0 ? "the file system of pg_wal is full" :
				psprintf("electric_cm.min_wal_free_space (%s) is reached",
						 ecm_size_text(limits->min_free));
		case ECM_WAL_LIMIT_NONE:
			break;
	}
	return "a limit is reached";
}

static char *
describe_time_left(const EcmWalGuard *guard, const EcmWalLimits *limits)
{
	if (guard->time_to_limit_us < 0)
		return "";
	if (guard->time_to_limit_us == 0)
		return psprintf(" Already, %s.", describe_limit(guard, limits));
	return psprintf(" At this rate, %s in %s.", describe_limit(guard, limits),
					describe_duration(guard->time_to_limit_us / USECS_PER_SEC));
}

/* How many shapes go with the slot, as far as their consumers have said. */
static char *
describe_loss(const EcmStack *stack, const char *when)
{
	uint32		n = 0;

	for (int i = 0; i < Min(stack->nconsumers, ECM_MAX_SHAPE_WORKERS); i++)
		n += stack->consumers[i].used ? stack->consumers[i].shapes : 0;
	if (n == 0)
		return psprintf("All shapes of this database are gone%s: create them again.", when);
	if (n == 1)
		return psprintf("The one shape of this database is gone%s: create it again.", when);
	return psprintf("All %u shapes of this database are gone%s: create them again.", n, when);
}

/* It is too late to warn if all happens between two looks. */
static void
report_lost(const EcmStack *stack, const EcmWalLimits *limits, int64 unseen_us)
{
	const EcmWalSample *sample = &stack->slot.sample;
	StringInfoData detail;

	initStringInfo(&detail);
	if (sample->sizes_known)
		appendStringInfo(&detail, "It held back %s of WAL",
						 ecm_size_text(sample->retained_wal_bytes));
	else
		appendStringInfoString(&detail, "It held back an unknown amount of WAL");
	if (limits->server_limit >= 0)
		appendStringInfo(&detail, ", and max_slot_wal_keep_size is %s",
						 ecm_size_text(limits->server_limit));
	appendStringInfoChar(&detail, '.');
	if (unseen_us > 0)
		appendStringInfo(&detail, " It was in no danger %s before.",
						 describe_duration(Max(unseen_us / USECS_PER_SEC, 1)));
	appendStringInfo(&detail, " %s",
					 describe_loss(stack, stack->manager.pid != 0 ? "" : " when the stack runs again"));
	ecm_event(stack->dboid, stack->datname, "replication_slot_lost",
			  ECM_SEVERITY_ERROR, detail.data,
			  "replication slot \"%s\" is lost", stack->slot.name);
}

/* Everything that is news, and only that. */
static void
report(const EcmStack *stack, unsigned actions, const EcmWalLimits *limits,
	   const EcmPin *pin, int64 unseen_us)
{
	const EcmWalSample *sample = &stack->slot.sample;
	const char *held = ecm_size_text(sample->retained_wal_bytes);

	if (actions & ECM_WAL_WARN)
		ecm_event(stack->dboid, stack->datname, "retained_wal_warning",
				  ECM_SEVERITY_WARNING,
				  psprintf("electric_cm.retained_wal_warning is %s.%s%s",
						   ecm_size_text(limits->warning), describe_pin(pin),
						   describe_time_left(&stack->slot.guard, limits)),
				  "replication slot \"%s\" holds back %s of WAL",
				  stack->slot.name, held);
	if (actions & ECM_WAL_WARN_OVER)
		ecm_event(stack->dboid, stack->datname, "retained_wal_warning_over",
				  ECM_SEVERITY_LOG, NULL,
				  "replication slot \"%s\" holds back only %s of WAL now",
				  stack->slot.name, held);
	if (actions & ECM_WAL_UNRESERVED)
		ecm_event(stack->dboid, stack->datname, "replication_slot_unreserved",
				  ECM_SEVERITY_WARNING,
				  psprintf("It holds back %s of WAL, and max_slot_wal_keep_size is %s.%s",
						   held, ecm_size_text(Max(limits->server_limit, 0)),
						   describe_pin(pin)),
				  "replication slot \"%s\" will be lost at the next checkpoint",
				  stack->slot.name);
	if (actions & ECM_WAL_LOST)
		report_lost(stack, limits, unseen_us);
	if (actions & ECM_WAL_FREE_LOW)
		ecm_event(stack->dboid, stack->datname, "wal_free_space_low",
				  ECM_SEVERITY_WARNING,
				  psprintf("electric_cm.min_wal_free_space is %s, and replication slot \"%s\" holds back %s. See electric_cm_slots for all slots.",
						   ecm_size_text(limits->min_free), stack->slot.name, held),
				  "only %s are free under pg_wal",
				  ecm_size_text(sample->wal_free_bytes));
	if (actions & ECM_WAL_FREE_OVER)
		ecm_event(stack->dboid, stack->datname, "wal_free_space_over",
				  ECM_SEVERITY_LOG, NULL, "%s are free under pg_wal",
				  ecm_size_text(sample->wal_free_bytes));
}

/* The slot is past a limit, in words. */
static char *
describe_excess(const EcmStack *stack, unsigned why)
{
	const EcmWalSample *sample = &stack->slot.sample;
	const char *slot = psprintf("replication slot \"%s\"%s", stack->slot.name,
								is_being_made(sample) ? ", which is being created," : "");
	const char *held = ecm_size_text(sample->retained_wal_bytes);

	if (why & ECM_WAL_DROP_FREE)
		return psprintf("only %s are free under pg_wal, and %s holds back %s of WAL",
						ecm_size_text(sample->wal_free_bytes), slot, held);
	return psprintf("%s holds back %s of WAL, more than electric_cm.retained_wal_limit",
					slot, held);
}

/* It is past a limit, but dropping it would be of no use. */
static void
report_spared(const EcmStack *stack, unsigned why, const EcmWalBlame *blame)
{
	ecm_event(stack->dboid, stack->datname,
			  why & ECM_WAL_DROP_FREE ? "wal_free_space_limit" : "retained_wal_limit",
			  ECM_SEVERITY_WARNING,
			  psprintf("The slot stays, since dropping it would free %s. %s",
					   blame->frees <= 0 ? "nothing" :
					   psprintf("only %s", ecm_size_text(blame->frees)),
					   blame->others[0] != '\0' ? blame->others :
					   "The server would keep that for later use (min_wal_size)."),
			  "%s", describe_excess(stack, why));
}

static void
give_order(const EcmStack *stack, unsigned why, const EcmWalLimits *limits,
		   const EcmPin *pin, EcmWalOrder *order)
{
	char	   *detail = describe_pin(pin);

	order->why = why;
	if (why == 0)
		return;
	while (*detail == ' ')
		detail++;
	if (why & ECM_WAL_DROP_FREE)
		ecm_error_set(&order->reason, "53100", describe_excess(stack, why),
					  detail, "Make room for WAL, or lower electric_cm.min_wal_free_space.");
	else
		ecm_error_set(&order->reason, "54000", describe_excess(stack, why),
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
	EcmWalBlame for_limit;
	EcmWalBlame for_room;
	EcmPin		pin = {0};
	EcmError	err;
	unsigned	actions;
	bool		dropped;

	if (!ecm_slot_owner_look_former(stack_index))
		return;
	stack = copy_stack(stack_index);
	strlcpy(stack->slot.name, stack->former.name, NAMEDATALEN);
	memset(&stack->slot.sample, 0, sizeof(stack->slot.sample));
	(void) ecm_wal_sample(stack->slot.name, &stack->slot.sample);
	figures_of(&stack->slot.sample, false, &figures);
	blame(stack, limits, &figures, &for_limit, &for_room);
	actions = ecm_wal_guard_step(&stack->former.guard, &figures, limits);
	stack->slot.guard = stack->former.guard;
	report(stack, actions & ~(ECM_WAL_FREE_LOW | ECM_WAL_FREE_OVER), limits, &pin, 0);
	if (actions & ECM_WAL_SPARE_LIMIT)
		report_spared(stack, ECM_WAL_DROP_LIMIT, &for_limit);
	if (actions & ECM_WAL_SPARE_FREE)
		report_spared(stack, ECM_WAL_DROP_FREE, &for_room);
	give_order(stack, actions & ECM_WAL_DROP, limits, &pin, &order);
	dropped = order.why != 0 && ecm_slot_drop(stack->slot.name, &err);
	if (dropped)
		note_relief(order.why);

	ecm_lock(LW_EXCLUSIVE);
	shared->former.guard = stack->former.guard;
	shared->former.drop_reported = order.why != 0;
	if (dropped)
		shared->former.name[0] = '\0';
	ecm_unlock();
	if (order.why != 0 && (dropped || !stack->former.drop_reported))
		ecm_event(stack->dboid, stack->datname,
				  order.why & ECM_WAL_DROP_FREE ? "wal_free_space_limit" : "retained_wal_limit",
				  ECM_SEVERITY_ERROR,
				  dropped ? "The slot is dropped: electric_cm.slot_name has another name." :
				  psprintf("The slot could not be dropped: %s.", err.message),
				  "%s", order.reason.message);
	pfree(stack);
}

/* A slot that is lost has been so since the last look, and held more than then. */
static int64
note_loss(EcmWalSample *sample, EcmTime last_look)
{
	if (sample->sizes_known && sample->current_lsn > sample->restart_lsn)
		sample->retained_wal_bytes =
			(int64) (sample->current_lsn - sample->restart_lsn);
	return last_look == 0 ? 0 : sample->taken_at - last_look;
}

EcmTime
ecm_wal_watch(int stack_index, const EcmPin *consumer_pin, EcmWalOrder *order)
{
	EcmStack   *shared = &ecm_shared->stacks[stack_index];
	EcmStack   *stack = copy_stack(stack_index);
	EcmWalSample *sample = &stack->slot.sample;
	EcmWalFigures figures;
	EcmWalLimits limits;
	EcmWalBlame for_limit;
	EcmWalBlame for_room;
	EcmPin		pin;
	EcmPin		guess;
	TimestampTz inactive_since;
	EcmTime		last_look = sample->taken_at;
	EcmTime		pinned_at;
	EcmTime		due;
	bool		was_in_danger = stack->slot.guard.unreserved;
	int			walsender = stack->manager.pid != 0 ? stack->conns[0].backend_pid : 0;
	int64		unseen_us = 0;
	unsigned	actions;

	ecm_wal_limits(stack, &limits);
	inactive_since = note_activity(stack->slot.name);
	(void) ecm_wal_sample(stack->slot.name, sample);
	(void) ecm_slot_owner_look(stack_index);
	if (sample->slot_exists)
	{
		sample_decoding(stack->slot.name, &sample->decoding);
		if (XLogRecPtrIsInvalid(sample->confirmed_flush_lsn))
			sample->flush_lag_us = -1;
		else if (strcmp(sample->wal_status, "lost") != 0)
			sample->flush_lag_us =
				ecm_history_age_of(stack_index, stack->dboid,
								   sample->confirmed_flush_lsn,
								   sample->current_lsn, sample->taken_at);
	}
	if (consumer_pin != NULL && consumer_pin->by[0] != '\0' && consumer_pin->certain)
		pin = *consumer_pin;
	else
		ecm_wal_find_pin(sample, inactive_since, walsender, &pin);
	figures_of(sample, pin.by[0] != '\0', &figures);
	blame(stack, &limits, &figures, &for_limit, &for_room);
	actions = ecm_wal_guard_step(&stack->slot.guard, &figures, &limits);
	if ((actions & ECM_WAL_LOST) && !was_in_danger)
		unseen_us = note_loss(sample, last_look);
	else if (actions & ECM_WAL_LOST)
		(void) note_loss(sample, last_look);

	/* a guess is better than nothing where it matters; it remembers, too */
	ecm_wal_guess_pin(sample, walsender, &guess);
	if (pin.by[0] == '\0' &&
		((actions & ~ECM_WAL_LET_FOLLOW) != 0 || stack->slot.guard.warned_at > 0))
		pin = consumer_pin != NULL && consumer_pin->by[0] != '\0' ? *consumer_pin : guess;

	/* found now, but not for the first time */
	if (pin.since >= sample->sampled_at && strcmp(pin.by, stack->slot.pinned_by) == 0)
		pin.since = stack->slot.pinned_since;
	pinned_at = pin.by[0] == '\0' ? 0 :
		stack->slot.pinned_at != 0 && pin.since == stack->slot.pinned_since ?
		stack->slot.pinned_at :
		sample->taken_at - Max(sample->sampled_at - pin.since, 0);

	ecm_lock(LW_EXCLUSIVE);
	shared->slot.sample = *sample;
	shared->slot.guard = stack->slot.guard;
	strlcpy(shared->slot.pinned_by, pin.by, sizeof(shared->slot.pinned_by));
	shared->slot.pinned_since = pin.since;
	shared->slot.pinned_at = pinned_at;
	shared->requests.sample = false;
	if ((actions & ECM_WAL_DROP) == 0)
		shared->slot.drop_reported = false;
	ecm_unlock();
	ecm_history_add(stack_index, sample, (int) (limits.interval_us / 1000));
	ConditionVariableBroadcast(&shared->cv);

	report(stack, actions, &limits, &pin, unseen_us);
	if (actions & ECM_WAL_SPARE_LIMIT)
		report_spared(stack, ECM_WAL_DROP_LIMIT, &for_limit);
	if (actions & ECM_WAL_SPARE_FREE)
		report_spared(stack, ECM_WAL_DROP_FREE, &for_room);
	give_order(stack, actions & ECM_WAL_DROP, &limits, &pin, order);
	if (actions & ECM_WAL_LET_FOLLOW)
		let_follow();
	if (actions & ECM_WAL_MAKE_ROOM)
		RequestCheckpoint(CHECKPOINT_IMMEDIATE | CHECKPOINT_FORCE);
	watch_former_slot(stack_index, &limits);

	if (stack->slot.guard.near_limit)
		limits.interval_us = Min(limits.interval_us, ECM_WAL_NEAR_INTERVAL_US);
	due = sample->taken_at + limits.interval_us;
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
	(void) ecm_wal_sample(stack->slot.name, &sample);
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

	if (shared->slot.drop_reported)
		return;
	stack = copy_stack(stack_index);
	ecm_lock(LW_EXCLUSIVE);
	shared->slot.drop_reported = true;
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
	EcmStack   *stack = copy_stack(stack_index);

	report_order(stack_index, order,
				 psprintf("The slot is dropped. %s", describe_loss(stack, "")));
	pfree(stack);
	note_relief(order->why);
	ecm_lock(LW_EXCLUSIVE);
	ecm_wal_guard_dropped(&ecm_shared->stacks[stack_index].slot.guard, order->why);
	ecm_unlock();
}

void
ecm_wal_creation_ends(int stack_index, const EcmWalOrder *order)
{
	report_order(stack_index, order,
				 "The creation is given up until the transactions that it waits for have ended.");
	note_relief(order->why);
	ecm_lock(LW_EXCLUSIVE);
	ecm_wal_guard_dropped(&ecm_shared->stacks[stack_index].slot.guard, order->why);
	ecm_unlock();
}

void
ecm_wal_drop_slot(int stack_index, const EcmWalOrder *order)
{
	EcmStack   *stack = copy_stack(stack_index);
	EcmSlotFacts facts;
	EcmError	err;
	bool		ours = ecm_slot_owner_look(stack_index);

	if (!ecm_slot_lookup(stack->slot.name, &facts))
		;						/* it has gone meanwhile */
	else if (facts.active_pid != 0 && XLogRecPtrIsInvalid(facts.confirmed_flush_lsn))
		report_order(stack_index, order,
					 psprintf("PID %d is creating it, and has to be ended first.",
							  facts.active_pid));
	else if (!ours)
		report_order(stack_index, order,
					 "The slot stays, since it was not made by electric_cm: drop it with pg_drop_replication_slot() if nobody needs it.");
	else if (facts.active_pid != 0)
		report_order(stack_index, order,
					 psprintf("The slot can't be dropped, since PID %d uses it.",
							  facts.active_pid));
	else if (!ecm_slot_drop(stack->slot.name, &err))
		report_order(stack_index, order,
					 psprintf("The slot could not be dropped: %s.", err.message));
	else
	{
		ecm_wal_slot_goes(stack_index, order);
		ecm_event(stack->dboid, stack->datname, "replication_slot_dropped",
				  ECM_SEVERITY_WARNING,
				  describe_loss(stack, " when the stack runs again"),
				  "dropped replication slot \"%s\"", stack->slot.name);
	}
	pfree(stack);
}

char *
ecm_wal_no_room(int stack_index)
{
	const EcmStack *stack = &ecm_shared->stacks[stack_index];
	EcmWalLimits limits;

	if (!stack->slot.guard.short_of_room)
		return NULL;
	ecm_wal_limits(stack, &limits);
	return psprintf("free space under pg_wal: %s; an eighth more than electric_cm.min_wal_free_space (%s) is needed for a new slot",
					ecm_size_text(stack->slot.sample.wal_free_bytes),
					ecm_size_text(Max(limits.min_free, 0)));
}
