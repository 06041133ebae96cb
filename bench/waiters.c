/*-------------------------------------------------------------------------
 *
 * waiters.c
 *	  Many sessions that wait for entries of shape logs.  Compiled and run by
 *	  bench/readers.
 *
 * usage: waiters CONNINFO FILE [function | procedure]
 *
 * Each line of the file has a handle and an offset; each gets a session of its
 * own, which waits for what comes after that, and again: by the function
 * electric_cm_await_shape_log(), or by the procedure electric_cm_await(), after
 * which it reads the log.  When all are connected, "ready" is printed.  Ends when
 * it is killed.
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libpq-fe.h>

typedef struct Waiter
{
	PGconn	   *conn;
	char		handle[64];
	char		offset[64];
	bool		reads;			/* what it has waited for */
} Waiter;

static bool by_procedure;

static void
fail(PGconn *conn, const char *what)
{
	fprintf(stderr, "waiters: %s: %s", what, PQerrorMessage(conn));
	exit(1);
}

static void
send_wait(Waiter *waiter)
{
	const char *params[] = {waiter->handle, waiter->offset};
	const char *sql = "SELECT log_offset FROM electric_cm_await_shape_log($1, $2, '1 hour')";

	if (waiter->reads)
		sql = "SELECT log_offset FROM electric_cm_shape_log($1, $2)";
	else if (by_procedure)
		sql = "CALL electric_cm_await(ARRAY[$1], ARRAY[$2]::electric_cm_offset[], '1 hour', NULL)";
	if (!PQsendQueryParams(waiter->conn, sql, 2, NULL, params, NULL, NULL, 0))
		fail(waiter->conn, "could not wait");
}

/* Takes what has come, if all of it has, and waits for the next. */
static void
receive(Waiter *waiter)
{
	PGresult   *res;

	if (!PQconsumeInput(waiter->conn))
		fail(waiter->conn, "could not receive");
	if (PQisBusy(waiter->conn))
		return;
	while ((res = PQgetResult(waiter->conn)) != NULL)
	{
		int			n = PQntuples(res);

		if (PQresultStatus(res) != PGRES_TUPLES_OK)
			fail(waiter->conn, "could not wait");
		if (n > 0 && (waiter->reads || !by_procedure))
			snprintf(waiter->offset, sizeof(waiter->offset), "%s",
					 PQgetvalue(res, n - 1, 0));
		PQclear(res);
	}
	waiter->reads = by_procedure && !waiter->reads;
	send_wait(waiter);
}

int
main(int argc, char **argv)
{
	Waiter	   *waiters = NULL;
	struct pollfd *fds;
	Waiter		waiter = {0};
	int			n = 0;
	FILE	   *file = argc >= 3 ? fopen(argv[2], "r") : NULL;

	if (file == NULL)
		return 2;
	by_procedure = argc > 3 && strcmp(argv[3], "procedure") == 0;
	while (fscanf(file, "%63s %63s", waiter.handle, waiter.offset) == 2)
	{
		waiter.conn = PQconnectdb(argv[1]);
		if (PQstatus(waiter.conn) != CONNECTION_OK)
			fail(waiter.conn, "could not connect");
		waiters = realloc(waiters, (n + 1) * sizeof(Waiter));
		waiters[n++] = waiter;
		send_wait(&waiters[n - 1]);
	}
	puts("ready");
	fflush(stdout);

	fds = calloc(n > 0 ? n : 1, sizeof(struct pollfd));
	for (int i = 0; i < n; i++)
	{
		fds[i].fd = PQsocket(waiters[i].conn);
		fds[i].events = POLLIN;
	}
	for (;;)
	{
		if (poll(fds, n, -1) < 0)
			return 1;
		for (int i = 0; i < n; i++)
			if (fds[i].revents != 0)
				receive(&waiters[i]);
	}
}
