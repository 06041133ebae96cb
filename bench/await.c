/*-------------------------------------------------------------------------
 *
 * await.c
 *	  One session that waits for many shapes, and reads what comes.  Compiled and
 *	  run by bench/readers.
 *
 * usage: await CONNINFO FILE SECONDS
 *
 * Each line of the file has a handle and an offset.  Rows of the shapes have a
 * column at, the server's clock when they were changed.  Prints "pid PID" of the
 * session's backend when it begins to wait, and in the end
 *
 *	  ENTRIES CALLS P50 P99
 *
 * the milliseconds from a row's clock until the entry is here.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libpq-fe.h>

typedef struct Shape
{
	char		handle[64];
	char		offset[64];
} Shape;

static Shape *shapes;
static int	nshapes;
static double *latencies;
static int	nlatencies;

static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static int
compare_shapes(const void *a, const void *b)
{
	return strcmp(((const Shape *) a)->handle, ((const Shape *) b)->handle);
}

static int
compare_doubles(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return x < y ? -1 : x > y;
}

static Shape *
find(const char *handle)
{
	Shape		key;
	Shape	   *found;

	snprintf(key.handle, sizeof(key.handle), "%s", handle);
	found = bsearch(&key, shapes, nshapes, sizeof(Shape), compare_shapes);
	if (found == NULL)
	{
		fprintf(stderr, "await: unknown handle %s\n", handle);
		exit(1);
	}
	return found;
}

static PGresult *
run(PGconn *conn, const char *sql, const char *handles, const char *offsets)
{
	const char *params[] = {handles, offsets};
	PGresult   *res = PQexecParams(conn, sql, 2, NULL, params, NULL, NULL, 0);

	if (PQresultStatus(res) != PGRES_TUPLES_OK)
	{
		fprintf(stderr, "await: %s", PQerrorMessage(conn));
		exit(1);
	}
	return res;
}

/* Reads the shapes of an array that the server has written, {HANDLE,...}. */
static void
read_ready(PGconn *conn, const char *ready)
{
	char	   *handles = strdup(ready);
	char	   *list = strdup(ready);
	char	   *offsets = malloc(strlen(ready) * 2 + 80);
	char	   *end = offsets;
	PGresult   *res;
	double		arrived;

	for (char *handle = strtok(list, "{,}"); handle != NULL; handle = strtok(NULL, "{,}"))
		end += sprintf(end, "%c%s", end == offsets ? '{' : ',', find(handle)->offset);
	strcpy(end, "}");
	res = run(conn,
			  "SELECT handle, log_offset, extract(epoch FROM (value ->> 'at')::timestamptz)"
			  " FROM electric_cm_shape_logs($1, $2::electric_cm_offset[], 10000) WHERE handle IS NOT NULL",
			  handles, offsets);
	arrived = now();
	for (int i = 0; i < PQntuples(res); i++)
	{
		Shape	   *shape = find(PQgetvalue(res, i, 0));

		snprintf(shape->offset, sizeof(shape->offset), "%s", PQgetvalue(res, i, 1));
		if ((nlatencies & (nlatencies - 1)) == 0)
			latencies = realloc(latencies, (nlatencies ? nlatencies * 2 : 1) * sizeof(double));
		latencies[nlatencies++] = (arrived - atof(PQgetvalue(res, i, 2))) * 1e3;
	}
	PQclear(res);
	free(handles);
	free(list);
	free(offsets);
}

int
main(int argc, char **argv)
{
	FILE	   *file = argc == 4 ? fopen(argv[2], "r") : NULL;
	Shape		shape;
	char	   *handles;
	char	   *offsets;
	PGconn	   *conn;
	double		deadline;
	int			ncalls = 0;

	if (file == NULL)
		return 2;
	while (fscanf(file, "%63s %63s", shape.handle, shape.offset) == 2)
	{
		shapes = realloc(shapes, (nshapes + 1) * sizeof(Shape));
		shapes[nshapes++] = shape;
	}
	qsort(shapes, nshapes, sizeof(Shape), compare_shapes);
	handles = malloc(nshapes * sizeof(shape.handle) + 2);
	offsets = malloc(nshapes * sizeof(shape.offset) + 2);
	conn = PQconnectdb(argv[1]);
	if (PQstatus(conn) != CONNECTION_OK)
	{
		fprintf(stderr, "await: %s", PQerrorMessage(conn));
		return 1;
	}
	printf("pid %d\n", PQbackendPID(conn));
	fflush(stdout);

	deadline = now() + atof(argv[3]);
	while (now() < deadline)
	{
		char	   *h = handles;
		char	   *o = offsets;
		PGresult   *res;

		for (int i = 0; i < nshapes; i++)
		{
			h += sprintf(h, "%c%s", i ? ',' : '{', shapes[i].handle);
			o += sprintf(o, "%c%s", i ? ',' : '{', shapes[i].offset);
		}
		strcpy(h, "}");
		strcpy(o, "}");
		res = run(conn, "CALL electric_cm_await($1, $2::electric_cm_offset[], '1 s', NULL)", handles, offsets);
		ncalls++;
		if (strlen(PQgetvalue(res, 0, 0)) > 2)
			read_ready(conn, PQgetvalue(res, 0, 0));
		PQclear(res);
	}
	if (nlatencies == 0)
		return 1;
	qsort(latencies, nlatencies, sizeof(double), compare_doubles);
	printf("%d %d %.3f %.3f\n", nlatencies, ncalls, latencies[nlatencies / 2], latencies[(int) (nlatencies * 0.99)]);
	return 0;
}
