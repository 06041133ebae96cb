/*-------------------------------------------------------------------------
 *
 * conninfo.c
 *	  Connection strings, and libpq's parameters that are made of them.
 *
 * A connection of a stack leads back into this server, so the parameters that
 * a string leaves out are known: socket directory, port, the bootstrap
 * superuser. libpq is used here only to parse strings.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "libpq-fe.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/varlena.h"

#include "base/bgworker.h"
#include "base/compat.h"
#include "base/pinned_settings.h"
#include "connection/conninfo.h"

/* Longest time that one of our sessions waits for somebody's lock. */
#define LOCK_TIMEOUT	"30s"

static char *bootstrap_user = NULL;

static const char *
option_given(const PQconninfoOption *options, const char *keyword)
{
	for (const PQconninfoOption *opt = options; opt->keyword != NULL; opt++)
	{
		if (strcmp(opt->keyword, keyword) == 0)
			return (opt->val != NULL && opt->val[0] != '\0') ? opt->val : NULL;
	}
	return NULL;
}

/* Does the string leave it to us to find the server? */
static bool
is_loopback(const PQconninfoOption *options)
{
	return !option_given(options, "host") &&
		!option_given(options, "hostaddr") &&
		!option_given(options, "service");
}

/*
 * Unsets the PG* variables that the postmaster was started with. libpq takes
 * an empty parameter for an absent one, and looks into the environment then,
 * so that there is no other sure way to keep them out.  A worker has a single
 * thread and an environment of its own, so nobody else is affected.
 *
 * The list of variables is libpq's, so it fits the version of libpq; the names
 * after it are variables that libpq reads without listing them.  PGSERVICEFILE
 * and PGSYSCONFDIR stay: they only say where a service that the user has named
 * is looked up.  The default files (~/.pgpass, ~/.postgresql/) stay in force:
 * users give us a password or a certificate by them.
 */
void
ecm_conninfo_clean_environment(void)
{
	static bool done = false;
	static const char *const others[] = {
		"PGREQUIRESSL", "PGDATESTYLE", "PGTZ", "PGGEQO"
	};
	PQconninfoOption *options;

	if (done)
		return;
	options = PQconninfoParse("", NULL);
	if (options == NULL)
		return;					/* out of memory; the caller's own call will
								 * say so */
	for (PQconninfoOption *opt = options; opt->keyword != NULL; opt++)
	{
		if (opt->envvar != NULL)
			unsetenv(opt->envvar);
	}
	PQconninfoFree(options);
	for (int i = 0; i < (int) lengthof(others); i++)
		unsetenv(others[i]);
	done = true;
}

/*
 * The name of the bootstrap superuser, who always exists but may have been
 * renamed.  Looking it up needs a transaction, which ends here: the manager
 * must not be in one while it waits.
 */
static const char *
loopback_user(void)
{
	MemoryContext caller = CurrentMemoryContext;
	bool		own_transaction = !IsTransactionState();
	char	   *name;

	if (bootstrap_user != NULL)
		return bootstrap_user;

	if (own_transaction)
		StartTransactionCommand();
	name = GetUserNameFromId(BOOTSTRAP_SUPERUSERID, true);
	if (name != NULL)
		bootstrap_user = MemoryContextStrdup(TopMemoryContext, name);
	if (own_transaction)
		CommitTransactionCommand();
	MemoryContextSwitchTo(caller);

	return bootstrap_user;		/* NULL: libpq takes the OS user's name */
}

/* Looks the name up again; true if the user has been renamed. */
bool
ecm_loopback_user_renamed(void)
{
	char	   *old = bootstrap_user;
	const char *new;
	bool		renamed;

	if (old == NULL)
		return false;
	bootstrap_user = NULL;
	new = loopback_user();
	renamed = (new != NULL && strcmp(old, new) != 0);
	pfree(old);
	return renamed;
}

/*
 * Settings that are pinned in our sessions, besides those of text formats.
 */
static const char *const session_settings[][2] = {
	{"search_path", ""},
	{"role", "none"},
	{"exit_on_error", "off"},
	{"statement_timeout", "0"},
	{"lock_timeout", LOCK_TIMEOUT},
	{"idle_in_transaction_session_timeout", "0"},
	{"idle_session_timeout", "0"},
	ECM_TRANSACTION_TIMEOUT_SETTING
	{"default_transaction_read_only", "off"},
	{"default_transaction_deferrable", "off"},
	{"default_transaction_isolation", "read committed"},
	{"synchronous_commit", "local"},
};

typedef struct ServerSettings
{
	StringInfo	options;
	bool		any_role;
} ServerSettings;

static void
read_server_settings(void *arg)
{
	ServerSettings *settings = arg;

	/* if the catalog is locked, the settings pinned by name have to suffice */
	(void) ecm_append_server_settings(settings->options, settings->any_role);
}

/*
 * The options of the startup packet, which set the parameters of our sessions.
 * Options override ALTER DATABASE and ALTER ROLE, and are in force before the
 * first query.  If one is given twice, the later one wins, so the order is:
 * the server's own values, which undo ALTER DATABASE and ALTER ROLE; then the
 * user's; then those that we rely on.
 */
static char *
session_options(const EcmConninfo *info, const char *given, bool any_role)
{
	StringInfoData buf;
	ServerSettings settings = {&buf, any_role};
	EcmError	err;

	initStringInfo(&buf);
	if (IsTransactionState())
		read_server_settings(&settings);
	else
		(void) ecm_worker_try(read_server_settings, &settings, &err);
	if (given != NULL && given[0] != '\0')
		appendStringInfo(&buf, " %s", given);
	for (int i = 0; ecm_text_settings[i][0] != NULL; i++)
		ecm_append_setting(&buf, ecm_text_settings[i][0], ecm_text_settings[i][1]);
	for (int i = 0; i < (int) lengthof(session_settings); i++)
		ecm_append_setting(&buf, session_settings[i][0], session_settings[i][1]);

	/* a query ends soon if the manager, which reads its result, is gone */
	if (WaitEventSetCanReportClosed())
		ecm_append_setting(&buf, "client_connection_check_interval", "10s");
	if (info->wal_sender_timeout_ms > 0)
		ecm_append_setting(&buf, "wal_sender_timeout",
						   psprintf("%dms", info->wal_sender_timeout_ms));
	return buf.data;
}

static void
add_candidate(EcmConninfo *info, const char *host, const char *hostaddr)
{
	info->candidates[info->ncandidates].host = host;
	info->candidates[info->ncandidates].hostaddr = hostaddr;
	info->ncandidates++;
}

/* Fills info->candidates. */
static void
find_candidates(EcmConninfo *info, const PQconninfoOption *options)
{
	char	   *raw;
	List	   *directories = NIL;

	if (!is_loopback(options))
	{
		add_candidate(info, NULL, NULL);
		return;
	}

	raw = pstrdup(Unix_socket_directories ? Unix_socket_directories : "");
	if (SplitDirectoriesString(raw, ',', &directories) && directories != NIL)
	{
		char	   *dir = linitial(directories);

		/* the server resolves a relative path from its data directory */
		if (dir[0] != '\0' && dir[0] != '@' && !is_absolute_path(dir))
			dir = psprintf("%s/%s", DataDir, dir);
		if (dir[0] != '\0')
			add_candidate(info, dir, NULL);
	}

	/*
	 * If this server does not listen on TCP, a server that does listen there
	 * would be another one. libpq does not resolve the host name, since the
	 * address is given; the name is what people write in ~/.pgpass.
	 */
	if (ListenAddresses != NULL && ListenAddresses[0] != '\0')
	{
		add_candidate(info, "localhost", "::1");
		add_candidate(info, "localhost", "127.0.0.1");
	}
}

/*
 * The value for a parameter, or NULL for libpq's default.
 *
 * Parameters that the user has given are kept, except for those that our
 * protocol with the server depends on.  With a service, the service file
 * supplies the others; only the database is ours, so that one service can
 * serve all databases.
 */
static const char *
parameter_value(const EcmConninfo *info, const EcmCandidate *candidate,
				const EcmConnParameters *parameters,
				const PQconninfoOption *opt)
{
	const char *keyword = opt->keyword;
	const char *given = opt->val;
	bool		loopback = (candidate->host != NULL);

	if (given != NULL && given[0] == '\0')
		given = NULL;

	if (strcmp(keyword, "replication") == 0)
		return info->replication ? "database" : NULL;
	if (strcmp(keyword, "options") == 0)
		return session_options(info, given, parameters->any_role);
	if (strcmp(keyword, "client_encoding") == 0)
		return GetDatabaseEncodingName();
	if (strcmp(keyword, "fallback_application_name") == 0 ||
		strcmp(keyword, "connect_timeout") == 0)
		return NULL;
	if (strcmp(keyword, "sslmode") == 0 && parameters->without_tls)
		return "disable";
	if (strcmp(keyword, "host") == 0 && loopback)
		return candidate->host;
	if (strcmp(keyword, "hostaddr") == 0 && loopback)
		return candidate->hostaddr;

	if (given != NULL)
		return given;

	if (strcmp(keyword, "application_name") == 0)
		return info->application_name;
	if (strcmp(keyword, "dbname") == 0)
		return info->dbname;

	/* looking for Kerberos credentials can mean talking to the network */
	if (strcmp(keyword, "gssencmode") == 0 && !parameters->has_service)
		return "disable";

	/* whatever the address, it leads to this server */
	if (strcmp(keyword, "user") == 0 && !parameters->has_service)
		return loopback_user();
	if (strcmp(keyword, "port") == 0 && !parameters->has_service)
		return psprintf("%d", PostPortNumber);
	return NULL;
}

bool
ecm_conninfo_find_candidates(EcmConninfo *info, char **problem)
{
	char	   *text = NULL;
	PQconninfoOption *options = PQconninfoParse(info->conninfo, &text);

	*problem = NULL;
	if (options == NULL)
	{
		if (text != NULL)
		{
			*problem = pchomp(text);
			PQfreemem(text);
		}
		return false;
	}
	find_candidates(info, options);
	PQconninfoFree(options);
	return true;
}

bool
ecm_conninfo_parameters(const EcmConninfo *info, int candidate,
						bool without_tls, EcmConnParameters *parameters)
{
	PQconninfoOption *options = PQconninfoParse(info->conninfo, NULL);
	const char *sslmode;
	int			noptions = 0;
	int			n = 0;

	memset(parameters, 0, sizeof(*parameters));
	if (options == NULL)
		return false;
	parameters->has_service = option_given(options, "service") != NULL;
	parameters->any_role = parameters->has_service ||
		option_given(options, "user") != NULL || !is_loopback(options);
	sslmode = option_given(options, "sslmode");
	parameters->sslmode_given = sslmode != NULL;
	parameters->prefers_tls = sslmode ? strcmp(sslmode, "prefer") == 0 :
		!parameters->has_service;
	parameters->without_tls = without_tls && parameters->prefers_tls;

	for (PQconninfoOption *opt = options; opt->keyword != NULL; opt++)
		noptions++;
	parameters->keywords = palloc((noptions + 1) * sizeof(char *));
	parameters->values = palloc((noptions + 1) * sizeof(char *));
	for (PQconninfoOption *opt = options; opt->keyword != NULL; opt++)
	{
		const char *value = parameter_value(info, &info->candidates[candidate],
											parameters, opt);

		if (value != NULL)
		{
			parameters->keywords[n] = pstrdup(opt->keyword);
			parameters->values[n++] = pstrdup(value);
		}
	}
	parameters->keywords[n] = NULL;
	parameters->values[n] = NULL;
	PQconninfoFree(options);
	return true;
}

static char *
copy_option(const PQconninfoOption *options, const char *keyword)
{
	const char *value = option_given(options, keyword);

	return value != NULL ? pstrdup(value) : NULL;
}

bool
ecm_conn_target(const char *conninfo, EcmConnTarget *target)
{
	PQconninfoOption *options = PQconninfoParse(conninfo, NULL);

	memset(target, 0, sizeof(*target));
	if (options == NULL)
		return false;
	PG_TRY();
	{
		target->loopback = is_loopback(options);
		target->has_password = option_given(options, "password") != NULL;
		target->service = copy_option(options, "service");
		target->has_password_file = target->service != NULL ||
			option_given(options, "passfile") != NULL;
		target->host = copy_option(options, "host");
		target->hostaddr = copy_option(options, "hostaddr");
		target->port = copy_option(options, "port");
		target->user = copy_option(options, "user");
		target->dbname = copy_option(options, "dbname");
	}
	PG_FINALLY();
	{
		PQconninfoFree(options);
	}
	PG_END_TRY();
	return true;
}
