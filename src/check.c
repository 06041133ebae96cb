/*-------------------------------------------------------------------------
 *
 * check.c
 *	  electric_cm_check(): is everything there that a stack needs?
 *
 * A table of checks, each a function that fills in one row.  It must work when
 * nothing else does: without the library preloaded, on a standby, while the
 * stack is stopped, failed or disabled.  So nothing here asks a manager or
 * writes, and a check that raises an error costs only its own row.
 *
 * Rules and remedies are those that the stack itself goes by; where errors.c
 * or replication.c has a hint, the fix here is its command.  A fix is one
 * statement; what remains to be done after it follows as a comment.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/statvfs.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "replication/walsender.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/varlena.h"

#include "check.h"
#include "compat.h"
#include "settings.h"
#include "shape.h"
#include "timeline.h"
#include "wal.h"

PG_FUNCTION_INFO_V1(electric_cm_check);

/* A remedy for a limit leaves some room. */
#define HEADROOM			2

/* Less WAL than this is gone with the next checkpoint or two. */
#define TINY_KEEP_SIZE_MB	64

/* A younger transaction may end by itself, and is none of our business. */
#define OLD_TRANSACTION		"5 s"

#define THEN_RELOAD			" -- then SELECT pg_reload_conf()"
#define THEN_RESTART		" -- then restart the server"
#define ONLY_RESTART		"-- restart the server"

/* ------------------------------------------------------------ framework -- */

static char *format_text(const char *fmt, va_list args) pg_attribute_printf(1, 0);

static char *
format_text(const char *fmt, va_list args)
{
	StringInfoData text;

	initStringInfo(&text);
	for (;;)
	{
		va_list		copy;
		int			needed;

		va_copy(copy, args);
		needed = appendStringInfoVA(&text, fmt, copy);
		va_end(copy);
		if (needed == 0)
			return text.data;
		enlargeStringInfo(&text, needed);
	}
}

static void set_finding(EcmFinding *f, EcmVerdict verdict, char *fix,
						const char *fmt, va_list args) pg_attribute_printf(4, 0);

static void
set_finding(EcmFinding *f, EcmVerdict verdict, char *fix, const char *fmt,
			va_list args)
{
	f->verdict = verdict;
	f->detail = format_text(fmt, args);
	f->fix = fix;
}

void
ecm_check_pass(EcmFinding *f, const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	set_finding(f, ECM_VERDICT_PASS, NULL, fmt, args);
	va_end(args);
}

void
ecm_check_warn(EcmFinding *f, char *fix, const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	set_finding(f, ECM_VERDICT_WARN, fix, fmt, args);
	va_end(args);
}

void
ecm_check_fail(EcmFinding *f, char *fix, const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	set_finding(f, ECM_VERDICT_FAIL, fix, fmt, args);
	va_end(args);
}

char **
ecm_check_query(int ncolumns, int *nrows, const char *fmt,...)
{
	MemoryContext caller = CurrentMemoryContext;
	EcmSpiState spi;
	va_list		args;
	char	   *sql;
	char	  **values;

	va_start(args, fmt);
	sql = format_text(fmt, args);
	va_end(args);

	ecm_spi_begin(&spi);
	/* rather no answer than to queue behind somebody's lock */
	(void) set_config_option("lock_timeout", "1s", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_execute(sql, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "not a query: %s", sql);
	*nrows = (int) SPI_processed;
	values = MemoryContextAllocZero(caller,
									sizeof(char *) * (SPI_processed * ncolumns + 1));
	for (int row = 0; row < *nrows; row++)
		for (int column = 0; column < ncolumns; column++)
		{
			char	   *value = SPI_getvalue(SPI_tuptable->vals[row],
											 SPI_tuptable->tupdesc, column + 1);

			if (value != NULL)
				values[row * ncolumns + column] = MemoryContextStrdup(caller, value);
		}
	ecm_spi_end(&spi);
	pfree(sql);
	return values;
}

/* ------------------------------------------------------------- settings -- */

/*
 * The session's own values may be older than the database's settings, or SET
 * by the user; a manager reads them anew.  It runs as bootstrap superuser, so
 * that role's settings count, too.
 */
static void
read_settings(EcmSituation *s)
{
	int			n;
	char	  **v = ecm_check_query(3, &n,
									"SELECT s.name,"
									" coalesce(o.value, CASE WHEN s.source IN"
									"  ('default', 'configuration file', 'command line', 'environment variable')"
									"  THEN s.setting ELSE coalesce(f.setting, s.boot_val) END),"
									" coalesce(o.owner, format('DATABASE %%I', current_database()))"
									" FROM pg_settings s"
									" LEFT JOIN LATERAL (SELECT substr(c, strpos(c, '=') + 1) AS value,"
									"   CASE WHEN r.setrole <> 0 THEN format('ROLE %%I', pg_get_userbyid(r.setrole))"
									"    || CASE WHEN r.setdatabase <> 0 THEN format(' IN DATABASE %%I', current_database())"
									"    ELSE '' END END AS owner"
									"  FROM pg_db_role_setting r, unnest(r.setconfig) c"
									"  WHERE r.setrole IN (0, 10) AND r.setdatabase IN (0, %u)"
									"   AND split_part(c, '=', 1) = s.name"
									"  ORDER BY r.setrole DESC, r.setdatabase DESC LIMIT 1) o ON true"
									" LEFT JOIN (SELECT DISTINCT ON (name) name, setting FROM pg_file_settings"
									"  WHERE name LIKE 'electric\\_cm.%%' ORDER BY name, seqno DESC) f"
									"  ON f.name = s.name"
									" WHERE s.name LIKE 'electric\\_cm.%%'", MyDatabaseId);

	s->nsettings = n;
	s->settings = palloc(sizeof(EcmCheckSetting) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		s->settings[i].name = v[3 * i];
		s->settings[i].value = v[3 * i + 1] ? v[3 * i + 1] : "";
		s->settings[i].owner = v[3 * i + 2];
	}
}

static const EcmCheckSetting *
find_setting(const EcmSituation *s, const char *name)
{
	const size_t prefix = strlen("electric_cm.");

	for (int i = 0; i < s->nsettings; i++)
		if (strcmp(s->settings[i].name + prefix, name) == 0)
			return &s->settings[i];
	elog(ERROR, "there is no setting electric_cm.%s", name);
	return NULL;
}

const char *
ecm_check_setting(const EcmSituation *s, const char *name)
{
	return find_setting(s, name)->value;
}

char *
ecm_check_set(const EcmSituation *s, const char *name, const char *value)
{
	const EcmCheckSetting *setting = find_setting(s, name);

	return psprintf("ALTER %s SET %s = %s;" THEN_RELOAD, setting->owner,
					setting->name, quote_literal_cstr(value));
}

static bool
bool_setting(const EcmSituation *s, const char *name, bool otherwise)
{
	bool		value;

	return parse_bool(ecm_check_setting(s, name), &value) ? value : otherwise;
}

static int
int_setting(const EcmSituation *s, const char *name)
{
	return Max(atoi(ecm_check_setting(s, name)), 1);
}

/* What postgresql.conf (and ALTER SYSTEM) says by now, or NULL. */
static char *
configured(const char *name)
{
	int			n;
	char	  **v = ecm_check_query(1, &n,
									"SELECT setting FROM pg_file_settings WHERE name = %s"
									" ORDER BY seqno DESC LIMIT 1",
									quote_literal_cstr(name));

	return n > 0 ? v[0] : NULL;
}

/* The remedy for a server setting that is too low. */
static char *
raise_setting(const char *name, int value)
{
	char	   *file = configured(name);

	if (file != NULL && atoi(file) >= value)
		return pstrdup(ONLY_RESTART);
	return psprintf("ALTER SYSTEM SET %s = %d;" THEN_RESTART, name, value);
}

/* ------------------------------------------------------------ situation -- */

/*
 * The slot that the stack uses, or would use.
 */
static const char *
find_slot_name(const EcmSituation *s)
{
	const char *setting = ecm_check_setting(s, "slot_name");
	EcmRemembered remembered = {0};
	char	  **v;
	int			n;

	if (setting[0] != '\0')
		return setting;
	if (s->has_stack && s->stack->slot_name[0] != '\0')
		return s->stack->slot_name;
	v = ecm_check_query(1, &n, "SELECT slot_name FROM _electric_cm.stack");
	if (n > 0 && v[0] != NULL)
	{
		remembered.owns_slot = true;
		namestrcpy(&remembered.slot_name, v[0]);
	}
	return ecm_timeline_default_slot_name(&remembered, s->datname);
}

char *
ecm_check_schema(void)
{
	int			n;
	char	  **v = ecm_check_query(1, &n,
									"SELECT quote_ident(n.nspname) FROM pg_extension e"
									" JOIN pg_namespace n ON n.oid = e.extnamespace"
									" WHERE e.extname = 'electric_cm'");

	return n > 0 ? v[0] : "public";
}

static EcmSituation *
assess_situation(void)
{
	EcmSituation *s = palloc0(sizeof(EcmSituation));

	s->datname = get_database_name(MyDatabaseId);
	s->schema = ecm_check_schema();
	read_settings(s);
	s->publication_name = ecm_check_setting(s, "publication_name");

	s->stack = palloc0(sizeof(EcmStack));
	s->preloaded = ecm_shared != NULL;
	if (s->preloaded)
	{
		s->has_stack = ecm_own_stack(s->stack) >= 0;
		s->runs = s->has_stack && s->stack->pid != 0 &&
			s->stack->probe == ECM_PROBE_RUN && !s->stack->stop_requested;
	}
	s->slot_name = find_slot_name(s);
	return s;
}

static char *
start_command(const EcmSituation *s)
{
	return psprintf("SELECT %s.electric_cm_start()", s->schema);
}

/* ----------------------------------------------------------- the server -- */

/* Appends the library to a list of them; NULL if it is there already. */
static char *
with_our_library(const char *libraries)
{
	StringInfoData buf;
	List	   *names = NIL;
	ListCell   *lc;

	initStringInfo(&buf);
	if (SplitDirectoriesString(pstrdup(libraries), ',', &names))
		foreach(lc, names)
		{
			const char *name = lfirst(lc);
			const char *base = last_dir_separator(name);

			base = base != NULL ? base + 1 : name;
			if (strcmp(base, ECM_LIBRARY_NAME) == 0 ||
				strcmp(base, ECM_LIBRARY_NAME ".so") == 0)
				return NULL;
			appendStringInfo(&buf, "%s, ", quote_literal_cstr(name));
		}
	appendStringInfoString(&buf, quote_literal_cstr(ECM_LIBRARY_NAME));
	return buf.data;
}

static void
check_preload(const EcmSituation *s, EcmFinding *f)
{
	char	   *libraries;
	char	   *fix;

	if (s->preloaded)
	{
		ecm_check_pass(f, "electric_cm is in shared_preload_libraries");
		return;
	}
	libraries = configured("shared_preload_libraries");
	libraries = with_our_library(libraries ? libraries : "");
	if (libraries == NULL)
		fix = pstrdup(ONLY_RESTART);
	else
		fix = psprintf("ALTER SYSTEM SET shared_preload_libraries = %s;" THEN_RESTART,
					   libraries);
	ecm_check_fail(f, fix, "electric_cm is not loaded via shared_preload_libraries: nothing runs");
}

static void
check_version(const EcmSituation *s pg_attribute_unused(), EcmFinding *f)
{
	const char *server = GetConfigOption("server_version", false, false);
	char	  **v;
	int			n;

	v = ecm_check_query(2, &n,
						"SELECT e.extversion, a.default_version FROM pg_extension e"
						" JOIN pg_available_extensions a ON a.name = e.extname"
						" WHERE e.extname = 'electric_cm'");
	if (PG_VERSION_NUM < 150000)
		ecm_check_fail(f, NULL, "PostgreSQL %s is older than 15", server);
	else if (n > 0 && v[0] && v[1] && strcmp(v[0], v[1]) != 0)
		ecm_check_warn(f, pstrdup("ALTER EXTENSION electric_cm UPDATE"),
					   "the extension's version here is %s, the installed one is %s",
					   v[0], v[1]);
	else
		ecm_check_pass(f, "PostgreSQL %s, electric_cm %s", server,
					   n > 0 && v[0] ? v[0] : "of unknown version");
}

static void
check_recovery(const EcmSituation *s pg_attribute_unused(), EcmFinding *f)
{
	if (RecoveryInProgress())
		ecm_check_warn(f, NULL, "this server is a standby: its stacks start when it is promoted");
	else
		ecm_check_pass(f, "this server is not a standby");
}

static void
check_wal_level(const EcmSituation *s pg_attribute_unused(), EcmFinding *f)
{
	const char *level = GetConfigOption("wal_level", false, false);
	char	   *file;
	char	   *fix;

	if (wal_level >= WAL_LEVEL_LOGICAL)
	{
		ecm_check_pass(f, "wal_level is %s", level);
		return;
	}
	file = configured("wal_level");
	if (file != NULL && strcmp(file, "logical") == 0)
		fix = pstrdup(ONLY_RESTART);
	else
		fix = pstrdup("ALTER SYSTEM SET wal_level = logical;" THEN_RESTART);
	ecm_check_fail(f, fix, "wal_level is %s, and logical decoding needs logical", level);
}

/* -------------------------------------------------------------- budgets -- */

/*
 * What the stacks of this server take.  This database's counts in any case,
 * others unless they are stopped.  "have" is what is in use by them now.
 */
typedef struct Demand
{
	int			stacks;
	int			slots_have;
	int			senders_have;
	int			workers;
	int			sessions;
	int			sessions_have;
	bool		own_slot;		/* this database's stack has it already */
	bool		own_sender;
	bool		own_workers;
	bool		own_session;
} Demand;

static int
published_option(const EcmStack *stack, const char *name, int otherwise)
{
	for (int i = 0; i < Min(stack->noptions, ECM_MAX_OPTIONS); i++)
		if (strcmp(stack->options[i].name, name) == 0)
			return Max(atoi(stack->options[i].setting), 1);
	return otherwise;
}

static bool
consumers_run(const EcmStack *stack, int wanted)
{
	int			n = 0;

	for (int i = 0; i < ECM_MAX_SHAPE_WORKERS; i++)
		if (stack->consumers[i].used && stack->consumers[i].pid != 0)
			n++;
	return n >= wanted;
}

/* The entry's slot by its published or default name. */
static const char *
stack_slot_name(const EcmStack *stack)
{
	return stack->slot_name[0] != '\0' ? stack->slot_name :
		ecm_default_slot_name(stack->datname);
}

static void
add_demand(Demand *d, const EcmStack *stack, const char *slot_name,
		   int workers, int sessions, bool own)
{
	EcmSlotFacts facts;
	bool		slot = ecm_slot_lookup(slot_name, &facts);
	bool		sender = stack->pid != 0 && stack->conns[0].backend_pid != 0;
	int			sessions_have = 0;

	for (int i = 1; i < (int) lengthof(stack->conns); i++)
		if (stack->pid != 0 && stack->conns[i].used &&
			stack->conns[i].backend_pid != 0)
			sessions_have++;

	d->stacks++;
	d->slots_have += slot;
	d->senders_have += sender;
	d->workers += 1 + workers;
	d->sessions += sessions;
	d->sessions_have += sessions_have;
	if (own)
	{
		d->own_slot = slot;
		d->own_sender = sender;
		d->own_workers = stack->pid != 0 && consumers_run(stack, workers);
		d->own_session = sessions_have > 0 || stack->status == ECM_STATUS_ACTIVE;
	}
}

static Demand
stacks_demand(const EcmSituation *s)
{
	Demand		d = {0};
	EcmStack   *stack = palloc(sizeof(EcmStack));

	add_demand(&d, s->stack, s->slot_name, int_setting(s, "shape_workers"),
			   int_setting(s, "pool_size"), true);
	for (int i = 0; s->preloaded && i < ecm_shared->nstacks; i++)
		if (ecm_stack_copy(i, stack) && stack->registered &&
			stack->dboid != MyDatabaseId &&
			stack->status != ECM_STATUS_STOPPED)
			add_demand(&d, stack, stack_slot_name(stack),
					   published_option(stack, "electric_cm.shape_workers", 1),
					   published_option(stack, "electric_cm.pool_size", 1),
					   false);
	pfree(stack);
	return d;
}

/*
 * One limit of the server.  What others use now, and what all stacks need;
 * it is a failure if this database's stack is among those that lack something.
 */
static void
judge_budget(EcmFinding *f, const char *name, int limit, int others, int needed,
			 bool own_met, const char *what)
{
	int			total = Max(others, 0) + needed;

	if (total <= limit)
		ecm_check_pass(f, "%s is %d: others use %d %s now, the stacks need %d",
					   name, limit, others, what, needed);
	else if (own_met)
		ecm_check_warn(f, raise_setting(name, total + HEADROOM),
					   "%s is %d: others use %d %s now, all stacks together need %d",
					   name, limit, others, what, needed);
	else
		ecm_check_fail(f, raise_setting(name, total + HEADROOM),
					   "%s is %d: others use %d %s now, the stacks need %d",
					   name, limit, others, what, needed);
}

static int
count_processes(const char *condition)
{
	int			n;
	char	  **v = ecm_check_query(1, &n,
									"SELECT count(*) FROM pg_stat_activity WHERE %s",
									condition);

	return atoi(v[0]);
}

static void
check_replication_slots(const EcmSituation *s, EcmFinding *f)
{
	Demand		d = stacks_demand(s);
	int			used = 0;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
		used += ReplicationSlotCtl->replication_slots[i].in_use;
	LWLockRelease(ReplicationSlotControlLock);
	judge_budget(f, "max_replication_slots", max_replication_slots,
				 used - d.slots_have, d.stacks, d.own_slot, "slots");
}

static void
check_wal_senders(const EcmSituation *s, EcmFinding *f)
{
	Demand		d = stacks_demand(s);

	judge_budget(f, "max_wal_senders", max_wal_senders,
				 count_processes("backend_type = 'walsender'") - d.senders_have,
				 d.stacks, d.own_sender, "walsenders");
}

/*
 * Parallel workers come and go, and do without if there are none.
 */
static void
check_worker_processes(const EcmSituation *s, EcmFinding *f)
{
	Demand		d = stacks_demand(s);
	int			others =
		count_processes("backend_type NOT LIKE 'electric\\_cm %'"
						" AND backend_type NOT IN ('archiver', 'autovacuum launcher',"
						" 'autovacuum worker', 'background writer', 'checkpointer',"
						" 'client backend', 'io worker', 'logger', 'parallel worker',"
						" 'slotsync worker', 'standalone backend', 'startup',"
						" 'walreceiver', 'walsender', 'walsummarizer', 'walwriter')");

	judge_budget(f, "max_worker_processes", max_worker_processes, others,
				 1 + d.workers, d.own_workers,
				 "background workers (without parallel ones)");
}

/*
 * The pool makes do with what it gets, but it must get something.
 */
static void
check_connections(const EcmSituation *s, EcmFinding *f)
{
	Demand		d = stacks_demand(s);
	int			others = count_processes("backend_type = 'client backend'") -
		d.sessions_have;

	judge_budget(f, "max_connections", MaxConnections, others, d.sessions,
				 d.own_session || others < MaxConnections, "sessions");
}

static void
check_stacks(const EcmSituation *s, EcmFinding *f)
{
	int			taken = 0;

	if (!s->preloaded)
	{
		ecm_check_pass(f, "no database has a stack");
		return;
	}
	ecm_lock(LW_SHARED);
	for (int i = 0; i < ecm_shared->nstacks; i++)
		taken += ecm_shared->stacks[i].in_use && ecm_shared->stacks[i].registered;
	ecm_unlock();

	if (taken >= ecm_shared->nstacks && !s->has_stack)
		ecm_check_fail(f, raise_setting("electric_cm.max_managers", taken + HEADROOM),
					   "all %d stacks that electric_cm.max_managers allows are taken by other databases",
					   taken);
	else
		ecm_check_pass(f, "%d of the %d stacks that electric_cm.max_managers allows are taken",
					   taken, ecm_shared->nstacks);
}

/* --------------------------------------------------------- this database -- */

static void
check_enabled(const EcmSituation *s, EcmFinding *f)
{
	if (bool_setting(s, "enabled", true))
		ecm_check_pass(f, "electric_cm.enabled is on");
	else
		ecm_check_fail(f, ecm_check_set(s, "enabled", "on"),
					   "electric_cm.enabled is off: the stack of this database does not run");
}

static void
check_databases(const EcmSituation *s, EcmFinding *f)
{
	const char *database = quote_identifier(s->datname);
	char	  **v;
	int			n;

	v = ecm_check_query(2, &n,
						"SELECT datistemplate, datallowconn FROM pg_database"
						" WHERE datname = current_database()");
	if (n > 0 && v[0][0] == 't')
		ecm_check_fail(f, psprintf("ALTER DATABASE %s IS_TEMPLATE false", database),
					   "this is a template database, which has no stack");
	else if (n > 0 && v[1][0] == 'f')
		ecm_check_fail(f, psprintf("ALTER DATABASE %s ALLOW_CONNECTIONS true", database),
					   "this database does not allow connections");
	else if (!ecm_database_is_listed(s->datname))
	{
		char	   *list = psprintf("%s%s%s", ecm_databases,
									ecm_databases[strspn(ecm_databases, " ")] ? ", " : "",
									database);

		ecm_check_fail(f, psprintf("ALTER SYSTEM SET electric_cm.databases = %s;" THEN_RELOAD,
								   quote_literal_cstr(list)),
					   "this database is not listed in electric_cm.databases");
	}
	else
		ecm_check_pass(f, "electric_cm.databases is %s", ecm_databases);
}

static void
check_stopped(const EcmSituation *s, EcmFinding *f)
{
	int			n;
	char	  **v = ecm_check_query(1, &n, "SELECT stopped FROM _electric_cm.stack");

	if (n == 0)
		ecm_check_fail(f, NULL, "table _electric_cm.stack has no row: drop the extension and create it again");
	else if (!s->runs && (v[0][0] == 't' || s->stack->stop_requested))
		ecm_check_fail(f, start_command(s), "the stack was stopped by electric_cm_stop()");
	else
		ecm_check_pass(f, "the stack was not stopped by electric_cm_stop()");
}

static void
check_copied(const EcmSituation *s, EcmFinding *f)
{
	int			n;
	char	  **v = ecm_check_query(1, &n, "SELECT database_oid FROM _electric_cm.stack");

	if (n > 0 && !s->runs && strtoul(v[0], NULL, 10) != MyDatabaseId)
		ecm_check_fail(f, start_command(s),
					   "this database is a copy of another one: it has a stack of its own only when told so");
	else
		ecm_check_pass(f, "this database is not a copy of another one");
}

/* -------------------------------------------------------- lock and slots -- */

static void
check_lock(const EcmSituation *s, EcmFinding *f)
{
	char	  **v;
	int			n;

	v = ecm_check_query(3, &n,
						"SELECT l.pid, a.application_name, p.gid"
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
						s->stack->pid);
	if (n == 0)
		ecm_check_pass(f, s->stack->lock_acquired ?
					   "the stack holds its exclusive lock" :
					   "nobody holds the exclusive lock");
	else if (v[0] != NULL)
		ecm_check_fail(f, psprintf("SELECT pg_terminate_backend(%s)", v[0]),
					   "the exclusive lock is held by PID %s (application \"%s\")",
					   v[0], v[1] ? v[1] : "");
	else
		ecm_check_fail(f, v[2] ? psprintf("ROLLBACK PREPARED %s", quote_literal_cstr(v[2])) : NULL,
					   "the exclusive lock is held by a prepared transaction");
}

/* A name with a number that nobody has; what says whether it is taken. */
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

static char *
drop_slot_command(const char *slot_name)
{
	return psprintf("SELECT pg_drop_replication_slot(%s)",
					quote_literal_cstr(slot_name));
}

static void
judge_active_slot(const EcmSituation *s, EcmFinding *f, int pid)
{
	int			n;
	char	  **v = ecm_check_query(1, &n,
									"SELECT application_name FROM pg_stat_activity"
									" WHERE pid = %d", pid);
	const char *application = n > 0 && v[0] ? v[0] : "";

	/* the second: a walsender that comes or goes */
	if (s->stack->pid != 0 &&
		(pid == s->stack->conns[0].backend_pid ||
		 strcmp(application, "electric_cm replication") == 0))
		ecm_check_pass(f, "replication slot \"%s\" is active for the stack",
					   s->slot_name);
	else
		ecm_check_fail(f, psprintf("SELECT pg_terminate_backend(%d); -- or set electric_cm.slot_name to another name", pid),
					   "replication slot \"%s\" is active for PID %d (application \"%s\")",
					   s->slot_name, pid, application);
}

/* As look_at_slot() in replication.c decides it. */
static void
check_slot(const EcmSituation *s, EcmFinding *f)
{
	EcmSlotFacts facts;

	if (!ecm_slot_lookup(s->slot_name, &facts))
		ecm_check_pass(f, "replication slot \"%s\" is created when the stack starts",
					   s->slot_name);
	else if (!facts.logical || facts.database != MyDatabaseId ||
			 strcmp(facts.plugin, "pgoutput") != 0)
		ecm_check_fail(f, ecm_check_set(s, "slot_name",
										free_name(ecm_default_slot_name(s->datname),
												  "pg_replication_slots", "slot_name")),
					   "replication slot \"%s\" belongs to another database or plugin",
					   s->slot_name);
	else if (facts.invalidated)
		ecm_check_warn(f, facts.active_pid == 0 ? drop_slot_command(s->slot_name) : NULL,
					   "replication slot \"%s\" has been invalidated: the stack makes a new one, and all shapes are thrown away",
					   s->slot_name);
	else if (facts.active_pid != 0)
		judge_active_slot(s, f, facts.active_pid);
	else if (!s->runs)
		ecm_check_warn(f, drop_slot_command(s->slot_name),
					   "replication slot \"%s\" holds back WAL while the stack does not run",
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
	for (int i = 0; s->preloaded && i < ecm_shared->nstacks; i++)
		if (ecm_stack_copy(i, stack) && stack->registered &&
			stack->dboid != MyDatabaseId)
			appendStringInfo(&list, ", %s", quote_literal_cstr(stack_slot_name(stack)));
	pfree(stack);
	return list.data;
}

/*
 * Slots that look like ours or Electric's: left behind by a former name, by an
 * extension that was dropped while the library was not loaded, by an Electric
 * service that has been taken down.
 */
static void
check_other_slots(const EcmSituation *s, EcmFinding *f)
{
	char	  **v;
	int			n;
	StringInfoData names;
	StringInfoData fix;

	v = ecm_check_query(3, &n,
						"SELECT slot_name, active, coalesce(pg_size_pretty(pg_wal_lsn_diff("
						" CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
						" ELSE pg_current_wal_lsn() END, restart_lsn)), 'no')"
						" FROM pg_replication_slots"
						" WHERE slot_type = 'logical' AND NOT temporary"
						" AND slot_name NOT IN (%s)"
						" AND (slot_name LIKE 'electric\\_%%' OR slot_name ="
						" (SELECT slot_name FROM _electric_cm.stack WHERE database_oid = %u))"
						" ORDER BY active, slot_name", known_slots(s), MyDatabaseId);
	if (n == 0)
	{
		ecm_check_pass(f, "there is no other slot of ours or of an Electric service");
		return;
	}

	initStringInfo(&names);
	initStringInfo(&fix);
	for (int i = 0; i < n; i++)
	{
		bool		active = v[3 * i + 1][0] == 't';

		appendStringInfo(&names, "%s\"%s\" (%s, %s of WAL)", i > 0 ? ", " : "",
						 v[3 * i], active ? "active" : "inactive", v[3 * i + 2]);
		if (!active)
			appendStringInfo(&fix, "%spg_drop_replication_slot(%s)",
							 fix.len > 0 ? ", " : "SELECT ",
							 quote_literal_cstr(v[3 * i]));
	}
	if (fix.len > 0)
		ecm_check_warn(f, fix.data, "slots that nobody may be looking after hold back WAL: %s",
					   names.data);
	else
		ecm_check_pass(f, "in use beside the stack's: %s", names.data);
}

/*
 * Half of the free space is the slot's to hold back, in whole gigabytes where
 * there are any; but not less than the server keeps anyway.
 */
static char *
suggest_keep_size(void)
{
	struct statvfs fs;
	int64		mb = 10 * 1024;

	if (statvfs(XLOGDIR, &fs) == 0)
		mb = (int64) fs.f_bavail * (int64) fs.f_frsize / (1024 * 1024) / 2;
	mb = Min(mb, MAX_KILOBYTES / 1024);
	mb = Max(mb, Max(max_wal_size_mb, TINY_KEEP_SIZE_MB));
	mb = Max(mb, 4 * (wal_segment_size / (1024 * 1024)));
	if (mb >= 1024 && mb / 1024 * 1024 >= max_wal_size_mb)
		return psprintf("ALTER SYSTEM SET max_slot_wal_keep_size = '%dGB';" THEN_RELOAD,
						(int) (mb / 1024));
	return psprintf("ALTER SYSTEM SET max_slot_wal_keep_size = '%dMB';" THEN_RELOAD,
					(int) mb);
}

static void
check_slot_wal_limit(const EcmSituation *s pg_attribute_unused(), EcmFinding *f)
{
	int			limit = max_slot_wal_keep_size_mb;
	int			kept = Max(limit, wal_keep_size_mb);

	if (limit < 0)
		ecm_check_warn(f, suggest_keep_size(),
					   "max_slot_wal_keep_size is unlimited: a slot that is stuck can fill the disk");
	else if (kept < Max(TINY_KEEP_SIZE_MB, 4 * (wal_segment_size / (1024 * 1024))))
		ecm_check_fail(f, suggest_keep_size(),
					   "max_slot_wal_keep_size is %d MB: the slot, and all shapes with it, can be lost at any checkpoint",
					   limit);
	else if (kept < max_wal_size_mb)
		ecm_check_warn(f, suggest_keep_size(),
					   "max_slot_wal_keep_size is %d MB, less than max_wal_size: a busy hour may cost the slot, and all shapes with it",
					   limit);
	else
		ecm_check_pass(f, "max_slot_wal_keep_size is %d MB", limit);
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

/* As poll_publication() in replication.c decides it. */
static void
check_publication(const EcmSituation *s, EcmFinding *f)
{
	const char *name = s->publication_name;
	char	  **v;
	int			n;

	v = ecm_check_query(4, &n,
						"SELECT p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate,"
						" EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid"
						"  AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)), p.puballtables, p.pubviaroot"
						" FROM pg_publication p WHERE p.pubname = %s",
						quote_literal_cstr(name));
	if (n == 0 && bool_setting(s, "create_publication", true))
		ecm_check_pass(f, "publication \"%s\" is created when the stack starts", name);
	else if (n == 0)
		ecm_check_fail(f, psprintf("CREATE PUBLICATION %s", quote_identifier(name)),
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
	else if (v[2][0] == 't')
		ecm_check_warn(f, ecm_check_set(s, "publication_name",
										free_name("electric_cm_publication",
												  "pg_publication", "pubname")),
					   "publication \"%s\" is FOR ALL TABLES: every change in this database is sent, the stack's own small tables included",
					   name);
	else
		ecm_check_pass(f, "publication \"%s\" publishes all changes of its tables", name);
}

/*
 * Subscribers of a publication FOR ALL TABLES get the small tables in schema
 * _electric_cm, which they don't have.
 */
static void
check_other_publications(const EcmSituation *s, EcmFinding *f)
{
	char	  **v;
	int			n;

	v = ecm_check_query(2, &n,
						"SELECT string_agg(format('\"%%s\"', p.pubname), ', ' ORDER BY p.pubname),"
						" string_agg(format('DROP PUBLICATION %%1$I; CREATE PUBLICATION %%1$I %%2$s"
						"WITH (publish = %%3$L, publish_via_partition_root = %%4$s)', p.pubname,"
						" (SELECT 'FOR TABLES IN SCHEMA ' || string_agg(quote_ident(n.nspname), ', ' ORDER BY n.nspname) || ' '"
						"  FROM pg_namespace n WHERE n.nspname !~ '^pg_'"
						"  AND n.nspname NOT IN ('information_schema', '_electric_cm')),"
						" concat_ws(', ', CASE WHEN p.pubinsert THEN 'insert' END,"
						"  CASE WHEN p.pubupdate THEN 'update' END, CASE WHEN p.pubdelete THEN 'delete' END,"
						"  CASE WHEN p.pubtruncate THEN 'truncate' END),"
						" p.pubviaroot::text), '; ' ORDER BY p.pubname)"
						" FROM pg_publication p WHERE p.puballtables AND p.pubname <> %s",
						quote_literal_cstr(s->publication_name));
	if (v[0] != NULL)
		ecm_check_warn(f, v[1], "publications FOR ALL TABLES: %s; their subscribers get the tables of schema _electric_cm, too",
					   v[0]);
	else
		ecm_check_pass(f, "no other publication is FOR ALL TABLES");
}

/* --------------------------------------------------------- transactions -- */

/*
 * Creating a slot waits for every transaction that writes, in any database.
 */
static void
check_old_transactions(const EcmSituation *s, EcmFinding *f)
{
	EcmSlotFacts facts;
	char	  **v;
	int			n;

	if (ecm_slot_lookup(s->slot_name, &facts) || RecoveryInProgress())
	{
		ecm_check_pass(f, "no slot has to be created");
		return;
	}
	v = ecm_check_query(4, &n,
						"SELECT pid, name, datname, date_trunc('second', clock_timestamp() - since)"
						" FROM (SELECT pid, application_name, datname, backend_xid, xact_start"
						"  FROM pg_stat_activity WHERE backend_xid IS NOT NULL"
						"  AND pid <> pg_backend_pid()"
						"  AND xact_start < clock_timestamp() - interval '" OLD_TRANSACTION "'"
						"  UNION ALL SELECT NULL, gid, database, transaction, prepared"
						"  FROM pg_prepared_xacts) AS t(pid, name, datname, xid, since)"
						" ORDER BY age(xid) DESC");
	if (n == 0)
		ecm_check_pass(f, "no old transaction is in the way of creating the slot");
	else if (v[0] != NULL)
		ecm_check_warn(f, psprintf("SELECT pg_terminate_backend(%s); -- or have it commit", v[0]),
					   "creating the slot will wait for %d transactions; the oldest is that of PID %s (application \"%s\"), open for %s",
					   n, v[0], v[1] ? v[1] : "", v[3] ? v[3] : "an unknown time");
	else
		ecm_check_warn(f, psprintf("ROLLBACK PREPARED %s; -- or COMMIT PREPARED, in database %s",
								   quote_literal_cstr(v[1]), quote_identifier(v[2] ? v[2] : "")),
					   "creating the slot will wait for %d transactions; the oldest is the prepared transaction %s, open for %s",
					   n, quote_literal_cstr(v[1]), v[3] ? v[3] : "an unknown time");
}

static void
check_synchronous_standbys(const EcmSituation *s pg_attribute_unused(), EcmFinding *f)
{
	const char *names = GetConfigOption("synchronous_standby_names", false, false);

	if (names == NULL || names[0] == '\0')
		ecm_check_pass(f, "no synchronous standby is configured");
	else
		ecm_check_pass(f, "synchronous_standby_names is set: the stack does not wait for standbys (synchronous_commit = local)");
}

/* ------------------------------------------------------------ the stack -- */

/* What none of the others has foreseen. */
static void
check_stack(const EcmSituation *s, EcmFinding *f)
{
	const EcmStack *stack = s->stack;
	const char *status = ecm_status_name(s->has_stack ? stack->status : ECM_STATUS_STOPPED);

	if (!s->preloaded)
		ecm_check_warn(f, NULL, "nothing runs: the library is not loaded");
	else if (s->has_stack && stack->status == ECM_STATUS_FAILED)
		ecm_check_fail(f, start_command(s), "the stack has failed: %s%s%s",
					   stack->last_error, stack->last_error_hint[0] ? "; " : "",
					   stack->last_error_hint);
	else if (s->has_stack && stack->status == ECM_STATUS_ACTIVE)
		ecm_check_pass(f, "the stack is active");
	else
		ecm_check_warn(f, NULL, "the stack is %s%s%s%s%s", status,
					   stack->waiting_for[0] ? ": " : "", stack->waiting_for,
					   stack->last_error[0] ? "; the last error was: " : "",
					   stack->last_error);
}

/* ------------------------------------------------------------ the table -- */

static const struct
{
	const char *name;			/* stable: scripts look for it */
	EcmCheckFunction check;
}			checks[] =
{
	{"preload", check_preload},
	{"version", check_version},
	{"recovery", check_recovery},
	{"wal_level", check_wal_level},
	{"replication_slots", check_replication_slots},
	{"wal_senders", check_wal_senders},
	{"worker_processes", check_worker_processes},
	{"connections", check_connections},
	{"stacks", check_stacks},
	{"enabled", check_enabled},
	{"databases", check_databases},
	{"stopped", check_stopped},
	{"copied", check_copied},
	{"connection", ecm_check_connection},
	{"role", ecm_check_role},
	{"pg_hba", ecm_check_pg_hba},
	{"lock", check_lock},
	{"slot", check_slot},
	{"other_slots", check_other_slots},
	{"slot_wal_limit", check_slot_wal_limit},
	{"publication", check_publication},
	{"other_publications", check_other_publications},
	{"old_transactions", check_old_transactions},
	{"synchronous_standbys", check_synchronous_standbys},
	{"stack", check_stack}
};

char *
ecm_check_guarded(void (*fn) (void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		fn(arg);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		error = edata->message ? edata->message : "unknown error";
	}
	PG_END_TRY();
	return error;
}

typedef struct RunningCheck
{
	EcmCheckFunction check;
	const EcmSituation *situation;
	EcmFinding *finding;
} RunningCheck;

static void
call_check(void *arg)
{
	RunningCheck *running = arg;

	running->check(running->situation, running->finding);
}

static void
run_check(EcmCheckFunction check, const EcmSituation *s, EcmFinding *f)
{
	RunningCheck running = {check, s, f};
	char	   *error = ecm_check_guarded(call_check, &running);

	if (error != NULL)
		ecm_check_warn(f, NULL, "could not be checked: %s", error);
}

static const char *
verdict_name(EcmVerdict verdict)
{
	switch (verdict)
	{
		case ECM_VERDICT_PASS:
			return "PASS";
		case ECM_VERDICT_WARN:
			return "WARN";
		case ECM_VERDICT_FAIL:
			return "FAIL";
	}
	return NULL;
}

/*
 * electric_cm_check() -> setof (name text, verdict text, detail text, fix text)
 *
 * One row per prerequisite of this database's stack: PASS, WARN or FAIL, what
 * was found, and the command that mends it (NULL if there is nothing to mend,
 * or no command for it).  Raises no error for what it finds; changes nothing.
 */
Datum
electric_cm_check(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EcmSituation *s;

	InitMaterializedSRF(fcinfo, 0);

	/* a second call in the same transaction is to see what has changed */
	pgstat_clear_backend_activity_snapshot();

	s = assess_situation();
	for (int i = 0; i < (int) lengthof(checks); i++)
	{
		EcmFinding	f = {ECM_VERDICT_WARN, NULL, NULL};
		Datum		values[4];
		bool		nulls[4] = {false, false, false, false};

		run_check(checks[i].check, s, &f);
		values[0] = CStringGetTextDatum(checks[i].name);
		values[1] = CStringGetTextDatum(verdict_name(f.verdict));
		values[2] = CStringGetTextDatum(f.detail ? f.detail : "");
		nulls[3] = f.fix == NULL;
		values[3] = nulls[3] ? (Datum) 0 : CStringGetTextDatum(f.fix);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
