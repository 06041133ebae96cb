/*-------------------------------------------------------------------------
 *
 * plot.c
 *	  Retained WAL over time, drawn in text: for those who have psql and an
 *	  incident, and no dashboard.
 *
 * Nothing but ASCII, whatever the database's encoding.  One column is one slice
 * of time and shows the most that was retained in it; where a slice has no
 * sample, the last one before it counts.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "pgtime.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/shmem.h"
#include "base/text.h"
#include "slot/retained_wal.h"
#include "slot/retained_wal_history.h"
#include "slot/slot.h"

PG_FUNCTION_INFO_V1(electric_cm_retained_wal_plot);

#define MIN_WIDTH	20
#define MAX_WIDTH	500
#define MIN_HEIGHT	4
#define MAX_HEIGHT	200

/* A row in so many has its size written beside it. */
#define LABEL_ROWS	3

/* A level (such as a limit) that is so many times as high as the rest is not drawn. */
#define FAR_UP		8

/* A column of the plot: one slice of time. */
typedef struct Column
{
	int64		bytes;			/* the most that was retained in it; -1: there
								 * was no slot, or no sample */
	char		mark;			/* the character that it is drawn with */
} Column;

/* A level that is drawn across. */
typedef struct Level
{
	const char *name;
	int64		bytes;
	int			row;			/* -1: above what is shown */
} Level;

#define MAX_LEVELS	4

typedef struct Plot
{
	int			width;
	int			height;
	Column	   *columns;
	int64		max_bytes;		/* of all columns */
	int64		bytes_per_row;
	Level		levels[MAX_LEVELS];
	int			nlevels;
} Plot;

static char *
time_text(TimestampTz time, const char *format)
{
	pg_time_t	t = timestamptz_to_time_t(time);
	char		text[64];

	(void) pg_strftime(text, sizeof(text), format,
					   pg_localtime(&t, session_timezone));
	return pstrdup(text);
}

static char
mark_for(const EcmHistoryEntry *entry)
{
	if (strcmp(entry->wal_status, "lost") == 0)
		return 'x';
	return strcmp(entry->wal_status, "unreserved") == 0 ? '!' : '#';
}

static void
fill_columns(Plot *plot, const EcmHistoryEntry *history, int n)
{
	TimestampTz first = history[0].sampled_at;
	int64		span = Max(history[n - 1].sampled_at - first, 1);
	Column		last = {-1, ' '};
	int			i = 0;

	for (int c = 0; c < plot->width; c++)
	{
		/* the last column includes its end */
		int64		end = c == plot->width - 1 ? span : span * (c + 1) / plot->width - 1;
		Column		most = {-1, ' '};
		bool		sampled = false;

		for (; i < n && history[i].sampled_at - first <= end; i++)
		{
			last.bytes = history[i].retained_wal_bytes;
			last.mark = mark_for(&history[i]);
			if (!sampled || last.bytes >= most.bytes)
				most = last;
			sampled = true;
		}
		plot->columns[c] = sampled ? most : last;
		plot->max_bytes = Max(plot->max_bytes, plot->columns[c].bytes);
	}
}

static void
add_level(Plot *plot, const char *name, int64 bytes)
{
	Level	   *level = &plot->levels[plot->nlevels];

	if (bytes < 0)
		return;
	level->name = name;
	level->bytes = bytes;
	plot->nlevels++;
}

static void
find_levels(Plot *plot, const EcmStack *stack)
{
	const EcmWalSample *wal = &stack->slot.sample;
	EcmWalLimits limits;

	ecm_retained_wal_effective_limits(&stack->wal_settings, &limits);
	add_level(plot, "electric_cm.retained_wal_warning", limits.warning);
	add_level(plot, "electric_cm.retained_wal_limit", limits.limit);
	add_level(plot, "max_slot_wal_keep_size", limits.server_limit);
	if (wal->slot_exists && wal->sizes_known && wal->wal_free_bytes >= 0)
		add_level(plot, limits.min_free > 0 ?
				  "electric_cm.min_wal_free_space reached" : "disk full",
				  wal->retained_wal_bytes +
				  Max(wal->wal_free_bytes - Max(limits.min_free, 0), 0));
}

/*
 * The scale is a round number per row, and has room for all that was retained
 * and for the first level above that, unless that is so far up that everything
 * else would be a flat line.
 */
static void
choose_scale(Plot *plot)
{
	static const int steps[] = {1, 2, 5, 10, 20, 50, 100, 200, 500};
	int64		top = plot->max_bytes;
	int64		next = -1;
	int64		unit = 1024;

	for (int i = 0; i < plot->nlevels; i++)
		if (plot->levels[i].bytes >= top &&
			(next < 0 || plot->levels[i].bytes < next))
			next = plot->levels[i].bytes;
	if (next / FAR_UP <= Max(top, wal_segment_size))
		top = Max(top, next);
	top = Max(top, plot->height * INT64CONST(1024));

	/* a level is drawn in the row that it is in, hence the one more */
	for (plot->bytes_per_row = 0; plot->bytes_per_row == 0; unit *= 1024)
		for (int i = 0; i < (int) lengthof(steps) && plot->bytes_per_row == 0; i++)
			if (steps[i] * unit > top / plot->height)
				plot->bytes_per_row = steps[i] * unit;

	for (int i = 0; i < plot->nlevels; i++)
	{
		int64		row = plot->levels[i].bytes / plot->bytes_per_row;

		plot->levels[i].row = row < plot->height ? (int) row : -1;
	}
}

static void
put_line(ReturnSetInfo *rsinfo, const char *line)
{
	Datum		value = CStringGetTextDatum(line);
	bool		isnull = false;

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
}

static void
put_row(ReturnSetInfo *rsinfo, const Plot *plot, int row)
{
	StringInfoData line;
	StringInfoData names;
	int64		top = (row + 1) * plot->bytes_per_row;

	initStringInfo(&line);
	initStringInfo(&names);
	for (int i = 0; i < plot->nlevels; i++)
		if (plot->levels[i].row == row)
			appendStringInfo(&names, "%s%s (%s)", names.len > 0 ? ", " : " ",
							 plot->levels[i].name, ecm_size_text(plot->levels[i].bytes));

	if ((row + 1) % LABEL_ROWS == 0 || row == plot->height - 1)
		appendStringInfo(&line, "%10s +", ecm_size_text(top));
	else
		appendStringInfo(&line, "%10s |", "");
	for (int c = 0; c < plot->width; c++)
	{
		const Column *column = &plot->columns[c];
		bool		filled = column->bytes > row * plot->bytes_per_row;

		appendStringInfoChar(&line, filled ? column->mark :
							 names.len > 0 ? '-' : ' ');
	}
	appendStringInfoString(&line, names.data);
	put_line(rsinfo, line.data);
}

static void
put_time_axis(ReturnSetInfo *rsinfo, const Plot *plot, TimestampTz first,
			  TimestampTz last)
{
	const char *format = last - first < USECS_PER_DAY ? "%H:%M:%S" : "%m-%d %H:%M";
	char	   *from = time_text(first, format);
	char	   *to = time_text(last, format);
	StringInfoData line;

	initStringInfo(&line);
	appendStringInfo(&line, "%10s +", "0");
	for (int c = 0; c < plot->width; c++)
		appendStringInfoChar(&line, '-');
	put_line(rsinfo, line.data);

	put_line(rsinfo, psprintf("%11s%s%*s", "", from,
							  plot->width + 1 - (int) strlen(from), to));
}

static void
put_plot(ReturnSetInfo *rsinfo, const EcmStack *stack, Plot *plot,
		 const EcmHistoryEntry *history, int n)
{
	plot->columns = palloc(sizeof(Column) * plot->width);
	fill_columns(plot, history, n);
	find_levels(plot, stack);
	choose_scale(plot);

	put_line(rsinfo, psprintf("WAL retained by replication slot %s, %s to %s",
							  stack->slot.name,
							  time_text(history[0].sampled_at, "%Y-%m-%d %H:%M:%S"),
							  time_text(history[n - 1].sampled_at, "%Y-%m-%d %H:%M:%S %Z")));
	for (int row = plot->height - 1; row >= 0; row--)
		put_row(rsinfo, plot, row);
	put_time_axis(rsinfo, plot, history[0].sampled_at, history[n - 1].sampled_at);
	for (int i = 0; i < plot->nlevels; i++)
		if (plot->levels[i].row < 0)
			put_line(rsinfo, psprintf("farther up: %s (%s)", plot->levels[i].name,
									  ecm_size_text(plot->levels[i].bytes)));
}

static void
check_range(const char *name, int value, int min, int max)
{
	if (value < min || value > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s %d is out of range", name, value),
				 errhint("It must be between %d and %d.", min, max)));
}

/*
 * electric_cm_retained_wal_plot(width int, height int) -> setof text
 *
 * The history of this database's stack, in so many columns and rows, without
 * what is around them.  '!': the slot was unreserved, 'x': it was lost.
 *
 * 22023: width or height is out of range.  55000: not preloaded.
 */
Datum
electric_cm_retained_wal_plot(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Plot		plot = {.width = PG_GETARG_INT32(0), .height = PG_GETARG_INT32(1)};
	EcmHistoryEntry *history;
	EcmStack   *stack;
	int			index;
	int			n = 0;

	check_range("width", plot.width, MIN_WIDTH, MAX_WIDTH);
	check_range("height", plot.height, MIN_HEIGHT, MAX_HEIGHT);
	ecm_require_shared();
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);

	stack = palloc(sizeof(EcmStack));
	index = ecm_own_stack_head(stack);
	if (index >= 0)
		n = ecm_history_copy(index, MyDatabaseId, &history);
	if (n == 0)
		put_line(rsinfo, "There are no samples of this database's slot yet.");
	else
		put_plot(rsinfo, stack, &plot, history, n);
	return (Datum) 0;
}
