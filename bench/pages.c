/*-------------------------------------------------------------------------
 *
 * pages.c
 *	  Reads a long result to its end, page by page.  Compiled and run by
 *	  bench/readers.
 *
 * usage: pages CONNINFO PAGE log HANDLE
 *		  pages CONNINFO PAGE cursor QUERY
 *
 * A shape's log by electric_cm_shape_logs(), or a query by a cursor.  Prints
 *
 *	  ROWS PAGES SECONDS KB
 *
 * the last what the backend's memory has grown by at the most, after a page.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libpq-fe.h>

static PGconn *conn;
static long most_kb;

static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static PGresult *
run(const char *sql, int nparams, const char **params)
{
	PGresult   *res = PQexecParams(conn, sql, nparams, NULL, params, NULL, NULL, 0);

	if (PQresultStatus(res) != PGRES_TUPLES_OK && PQresultStatus(res) != PGRES_COMMAND_OK)
	{
		fprintf(stderr, "pages: %s", PQerrorMessage(conn));
		exit(1);
	}
	return res;
}

/* The memory that the backend has for itself, on Linux */
static long
private_kb(void)
{
	char		line[128];
	long		kb = 0;
	FILE	   *file;

	snprintf(line, sizeof(line), "/proc/%d/status", PQbackendPID(conn));
	file = fopen(line, "r");
	while (file != NULL && fgets(line, sizeof(line), file) != NULL)
		(void) sscanf(line, "RssAnon: %ld", &kb);
	if (file != NULL)
		fclose(file);
	if (kb > most_kb)
		most_kb = kb;
	return kb;
}

static long
read_log(const char *handle, const char *page, int *npages)
{
	char		offset[64] = "-1";
	long		nrows = 0;

	for (int up_to_date = 0; !up_to_date; ++*npages)
	{
		const char *params[] = {handle, offset, page};
		PGresult   *res = run("SELECT * FROM electric_cm_shape_logs(ARRAY[$1], ARRAY[$2]::electric_cm_offset[], $3)",
							  3, params);
		int			n = PQntuples(res);

		up_to_date = n > 0 && strcmp(PQgetvalue(res, n - 1, 2), "up-to-date") == 0;
		nrows += n - up_to_date;
		if (n > 0)
			snprintf(offset, sizeof(offset), "%s", PQgetvalue(res, n - 1, 1));
		PQclear(res);
		(void) private_kb();
	}
	return nrows;
}

static long
read_query(const char *query, const char *page, int *npages)
{
	char	   *declare = malloc(strlen(query) + 64);
	char		fetch[64];
	long		nrows = 0;

	PQclear(run("BEGIN", 0, NULL));
	sprintf(declare, "DECLARE c CURSOR FOR %s", query);
	PQclear(run(declare, 0, NULL));
	snprintf(fetch, sizeof(fetch), "FETCH %s FROM c", page);
	for (int n = 1; n > 0; ++*npages)
	{
		PGresult   *res = run(fetch, 0, NULL);

		n = PQntuples(res);
		nrows += n;
		PQclear(res);
		(void) private_kb();
	}
	free(declare);
	return nrows;
}

int
main(int argc, char **argv)
{
	double		began;
	long		nrows;
	long		kb;
	int			npages = 0;

	if (argc != 5)
		return 2;
	conn = PQconnectdb(argv[1]);
	if (PQstatus(conn) != CONNECTION_OK)
	{
		fprintf(stderr, "pages: %s", PQerrorMessage(conn));
		return 1;
	}
	kb = private_kb();
	began = now();
	nrows = (strcmp(argv[3], "log") == 0 ? read_log : read_query) (argv[4], argv[2], &npages);
	printf("%ld %d %.3f %ld\n", nrows, npages, now() - began, most_kb - kb);
	return 0;
}
