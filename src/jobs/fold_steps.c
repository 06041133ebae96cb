/*-------------------------------------------------------------------------
 *
 * fold_steps.c
 *	  Folds a long log in steps, each in a transaction of its own.
 *
 * A transaction that read all of a long log would last for minutes.  Vacuum and
 * the slot would have to wait for it.  So the work is divided.
 *
 * 1. The log's entries are read in slices of some 32 MB.  Each slice is sorted
 * by key, and for each key, what its entries come to is appended to a list in a
 * temporary file.  There is a list for each partition of the keys' hashes.  These
 * transactions write nothing.
 *
 * 2. The lists are sorted and replayed, a few at a time, and the rows are written
 * behind those of the lists before, as the log's new base.  Such a transaction
 * also writes the fold's row in _electric_cm.shape_fold: how many partitions are
 * done, and how many rows there are.  The last one moves the log's base, and so
 * everything becomes visible at once; until then readers pass over these rows.
 *
 * A list may be long although its partition is small: one row may have been
 * changed in each slice.  It is then shortened as the log was, slice by slice.
 *
 * The file is lost if the session or the server ends.  But what has been written
 * stays, and the next session reads the log again, for the partitions that are not
 * done.  The same happens if there are too many partitions for as many lists.
 * That the partitions are the same then depends on the hash, so it must not be
 * changed: it is made of a CRC, which no version of the server may change.
 *
 * If a fold can't go on, since its shape has ended with an error or folding has
 * been turned off, the rows that it has written are deleted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/shmem.h"
#include "base/wait_event.h"
#include "jobs/fold.h"
#include "jobs/fold_spill.h"
#include "shape/shape_catalog.h"
#include "slot/retained_wal.h"

/* The most bytes that a step reads or sorts; also what is sorted in memory. */
#define MAX_STEP_BYTES		(INT64CONST(32) * 1024 * 1024)

/* If less WAL than this may be written, the next step waits, for so long at most. */
#define SMALL_WAL			(INT64CONST(256) * 1024)
#define ROOM_POLL_MS		500
#define MAX_ROOM_POLLS		60

/* The most lists at a time, each of which has a buffer. */
#define MAX_LISTS			1024

typedef struct Steps
{
	EcmFold    *fold;
	MemoryContext context;		/* the steps': for all of a pass */
	MemoryContext step_context; /* current in a step, reset after it */
	EcmSpill   *spill;
	int			first;			/* list 0 is of this partition */
	int			nlists;			/* two more follow, for shortening others */

	/* reading the log */
	EcmCompleter *completer;
	EcmFoldPosition position;
	EcmFoldRead read;

	/* reading lists */
	int			list;
	int			end;			/* the first one that is not part of the step */
	int64		list_position;
	int			to;				/* the list that is written */

	EcmRowPacker *packer;
} Steps;

int64
ecm_fold_step_bytes(void)
{
	return Min(MAX_STEP_BYTES, maintenance_work_mem * INT64CONST(1024) / 2);
}

/*
 * Waits while the slot retains much WAL for its limits, so that what the steps write does
 * not come at once, before the slot has followed.  If it is held by somebody, steps go on
 * after a while, slowly: this session is needed for other things, too.
 */
static void
await_room(void)
{
	int			index = ecm_stack_find(MyDatabaseId);

	for (int i = 0; i < MAX_ROOM_POLLS && index >= 0; i++)
	{
		if (ecm_retained_wal_allowance(index, SMALL_WAL) >= SMALL_WAL)
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ROOM_POLL_MS, ecm_wait_event(ECM_WAIT_STACK));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Commits, and begins the next transaction.  False: the shape is not live any
 * more.
 */
static bool
next_transaction(Steps *steps)
{
	EcmFold    *fold = steps->fold;
	const EcmShapeDef *shape;

	UnregisterSnapshot(fold->snapshot);
	fold->snapshot = NULL;
	MemoryContextReset(steps->step_context);
	SPI_commit();
	CHECK_FOR_INTERRUPTS();
	await_room();
	fold->snapshot = RegisterSnapshot(GetLatestSnapshot());
	shape = ecm_shape_by_id(fold->shape->id);
	return shape != NULL && shape->state == ECM_SHAPE_LIVE;
}

/* ----------------------------------------------------------------
 * Lists
 * ----------------------------------------------------------------
 */

static int
partition_of(const EcmFold *fold, const bytea *key)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, VARDATA(key), VARSIZE(key) - VARHDRSZ);
	FIN_CRC32C(crc);
	return (int) ((uint64) murmurhash32(crc) * fold->partitions >> 32);
}

static bool
has_list(void *arg, const bytea *key)
{
	Steps	   *steps = arg;
	int			partition = partition_of(steps->fold, key);

	return partition >= steps->first && partition < steps->first + steps->nlists;
}

static void
append_entry(Steps *steps, int list, const bytea *key, EcmOp op, const EcmValue *values)
{
	bytea	   *entry = ecm_fold_pack(steps->fold->shape, op, values);

	ecm_spill_put_entry(steps->spill, list, 0, key, entry);
	pfree(entry);
}

static void
put_in_its_list(void *arg, const bytea *key, EcmOp op, const EcmValue *values)
{
	Steps	   *steps = arg;

	append_entry(steps, partition_of(steps->fold, key) - steps->first, key, op, values);
}

static void
put_in_one_list(void *arg, const bytea *key, EcmOp op, const EcmValue *values)
{
	Steps	   *steps = arg;

	append_entry(steps, steps->to, key, op, values);
}

static void
put_in_base(void *arg, const bytea *key pg_attribute_unused(),
			EcmOp op pg_attribute_unused(), const EcmValue *values)
{
	Steps	   *steps = arg;

	ecm_row_packer_put(steps->packer, values, steps->fold->shape->ncolumns);
}

/* Sorts a list's entries from a position on, about max_bytes of them. */
static void
sort_list(Steps *steps, EcmFoldSort *sort, int list, int64 *position, int64 max_bytes)
{
	int64		end = Min(ecm_spill_bytes(steps->spill, list), *position + max_bytes);

	while (*position < end)
	{
		bytea	   *key;
		bytea	   *entry;

		CHECK_FOR_INTERRUPTS();
		ecm_spill_get_entry(steps->spill, list, position, &sort->member, &key, &entry);
		ecm_fold_sort_put(sort, key, entry);
		pfree(key);
		pfree(entry);
	}
}

/* ----------------------------------------------------------------
 * From the log to the lists
 * ----------------------------------------------------------------
 */

/* A step: reads a slice of the log. */
static void
read_slice(EcmFold *fold, void *arg)
{
	Steps	   *steps = arg;
	EcmFoldSort sort;

	ecm_completer_go_on(steps->completer, fold->snapshot);
	ecm_fold_sort_begin(&sort, fold);
	steps->read = ecm_fold_read_log(&sort, steps->completer, &steps->position,
									ecm_fold_step_bytes(), has_list, steps);
	ecm_completer_suspend(steps->completer);
	ecm_fold_replay(&sort, true, put_in_its_list, steps);
	ecm_fold_sort_end(&sort);
}

/*
 * The next entry is an insert that lacks values, which are somewhere in the log
 * before.  The completer walks through the log until it knows where, for this
 * insert and those after it.
 */
static bool
walk_for_values(Steps *steps)
{
	bool		done;

	ecm_completer_walk_begin(steps->completer,
							 steps->position.chunk_lsn, steps->position.chunk_op,
							 steps->position.lsn, steps->position.op);
	do
	{
		ecm_completer_go_on(steps->completer, steps->fold->snapshot);
		done = ecm_completer_walk(steps->completer, 2 * ecm_fold_step_bytes());
		if (!next_transaction(steps))
			return false;
	} while (!done);
	return true;
}

/* Fills the lists. */
static bool
read_log(Steps *steps)
{
	EcmFold    *fold = steps->fold;
	MemoryContext step_context = MemoryContextSwitchTo(steps->context);

	steps->first = fold->done;
	steps->nlists = Min(fold->partitions - fold->done, MAX_LISTS);
	steps->spill = ecm_spill_create(steps->nlists + 2);
	steps->completer = ecm_completer_begin(fold->shape, fold->snapshot,
										   fold->old_base.lsn,
										   fold->new_base.lsn, fold->new_base.op);
	MemoryContextSwitchTo(step_context);
	ecm_fold_begin_log(fold, &steps->position);
	do
	{
		if (!ecm_fold_try(fold, read_slice, steps) || !next_transaction(steps))
			return false;
		if (steps->read == ECM_FOLD_READ_LACKS && !walk_for_values(steps))
			return false;
	} while (steps->read != ECM_FOLD_READ_ALL);
	ecm_completer_end(steps->completer);
	return true;
}

/* ----------------------------------------------------------------
 * From the lists to the base
 * ----------------------------------------------------------------
 */

/*
 * A step: replays a slice of a list, along with what the slices before have come
 * to, which is in the list after the last partition's.
 */
static void
shorten_some(EcmFold *fold, void *arg)
{
	Steps	   *steps = arg;
	int			before = steps->nlists;
	int64		position = 0;
	EcmFoldSort sort;

	steps->to = steps->nlists + 1;
	ecm_fold_sort_begin(&sort, fold);
	sort_list(steps, &sort, before, &position, PG_INT64_MAX / 2);
	sort_list(steps, &sort, steps->list, &steps->list_position, ecm_fold_step_bytes());
	ecm_fold_replay(&sort, true, put_in_one_list, steps);
	ecm_fold_sort_end(&sort);
	ecm_spill_clear(steps->spill, before);
	ecm_spill_swap(steps->spill, before, steps->to);
}

static bool
shorten(Steps *steps)
{
	steps->list_position = 0;
	while (steps->list_position < ecm_spill_bytes(steps->spill, steps->list))
	{
		if (!ecm_fold_try(steps->fold, shorten_some, steps) || !next_transaction(steps))
			return false;
	}
	ecm_spill_clear(steps->spill, steps->list);
	ecm_spill_swap(steps->spill, steps->list, steps->nlists);
	return true;
}

/* A step: writes the rows of some lists. */
static void
write_lists(EcmFold *fold, void *arg)
{
	Steps	   *steps = arg;
	EcmLogWriter *writer;
	EcmFoldSort sort;

	ecm_fold_sort_begin(&sort, fold);
	for (int list = steps->list; list < steps->end; list++)
	{
		int64		position = 0;

		sort_list(steps, &sort, list, &position, PG_INT64_MAX / 2);
	}
	writer = ecm_log_writer_begin();
	steps->packer = ecm_row_packer_go_on(writer, fold->shape->id, fold->new_base.lsn,
										 fold->first_op, &fold->written);
	ecm_fold_replay(&sort, false, put_in_base, steps);
	ecm_row_packer_pause(steps->packer, &fold->written);
	ecm_log_writer_end(writer);
	ecm_fold_sort_end(&sort);

	fold->done = steps->first + steps->end;
	if (fold->done < fold->partitions)
		ecm_fold_save(fold);
	else
		ecm_fold_set_base(fold);
}

static bool
write_base(Steps *steps)
{
	for (steps->list = 0; steps->list < steps->nlists; steps->list = steps->end)
	{
		int64		bytes = 0;

		if (ecm_spill_bytes(steps->spill, steps->list) > 2 * ecm_fold_step_bytes() &&
			!shorten(steps))
			return false;
		steps->end = steps->list;
		do
			bytes += ecm_spill_bytes(steps->spill, steps->end++);
		while (steps->end < steps->nlists &&
			   bytes + ecm_spill_bytes(steps->spill, steps->end) <= ecm_fold_step_bytes());
		if (!ecm_fold_try(steps->fold, write_lists, steps))
			return false;
		for (int list = steps->list; list < steps->end; list++)
			ecm_spill_clear(steps->spill, list);

		/* the last transaction is the caller's to commit */
		if (steps->fold->done < steps->fold->partitions && !next_transaction(steps))
			return false;
	}
	return true;
}

bool
ecm_fold_in_steps(EcmFold *fold)
{
	MemoryContext caller_context = CurrentMemoryContext;
	MemoryContext context;
	Steps		steps = {.fold = fold};
	bool		ok = true;

	if (fold->partitions == 0)
	{
		fold->partitions = (int) Min(fold->bytes / ecm_fold_step_bytes() + 1, PG_INT32_MAX);
		fold->first_op = ecm_new_base_identity();
	}
	context = AllocSetContextCreate(PortalContext, "electric_cm fold",
									ALLOCSET_DEFAULT_SIZES);
	steps.step_context = AllocSetContextCreate(context, "electric_cm step of a fold",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(steps.step_context);
	while (ok && fold->done < fold->partitions)
	{
		steps.context = AllocSetContextCreate(context, "electric_cm pass of a fold",
											  ALLOCSET_DEFAULT_SIZES);
		ok = read_log(&steps) && write_base(&steps);
		MemoryContextDelete(steps.context);
	}
	MemoryContextSwitchTo(caller_context);
	MemoryContextDelete(context);
	return ok;
}
