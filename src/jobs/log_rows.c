/*-------------------------------------------------------------------------
 *
 * log_rows.c
 *	  What logs come to, by ranges of keys.
 *
 * The logs are read in slices, as they are for folding.  What each slice comes to is
 * appended to a list in a temporary file.  If that becomes long, it is divided among
 * lists for ranges of keys, which are chosen by a sample.  So a piece of the table,
 * which is a range of keys, too, needs one list of bounded size.
 *
 * A log does not change up to its gap.  So it does not matter that the slices are read
 * with different snapshots.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/spi.h"
#include "jobs/compare.h"
#include "jobs/fold_spill.h"
#include "jobs/log_rows.h"
#include "shape/shape_catalog.h"
#include "shape/shape_complete.h"
#include "shape/shape_key_cmp.h"

/* The most lists at a time, each of which has a buffer. */
#define MAX_LISTS		1024

/* Keys by which the lists' borders are chosen. */
#define SAMPLE_KEYS		8192

typedef enum Phase
{
	PHASE_READ,					/* logs are read to list 0 */
	PHASE_WALK,					/* the completer walks for the next entry */
	PHASE_DIVIDE,				/* list 0 is divided among the others */
	PHASE_READY
} Phase;

struct EcmLogRows
{
	MemoryContext context;		/* of all that is kept */
	int64		reading;
	uint64		used;			/* number of the last use */
	bool		in_step;		/* if it is found so, that step has failed */
	Phase		phase;
	EcmFold    *folds;			/* of each shape */
	int			n;

	/* reading */
	int			member;			/* whose log is being read */
	EcmCompleter *completer;	/* NULL: it has not been begun */
	EcmFoldPosition position;
	EcmSpill   *spill;

	/* a uniform sample of the keys in list 0 */
	bytea	  **sample;
	int64		nseen;

	/* dividing; list i has keys up to borders[i - 1], the last one all others */
	int64		divided;		/* position in list 0 */
	EcmKeyCmp  *cmp;
	int			nlists;			/* 1: only list 0 is used */
	Datum	  **borders;
	bytea	  **border_keys;
};

static EcmLogRows *kept[ECM_MAX_KEPT_LOGS];
static uint64 uses;

static void
forget(int i)
{
	MemoryContextDelete(kept[i]->context);
	kept[i] = NULL;
}

void
ecm_log_rows_forget(int64 reading)
{
	for (int i = 0; i < ECM_MAX_KEPT_LOGS; i++)
		if (kept[i] != NULL && kept[i]->reading == reading)
			forget(i);
}

/* Has its last piece been read, by whatever session, or does nobody need it any more? */
static bool
is_over(int64 reading)
{
	Oid			type = INT8OID;
	Datum		id = Int64GetDatum(reading);
	EcmSpiState spi;
	bool		over;

	ecm_spi_begin(&spi);
	ecm_spi_run("SELECT WHERE EXISTS (SELECT FROM _electric_cm.shape s"
				"  JOIN _electric_cm.shape_state t ON t.shape = s.id AND t.generation = s.generation"
				"  WHERE s.reading = $1 AND t.state = 'capturing')"
				" AND NOT EXISTS (SELECT FROM _electric_cm.reading_piece"
				"  WHERE reading = $1 AND upto IS NULL)",
				SPI_OK_SELECT, 1, &type, &id, NULL);
	over = SPI_processed == 0;
	ecm_spi_end(&spi);
	return over;
}

/*
 * Other sessions may have ended readings that this one has had a part in: their rows
 * would take the place of those that are needed.
 */
static void
forget_over(void)
{
	for (int i = 0; i < ECM_MAX_KEPT_LOGS; i++)
		if (kept[i] != NULL && is_over(kept[i]->reading))
			forget(i);
}

/* Its definitions are copies, as the caller's end with the transaction. */
static EcmLogRows *
create(int64 reading, EcmReadShape *shapes, int n)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "electric_cm rows of logs",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	EcmLogRows *rows = palloc0(sizeof(EcmLogRows));

	rows->context = context;
	rows->reading = reading;
	rows->n = n;
	rows->folds = palloc0(sizeof(EcmFold) * n);
	for (int i = 0; i < n; i++)
		rows->folds[i].shape = ecm_shape_by_id(shapes[i].def->id);
	rows->spill = ecm_spill_create(MAX_LISTS + 1);
	rows->sample = palloc(sizeof(bytea *) * SAMPLE_KEYS);
	rows->nlists = 1;
	MemoryContextSwitchTo(old);
	/* from here on nothing fails */
	MemoryContextSetParent(context, TopMemoryContext);
	return rows;
}

/* ------------------------------------------------------------- reading -- */

/* Each key that was seen has the same chance to be in the sample. */
static void
sample_key(EcmLogRows *rows, const bytea *key)
{
	MemoryContext old;
	int64		at = rows->nseen++;
	bytea	   *copy;

	if (at >= SAMPLE_KEYS)
	{
		at = (int64) pg_prng_uint64_range(&pg_global_prng_state, 0, (uint64) at);
		if (at >= SAMPLE_KEYS)
			return;
		pfree(rows->sample[at]);
	}
	old = MemoryContextSwitchTo(rows->context);
	copy = palloc(VARSIZE_ANY(key));
	memcpy(copy, key, VARSIZE_ANY(key));
	rows->sample[at] = copy;
	MemoryContextSwitchTo(old);
}

typedef struct Slice
{
	EcmLogRows *rows;
	EcmFoldSort sort;
} Slice;

static void
keep_entry(void *arg, const bytea *key, EcmOp op, const EcmValue *values)
{
	Slice	   *slice = arg;
	EcmLogRows *rows = slice->rows;
	bytea	   *entry = ecm_fold_pack(slice->sort.fold->shape, op, values);

	ecm_spill_put_entry(rows->spill, 0, slice->sort.member, key, entry);
	sample_key(rows, key);
	pfree(entry);
}

static void
begin_log(EcmLogRows *rows, EcmFold *fold, Snapshot snapshot)
{
	MemoryContext old = MemoryContextSwitchTo(rows->context);

	ecm_compare_fold(fold->shape, snapshot, fold);
	rows->completer = ecm_completer_begin(fold->shape, snapshot, fold->old_base.lsn,
										  fold->new_base.lsn, fold->new_base.op);
	ecm_fold_begin_log(fold, &rows->position);
	MemoryContextSwitchTo(old);
}

/* Reads a slice of a log, or several small logs. */
static void
read_slice(EcmLogRows *rows, Snapshot snapshot)
{
	Slice		slice = {.rows = rows};
	EcmFoldRead read = ECM_FOLD_READ_ALL;

	ecm_fold_sort_begin(&slice.sort, &rows->folds[rows->member]);
	while (rows->member < rows->n && read == ECM_FOLD_READ_ALL &&
		   slice.sort.bytes < ecm_fold_step_bytes())
	{
		EcmFold    *fold = &rows->folds[rows->member];

		if (rows->completer == NULL)
			begin_log(rows, fold, snapshot);
		fold->snapshot = snapshot;
		ecm_completer_go_on(rows->completer, snapshot);
		slice.sort.fold = fold;
		slice.sort.member = rows->member;
		read = ecm_fold_read_log(&slice.sort, rows->completer, &rows->position,
								 ecm_fold_step_bytes(), NULL, NULL);
		ecm_completer_suspend(rows->completer);
		if (read != ECM_FOLD_READ_ALL)
			break;
		ecm_completer_end(rows->completer);
		rows->completer = NULL;
		rows->member++;
	}
	ecm_fold_replay(&slice.sort, true, keep_entry, &slice);
	ecm_fold_sort_end(&slice.sort);
	if (read == ECM_FOLD_READ_LACKS)
	{
		ecm_completer_walk_begin(rows->completer, rows->position.chunk_lsn,
								 rows->position.chunk_op, rows->position.lsn, rows->position.op);
		rows->phase = PHASE_WALK;
	}
	else if (rows->member == rows->n)
		rows->phase = ecm_spill_bytes(rows->spill, 0) > 2 * ecm_fold_step_bytes() ?
			PHASE_DIVIDE : PHASE_READY;
}

static void
walk(EcmLogRows *rows, Snapshot snapshot)
{
	ecm_completer_go_on(rows->completer, snapshot);
	if (ecm_completer_walk(rows->completer, 2 * ecm_fold_step_bytes()))
		rows->phase = PHASE_READ;
	ecm_completer_suspend(rows->completer);
}

/* ------------------------------------------------------------ dividing -- */

/*
 * NULL: since the column's type has changed, or an enum's value was renamed, no row of the
 * table can have that key.  Then it comes after all others.
 */
static Datum *
key_datums(EcmLogRows *rows, const bytea *key)
{
	return ecm_key_or_null(rows->cmp, ecm_fold_key_texts(rows->folds[0].shape, key));
}

typedef struct SampledKey
{
	Datum	   *datums;
	bytea	   *key;
} SampledKey;

static int
compare_sampled(const void *a, const void *b, void *arg)
{
	return ecm_key_compare(arg, ((const SampledKey *) a)->datums, ((const SampledKey *) b)->datums);
}

/* Borders such that the lists have about the size of a step. */
static void
choose_borders(EcmLogRows *rows)
{
	MemoryContext old = MemoryContextSwitchTo(rows->context);
	int			nsample = (int) Min(rows->nseen, SAMPLE_KEYS);
	int			nkeys = 0;
	SampledKey *keys = palloc(sizeof(SampledKey) * Max(nsample, 1));
	int			wanted = (int) Min(ecm_spill_bytes(rows->spill, 0) / ecm_fold_step_bytes() + 1,
								   MAX_LISTS);

	rows->cmp = ecm_key_cmp_begin(rows->folds[0].shape);
	for (int i = 0; i < nsample; i++)
	{
		Datum	   *datums = key_datums(rows, rows->sample[i]);

		if (datums != NULL)
			keys[nkeys++] = (SampledKey)
		{
			datums, rows->sample[i]
		};
	}
	qsort_arg(keys, nkeys, sizeof(SampledKey), compare_sampled, rows->cmp);
	rows->borders = palloc(sizeof(Datum *) * wanted);
	rows->border_keys = palloc(sizeof(bytea *) * wanted);
	rows->nlists = 1;
	for (int i = 1; i < wanted && nkeys > 0; i++)
	{
		SampledKey *key = &keys[(int64) nkeys * i / wanted];

		if (rows->nlists > 1 &&
			ecm_key_compare(rows->cmp, rows->borders[rows->nlists - 2], key->datums) >= 0)
			continue;
		rows->borders[rows->nlists - 1] = key->datums;
		rows->border_keys[rows->nlists - 1] = key->key;
		rows->nlists++;
	}
	MemoryContextSwitchTo(old);
}

/* The list with a key, from 0. */
static int
find_list(const EcmLogRows *rows, const Datum *key)
{
	int			low = 0;
	int			high = rows->nlists - 1;

	if (key == NULL)
		return high;
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (ecm_key_compare(rows->cmp, key, rows->borders[middle]) <= 0)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

static MemoryContext
entry_context(void)
{
	return AllocSetContextCreate(CurrentMemoryContext, "electric_cm row of a log",
								 ALLOCSET_DEFAULT_SIZES);
}

static void
divide(EcmLogRows *rows)
{
	int64		end;
	MemoryContext context = entry_context();
	MemoryContext old = MemoryContextSwitchTo(context);

	if (rows->divided == 0)
		choose_borders(rows);
	end = rows->nlists > 1 ? Min(ecm_spill_bytes(rows->spill, 0),
								 rows->divided + ecm_fold_step_bytes()) : 0;
	while (rows->divided < end)
	{
		int			member;
		bytea	   *key;
		bytea	   *entry;

		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(context);
		ecm_spill_get_entry(rows->spill, 0, &rows->divided, &member, &key, &entry);
		ecm_spill_put_entry(rows->spill, 1 + find_list(rows, key_datums(rows, key)), member,
							key, entry);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	if (rows->nlists == 1)
		rows->phase = PHASE_READY;	/* all keys are equal */
	else if (rows->divided == ecm_spill_bytes(rows->spill, 0))
	{
		ecm_spill_clear(rows->spill, 0);
		rows->phase = PHASE_READY;
	}
}

/* -------------------------------------------------------------- getting -- */

static void
take_step(EcmLogRows *rows)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	rows->in_step = true;
	if (rows->phase == PHASE_READ)
		read_slice(rows, snapshot);
	else if (rows->phase == PHASE_WALK)
		walk(rows, snapshot);
	else
		divide(rows);
	rows->in_step = false;
	UnregisterSnapshot(snapshot);
}

/* The place of the reading, or the one that was not used for the longest time. */
static int
find_kept(int64 reading)
{
	int			oldest = 0;

	for (int i = 0; i < ECM_MAX_KEPT_LOGS; i++)
	{
		if (kept[i] != NULL && kept[i]->in_step)
			forget(i);
		if (kept[i] != NULL && kept[i]->reading == reading)
			return i;
	}
	forget_over();
	for (int i = 0; i < ECM_MAX_KEPT_LOGS; i++)
		if (kept[i] == NULL || (kept[oldest] != NULL && kept[i]->used < kept[oldest]->used))
			oldest = i;
	if (kept[oldest] != NULL)
		forget(oldest);
	return oldest;
}

EcmLogRows *
ecm_log_rows_get(int64 reading, EcmReadShape *shapes, int n)
{
	int			i = find_kept(reading);

	/* a shape that has left the reading was part of what was read */
	if (kept[i] != NULL && kept[i]->n != n)
		forget(i);
	if (kept[i] == NULL)
		kept[i] = create(reading, shapes, n);
	kept[i]->used = ++uses;
	if (kept[i]->phase != PHASE_READY)
		take_step(kept[i]);
	return kept[i]->phase == PHASE_READY ? kept[i] : NULL;
}

static EcmKeyCmp *
get_cmp(EcmLogRows *rows)
{
	if (rows->cmp == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(rows->context);

		rows->cmp = ecm_key_cmp_begin(rows->folds[0].shape);
		MemoryContextSwitchTo(old);
	}
	return rows->cmp;
}

/* The list after a key. */
static int
list_after(EcmLogRows *rows, const Datum *after)
{
	int			list = 0;

	if (after != NULL)
		while (list < rows->nlists - 1 &&
			   ecm_key_compare(rows->cmp, rows->borders[list], after) <= 0)
			list++;
	return list;
}

char **
ecm_log_rows_limit(EcmLogRows *rows, char **after, char **upto)
{
	EcmKeyCmp  *cmp = get_cmp(rows);
	int			list = list_after(rows, after ? ecm_key_from_texts(cmp, after) : NULL);

	if (list == rows->nlists - 1 ||
		(upto != NULL &&
		 ecm_key_compare(cmp, ecm_key_from_texts(cmp, upto), rows->borders[list]) <= 0))
		return upto;
	return ecm_fold_key_texts(rows->folds[0].shape, rows->border_keys[list]);
}

void
ecm_log_rows_put(EcmLogRows *rows, char **after, char **upto, EcmFoldSort *sort)
{
	EcmKeyCmp  *cmp = get_cmp(rows);
	Datum	   *first = after ? ecm_key_from_texts(cmp, after) : NULL;
	Datum	   *last = upto ? ecm_key_from_texts(cmp, upto) : NULL;
	int			list = rows->nlists == 1 ? 0 : 1 + list_after(rows, first);
	int64		position = 0;
	MemoryContext context = entry_context();
	MemoryContext old = MemoryContextSwitchTo(context);

	while (position < ecm_spill_bytes(rows->spill, list))
	{
		bytea	   *key;
		bytea	   *entry;
		Datum	   *datums;

		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(context);
		ecm_spill_get_entry(rows->spill, list, &position, &sort->member, &key, &entry);
		if (first != NULL || last != NULL)
		{
			datums = key_datums(rows, key);
			if (datums == NULL)
			{
				if (last != NULL)
					continue;
			}
			else if ((first != NULL && ecm_key_compare(cmp, datums, first) <= 0) ||
					 (last != NULL && ecm_key_compare(cmp, datums, last) > 0))
				continue;
		}
		ecm_fold_sort_put(sort, key, entry);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}
