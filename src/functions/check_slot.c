/*-------------------------------------------------------------------------
 *
 * check_slot.c
 *	  electric_cm_check(): the exclusive lock, slots and publications.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/statvfs.h>

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "base/compat.h"
#include "base/settings.h"
#include "functions/check.h"
#include "slot/slot.h"

/* Less WAL than this is gone with the next checkpoint or two. */
#define TINY_KEEP_SIZE_MB	64

void
ecm_check_lock(const EcmSituation *s, EcmFinding *f)
{
	char	  **v;
	int			n;

	v = ecm_check_query(4, &n,
						"SELECT l.pid, a.application_name, p.gid,"
						" a.backend_xid IS NOT NULL OR a.state IS DISTINCT FROM 'idle'"
						" FROM (SELECT hashtext(%s COLLATE \"C\")::int8) AS k(key),"
						" pg_locks l LEFT JOIN pg_stat_activity a USING (pid)"
						" LEFT JOIN pg_locks x ON l.pid IS NULL AND x.pid IS NULL"
						"  AND x.virtualtransaction = l.virtualtransaction"
						"  AND x.locktype = 'transactionid' AND x.granted"
						" LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid"
						" WHERE l.locktype = 'advisory' AND l.granted"
						" AND l.database = %u AND l.objsubid = 1"
						" AND l.classid::int8 = ((k.key >> 32) & 4294967295)"
						" AND l.objid::int8 = (k.key & 4294967295)"
						" AND l.pid IS DISTINCT FROM %d LIMIT 1",
						quote_literal_cstr(s->slot_name), MyDatabaseId,
						s->stack->manager.pid);
	if (n == 0)
		ecm_check_pass(f, s->stack->report.lock_acquired ?
					   "the stack holds its exclusive lock" :
					   "nobody holds the exclusive lock");
	else if (v[0] != NULL && v[3][0] == 't')
		ecm_check_fail(f, NULL,
					   "the exclusive lock is held by PID %s (application \"%s\"), which is in a transaction: have it end that and the session",
					   v[0], v[1] ? v[1] : "");
	else if (v[0] != NULL)
		ecm_check_fail(f, psprintf("SELECT pg_terminate_backend(%s)", v[0]),
					   "the exclusive lock is held by PID %s (application \"%s\")",
					   v[0], v[1] ? v[1] : "");
	else
		ecm_check_fail(f, NULL,
					   "the exclusive lock is held by prepared transaction %s: COMMIT PREPARED it, or ROLLBACK PREPARED if its work may be lost",
					   v[2] ? quote_literal_cstr(v[2]) : "");
}

/* The base name with a number behind it, such that no row of the catalog has it. */
static char *
free_name(const char *base, const char *catalog, const char *column)
{
	int			n;
	char	  **v = ecm_check_query(1, &n,
									"SELECT name FROM (SELECT left(%s, 50) || '_' || i FROM"
									" generate_series(2, 10000) i) AS t(name)"
									" WHERE NOT EXISTS (SELECT FROM %s WHERE %s = name)"
									" LIMIT 1",
									quote_literal_cstr(base), catalog, column);

	return n > 0 ? v[0] : NULL;
}

static void
judge_active_slot(const EcmSituation *s, EcmFinding *f, int pid)
{
	int			n;
	char	  **v = ecm_check_query(1, &n,
									"SELECT application_name FROM pg_stat_activity"
									" WHERE pid = %d", pid);
	const char *application = n > 0 && v[0] ? v[0] : "";

	/*
	 * By the PID that the stack shows, or by name: a walsender that has just
	 * come, or is about to go, is not shown.
	 */
	if (s->stack->manager.pid != 0 &&
		(pid == s->stack->conns[0].backend_pid ||
		 strcmp(application, "electric_cm replication") == 0))
		ecm_check_pass(f, "replication slot \"%s\" is active for the stack",
					   s->slot_name);
	else
		ecm_check_fail(f, NULL,
					   "replication slot \"%s\" is active for PID %d (application \"%s\"), which loses changes if the stack uses it, too: end that client, or give the stack another slot by electric_cm.slot_name",
					   s->slot_name, pid, application);
}

/* A name for electric_cm.slot_name: of the slot that shapes depend on, or a free one. */
static char *
usable_slot_name(const EcmSituation *s)
{
	int			n;
	char	  **v = ecm_check_query(1, &n,
									"SELECT slot_name FROM _electric_cm.stack"
									" JOIN pg_replication_slots USING (slot_name)"
									" WHERE database = current_database() AND plugin = 'pgoutput'");

	return n > 0 ? v[0] : free_name(ecm_default_slot_name(s->datname),
									"pg_replication_slots", "slot_name");
}

/* Is it a standby's copy of a slot of the primary's?  (From PostgreSQL 17 on.) */
static bool
is_synced(const char *slot_name)
{
	int			n;

	(void) ecm_check_query(1, &n,
						   "SELECT 1 FROM pg_replication_slots s"
						   " WHERE slot_name = %s AND to_jsonb(s) -> 'synced' = 'true'",
						   quote_literal_cstr(slot_name));
	return n > 0;
}

/* Can the stack use its slot?  By the rules of look_at_slot(), replication_setup.c. */
void
ecm_check_slot(const EcmSituation *s, EcmFinding *f)
{
	EcmSlotFacts facts;

	if (!ecm_slot_lookup(s->slot_name, &facts))
		ecm_check_pass(f, "replication slot \"%s\" is created when the stack starts",
					   s->slot_name);
	else if (!facts.logical || facts.database != MyDatabaseId ||
			 strcmp(facts.plugin, "pgoutput") != 0)
		ecm_check_fail(f, ecm_check_set(s, "slot_name", usable_slot_name(s)),
					   "replication slot \"%s\" belongs to another database or plugin",
					   s->slot_name);
	else if (facts.invalidation != NULL && RecoveryInProgress())
		ecm_check_warn(f, NULL,
					   "replication slot \"%s\" on this standby has been invalidated (%s): after a promotion the stack makes a new one, and compares all shapes with their tables",
					   s->slot_name, facts.invalidation);
	else if (facts.invalidation != NULL)
		ecm_check_warn(f, NULL,
					   "replication slot \"%s\" has been invalidated (%s): the stack makes a new one, and compares all shapes with their tables",
					   s->slot_name, facts.invalidation);
	else if (facts.active_pid != 0)
		judge_active_slot(s, f, facts.active_pid);
	else if (RecoveryInProgress() && is_synced(s->slot_name))
		ecm_check_pass(f, "replication slot \"%s\" is kept in step with the primary's, for the stack to go on with after a promotion",
					   s->slot_name);
	else if (RecoveryInProgress())
		ecm_check_warn(f, NULL,
					   "replication slot \"%s\" on this standby retains WAL, and nobody moves it on before a promotion",
					   s->slot_name);
	else if (!s->runs)
		ecm_check_warn(f, s->preloaded ? ecm_check_start(s) : NULL,
					   "replication slot \"%s\" retains WAL while the stack does not run; if it is dropped instead, all shapes have to be compared with their tables",
					   s->slot_name);
	else
		ecm_check_pass(f, "replication slot \"%s\" exists", s->slot_name);
}

/* The names of all stacks' slots, as a list of SQL literals. */
static char *
known_slots(const EcmSituation *s)
{
	EcmStack   *stack = palloc(sizeof(EcmStack));
	StringInfoData list;

	initStringInfo(&list);
	appendStringInfoString(&list, quote_literal_cstr(s->slot_name));
	for (int i = 0; s->preloaded && i < ecm_stack_count(); i++)
		if (ecm_stack_copy_head(i, stack) && stack->registered &&
			stack->dboid != MyDatabaseId)
			appendStringInfo(&list, ", %s", quote_literal_cstr(ecm_check_slot_name(stack)));
	pfree(stack);
	return list.data;
}

/*
 * Slots that look like ours or Electric's: left behind by a former name, by an
 * extension that was dropped while the library was not loaded, by an Electric
 * service that has been taken down.
 */
void
ecm_check_other_slots(const EcmSituation *s, EcmFinding *f)
{
	char	  **v;
	int			n;
	bool		unused = false;
	StringInfoData names;

	v = ecm_check_query(3, &n,
						"SELECT slot_name, active, coalesce(pg_size_pretty(pg_wal_lsn_diff("
						" CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
						" ELSE pg_current_wal_lsn() END, restart_lsn)), 'no')"
						" FROM pg_replication_slots r"
						" WHERE slot_type = 'logical' AND NOT temporary"
						" AND coalesce(to_jsonb(r) ->> 'synced', 'false') = 'false'"
						" AND slot_name NOT IN (%s)"
						" AND (starts_with(slot_name, 'electric_') OR slot_name ="
						" (SELECT slot_name FROM _electric_cm.stack WHERE database_oid = %u))"
						" ORDER BY active, slot_name", known_slots(s), MyDatabaseId);
	if (n == 0)
	{
		ecm_check_pass(f, "there is no other slot of ours or of an Electric service");
		return;
	}

	initStringInfo(&names);
	for (int i = 0; i < n; i++)
	{
		bool		active = v[3 * i + 1][0] == 't';

		appendStringInfo(&names, "%s\"%s\" (%s, %s of WAL)", i > 0 ? ", " : "",
						 v[3 * i], active ? "active" : "inactive", v[3 * i + 2]);
		unused |= !active;
	}
	if (unused)
		ecm_check_warn(f, NULL, "slots that nobody may be looking after retain WAL: %s; drop one with pg_drop_replication_slot() if whoever used it will not come back, since it loses its place",
					   names.data);
	else
		ecm_check_pass(f, "in use beside the stack's: %s", names.data);
}

/* The WAL that the slot farthest behind retains now, in megabytes. */
static int64
most_retained_mb(void)
{
	int			n;
	char	  **v = ecm_check_query(1, &n,
									"SELECT coalesce(ceil(max(pg_wal_lsn_diff("
									" CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()"
									" ELSE pg_current_wal_lsn() END, restart_lsn)) / 1048576), 0)::int8"
									" FROM pg_replication_slots");

	return n > 0 && v[0] != NULL ? strtoi64(v[0], NULL, 10) : 0;
}

/*
 * The command that limits what slots retain: to what they retain now, so that none is
 * lost at once, plus half of the free space; rounded down to gigabytes.  Not less than
 * the server keeps anyway, as a lower limit would make no difference.
 */
static char *
suggest_keep_size(void)
{
	struct statvfs fs;
	int64		mb = 10 * 1024;

	if (statvfs(XLOGDIR, &fs) == 0)
		mb = (int64) fs.f_bavail * (int64) fs.f_frsize / (1024 * 1024) / 2;
	mb += Max(most_retained_mb(), 0);
	mb = Min(mb, MAX_KILOBYTES / 1024);
	mb = Max(mb, Max(max_wal_size_mb, TINY_KEEP_SIZE_MB));
	mb = Max(mb, 4 * (wal_segment_size / (1024 * 1024)));
	if (mb >= 1024 && mb / 1024 * 1024 >= max_wal_size_mb)
		return psprintf("ALTER SYSTEM SET max_slot_wal_keep_size = '%dGB';" THEN_RELOAD,
						(int) (mb / 1024));
	return psprintf("ALTER SYSTEM SET max_slot_wal_keep_size = '%dMB';" THEN_RELOAD,
					(int) mb);
}

void
ecm_check_slot_wal_limit(const EcmSituation *s pg_attribute_unused(), EcmFinding *f)
{
	int			limit = max_slot_wal_keep_size_mb;
	int			kept = Max(limit, wal_keep_size_mb);

	if (limit < 0)
		ecm_check_warn(f, suggest_keep_size(),
					   "max_slot_wal_keep_size is unlimited: a slot that is stuck can fill the disk");
	else if (kept < Max(TINY_KEEP_SIZE_MB, 4 * (wal_segment_size / (1024 * 1024))))
		ecm_check_fail(f, suggest_keep_size(),
					   "max_slot_wal_keep_size is %d MB: the slot can be lost at any checkpoint, and all shapes are compared with their tables then",
					   limit);
	else if (kept < max_wal_size_mb)
		ecm_check_warn(f, suggest_keep_size(),
					   "max_slot_wal_keep_size is %d MB, less than max_wal_size: a busy hour may cost the slot, and all shapes are compared with their tables then",
					   limit);
	else
		ecm_check_pass(f, "max_slot_wal_keep_size is %d MB", limit);
}

/*
 * Since its minor releases of August 2026 the server loads only output plugins
 * that are listed.  Our walsender asks for pgoutput by that name, though it gets
 * the library of ours around it, so that one need not be listed.
 */
void
ecm_check_output_plugin(const EcmSituation *s, EcmFinding *f)
{
	int			n;
	char	  **v = ecm_check_query(2, &n,
									"SELECT 'pgoutput' = ANY (list), format(CASE source WHEN 'database'"
									" THEN 'ALTER DATABASE %%2$I' ELSE 'ALTER SYSTEM' END"
									" || ' SET output_plugin_libraries = %%1$s',"
									" (SELECT string_agg(quote_literal(x), ', ') FROM unnest(ARRAY['pgoutput'] || list) x), %s)"
									" FROM (SELECT source, ARRAY(SELECT btrim(x, ' \"')"
									"  FROM regexp_split_to_table(reset_val, ',') x WHERE btrim(x, ' \"') <> '') AS list"
									"  FROM pg_settings WHERE name = 'output_plugin_libraries') t",
									quote_literal_cstr(s->datname));

	if (n == 0)
		ecm_check_pass(f, "this server loads any output plugin");
	else if (v[0][0] == 't')
		ecm_check_pass(f, "output_plugin_libraries has pgoutput");
	else
		ecm_check_fail(f, psprintf("%s;" THEN_RELOAD, v[1]),
					   "output_plugin_libraries lacks pgoutput, so that no stream can start");
}

/*
 * The slot of a stack that runs is in use, also while nothing happens.
 */
void
ecm_check_idle_slot_timeout(const EcmSituation *s pg_attribute_unused(), EcmFinding *f)
{
	if (ecm_idle_slot_timeout_s() == 0)
		ecm_check_pass(f, "no slot is lost for being idle");
	else
		ecm_check_warn(f, pstrdup("ALTER SYSTEM SET idle_replication_slot_timeout = 0;" THEN_RELOAD),
					   "idle_replication_slot_timeout is %s: a stack that is stopped, or disabled, for longer loses its slot, and all shapes are compared with their tables then",
					   GetConfigOptionByName("idle_replication_slot_timeout", NULL, false));
}

/* --------------------------------------------------------- publications -- */

/* The command that takes all filters out of our publication. */
static char *
unfilter_command(const char *publication)
{
	int			n;
	char	  **v = ecm_check_query(1, &n,
									"SELECT format('ALTER PUBLICATION %%I SET ', p.pubname) ||"
									" concat_ws(', ', (SELECT 'TABLE ' || string_agg("
									"  CASE WHEN c.relkind = 'r' AND c.relhassubclass THEN 'ONLY ' ELSE '' END"
									"  || r.prrelid::regclass::text, ', ' ORDER BY r.prrelid::regclass::text)"
									" FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid"
									" WHERE r.prpubid = p.oid),"
									" (SELECT 'TABLES IN SCHEMA ' || string_agg(quote_ident(n.nspname), ', ')"
									" FROM pg_publication_namespace m JOIN pg_namespace n ON n.oid = m.pnnspid"
									" WHERE m.pnpubid = p.oid))"
									" FROM pg_publication p WHERE p.pubname = %s",
									quote_literal_cstr(publication));

	return n > 0 ? v[0] : NULL;
}

/*
 * Tables whose writers are refused because of what is published by somebody's
 * own doing; NULL: there are none.
 */
static char *
broken_by_virtual(const char *publication, char **fix)
{
	int			n;
	char	  **v = ecm_check_query(2, &n,
									"SELECT string_agg(format('%%I.%%I', t.schemaname, t.tablename), ', '),"
									" string_agg(format('ALTER TABLE %%I.%%I REPLICA IDENTITY DEFAULT',"
									"  t.schemaname, t.tablename), '; ')"
									" FROM pg_publication_tables t"
									" JOIN pg_namespace n ON n.nspname = t.schemaname"
									" JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename"
									" WHERE t.pubname = %s AND " ECM_BROKEN_BY_VIRTUAL_SQL,
									quote_literal_cstr(publication));

	*fix = v[1];
	return v[0];
}

/* Is the publication good?  By the rules of poll_publication(), replication_setup.c. */
void
ecm_check_publication(const EcmSituation *s, EcmFinding *f)
{
	const char *name = s->publication_name;
	char	   *broken;
	char	   *fix;
	char	  **v;
	int			n;

	v = ecm_check_query(7, &n,
						"SELECT p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate,"
						" EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid"
						"  AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)), p.puballtables, p.pubviaroot,"
						" " ECM_PUBLISHES_GENERATED_SQL ", EXISTS (SELECT FROM _electric_cm.stack s"
						"  WHERE s.publication_name = p.pubname), "
						ECM_PUBLISHES_SEQUENCES_SQL
						" FROM pg_publication p WHERE p.pubname = %s",
						quote_literal_cstr(name));
	if (n == 0 && ecm_check_bool(s, "create_publication", true))
		ecm_check_pass(f, "publication \"%s\" is created when the stack starts", name);
	else if (n == 0)
		ecm_check_fail(f, psprintf("CREATE PUBLICATION %s" ECM_WITH_GENERATED, quote_identifier(name)),
					   "publication \"%s\" does not exist and electric_cm.create_publication is off",
					   name);
	else if (v[0][0] != 't')
		ecm_check_fail(f, psprintf("ALTER PUBLICATION %s SET (publish = 'insert, update, delete, truncate')",
								   quote_identifier(name)),
					   "publication \"%s\" does not publish insert, update, delete and truncate",
					   name);
	else if (v[1][0] == 't')
		ecm_check_fail(f, unfilter_command(name),
					   "publication \"%s\" filters rows or columns", name);
	else if (v[3][0] == 't')
		ecm_check_fail(f, psprintf("ALTER PUBLICATION %s SET (publish_via_partition_root = false)",
								   quote_identifier(name)),
					   "publication \"%s\" publishes partitions as changes of their root", name);
	else if (v[6][0] == 't')
		ecm_check_fail(f, psprintf(ecm_check_bool(s, "create_publication", true) ? "DROP PUBLICATION %s" :
								   "DROP PUBLICATION %1$s; CREATE PUBLICATION %1$s" ECM_WITH_GENERATED,
								   quote_identifier(name)),
					   "publication \"%s\" is FOR ALL SEQUENCES, so that no table can be added to it",
					   name);
	else if (v[4][0] != 't' && (s->runs || v[5][0] != 't'))
		ecm_check_fail(f, psprintf("ALTER PUBLICATION %s SET (" ECM_PUBLISH_GENERATED ")",
								   quote_identifier(name)),
					   "publication \"%s\" does not publish stored generated columns", name);
	else if ((broken = broken_by_virtual(name, &fix)) != NULL)
		ecm_check_fail(f, fix, "UPDATE and DELETE fail on tables that are in publication \"%s\" with replica identity FULL and have virtual generated columns: %s",
					   name, broken);
	else if (v[2][0] == 't')
		ecm_check_warn(f, ecm_check_has_shapes() ? NULL :
					   ecm_check_set(s, "publication_name",
									 free_name("electric_cm_publication",
											   "pg_publication", "pubname")),
					   "publication \"%s\" is FOR ALL TABLES: every change in this database is sent, the stack's own small tables included; with another publication (electric_cm.publication_name), all shapes are compared with their tables",
					   name);
	else
		ecm_check_pass(f, "publication \"%s\" publishes all changes of its tables", name);
}

/*
 * Subscribers of a publication FOR ALL TABLES get the small tables in schema
 * _electric_cm, which they don't have.  A publication can't be made another one
 * without being dropped, and whoever decodes what was written before does not
 * find it then.  From 19 on it may have exceptions.
 */
void
ecm_check_other_publications(const EcmSituation *s, EcmFinding *f)
{
	char	  **v;
	int			n;

	v = ecm_check_query(1, &n,
						"SELECT string_agg(format('\"%%s\"', p.pubname), ', ' ORDER BY p.pubname)"
						" FROM pg_publication p WHERE p.puballtables AND p.pubname <> %s"
						" AND EXISTS (SELECT FROM pg_publication_tables t WHERE t.pubname = p.pubname"
						"  AND t.schemaname = '_electric_cm')",
						quote_literal_cstr(s->publication_name));
	if (v[0] != NULL)
		ecm_check_warn(f, NULL, "publications FOR ALL TABLES: %s; their subscribers get the tables of schema _electric_cm, too: give those that lack them a publication FOR TABLES IN SCHEMA",
					   v[0]);
	else
		ecm_check_pass(f, "no other publication has the tables of schema _electric_cm");
}
