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
 * or replication_setup.c has a hint, the fix here is its command.  A fix is one
 * statement; what remains to be done after it follows as a comment.
 *
 * People run a fix as it is, all of them at once perhaps.  So none ends
 * anybody's transaction, drops a slot or publication, or has a stack that works compare
 * all shapes with their tables: where only such a thing helps, the detail says so, and
 * the fix is NULL.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"
#include "utils/varlena.h"

#include "base/compat.h"
#include "base/settings.h"
#include "base/spi.h"
#include "base/stack_catalog.h"
#include "base/text.h"
#include "functions/check.h"
#include "slot/slot.h"
#include "slot/slot_name.h"

PG_FUNCTION_INFO_V1(electric_cm_check);

/* A transaction that is younger is likely to end by itself. */
#define OLD_TRANSACTION		"5 s"

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
	/* a check without an answer is better than one that waits for a lock */
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
 * Reads our settings as a manager that started now would have them.  The session's own
 * values may be older, or SET by the user.  A manager runs as bootstrap superuser (role
 * 10), so what ALTER ROLE has set for that one counts, too.
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
									"  WHERE starts_with(name, 'electric_cm.') ORDER BY name, seqno DESC) f"
									"  ON f.name = s.name"
									" WHERE starts_with(s.name, 'electric_cm.')", MyDatabaseId);

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

bool
ecm_check_bool(const EcmSituation *s, const char *name, bool otherwise)
{
	bool		value;

	return parse_bool(ecm_check_setting(s, name), &value) ? value : otherwise;
}

int
ecm_check_int(const EcmSituation *s, const char *name)
{
	return Max(atoi(ecm_check_setting(s, name)), 1);
}

/* The value that the configuration files have now, or NULL. */
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

char *
ecm_check_raise(const char *name, int value)
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
	EcmStackRow remembered = {0};
	char	  **v;
	int			n;

	if (setting[0] != '\0')
		return setting;
	if (s->has_stack && s->stack->slot.name[0] != '\0')
		return s->stack->slot.name;
	v = ecm_check_query(1, &n, "SELECT slot_name FROM _electric_cm.stack");
	if (n > 0 && v[0] != NULL)
	{
		remembered.owns_slot = true;
		namestrcpy(&remembered.slot_name, v[0]);
	}
	return ecm_default_slot_name_of_stack(&remembered, s->datname);
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

const char *
ecm_check_slot_name(const EcmStack *stack)
{
	return stack->slot.name[0] != '\0' ? stack->slot.name :
		ecm_default_slot_name(stack->datname);
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
		s->runs = s->has_stack && s->stack->manager.pid != 0 &&
			s->stack->manager.probe == ECM_PROBE_RUN && !s->stack->requests.stop;
	}
	s->slot_name = find_slot_name(s);
	return s;
}

bool
ecm_check_has_shapes(void)
{
	int			n;

	(void) ecm_check_query(1, &n, "SELECT 1 FROM _electric_cm.shape LIMIT 1");
	return n > 0;
}

char *
ecm_check_start(const EcmSituation *s)
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
	ecm_check_fail(f, fix, "electric_cm is not loaded via shared_preload_libraries: nothing runs, and after DDL in this database all shapes have to be compared with their tables");
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

	if (wal_level >= ECM_LEAST_WAL_LEVEL)
	{
		const char *effective = GetConfigOptionByName("effective_wal_level", NULL, true);

		if (effective != NULL)
			ecm_check_pass(f, "wal_level is %s, effective_wal_level is %s", level, effective);
		else
			ecm_check_pass(f, "wal_level is %s", level);
		return;
	}
	file = configured("wal_level");
	if (file != NULL && (strcmp(file, "logical") == 0 ||
						 strcmp(file, ECM_LEAST_WAL_LEVEL_NAME) == 0))
		fix = pstrdup(ONLY_RESTART);
	else
		fix = pstrdup("ALTER SYSTEM SET wal_level = " ECM_LEAST_WAL_LEVEL_NAME ";" THEN_RESTART);
	ecm_check_fail(f, fix, "wal_level is %s, and logical decoding needs " ECM_LEAST_WAL_LEVEL_NAME, level);
}

/* --------------------------------------------------------- this database -- */

static void
check_enabled(const EcmSituation *s, EcmFinding *f)
{
	if (ecm_check_bool(s, "enabled", true))
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
	char	  **v = ecm_check_query(1, &n, "SELECT CASE WHEN stopped_for_upgrade THEN 'electric_cm_prepare_upgrade(), for pg_upgrade'"
									" WHEN stopped THEN 'electric_cm_stop()' END FROM _electric_cm.stack");
	const char *by = n > 0 && v[0] != NULL ? v[0] : "electric_cm_stop()";

	if (n == 0)
		ecm_check_fail(f, NULL, "table _electric_cm.stack has lost its row: only DROP EXTENSION and CREATE EXTENSION make a new one, and with them all shapes are gone");
	else if (!s->runs && (v[0] != NULL || s->stack->requests.stop))
		ecm_check_fail(f, ecm_check_start(s), "the stack was stopped by %s", by);
	else
		ecm_check_pass(f, "the stack was not stopped by electric_cm_stop()");
}

static void
check_copied(const EcmSituation *s, EcmFinding *f)
{
	int			n;
	char	  **v = ecm_check_query(1, &n, "SELECT database_oid FROM _electric_cm.stack");

	if (n == 0 || s->runs || strtoul(v[0], NULL, 10) == MyDatabaseId)
		ecm_check_pass(f, "this database is not a copy of another one");
	else if (ecm_check_has_shapes())
		ecm_check_fail(f, ecm_check_start(s),
					   "this database is a copy of another one: electric_cm_start() gives it a stack of its own, which compares the shapes that were copied with their tables");
	else
		ecm_check_fail(f, ecm_check_start(s),
					   "this database is a copy of another one: it has a stack of its own only when told so");
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
		ecm_check_warn(f, NULL,
					   "creating the slot will wait for %d transactions; the oldest is that of PID %s (application \"%s\"), open for %s: have it commit, or end it with pg_terminate_backend() if its work may be lost",
					   n, v[0], v[1] ? v[1] : "", v[3] ? v[3] : "an unknown time");
	else
		ecm_check_warn(f, NULL,
					   "creating the slot will wait for %d transactions; the oldest is the prepared transaction %s, open for %s: in database \"%s\", COMMIT PREPARED it, or ROLLBACK PREPARED if its work may be lost",
					   n, quote_literal_cstr(v[1]), v[3] ? v[3] : "an unknown time",
					   v[2] ? v[2] : "");
}

/*
 * Our walsender takes care never to be one; see walsender.c.  Without any other
 * standby that is named, commits wait for one, as they should.
 */
static void
check_synchronous_standbys(const EcmSituation *s, EcmFinding *f)
{
	const char *names = GetConfigOption("synchronous_standby_names", false, false);
	char	  **v;
	int			n;

	if (names == NULL || names[0] == '\0')
	{
		ecm_check_pass(f, "no synchronous standby is configured");
		return;
	}
	v = ecm_check_query(2, &n,
						"SELECT min(r.pid) FILTER (WHERE own),"
						" count(*) FILTER (WHERE r.sync_priority > 0 AND NOT own)"
						" FROM (SELECT pid, sync_priority, sync_priority > 0"
						"  AND (pid = %d OR application_name = 'electric_cm replication')"
						"  FROM pg_stat_replication) AS r(pid, sync_priority, own)",
						s->stack->conns[0].backend_pid);
	if (v[0] != NULL)
		ecm_check_fail(f, psprintf("SELECT pg_terminate_backend(%s); -- the stack connects anew", v[0]),
					   "the stack's walsender (PID %s) counts as a synchronous standby: every commit waits for it, and is on no other server",
					   v[0]);
	else if (strcmp(v[1], "0") == 0 && !RecoveryInProgress())
		ecm_check_warn(f, NULL,
					   "synchronous_standby_names is set, and no standby that it names is connected: commits of applications wait for one; the stack does not (synchronous_commit = local), and is never a standby itself");
	else
		ecm_check_pass(f, "synchronous_standby_names is set: the stack does not wait for standbys (synchronous_commit = local), and is never one itself");
}

/* ------------------------------------------------------------ the stack -- */

/* Does the stack itself say that something is wrong?  For all that no check foresees. */
static void
check_stack(const EcmSituation *s, EcmFinding *f)
{
	const EcmStack *stack = s->stack;
	const char *status = ecm_status_name(s->has_stack ? stack->report.status : ECM_STATUS_STOPPED);

	if (!s->preloaded)
		ecm_check_warn(f, NULL, "nothing runs: the library is not loaded");
	else if (s->has_stack && stack->report.status == ECM_STATUS_FAILED)
		ecm_check_fail(f, ecm_check_start(s), "the stack has failed: %s%s%s",
					   stack->report.last_error, stack->report.last_error_hint[0] ? "; " : "",
					   stack->report.last_error_hint);
	else if (s->has_stack && stack->report.status == ECM_STATUS_ACTIVE)
		ecm_check_pass(f, "the stack is active");
	else
		ecm_check_warn(f, NULL, "the stack is %s%s%s%s%s", status,
					   stack->report.waiting_for[0] ? ": " : "", stack->report.waiting_for,
					   stack->report.last_error[0] ? "; the last error was: " : "",
					   stack->report.last_error);
}

/* ------------------------------------------------------------ the table -- */

static const struct
{
	const char *name;			/* stable: scripts look for it */
	EcmCheckFunction check;
}			checks[] =
{
	{"preload", check_preload},
	{"version", ecm_check_version},
	{"recovery", check_recovery},
	{"wal_level", check_wal_level},
	{"replication_slots", ecm_check_replication_slots},
	{"output_plugin", ecm_check_output_plugin},
	{"wal_senders", ecm_check_wal_senders},
	{"worker_processes", ecm_check_worker_processes},
	{"connections", ecm_check_connections},
	{"stacks", ecm_check_stacks},
	{"enabled", check_enabled},
	{"databases", check_databases},
	{"stopped", check_stopped},
	{"copied", check_copied},
	{"connection", ecm_check_connection},
	{"role", ecm_check_role},
	{"pg_hba", ecm_check_pg_hba},
	{"lock", ecm_check_lock},
	{"slot", ecm_check_slot},
	{"other_slots", ecm_check_other_slots},
	{"slot_wal_limit", ecm_check_slot_wal_limit},
	{"idle_slot_timeout", ecm_check_idle_slot_timeout},
	{"publication", ecm_check_publication},
	{"other_publications", ecm_check_other_publications},
	{"old_transactions", check_old_transactions},
	{"synchronous_standbys", check_synchronous_standbys},
	{"failover", ecm_check_failover},
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

bool
ecm_check_room(char **detail, char **fix)
{
	static const EcmCheckFunction limits[] = {
		ecm_check_stacks,
		ecm_check_worker_processes,
		ecm_check_wal_senders,
		ecm_check_replication_slots
	};
	EcmSituation *s = assess_situation();

	for (int i = 0; i < (int) lengthof(limits); i++)
	{
		EcmFinding	f = {ECM_VERDICT_PASS, NULL, NULL};

		run_check(limits[i], s, &f);
		if (f.verdict == ECM_VERDICT_FAIL)
		{
			*detail = f.detail;
			*fix = f.fix;
			return false;
		}
	}
	return true;
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
		values[2] = CStringGetTextDatum(ecm_valid_text(f.detail ? f.detail : ""));
		nulls[3] = f.fix == NULL;
		values[3] = nulls[3] ? (Datum) 0 : CStringGetTextDatum(ecm_valid_text(f.fix));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
