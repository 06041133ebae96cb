/*-------------------------------------------------------------------------
 *
 * check_access.c
 *	  The part of electric_cm_check() about logging in: where the connections
 *	  lead, as which role, and what pg_hba.conf says to that.
 *
 * The checks don't connect; they predict what would happen, by the rules of conninfo.c
 * (which addresses are tried) and of the server (which line of pg_hba.conf is met).
 * Our replication session is in replication=database mode, and so is matched by the
 * name of its database, not by the keyword "replication".  pg_hba_file_rules shows the
 * file as it is now, not as it was last loaded: a fix can be checked before a reload.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/varlena.h"

#include "base/compat.h"
#include "connection/conninfo.h"
#include "functions/check.h"

/* The line of pg_hba.conf that is met; line 0: none is. */
typedef struct HbaRule
{
	int			line;
	const char *method;
	const char *map;			/* of user names, or NULL */
} HbaRule;

/* Where a connection comes from, as pg_hba.conf sees it. */
typedef struct HbaClient
{
	const char *role;
	const char *os_user;
	const char *address;		/* NULL: a Unix socket */
	bool		has_password_file;
} HbaClient;

/* The operating system's user that the server and its workers run as. */
static const char *
os_user_name(void)
{
	struct passwd *pw = getpwuid(geteuid());

	return pw != NULL ? pstrdup(pw->pw_name) : "";
}

static const char *
bootstrap_role(void)
{
	int			n;
	char	  **v = ecm_check_query(1, &n, "SELECT rolname FROM pg_authid WHERE oid = 10");

	return n > 0 ? v[0] : "";
}

/*
 * The role that the stack logs in as.  If the connection string names none: without a
 * host, conninfo.c fills in the bootstrap superuser; with a host, libpq takes the
 * operating system's user.  NULL: a service file decides.
 */
static const char *
login_role(const EcmConnTarget *target)
{
	if (target->user != NULL)
		return target->user;
	if (target->loopback)
		return bootstrap_role();
	return target->service != NULL ? NULL : os_user_name();
}

/* Is there a Unix socket to connect to?  By the rules of find_candidates(), conninfo.c. */
static bool
has_unix_socket(void)
{
	const char *setting = GetConfigOption("unix_socket_directories", true, false);
	List	   *directories = NIL;

	return setting != NULL &&
		SplitDirectoriesString(pstrdup(setting), ',', &directories) &&
		directories != NIL && ((char *) linitial(directories))[0] != '\0';
}

/* ----------------------------------------------------------- connection -- */

/* A connection string without what must not be shown, such as a password. */
static char *
describe_target(const EcmConnTarget *target)
{
	const struct
	{
		const char *keyword;
		const char *value;
	}			parts[] =
	{
		{"service", target->service},
		{"host", target->host},
		{"hostaddr", target->hostaddr},
		{"port", target->port},
		{"user", target->user},
		{"dbname", target->dbname}
	};
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < (int) lengthof(parts); i++)
		if (parts[i].value != NULL)
			appendStringInfo(&buf, "%s%s=%s", buf.len > 0 ? " " : "",
							 parts[i].keyword, parts[i].value);
	return buf.data;
}

/* Judges one of the two connection strings.  False: it is wrong, as f says. */
static bool
check_conninfo(const EcmSituation *s, EcmFinding *f, const char *setting)
{
	const char *conninfo = ecm_check_setting(s, setting);
	EcmConnTarget target;

	if (conninfo[0] == '\0')
		return true;
	if (!ecm_conn_target(conninfo, &target))
		ecm_check_fail(f, ecm_check_set(s, setting, ""),
					   "electric_cm.%s is not a connection string", setting);
	else if (target.has_password)
		ecm_check_fail(f, ecm_check_set(s, setting, ""),
					   "electric_cm.%s contains a password, which everybody can read: name a passfile or a service instead",
					   setting);
	else if (target.dbname != NULL && strcmp(target.dbname, s->datname) != 0)
		ecm_check_fail(f, ecm_check_set(s, setting, ""),
					   "electric_cm.%s leads to database \"%s\", not to this one",
					   setting, target.dbname);
	else if (target.loopback && target.port != NULL && atoi(target.port) != PostPortNumber)
		ecm_check_fail(f, ecm_check_set(s, setting, ""),
					   "electric_cm.%s leads to port %s, and this server's is %d",
					   setting, target.port, PostPortNumber);
	else if (target.port != NULL && atoi(target.port) != PostPortNumber)
		ecm_check_warn(f, ecm_check_set(s, setting, ""),
					   "electric_cm.%s (%s) must lead to this server, whose port is %d",
					   setting, describe_target(&target), PostPortNumber);
	else
	{
		ecm_check_pass(f, "electric_cm.%s is given (%s) and must lead to this server",
					   setting, describe_target(&target));
		return true;
	}
	return false;
}

void
ecm_check_connection(const EcmSituation *s, EcmFinding *f)
{
	ecm_check_pass(f, has_unix_socket() ?
				   "the stack connects to this server's Unix socket" :
				   "the stack connects to this server's loopback address");
	if (check_conninfo(s, f, "pooled_connection"))
		(void) check_conninfo(s, f, "connection");
}

/* ----------------------------------------------------------------- role -- */

void
ecm_check_role(const EcmSituation *s, EcmFinding *f)
{
	EcmConnTarget target;
	const char *role = NULL;
	const char *quoted;
	char	  **v;
	int			n;

	if (ecm_conn_target(ecm_check_setting(s, "connection"), &target))
		role = login_role(&target);
	if (role == NULL)
	{
		ecm_check_pass(f, "electric_cm.connection leaves the role to the service");
		return;
	}
	quoted = quote_identifier(role);
	v = ecm_check_query(2, &n,
						"SELECT rolcanlogin, rolsuper FROM pg_authid WHERE rolname = %s",
						quote_literal_cstr(role));
	if (n == 0)
		ecm_check_fail(f, psprintf("CREATE ROLE %s LOGIN SUPERUSER REPLICATION", quoted),
					   "the stack would connect as role \"%s\", which does not exist", role);
	else if (v[0][0] != 't' || v[1][0] != 't')
		ecm_check_fail(f, psprintf("ALTER ROLE %s LOGIN SUPERUSER REPLICATION", quoted),
					   v[0][0] != 't' ?
					   "role \"%s\", as which the stack connects, is not permitted to log in" :
					   "role \"%s\", as which the stack connects, is not a superuser", role);
	else
		ecm_check_pass(f, "the stack connects as role \"%s\"", role);
}

/* --------------------------------------------------------------- pg_hba -- */

/*
 * The first line of pg_hba.conf that is met by the client; tls: if it uses TLS.
 */
static HbaRule
find_rule(const HbaClient *client, bool tls)
{
	HbaRule		rule = {0, NULL, NULL};
	const char *where;
	char	  **v;
	int			n;

	if (client->address == NULL)
		where = "r.type = 'local'";
	else
		where = psprintf("r.type IN ('host', 'hostnogssenc', '%s')"
						 " AND CASE WHEN r.address IN ('all', 'samehost', 'samenet', 'localhost') THEN true"
						 " WHEN r.netmask IS NULL THEN false"
						 " WHEN family(r.address::inet) <> family('%s'::inet) THEN false"
						 " ELSE host(r.address::inet & r.netmask::inet) ="
						 " host('%s'::inet & r.netmask::inet) END",
						 tls ? "hostssl" : "hostnossl",
						 client->address, client->address);

	/* "names": what a member of the role's groups is matched by */
	v = ecm_check_query(3, &n,
						"WITH RECURSIVE groups(oid) AS ("
						"  SELECT oid FROM pg_authid WHERE rolname = %1$s"
						"  UNION SELECT m.roleid FROM groups g JOIN pg_auth_members m ON m.member = g.oid),"
						" names(name) AS (SELECT rolname FROM pg_authid JOIN groups USING (oid))"
						" SELECT r.line_number, r.auth_method,"
						" (SELECT substr(o, 5) FROM unnest(r.options) o WHERE o LIKE 'map=%%' LIMIT 1)"
						" FROM pg_hba_file_rules r"
						" WHERE r.error IS NULL AND %2$s"
						" AND EXISTS (SELECT FROM unnest(r.database) d WHERE d = 'all'"
						"  OR (d = 'sameuser' AND current_database() = %1$s)"
						"  OR (d IN ('samerole', 'samegroup') AND current_database() IN (SELECT name FROM names))"
						"  OR (d <> 'replication' AND d = current_database()))"
						" AND EXISTS (SELECT FROM unnest(r.user_name) u WHERE u = 'all' OR u = %1$s"
						"  OR (u LIKE '+%%' AND substr(u, 2) IN (SELECT name FROM names)))"
						" ORDER BY r." ECM_HBA_ORDER " LIMIT 1",
						quote_literal_cstr(client->role), where);
	if (n > 0)
	{
		rule.line = atoi(v[0]);
		rule.method = v[1];
		rule.map = v[2];
	}
	return rule;
}

/* Does pg_ident.conf let the server's own user be that role? */
static bool
is_mapped(const HbaClient *client, const char *map)
{
	int			n;

	if (map == NULL)
		return strcmp(client->os_user, client->role) == 0;
	(void) ecm_check_query(1, &n,
						   "SELECT 1 FROM pg_ident_file_mappings"
						   " WHERE error IS NULL AND map_name = %1$s"
						   " AND CASE WHEN sys_name LIKE '/%%' THEN %2$s ~ substr(sys_name, 2)"
						   "  AND replace(pg_username, chr(92) || '1',"
						   "   coalesce((regexp_match(%2$s, substr(sys_name, 2)))[1], '')) = %3$s"
						   " ELSE sys_name = %2$s AND pg_username = %3$s END LIMIT 1",
						   quote_literal_cstr(map), quote_literal_cstr(client->os_user),
						   quote_literal_cstr(client->role));
	return n > 0;
}

/* libpq's default place for passwords; of use only if nobody else can read it. */
static bool
default_password_file_exists(void)
{
	struct passwd *pw = getpwuid(geteuid());
	struct stat st;
	char		path[MAXPGPATH];

	if (pw == NULL)
		return false;
	snprintf(path, sizeof(path), "%s/.pgpass", pw->pw_dir);
	return stat(path, &st) == 0 && S_ISREG(st.st_mode) &&
		(st.st_mode & (S_IRWXG | S_IRWXO)) == 0;
}

/* The line that would let us in, as conn_error.c has it as a hint. */
static char *
hba_line(const EcmSituation *s, const HbaClient *client)
{
	char	   *line;

	if (client->address != NULL)
		line = psprintf("host \"%s\" \"%s\" %s scram-sha-256", s->datname, client->role,
						strchr(client->address, ':') ? "::1/128" : "127.0.0.1/32");
	else if (strcmp(client->os_user, client->role) == 0)
		line = psprintf("local \"%s\" \"%s\" peer", s->datname, client->role);
	else
		line = psprintf("local \"%s\" \"%s\" peer map=electric_cm  # and in pg_ident.conf: electric_cm \"%s\" \"%s\"",
						s->datname, client->role, client->os_user, client->role);
	return psprintf("%s  # first line of %s, then SELECT pg_reload_conf()", line,
					GetConfigOption("hba_file", false, false));
}

static bool
is_password_method(const char *method)
{
	static const char *const methods[] = {
		"scram-sha-256", "md5", "password", "ldap", "radius", "pam", "bsd"
	};

	for (int i = 0; i < (int) lengthof(methods); i++)
		if (strcmp(method, methods[i]) == 0)
			return true;
	return false;
}

/* Would the client get in by this line? */
static void
judge_rule(const EcmSituation *s, EcmFinding *f, const HbaClient *client,
		   const HbaRule *rule)
{
	const char *from = client->address != NULL ? client->address : "the Unix socket";

	if (rule->line == 0)
		ecm_check_fail(f, hba_line(s, client),
					   "no line of pg_hba.conf is for role \"%s\" and this database over %s",
					   client->role, from);
	else if (strcmp(rule->method, "trust") == 0)
		ecm_check_pass(f, "line %d of pg_hba.conf lets role \"%s\" in over %s",
					   rule->line, client->role, from);
	else if (strcmp(rule->method, "reject") == 0)
		ecm_check_fail(f, hba_line(s, client),
					   "line %d of pg_hba.conf rejects role \"%s\" over %s",
					   rule->line, client->role, from);
	else if (client->address == NULL &&
			 (strcmp(rule->method, "peer") == 0 || strcmp(rule->method, "ident") == 0))
	{
		if (is_mapped(client, rule->map))
			ecm_check_pass(f, "line %d of pg_hba.conf lets the server's own user \"%s\" in as role \"%s\"",
						   rule->line, client->os_user, client->role);
		else
			ecm_check_fail(f, hba_line(s, client),
						   "line %d of pg_hba.conf does not let the server's own user \"%s\" in as role \"%s\"",
						   rule->line, client->os_user, client->role);
	}
	else if (!is_password_method(rule->method))
		ecm_check_warn(f, hba_line(s, client),
					   "line %d of pg_hba.conf asks role \"%s\" for %s over %s, which may not work",
					   rule->line, client->role, rule->method, from);
	else if (client->has_password_file)
		ecm_check_pass(f, "line %d of pg_hba.conf asks role \"%s\" for a password over %s (%s), and electric_cm.connection names a file or service for it",
					   rule->line, client->role, from, rule->method);
	else if (default_password_file_exists())
		ecm_check_warn(f, client->address == NULL ? hba_line(s, client) : NULL,
					   "line %d of pg_hba.conf asks role \"%s\" for a password over %s (%s): ~/.pgpass of user \"%s\" must have it",
					   rule->line, client->role, from, rule->method, client->os_user);
	else
		ecm_check_fail(f, client->address == NULL ? hba_line(s, client) :
					   psprintf("localhost:%d:%s:%s:PASSWORD  # line of ~/.pgpass of user \"%s\", mode 0600",
								PostPortNumber, s->datname, client->role, client->os_user),
					   "line %d of pg_hba.conf asks role \"%s\" for a password over %s (%s), and none is configured",
					   rule->line, client->role, from, rule->method);
}

/*
 * Would the client get in?  If the server has TLS, libpq tries that first and, when it is
 * refused, goes without; so the better of the two counts.
 */
static void
judge_client(const EcmSituation *s, EcmFinding *f, const HbaClient *client)
{
	const char *ssl = GetConfigOption("ssl", true, false);
	HbaRule		rule = find_rule(client, false);

	judge_rule(s, f, client, &rule);
	if (client->address != NULL && ssl != NULL && strcmp(ssl, "on") == 0)
	{
		EcmFinding	with_tls;

		rule = find_rule(client, true);
		judge_rule(s, &with_tls, client, &rule);
		if (with_tls.verdict <= f->verdict)
			*f = with_tls;
	}
}

/* May something listen on that address, for all that listen_addresses says? */
static bool
may_listen(const char *wildcard, const char *address)
{
	List	   *addresses = NIL;
	ListCell   *lc;

	if (!SplitGUCList(pstrdup(ListenAddresses ? ListenAddresses : ""), ',', &addresses))
		return false;
	foreach(lc, addresses)
	{
		const char *listen = lfirst(lc);

		if (strcmp(listen, "*") == 0 || strcmp(listen, "localhost") == 0 ||
			strcmp(listen, wildcard) == 0 || strcmp(listen, address) == 0)
			return true;
	}
	return false;
}

/* A file with an error in it is not loaded at all. */
static bool
has_broken_line(EcmFinding *f)
{
	int			n;
	char	  **v = ecm_check_query(2, &n,
									"SELECT line_number, error FROM pg_hba_file_rules"
									" WHERE error IS NOT NULL ORDER BY line_number LIMIT 1");

	if (n > 0)
		ecm_check_fail(f, NULL, "line %s of pg_hba.conf is wrong, so that the file cannot be loaded: %s",
					   v[0], v[1] ? v[1] : "");
	return n > 0;
}

void
ecm_check_pg_hba(const EcmSituation *s, EcmFinding *f)
{
	EcmConnTarget target;
	HbaClient	client = {0};
	EcmFinding	other;

	if (!ecm_conn_target(ecm_check_setting(s, "connection"), &target) ||
		!target.loopback)
	{
		ecm_check_pass(f, "not checked, since electric_cm.connection says where to connect to");
		return;
	}
	if (has_broken_line(f))
		return;
	client.role = login_role(&target);
	client.os_user = os_user_name();
	client.has_password_file = target.has_password_file;
	if (has_unix_socket())
	{
		judge_client(s, f, &client);
		return;
	}

	ecm_check_fail(f, NULL, "the server listens neither on a Unix socket nor on a loopback address: set electric_cm.connection");
	if (may_listen("0.0.0.0", "127.0.0.1"))
	{
		client.address = "127.0.0.1";
		judge_client(s, f, &client);
	}
	if (may_listen("::", "::1"))
	{
		/*
		 * ::1 is tried first, if the server listens there, which can't be
		 * known for sure from here.
		 */
		client.address = "::1";
		judge_client(s, &other, &client);
		if (other.verdict > f->verdict || !may_listen("0.0.0.0", "127.0.0.1"))
		{
			*f = other;
			if (f->verdict == ECM_VERDICT_FAIL && may_listen("0.0.0.0", "127.0.0.1"))
				f->verdict = ECM_VERDICT_WARN;
		}
	}
}
