/*-------------------------------------------------------------------------
 *
 * retained_wal_report.c
 *	  What is said of a slot's retained WAL: the texts of its events.
 *
 * retained_wal.c has looked, and retained_wal_guard.c has decided which of it
 * is news.  The texts are palloc'd.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "base/event.h"
#include "base/text.h"
#include "slot/retained_wal_internal.h"

/* A sentence that names the slot's holder, after a blank; "": there is none. */
static char *
describe_pin(const EcmPin *pin)
{
	return pin->by[0] == '\0' ? "" :
		psprintf(" It %s pinned by: %s.", pin->certain ? "is" : "seems to be",
				 pin->by);
}

/* "2 d 22 h", "3 min 20 s": an estimate needs no more than two units. */
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

char *
ecm_retained_wal_describe_loss(const EcmWalLook *look, const char *when)
{
	if (look->shapes == 0)
		return psprintf("All shapes of this database are compared with their tables%s.", when);
	if (look->shapes == 1)
		return psprintf("The one shape of this database is compared with its table%s.", when);
	return psprintf("All %u shapes of this database are compared with their tables%s.",
					look->shapes, when);
}

/*
 * Reports that the slot is lost.  If it was in no danger at the last look, no
 * warning has preceded, so the text says how long ago that was.
 */
static void
report_lost(const EcmWalLook *look, int64 unseen_us)
{
	const EcmWalSample *sample = &look->slot.sample;
	StringInfoData detail;
	EcmSlotFacts facts;
	bool		too_large = !ecm_slot_lookup(look->slot.name, &facts) ||
	facts.invalidation == NULL || strcmp(facts.invalidation, "wal_removed") == 0;

	initStringInfo(&detail);
	if (!too_large)
		appendStringInfo(&detail, "%s ", ecm_slot_invalidation_text(facts.invalidation));
	if (sample->sizes_known)
		appendStringInfo(&detail, "It retained %s of WAL",
						 ecm_size_text(sample->retained_wal_bytes));
	else
		appendStringInfoString(&detail, "It retained an unknown amount of WAL");
	if (too_large && look->limits.server_limit >= 0)
		appendStringInfo(&detail, ", and max_slot_wal_keep_size is %s",
						 ecm_size_text(look->limits.server_limit));
	appendStringInfoChar(&detail, '.');
	if (too_large && unseen_us > 0)
		appendStringInfo(&detail, " It was in no danger %s before.",
						 describe_duration(Max(unseen_us / USECS_PER_SEC, 1)));
	appendStringInfo(&detail, " %s",
					 ecm_retained_wal_describe_loss(look, look->has_manager ? "" : " when the stack runs again"));
	ecm_event_in(look->dboid, look->datname, ECM_EVENT_REPLICATION_SLOT_LOST, detail.data,
				 "replication slot \"%s\" is lost", look->slot.name);
}

/* Records an event for each action that is due. */
static void
report(const EcmWalLook *look, unsigned actions, int64 unseen_us)
{
	const EcmWalSample *sample = &look->slot.sample;
	const EcmWalLimits *limits = &look->limits;
	const EcmPin *pin = &look->pin;
	const char *held = ecm_size_text(sample->retained_wal_bytes);

	if (actions & ECM_WAL_WARN)
		ecm_event_in(look->dboid, look->datname, ECM_EVENT_RETAINED_WAL_WARNING,
					 psprintf("electric_cm.retained_wal_warning is %s.%s%s",
							  ecm_size_text(limits->warning), describe_pin(pin),
							  describe_time_left(&look->slot.guard, limits)),
					 "replication slot \"%s\" retains %s of WAL",
					 look->slot.name, held);
	if (actions & ECM_WAL_WARN_OVER)
		ecm_event_in(look->dboid, look->datname, ECM_EVENT_RETAINED_WAL_WARNING_OVER, NULL,
					 "replication slot \"%s\" retains only %s of WAL now",
					 look->slot.name, held);
	if (actions & ECM_WAL_UNRESERVED)
		ecm_event_in(look->dboid, look->datname, ECM_EVENT_REPLICATION_SLOT_UNRESERVED,
					 psprintf("It retains %s of WAL, and max_slot_wal_keep_size is %s.%s",
							  held, ecm_size_text(Max(limits->server_limit, 0)),
							  describe_pin(pin)),
					 "replication slot \"%s\" will be lost at the next checkpoint",
					 look->slot.name);
	if (actions & ECM_WAL_LOST)
		report_lost(look, unseen_us);
	if (actions & ECM_WAL_FREE_LOW)
		ecm_event_in(look->dboid, look->datname, ECM_EVENT_WAL_FREE_SPACE_LOW,
					 psprintf("electric_cm.min_wal_free_space is %s, and replication slot \"%s\" retains %s. See electric_cm_slots for all slots.",
							  ecm_size_text(limits->min_free), look->slot.name, held),
					 "only %s are free under pg_wal",
					 ecm_size_text(sample->wal_free_bytes));
	if (actions & ECM_WAL_FREE_OVER)
		ecm_event_in(look->dboid, look->datname, ECM_EVENT_WAL_FREE_SPACE_OVER, NULL, "%s are free under pg_wal",
					 ecm_size_text(sample->wal_free_bytes));
}

/* Says which limit the slot exceeds. */
static char *
describe_excess(const EcmWalLook *look, unsigned why)
{
	const EcmWalSample *sample = &look->slot.sample;
	const char *slot = psprintf("replication slot \"%s\"%s", look->slot.name,
								ecm_retained_wal_is_being_made(sample) ? ", which is being created," : "");
	const char *held = ecm_size_text(sample->retained_wal_bytes);

	if (why & ECM_WAL_DROP_FREE)
		return psprintf("only %s are free under pg_wal, and %s retains %s of WAL",
						ecm_size_text(sample->wal_free_bytes), slot, held);
	return psprintf("%s retains %s of WAL, more than electric_cm.retained_wal_limit",
					slot, held);
}

/* The slot exceeds a limit, but stays, since dropping it would free too little. */
static void
report_spared(const EcmWalLook *look, unsigned why)
{
	const EcmWalBlame *blame = why & ECM_WAL_DROP_FREE ? &look->for_room : &look->for_limit;

	ecm_event_in(look->dboid, look->datname, why & ECM_WAL_DROP_FREE ? ECM_EVENT_WAL_FREE_SPACE_LIMIT_SPARED : ECM_EVENT_RETAINED_WAL_LIMIT_SPARED,
				 psprintf("The slot stays, since dropping it would free %s. %s",
						  blame->frees <= 0 ? "nothing" :
						  psprintf("only %s", ecm_size_text(blame->frees)),
						  blame->others[0] != '\0' ? blame->others :
						  "The server would keep that for later use (min_wal_size)."),
				 "%s", describe_excess(look, why));
}

static void
decide(const EcmWalLook *look, unsigned why, EcmWalAction *action)
{
	char	   *detail = describe_pin(&look->pin);

	action->why = why;
	if (why == 0)
		return;
	while (*detail == ' ')
		detail++;
	if (why & ECM_WAL_DROP_FREE)
		ecm_error_set(&action->reason, "53100", describe_excess(look, why),
					  detail, "Make room for WAL, or lower electric_cm.min_wal_free_space.");
	else
		ecm_error_set(&action->reason, "54000", describe_excess(look, why),
					  detail, psprintf("Remove what pins it, or raise electric_cm.retained_wal_limit from %s: the snapshot of any shape must be well within it.",
									   ecm_size_text(look->limits.limit)));
}

void
ecm_retained_wal_conclude(const EcmWalLook *look, unsigned actions, int64 unseen_us,
						  EcmWalAction *action)
{
	report(look, actions, unseen_us);
	if (actions & ECM_WAL_SPARE_LIMIT)
		report_spared(look, ECM_WAL_DROP_LIMIT);
	if (actions & ECM_WAL_SPARE_FREE)
		report_spared(look, ECM_WAL_DROP_FREE);
	decide(look, actions & ECM_WAL_DROP, action);
}

EcmEventName
ecm_retained_wal_limit_event(const EcmWalAction *action)
{
	return action->why & ECM_WAL_DROP_FREE ? ECM_EVENT_WAL_FREE_SPACE_LIMIT :
		ECM_EVENT_RETAINED_WAL_LIMIT;
}
