/*-------------------------------------------------------------------------
 *
 * settings.c
 *	  The extension's settings (GUCs), and names derived from them.
 *
 * Every user can read pg_db_role_setting, so ALTER DATABASE ... SET
 * electric_cm.connection with a password in it would publish the password.  A
 * connection string with a secret is refused therefore. libpq's own parser is
 * not at hand (only connection/ knows libpq), so this file scans the string
 * itself.  The scan follows libpq's grammar closely enough to see every keyword
 * that libpq would see.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <limits.h>

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/varlena.h"

#include "base/compat.h"
#include "base/settings.h"

#define PREFIX	"electric_cm."

char	   *ecm_databases;
int			ecm_max_managers;
int			ecm_max_awaited_shapes;
bool		ecm_enabled;
char	   *ecm_stack_id;
char	   *ecm_connection;
char	   *ecm_pooled_connection;
char	   *ecm_slot_name;
char	   *ecm_publication_name;
bool		ecm_slot_temporary;
bool		ecm_failover;
bool		ecm_create_publication;
bool		ecm_manual_table_publishing;
bool		ecm_set_replica_identity;
int			ecm_pool_size;
int			ecm_pool_idle_timeout;
int			ecm_connect_timeout;
int			ecm_reconnect_initial_delay;
int			ecm_reconnect_max_delay;
int			ecm_status_check_interval;
int			ecm_consumer_stall_timeout;
int			ecm_shape_stall_timeout;
int			ecm_wal_report_interval;
int			ecm_retained_wal_warning;
int			ecm_retained_wal_limit;
int			ecm_min_wal_free_space;
int			ecm_retained_wal_history_size;
bool		ecm_break_abandoned_lock;
int			ecm_shape_workers;
int			ecm_max_shapes;
int			ecm_shape_log_retention;
int			ecm_reader_retention;
int			ecm_shape_expiry;
int			ecm_debug_piece_rows;

/* The settings in the order of the documentation. */
static const char *const setting_names[] = {
	PREFIX "databases",
	PREFIX "max_managers",
	PREFIX "max_awaited_shapes",
	PREFIX "enabled",
	PREFIX "stack_id",
	PREFIX "connection",
	PREFIX "pooled_connection",
	PREFIX "slot_name",
	PREFIX "publication_name",
	PREFIX "slot_temporary",
	PREFIX "failover",
	PREFIX "create_publication",
	PREFIX "manual_table_publishing",
	PREFIX "set_replica_identity",
	PREFIX "pool_size",
	PREFIX "pool_idle_timeout",
	PREFIX "connect_timeout",
	PREFIX "reconnect_initial_delay",
	PREFIX "reconnect_max_delay",
	PREFIX "status_check_interval",
	PREFIX "consumer_stall_timeout",
	PREFIX "shape_stall_timeout",
	PREFIX "wal_report_interval",
	PREFIX "retained_wal_warning",
	PREFIX "retained_wal_limit",
	PREFIX "min_wal_free_space",
	PREFIX "retained_wal_history_size",
	PREFIX "break_abandoned_lock",
	PREFIX "shape_workers",
	PREFIX "max_shapes",
	PREFIX "shape_log_retention",
	PREFIX "reader_retention",
	PREFIX "shape_expiry"
};

/* Keywords of libpq (up to version 18) whose values are secrets. */
static const char *const secret_keywords[] = {
	"password",
	"sslpassword",
	"oauth_client_secret",
	"scram_client_key",
	"scram_server_key"
};

typedef enum ConninfoVerdict
{
	CONNINFO_OK,
	CONNINFO_SECRET,
	CONNINFO_MALFORMED
} ConninfoVerdict;

static ConninfoVerdict scan_conninfo(const char *conninfo);

/* Length of a URI's scheme at the start of the string, or 0. */
static size_t
uri_scheme_len(const char *s)
{
	if (strncmp(s, "postgresql://", 13) == 0)
		return 13;
	if (strncmp(s, "postgres://", 11) == 0)
		return 11;
	return 0;
}

/*
 * Is the value of that keyword a secret?  A dbname that looks like a connection
 * string is scanned as one, since libpq expands it.
 */
static ConninfoVerdict
judge_keyword(const char *keyword, const char *value)
{
	for (int i = 0; i < (int) lengthof(secret_keywords); i++)
		if (pg_strcasecmp(keyword, secret_keywords[i]) == 0)
			return CONNINFO_SECRET;

	if (strcmp(keyword, "dbname") == 0 &&
		(uri_scheme_len(value) > 0 || strchr(value, '=') != NULL))
		return scan_conninfo(value);
	return CONNINFO_OK;
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Percent-decodes in place; invalid escapes stay as they are. */
static void
percent_decode(char *s)
{
	char	   *to = s;

	while (*s)
	{
		int			high = s[0] == '%' ? hex_digit(s[1]) : -1;
		int			low = high >= 0 ? hex_digit(s[2]) : -1;

		if (low >= 0)
		{
			*to++ = (char) (high << 4 | low);
			s += 3;
		}
		else
			*to++ = *s++;
	}
	*to = '\0';
}

/*
 * Scans a URI:
 * scheme://[user[:password]@][host...][/dbname][?keyword=value&...].  The
 * argument starts after the scheme, and is modified.
 */
static ConninfoVerdict
scan_uri(char *uri)
{
	size_t		authority = strcspn(uri, "@/");
	char	   *params = strchr(uri, '?');

	if (uri[authority] == '@' && memchr(uri, ':', authority) != NULL)
		return CONNINFO_SECRET;

	while (params != NULL)
	{
		char	   *keyword = params + 1;
		char	   *value;
		ConninfoVerdict verdict;

		params = strchr(keyword, '&');
		if (params != NULL)
			*params = '\0';
		value = strchr(keyword, '=');
		if (value != NULL)
			*value++ = '\0';
		else
			value = keyword + strlen(keyword);
		percent_decode(keyword);
		percent_decode(value);
		verdict = judge_keyword(keyword, value);
		if (verdict != CONNINFO_OK)
			return verdict;
	}
	return CONNINFO_OK;
}

/*
 * Scans a list "keyword = value ...", in which a value may be quoted.  The
 * argument is modified.
 */
static ConninfoVerdict
scan_keywords(char *s)
{
	for (;;)
	{
		char	   *keyword;
		char	   *keyword_end;
		char	   *value;
		char	   *to;
		bool		quoted;
		ConninfoVerdict verdict;

		while (isspace((unsigned char) *s))
			s++;
		if (*s == '\0')
			return CONNINFO_OK;

		keyword = s;
		while (*s && *s != '=' && !isspace((unsigned char) *s))
			s++;
		keyword_end = s;
		while (isspace((unsigned char) *s))
			s++;
		if (*s != '=')
			return CONNINFO_MALFORMED;
		s++;
		*keyword_end = '\0';
		while (isspace((unsigned char) *s))
			s++;

		quoted = (*s == '\'');
		if (quoted)
			s++;
		value = to = s;
		while (*s && (quoted ? *s != '\'' : !isspace((unsigned char) *s)))
		{
			if (*s == '\\' && s[1] != '\0')
				s++;
			*to++ = *s++;
		}
		if (quoted && *s != '\'')
			return CONNINFO_MALFORMED;
		if (*s)
			s++;
		*to = '\0';

		verdict = judge_keyword(keyword, value);
		if (verdict != CONNINFO_OK)
			return verdict;
	}
}

static ConninfoVerdict
scan_conninfo(const char *conninfo)
{
	char	   *copy = pstrdup(conninfo);
	size_t		scheme = uri_scheme_len(copy);
	ConninfoVerdict verdict;

	verdict = scheme > 0 ? scan_uri(copy + scheme) : scan_keywords(copy);
	pfree(copy);
	return verdict;
}

/*
 * Check hook of the connection strings.  Its messages replace the server's own,
 * which would repeat the value, including the secret, in the log.
 */
static bool
check_connection(char **newval, void **extra pg_attribute_unused(),
				 GucSource source pg_attribute_unused())
{
	switch (scan_conninfo(*newval))
	{
		case CONNINFO_OK:
			return true;
		case CONNINFO_SECRET:
			GUC_check_errmsg("a connection string of electric_cm must not contain a password");
			GUC_check_errdetail("Settings of a database can be read by every user.");
			GUC_check_errhint("Name a password file (\"passfile=...\") or a service (\"service=...\") instead.");
			return false;
		case CONNINFO_MALFORMED:
			GUC_check_errmsg("a connection string of electric_cm is malformed");
			GUC_check_errdetail("It must be a list of keyword=value pairs or a postgresql:// URI.");
			return false;
	}
	return false;
}

/*
 * Check hook of the slot's name: the rules of ReplicationSlotValidateName(),
 * except that an empty name is allowed and stands for the default.
 */
static bool
check_slot_name(char **newval, void **extra pg_attribute_unused(),
				GucSource source pg_attribute_unused())
{
	const char *name = *newval;

	if (strlen(name) >= NAMEDATALEN)
	{
		GUC_check_errdetail("A replication slot's name must be shorter than %d bytes.",
							NAMEDATALEN);
		return false;
	}
	if (strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != strlen(name))
	{
		GUC_check_errdetail("A replication slot's name may only contain lower case letters, numbers, and the underscore character.");
		return false;
	}
	return true;
}

static bool
check_name_length(char **newval, void **extra pg_attribute_unused(),
				  GucSource source pg_attribute_unused())
{
	if (strlen(*newval) >= NAMEDATALEN)
	{
		GUC_check_errdetail("The name must be shorter than %d bytes.",
							NAMEDATALEN);
		return false;
	}
	return true;
}

static bool
check_publication_name(char **newval, void **extra, GucSource source)
{
	if (**newval == '\0')
	{
		GUC_check_errdetail("The name must not be empty.");
		return false;
	}
	return check_name_length(newval, extra, source);
}

/* Is the wanted name (NULL: none) in the list?  "*" stands for every name. */
static bool
parse_databases(const char *databases, const char *wanted, bool *valid)
{
	char	   *copy = pstrdup(databases);
	List	   *names = NIL;
	ListCell   *lc;
	bool		found = false;

	*valid = SplitIdentifierString(copy, ',', &names);
	foreach(lc, names)
	{
		const char *name = lfirst(lc);

		if (*valid && wanted != NULL &&
			(strcmp(name, "*") == 0 || strcmp(name, wanted) == 0))
			found = true;
	}
	list_free(names);
	pfree(copy);
	return found;
}

static bool
check_databases(char **newval, void **extra pg_attribute_unused(),
				GucSource source pg_attribute_unused())
{
	bool		valid;

	(void) parse_databases(*newval, NULL, &valid);
	if (!valid)
		GUC_check_errdetail("It must be \"*\" or a list of database names, separated by commas.");
	return valid;
}

/*
 * Check hook of electric_cm.retained_wal_limit.  A limit of 0 would have every
 * slot dropped as soon as it has been made.
 */
static bool
check_wal_limit(int *newval, void **extra pg_attribute_unused(),
				GucSource source pg_attribute_unused())
{
	if (*newval != 0)
		return true;
	GUC_check_errdetail("A replication slot always retains some WAL.");
	GUC_check_errhint("Use -1 for no limit.");
	return false;
}

/*
 * Check hook of electric_cm.shape_stall_timeout.  A wait of some milliseconds, as when
 * the machine is busy, must not cost a shape.
 */
static bool
check_shape_stall(int *newval, void **extra pg_attribute_unused(),
				  GucSource source pg_attribute_unused())
{
	if (*newval == 0 || *newval >= 1000)
		return true;
	GUC_check_errdetail("Less than a second would be too short for a machine that is busy.");
	GUC_check_errhint("Use 0 to turn it off.");
	return false;
}

/*
 * Check hook of electric_cm.retained_wal_warning.  A value below half a
 * megabyte has been rounded to 0 by now, and would always warn.
 */
static bool
check_wal_warning(int *newval, void **extra pg_attribute_unused(),
				  GucSource source pg_attribute_unused())
{
	if (*newval != 0)
		return true;
	GUC_check_errdetail("A replication slot always retains some WAL.");
	GUC_check_errhint("Use -1 for no warning.");
	return false;
}

bool
ecm_database_is_listed(const char *datname)
{
	bool		valid;

	return parse_databases(ecm_databases, datname, &valid);
}

char *
ecm_default_slot_name(const char *datname)
{
	char	   *name = psprintf("electric_cm_%s", datname);

	if (strlen(name) >= NAMEDATALEN)
		name[NAMEDATALEN - 1] = '\0';
	for (char *p = name; *p; p++)
	{
		*p = pg_ascii_tolower((unsigned char) *p);
		if (!((*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9')))
			*p = '_';
	}
	return name;
}

char *
ecm_effective_slot_name(const char *datname)
{
	if (ecm_slot_name[0] != '\0')
		return pstrdup(ecm_slot_name);
	return ecm_default_slot_name(datname);
}

char *
ecm_effective_stack_id(const char *datname)
{
	return pstrdup(ecm_stack_id[0] != '\0' ? ecm_stack_id : datname);
}

static struct config_generic *
find_setting(const char *name)
{
	int			nvars;
	struct config_generic **vars = ecm_guc_variables(&nvars);

	for (int i = 0; i < nvars; i++)
		if (strcmp(vars[i]->name, name) == 0)
			return vars[i];
	return NULL;
}

static GucSource
setting_source(const char *name)
{
	struct config_generic *setting = find_setting(name);

	return setting != NULL ? setting->source : PGC_S_DEFAULT;
}

/*
 * A setting's value as SHOW prints it, palloc'd; NULL: there is no such
 * setting.  For a setting that only superusers may see, GetConfigOptionByName()
 * looks at the catalogs, which the manager cannot do outside of a transaction.
 * All such settings of ours are strings, so strings are read by
 * GetConfigOption(), which is told not to check that.
 */
static char *
show_setting(const char *name)
{
	struct config_generic *setting = find_setting(name);
	const char *value;

	if (setting == NULL)
		return NULL;
	if (setting->vartype != PGC_STRING)
	{
		Assert((setting->flags & GUC_SUPERUSER_ONLY) == 0);
		return GetConfigOptionByName(name, NULL, true);
	}
	value = GetConfigOption(name, true, false);
	return pstrdup(value != NULL ? value : "");
}

bool
ecm_setting_is_of_database(const char *name)
{
	GucSource	source = setting_source(name);

	return source >= PGC_S_GLOBAL && source < PGC_S_OVERRIDE;
}

bool
ecm_setting_is_of_session(const char *name)
{
	return setting_source(name) >= PGC_S_USER;
}

bool
ecm_setting_at(int i, const char *datname, const char **name, char **value,
			   const char **source)
{
	if (i < 0 || i >= (int) lengthof(setting_names))
		return false;

	*name = setting_names[i];
	*source = GucSource_Names[setting_source(*name)];
	if (strcmp(*name, PREFIX "slot_name") == 0)
		*value = ecm_effective_slot_name(datname);
	else if (strcmp(*name, PREFIX "stack_id") == 0)
		*value = ecm_effective_stack_id(datname);
	else
		*value = show_setting(*name);
	return true;
}

void
ecm_define_settings(void)
{
	/* What runs */

	DefineCustomStringVariable(PREFIX "databases",
							   "Lists the databases that may have a stack.",
							   "\"*\" means every database in which the extension has been created. "
							   "Names that are not all lower case must be double-quoted.",
							   &ecm_databases, "*",
							   PGC_SIGHUP, GUC_LIST_INPUT,
							   check_databases, NULL, NULL);

	/*
	 * A PGC_POSTMASTER setting can't be defined any later than at preload.
	 * Otherwise it has no effect, but if it is in postgresql.conf already,
	 * nobody should be told that there is no such setting.
	 */
	DefineCustomIntVariable(PREFIX "max_managers",
							"Sets the maximum number of databases that have a stack.",
							"Each stack needs one background worker for its manager and "
							"electric_cm.shape_workers for its consumers, out of "
							"max_worker_processes.",
							&ecm_max_managers, 8, 1, ECM_MAX_MANAGERS,
							process_shared_preload_libraries_in_progress ?
							PGC_POSTMASTER : PGC_SIGHUP,
							0, NULL, NULL, NULL);

	DefineCustomIntVariable(PREFIX "max_awaited_shapes",
							"Sets for how many shapes sessions can wait, all together, by electric_cm_await().",
							"A session that finds no room looks every 100 ms instead. "
							"Each takes 40 bytes of shared memory.",
							&ecm_max_awaited_shapes, 32768, 0, 10000000,
							process_shared_preload_libraries_in_progress ?
							PGC_POSTMASTER : PGC_SIGHUP,
							0, NULL, NULL, NULL);

	DefineCustomBoolVariable(PREFIX "enabled",
							 "Lets the database's stack run.",
							 "Set it for a database: ALTER DATABASE ... SET electric_cm.enabled = off, "
							 "followed by a reload.",
							 &ecm_enabled, true, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomStringVariable(PREFIX "stack_id",
							   "Sets the name of the stack.",
							   "The default is the database's name.",
							   &ecm_stack_id, "", PGC_SUSET, 0,
							   check_name_length, NULL, NULL);

	/* Connections */

	DefineCustomStringVariable(PREFIX "connection",
							   "Sets the connection string for the loopback connections.",
							   "Empty: the server's own Unix socket or loopback address and port, "
							   "the bootstrap superuser, this database. It must lead to this very server.",
							   &ecm_connection, "", PGC_SUSET,
							   GUC_SUPERUSER_ONLY,
							   check_connection, NULL, NULL);

	DefineCustomStringVariable(PREFIX "pooled_connection",
							   "Sets the connection string for the pool's connections.",
							   "Empty: the same as electric_cm.connection.",
							   &ecm_pooled_connection, "", PGC_SUSET,
							   GUC_SUPERUSER_ONLY,
							   check_connection, NULL, NULL);

	DefineCustomIntVariable(PREFIX "pool_size",
							"Sets the maximum number of connections in the pool.",
							NULL,
							&ecm_pool_size, 4, 1, ECM_MAX_POOL_SIZE,
							PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(PREFIX "pool_idle_timeout",
							"Sets how long a connection of the pool may be idle before it is closed.",
							"An idle connection makes a smart shutdown wait.",
							&ecm_pool_idle_timeout, 5000, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);

	DefineCustomIntVariable(PREFIX "connect_timeout",
							"Sets the maximum time to wait for a loopback connection.",
							NULL,
							&ecm_connect_timeout, 10000, 100, INT_MAX,
							PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);

	DefineCustomIntVariable(PREFIX "reconnect_initial_delay",
							"Sets the delay before something that failed is tried again.",
							"It doubles with each failure, up to electric_cm.reconnect_max_delay.",
							&ecm_reconnect_initial_delay, 1000, 1, 3600000,
							PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);

	DefineCustomIntVariable(PREFIX "reconnect_max_delay",
							"Sets the longest delay between two attempts.",
							NULL,
							&ecm_reconnect_max_delay, 10000, 1, 86400000,
							PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);

	/* Slot and publication */

	DefineCustomStringVariable(PREFIX "slot_name",
							   "Sets the name of the replication slot.",
							   "The default is \"electric_cm_\" and the database's name in lower case.",
							   &ecm_slot_name, "", PGC_SUSET, 0,
							   check_slot_name, NULL, NULL);

	DefineCustomStringVariable(PREFIX "publication_name",
							   "Sets the name of the publication.",
							   NULL,
							   &ecm_publication_name, "electric_cm_publication",
							   PGC_SUSET, 0,
							   check_publication_name, NULL, NULL);

	DefineCustomBoolVariable(PREFIX "slot_temporary",
							 "Makes the replication slot temporary.",
							 "It is gone with its connection, and all shapes are compared with their tables then.",
							 &ecm_slot_temporary, false, PGC_SUSET, 0,
							 NULL, NULL, NULL);

	DefineCustomBoolVariable(PREFIX "failover",
							 "Lets standbys keep the replication slot in step, so that shapes go on after a promotion.",
							 "It takes PostgreSQL 17, and standbys that synchronize slots.",
							 &ecm_failover, true, PGC_SIGHUP, 0,
							 NULL, NULL, NULL);

	DefineCustomBoolVariable(PREFIX "create_publication",
							 "Creates the publication if it is missing.",
							 "If off, it must exist and publish all kinds of changes.",
							 &ecm_create_publication, true, PGC_SUSET, 0,
							 NULL, NULL, NULL);

	DefineCustomBoolVariable(PREFIX "manual_table_publishing",
							 "Leaves publication and replica identities to the administrator.",
							 "Shapes can then be made only of tables that are published already.",
							 &ecm_manual_table_publishing, false, PGC_SUSET, 0,
							 NULL, NULL, NULL);

	DefineCustomBoolVariable(PREFIX "set_replica_identity",
							 "Sets REPLICA IDENTITY FULL on tables whose shapes need it.",
							 "Only for tables that the shape's owner owns, and not with "
							 "electric_cm.manual_table_publishing.",
							 &ecm_set_replica_identity, false, PGC_SUSET, 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable(PREFIX "status_check_interval",
							"Sets the time between two checks of slot and publication.",
							NULL,
							&ecm_status_check_interval, 10000, 1000, 3600000,
							PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);

	DefineCustomIntVariable(PREFIX "consumer_stall_timeout",
							"Sets how long a consumer may make no progress before a warning says so.",
							"It must have work to do, and is looked at every "
							"electric_cm.status_check_interval.",
							&ecm_consumer_stall_timeout, 60000, 1000, 86400000,
							PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);

	DefineCustomIntVariable(PREFIX "shape_stall_timeout",
							"Sets how long one piece of work for a shape may hold up the others.",
							"The shape becomes errored then, and the others go on. 0 turns it off.",
							&ecm_shape_stall_timeout, 60000, 0, 86400000,
							PGC_SUSET, GUC_UNIT_MS, check_shape_stall, NULL, NULL);

	DefineCustomIntVariable(PREFIX "wal_report_interval",
							"Sets the time between two samples of the WAL that the slot retains.",
							NULL,
							&ecm_wal_report_interval, 10000, 1000, 3600000,
							PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);

	DefineCustomIntVariable(PREFIX "retained_wal_warning",
							"Sets how much WAL the slot may retain before a warning says so.",
							"The warning is repeated at twice as much, four times as much, and so on. "
							"-1 turns it off.",
							&ecm_retained_wal_warning, 1024, -1, INT_MAX,
							PGC_SUSET, GUC_UNIT_MB, check_wal_warning, NULL, NULL);

	DefineCustomIntVariable(PREFIX "retained_wal_limit",
							"Sets how much WAL the slot may retain before it is dropped.",
							"A new one is made, and all shapes are compared with their tables. -1 means no limit.",
							&ecm_retained_wal_limit, -1, -1, INT_MAX,
							PGC_SUSET, GUC_UNIT_MB, check_wal_limit, NULL, NULL);

	DefineCustomIntVariable(PREFIX "min_wal_free_space",
							"Sets how much disk space must be free under pg_wal.",
							"If it is less and the slot retains 64 MB or more, the slot is dropped, "
							"and all shapes are compared with their tables when there is room again. -1 turns it off.",
							&ecm_min_wal_free_space, 512, -1, INT_MAX,
							PGC_SUSET, GUC_UNIT_MB, NULL, NULL, NULL);

	/* like max_managers */
	DefineCustomIntVariable(PREFIX "retained_wal_history_size",
							"Sets how many samples of retained WAL are kept per stack.",
							"There is one per electric_cm.wal_report_interval.",
							&ecm_retained_wal_history_size, 2160, 2, 1000000,
							process_shared_preload_libraries_in_progress ?
							PGC_POSTMASTER : PGC_SIGHUP,
							0, NULL, NULL, NULL);

	DefineCustomBoolVariable(PREFIX "break_abandoned_lock",
							 "Terminates a session that holds the exclusive lock but does not use the slot.",
							 "Only if the slot has been inactive at two consecutive status checks.",
							 &ecm_break_abandoned_lock, false, PGC_SUSET, 0,
							 NULL, NULL, NULL);

	/* Shapes */

	DefineCustomIntVariable(PREFIX "shape_workers",
							"Sets the number of consumers per stack.",
							"Each is a background worker out of max_worker_processes.",
							&ecm_shape_workers, 1, 1, ECM_MAX_SHAPE_WORKERS,
							PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(PREFIX "max_shapes",
							"Sets the maximum number of shapes in a database.",
							NULL,
							&ecm_max_shapes, 100000, 0, INT_MAX,
							PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(PREFIX "shape_log_retention",
							"Sets the size of a shape's log beyond which its oldest part is folded.",
							"Entries are then replaced by the rows that they lead to. "
							"0: 1 GB or twice the table's size, whichever is larger. -1: never.",
							&ecm_shape_log_retention, 0, -1, INT_MAX,
							PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);

	DefineCustomIntVariable(PREFIX "reader_retention",
							"Sets how much of a shape's log is kept for a named reader that has not acknowledged it.",
							"If there is more, it may be folded: then the reader has lost that shape. "
							"-1: without limit.",
							&ecm_reader_retention, 1024 * 1024, -1, INT_MAX,
							PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);

	DefineCustomIntVariable(PREFIX "shape_expiry",
							"Sets after which time a shape is dropped that nobody reads.",
							"0: never.",
							&ecm_shape_expiry, 0, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);

	/* For tests.  It is in no list. */

	DefineCustomIntVariable(PREFIX "debug_piece_rows",
							"Sets how many rows each piece has in which a table is read.",
							"0: as many as are read in a second.",
							&ecm_debug_piece_rows, 0, 0, INT_MAX,
							PGC_SUSET, GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE,
							NULL, NULL, NULL);

	MarkGUCPrefixReserved("electric_cm");
}
