/*-------------------------------------------------------------------------
 *
 * conn.h
 *	  One asynchronous libpq connection: connect, query, stream, close.
 *
 * For the manager, whose loop must not block.  No function here does, and none
 * raises an ERROR because of a failing connection.  The owner of a connection
 * calls ecm_conn_poll() whenever the socket is ready or the deadline has
 * passed, and looks at the state then.  Only connection/ knows libpq.
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
	const char *setting;		/* name of the setting that has that string,
								 * for hints */
	const char *dbname;			/* database to connect to, unless conninfo
								 * says */
	const char *application_name;
	bool		replication;	/* replication=database */
	int			wal_sender_timeout_ms;	/* for a replication session; 0: the
										 * server's setting */
	int			connect_timeout_ms; /* for the whole attempt */
} EcmConnParams;

/*
 * Starts connecting.
 *
 * With an empty conninfo, the candidates are tried one after the other: the
 * first Unix socket directory, ::1, 127.0.0.1, each with our own port and the
 * bootstrap superuser's name.  A candidate is passed over only if nothing
 * listens there, not if the server refuses us.  The candidate that has worked
 * is remembered in this process, and so is that the server does not use TLS
 * (if sslmode is only "prefer").
 *
 * A conninfo without a port or user gets our own port or the bootstrap
 * superuser, since it must lead to this server; with a service, the service
 * file has them.  Every libpq parameter is set explicitly, so that PG*
 * environment variables don't leak in.  Settings of the session (search_path,
 * timeouts, wal_sender_timeout, ...) are in the startup packet.
 *
 * Never returns NULL: a connection that could not even be started is in state
 * ECM_CONN_FAILED.  The result is allocated in TopMemoryContext.
 */
extern EcmConn *ecm_conn_start(const EcmConnParams *params);

/*
 * Makes progress without blocking, and returns the new state.  Calling it too
 * often does no harm.
 *
 * In COPY BOTH it only flushes the output.  The owner of the stream reads, by
 * ecm_conn_read_input().  While the owner can't take more, it does not read,
 * and leaves WL_SOCKET_READABLE out of the mask for the wait loop.
 */
extern EcmConnState ecm_conn_poll(EcmConn *conn);
extern EcmConnState ecm_conn_state(const EcmConn *conn);

/*
 * For the wait loop: the socket (PGINVALID_SOCKET when FAILED), the mask of
 * WL_SOCKET_* events, and the deadline (0: none).  The mask can change while
 * the socket stays.
 */
extern pgsocket ecm_conn_socket(const EcmConn *conn);
extern int	ecm_conn_wait_events(const EcmConn *conn);
extern EcmTime ecm_conn_deadline(const EcmConn *conn);

/*
 * A number that is different for any two sockets that this process has used,
 * even if the kernel has given them the same file descriptor.  If it changes,
 * the wait loop has to build its set anew: epoll has dropped the closed
 * socket.  (While connecting, it sometimes changes although the socket stays.)
 */
extern uint64 ecm_conn_socket_id(const EcmConn *conn);

/*
 * Sends a query string.  The simple protocol is used, so several statements
 * are one implicit transaction. timeout_ms 0: no deadline.
 *
 * The query is over when ecm_conn_poll() returns IDLE again; ecm_conn_ok()
 * says whether it succeeded.  A query's error leaves the connection usable.
 * If the deadline passes, the query is cancelled and the connection FAILED,
 * with SQLSTATE 57014.
 */
extern void ecm_conn_send(EcmConn *conn, const char *sql, int timeout_ms);
extern bool ecm_conn_ok(const EcmConn *conn);

/*
 * The rows of the last statement that returns rows, even if others follow it.
 * Valid until the next ecm_conn_send() or close. ecm_conn_value() returns NULL
 * for a null value, and for a row or column that does not exist.
 */
extern int	ecm_conn_nrows(const EcmConn *conn);
extern const char *ecm_conn_value(const EcmConn *conn, int row, int column);

/*
 * The error of the last query, or of the connection.  Its SQLSTATE is never
 * empty.
 */
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
 * Reading in COPY BOTH. ecm_conn_read_input() reads what has arrived at the
 * socket; false: the connection has failed. ecm_conn_copy_next() sets *data to
 * the next complete message, valid until the next call, and returns its
 * length; -1: none is complete yet; -2: the stream has ended or failed, and
 * the state is FAILED.
 */
extern bool ecm_conn_read_input(EcmConn *conn);
extern int	ecm_conn_copy_next(EcmConn *conn, char **data);

/* Queues a CopyData message and flushes as far as possible without blocking. */
extern bool ecm_conn_copy_send(EcmConn *conn, const char *data, int len);

/*
 * Cancels the query that runs: sends SIGINT to the session's backend, if that
 * is a process of this database.
 */
extern void ecm_conn_cancel(EcmConn *conn);

/*
 * Finds out whether the answer to the running query is lost.  To be called
 * regularly.  The session's backend is a process of this server, so we can see
 * whether it still works on the query.  If it waits for a command, or has
 * ended, at two looks with some seconds between them, its answer has been lost
 * on the way; if it does not move for as long as wal_sender_timeout, it hangs.
 * The connection becomes FAILED then, and the backend is asked to end.
 */
extern void ecm_conn_check(EcmConn *conn);

/*
 * Is the session's backend still there, as far as can be seen?  True if it
 * can't be seen at all.
 */
extern bool ecm_conn_has_backend(const EcmConn *conn);

/* COPY BOTH: when anything has arrived from the other side last. */
extern EcmTime ecm_conn_heard_at(const EcmConn *conn);

/* Closes without blocking, in whatever state; frees everything. */
extern void ecm_conn_close(EcmConn *conn);

#endif							/* ECM_CONN_H */
