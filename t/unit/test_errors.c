/*-------------------------------------------------------------------------
 *
 * test_errors.c
 *	  What each SQLSTATE means, and reading what libpq reports.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <string.h>

#include "base/errors.h"
#include "unit.h"

#define RETRY		ECM_ERROR_RETRY
#define RECREATE	ECM_ERROR_RECREATE
#define FATAL		ECM_ERROR_FATAL

#define CONNECT		ECM_CONTEXT_CONNECT
#define PUBLICATION	ECM_CONTEXT_PUBLICATION
#define SLOT		ECM_CONTEXT_SLOT
#define STREAM		ECM_CONTEXT_STREAM
#define POOL		ECM_CONTEXT_POOL
#define OTHER		ECM_CONTEXT_OTHER

#define SOCKET		"connection to server on socket \"/tmp/.s.PGSQL.5432\" failed: "

/* hint: NULL for none, "*" for any or none, otherwise what it contains */
static const struct
{
	const char *sqlstate;
	EcmErrorContext context;
	const char *message;
	EcmErrorKind kind;
	const char *hint;
}			kinds[] =
{
	/* retry */
	{"", OTHER, "something", RETRY, NULL},
	{"ZZZZZ", OTHER, "nobody knows this one", RETRY, NULL},
	{"XX000", STREAM, "invalid memory alloc request size 1120000003", RETRY,
	"too large"},
	{"54000", STREAM, "out of memory", RETRY, "too large"},
	{"08000", CONNECT, "", RETRY, NULL},
	{"08001", CONNECT, "", RETRY, NULL},
	{"08003", STREAM, "", RETRY, NULL},
	{"08006", STREAM, "", RETRY, NULL},
	{"53100", STREAM, "could not write", RETRY, "disk"},
	{"53300", CONNECT, "sorry, too many clients already", RETRY,
	"max_connections"},
	{"53300", CONNECT, "number of requested standby connections exceeds "
	"max_wal_senders (currently 1)", RETRY, "max_wal_senders"},
	{"53300", POOL, "sorry, too many clients already", RETRY,
	"max_connections"},
	{"53400", SLOT, "all replication slots are in use", RETRY,
	"max_replication_slots"},
	{"53400", STREAM, "", RETRY, "max_wal_senders"},
	{"55006", SLOT, "replication slot \"a\" is active for PID 1", RETRY,
	"active_pid"},
	{"55006", STREAM, "replication slot \"a\" is active for PID 1", RETRY,
	"active_pid"},
	{"55006", POOL, "", RETRY, NULL},
	{"55P03", SLOT, "canceling statement due to lock timeout", RETRY,
	"pg_stat_activity"},
	{"55P03", POOL, "canceling statement due to lock timeout", RETRY, NULL},
	{"57014", POOL, "canceling statement due to user request", RETRY, NULL},
	{"57P01", STREAM, "terminating connection", RETRY, NULL},
	{"57P02", STREAM, "terminating connection", RETRY, NULL},
	{"57P03", CONNECT, "the database system is starting up", RETRY, NULL},
	{"58P01", STREAM, "requested WAL segment has already been removed", RETRY,
	NULL},
	{"58P02", SLOT, "", RETRY, NULL},
	{"XX000", STREAM, "", RETRY, NULL},
	{"42P01", POOL, "relation \"a\" does not exist", RETRY, NULL},
	{"42710", SLOT, "replication slot \"a\" already exists", RETRY, NULL},
	{"42939", PUBLICATION, "", RETRY, NULL},
	{"55000", OTHER, "", RETRY, NULL},
	{"55000", CONNECT, "database \"a\" is not currently accepting connections",
	RETRY, "ALLOW_CONNECTIONS"},

	/* a lost slot: the manager looks at the slot, we don't guess */
	{"55000", STREAM, "cannot read from logical replication slot \"a\"", RETRY,
	NULL},
	{"55000", STREAM, "can no longer get changes from replication slot \"a\"",
	RETRY, NULL},

	/* recreate, but only where it is the stream that says so */
	{"42704", STREAM, "publication \"a\" does not exist", RECREATE, NULL},
	{"42704", STREAM, "replication slot \"a\" does not exist", RECREATE, NULL},
	{"XX000", STREAM, "could not map filenode \"base/5/16384\" to relation OID",
	RECREATE, NULL},
	{"XX000", POOL, "could not map filenode \"base/5/16384\" to relation OID",
	RETRY, NULL},
	{"42704", PUBLICATION, "publication \"a\" does not exist", RETRY, NULL},
	{"42704", SLOT, "replication slot \"a\" does not exist", RETRY, NULL},
	{"42704", POOL, "publication \"a\" does not exist", RETRY, NULL},

	/* fatal */
	{"08P01", CONNECT, "unsupported startup parameter: replication", FATAL,
	"pooler"},
	{"28000", CONNECT, "no pg_hba.conf entry for host \"::1\"", FATAL, NULL},
	{"28000", CONNECT, "role \"a\" is not permitted to log in", FATAL, "LOGIN"},
	{"28000", CONNECT, "role \"a\" does not exist", FATAL, "Create the role"},
	{"28000", CONNECT, "connection requires a valid client certificate", FATAL,
	"sslcert"},
	{"28000", POOL, "certificate authentication failed for user \"a\"", FATAL,
	"pg_ident.conf"},
	{"28P01", CONNECT, "password authentication failed for user \"a\"", FATAL,
	"passfile"},
	{"28P01", POOL, "password authentication failed for user \"a\"", FATAL,
	"passfile"},
	{"28P01", CONNECT, "fe_sendauth: no password supplied", FATAL, NULL},
	{"3D000", CONNECT, "database \"a\" does not exist", FATAL,
	"electric_cm.connection"},
	{"42704", CONNECT, "unrecognized configuration parameter \"a\"", FATAL,
	"electric_cm.connection"},
	{"42501", CONNECT, "must be superuser or replication role to start "
	"walsender", FATAL, "REPLICATION"},
	{"42501", PUBLICATION, "permission denied for database a", FATAL, "CREATE"},
	{"42501", SLOT, "library \"pgoutput\" may not be used as an output plugin", FATAL, "output_plugin_libraries"},
	{"42501", STREAM, "library \"pgoutput\" may not be used as an output plugin", FATAL, "output_plugin_libraries"},
	{"42501", SLOT, "", FATAL, "REPLICATION"},
	{"42501", STREAM, "", FATAL, "REPLICATION"},
	{"42501", POOL, "permission denied for table a", FATAL, "Grant"},
	{"55000", SLOT, "logical decoding requires wal_level >= logical", FATAL,
	"Set wal_level = logical in postgresql.conf and restart the server."},
	{"55000", SLOT, "replication slots can only be used if "
	"max_replication_slots > 0", FATAL, "max_replication_slots"},
	{"55000", SLOT, "cannot copy a replication slot", RETRY, NULL},
	{"55000", STREAM, "logical decoding requires wal_level >= logical", RETRY,
	NULL},
	{"42602", SLOT, "replication slot name \"A\" contains invalid character",
	FATAL, "slot_name"},
	{"42622", SLOT, "replication slot name \"A\" is too long", FATAL,
	"slot_name"},
	{"42602", OTHER, "", RETRY, NULL},
	{"0A000", SLOT, "logical decoding cannot be used while in recovery", FATAL,
	"standby"},
	{"22023", OTHER, "invalid value for parameter \"a\": \"b\"", FATAL,
	"setting"},
	{"F0000", OTHER, "publication \"a\" does not publish truncate", FATAL, "*"}
};

/* What libpq refuses for good, and what the hint names. */
static const struct
{
	const char *text;
	const char *hint;
}			refusals[] =
{
	{"server does not support SSL, but SSL was required\n", "ssl = on"},
	{"root certificate file \"/no/such\" does not exist\n"
		"Either provide the file or change sslmode to disable server certificate"
	" verification.\n", "sslrootcert"},
	{"could not read root certificate file \"/a\": no certificate or crl found\n",
	"sslrootcert"},
	{"SSL error: certificate verify failed\n", "sslrootcert"},
	{"server certificate for \"a\" does not match host name \"b\"\n",
	"Set host in"},
	{"server certificate for \"a\" (and 1 other name) does not match host name"
	" \"b\"\n", "Set host in"},
	{"host name must be specified for a verified SSL connection\n",
	"Set host in"},
	{"could not get server's host name from server certificate\n",
	"Set host in"},
	{"could not open certificate file \"/a\": Permission denied\n", "sslcert"},
	{"could not read certificate file \"/a\": no start line\n", "sslcert"},
	{"certificate present, but not private key file \"/a\"\n", "sslkey"},
	{"private key file \"/a\" has group or world access; file must have"
	" permissions u=rw (0600) or less\n", "0600"},
	{"could not load private key file \"/a\": bad decrypt\n", "sslkey"},
	{"certificate does not match private key file \"/a\": key values mismatch\n",
	"sslkey"},
	{"SSL error: sslv3 alert certificate expired\n", "expired"},
	{"SSL error: ssl/tls alert certificate expired\n", "expired"},
	{"SSL error: tlsv13 alert certificate required\n", "sslcert"},
	{"SSL error: sslv3 alert bad certificate\n", "sslcert"},
	{"SSL error: tlsv1 alert unknown ca\n", "ssl_ca_file"},
	{"SSL error: unsupported protocol\n", "ssl_min_protocol_version"},
	{"SSL error: tlsv1 alert protocol version\n", "ssl_min_protocol_version"},
	{"channel binding required, but SSL not in use\n",
	"electric_cm.connection"}
};

/* What libpq reports, and what becomes of it. */
static const struct
{
	const char *name;
	const char *text;
	const char *sqlstate;
	const char *message;
	const char *detail;
	const char *hint;
}			reports[] =
{
	{
		"a server's error in verbose form",
		SOCKET "FATAL:  28P01: password authentication failed for user \"x\"\n"
		"LOCATION:  auth_failed, auth.c:326\n",
		"28P01", "password authentication failed for user \"x\"", "", ""
	},
	{
		"a translated severity",
		SOCKET "DÔ KRITISCH:  3D000: Datenbank »a« existiert nicht\n"
		"ORT:  InitPostgres, postinit.c:1024\n",
		"3D000", "Datenbank »a« existiert nicht", "", ""
	},
	{
		"detail and hint",
		SOCKET "FATAL:  53400: all is in use\nDETAIL:  There are 10.\n"
		"HINT:  Free one\nor add one.\nCONTEXT:  something else\n"
		"LOCATION:  f, g.c:1",
		"53400", "all is in use", "There are 10.", "Free one or add one."
	},
	{
		"no line end, no address",
		"ERROR:  55006: replication slot \"a\" is active for PID 123",
		"55006", "replication slot \"a\" is active for PID 123", "", ""
	},
	{
		"a session that was terminated",
		"FATAL:  57P01: terminating connection due to administrator command\n"
		"LOCATION:  ProcessInterrupts, postgres.c:3264\n"
		"server closed the connection unexpectedly\n"
		"\tThis probably means the server terminated abnormally\n"
		"\tbefore or while processing the request.\n",
		"57P01", "terminating connection due to administrator command", "", ""
	},
	{
		"two attempts, with and without TLS: the first counts",
		SOCKET "FATAL:  28000: no pg_hba.conf entry, SSL encryption\n"
		"LOCATION:  ClientAuthentication, auth.c:542\n"
		SOCKET "FATAL:  3D000: database \"a\" does not exist\n"
		"DETAIL:  of the second\n",
		"28000", "no pg_hba.conf entry, SSL encryption", "", ""
	},
	{
		"nobody listens on the socket",
		SOCKET "No such file or directory\n"
		"\tIs the server running locally and accepting connections on that "
		"socket?\n",
		"08001", SOCKET "No such file or directory",
		"Is the server running locally and accepting connections on that "
		"socket?", ""
	},
	{
		"connection refused",
		"could not connect to server: Connection refused",
		"08001", "could not connect to server: Connection refused", "", ""
	},
	{
		"the server died",
		"server closed the connection unexpectedly\n"
		"\tThis probably means the server terminated abnormally\n"
		"\tbefore or while processing the request.\n",
		"08006", "server closed the connection unexpectedly",
		"This probably means the server terminated abnormally before or while "
		"processing the request.", ""
	},
	{
		"the server died while the connection was being opened",
		SOCKET "server closed the connection unexpectedly\n",
		"08006", SOCKET "server closed the connection unexpectedly", "", ""
	},
	{
		"no password to send",
		SOCKET "fe_sendauth: no password supplied\n",
		"28P01", SOCKET "fe_sendauth: no password supplied", "", ""
	},
	{
		"a wrong password from a file",
		"connection to server at \"::1\", port 5432 failed: FATAL:  28P01: "
		"password authentication failed for user \"x\"\n"
		"LOCATION:  auth_failed, auth.c:326\n"
		"password retrieved from file \"/home/x/.pgpass\"\n",
		"28P01", "password authentication failed for user \"x\"",
		"password retrieved from file \"/home/x/.pgpass\"", ""
	},
	{
		"the network fails during the TLS handshake",
		"connection to server at \"::1\", port 5432 failed: "
		"SSL SYSCALL error: Connection reset by peer\n",
		"08001", "connection to server at \"::1\", port 5432 failed: "
		"SSL SYSCALL error: Connection reset by peer", "", ""
	},
	{
		"TLS that fails for whatever reason, then a refusal without it",
		"connection to server at \"::1\", port 5432 failed: "
		"SSL error: certificate verify failed\n"
		"connection to server at \"::1\", port 5432 failed: FATAL:  28000: "
		"no pg_hba.conf entry, no encryption\n"
		"LOCATION:  ClientAuthentication, auth.c:542\n",
		"28000", "no pg_hba.conf entry, no encryption", "", ""
	},
	{
		"an unknown connection option",
		"invalid connection option \"hots\"\n",
		"F0000", "invalid connection option \"hots\"", "", ""
	},
	{
		"a connection string that can't be read",
		"missing \"=\" after \"x\" in connection info string\n",
		"F0000", "missing \"=\" after \"x\" in connection info string", "", ""
	},
	{
		"a bad sslmode",
		"invalid sslmode value: \"maybe\"\n",
		"F0000", "invalid sslmode value: \"maybe\"", "", ""
	},
	{
		"SSL SYSCALL error",
		"SSL SYSCALL error: EOF detected\n",
		"08006", "SSL SYSCALL error: EOF detected", "", ""
	},
	{
		"a number that looks like an SQLSTATE but isn't one",
		"strange:  12a45: text\n",
		"08006", "strange:  12a45: text", "", ""
	},
	{"an SQLSTATE cut short", "FATAL:  28P", "08006", "FATAL:  28P", "", ""},
	{"an SQLSTATE and nothing else", "FATAL:  28P01: ", "28P01", "", "", ""},
	{"no text", "", "08006", "connection lost", "", ""},
	{"no text at all", NULL, "08006", "connection lost", "", ""}
};

static void
test_kinds(void)
{
	EcmError	err;
	size_t		i;

	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
	{
		static const char *const kind_names[] = {"retried", "recreate", "fatal"};
		static const char *const context_names[] = {"connection", "publication",
		"slot", "stream", "pool", "other"};
		char		name[256];
		const char *hint;
		bool		hint_ok;

		ecm_error_set(&err, kinds[i].sqlstate, kinds[i].message, NULL, NULL);
		hint = ecm_error_hint(&err, kinds[i].context);
		if (kinds[i].hint == NULL)
			hint_ok = (hint == NULL);
		else if (strcmp(kinds[i].hint, "*") == 0)
			hint_ok = true;
		else
			hint_ok = (hint != NULL && strstr(hint, kinds[i].hint) != NULL);

		snprintf(name, sizeof(name), "%s in %s is %s: %s",
				 kinds[i].sqlstate[0] ? kinds[i].sqlstate : "no SQLSTATE",
				 context_names[kinds[i].context], kind_names[kinds[i].kind],
				 kinds[i].message);
		if (!ok(ecm_error_kind(&err, kinds[i].context) == kinds[i].kind &&
				hint_ok, name))
			printf("#   kind %d, hint \"%s\"\n",
				   (int) ecm_error_kind(&err, kinds[i].context),
				   hint ? hint : "(null)");
	}

	ecm_error_set(&err, "53400", "all replication slots are in use", NULL,
				  "Free one or increase max_replication_slots.");
	is_str(ecm_error_hint(&err, ECM_CONTEXT_SLOT),
		   "Free one or increase max_replication_slots.",
		   "an error's own hint wins");
}

/* Every SQLSTATE of the classes that are retried as a whole. */
static void
test_classes(void)
{
	static const char *const retried[] = {"08", "53", "57", "58", "XX", "40"};
	static const char digits[] = "0123456789P";
	size_t		i;
	int			a,
				b,
				context;

	for (i = 0; i < sizeof(retried) / sizeof(retried[0]); i++)
		for (a = 0; a < 11; a++)
			for (b = 0; b < 10; b++)
				for (context = CONNECT; context <= OTHER; context++)
				{
					char		state[6];
					EcmError	err;

					snprintf(state, sizeof(state), "%s%c0%c", retried[i],
							 digits[a], digits[b]);
					ecm_error_set(&err, state, "x", NULL, NULL);
					if (strcmp(state, "08P01") != 0)
						CHECK(ecm_error_kind(&err, context) == RETRY);
					else
						CHECK(ecm_error_kind(&err, context) == FATAL);
				}
	checked("classes 08, 53, 57, 58, XX, 40 are retried in every context,"
			" but for 08P01");
}

/* What makes it worth while to wait where the stream has failed. */
static void
test_may_pass(void)
{
	static const char *const passing[] = {
		"08006", "53100", "53200", "53300", "57P01", "57P03", "57014", "58030",
		"58P01", "55006", "40001"
	};
	static const char *const lasting[] = {
		"XX000", "XX001", "54000", "22021", "22P05", "42P01", "42883", "0A000"
	};
	EcmError	err;
	size_t		i;

	for (i = 0; i < sizeof(passing) / sizeof(passing[0]); i++)
	{
		ecm_error_set(&err, passing[i], "x", NULL, NULL);
		CHECK(ecm_error_may_pass(&err));
	}
	checked("a full disk, too little memory, and a session that was ended pass");
	for (i = 0; i < sizeof(lasting) / sizeof(lasting[0]); i++)
	{
		ecm_error_set(&err, lasting[i], "x", NULL, NULL);
		CHECK(!ecm_error_may_pass(&err));
	}
	checked("what can't be decoded does not");
}

static void
test_libpq(void)
{
	size_t		i;

	for (i = 0; i < sizeof(reports) / sizeof(reports[0]); i++)
	{
		EcmError	err;

		memset(&err, 'x', sizeof(err));
		ecm_error_from_libpq(&err, reports[i].text);
		if (!ok(strcmp(err.sqlstate, reports[i].sqlstate) == 0 &&
				strcmp(err.message, reports[i].message) == 0 &&
				strcmp(err.detail, reports[i].detail) == 0 &&
				strcmp(err.hint, reports[i].hint) == 0, reports[i].name))
			printf("#   got \"%s\" \"%s\" \"%s\" \"%s\"\n", err.sqlstate,
				   err.message, err.detail, err.hint);
	}
}

/* Each as libpq reports it, with the address before it. */
static void
test_refusals(void)
{
	size_t		i;

	for (i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++)
	{
		char		text[1024];
		char		name[256];
		EcmError	err;
		const char *hint;

		snprintf(text, sizeof(text), "connection to server at \"localhost\" "
				 "(127.0.0.1), port 5432 failed: %s", refusals[i].text);
		ecm_error_from_libpq(&err, text);
		hint = ecm_error_hint(&err, CONNECT);
		snprintf(name, sizeof(name), "fatal, and the hint has \"%s\": %.*s",
				 refusals[i].hint, (int) strcspn(refusals[i].text, "\n"),
				 refusals[i].text);
		if (!ok(ecm_error_kind(&err, CONNECT) == FATAL &&
				ecm_error_kind(&err, POOL) == FATAL &&
				strcmp(err.sqlstate, "F0000") == 0 &&
				hint != NULL && strstr(hint, refusals[i].hint) != NULL, name))
			printf("#   got %s \"%s\"\n", err.sqlstate, hint ? hint : "(null)");
	}
}

static void
test_truncation(void)
{
	char		text[4096];
	EcmError	err;
	int			i;

	memset(text, 'a', sizeof(text));
	text[sizeof(text) - 1] = '\0';
	ecm_error_set(&err, "28P01XXX", text, text, text);
	CHECK(strcmp(err.sqlstate, "28P01") == 0);
	CHECK(strlen(err.message) == ECM_ERROR_TEXT_LEN - 1);
	CHECK(strlen(err.detail) == ECM_ERROR_TEXT_LEN - 1);
	CHECK(strlen(err.hint) == ECM_ERROR_TEXT_LEN - 1);
	checked("texts that are too long are cut");

	text[ECM_ERROR_TEXT_LEN - 1] = '\0';
	ecm_error_set(&err, NULL, text, NULL, NULL);
	CHECK(strcmp(err.message, text) == 0 && err.sqlstate[0] == '\0');
	checked("a text that just fits is not cut");

	/* two-byte characters, so that the cut would fall inside one */
	for (i = 0; i + 1 < (int) sizeof(text) - 1; i += 2)
		memcpy(text + i, "\xC3\xA4", 2);
	text[i] = '\0';
	ecm_error_set(&err, "", text, NULL, NULL);
	is_int((int64_t) strlen(err.message), ECM_ERROR_TEXT_LEN - 2,
		   "a text is not cut inside a character");

	/* long continued fields */
	strcpy(text, "FATAL:  28P01: m\nDETAIL:  ");
	for (i = 0; i < 100; i++)
		strcat(text, "0123456789 abcdefgh\n");
	ecm_error_from_libpq(&err, text);
	CHECK(strlen(err.detail) == ECM_ERROR_TEXT_LEN - 1);
	CHECK(strncmp(err.detail, "0123456789 abcdefgh 0123456789", 30) == 0);
	CHECK(strcmp(err.message, "m") == 0 && err.hint[0] == '\0');
	checked("a detail of many lines is cut");
}

/* Any text must do, as it is the server at the other end that writes it. */
static void
test_random_text(void)
{
	static const char *const words[] = {
		"FATAL", ":  ", "28P01", ": ", "\n", "DETAIL:  ", "HINT:  ", "\t", "x",
		"LOCATION:  ", " ", "connection to server ", "\"", "0123456789012345678",
		"server closed the connection", "\xC3\xA4", ":", "failed", "8"
	};
	int			i;

	random_start(3);
	for (i = 0; i < 20000; i++)
	{
		char		text[2048] = "";
		EcmError	err;
		int			n = (int) random_below(60);

		while (n-- > 0)
			strcat(text, words[random_below(sizeof(words) / sizeof(words[0]))]);
		memset(&err, 'x', sizeof(err));
		ecm_error_from_libpq(&err, text);
		CHECK(strlen(err.sqlstate) == 5);
		CHECK(memchr(err.message, '\0', ECM_ERROR_TEXT_LEN) != NULL);
		CHECK(memchr(err.detail, '\0', ECM_ERROR_TEXT_LEN) != NULL);
		CHECK(memchr(err.hint, '\0', ECM_ERROR_TEXT_LEN) != NULL);
		CHECK(strchr(err.message, '\n') == NULL);
	}
	checked("random texts are parsed without harm");
}

/* What is shown to those who may not see rows. */
static void
test_public(void)
{
	static const char *const quoting[] = {
		"22007", "22P02", "22001", "23505", "42601", "42704", "42P01", "54000",
		"55P04", "0A000", "P0001", "38000", "AB123", "22"
	};
	static const char *const harmless[] = {
		"", "08006", "28P01", "53200", "53100", "55000", "55P03", "57P01",
		"58P01", "XX000", "40P01", "42501"
	};
	EcmError	err;
	int			i;

	for (i = 0; i < (int) (sizeof(quoting) / sizeof(quoting[0])); i++)
		CHECK(strstr(ecm_error_for_public(quoting[i], "\"Alice\""), "Alice") == NULL);
	for (i = 0; i < (int) (sizeof(harmless) / sizeof(harmless[0])); i++)
		CHECK(strcmp(ecm_error_for_public(harmless[i], "text"), "text") == 0);
	checked("texts of errors that may quote a row are not public, others are");

	CHECK(strstr(ecm_error_of_rows_for_public("XX000", "\"Alice\""), "Alice") == NULL);
	CHECK(strstr(ecm_error_of_rows_for_public("22P02", "\"Alice\""), "Alice") == NULL);
	CHECK(strcmp(ecm_error_of_rows_for_public("53100", "text"), "text") == 0);
	checked("an internal error of a session that reads rows is not public");

	CHECK(strcmp(ecm_error_condition("22012"), "division by zero (SQLSTATE 22012)") == 0);
	CHECK(strcmp(ecm_error_condition("220ZZ"), "data exception (SQLSTATE 220ZZ)") == 0);
	CHECK(strcmp(ecm_error_public_text("EC002: \"Alice\""),
				 "held up the others, see electric_cm.shape_stall_timeout (SQLSTATE EC002)") == 0);
	CHECK(strcmp(ecm_error_condition("QQ000"), "an error (SQLSTATE QQ000)") == 0);
	CHECK(strcmp(ecm_error_condition(""), "an error") == 0);
	CHECK(strcmp(ecm_error_condition("PIN 4711"), "an error") == 0);
	checked("instead, the error's name and SQLSTATE");

	CHECK(strcmp(ecm_error_untagged("22012: division by zero"), "division by zero") == 0);
	CHECK(strcmp(ecm_error_untagged("PIN: 4711"), "PIN: 4711") == 0);
	CHECK(strcmp(ecm_error_untagged("22012"), "22012") == 0);
	CHECK(strcmp(ecm_error_untagged(""), "") == 0);
	CHECK(strcmp(ecm_error_public_text("42601: \"PIN 4711\""),
				 "syntax error (SQLSTATE 42601)") == 0);
	CHECK(strcmp(ecm_error_public_text("00000: the table was truncated"),
				 "the table was truncated") == 0);
	CHECK(strcmp(ecm_error_public_text("PIN 4711"), "an error") == 0);
	CHECK(strcmp(ecm_error_public_text(""), "an error") == 0);
	checked("of a shape's error, too");

	ecm_error_set(&err, "22021", "byte sequence \"4711\"", "4711", "4711");
	ecm_error_hide_row(&err);
	CHECK(strcmp(err.message, "character not in repertoire (SQLSTATE 22021)") == 0);
	CHECK(err.detail[0] == '\0' && err.hint[0] == '\0');
	ecm_error_set(&err, "42704", "publication \"p\" does not exist", NULL, NULL);
	ecm_error_hide_row(&err);
	CHECK(strcmp(err.message, "publication \"p\" does not exist") == 0);
	checked("of what the stream ends with, too");
}

static const struct
{
	const char *sqlstate;
	EcmShapeWork work;
	EcmFault	fault;
}			faults[] =
{
	{"0A000", ECM_WORK_PUBLISH, ECM_FAULT_OF_IT},
	{"42501", ECM_WORK_PUBLISH, ECM_FAULT_OF_IT},
	{"55000", ECM_WORK_PUBLISH, ECM_FAULT_OF_IT},
	{"55P03", ECM_WORK_PUBLISH, ECM_FAULT_OF_NONE},
	{"42704", ECM_WORK_PUBLISH, ECM_FAULT_OF_NONE},
	{"22012", ECM_WORK_PUBLISH, ECM_FAULT_OF_NONE},
	{"", ECM_WORK_PUBLISH, ECM_FAULT_OF_NONE},

	{"22012", ECM_WORK_CREATE, ECM_FAULT_OF_IT},
	{"40001", ECM_WORK_CREATE, ECM_FAULT_OF_IT},
	{"55000", ECM_WORK_CREATE, ECM_FAULT_OF_IT},
	{"53200", ECM_WORK_CREATE, ECM_FAULT_OF_IT},
	{"53400", ECM_WORK_CREATE, ECM_FAULT_OF_IT},
	{"XX000", ECM_WORK_CREATE, ECM_FAULT_OF_IT},
	{"", ECM_WORK_CREATE, ECM_FAULT_OF_IT},
	{"53100", ECM_WORK_CREATE, ECM_FAULT_OF_NONE},
	{"53300", ECM_WORK_CREATE, ECM_FAULT_OF_NONE},
	{"08006", ECM_WORK_CREATE, ECM_FAULT_OF_NONE},
	{"55P03", ECM_WORK_CREATE, ECM_FAULT_OF_NONE},
	{"57014", ECM_WORK_CREATE, ECM_FAULT_OF_NONE},
	{"58030", ECM_WORK_CREATE, ECM_FAULT_OF_NONE},

	{"EC002", ECM_WORK_CREATE, ECM_FAULT_OF_IT},
	{"EC002", ECM_WORK_SNAPSHOT, ECM_FAULT_OF_IT},
	{"EC002", ECM_WORK_FOLLOW, ECM_FAULT_OF_IT},
	{"22012", ECM_WORK_SNAPSHOT, ECM_FAULT_OF_IT},
	{"0A000", ECM_WORK_SNAPSHOT, ECM_FAULT_OF_IT},
	{"42501", ECM_WORK_SNAPSHOT, ECM_FAULT_OF_IT},
	{"54000", ECM_WORK_SNAPSHOT, ECM_FAULT_OF_IT},
	{"53200", ECM_WORK_SNAPSHOT, ECM_FAULT_IF_AGAIN},
	{"53400", ECM_WORK_SNAPSHOT, ECM_FAULT_IF_AGAIN},
	{"XX000", ECM_WORK_SNAPSHOT, ECM_FAULT_IF_AGAIN},
	{"P0001", ECM_WORK_SNAPSHOT, ECM_FAULT_IF_AGAIN},
	{"21000", ECM_WORK_SNAPSHOT, ECM_FAULT_IF_AGAIN},
	{"08006", ECM_WORK_SNAPSHOT, ECM_FAULT_OF_NONE},
	{"25001", ECM_WORK_SNAPSHOT, ECM_FAULT_OF_NONE},
	{"40001", ECM_WORK_SNAPSHOT, ECM_FAULT_OF_NONE},
	{"53100", ECM_WORK_SNAPSHOT, ECM_FAULT_OF_NONE},
	{"55000", ECM_WORK_SNAPSHOT, ECM_FAULT_OF_NONE},
	{"57014", ECM_WORK_SNAPSHOT, ECM_FAULT_OF_NONE},
	{"58P01", ECM_WORK_SNAPSHOT, ECM_FAULT_OF_NONE},

	{"22012", ECM_WORK_FOLLOW, ECM_FAULT_OF_IT},
	{"42601", ECM_WORK_FOLLOW, ECM_FAULT_OF_IT},
	{"54000", ECM_WORK_FOLLOW, ECM_FAULT_OF_IT},
	{"XX000", ECM_WORK_FOLLOW, ECM_FAULT_OF_IT},
	{"XX001", ECM_WORK_FOLLOW, ECM_FAULT_OF_IT},
	{"53000", ECM_WORK_FOLLOW, ECM_FAULT_IF_AGAIN},
	{"53200", ECM_WORK_FOLLOW, ECM_FAULT_IF_AGAIN},
	{"53400", ECM_WORK_FOLLOW, ECM_FAULT_IF_AGAIN},
	{"53100", ECM_WORK_FOLLOW, ECM_FAULT_OF_NONE},
	{"53300", ECM_WORK_FOLLOW, ECM_FAULT_OF_NONE},
	{"08000", ECM_WORK_FOLLOW, ECM_FAULT_OF_NONE},
	{"40P01", ECM_WORK_FOLLOW, ECM_FAULT_OF_NONE},
	{"55P03", ECM_WORK_FOLLOW, ECM_FAULT_OF_NONE},
	{"57P01", ECM_WORK_FOLLOW, ECM_FAULT_OF_NONE},
	{"58030", ECM_WORK_FOLLOW, ECM_FAULT_OF_NONE},

	{"22P05", ECM_WORK_SEND, ECM_FAULT_OF_IT},
	{"38000", ECM_WORK_SEND, ECM_FAULT_OF_IT},
	{"54000", ECM_WORK_SEND, ECM_FAULT_OF_IT},
	{"P0001", ECM_WORK_SEND, ECM_FAULT_OF_IT},
	{"XX000", ECM_WORK_SEND, ECM_FAULT_OF_NONE},
	{"39000", ECM_WORK_SEND, ECM_FAULT_OF_NONE},
	{"42704", ECM_WORK_SEND, ECM_FAULT_OF_NONE},
	{"53200", ECM_WORK_SEND, ECM_FAULT_OF_NONE},
	{"57014", ECM_WORK_SEND, ECM_FAULT_OF_NONE},

	{"42704", ECM_WORK_FOLD, ECM_FAULT_IT_IS_GONE},
	{"55P03", ECM_WORK_FOLD, ECM_FAULT_IT_IS_GONE},
	{"55006", ECM_WORK_FOLD, ECM_FAULT_TOO_EARLY},
	{"54000", ECM_WORK_FOLD, ECM_FAULT_OF_IT},
	{"54001", ECM_WORK_FOLD, ECM_FAULT_OF_IT},
	{"XX001", ECM_WORK_FOLD, ECM_FAULT_OF_IT},
	{"55000", ECM_WORK_FOLD, ECM_FAULT_OF_NONE},
	{"53200", ECM_WORK_FOLD, ECM_FAULT_OF_NONE},
	{"57014", ECM_WORK_FOLD, ECM_FAULT_OF_NONE},
	{"", ECM_WORK_FOLD, ECM_FAULT_OF_NONE},

	{"54000", ECM_WORK_FOLD_LOG, ECM_FAULT_OF_IT},
	{"54001", ECM_WORK_FOLD_LOG, ECM_FAULT_OF_NONE},
	{"22012", ECM_WORK_FOLD_LOG, ECM_FAULT_OF_NONE},
	{"55P03", ECM_WORK_FOLD_LOG, ECM_FAULT_OF_NONE}
};

static void
test_faults(void)
{
	int			i;

	for (i = 0; i < (int) (sizeof(faults) / sizeof(faults[0])); i++)
		if (!CHECK(ecm_error_fault(faults[i].sqlstate, "", faults[i].work) == faults[i].fault))
			printf("#   %s, %d\n", faults[i].sqlstate, faults[i].work);
	checked("whose fault an error is that is raised in work for a shape");

	ok(ecm_error_fault("XX000", "invalid memory alloc request size 1120000003",
					   ECM_WORK_SEND) == ECM_FAULT_OF_IT &&
	   ecm_error_fault("XX000", "cache lookup failed, invalid memory alloc request size",
					   ECM_WORK_SEND) == ECM_FAULT_OF_NONE &&
	   ecm_error_fault("XX000", NULL, ECM_WORK_SEND) == ECM_FAULT_OF_NONE,
	   "a row that is too large is told by the message");

	ok(ecm_error_is_refusal("28P01") && ecm_error_is_refusal("28000") &&
	   !ecm_error_is_refusal("08006") && !ecm_error_is_refusal(""),
	   "a refusal is known as one");
	ok(ecm_error_is_connection("08006") && ecm_error_is_connection("08P01") &&
	   !ecm_error_is_connection("28000") && !ecm_error_is_connection(""),
	   "... and so is a connection that fails");
	ok(ecm_error_is_password("28P01") && !ecm_error_is_password("28000") &&
	   ecm_error_is_name_taken("42710") && !ecm_error_is_name_taken("42704") &&
	   ecm_error_is_file_missing("58P01") && !ecm_error_is_file_missing("58P02") &&
	   ecm_error_is_no_worker(ECM_SQLSTATE_NO_WORKER) && !ecm_error_is_no_worker("53300"),
	   "... and single ones");
	ok(ecm_error_is_name_not_found("42P01") && ecm_error_is_name_not_found("42883") &&
	   ecm_error_is_name_not_found("42704") && !ecm_error_is_name_not_found("42703"),
	   "... and a name that is not found");
}

void
test_errors(void)
{
	test_kinds();
	test_faults();
	test_classes();
	test_may_pass();
	test_libpq();
	test_refusals();
	test_truncation();
	test_random_text();
	test_public();
}
