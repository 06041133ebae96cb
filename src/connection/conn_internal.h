/*-------------------------------------------------------------------------
 *
 * conn_internal.h
 *	  A connection from within: for the files that conn.h is made of.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_CONN_INTERNAL_H
#define ECM_CONN_INTERNAL_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "libpq-fe.h"

#include "base/backend.h"
#include "base/clock.h"
#include "base/errors.h"
#include "connection/conn.h"
#include "connection/conninfo.h"

struct EcmConn
{
	MemoryContext context;		/* holds this struct and what it points to */
	struct ConnMemory *memory;	/* of the same conninfo */

	/* parameters */
	EcmConninfo info;
	char	   *setting;		/* where info.conninfo is from */
	int			connect_timeout_ms;

	/* the attempt to connect */
	int			candidate;		/* the one being tried */
	int			ntried;
	bool		reached;		/* something listens there */
	bool		without_tls;	/* on the memory's advice */
	bool		prefers_tls;	/* see EcmConnParameters */
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
	EcmBackendLook seen;		/* the backend, when it was seen to move ... */
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


/* --------------------------------------------------------------- conn.c -- */

/* The connection is dead; the caller has noted why. */
extern void ecm_conn_become_failed(EcmConn *conn);

/* Does the socket have one of the events?  Looks, and does not wait. */
extern bool ecm_conn_socket_is_ready(PGconn *pg, int wait_events);

/* --------------------------------------------------------- conn_error.c -- */

/* Only the first error counts: those that follow are consequences. */
extern void ecm_conn_note_error(EcmConn *conn, const char *sqlstate,
								const char *message, const char *detail,
								const char *hint);
extern void ecm_conn_note_libpq_error(EcmConn *conn);
extern void ecm_conn_note_result_error(EcmConn *conn, const PGresult *res);
extern void ecm_conn_forget_error(EcmConn *conn);
extern void ecm_conn_hint_setting(EcmConn *conn);
extern void ecm_conn_receive_notice(void *arg, const PGresult *res);

/* --------------------------------------------------------- conn_query.c -- */

/* Sends what could not be sent before. */
extern void ecm_conn_flush(EcmConn *conn);
extern void ecm_conn_poll_query(EcmConn *conn);
extern void ecm_conn_poll_idle(EcmConn *conn);

#endif							/* ECM_CONN_INTERNAL_H */
