/*-------------------------------------------------------------------------
 *
 * conn_query.c
 *	  What runs on an open connection: queries, and COPY BOTH.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>
#include <sys/socket.h>

#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "replication/walsender.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/timestamp.h"

#include "base/backend.h"
#include "connection/conn_internal.h"

/*
 * If a backend waits for a command for this time (ms) while we wait for its
 * answer, it has answered already, or has never got the query.
 */
#define MIN_UNANSWERED_MS	3000

/*
 * A backend that stands still hangs if that lasts as long as
 * wal_sender_timeout, but no shorter and no longer than these.
 */
#define MIN_HANG_MS			5000
#define MAX_HANG_MS			60000

/*
 * If no message of a stream has come for so long (ms), its socket is looked at
 * for a part of one.
 */
#define LOOK_AFTER_MS		1000

/* -------------------------------------------------------------- queries -- */

/*
 * Sends output that the socket has not taken yet.  A failure is not looked at
 * here: it shows when reading, after the message that the server may have sent
 * about it.
 */
void
ecm_conn_flush(EcmConn *conn)
{
	conn->flush_pending = (PQflush(conn->pg) == 1);
}

/*
 * Takes the results that have arrived.  True: the query is over.  If the
 * connection is lost, libpq hands out the results that had arrived, then an
 * error of its own, then the end.
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
				ecm_conn_note_error(conn, "XX000", "unexpected COPY", NULL, NULL);
				ecm_conn_become_failed(conn);
				return true;
			case PGRES_FATAL_ERROR:
			case PGRES_BAD_RESPONSE:
				ecm_conn_note_result_error(conn, res);
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

void
ecm_conn_poll_query(EcmConn *conn)
{
	bool		alive = PQconsumeInput(conn->pg);

	ecm_conn_flush(conn);
	if (take_results(conn))
		conn->deadline = 0;
	if (conn->state != ECM_CONN_FAILED &&
		(!alive || PQstatus(conn->pg) == CONNECTION_BAD))
	{
		ecm_conn_note_libpq_error(conn);
		ecm_conn_become_failed(conn);
	}
}

/*
 * Looks whether an idle session has sent something: that can only be a message
 * that it is being ended.
 */
void
ecm_conn_poll_idle(EcmConn *conn)
{
	bool		alive = PQconsumeInput(conn->pg);

	/* PQisBusy() parses the input, and calls ecm_conn_receive_notice() */
	(void) PQisBusy(conn->pg);
	if (!alive || conn->fatal || PQstatus(conn->pg) == CONNECTION_BAD)
	{
		/* an error of the last query is not why the session ends */
		if (!conn->fatal)
			conn->has_error = false;
		ecm_conn_note_libpq_error(conn);
		ecm_conn_become_failed(conn);
	}
}

void
ecm_conn_send(EcmConn *conn, const char *sql, int timeout_ms)
{
	if (conn->state == ECM_CONN_FAILED)
		return;

	if (conn->result != NULL)
		PQclear(conn->result);
	conn->result = NULL;
	ecm_conn_forget_error(conn);

	if (conn->state != ECM_CONN_IDLE)
	{
		ecm_conn_note_error(conn, "XX000", "connection is not idle", NULL, NULL);
		ecm_conn_become_failed(conn);
		return;
	}
	if (!PQsendQuery(conn->pg, sql))
	{
		ecm_conn_note_libpq_error(conn);
		ecm_conn_become_failed(conn);
		return;
	}
	conn->state = ECM_CONN_BUSY;
	conn->unanswered_at = conn->seen_at = 0;
	conn->timeout_ms = timeout_ms;
	conn->deadline = (timeout_ms > 0) ?
		ecm_later(ecm_now(), timeout_ms) : 0;
	ecm_conn_flush(conn);
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
 * Only a process of this server and database gets the signal: a pooler makes
 * up the process number that it tells us.
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

/* Fails the connection, since its query's answer will never arrive. */
static void
give_up_query(EcmConn *conn, const char *message, const char *detail,
			  const char *hint)
{
	ecm_conn_forget_error(conn);
	ecm_conn_note_error(conn, "08006", message, detail, hint);
	if (ecm_conn_has_backend(conn))
		kill(conn->backend_pid, SIGTERM);
	ecm_conn_become_failed(conn);
}

/* Gives up the query if its backend has stood still for too long. */
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
	if (ecm_conn_socket_is_ready(conn->pg, WL_SOCKET_READABLE))
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
					  conn->info.conninfo[0] == '\0' ? NULL :
					  "Something between server and server has stopped forwarding: see electric_cm.connection and electric_cm.pooled_connection.");
}

/* ------------------------------------------------------------ COPY BOTH -- */

/*
 * The stream is over: finds out why.  Messages that have not been read are
 * dropped.  They have not been acknowledged either, so the next stream sends
 * them again.
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
			ecm_conn_note_result_error(conn, res);
		PQclear(res);
		if (status == PGRES_COPY_BOTH || status == PGRES_COPY_IN ||
			status == PGRES_COPY_OUT)
			break;				/* libpq would return this result for ever */
	}

	if (!conn->has_error && PQstatus(conn->pg) == CONNECTION_BAD)
		ecm_conn_note_libpq_error(conn);
	ecm_conn_note_error(conn, "08006", "replication stream was ended by the server",
						NULL, NULL);
	ecm_conn_become_failed(conn);
}

bool
ecm_conn_read_input(EcmConn *conn)
{
	char		byte;

	if (conn->state != ECM_CONN_COPY_BOTH)
		return false;

	/*
	 * libpq does not tell whether it has read something, only whether a
	 * message is complete.  A large one takes its time; the look at the
	 * socket is left out while messages come, since each look is a system
	 * call on the way from a commit to its readers.
	 */
	conn->read_at = ecm_now();
	if (ecm_has_passed(conn->heard_at, conn->read_at, LOOK_AFTER_MS) &&
		recv(PQsocket(conn->pg), &byte, 1, MSG_PEEK) > 0)
		conn->heard_at = conn->read_at;
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
		conn->heard_at = conn->read_at;
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
	ecm_conn_flush(conn);
	return true;
}
