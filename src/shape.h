/*-------------------------------------------------------------------------
 *
 * shape.h
 *	  Shapes: their catalog, snapshot, creation and log.
 *
 * shape_catalog.c	declares, looks up and drops shapes (SQL side)
 * shape_create.c	the manager's part in creating shapes: publish, capture,
 *					barrier, snapshot; shape_request.c: which, shape_barrier.c
 * shape_purge.c	the manager's part in freeing what dropped ones leave
 * shape_job.c		a pool session's part in both
 * shape_snapshot.c	... and the snapshot's rows
 * shape_filter.c	where clauses
 * shape_log.c		writes chunks, reads them back
 * shape_chunk.c	the packed form of entries (pure)
 *
 * The stack's internal orders travel in the replication stream itself, as
 * transactional logical messages.  Anybody may emit such messages, so ours are
 * known by a prefix that is a secret of this database, ecm_message_prefix():
 *
 *	 create <id> <relation> <handle>	a shape was declared (create_shape)
 *	 capture <number> {<id> <generation>}...	from here on, log their changes
 *					(pool); the number is the manager's
 *	 live <snapshot> {<id> <generation>}...	their snapshot is committed (pool)
 *	 fail <id> <generation> <reason>	it can't be created (pool)
 *	 drop <handle> <id>,... <reason>	these shapes are gone; the handle is the
 *					first one's
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_H
#define ECM_SHAPE_H

#include "postgres.h"

#include "access/transam.h"
#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "nodes/execnodes.h"
#include "nodes/pg_list.h"
#include "shape_chunk.h"
#include "shape_filter.h"
#include "utils/array.h"
#include "utils/relcache.h"

#define ECM_SCHEMA			"_electric_cm"

/*
 * A chunk's data is cut so as not to exceed this, the most that is stored in
 * line, in a page of its own: 8160 bytes (toast_tuple_target, and a page's
 * maximum) less 24 for the tuple header, 40 for the other columns and 4 for
 * the length word.
 */
#define ECM_CHUNK_TARGET	8092

typedef enum EcmShapeState
{
	ECM_SHAPE_CREATING,
	ECM_SHAPE_LIVE,
	ECM_SHAPE_ERRORED
} EcmShapeState;

/* A row of _electric_cm.shape, with its row of shape_state. */
typedef struct EcmShapeDef
{
	int64		id;
	char	   *handle;
	Oid			owner;
	Oid			relation;
	char	   *relation_name;	/* quoted, the first part of every key */
	int			ncolumns;
	char	  **column_names;
	Oid		   *column_types;
	int			nkeys;
	int16	   *key_positions;	/* 0-based positions in column_names */
	EcmFilterDef *filter;		/* NULL: no where clause */
	int			worker;
	XLogRecPtr	skip_until;		/* a former worker has logged what precedes */
	EcmShapeState state;
	int			generation;
	int			capturing;		/* generation that is captured for, 0: none */
	int			snapshot_generation;	/* 0: none */
	char	   *last_error;		/* or NULL */
} EcmShapeDef;

/* ---- shape_catalog.c ---- */

/*
 * Runs SPI as the bootstrap superuser with search_path pinned, whoever calls;
 * end restores everything.  An ERROR in between restores it too.
 */
typedef struct EcmSpiState
{
	Oid			save_userid;
	int			save_sec_context;
	int			save_nestlevel;
} EcmSpiState;

extern void ecm_spi_begin(EcmSpiState *state);
extern void ecm_spi_end(EcmSpiState *state);

/*
 * Run one statement, within these two, and check that it did what was meant;
 * the latter keeps its plan for as long as the process lives.
 */
struct _SPI_plan;
extern void ecm_spi_run(const char *sql, int expected, int nargs, Oid *types,
						Datum *values, const char *nulls);
extern void ecm_spi_run_kept(struct _SPI_plan **kept, const char *sql,
							 int expected, int nargs, Oid *types,
							 Datum *values, const char *nulls);

/* Is the table in our publication? */
extern bool ecm_table_is_published(Oid relation);

/* Prefix of the stack's own messages; in a transaction; palloc'd. */
extern char *ecm_message_prefix(void);

/* Emits one in the current transaction. */
extern void ecm_emit_message(const char *text);

/* Lookups; palloc'd in the caller's context.  NULL if there is no such row. */
extern EcmShapeDef *ecm_shape_by_handle(const char *handle);
extern EcmShapeDef *ecm_shape_by_id(int64 id);

/*
 * Hand over, one after the other, the shapes of a relation that a consumer has
 * to follow (live, or being captured), or all that are being captured
 * (InvalidOid); or those that have these ids (int8[]).  def and what fn
 * allocates are gone after each.
 */
typedef void (*EcmShapeCallback) (const EcmShapeDef *def, void *arg);
extern void ecm_shapes_of_worker(int worker, Oid relation, EcmShapeCallback fn,
								 void *arg);
extern void ecm_shapes_by_ids(ArrayType *ids, EcmShapeCallback fn, void *arg);

/* Only which there are that a consumer may have to follow. */
typedef void (*EcmShapeIdCallback) (int64 id, Oid relation, bool live, void *arg);
extern void ecm_shape_ids_of_worker(int worker, EcmShapeIdCallback fn, void *arg);

/*
 * Deletes the shapes of a relation, or all (InvalidOid), in the current
 * transaction, and emits drop messages.  Returns how many there were.
 */
extern int	ecm_shapes_invalidate(Oid relation, const char *reason);

/* Deletes one shape; false if it is gone, or locked by whoever drops it. */
extern bool ecm_shape_invalidate_nowait(int64 id, const char *reason);

/* ERROR unless the current user may read the shape (owner, rights, RLS). */
extern void ecm_shape_check_read(const EcmShapeDef *shape);

/* ---- shape_assign.c ---- */

/*
 * Locks a consumer's progress, waiting for whoever has it; until the process
 * ends, or else the transaction.
 */
extern void ecm_shape_lock_progress(int worker, bool until_exit);

/* How many consumers this database's stack has; 1 if there is none. */
extern int	ecm_shape_workers_running(void);

/* ---- shape_log.c ---- */

/*
 * Inserts chunk tuples into _electric_cm.shape_log without logical decoding.
 * Needs an open transaction; one writer serves any number of chunks in it.
 */
typedef struct EcmLogWriter EcmLogWriter;

extern EcmLogWriter *ecm_log_writer_begin(void);
extern void ecm_log_writer_put(EcmLogWriter *writer, int64 shape,
							   XLogRecPtr first_lsn, int64 first_op,
							   int32 entries, FullTransactionId captured_xid,
							   const char *data, Size len);
extern void ecm_log_writer_end(EcmLogWriter *writer);

/* Deletes all chunks of a shape in the current transaction; returns how many. */
extern int64 ecm_log_delete(int64 shape);
extern int64 ecm_log_delete_some(int64 shape, int64 max);

/*
 * The captured chunks of a shape that is about to be live: deletes those whose
 * xid is visible in the snapshot (a pg_snapshot as text), keeps the others.
 */
extern void ecm_log_settle_captured(int64 shape, const char *snapshot);

/* ---- shape_create.c: the manager calls these; they never wait ---- */

extern void ecm_creations_init(int stack_index, const char *message_prefix);

/*
 * Reads which shapes are being created, and frees what dropped ones have left
 * behind; at the start of each stream.
 */
extern void ecm_creations_scan(void);

/* One of our own messages was met in the stream: an EcmFeedMessageCallback. */
extern void ecm_creations_message(const char *text, TransactionId xid,
								  XLogRecPtr after);

/*
 * Moves everything on that can move.  received_lsn: end of the last complete
 * transaction fed to the consumers; applied_lsn: how far they all are.
 */
extern void ecm_creations_poll(TimestampTz now, XLogRecPtr received_lsn,
							   XLogRecPtr applied_lsn);
/* When to be called again at the latest, or 0. */
extern TimestampTz ecm_creations_deadline(void);

/* The stream was lost: forget what is in flight (a scan follows). */
extern void ecm_creations_forget(void);

#endif							/* ECM_SHAPE_H */
