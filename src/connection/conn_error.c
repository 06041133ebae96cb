/*-------------------------------------------------------------------------
 *
 * conn_error.c
 *	  Why a connection or a query has failed, and what to do about it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"

#include "base/settings.h"
#include "connection/conn_internal.h"

void
ecm_conn_note_error(EcmConn *conn, const char *sqlstate, const char *message,
					const char *detail, const char *hint)
{
	if (conn->has_error)
		return;
	ecm_error_set(&conn->error, sqlstate, message, detail, hint);
	conn->has_error = true;
}

/*
 * If the server's authentication has refused the connection, makes the line of
 * pg_hba.conf that would let us in the hint.  The connection leads back to
 * this machine, so the server sees the address that it goes to as the one that
 * it comes from.
 */
static void
hint_pg_hba(EcmConn *conn)
{
	const char *host = PQhost(conn->pg);
	const char *addr = PQhostaddr(conn->pg);
	const char *user = PQuser(conn->pg);
	const char *dbname = PQdb(conn->pg) ? PQdb(conn->pg) : conn->info.dbname;
	bool		local = host == NULL || host[0] == '\0' || host[0] == '/';
	bool		no_password = ecm_error_is_password(conn->error.sqlstate);

	/* some refusals don't concern pg_hba.conf, and have a hint in errors.c */
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
 * Nothing answers where the user's connection string leads: the hint names the
 * setting. libpq's own advice ("Is the server running?") is of no use, since
 * this is the server.
 */
void
ecm_conn_hint_setting(EcmConn *conn)
{
	if (conn->state != ECM_CONN_CONNECTING || conn->info.conninfo[0] == '\0' ||
		!ecm_error_is_connection(conn->error.sqlstate) || conn->error.hint[0] != '\0')
		return;
	snprintf(conn->error.hint, sizeof(conn->error.hint),
			 "%s says where to connect to; it is set %s. Correct it there, or leave it empty, and reload.",
			 conn->setting,
			 ecm_setting_is_of_database(conn->setting) ?
			 "by ALTER DATABASE" : "in the server's configuration");
}

void
ecm_conn_note_libpq_error(EcmConn *conn)
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
	ecm_conn_hint_setting(conn);
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
 * The function in which a query's error was raised, by the error's context;
 * NULL: none.  Our statements call no function that users have written, so it
 * is one of an event trigger or the like, and the user has to look there.
 * Only its name and line are taken, since the rest of the context may quote
 * values.
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

void
ecm_conn_note_result_error(EcmConn *conn, const PGresult *res)
{
	const char *sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *message = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	const char *hint = PQresultErrorField(res, PG_DIAG_MESSAGE_HINT);
	char	   *function;

	if (sqlstate == NULL)
	{
		/* an error of libpq itself: the server has closed the connection, say */
		ecm_conn_note_libpq_error(conn);
		return;
	}
	function = calling_function(res);
	if (function != NULL && message != NULL)
	{
		message = psprintf("%s, in %s", message, function);

		/*
		 * our sessions have an empty search_path, so a name without its
		 * schema is found in the user's sessions, but not here
		 */
		if (ecm_error_is_name_not_found(sqlstate))
			hint = "The stack's sessions have an empty search_path: give that function its own (ALTER FUNCTION ... SET search_path), or qualify the names in it.";
	}
	ecm_conn_note_error(conn, sqlstate, message,
						PQresultErrorField(res, PG_DIAG_MESSAGE_DETAIL), hint);
	if (result_is_fatal(res))
		conn->fatal = true;
}

void
ecm_conn_forget_error(EcmConn *conn)
{
	conn->has_error = false;
	conn->fatal = false;
	ecm_error_set(&conn->error, "00000", "", NULL, NULL);
}

/*
 * Receives notices in place of libpq's own function, which prints them to
 * stderr.  If a FATAL message arrives in an idle session, libpq takes it for a
 * notice, but it is the reason why the session ends.
 */
void
ecm_conn_receive_notice(void *arg, const PGresult *res)
{
	EcmConn    *conn = (EcmConn *) arg;

	if (result_is_fatal(res) && !conn->fatal)
	{
		conn->has_error = false;
		ecm_conn_note_result_error(conn, res);
	}
}
