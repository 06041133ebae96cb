/*-------------------------------------------------------------------------
 *
 * fold.h
 *	  The parts of a fold: see fold.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_FOLD_H
#define ECM_FOLD_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "utils/snapshot.h"
#include "utils/tuplesort.h"

#include "shape/shape.h"
#include "shape/shape_chunk.h"
#include "shape/shape_complete.h"
#include "shape/shape_log.h"

typedef struct EcmFold
{
	const EcmShapeDef *shape;
	Snapshot	snapshot;		/* of the transaction at hand */
	EcmLogBase	old_base;
	EcmLogBase	new_base;
	int64		first_op;		/* op of the new base: its identity */
	int64		bytes;			/* to be replayed: the old base, and the
								 * entries up to the new one */
	int64		entries;		/* number of entries replayed */
	EcmLogTotals written;		/* rows of the new base */
	int64		reader_retention;	/* for named readers (bytes; below 0:
									 * without limit) */
	int			lost;			/* number of them that have lost the shape */

	/* if it is done in steps */
	int			partitions;		/* of the keys, by their hashes; 0: it is not */
	int			done;			/* partitions whose rows have been written */
	bool		abandoned;		/* the rows that have been written are to be
								 * deleted */
} EcmFold;

/* ---- fold_replay.c: entries are sorted by key, and replayed ---- */

typedef struct EcmFoldSort
{
	EcmFold    *fold;
	TupleDesc	desc;
	TupleTableSlot *in;
	TupleTableSlot *out;
	Tuplesortstate *state;
	int64		number;			/* of entries so far */
	int64		bytes;			/* that they have */
	int			member;			/* of several logs, that which the entry is of
								 * that is put, or that comes out */
} EcmFoldSort;

extern void ecm_fold_sort_begin(EcmFoldSort *sort, EcmFold *fold);
extern void ecm_fold_sort_end(EcmFoldSort *sort);

/*
 * Entries come out by member and key; of one key, in the order in which they were put.
 * An entry's key is such that it can be sorted by.
 */
extern bytea *ecm_fold_key(const EcmShapeDef *shape, const EcmChunkReader *r);
extern bytea *ecm_fold_row_key(const EcmShapeDef *shape, const EcmValue *row);
extern char **ecm_fold_key_texts(const EcmShapeDef *shape, const bytea *key);
extern void ecm_fold_sort_put(EcmFoldSort *sort, bytea *key, bytea *entry);

/*
 * Instead of replaying, for rows that were put as inserts: the next one.  False: there
 * is none.  It is valid until the next call.
 */
extern bool ecm_fold_sort_next(EcmFoldSort *sort, bytea **key, EcmValue *values);

/* The part of an entry that replaying needs, packed as in a chunk. */
extern bytea *ecm_fold_pack(const EcmShapeDef *shape, EcmOp op,
							const EcmValue *values);

/* Where in the log the next entry to be replayed is. */
typedef struct EcmFoldPosition
{
	XLogRecPtr	chunk_lsn;		/* not in a chunk before this one */
	int64		chunk_op;
	uint64		lsn;			/* not before this one */
	uint64		op;
} EcmFoldPosition;

/* The beginning of the log. */
extern void ecm_fold_begin_log(const EcmFold *fold, EcmFoldPosition *position);

typedef enum EcmFoldRead
{
	ECM_FOLD_READ_ALL,			/* there are no more entries */
	ECM_FOLD_READ_ENOUGH,		/* max_bytes of them have been read */
	ECM_FOLD_READ_LACKS			/* the completer has to walk for the next one */
} EcmFoldRead;

/*
 * Sorts the log's entries from a position on, and moves that. is_wanted: NULL, or
 * says of which keys.
 */
extern EcmFoldRead ecm_fold_read_log(EcmFoldSort *sort, EcmCompleter *completer,
									 EcmFoldPosition *position, int64 max_bytes,
									 bool (*is_wanted) (void *arg, const bytea *key),
									 void *arg);

/*
 * Replays what has been sorted.  For each key 'put' gets what that comes to: with
 * part false, the sort has all of the log's entries of the key, and that is an
 * insert of the row as it stands in the end, or nothing.  With part true it is
 * as few entries as lead to the same as those that were sorted.
 */
extern void ecm_fold_replay(EcmFoldSort *sort, bool part,
							void (*put) (void *arg, const bytea *key, EcmOp op,
										 const EcmValue *values),
							void *arg);

/* ---- fold_catalog.c: its rows ---- */

/* Reads the row of a fold that is done in steps; false: there is none. */
extern bool ecm_fold_load(EcmFold *fold);

/* Writes it, after the shape's row has been locked. */
extern void ecm_fold_save(const EcmFold *fold);

/*
 * Makes the log begin with the new base, from the commit on.  ERROR 55P03 if a named
 * reader needs the old one.
 */
extern void ecm_fold_set_base(EcmFold *fold);

/*
 * Raises an ERROR if a user has the shape's row locked, in order to drop it,
 * perhaps for days, or if it is gone.
 */
extern void ecm_fold_check_lockable(const EcmFold *fold);

/* Deletes some of the rows of a fold that is abandoned.  False: it is gone. */
extern bool ecm_fold_delete_some(const EcmFold *fold);

/* Deletes some of the chunks before the base.  True: there were any. */
extern bool ecm_fold_delete_folded(const EcmFold *fold);

/* ---- fold.c, fold_steps.c ---- */

/*
 * Takes a step in a subtransaction.  False: the log can't be folded, the shape's
 * consumer has been told that the shape ends with an error, and the step has not
 * been taken.
 */
extern bool ecm_fold_try(EcmFold *fold, void (*step) (EcmFold *fold, void *arg),
						 void *arg);

/* The most bytes that a step reads, or sorts. */
extern int64 ecm_fold_step_bytes(void);

/*
 * Folds in steps, each in a transaction of its own, or goes on where a fold was
 * interrupted.  The caller is in the first of these transactions, and is
 * connected to SPI such that it can commit.  False: it has not come to its end.
 */
extern bool ecm_fold_in_steps(EcmFold *fold);

#endif							/* ECM_FOLD_H */
