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
#include <sys/socket.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "base/backend.h"
#include "base/event.h"
#include "base/shmem.h"
#include "connection/conn_internal.h"

/*
 * What this process has learnt from earlier connections with the same
 * conninfo, so that it need not try again what has failed.  The list has one
 * element for each conninfo, that is, two or three.
 */
typedef struct ConnMemory
{
	struct ConnMemory *next;
	char	   *conninfo;
	int			candidate;		/* the one that worked last */
	bool		without_tls;	/* the server does not use TLS: don't ask
								 * again */
} ConnMemory;

static ConnMemory *memories = NULL;
static uint64 last_socket_id = 0;

static uint64
next_socket_id(void)
{
	return ++last_socket_id;
}

/* The connection is dead; the caller has noted why. */
void
ecm_conn_become_failed(EcmConn *conn)
{
	Assert(conn->has_error);
	conn->state = ECM_CONN_FAILED;
	conn->socket_id = next_socket_id();
	conn->wait_events = 0;
	conn->flush_pending = false;
	conn->deadline = 0;
}

/* Does the socket have one of the events?  Looks, and does not wait. */
bool
ecm_conn_socket_is_ready(PGconn *pg, int wait_events)
{
	struct pollfd pfd;

	pfd.fd = PQsocket(pg);
	pfd.events = 0;
	pfd.revents = 0;
	if (pfd.fd < 0)
		return true;			/* let libpq find out what is wrong */
	if (wait_events & WL_SOCKET_READABLE)
		pfd.events |= POLLIN;
	if (wait_events & WL_SOCKET_WRITEABLE)
		pfd.events |= POLLOUT;
	return poll(&pfd, 1, 0) > 0;
}

/* ----------------------------------------------------------- connecting -- */

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

/* Notes whether libpq has got beyond connect(2): something listens there. */
static void
note_reached(EcmConn *conn)
{
	ConnStatusType status = PQstatus(conn->pg);

	if (status != CONNECTION_BAD && status != CONNECTION_STARTED &&
		status != CONNECTION_NEEDED)
		conn->reached = true;
}

/*
 * PQfinish() that cannot block.  PQfinish() sends a Terminate message, without
 * which the server would log an "unexpected EOF".  If the socket does not take
 * any output, it is shut down before, so that nothing that libpq or OpenSSL
 * still wants to write can wait for the other side.
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
	conn->socket_id = next_socket_id();
}

/* Has libpq begin to connect to the current candidate.  False: it failed. */
static bool
open_libpq(EcmConn *conn)
{
	EcmConnParameters parameters;
	MemoryContext caller = MemoryContextSwitchTo(conn->context);
	MemoryContext attempt = AllocSetContextCreate(conn->context,
												  "electric_cm connection attempt",
												  ALLOCSET_SMALL_SIZES);

	conn->reached = false;
	MemoryContextSwitchTo(attempt);
	if (ecm_conninfo_parameters(&conn->info, conn->candidate,
								conn->without_tls, &parameters))
		conn->pg = PQconnectStartParams(parameters.keywords,
										parameters.values, 0);
	conn->prefers_tls = parameters.prefers_tls;
	conn->sslmode_given = parameters.sslmode_given;
	conn->without_tls = parameters.without_tls;
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(attempt);
	if (conn->pg == NULL)
	{
		ecm_conn_note_error(conn, "53200", "out of memory", NULL, NULL);
		return false;
	}

	/* the text of a connection error has the SQLSTATE only if it is verbose */
	PQsetErrorVerbosity(conn->pg, PQERRORS_VERBOSE);
	PQsetErrorContextVisibility(conn->pg, PQSHOW_CONTEXT_NEVER);
	PQsetNoticeReceiver(conn->pg, ecm_conn_receive_notice, conn);

	note_reached(conn);
	set_address(conn);
	conn->socket_id = next_socket_id();
	conn->wait_events = WL_SOCKET_WRITEABLE;
	return true;
}

/*
 * The attempt on the current candidate has failed.  True: there is another
 * attempt to make (with or without TLS, or on the next candidate).  False: the
 * connection has failed.
 */
static bool
retry_after_failure(EcmConn *conn)
{
	bool		reached = conn->reached;

	ecm_conn_forget_error(conn);
	ecm_conn_note_libpq_error(conn);
	finish_libpq(conn);

	/*
	 * What this process has learnt before may not hold any more: the
	 * bootstrap superuser may have been renamed, or the server may demand TLS
	 * by now.
	 */
	if (ecm_error_is_refusal(conn->error.sqlstate))
	{
		if (conn->without_tls)
		{
			conn->without_tls = false;
			conn->memory->without_tls = false;
			return true;
		}
		if (ecm_loopback_user_renamed())
			return true;
	}

	if (!reached)
	{
		if (conn->ntried == 0)
			conn->first_error = conn->error;
		if (++conn->ntried < conn->info.ncandidates)
		{
			conn->candidate = (conn->candidate + 1) % conn->info.ncandidates;
			return true;
		}
		/* nothing listens anywhere: report the first candidate's error */
		conn->error = conn->first_error;
	}
	ecm_conn_become_failed(conn);
	return false;
}

/* Tries the current candidate, and the next ones if it fails at once. */
static void
try_candidates(EcmConn *conn)
{
	do
	{
		ecm_conn_forget_error(conn);
		if (!open_libpq(conn))
		{
			ecm_conn_become_failed(conn);
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
	char	   *problem;

	context = AllocSetContextCreate(TopMemoryContext, "electric_cm connection",
									ALLOCSET_SMALL_SIZES);
	caller = MemoryContextSwitchTo(context);

	conn = palloc0(sizeof(EcmConn));
	conn->context = context;
	conn->info.conninfo = pstrdup(params->conninfo ? params->conninfo : "");
	conn->setting = pstrdup(params->setting);
	conn->info.dbname = pstrdup(params->dbname);
	conn->info.application_name = pstrdup(params->application_name);
	conn->info.replication = params->replication;
	conn->info.wal_sender_timeout_ms = params->wal_sender_timeout_ms;
	conn->connect_timeout_ms = params->connect_timeout_ms;
	conn->address = pstrdup("");
	conn->state = ECM_CONN_CONNECTING;
	conn->memory = find_memory(conn->info.conninfo);
	conn->without_tls = conn->memory->without_tls;
	ecm_conn_forget_error(conn);

	ecm_conninfo_clean_environment();

	if (!ecm_conninfo_find_candidates(&conn->info, &problem))
	{
		ecm_conn_note_error(conn, problem ? "F0000" : "53200",
							"invalid connection string", problem, NULL);
		ecm_conn_become_failed(conn);
		MemoryContextSwitchTo(caller);
		return conn;
	}
	MemoryContextSwitchTo(caller);

	if (conn->info.ncandidates == 0)
	{
		ecm_conn_note_error(conn, "08001",
							"server listens neither on a Unix socket nor on TCP",
							NULL,
							"Set unix_socket_directories, listen_addresses or electric_cm.connection.");
		ecm_conn_become_failed(conn);
		return conn;
	}
	if (conn->memory->candidate < conn->info.ncandidates)
		conn->candidate = conn->memory->candidate;

	/* libpq's socket counts against the files that fd.c may keep open */
	if (!AcquireExternalFD())
	{
		ecm_conn_note_error(conn, "53000", "could not open a connection",
							"There are too many open files on the local server.",
							"Raise the server's max_files_per_process and/or \"ulimit -n\" limits.");
		ecm_conn_become_failed(conn);
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
	 * Set only now, because it resets libpq's error text, which names the
	 * server in front of the error that a failing attempt adds.  Nothing
	 * could block so far: all that has been sent (a startup packet has 10 kB
	 * at most) fits into the buffer of a new socket.
	 */
	PQsetnonblocking(conn->pg, 1);

	set_address(conn);
	conn->backend_pid = PQbackendPID(conn->pg);
	conn->local = ecm_backend_look(conn->backend_pid, &look);
	conn->server_version = PQserverVersion(conn->pg);
	conn->ssl = PQsslInUse(conn->pg);
	conn->connected_since = ecm_wall_clock();
	conn->socket_id = next_socket_id();
	conn->deadline = 0;
	conn->state = ECM_CONN_IDLE;
	ecm_conn_forget_error(conn);

	conn->memory->candidate = conn->candidate;
	if (!conn->ssl && conn->prefers_tls && !conn->memory->without_tls &&
		host != NULL && host[0] != '/' && host[0] != '@')
	{
		conn->memory->without_tls = true;
		if (conn->sslmode_given)
			ecm_event_in(MyDatabaseId, conn->info.dbname, ECM_EVENT_WARNING,
						 "TLS could not be had, and sslmode=prefer allows to go on without it; use sslmode=require to insist on it.",
						 "connection to %s is not encrypted", conn->address);
	}
}

static void
poll_connect(EcmConn *conn)
{
	/*
	 * PQconnectPoll() relies on its caller that the socket is ready.  Called
	 * too early, it would take a connect(2) without an answer for one that
	 * has succeeded.
	 */
	if (!ecm_conn_socket_is_ready(conn->pg, conn->wait_events))
		return;

	/*
	 * libpq may close the socket and open another one, with the same number,
	 * in any of these calls.
	 */
	conn->socket_id = next_socket_id();
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

/* -------------------------------------------------------------- polling -- */

static void
deadline_passed(EcmConn *conn)
{
	char		detail[ECM_ERROR_TEXT_LEN];

	if (conn->state == ECM_CONN_CONNECTING)
	{
		snprintf(detail, sizeof(detail), "No answer from %s within %d ms.",
				 conn->address, conn->timeout_ms);
		ecm_conn_forget_error(conn);
		ecm_conn_note_error(conn, "08001", "connection attempt timed out", detail, NULL);
		ecm_conn_hint_setting(conn);
	}
	else
	{
		/* nobody will read the answer, so the query need not go on */
		ecm_conn_cancel(conn);
		snprintf(detail, sizeof(detail), "No answer within %d ms.",
				 conn->timeout_ms);
		ecm_conn_forget_error(conn);
		ecm_conn_note_error(conn, "57014", "query timed out", detail, NULL);
	}
	ecm_conn_become_failed(conn);
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
			ecm_conn_poll_idle(conn);
			break;
		case ECM_CONN_BUSY:
			ecm_conn_poll_query(conn);
			break;
		case ECM_CONN_COPY_BOTH:
			/* the owner of the stream reads, unless its queues are full */
			if (conn->flush_pending)
				ecm_conn_flush(conn);
			break;
		case ECM_CONN_FAILED:
			break;
	}

	if (conn->deadline != 0 && ecm_now() >= conn->deadline)
		deadline_passed(conn);
	return conn->state;
}

/* ----------------------------------- for the wait loop; facts; closing -- */

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
