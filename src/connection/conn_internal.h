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
	struct ConnMemory *memory;	/* what was learnt with the same conninfo */

	/* parameters */
	EcmConninfo info;
	char	   *setting;		/* name of the setting that has info.conninfo */
	int			connect_timeout_ms;

	/* the attempt to connect */
	int			candidate;		/* index of the candidate being tried */
	int			ntried;			/* number of candidates tried so far */
	bool		reached;		/* something listens at the candidate */
	bool		without_tls;	/* TLS is not tried, because of memory */
	bool		prefers_tls;	/* see EcmConnParameters */
	bool		sslmode_given;
	EcmError	first_error;	/* of the first candidate passed over */

	/* allocated by libpq with malloc(), so they have to be freed */
	PGconn	   *pg;
	PGresult   *result;			/* rows of the last query */
	char	   *copy_buffer;	/* last CopyData message */

	EcmConnState state;
	bool		fd_reserved;	/* AcquireExternalFD() done */
	uint64		socket_id;
	int			wait_events;	/* while connecting */
	bool		flush_pending;
	EcmTime		deadline;		/* 0: none */
	int			timeout_ms;		/* from which the deadline was computed */

	bool		local;			/* the backend was seen as a process of this
								 * database (a pooler's would not be) */
	EcmTime		unanswered_at;	/* since when the backend has been seen to
								 * wait for a command, though we wait for its
								 * answer; 0: it has not */
	EcmBackendLook seen;		/* the last look that found the backend to
								 * have moved, or the first one, during this
								 * query ... */
	EcmTime		seen_at;		/* ... and its time; 0: none yet */
	EcmTime		read_at;		/* COPY BOTH: when it was last read from */
	EcmTime		heard_at;		/* COPY BOTH: when data has arrived last */

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

/*
 * Note an error.  Only the first one counts, since those that follow are
 * consequences of it.
 */
extern void ecm_conn_note_error(EcmConn *conn, const char *sqlstate,
								const char *message, const char *detail,
								const char *hint);
extern void ecm_conn_note_libpq_error(EcmConn *conn);
extern void ecm_conn_note_result_error(EcmConn *conn, const PGresult *res);
extern void ecm_conn_forget_error(EcmConn *conn);
extern void ecm_conn_hint_setting(EcmConn *conn);
extern void ecm_conn_receive_notice(void *arg, const PGresult *res);

/* --------------------------------------------------------- conn_query.c -- */

/* Sends output that the socket has not taken yet. */
extern void ecm_conn_flush(EcmConn *conn);
extern void ecm_conn_poll_query(EcmConn *conn);
extern void ecm_conn_poll_idle(EcmConn *conn);

#endif							/* ECM_CONN_INTERNAL_H */
