/*-------------------------------------------------------------------------
 *
 * conn.h
 *	  One asynchronous libpq connection: connect, query, stream, close.
 *
 * Nothing here blocks and nothing here raises an ERROR for a failing
 * connection: the owner calls ecm_conn_poll() whenever the socket is ready or
 * the deadline has passed, and looks at the state.  Only connection/
 * knows libpq.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_CONN_H
#define ECM_CONN_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "base/clock.h"
#include "base/errors.h"

typedef struct EcmConn EcmConn;

typedef enum EcmConnState
{
	ECM_CONN_CONNECTING,
	ECM_CONN_IDLE,				/* connected, no query running, or the last
								 * query's result waits to be read */
	ECM_CONN_BUSY,				/* a query runs */
	ECM_CONN_COPY_BOTH,			/* streaming replication */
	ECM_CONN_FAILED				/* dead; ecm_conn_error() says why */
} EcmConnState;

typedef struct EcmConnParams
{
	const char *conninfo;		/* user's conninfo string, or "" for loopback */
	const char *setting;		/* where that string is from */
	const char *dbname;			/* database to connect to, used for loopback */
	const char *application_name;
	bool		replication;	/* replication=database */
	int			wal_sender_timeout_ms;	/* for a replication session; 0: the
										 * server's setting */
	int			connect_timeout_ms; /* for the whole attempt */
} EcmConnParams;

/*
 * Starts connecting.  With an empty conninfo the candidates are tried one
 * after the other: first Unix socket directory, ::1, 127.0.0.1, each with our
 * own port and the bootstrap superuser's name; the one that worked is
 * remembered in this process.  A candidate is passed over only if nothing
 * listens there, not if the server refuses us.  A conninfo that says neither
 * port nor user means these, too, since it must lead to this server; a service
 * does not.  Every libpq parameter is set explicitly, so that PG* environment
 * variables don't leak in; session settings (search_path, timeouts,
 * wal_sender_timeout, ...) go in the startup packet.  The TLS fallback
 * ("sslmode" below require refused => without TLS) is remembered too.
 *
 * Never returns NULL; a connection that could not even be started is in state
 * ECM_CONN_FAILED.  The result is allocated in TopMemoryContext.
 */
extern EcmConn *ecm_conn_start(const EcmConnParams *params);

/*
 * Makes progress without blocking; returns the state afterwards.  Calling it
 * too often does no harm.  In COPY BOTH it only flushes: reading is up to the
 * stream's owner, who leaves WL_SOCKET_READABLE out of the mask and stops
 * calling ecm_conn_read_input() while it is congested.
 */
extern EcmConnState ecm_conn_poll(EcmConn *conn);
extern EcmConnState ecm_conn_state(const EcmConn *conn);

/*
 * For the wait loop: socket (PGINVALID_SOCKET when FAILED), WL_SOCKET_*
 * mask, deadline (0: none).  The mask changes without the socket changing.
 */
extern pgsocket ecm_conn_socket(const EcmConn *conn);
extern int	ecm_conn_wait_events(const EcmConn *conn);
extern EcmTime ecm_conn_deadline(const EcmConn *conn);

/*
 * Differs between any two sockets that this process has used (and now and
 * then for one that stays the same while connecting), also if the
 * kernel reused the number: tells the wait loop to rebuild its set.
 */
extern uint64 ecm_conn_socket_id(const EcmConn *conn);

/*
 * Sends a query string (simple protocol, so several statements are one
 * implicit transaction).  timeout_ms 0: no deadline.  When poll returns IDLE
 * again the query is over: ecm_conn_ok() says how.  A query error leaves the
 * connection usable; a passed deadline (57014 of our own) makes it FAILED.
 */
extern void ecm_conn_send(EcmConn *conn, const char *sql, int timeout_ms);
extern bool ecm_conn_ok(const EcmConn *conn);

/*
 * The rows of the last statement that returns rows at all (maybe none), even
 * if others follow it.  Valid until the next ecm_conn_send() or close.  A null
 * value is NULL, and so is one that is not there.
 */
extern int	ecm_conn_nrows(const EcmConn *conn);
extern const char *ecm_conn_value(const EcmConn *conn, int row, int column);

/* The error of the last query or of the connection; sqlstate never empty. */
extern const EcmError *ecm_conn_error(const EcmConn *conn);

/* True if the session is in no transaction (else it must not be reused). */
extern bool ecm_conn_idle_in_no_transaction(const EcmConn *conn);

/* Facts about an open connection; kept when it has FAILED. */
extern int	ecm_conn_backend_pid(const EcmConn *conn);
extern int	ecm_conn_server_version(const EcmConn *conn);
extern bool ecm_conn_ssl(const EcmConn *conn);
extern const char *ecm_conn_address(const EcmConn *conn);	/* "socket dir:port" or
															 * "host:port" */
extern TimestampTz ecm_conn_connected_since(const EcmConn *conn);

/*
 * COPY BOTH.  Reading: ecm_conn_read_input() takes what the socket has (false:
 * connection failed); ecm_conn_copy_next() returns the next complete message,
 * valid until the next call, or -1 if there is none now, or -2 if the stream
 * has ended or failed (state is then FAILED).
 */
extern bool ecm_conn_read_input(EcmConn *conn);
extern int	ecm_conn_copy_next(EcmConn *conn, char **data);

/* Queues a CopyData message and flushes as far as possible without blocking. */
extern bool ecm_conn_copy_send(EcmConn *conn, const char *data, int len);

/*
 * Sends a query cancel (SIGINT) to the session's backend, if it is one of this
 * database.  Done by itself when a query's deadline passes.
 */
extern void ecm_conn_cancel(EcmConn *conn);

/*
 * To be called now and then: has the answer to the query that runs got lost?
 * The session's backend is one of this server, so it can be seen whether it
 * still works on that.  If it does not, for two looks with some seconds between
 * them, or does not move for as long as wal_sender_timeout, the connection
 * becomes FAILED, and the backend is asked to end.
 */
extern void ecm_conn_check(EcmConn *conn);

/* Is the session's backend, as far as can be seen, still there? */
extern bool ecm_conn_has_backend(const EcmConn *conn);

/* COPY BOTH: when anything was heard from the other side last. */
extern EcmTime ecm_conn_heard_at(const EcmConn *conn);

/* Closes without blocking, in whatever state; frees everything. */
extern void ecm_conn_close(EcmConn *conn);

#endif							/* ECM_CONN_H */
