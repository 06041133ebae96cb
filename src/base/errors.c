/*-------------------------------------------------------------------------
 *
 * errors.c
 *	  What an error means for the stack: retry, recreate or fatal; and for a
 *	  shape: whose fault it is.
 *
 * Each of the two questions has a table: "rules" and "fault_rules".  An error
 * that is not in the first one is retried, since giving up for good on an
 * error that nobody has thought of is worse than trying again.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/errors.h"

#define SQLSTATE_LEN	5
#define ANY_CONTEXT		(-1)

typedef struct ErrorRule
{
	const char *sqlstate;		/* five characters, or two: a whole class */
	int			context;		/* EcmErrorContext, or ANY_CONTEXT */
	const char *text;			/* that the message contains; NULL: any
								 * message */
	EcmErrorKind kind;
	const char *hint;			/* may be NULL */
} ErrorRule;

/* Hints, by what they tell the reader to do. */
#define HINT_ALLOW_CONNECTIONS \
	"Run ALTER DATABASE ... ALLOW_CONNECTIONS true for the database."
#define HINT_CERTIFICATE_NAME \
	"The client certificate's common name must be the role's name, or be mapped" \
	" to it in pg_ident.conf; correct sslcert in electric_cm.connection and" \
	" reload."
#define HINT_CLIENT_CERTIFICATE \
	"sslcert and sslkey in electric_cm.connection must name a certificate that" \
	" has not expired and whose issuer is in the server's ssl_ca_file, and its" \
	" key with mode 0600; correct them and reload."
#define HINT_CONNECTION \
	"Correct electric_cm.connection, or leave it empty to connect to this" \
	" server and database, and reload."
#define HINT_ENABLE_TLS \
	"Set ssl = on in postgresql.conf, or sslmode=prefer in" \
	" electric_cm.connection, and reload."
#define HINT_FREE_DISK \
	"Free disk space on the server."
#define HINT_GRANT \
	"Grant the role what the message names and reload; or leave" \
	" electric_cm.connection and electric_cm.pooled_connection empty."
#define HINT_GRANT_CONNECT \
	"Run ALTER ROLE ... REPLICATION for the role, grant it CONNECT on the" \
	" database, and reload; or leave electric_cm.connection empty."
#define HINT_GRANT_CREATE \
	"Grant the role CREATE on the database, make it a member of the" \
	" publication's owner, and reload; or leave electric_cm.connection empty."
#define HINT_GRANT_REPLICATION \
	"Run ALTER ROLE ... REPLICATION for the role and reload."
#define HINT_HOST_NAME \
	"Set host in electric_cm.connection to a name in the server's certificate" \
	" (hostaddr may say where to connect to), or use sslmode=verify-ca, and" \
	" reload."
#define HINT_LOGIN \
	"Run ALTER ROLE ... LOGIN for the role and reload."
#define HINT_NO_POOLER \
	"Set electric_cm.connection to the server itself, not to a connection" \
	" pooler, and reload."
#define HINT_NO_SUCH_ROLE \
	"Create the role, or correct the user in electric_cm.connection, and" \
	" reload."
#define HINT_OPEN_TRANSACTIONS \
	"A slot is created only when the transactions that run now have ended:" \
	" see xact_start in pg_stat_activity, and pg_prepared_xacts."
#define HINT_OUTPUT_PLUGIN \
	"Add pgoutput to output_plugin_libraries and reload."
#define HINT_PASSWORD \
	"Correct the password in the file that passfile in electric_cm.connection" \
	" names (default: ~/.pgpass), or that of the role, and reload."
#define HINT_ROOT_CERTIFICATE \
	"sslrootcert in electric_cm.connection must name a file with the" \
	" certificate of the authority that has issued the server's" \
	" (ssl_cert_file), which must not have expired; correct it and reload."
#define HINT_SESSIONS \
	"Raise max_connections in postgresql.conf and restart the server, or end" \
	" sessions that are not needed."
#define HINT_SETTING \
	"Correct the setting that the message names and reload."
#define HINT_SLOT_IN_USE \
	"Another session uses the slot: see active_pid in pg_replication_slots."
#define HINT_SLOT_NAME \
	"Correct electric_cm.slot_name and reload."
#define HINT_SLOTS \
	"Raise max_replication_slots in postgresql.conf and restart the server," \
	" or drop a slot that is not needed."
#define HINT_SLOTS_AND_WALSENDERS \
	"Raise max_replication_slots and max_wal_senders in postgresql.conf and" \
	" restart the server."
#define HINT_TLS_VERSIONS \
	"Let ssl_min_protocol_version and ssl_max_protocol_version of the server" \
	" and of electric_cm.connection have a version in common, and reload."
#define HINT_TOO_LARGE \
	"A row, or a logical message, is too large to be decoded: PostgreSQL can" \
	" send no more than 1 GB, as text. If this goes on, the slot is made anew" \
	" behind it, and all shapes are compared with their tables."
#define HINT_UNSUPPORTED \
	"Set electric_cm.connection to a server that supports this: PostgreSQL" \
	" 15 or later, not a standby."
#define HINT_WAL_LEVEL \
	"Set wal_level = logical in postgresql.conf and restart the server."
#define HINT_WALSENDERS \
	"Raise max_wal_senders in postgresql.conf and restart the server."

/*
 * The first rule that applies counts, so an exception precedes the rule that
 * it is an exception from.
 *
 * 55000 and 58P01 in the stream can mean that the slot has been invalidated,
 * but their messages do not say so reliably.  They have no rule here, so they
 * are retried, unless the manager looks at the slot and finds it invalidated.
 */
#define ANY			ANY_CONTEXT
#define CONNECT		ECM_CONTEXT_CONNECT
#define PUBLICATION	ECM_CONTEXT_PUBLICATION
#define SLOT		ECM_CONTEXT_SLOT
#define STREAM		ECM_CONTEXT_STREAM
#define RETRY		ECM_ERROR_RETRY
#define RECREATE	ECM_ERROR_RECREATE
#define FATAL		ECM_ERROR_FATAL

static const ErrorRule rules[] = {
	/* the connection */
	{"08P01", ANY, NULL, FATAL, HINT_NO_POOLER},
	{"08", ANY, NULL, RETRY, NULL},
	{"28000", CONNECT, "is not permitted to log in", FATAL, HINT_LOGIN},
	{"28000", CONNECT, "does not exist", FATAL, HINT_NO_SUCH_ROLE},
	{"28000", ANY, "valid client certificate", FATAL, HINT_CLIENT_CERTIFICATE},
	{"28000", ANY, "ertificate authentication failed", FATAL,
	HINT_CERTIFICATE_NAME},
	{"28000", ANY, NULL, FATAL, NULL},
	{"28P01", ANY, "password authentication failed", FATAL, HINT_PASSWORD},
	{"28P01", ANY, NULL, FATAL, NULL},
	{"3D000", ANY, NULL, FATAL, HINT_CONNECTION},
	{"42704", CONNECT, NULL, FATAL, HINT_CONNECTION},
	{"55000", CONNECT, "not currently accepting connections", RETRY,
	HINT_ALLOW_CONNECTIONS},
	{"57", ANY, NULL, RETRY, NULL},

	/* what the role may do */
	{"42501", ANY, "may not be used as an output plugin", FATAL, HINT_OUTPUT_PLUGIN},
	{"42501", CONNECT, NULL, FATAL, HINT_GRANT_CONNECT},
	{"42501", PUBLICATION, NULL, FATAL, HINT_GRANT_CREATE},
	{"42501", SLOT, NULL, FATAL, HINT_GRANT_REPLICATION},
	{"42501", STREAM, NULL, FATAL, HINT_GRANT_REPLICATION},
	{"42501", ANY, NULL, FATAL, HINT_GRANT},

	/* the publication or the slot is gone */
	{"42704", STREAM, NULL, RECREATE, NULL},

	/*
	 * after ALTER DATABASE SET TABLESPACE, the WAL that was written before it
	 * refers to files that do not exist any more, and cannot be decoded
	 */
	{"XX000", STREAM, "could not map file", RECREATE, NULL},

	/* a row or message is too large for the walsender to decode or send */
	{"XX000", STREAM, "invalid memory alloc request size", RETRY, HINT_TOO_LARGE},
	{"54000", STREAM, NULL, RETRY, HINT_TOO_LARGE},

	/* resources that are exhausted, and can become free again */
	{"53100", ANY, NULL, RETRY, HINT_FREE_DISK},
	{"53300", CONNECT, "max_wal_senders", RETRY, HINT_WALSENDERS},
	{"53300", ANY, NULL, RETRY, HINT_SESSIONS},
	{"53400", SLOT, NULL, RETRY, HINT_SLOTS},
	{"53400", ANY, NULL, RETRY, HINT_SLOTS_AND_WALSENDERS},
	{"55006", SLOT, NULL, RETRY, HINT_SLOT_IN_USE},
	{"55006", STREAM, NULL, RETRY, HINT_SLOT_IN_USE},
	{"55P03", SLOT, NULL, RETRY, HINT_OPEN_TRANSACTIONS},

	/* settings of the server that only a restart changes */
	{"55000", SLOT, "wal_level", FATAL, HINT_WAL_LEVEL},
	{"55000", SLOT, "max_replication_slots", FATAL, HINT_SLOTS},

	/* errors of libpq itself, to which libpq_texts (below) gives F0000 */
	{"F0000", ANY, "server does not support SSL", FATAL, HINT_ENABLE_TLS},
	{"F0000", ANY, "certificate verify failed", FATAL, HINT_ROOT_CERTIFICATE},
	{"F0000", ANY, "root certificate file", FATAL, HINT_ROOT_CERTIFICATE},
	{"F0000", ANY, "does not match host name", FATAL, HINT_HOST_NAME},
	{"F0000", ANY, "host name must be specified", FATAL, HINT_HOST_NAME},
	{"F0000", ANY, "get server's host name", FATAL, HINT_HOST_NAME},
	{"F0000", ANY, "protocol version", FATAL, HINT_TLS_VERSIONS},
	{"F0000", ANY, "unsupported protocol", FATAL, HINT_TLS_VERSIONS},
	{"F0000", ANY, "certificate", FATAL, HINT_CLIENT_CERTIFICATE},
	{"F0000", ANY, "private key", FATAL, HINT_CLIENT_CERTIFICATE},
	{"F0000", ANY, "unknown ca", FATAL, HINT_CLIENT_CERTIFICATE},

	/*
	 * our settings are wrong; an error that we raise ourselves with F0000 has
	 * its own hint already
	 */
	{"F0000", ANY, NULL, FATAL, HINT_CONNECTION},
	{"42602", SLOT, NULL, FATAL, HINT_SLOT_NAME},
	{"42622", SLOT, NULL, FATAL, HINT_SLOT_NAME},
	{"0A000", ANY, NULL, FATAL, HINT_UNSUPPORTED},
	{"22023", ANY, NULL, FATAL, HINT_SETTING}
};

#undef ANY
#undef CONNECT
#undef PUBLICATION
#undef SLOT
#undef STREAM
#undef RETRY
#undef RECREATE
#undef FATAL

/*
 * SQLSTATEs for errors that libpq raises itself, which have none: parts of
 * their texts (lc_messages is C, so they are not translated).  The first match
 * counts.
 *
 * A TLS handshake that fails because of files or settings fails each time:
 * F0000, which is fatal.  Texts that are not listed, such as "SSL SYSCALL
 * error", may be the network's fault, and are retried.  OpenSSL's texts for an
 * alert of the server begin differently from version to version, as in "sslv3
 * alert certificate expired", so only the part from "alert" on is compared.
 */
static const struct
{
	const char *text;
	const char *sqlstate;
}			libpq_texts[] =
{
	{"no password supplied", "28P01"},
	{"server does not support SSL, but SSL was required", "F0000"},
	{"server does not support GSSAPI encryption, but", "F0000"},
	{"channel binding required", "F0000"},
	{"channel binding is required", "F0000"},
	{"authentication method requirement", "F0000"},
	{"certificate verify failed", "F0000"},
	{"certificate file \"", "F0000"},
	{"locate root certificate file", "F0000"},
	{"private key file", "F0000"},
	{"private SSL key", "F0000"},
	{"server certificate for \"", "F0000"},
	{"host name must be specified for a verified SSL connection", "F0000"},
	{"get server's host name from server certificate", "F0000"},
	{"may not be used with sslrootcert", "F0000"},
	{"SSL protocol version", "F0000"},
	{"unsupported protocol", "F0000"},
	{"alert protocol version", "F0000"},
	{"alert certificate", "F0000"},
	{"alert bad certificate", "F0000"},
	{"alert unsupported certificate", "F0000"},
	{"alert unknown ca", "F0000"},
	{"when SSL support is not compiled in", "F0000"},
	{"invalid connection option", "F0000"},
	{"in connection info string", "F0000"},
	{"for connection option", "F0000"},
	{" value: \"", "F0000"},
	{"definition of service", "F0000"},
	{"service file", "F0000"},
	{"server closed the connection", "08006"},
	{"connection to server ", "08001"},
	{"could not connect", "08001"},
	{"could not translate host name", "08001"},
	{"could not look up", "08001"},
	{"Connection refused", "08001"},
	{"No such file or directory", "08001"},
	{"timeout expired", "08001"}
};

#define LENGTHOF(array)	((int) (sizeof(array) / sizeof((array)[0])))

/*
 * Copies n bytes, or as many of them as fit, into a field of an EcmError.  A
 * text that is too long is cut before a UTF-8 character rather than in it:
 * half a character would be invalid in a UTF-8 database, and showing the text
 * would raise an error.
 */
static void
copy_text(char *to, const char *from, size_t n)
{
	if (n >= ECM_ERROR_TEXT_LEN)
	{
		size_t		cut = ECM_ERROR_TEXT_LEN - 1;

		n = cut;
		while (n > cut - 3 && ((unsigned char) from[n] & 0xC0) == 0x80)
			n--;
	}
	memcpy(to, from, n);
	to[n] = '\0';
}

static void
copy_string(char *to, const char *from)
{
	copy_text(to, from != NULL ? from : "", from != NULL ? strlen(from) : 0);
}

static void
copy_sqlstate(char *to, const char *from)
{
	size_t		n = 0;

	while (from != NULL && n < SQLSTATE_LEN && from[n] != '\0')
	{
		to[n] = from[n];
		n++;
	}
	to[n] = '\0';
}

void
ecm_error_set(EcmError *err, const char *sqlstate, const char *message,
			  const char *detail, const char *hint)
{
	copy_sqlstate(err->sqlstate, sqlstate);
	copy_string(err->message, message);
	copy_string(err->detail, detail);
	copy_string(err->hint, hint);
}

static const ErrorRule *
find_rule(const EcmError *err, EcmErrorContext context)
{
	int			i;

	for (i = 0; i < LENGTHOF(rules); i++)
	{
		const ErrorRule *r = &rules[i];

		if (strncmp(err->sqlstate, r->sqlstate, strlen(r->sqlstate)) == 0 &&
			(r->context == ANY_CONTEXT || r->context == (int) context) &&
			(r->text == NULL || strstr(err->message, r->text) != NULL))
			return r;
	}
	return NULL;
}

EcmErrorKind
ecm_error_kind(const EcmError *err, EcmErrorContext context)
{
	const ErrorRule *rule = find_rule(err, context);

	return rule != NULL ? rule->kind : ECM_ERROR_RETRY;
}

/* ---------------------------------------------- errors of work for shapes -- */

typedef struct FaultRule
{
	EcmShapeWork work;
	const char *sqlstate;		/* or a class; "": any other */
	const char *text;			/* that the message begins with, or NULL */
	EcmFault	fault;
} FaultRule;

#define PUBLISH		ECM_WORK_PUBLISH
#define CREATE		ECM_WORK_CREATE
#define SNAPSHOT	ECM_WORK_SNAPSHOT
#define FOLLOW		ECM_WORK_FOLLOW
#define SEND		ECM_WORK_SEND
#define FOLD		ECM_WORK_FOLD
#define FOLD_LOG	ECM_WORK_FOLD_LOG
#define OF_NONE		ECM_FAULT_OF_NONE
#define OF_IT		ECM_FAULT_OF_IT
#define IF_AGAIN	ECM_FAULT_IF_AGAIN
#define IT_IS_GONE	ECM_FAULT_IT_IS_GONE
#define TOO_EARLY	ECM_FAULT_TOO_EARLY

/*
 * The first rule that applies counts.  The last rule of each kind of work, with
 * SQLSTATE "", applies to all errors that the rules before it do not name.
 */
static const FaultRule fault_rules[] = {
	/*
	 * a shape needs a replica identity that the stack must not set, or
	 * cannot: the other shapes of the table may not need it
	 */
	{PUBLISH, "0A000", NULL, OF_IT},
	{PUBLISH, "42501", NULL, OF_IT},
	{PUBLISH, "55000", NULL, OF_IT},
	{PUBLISH, "", NULL, OF_NONE},

	/*
	 * 53200 and 53400 (memory, temporary files) are blamed on the shape,
	 * since it is its where clause that has used up what there was
	 */
	{CREATE, "53200", NULL, OF_IT},
	{CREATE, "53400", NULL, OF_IT},
	{CREATE, "08", NULL, OF_NONE},
	{CREATE, "53", NULL, OF_NONE},
	{CREATE, "55P03", NULL, OF_NONE},
	{CREATE, "57", NULL, OF_NONE},
	{CREATE, "58", NULL, OF_NONE},
	{CREATE, "", NULL, OF_IT},

	/*
	 * An error of the classes 0A, 22, 42 and 54 is about the table's rows,
	 * the where clause or the owner's rights, so it would be raised by each
	 * further attempt: the shape ends, and whoever mends the cause can create
	 * it again.  Memory and temporary files, and any class that no rule
	 * names, get some more attempts first.
	 */
	{SNAPSHOT, ECM_SQLSTATE_SHAPE_STALLED, NULL, OF_IT},
	{SNAPSHOT, "53200", NULL, IF_AGAIN},
	{SNAPSHOT, "53400", NULL, IF_AGAIN},
	{SNAPSHOT, "0A", NULL, OF_IT},
	{SNAPSHOT, "22", NULL, OF_IT},
	{SNAPSHOT, "42", NULL, OF_IT},
	{SNAPSHOT, "54", NULL, OF_IT},
	{SNAPSHOT, "08", NULL, OF_NONE},
	{SNAPSHOT, "25", NULL, OF_NONE},
	{SNAPSHOT, "40", NULL, OF_NONE},
	{SNAPSHOT, "53", NULL, OF_NONE},
	{SNAPSHOT, "55", NULL, OF_NONE},
	{SNAPSHOT, "57", NULL, OF_NONE},
	{SNAPSHOT, "58", NULL, OF_NONE},
	{SNAPSHOT, "", NULL, IF_AGAIN},

	/*
	 * a consumer that is short of memory may be so because other processes
	 * use it, so the shape is blamed only if the same happens again
	 */
	{FOLLOW, ECM_SQLSTATE_SHAPE_STALLED, NULL, OF_IT},
	{FOLLOW, "53100", NULL, OF_NONE},
	{FOLLOW, "53300", NULL, OF_NONE},
	{FOLLOW, "53", NULL, IF_AGAIN},
	{FOLLOW, "08", NULL, OF_NONE},
	{FOLLOW, "40", NULL, OF_NONE},
	{FOLLOW, "55", NULL, OF_NONE},
	{FOLLOW, "57", NULL, OF_NONE},
	{FOLLOW, "58", NULL, OF_NONE},
	{FOLLOW, "", NULL, OF_IT},

	/*
	 * a value's text is too large, or an output function has failed: only
	 * these are about the change itself.  Any other error ends the stream,
	 * and the manager deals with it.
	 */
	{SEND, "22", NULL, OF_IT},
	{SEND, "38", NULL, OF_IT},
	{SEND, "54", NULL, OF_IT},
	{SEND, "P0", NULL, OF_IT},
	{SEND, "XX000", "invalid memory alloc request size", OF_IT},
	{SEND, "", NULL, OF_NONE},

	/*
	 * 42704: the shape has been dropped. 55P03: somebody has locked its row,
	 * as a transaction that drops it does.  If the shape is not dropped after
	 * all, its log goes on growing, so the manager will find it again and
	 * have it folded then.
	 */
	{FOLD, "42704", NULL, IT_IS_GONE},
	{FOLD, "55P03", NULL, IT_IS_GONE},
	{FOLD, "55006", NULL, TOO_EARLY},
	{FOLD, "54", NULL, OF_IT},
	{FOLD, "XX", NULL, OF_IT},
	{FOLD, "", NULL, OF_NONE},

	/* a row that has become too large for an entry of a log */
	{FOLD_LOG, "54000", NULL, OF_IT},
	{FOLD_LOG, "", NULL, OF_NONE}
};

#undef PUBLISH
#undef CREATE
#undef SNAPSHOT
#undef FOLLOW
#undef SEND
#undef FOLD
#undef FOLD_LOG
#undef OF_NONE
#undef OF_IT
#undef IF_AGAIN
#undef IT_IS_GONE
#undef TOO_EARLY

static bool
has_class(const char *sqlstate, const char *class_or_all)
{
	return strncmp(sqlstate, class_or_all, strlen(class_or_all)) == 0;
}

EcmFault
ecm_error_fault(const char *sqlstate, const char *message, EcmShapeWork work)
{
	int			i;

	for (i = 0; i < LENGTHOF(fault_rules); i++)
	{
		const FaultRule *r = &fault_rules[i];

		if (r->work == work && has_class(sqlstate, r->sqlstate) &&
			(r->text == NULL ||
			 (message != NULL && strncmp(message, r->text, strlen(r->text)) == 0)))
			return r->fault;
	}
	return ECM_FAULT_OF_NONE;
}

bool
ecm_error_is_refusal(const char *sqlstate)
{
	return has_class(sqlstate, "28");
}

bool
ecm_error_is_password(const char *sqlstate)
{
	return strcmp(sqlstate, "28P01") == 0;
}

bool
ecm_error_is_name_taken(const char *sqlstate)
{
	return strcmp(sqlstate, "42710") == 0;
}

bool
ecm_error_is_file_missing(const char *sqlstate)
{
	return strcmp(sqlstate, "58P01") == 0;
}

bool
ecm_error_is_no_worker(const char *sqlstate)
{
	return strcmp(sqlstate, ECM_SQLSTATE_NO_WORKER) == 0;
}

bool
ecm_error_is_connection(const char *sqlstate)
{
	return has_class(sqlstate, "08");
}

bool
ecm_error_is_name_not_found(const char *sqlstate)
{
	return strcmp(sqlstate, "42P01") == 0 || strcmp(sqlstate, "42883") == 0 ||
		strcmp(sqlstate, "42704") == 0;
}

bool
ecm_error_may_pass(const EcmError *err)
{
	static const char *const classes[] = {"08", "40", "53", "55", "57", "58"};
	int			i;

	for (i = 0; i < LENGTHOF(classes); i++)
		if (strncmp(err->sqlstate, classes[i], 2) == 0)
			return true;
	return false;
}

const char *
ecm_error_hint(const EcmError *err, EcmErrorContext context)
{
	const ErrorRule *rule;

	if (err->hint[0] != '\0')
		return err->hint;
	rule = find_rule(err, context);
	return rule != NULL ? rule->hint : NULL;
}

static bool
is_sqlstate(const char *text)
{
	int			i;

	for (i = 0; i < SQLSTATE_LEN; i++)
	{
		if (!(text[i] >= '0' && text[i] <= '9') &&
			!(text[i] >= 'A' && text[i] <= 'Z'))
			return false;
	}
	return true;
}

/*
 * Finds the SQLSTATE in libpq's verbose text, "FATAL: 28P01: ...": five
 * characters between ": " and ": ".  The severity in front of them may be
 * translated, so it is not looked at.  Returns NULL if there is none.
 */
static const char *
find_sqlstate(const char *text)
{
	const char *p = text;

	while ((p = strstr(p, ":  ")) != NULL)
	{
		p += 3;
		if (is_sqlstate(p) && strncmp(p + SQLSTATE_LEN, ": ", 2) == 0)
			return p;
	}
	return NULL;
}

/*
 * Does this line begin another field of the error, such as "LOCATION:
 * auth_failed"?  A field's label, in whatever language, is short and followed
 * by a colon and two blanks.
 */
static bool
is_labelled(const char *line, size_t len)
{
	size_t		i;

	for (i = 0; i + 2 < len && i < 24; i++)
	{
		if (line[i] == ':')
			return i > 0 && line[i + 1] == ' ' && line[i + 2] == ' ';
		if (line[i] == '"')
			return false;
	}
	return false;
}

static bool
starts_with(const char *text, size_t len, const char *prefix)
{
	size_t		n = strlen(prefix);

	return len >= n && memcmp(text, prefix, n) == 0;
}

/* Appends a line to a field, without its indentation, after a blank. */
static void
append_line(char *to, const char *line, size_t len)
{
	char		joined[2 * ECM_ERROR_TEXT_LEN];
	size_t		used = strlen(to);

	while (len > 0 && (*line == '\t' || *line == ' '))
	{
		line++;
		len--;
	}
	if (len == 0)
		return;
	memcpy(joined, to, used);
	if (used > 0)
		joined[used++] = ' ';
	if (len > sizeof(joined) - used)
		len = sizeof(joined) - used;
	memcpy(joined + used, line, len);
	copy_text(to, joined, used + len);
}

/*
 * Takes the detail and the hint from the lines after the message: the lines
 * labelled DETAIL and HINT, with those that continue them.  Lines that libpq
 * itself has added (they are indented) become part of the detail.  Lines under
 * other labels are ignored.  Parsing ends where libpq reports its attempt at
 * another address, or that the server has closed the connection.
 */
static void
parse_fields(EcmError *err, const char *text)
{
	char	   *field = NULL;

	while (*text != '\0')
	{
		size_t		len = strcspn(text, "\n");

		if (starts_with(text, len, "connection to server ") ||
			starts_with(text, len, "server closed the connection"))
			return;
		if (starts_with(text, len, "DETAIL:  "))
		{
			field = err->detail;
			append_line(field, text + 9, len - 9);
		}
		else if (starts_with(text, len, "HINT:  "))
		{
			field = err->hint;
			append_line(field, text + 7, len - 7);
		}
		else if (is_labelled(text, len))
			field = NULL;
		else if (field != NULL)
			append_line(field, text, len);
		else if (text[0] == '\t' ||
				 starts_with(text, len, "password retrieved from file "))
			append_line(err->detail, text, len);

		text += len;
		if (*text == '\n')
			text++;
	}
}

void
ecm_error_from_libpq(EcmError *err, const char *text)
{
	const char *sqlstate;
	const char *message;
	size_t		len;
	int			i;

	if (text == NULL || text[0] == '\0')
	{
		ecm_error_set(err, "08006", "connection lost", NULL, NULL);
		return;
	}

	ecm_error_set(err, "08006", NULL, NULL, NULL);
	sqlstate = find_sqlstate(text);
	if (sqlstate != NULL)
	{
		copy_sqlstate(err->sqlstate, sqlstate);
		message = sqlstate + SQLSTATE_LEN + 2;
	}
	else
	{
		for (i = 0; i < LENGTHOF(libpq_texts); i++)
		{
			if (strstr(text, libpq_texts[i].text) != NULL)
			{
				copy_sqlstate(err->sqlstate, libpq_texts[i].sqlstate);
				break;
			}
		}
		message = text;
	}

	len = strcspn(message, "\n");
	copy_text(err->message, message, len);
	parse_fields(err, message + len + (message[len] == '\n'));
}

/* -------------------------------------------------- what everybody may read */

/*
 * Conditions as the manual's table of error codes names them; a code precedes
 * its class.  "quotes" says that the message of such an error may quote a value
 * of a row, or a statement, at least if the error was raised in a function
 * that had been given one.  A code that is not listed counts as quoting, since
 * a function can raise any code.
 */
static const struct
{
	const char *sqlstate;		/* or a class */
	const char *name;
	bool		quotes;
}			conditions[] =
{
	{"08", "connection exception", false},
	{"0A", "feature not supported", true},
	{"21", "cardinality violation", true},
	{"22001", "string data right truncation", true},
	{"22003", "numeric value out of range", true},
	{"22007", "invalid datetime format", true},
	{"22008", "datetime field overflow", true},
	{"22009", "invalid time zone displacement value", true},
	{"2200M", "invalid XML document", true},
	{"2200N", "invalid XML content", true},
	{"22011", "substring error", true},
	{"22012", "division by zero", true},
	{"2201B", "invalid regular expression", true},
	{"2201E", "invalid argument for logarithm", true},
	{"2201F", "invalid argument for power function", true},
	{"22021", "character not in repertoire", true},
	{"22023", "invalid parameter value", true},
	{"22025", "invalid escape sequence", true},
	{"22032", "invalid JSON text", true},
	{"2202E", "array subscript error", true},
	{"22P02", "invalid text representation", true},
	{"22P03", "invalid binary representation", true},
	{"22P05", "untranslatable character", true},
	{"22", "data exception", true},
	{"23", "integrity constraint violation", true},
	{"25", "invalid transaction state", false},
	{"26", "invalid SQL statement name", false},
	{"28", "invalid authorization specification", false},
	{"3D", "invalid catalog name", false},
	{"3F", "invalid schema name", false},
	{"40", "transaction rollback", false},
	{"42501", "insufficient privilege", false},
	{"42601", "syntax error", true},
	{"42602", "invalid name", true},
	{"42704", "undefined object", true},
	{"42703", "undefined column", true},
	{"42883", "undefined function", true},
	{"42P01", "undefined table", true},
	{"42", "syntax error or access rule violation", true},
	{"53100", "disk full", false},
	{"53200", "out of memory", false},
	{"53300", "too many connections", false},
	{"53", "insufficient resources", false},
	{"54", "program limit exceeded", true},
	{"55P03", "lock not available", false},
	{"55P04", "unsafe new enum value usage", true},
	{"55", "object not in prerequisite state", false},
	{"57014", "query canceled", false},
	{"57", "operator intervention", false},
	{"58", "system error", false},
	{ECM_SQLSTATE_SHAPE_STALLED, "held up the others, see electric_cm.shape_stall_timeout", false},
	{"F0", "configuration file error", false},
	{"P0", "error raised by a function", true},
	{"XX", "internal error", false}
};

/* Index of the SQLSTATE's row in "conditions"; -1: it is not listed. */
static int
find_condition(const char *sqlstate)
{
	int			i;

	for (i = 0; i < LENGTHOF(conditions); i++)
		if (strncmp(sqlstate, conditions[i].sqlstate,
					strlen(conditions[i].sqlstate)) == 0)
			return i;
	return -1;
}

const char *
ecm_error_condition(const char *sqlstate)
{
	static char text[80];
	int			i = find_condition(sqlstate);

	/*
	 * a text that does not look like an SQLSTATE may be part of a message,
	 * and must not be shown
	 */
	if (strlen(sqlstate) != SQLSTATE_LEN || !is_sqlstate(sqlstate))
		return "an error";
	snprintf(text, sizeof(text), "%s (SQLSTATE %s)",
			 i >= 0 ? conditions[i].name : "an error", sqlstate);
	return text;
}

/*
 * An error without an SQLSTATE is libpq's own, about the connection, and is
 * shown as it is.
 */
const char *
ecm_error_for_public(const char *sqlstate, const char *message)
{
	int			i = find_condition(sqlstate);

	if (sqlstate[0] == '\0' || (i >= 0 && !conditions[i].quotes))
		return message;
	return ecm_error_condition(sqlstate);
}

const char *
ecm_error_of_rows_for_public(const char *sqlstate, const char *message)
{
	return strncmp(sqlstate, "XX", 2) == 0 ? ecm_error_condition(sqlstate) :
		ecm_error_for_public(sqlstate, message);
}

void
ecm_error_hide_row(EcmError *err)
{
	static const char *const classes[] = {"21", "22", "23", "38", "39", "P0"};
	int			i;

	for (i = 0; i < LENGTHOF(classes); i++)
		if (strncmp(err->sqlstate, classes[i], 2) == 0)
			ecm_error_set(err, err->sqlstate,
						  ecm_error_condition(err->sqlstate), NULL, NULL);
}

static bool
is_tagged(const char *text)
{
	return strlen(text) >= SQLSTATE_LEN + 2 && is_sqlstate(text) &&
		strncmp(text + SQLSTATE_LEN, ": ", 2) == 0;
}

const char *
ecm_error_untagged(const char *text)
{
	return is_tagged(text) ? text + SQLSTATE_LEN + 2 : text;
}

const char *
ecm_error_public_text(const char *text)
{
	char		sqlstate[SQLSTATE_LEN + 1];

	if (strncmp(text, ECM_ERROR_OWN_TEXT, strlen(ECM_ERROR_OWN_TEXT)) == 0)
		return ecm_error_untagged(text);
	if (!is_tagged(text))
		return ecm_error_condition("");
	memcpy(sqlstate, text, SQLSTATE_LEN);
	sqlstate[SQLSTATE_LEN] = '\0';
	return ecm_error_condition(sqlstate);
}
