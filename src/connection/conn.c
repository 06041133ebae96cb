/*-------------------------------------------------------------------------
 *
 * conn.c
 *	  One asynchronous libpq connection: connect, query, stream, close.
 *
 * The constraint that shapes this file is that no call may block: a worker
 * that sits in poll() hangs a fast shutdown, and every DROP DATABASE of the
 * cluster.  So libpq is only ever asked for what it can answer from its own
 * buffers (PQconnectPoll when the socket is ready, PQgetResult when PQisBusy
 * says no, PQgetCopyData with async = 1), and deadlines are our own, since
 * libpq ignores connect_timeout here.
 *
 * One call escapes that rule: libpq resolves host names with getaddrinfo(),
 * synchronously.  It matters only for a conninfo of the user's whose host is
 * neither a directory nor an IP address; hostaddr avoids it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "libpq-fe.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "replication/walsender.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "base/backend.h"
#include "base/bgworker.h"
#include "base/compat.h"
#include "base/pinned_settings.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "connection/conn.h"

#define MAX_CANDIDATES	3		/* socket directory, ::1, 127.0.0.1 */

/* Longest time that one of our sessions waits for somebody's lock. */
#define LOCK_TIMEOUT	"30s"

/* A backend that idles for so long has answered, or never heard the question. */
#define MIN_UNANSWERED_MS	3000

/*
 * One that does not move, and waits for nobody, hangs if that lasts as long as
 * wal_sender_timeout, within these bounds.
 */
#define MIN_HANG_MS			5000
#define MAX_HANG_MS			60000

/* Where a server may be found.  Both NULL: where the conninfo says. */
typedef struct Candidate
{
	const char *host;
	const char *hostaddr;
} Candidate;

/*
 * What earlier connections with the same conninfo have taught this process.
 * The list has one element per different conninfo, that is, two or three.
 */
typedef struct ConnMemory
{
	struct ConnMemory *next;
	char	   *conninfo;
	int			candidate;		/* the one that worked last */
	bool		without_tls;	/* the server speaks no TLS: don't ask again */
} ConnMemory;

struct EcmConn
{
	MemoryContext context;		/* holds this struct and what it points to */
	ConnMemory *memory;

	/* parameters */
	char	   *conninfo;
	char	   *setting;
	char	   *dbname;
	char	   *application_name;
	bool		replication;
	bool		any_role;		/* not the bootstrap superuser, perhaps */
	int			wal_sender_timeout_ms;
	int			connect_timeout_ms;

	/* the attempt to connect */
	Candidate	candidates[MAX_CANDIDATES];
	int			ncandidates;
	int			candidate;		/* the one being tried */
	int			ntried;
	bool		reached;		/* something listens there */
	bool		without_tls;	/* on the memory's advice */
	bool		prefers_tls;	/* sslmode is "prefer", given or by default */
	bool		sslmode_given;
	EcmError	first_error;	/* of the first candidate passed over */

	/* libpq's things, which are malloc'd */
	PGconn	   *pg;
	PGresult   *result;			/* rows of the last query */
	char	   *copy_buffer;	/* last CopyData message */

	EcmConnState state;
	bool		fd_reserved;	/* AcquireExternalFD() done */
	uint64		socket_id;
	int			wait_events;	/* while connecting */
	bool		flush_pending;
	EcmTime		deadline;		/* 0: none */
	int			timeout_ms;		/* that the deadline was made from */

	bool		local;			/* its backend was seen in this database */
	EcmTime		unanswered_at;	/* the backend was seen not to work on our
								 * query any more; 0: no */
	EcmBackendLook seen;		/* what it did when it was seen to move ... */
	EcmTime		seen_at;		/* ... or first; 0: not seen with this query */
	EcmTime		heard_at;		/* something came in, in COPY BOTH */

	bool		has_error;
	bool		fatal;			/* error is a FATAL message of the server */
	EcmError	error;

	/* facts, kept when the connection has failed */
	int			backend_pid;
	int			server_version;
	bool		ssl;
	char	   *address;
	TimestampTz connected_since;
};

static ConnMemory *memories = NULL;
static char *bootstrap_user = NULL;
static uint64 last_socket_id = 0;


/* ---------------------------------------------------------------------
 *		Errors
 * ---------------------------------------------------------------------
 */

/* Only the first error counts: what follows it is a consequence. */
static void
note_error(EcmConn *conn, const char *sqlstate, const char *message,
		   const char *detail, const char *hint)
{
	if (conn->has_error)
		return;
	ecm_error_set(&conn->error, sqlstate, message, detail, hint);
	conn->has_error = true;
}

/*
 * A refusal by the server's authentication: the hint is the very line of
 * pg_hba.conf that would let us in.  The connection leads back to this
 * machine, so the server sees it come from the address that it goes to.
 */
static void
hint_pg_hba(EcmConn *conn)
{
	const char *host = PQhost(conn->pg);
	const char *addr = PQhostaddr(conn->pg);
	const char *user = PQuser(conn->pg);
	const char *dbname = PQdb(conn->pg) ? PQdb(conn->pg) : conn->dbname;
	bool		local = host == NULL || host[0] == '\0' || host[0] == '/';
	bool		no_password = strcmp(conn->error.sqlstate, "28P01") == 0;

	/* some of these have nothing to do with pg_hba.conf: see errors.c */
	if (ecm_error_hint(&conn->error, ECM_CONTEXT_CONNECT) != NULL)
		return;
	if (!ecm_error_is_refusal(conn->error.sqlstate) ||
		conn->error.hint[0] != '\0' || user == NULL)
		return;
	if (addr == NULL || addr[0] == '\0')
		addr = "127.0.0.1";
	if (no_password && !local)
		snprintf(conn->error.hint, sizeof(conn->error.hint),
				 "Set passfile in electric_cm.connection to a file with mode 0600 that has the line %s:%s:%s:%s:PASSWORD, and reload.",
				 host, PQport(conn->pg), dbname, user);
	else if (local)
		snprintf(conn->error.hint, sizeof(conn->error.hint),
				 "Put this line at the top of pg_hba.conf and reload: local \"%s\" \"%s\" peer",
				 dbname, user);
	else
		snprintf(conn->error.hint, sizeof(conn->error.hint),
				 "Put this line at the top of pg_hba.conf and reload: host \"%s\" \"%s\" %s/%s scram-sha-256",
				 dbname, user, addr, strchr(addr, ':') ? "128" : "32");
}

/*
 * Nothing answers where a connection string of the user's leads to.  libpq's own
 * advice (is the server running?) is of little use to the server.
 */
static void
hint_setting(EcmConn *conn)
{
	if (conn->state != ECM_CONN_CONNECTING || conn->conninfo[0] == '\0' ||
		!ecm_error_is_connection(conn->error.sqlstate) || conn->error.hint[0] != '\0')
		return;
	snprintf(conn->error.hint, sizeof(conn->error.hint),
			 "%s says where to connect to; it is set %s. Correct it there, or leave it empty, and reload.",
			 conn->setting,
			 ecm_setting_is_of_database(conn->setting) ?
			 "by ALTER DATABASE" : "in the server's configuration");
}

static void
note_libpq_error(EcmConn *conn)
{
	const char *text = conn->pg ? PQerrorMessage(conn->pg) : "";

	if (conn->has_error)
		return;
	if (text[0] == '\0')
		text = "connection to the server was lost";
	ecm_error_from_libpq(&conn->error, text);
	if (conn->error.sqlstate[0] == '\0')
		strlcpy(conn->error.sqlstate, "08006", sizeof(conn->error.sqlstate));
	if (conn->pg)
		hint_pg_hba(conn);
	conn->has_error = true;
	hint_setting(conn);
}

static bool
result_is_fatal(const PGresult *res)
{
	const char *severity;

	severity = PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);
	return severity != NULL && (strcmp(severity, "FATAL") == 0 ||
								strcmp(severity, "PANIC") == 0);
}

/*
 * Our own statements call no function that anybody has written: this is one of
 * an event trigger or the like, and the error is to be looked for there.  Of the
 * context only its name and line, since the rest may quote values.  NULL: none.
 */
static char *
calling_function(const PGresult *res)
{
	const char *context = PQresultErrorField(res, PG_DIAG_CONTEXT);

	while (context != NULL)
	{
		if (strncmp(context, "PL/", 3) == 0 ||
			strncmp(context, "SQL function", strlen("SQL function")) == 0)
			return pnstrdup(context, strcspn(context, "\n"));
		context = strchr(context, '\n');
		if (context != NULL)
			context++;
	}
	return NULL;
}

static void
note_result_error(EcmConn *conn, const PGresult *res)
{
	const char *sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *message = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	const char *hint = PQresultErrorField(res, PG_DIAG_MESSAGE_HINT);
	char	   *function;

	if (sqlstate == NULL)
	{
		/* libpq's own, as when the server closed the connection */
		note_libpq_error(conn);
		return;
	}
	function = calling_function(res);
	if (function != NULL && message != NULL)
	{
		message = psprintf("%s, in %s", message, function);
		/* one that is not qualified is found in other sessions */
		if (ecm_error_is_name_not_found(sqlstate))
			hint = "The stack's sessions have an empty search_path: give that function its own (ALTER FUNCTION ... SET search_path), or qualify the names in it.";
	}
	note_error(conn, sqlstate, message,
			   PQresultErrorField(res, PG_DIAG_MESSAGE_DETAIL), hint);
	if (result_is_fatal(res))
		conn->fatal = true;
}

static void
forget_error(EcmConn *conn)
{
	conn->has_error = false;
	conn->fatal = false;
	ecm_error_set(&conn->error, "00000", "", NULL, NULL);
}

/* The connection is dead; the caller has noted why. */
static void
become_failed(EcmConn *conn)
{
	Assert(conn->has_error);
	conn->state = ECM_CONN_FAILED;
	conn->socket_id = ++last_socket_id;
	conn->wait_events = 0;
	conn->flush_pending = false;
	conn->deadline = 0;
}

/*
 * Replaces libpq's printing to stderr.  A FATAL message that reaches an idle
 * session counts as a notice for libpq, but it is the reason for the end that
 * follows.
 */
static void
receive_notice(void *arg, const PGresult *res)
{
	EcmConn    *conn = (EcmConn *) arg;

	if (result_is_fatal(res) && !conn->fatal)
	{
		conn->has_error = false;
		note_result_error(conn, res);
	}
}


/* ---------------------------------------------------------------------
 *		Parameters
 * ---------------------------------------------------------------------
 */

/*
 * libpq takes an empty parameter for an absent one and then looks into the
 * environment, so the only sure way to keep the postmaster's PG* variables
 * out is to unset them.  This is a single-threaded worker and its environment
 * is its own.  The list is libpq's, and so fits its version; the names after
 * it are those that libpq reads without saying so.  PGSERVICEFILE and
 * PGSYSCONFDIR stay: they only say where a service that the user has named is
 * to be looked up.
 *
 * The default files (~/.pgpass, ~/.postgresql/) are not variables and stay in
 * force; they are how a password or certificate is given to us.
 */
static void
clean_environment(void)
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
		return;					/* out of memory; so will be what follows */
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
 * The bootstrap superuser, who always exists but may have been renamed.  The
 * look-up needs a transaction, which is over before anything is waited for.
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
static bool
loopback_user_renamed(void)
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
 * What is pinned in our sessions, besides how values are written as text.
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

	/* locked: what is pinned by name must do */
	(void) ecm_append_server_settings(settings->options, settings->any_role);
}

/*
 * Settings of our sessions, for the startup packet.  There they override what
 * ALTER DATABASE and ALTER ROLE say, and are in force before the first query.
 * The later one wins: first what undoes those, then what the user has given,
 * then what we rely on.
 */
static char *
session_options(EcmConn *conn, const char *given, bool any_role)
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

	/* So that a query whose reader is gone does not run on. */
	if (WaitEventSetCanReportClosed())
		ecm_append_setting(&buf, "client_connection_check_interval", "10s");
	if (conn->wal_sender_timeout_ms > 0)
		ecm_append_setting(&buf, "wal_sender_timeout",
						   psprintf("%dms", conn->wal_sender_timeout_ms));
	return buf.data;
}

/*
 * The value to use for a parameter, or NULL for libpq's default.
 *
 * What the user gave is kept, except for what our protocol with the server
 * depends on.  With a service, the service file fills in the rest, and only
 * the database is ours, because one entry serves all databases.
 */
static const char *
parameter_value(EcmConn *conn, const PQconninfoOption *opt, bool has_service)
{
	const Candidate *candidate = &conn->candidates[conn->candidate];
	const char *keyword = opt->keyword;
	const char *given = opt->val;
	bool		loopback = (candidate->host != NULL);

	if (given != NULL && given[0] == '\0')
		given = NULL;

	if (strcmp(keyword, "replication") == 0)
		return conn->replication ? "database" : NULL;
	if (strcmp(keyword, "options") == 0)
		return session_options(conn, given, conn->any_role);
	if (strcmp(keyword, "client_encoding") == 0)
		return GetDatabaseEncodingName();
	if (strcmp(keyword, "fallback_application_name") == 0 ||
		strcmp(keyword, "connect_timeout") == 0)
		return NULL;
	if (strcmp(keyword, "sslmode") == 0 && conn->without_tls)
		return "disable";
	if (strcmp(keyword, "host") == 0 && loopback)
		return candidate->host;
	if (strcmp(keyword, "hostaddr") == 0 && loopback)
		return candidate->hostaddr;

	if (given != NULL)
		return given;

	if (strcmp(keyword, "application_name") == 0)
		return conn->application_name;
	if (strcmp(keyword, "dbname") == 0)
		return conn->dbname;

	/* looking for Kerberos credentials can mean talking to the network */
	if (strcmp(keyword, "gssencmode") == 0 && !has_service)
		return "disable";

	/* whatever the way there, it is this very server */
	if (strcmp(keyword, "user") == 0 && !has_service)
		return loopback_user();
	if (strcmp(keyword, "port") == 0 && !has_service)
		return psprintf("%d", PostPortNumber);
	return NULL;
}

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

/* Is it left to us to find the server? */
static bool
is_loopback(const PQconninfoOption *options)
{
	return !option_given(options, "host") &&
		!option_given(options, "hostaddr") &&
		!option_given(options, "service");
}

static void
add_candidate(EcmConn *conn, const char *host, const char *hostaddr)
{
	conn->candidates[conn->ncandidates].host = host;
	conn->candidates[conn->ncandidates].hostaddr = hostaddr;
	conn->ncandidates++;
}

/* Fills conn->candidates; in conn's own memory context. */
static void
find_candidates(EcmConn *conn, const PQconninfoOption *options)
{
	char	   *raw;
	List	   *directories = NIL;

	if (!is_loopback(options))
	{
		add_candidate(conn, NULL, NULL);
		return;
	}

	raw = pstrdup(Unix_socket_directories ? Unix_socket_directories : "");
	if (SplitDirectoriesString(raw, ',', &directories) && directories != NIL)
	{
		char	   *dir = linitial(directories);

		/* the server resolves it from its data directory, libpq does not */
		if (dir[0] != '\0' && dir[0] != '@' && !is_absolute_path(dir))
			dir = psprintf("%s/%s", DataDir, dir);
		if (dir[0] != '\0')
			add_candidate(conn, dir, NULL);
	}

	/*
	 * A server that does not listen on TCP is not to be looked for there: it
	 * would be another one.  The host name is not resolved, as the address is
	 * given; it is what people write in ~/.pgpass.
	 */
	if (ListenAddresses != NULL && ListenAddresses[0] != '\0')
	{
		add_candidate(conn, "localhost", "::1");
		add_candidate(conn, "localhost", "127.0.0.1");
	}
}


/* ---------------------------------------------------------------------
 *		Connecting
 * ---------------------------------------------------------------------
 */

static ConnMemory *
find_memory(const char *conninfo)
{
	ConnMemory *memory;

	for (memory = memories; memory != NULL; memory = memory->next)
	{
		if (strcmp(memory->conninfo, conninfo) == 0)
			return memory;
	}
	memory = MemoryContextAllocZero(TopMemoryContext, sizeof(ConnMemory));
	memory->conninfo = MemoryContextStrdup(TopMemoryContext, conninfo);
	memory->next = memories;
	memories = memory;
	return memory;
}

static char *
describe_address(PGconn *pg)
{
	const char *host = PQhost(pg);
	const char *addr = PQhostaddr(pg);
	const char *port = PQport(pg);

	if (host == NULL || (host[0] != '/' && host[0] != '@'))
		host = (addr != NULL && addr[0] != '\0') ? addr : host;
	if (host == NULL)
		host = "";
	if (port == NULL || port[0] == '\0')
		port = DEF_PGPORT_STR;
	if (host[0] == '/' || host[0] == '@')
		return psprintf("socket %s:%s", host, port);
	return psprintf(strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

static void
set_address(EcmConn *conn)
{
	MemoryContext caller = MemoryContextSwitchTo(conn->context);

	if (conn->address != NULL)
		pfree(conn->address);
	conn->address = describe_address(conn->pg);
	MemoryContextSwitchTo(caller);
}

/* Does the socket have one of the events?  Looks, and does not wait. */
static bool
socket_is_ready(PGconn *pg, int wait_events)
{
	struct pollfd pfd;

	pfd.fd = PQsocket(pg);
	pfd.events = 0;
	pfd.revents = 0;
	if (pfd.fd < 0)
		return true;			/* libpq is to say what is wrong */
	if (wait_events & WL_SOCKET_READABLE)
		pfd.events |= POLLIN;
	if (wait_events & WL_SOCKET_WRITEABLE)
		pfd.events |= POLLOUT;
	return poll(&pfd, 1, 0) > 0;
}

/* Has libpq got further than connect(2)? */
static void
note_reached(EcmConn *conn)
{
	ConnStatusType status = PQstatus(conn->pg);

	if (status != CONNECTION_BAD && status != CONNECTION_STARTED &&
		status != CONNECTION_NEEDED)
		conn->reached = true;
}

/*
 * PQfinish without the least chance to block.  It sends a Terminate message,
 * which the server likes (no "unexpected EOF" in its log); where the output
 * cannot be sent anyway, the socket is shut down first, so that nothing that
 * libpq or OpenSSL might still want to write can wait for the other side.
 */
static void
finish_libpq(EcmConn *conn)
{
	if (conn->result != NULL)
		PQclear(conn->result);
	conn->result = NULL;
	if (conn->copy_buffer != NULL)
		PQfreemem(conn->copy_buffer);
	conn->copy_buffer = NULL;
	if (conn->pg != NULL)
	{
		if (PQsocket(conn->pg) != PGINVALID_SOCKET &&
			(PQstatus(conn->pg) != CONNECTION_OK ||
			 !PQisnonblocking(conn->pg) || PQflush(conn->pg) != 0) &&
			PQsocket(conn->pg) != PGINVALID_SOCKET)
			shutdown(PQsocket(conn->pg), SHUT_RDWR);
		PQfinish(conn->pg);
	}
	conn->pg = NULL;
	conn->socket_id = ++last_socket_id;
}

/* Starts libpq on the current candidate; false if it can't be. */
static bool
open_libpq(EcmConn *conn)
{
	PQconninfoOption *options;
	const char **keywords;
	const char **values;
	const char *sslmode;
	bool		has_service;
	int			noptions = 0;
	int			n = 0;
	MemoryContext caller;

	options = PQconninfoParse(conn->conninfo, NULL);
	if (options == NULL)
	{
		note_error(conn, "53200", "out of memory", NULL, NULL);
		return false;
	}

	caller = MemoryContextSwitchTo(conn->context);
	has_service = option_given(options, "service") != NULL;
	conn->any_role = has_service || option_given(options, "user") != NULL ||
		!is_loopback(options);
	sslmode = option_given(options, "sslmode");
	conn->sslmode_given = (sslmode != NULL);
	conn->prefers_tls = sslmode ? strcmp(sslmode, "prefer") == 0 : !has_service;
	if (!conn->prefers_tls)
		conn->without_tls = false;

	for (PQconninfoOption *opt = options; opt->keyword != NULL; opt++)
		noptions++;
	keywords = palloc((noptions + 1) * sizeof(char *));
	values = palloc((noptions + 1) * sizeof(char *));
	for (PQconninfoOption *opt = options; opt->keyword != NULL; opt++)
	{
		const char *value = parameter_value(conn, opt, has_service);

		if (value != NULL)
		{
			keywords[n] = opt->keyword;
			values[n++] = value;
		}
	}
	keywords[n] = NULL;
	values[n] = NULL;
	MemoryContextSwitchTo(caller);

	conn->reached = false;
	conn->pg = PQconnectStartParams(keywords, values, 0);
	PQconninfoFree(options);
	pfree(keywords);
	pfree(values);
	if (conn->pg == NULL)
	{
		note_error(conn, "53200", "out of memory", NULL, NULL);
		return false;
	}

	/*
	 * Verbose, because only then does the text of a connection error hold its
	 * SQLSTATE.
	 */
	PQsetErrorVerbosity(conn->pg, PQERRORS_VERBOSE);
	PQsetErrorContextVisibility(conn->pg, PQSHOW_CONTEXT_NEVER);
	PQsetNoticeReceiver(conn->pg, receive_notice, conn);

	note_reached(conn);
	set_address(conn);
	conn->socket_id = ++last_socket_id;
	conn->wait_events = WL_SOCKET_WRITEABLE;
	return true;
}

/*
 * The current candidate has failed; true if another attempt is to be made, else
 * the connection has failed.
 */
static bool
retry_after_failure(EcmConn *conn)
{
	bool		reached = conn->reached;

	forget_error(conn);
	note_libpq_error(conn);
	finish_libpq(conn);

	/* Refused, perhaps for what this process remembers from better days. */
	if (ecm_error_is_refusal(conn->error.sqlstate))
	{
		if (conn->without_tls)
		{
			conn->without_tls = false;
			conn->memory->without_tls = false;
			return true;
		}
		if (loopback_user_renamed())
			return true;
	}

	if (!reached)
	{
		if (conn->ntried == 0)
			conn->first_error = conn->error;
		if (++conn->ntried < conn->ncandidates)
		{
			conn->candidate = (conn->candidate + 1) % conn->ncandidates;
			return true;
		}
		/* nothing listens anywhere: the preferred place is the one to name */
		conn->error = conn->first_error;
	}
	become_failed(conn);
	return false;
}

/* Starts on the current candidate, or on the next ones if it fails at once. */
static void
try_candidates(EcmConn *conn)
{
	do
	{
		forget_error(conn);
		if (!open_libpq(conn))
		{
			become_failed(conn);
			return;
		}
		if (PQstatus(conn->pg) != CONNECTION_BAD)
			return;
	} while (retry_after_failure(conn));
}

EcmConn *
ecm_conn_start(const EcmConnParams *params)
{
	MemoryContext context;
	MemoryContext caller;
	EcmConn    *conn;
	PQconninfoOption *options;
	char	   *errmsg = NULL;

	context = AllocSetContextCreate(TopMemoryContext, "electric_cm connection",
									ALLOCSET_SMALL_SIZES);
	caller = MemoryContextSwitchTo(context);

	conn = palloc0(sizeof(EcmConn));
	conn->context = context;
	conn->conninfo = pstrdup(params->conninfo ? params->conninfo : "");
	conn->setting = pstrdup(params->setting);
	conn->dbname = pstrdup(params->dbname);
	conn->application_name = pstrdup(params->application_name);
	conn->replication = params->replication;
	conn->wal_sender_timeout_ms = params->wal_sender_timeout_ms;
	conn->connect_timeout_ms = params->connect_timeout_ms;
	conn->address = pstrdup("");
	conn->state = ECM_CONN_CONNECTING;
	conn->memory = find_memory(conn->conninfo);
	conn->without_tls = conn->memory->without_tls;
	forget_error(conn);

	clean_environment();

	options = PQconninfoParse(conn->conninfo, &errmsg);
	if (options == NULL)
	{
		note_error(conn, errmsg ? "F0000" : "53200",
				   "invalid connection string",
				   errmsg ? pchomp(errmsg) : NULL, NULL);
		if (errmsg != NULL)
			PQfreemem(errmsg);
		become_failed(conn);
		MemoryContextSwitchTo(caller);
		return conn;
	}
	find_candidates(conn, options);
	PQconninfoFree(options);
	MemoryContextSwitchTo(caller);

	if (conn->ncandidates == 0)
	{
		note_error(conn, "08001",
				   "server listens neither on a Unix socket nor on TCP",
				   NULL,
				   "Set unix_socket_directories, listen_addresses or electric_cm.connection.");
		become_failed(conn);
		return conn;
	}
	if (conn->memory->candidate < conn->ncandidates)
		conn->candidate = conn->memory->candidate;

	/* libpq's socket counts against the files that fd.c may keep open */
	if (!AcquireExternalFD())
	{
		note_error(conn, "53000", "could not open a connection",
				   "There are too many open files on the local server.",
				   "Raise the server's max_files_per_process and/or \"ulimit -n\" limits.");
		become_failed(conn);
		return conn;
	}
	conn->fd_reserved = true;

	if (conn->connect_timeout_ms > 0)
		conn->deadline = ecm_later(ecm_now(),
													 conn->connect_timeout_ms);
	conn->timeout_ms = conn->connect_timeout_ms;
	try_candidates(conn);
	return conn;
}

static void
become_connected(EcmConn *conn)
{
	const char *host = PQhost(conn->pg);
	EcmBackendLook look;

	/*
	 * Not earlier, since it makes libpq forget the text that names the server
	 * in the error to come.  Until here nothing can block, because all that
	 * is sent (a startup packet is at most 10 kB) fits into the buffer of a
	 * new socket.
	 */
	PQsetnonblocking(conn->pg, 1);

	set_address(conn);
	conn->backend_pid = PQbackendPID(conn->pg);
	conn->local = ecm_backend_look(conn->backend_pid, &look);
	conn->server_version = PQserverVersion(conn->pg);
	conn->ssl = PQsslInUse(conn->pg);
	conn->connected_since = ecm_wall_clock();
	conn->socket_id = ++last_socket_id;
	conn->deadline = 0;
	conn->state = ECM_CONN_IDLE;
	forget_error(conn);

	conn->memory->candidate = conn->candidate;
	if (!conn->ssl && conn->prefers_tls && !conn->memory->without_tls &&
		host != NULL && host[0] != '/' && host[0] != '@')
	{
		conn->memory->without_tls = true;
		if (conn->sslmode_given)
			ecm_event(MyDatabaseId, conn->dbname, "warning",
					  ECM_SEVERITY_WARNING,
					  "TLS could not be had, and sslmode=prefer allows to go on without it; use sslmode=require to insist on it.",
					  "connection to %s is not encrypted", conn->address);
	}
}

static void
poll_connect(EcmConn *conn)
{
	/*
	 * libpq takes our word that the socket is ready: called too early, it
	 * would believe that an unanswered connect(2) had succeeded.
	 */
	if (!socket_is_ready(conn->pg, conn->wait_events))
		return;

	/*
	 * libpq may close the socket and open another one, with the same number,
	 * in any of these calls.
	 */
	conn->socket_id = ++last_socket_id;
	switch (PQconnectPoll(conn->pg))
	{
		case PGRES_POLLING_READING:
			conn->wait_events = WL_SOCKET_READABLE;
			note_reached(conn);
			break;
		case PGRES_POLLING_WRITING:
			conn->wait_events = WL_SOCKET_WRITEABLE;
			note_reached(conn);
			break;
		case PGRES_POLLING_OK:
			become_connected(conn);
			break;
		default:
			if (retry_after_failure(conn))
				try_candidates(conn);
			break;
	}
}


/* ---------------------------------------------------------------------
 *		Queries
 * ---------------------------------------------------------------------
 */

/*
 * Sends what could not be sent before.  A failure shows when reading, together
 * with what the server had to say about it.
 */
static void
flush_output(EcmConn *conn)
{
	conn->flush_pending = (PQflush(conn->pg) == 1);
}

/*
 * Takes the results that are there; true when there are no more to come.  When
 * the connection is lost, libpq hands out what had arrived, then an error of
 * its own, then the end.
 */
static bool
take_results(EcmConn *conn)
{
	while (!PQisBusy(conn->pg))
	{
		PGresult   *res = PQgetResult(conn->pg);

		switch (res ? PQresultStatus(res) : PGRES_EMPTY_QUERY)
		{
			case PGRES_TUPLES_OK:
				if (conn->result != NULL)
					PQclear(conn->result);
				conn->result = res;
				continue;
			case PGRES_COPY_BOTH:
				PQclear(res);
				conn->state = ECM_CONN_COPY_BOTH;
				return true;
			case PGRES_COPY_IN:
			case PGRES_COPY_OUT:
				PQclear(res);
				note_error(conn, "XX000", "unexpected COPY", NULL, NULL);
				become_failed(conn);
				return true;
			case PGRES_FATAL_ERROR:
			case PGRES_BAD_RESPONSE:
				note_result_error(conn, res);
				break;
			default:			/* no rows */
				break;
		}
		if (res == NULL)
		{
			conn->state = ECM_CONN_IDLE;
			return true;
		}
		PQclear(res);
	}
	return false;
}

static void
poll_query(EcmConn *conn)
{
	bool		alive = PQconsumeInput(conn->pg);

	flush_output(conn);
	if (take_results(conn))
		conn->deadline = 0;
	if (conn->state != ECM_CONN_FAILED &&
		(!alive || PQstatus(conn->pg) == CONNECTION_BAD))
	{
		note_libpq_error(conn);
		become_failed(conn);
	}
}

/* An idle session has nothing to say, except that it is being ended. */
static void
poll_idle(EcmConn *conn)
{
	bool		alive = PQconsumeInput(conn->pg);

	(void) PQisBusy(conn->pg);	/* parses, and so calls receive_notice() */
	if (!alive || conn->fatal || PQstatus(conn->pg) == CONNECTION_BAD)
	{
		/* the last query's error, if any, is not the reason */
		if (!conn->fatal)
			conn->has_error = false;
		note_libpq_error(conn);
		become_failed(conn);
	}
}

static void
deadline_passed(EcmConn *conn)
{
	char		detail[ECM_ERROR_TEXT_LEN];

	if (conn->state == ECM_CONN_CONNECTING)
	{
		snprintf(detail, sizeof(detail), "No answer from %s within %d ms.",
				 conn->address, conn->timeout_ms);
		forget_error(conn);
		note_error(conn, "08001", "connection attempt timed out", detail, NULL);
		hint_setting(conn);
	}
	else
	{
		/* nobody is going to read its answer */
		ecm_conn_cancel(conn);
		snprintf(detail, sizeof(detail), "No answer within %d ms.",
				 conn->timeout_ms);
		forget_error(conn);
		note_error(conn, "57014", "query timed out", detail, NULL);
	}
	become_failed(conn);
}

EcmConnState
ecm_conn_poll(EcmConn *conn)
{
	switch (conn->state)
	{
		case ECM_CONN_CONNECTING:
			poll_connect(conn);
			break;
		case ECM_CONN_IDLE:
			poll_idle(conn);
			break;
		case ECM_CONN_BUSY:
			poll_query(conn);
			break;
		case ECM_CONN_COPY_BOTH:
			/* reading is up to the stream's owner, who may be congested */
			if (conn->flush_pending)
				flush_output(conn);
			break;
		case ECM_CONN_FAILED:
			break;
	}

	if (conn->deadline != 0 && ecm_now() >= conn->deadline)
		deadline_passed(conn);
	return conn->state;
}

void
ecm_conn_send(EcmConn *conn, const char *sql, int timeout_ms)
{
	if (conn->state == ECM_CONN_FAILED)
		return;

	if (conn->result != NULL)
		PQclear(conn->result);
	conn->result = NULL;
	forget_error(conn);

	if (conn->state != ECM_CONN_IDLE)
	{
		note_error(conn, "XX000", "connection is not idle", NULL, NULL);
		become_failed(conn);
		return;
	}
	if (!PQsendQuery(conn->pg, sql))
	{
		note_libpq_error(conn);
		become_failed(conn);
		return;
	}
	conn->state = ECM_CONN_BUSY;
	conn->unanswered_at = conn->seen_at = 0;
	conn->timeout_ms = timeout_ms;
	conn->deadline = (timeout_ms > 0) ?
		ecm_later(ecm_now(), timeout_ms) : 0;
	flush_output(conn);
}

bool
ecm_conn_ok(const EcmConn *conn)
{
	return conn->state != ECM_CONN_FAILED && !conn->has_error;
}

int
ecm_conn_nrows(const EcmConn *conn)
{
	return conn->result ? PQntuples(conn->result) : 0;
}

const char *
ecm_conn_value(const EcmConn *conn, int row, int column)
{
	if (conn->result == NULL ||
		row < 0 || row >= PQntuples(conn->result) ||
		column < 0 || column >= PQnfields(conn->result) ||
		PQgetisnull(conn->result, row, column))
		return NULL;
	return PQgetvalue(conn->result, row, column);
}

const EcmError *
ecm_conn_error(const EcmConn *conn)
{
	return &conn->error;
}

bool
ecm_conn_idle_in_no_transaction(const EcmConn *conn)
{
	return conn->state == ECM_CONN_IDLE &&
		PQtransactionStatus(conn->pg) == PQTRANS_IDLE;
}

/*
 * Only a backend of our own server and database gets the signal: behind a
 * pooler, the process number that we were told is made up.
 */
void
ecm_conn_cancel(EcmConn *conn)
{
	PGPROC	   *proc;

	if (conn->backend_pid <= 0 || conn->backend_pid == MyProcPid ||
		conn->pg == NULL || atoi(PQport(conn->pg)) != PostPortNumber)
		return;
	proc = BackendPidGetProc(conn->backend_pid);
	if (proc != NULL && proc->databaseId == MyDatabaseId)
		kill(conn->backend_pid, SIGINT);
}


bool
ecm_conn_has_backend(const EcmConn *conn)
{
	EcmBackendLook look;

	return !conn->local || ecm_backend_look(conn->backend_pid, &look);
}

/* The backend will not answer, or we shall not hear of it. */
static void
give_up_query(EcmConn *conn, const char *message, const char *detail,
			  const char *hint)
{
	forget_error(conn);
	note_error(conn, "08006", message, detail, hint);
	if (ecm_conn_has_backend(conn))
		kill(conn->backend_pid, SIGTERM);
	become_failed(conn);
}

/* It works, or waits for somebody's lock, or hangs. */
static void
check_motion(EcmConn *conn, const EcmBackendLook *look, EcmTime now)
{
	int			hangs_ms = wal_sender_timeout > 0 ?
		Min(Max(wal_sender_timeout, MIN_HANG_MS), MAX_HANG_MS) : MAX_HANG_MS;

	if (conn->seen_at == 0 || !ecm_backend_stands_still(&conn->seen, look))
	{
		conn->seen = *look;
		conn->seen_at = now;
	}
	else if (ecm_has_passed(conn->seen_at, now, hangs_ms))
		give_up_query(conn,
					  psprintf("PID %d, which runs a query of ours, has not moved for %d s",
							   conn->backend_pid,
							   (int) ((now - conn->seen_at) / USECS_PER_SEC)),
					  NULL,
					  psprintf("If it is stopped, kill -CONT %d lets it go on, and end. Don't kill -9 it: that would restart the whole server.",
							   conn->backend_pid));
}

void
ecm_conn_check(EcmConn *conn)
{
	EcmTime		now = ecm_now();
	EcmBackendLook look;
	bool		there;

	if (conn->state != ECM_CONN_BUSY || !conn->local || conn->flush_pending)
		return;
	there = ecm_backend_look(conn->backend_pid, &look);
	if (socket_is_ready(conn->pg, WL_SOCKET_READABLE))
	{
		conn->unanswered_at = conn->seen_at = 0;
		return;
	}
	if (there && !ecm_backend_waits_for_command(&look))
	{
		conn->unanswered_at = 0;
		check_motion(conn, &look, now);
		return;
	}
	if (conn->unanswered_at == 0)
		conn->unanswered_at = now;
	if (ecm_has_passed(conn->unanswered_at, now, MIN_UNANSWERED_MS))
		give_up_query(conn, "the answer to a query has got lost",
					  psprintf(there ? "PID %d waits for the next command." :
							   "PID %d has ended.", conn->backend_pid),
					  conn->conninfo[0] == '\0' ? NULL :
					  "Something between server and server has stopped forwarding: see electric_cm.connection and electric_cm.pooled_connection.");
}


/* ---------------------------------------------------------------------
 *		COPY BOTH
 * ---------------------------------------------------------------------
 */

/*
 * The stream is over; finds out why.  Messages not read yet are dropped: they
 * have not been acknowledged and come again.
 */
static void
end_of_stream(EcmConn *conn)
{
	char	   *data;
	PGresult   *res;

	while (PQgetCopyData(conn->pg, &data, 1) > 0)
		PQfreemem(data);

	while (!PQisBusy(conn->pg) && (res = PQgetResult(conn->pg)) != NULL)
	{
		ExecStatusType status = PQresultStatus(res);

		if (status == PGRES_FATAL_ERROR)
			note_result_error(conn, res);
		PQclear(res);
		if (status == PGRES_COPY_BOTH || status == PGRES_COPY_IN ||
			status == PGRES_COPY_OUT)
			break;				/* would be handed out for ever */
	}

	if (!conn->has_error && PQstatus(conn->pg) == CONNECTION_BAD)
		note_libpq_error(conn);
	note_error(conn, "08006", "replication stream was ended by the server",
			   NULL, NULL);
	become_failed(conn);
}

bool
ecm_conn_read_input(EcmConn *conn)
{
	char		byte;

	if (conn->state != ECM_CONN_COPY_BOTH)
		return false;
	if (recv(PQsocket(conn->pg), &byte, 1, MSG_PEEK) > 0)
		conn->heard_at = ecm_now();
	if (!PQconsumeInput(conn->pg) || PQstatus(conn->pg) == CONNECTION_BAD)
	{
		end_of_stream(conn);
		return false;
	}
	return true;
}

int
ecm_conn_copy_next(EcmConn *conn, char **data)
{
	int			len;

	*data = NULL;
	if (conn->copy_buffer != NULL)
		PQfreemem(conn->copy_buffer);
	conn->copy_buffer = NULL;

	if (conn->state != ECM_CONN_COPY_BOTH)
		return -2;
	len = PQgetCopyData(conn->pg, &conn->copy_buffer, 1);
	if (len > 0)
	{
		*data = conn->copy_buffer;
		return len;
	}
	if (len == 0)
		return -1;
	end_of_stream(conn);
	return -2;
}

bool
ecm_conn_copy_send(EcmConn *conn, const char *data, int len)
{
	if (conn->state != ECM_CONN_COPY_BOTH)
		return false;
	if (PQputCopyData(conn->pg, data, len) <= 0)
	{
		end_of_stream(conn);
		return false;
	}
	flush_output(conn);
	return true;
}


/* ---------------------------------------------------------------------
 *		For the wait loop; facts; closing
 * ---------------------------------------------------------------------
 */

EcmConnState
ecm_conn_state(const EcmConn *conn)
{
	return conn->state;
}

pgsocket
ecm_conn_socket(const EcmConn *conn)
{
	if (conn->state == ECM_CONN_FAILED || conn->pg == NULL)
		return PGINVALID_SOCKET;
	return PQsocket(conn->pg);
}

int
ecm_conn_wait_events(const EcmConn *conn)
{
	switch (conn->state)
	{
		case ECM_CONN_CONNECTING:
			return conn->wait_events;
		case ECM_CONN_FAILED:
			return 0;
		default:
			return WL_SOCKET_READABLE |
				(conn->flush_pending ? WL_SOCKET_WRITEABLE : 0);
	}
}

EcmTime
ecm_conn_deadline(const EcmConn *conn)
{
	return conn->deadline;
}

uint64
ecm_conn_socket_id(const EcmConn *conn)
{
	return conn->socket_id;
}

int
ecm_conn_backend_pid(const EcmConn *conn)
{
	return conn->backend_pid;
}

int
ecm_conn_server_version(const EcmConn *conn)
{
	return conn->server_version;
}

bool
ecm_conn_ssl(const EcmConn *conn)
{
	return conn->ssl;
}

const char *
ecm_conn_address(const EcmConn *conn)
{
	return conn->address;
}

EcmTime
ecm_conn_heard_at(const EcmConn *conn)
{
	return conn->heard_at;
}

TimestampTz
ecm_conn_connected_since(const EcmConn *conn)
{
	return conn->connected_since;
}

void
ecm_conn_close(EcmConn *conn)
{
	finish_libpq(conn);
	if (conn->fd_reserved)
		ReleaseExternalFD();
	MemoryContextDelete(conn->context);
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
