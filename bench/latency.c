/*-------------------------------------------------------------------------
 *
 * latency.c
 *	  How long after a commit is the row in the shape log, and has a long poll
 *	  returned?  Compiled and run by bench/latency.
 *
 * usage: latency CONNINFO HANDLE TABLE N
 *
 * One session inserts one row per transaction; another one waits in
 * electric_cm_await_shape_log() for it, since before the commit was sent.
 * Times are taken by the monotonic clock: of sending the INSERT, of the
 * server's word that it is committed, of the waiter's rows.  Then the same
 * number of times, without a waiter, the first session asks
 * electric_cm_shape_log() over and over until the row is there.
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libpq-fe.h>

static double
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e3 + ts.tv_nsec / 1e6;
}

static void
fail(PGconn *conn, const char *what)
{
	fprintf(stderr, "latency: %s: %s", what, PQerrorMessage(conn));
	exit(1);
}

static PGconn *
session(const char *conninfo)
{
	PGconn	   *conn = PQconnectdb(conninfo);

	if (PQstatus(conn) != CONNECTION_OK)
		fail(conn, "could not connect");
	return conn;
}

static void
prepare(PGconn *conn, const char *name, const char *sql)
{
	PGresult   *res = PQprepare(conn, name, sql, 0, NULL);

	if (PQresultStatus(res) != PGRES_COMMAND_OK)
		fail(conn, sql);
	PQclear(res);
}

/* Runs a prepared statement; the offset in its last row, or "" */
static void
run(PGconn *conn, const char *name, int nparams, const char *const *params,
	char offset[64])
{
	PGresult   *res = PQexecPrepared(conn, name, nparams, params, NULL, NULL, 0);
	int			n = PQntuples(res);

	if (PQresultStatus(res) != PGRES_COMMAND_OK && PQresultStatus(res) != PGRES_TUPLES_OK)
		fail(conn, name);
	if (offset)
		snprintf(offset, 64, "%s", n > 0 ? PQgetvalue(res, n - 1, 0) : "");
	PQclear(res);
}

static void
wait_for_result(PGconn *conn, char offset[64])
{
	PGresult   *res;
	struct pollfd fd = {PQsocket(conn), POLLIN, 0};

	while (PQisBusy(conn))
	{
		if (poll(&fd, 1, 30000) <= 0)
			fail(conn, "no answer in 30 s\n");
		if (!PQconsumeInput(conn))
			fail(conn, "could not read");
	}
	res = PQgetResult(conn);
	if (PQresultStatus(res) != PGRES_TUPLES_OK || PQntuples(res) < 1)
		fail(conn, "the long poll has returned nothing\n");
	snprintf(offset, 64, "%s", PQgetvalue(res, PQntuples(res) - 1, 0));
	PQclear(res);
	while ((res = PQgetResult(conn)) != NULL)
		PQclear(res);
}

static int
compare(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return (x > y) - (x < y);
}

static void
report(const char *what, double *ms, int n)
{
	qsort(ms, n, sizeof(double), compare);
	printf("| %s | %.3f | %.3f | %.3f |\n", what, ms[n / 2],
		   ms[(int) (n * 0.95)], ms[(int) (n * 0.99)]);
}

int
main(int argc, char **argv)
{
	PGconn	   *writer;
	PGconn	   *waiter;
	int			n;
	double	   *commit;
	double	   *returned;
	double	   *whole;
	char		offset[64];
	char		id[32];
	char		insert[256];
	const char *insert_params[1] = {id};
	const char *read_params[2];

	if (argc != 5)
	{
		fprintf(stderr, "usage: latency CONNINFO HANDLE TABLE N\n");
		return 1;
	}
	n = atoi(argv[4]);
	commit = malloc(sizeof(double) * n);
	returned = malloc(sizeof(double) * n);
	whole = malloc(sizeof(double) * n);
	writer = session(argv[1]);
	waiter = session(argv[1]);
	snprintf(insert, sizeof(insert), "INSERT INTO %s VALUES ($1::int8, 'a note')", argv[3]);
	prepare(writer, "insert", insert);
	prepare(writer, "read", "SELECT log_offset FROM electric_cm_shape_log($1, $2)");
	prepare(waiter, "await", "SELECT log_offset FROM electric_cm_await_shape_log($1, $2)");
	read_params[0] = argv[2];
	read_params[1] = offset;

	/* a row to begin with */
	strcpy(id, "0");
	strcpy(offset, "-1");
	run(writer, "insert", 1, insert_params, NULL);
	if (!PQsendQueryPrepared(waiter, "await", 2, read_params, NULL, NULL, 0))
		fail(waiter, "await");
	wait_for_result(waiter, offset);

	for (int i = 0; i < n; i++)
	{
		struct timespec pause = {0, 3000000};	/* until it waits, and all is
												 * quiet */
		double		sent;
		double		committed;
		double		arrived;

		if (!PQsendQueryPrepared(waiter, "await", 2, read_params, NULL, NULL, 0) ||
			PQflush(waiter) != 0)
			fail(waiter, "await");
		nanosleep(&pause, NULL);
		snprintf(id, sizeof(id), "%d", i + 1);
		sent = now_ms();
		run(writer, "insert", 1, insert_params, NULL);
		committed = now_ms();
		wait_for_result(waiter, offset);
		arrived = now_ms();
		commit[i] = committed - sent;
		returned[i] = arrived - committed;
		whole[i] = arrived - sent;
	}
	report("commit itself", commit, n);
	report("from commit returned to long poll returned", returned, n);
	report("from INSERT sent to long poll returned", whole, n);

	for (int i = 0; i < n; i++)
	{
		struct timespec pause = {0, 3000000};
		char		next[64];
		double		committed;

		nanosleep(&pause, NULL);
		snprintf(id, sizeof(id), "%d", n + i + 1);
		run(writer, "insert", 1, insert_params, NULL);
		committed = now_ms();
		do
			run(writer, "read", 2, read_params, next);
		while (next[0] == '\0');
		returned[i] = now_ms() - committed;
		strcpy(offset, next);
	}
	report("from commit returned to readable (asked over and over)", returned, n);
	PQfinish(writer);
	PQfinish(waiter);
	return 0;
}
