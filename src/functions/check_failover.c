/*-------------------------------------------------------------------------
 *
 * check_failover.c
 *	  electric_cm_check() and electric_cm_health(): could a standby take over now, and
 *	  shapes go on without a gap?
 *
 * A primary knows that of each standby by what it says (the view
 * electric_cm_stat_standby); a standby by its own settings and its copy of the slot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "base/compat.h"
#include "base/settings.h"
#include "connection/conninfo.h"
#include "functions/check.h"
#include "slot/slot.h"

/* So long (s) may a standby take to be ready, after it has come or gone. */
#define LONG_S	"60"

static void not_ready(EcmFailover *failover, char *fix, const char *fmt,...) pg_attribute_printf(3, 4);

/* Not ready, for a reason that the view does not know. */
static void
not_ready(EcmFailover *failover, char *fix, const char *fmt,...)
{
	va_list		args;
	char		text[1024];

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	failover->ready = false;
	failover->reason = pstrdup(text);
	failover->fix = fix;
}

/* Does the connection string name a database, as slot synchronization needs? */
static bool
names_database(const char *conninfo)
{
	EcmConnTarget target;

	return ecm_conn_target(conninfo, &target) &&
		(target.dbname != NULL || target.service != NULL);
}

static bool
is_off(const char *setting)
{
	const char *value = GetConfigOption(setting, true, false);

	return value == NULL || strcmp(value, "on") != 0;
}

static void
look_at_standby(const char *slot_name, EcmFailover *failover)
{
	EcmSlotFacts facts;

	failover->known = true;
	(void) ecm_slot_lookup(slot_name, &facts);
	if (is_off("sync_replication_slots"))
		not_ready(failover, pstrdup("ALTER SYSTEM SET sync_replication_slots = on;" THEN_RELOAD),
				  "sync_replication_slots is off on this standby");
	else if (wal_level < WAL_LEVEL_LOGICAL)
		not_ready(failover, NULL, "wal_level is not logical on this standby, and slot synchronization needs that");
	else if (is_off("hot_standby_feedback"))
		not_ready(failover, pstrdup("ALTER SYSTEM SET hot_standby_feedback = on;" THEN_RELOAD),
				  "hot_standby_feedback is off on this standby, and slot synchronization needs it");
	else if (GetConfigOption("primary_slot_name", false, false)[0] == '\0')
		not_ready(failover, NULL, "primary_slot_name is empty on this standby: slot synchronization needs a physical slot on the primary");
	else if (!names_database(GetConfigOption("primary_conninfo", false, false)))
		not_ready(failover, NULL, "primary_conninfo has no dbname: slot synchronization needs a database to connect to");
	else if (!facts.exists)
		not_ready(failover, NULL,
				  "replication slot \"%s\" has not come from the primary: it may take half a minute, and needs electric_cm.failover = on there; a standby of a standby gets none",
				  slot_name);
	else if (!facts.synced)
		not_ready(failover, NULL,
				  "replication slot \"%s\" was made on this server, which keeps slot synchronization from all slots: if a stack has made it, it is dropped when the server receives WAL, and electric_cm.failover or sync_replication_slots is on; else it is for you to drop it",
				  slot_name);
	else if (facts.temporary)
		not_ready(failover, NULL,
				  "replication slot \"%s\" has come from the primary, but can't be used yet: it can when the primary's has moved on",
				  slot_name);
	else if (facts.invalidation != NULL)
		not_ready(failover, NULL, "replication slot \"%s\" has been invalidated here (%s)",
				  slot_name, facts.invalidation);
	else
		failover->ready = true;
}

static void
look_at_slot(const char *slot_name, EcmFailover *failover)
{
	EcmSlotFacts facts;

	if (!ecm_failover)
		not_ready(failover, NULL, "electric_cm.failover is off");
	else if (!ecm_slot_lookup(slot_name, &facts))
		not_ready(failover, NULL, "replication slot \"%s\" does not exist yet", slot_name);
	else if (facts.temporary)
		not_ready(failover, NULL, "replication slot \"%s\" is temporary", slot_name);
	else if (facts.invalidation != NULL)
		not_ready(failover, NULL, "replication slot \"%s\" has been invalidated (%s)",
				  slot_name, facts.invalidation);
	else if (!facts.failover)
		not_ready(failover, NULL, "replication slot \"%s\" is not one that standbys keep in step", slot_name);
}

static void
look_at_primary(const char *slot_name, EcmFailover *failover)
{
	int			n;
	char	  **v;

	if (ecm_shared == NULL)
	{
		not_ready(failover, NULL, "nothing runs: the library is not loaded");
		return;
	}
	v = ecm_check_query(5, &n,
						"SELECT count(*), count(*) FILTER (WHERE failover_ready),"
						" string_agg(format('standby %%s: %%s', coalesce(nullif(standby, ''), format('of slot \"%%s\"', slot_name)), reason),"
						"  '; ' ORDER BY synchronized DESC, slot_name, standby) FILTER (WHERE NOT failover_ready),"
						" coalesce(bool_or(synchronized AND NOT failover_ready), false),"
						" coalesce(bool_and(since < clock_timestamp() - interval '" LONG_S " s') FILTER (WHERE NOT failover_ready), true)"
						" FROM %s.electric_cm_stat_standby WHERE connected OR synchronized",
						ecm_check_schema());
	failover->known = true;
	failover->standbys = atoi(v[0]);
	failover->ready_standbys = atoi(v[1]);
	failover->ready = failover->ready_standbys > 0 && v[3][0] == 'f';
	failover->lasts = v[4][0] == 't';
	failover->reason = failover->ready ? NULL : v[2];
	if (failover->standbys == 0)
		failover->reason = pstrdup("no standby is connected");
	else
		look_at_slot(slot_name, failover);
}

void
ecm_failover_look(const char *slot_name, EcmFailover *failover)
{
	memset(failover, 0, sizeof(*failover));
	failover->standby = RecoveryInProgress();
	if (!ECM_HAS_FAILOVER_SLOTS)
		not_ready(failover, NULL, "shapes go on after a promotion from PostgreSQL 17 on; here they are compared with their tables then");
	else if (failover->standby)
		look_at_standby(slot_name, failover);
	else
		look_at_primary(slot_name, failover);
}

/* What Patroni does to slots that it does not know, if it is there. */
static const char *
patroni_hint(void)
{
	int			n;

	(void) ecm_check_query(1, &n, "SELECT FROM pg_stat_activity WHERE application_name LIKE 'Patroni %%' LIMIT 1");
	return n == 0 ? "" :
		"; Patroni drops the slot whenever nobody uses it, unless its ignore_slots has {plugin: pgoutput, type: logical}";
}

/* The command that lets standbys keep the slot in step. */
static char *
failover_command(const EcmSituation *s)
{
	EcmSlotFacts facts;

	if (!ecm_failover)
		return pstrdup("ALTER SYSTEM SET electric_cm.failover = on;" THEN_RELOAD);
	if (ecm_check_bool(s, "slot_temporary", false))
		return ecm_check_set(s, "slot_temporary", "off");
	if (s->runs && ecm_slot_lookup(s->slot_name, &facts) && facts.invalidation == NULL &&
		!facts.failover)
		return psprintf("SELECT %s.electric_cm_restart()", s->schema);
	return NULL;
}

/*
 * Nothing to complain of where there is no standby, or the server's version is too old:
 * then it is what the user has chosen.
 */
void
ecm_check_failover(const EcmSituation *s, EcmFinding *f)
{
	EcmFailover failover;
	const char *hint;

	ecm_failover_look(s->slot_name, &failover);
	if (!ECM_HAS_FAILOVER_SLOTS)
	{
		ecm_check_pass(f, "%s", failover.reason);
		return;
	}
	hint = patroni_hint();
	if (failover.ready && failover.standby)
		ecm_check_pass(f, "this standby keeps replication slot \"%s\" in step: shapes go on after a promotion%s",
					   s->slot_name, hint);
	else if (failover.ready)
		ecm_check_pass(f, "shapes go on after the promotion of any of %d standbys, of %d%s",
					   failover.ready_standbys, failover.standbys, hint);
	else if (failover.known && !failover.standby && failover.standbys == 0)
		ecm_check_pass(f, "%s%s", failover.reason, hint);
	else
		ecm_check_warn(f, failover.standby || !failover.known ? failover.fix : failover_command(s),
					   "after a promotion shapes may have to be compared with their tables: %s%s",
					   failover.reason, hint);
}
