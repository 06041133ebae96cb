/*-------------------------------------------------------------------------
 *
 * shape.h
 *	  Shapes: their catalog, snapshot, creation and log.
 *
 * shape_catalog.c	declares, looks up and drops shapes (SQL side)
 * shape_creation.c	the manager's part in creating shapes: publish, capture,
 *					barrier, snapshot; shape_requests.c: which, shape_barrier.c
 * shape_purge.c	the manager's part in freeing what dropped ones leave
 * publish_capture.c		a pool session's part in both
 * snapshot.c	... and the snapshot's rows
 * shape_filter.c	where clauses
 * shape_fit.c		do a shape and its table go together?
 * shape_ddl.c		what DDL does to shapes; shape_verify.c: do they and their
 *					tables still go together?
 * shape_settings.c	the settings that count for them
 * unpublish.c	tables without shapes leave the publication
 * shape_owner.c	what becomes of shapes when their owners go
 * shape_fate.c		is a shape's row there, or on its way out?
 * shape_log.c		writes, scans and deletes chunks
 * read_shape.c		reads logs for SQL
 * shape_offset.c	is an offset one of this log's?
 * wait_shape.c		waits for what comes
 * shape_entry.c	decodes entries
 * shape_complete.c	finds the values that inserts lack
 * fold.c		folds the oldest part of a log (SQL side)
 * shape_retention.c	has that done (the manager's part)
 * shape_chunk.c	the packed form of entries (pure)
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_H
#define ECM_SHAPE_H

#include "postgres.h"

#include "access/transam.h"
#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "nodes/bitmapset.h"
#include "nodes/execnodes.h"
#include "nodes/pg_list.h"
#include "storage/lockdefs.h"
#include "utils/array.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

#include "base/clock.h"
#include "base/stack_catalog.h"
#include "base/stream_message.h"
#include "base/table_writer.h"
#include "shape/shape_chunk.h"
#include "shape/shape_filter.h"

/*
 * A chunk's data is cut so as not to exceed this, the most that is stored in
 * line, in a page of its own: 8160 bytes (toast_tuple_target, and a page's
 * maximum) less 24 for the tuple header, 56 for the other columns and 4 for
 * the length word.
 */
#define ECM_CHUNK_TARGET	8076

/* The SQLSTATE of an offset that a log doesn't have, or has no more. */
#define ECM_ERRCODE_OFFSET	MAKE_SQLSTATE('E', 'C', '0', '0', '1')

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

/* An error as it is kept of a shape, palloc'd: see ecm_error_public_text(). */
extern char *ecm_tag_error(const char *sqlstate, const char *message);

/*
 * Has the shape's consumer mark it as errored, once the current transaction is
 * committed.  ERROR 55P03 if somebody has its row locked.
 */
extern void ecm_shape_emit_failure(const EcmShapeDef *shape, const char *error);

/* Lookups; palloc'd in the caller's context.  NULL if there is no such row. */
extern EcmShapeDef *ecm_shape_by_handle(const char *handle);
extern EcmShapeDef *ecm_shape_by_id(int64 id);

/* As it is in a snapshot, in which its log is to be read, too. */
extern EcmShapeDef *ecm_shape_as_of(const char *handle, Snapshot snapshot);

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

extern List *ecm_shapes_of_owner(Oid owner);

/* Those of the tables that have shapes, as of now, each once. */
extern List *ecm_tables_with_shapes(List *relids);

/*
 * Deletes the shapes of relations, or all (NIL), in the current transaction,
 * and emits drop messages.  Returns how many there were.
 */
extern int	ecm_shapes_invalidate(List *relations, const char *reason);

/* Deletes one shape, waiting for its row; within ecm_spi_begin/end. */
extern void ecm_shape_delete(int64 shape, const char *reason);

/* Deletes one shape; false if it is gone, or locked by whoever drops it. */
extern bool ecm_shape_invalidate_nowait(int64 id, const char *reason);

/*
 * Within ecm_spi_begin/end, and with a fresh snapshot: a SELECT; an UPDATE; and
 * deletes the shapes (s) that meet a condition, with drop messages for them.
 * Those that somebody else has locked are not waited for: they end where their
 * consumer comes to it.  'nulls' as for SPI.  Returns how many there were.
 */
extern void ecm_shapes_query(const char *sql, int nargs, Oid *types, Datum *values);
extern void ecm_shapes_update(const char *sql, int nargs, Oid *types, Datum *values);
extern int	ecm_shapes_delete(const char *condition, int nargs, Oid *types,
							  Datum *values, const char *nulls,
							  const char *reason);

/* The same, but for those that have been declared in this transaction. */
extern int	ecm_shapes_delete_others(const char *condition, int nargs, Oid *types,
									 Datum *values, const char *reason);

/*
 * For a session that has seen a shape, and asks what is published: from here on
 * it reads the catalogs.  A transaction's rows can be seen a moment before the
 * caches of others are told what it has changed, and in that moment the table
 * that it has taken out of the publication seems to be in it.
 */
extern void ecm_forget_catalogs(void);

/*
 * Is the table in our publication, by itself or with an ancestor, its schema
 * or everything?  Within ecm_spi_begin/end.
 */
extern bool ecm_is_published(Oid relation);

/*
 * Does it have a row filter or a column list for the table, one of its ancestors
 * or what is below it?
 */
extern bool ecm_is_filtered(Oid relation);

/*
 * Is there our publication, and does it publish all kinds of changes, and name
 * the table that each is of?  Where it doesn't, even for a moment, changes are missing from
 * the stream.
 */
extern bool ecm_publishes_everything(void);

/* Has the role the rights on the table that it takes to own the shape? */
extern bool ecm_shape_may_read(const EcmShapeDef *shape, Oid role);

/*
 * ERROR unless the current user may read the shape: he is its owner or a member
 * of that role, and both could select its rows with SQL now.
 */
extern void ecm_shape_check_read(const EcmShapeDef *shape);

/* ---- assign.c ---- */

/*
 * Locks a consumer's progress, waiting for whoever has it; until the process
 * ends, or else the transaction.
 */
extern void ecm_shape_lock_progress(int worker, bool until_exit);

/* How many consumers this database's stack has; 1 if there is none. */
extern int	ecm_shape_workers_running(void);
/* ---- shape_fit.c ---- */

/* What a shape needs of its table, as attribute numbers of that. */
typedef struct EcmShapeNeeds
{
	Bitmapset  *key;
	Bitmapset  *where;			/* that the where clause refers to */
	Bitmapset  *columns;		/* that the log has */
} EcmShapeNeeds;

/* Adds the attribute numbers of columns; *missing is set if one is gone. */
extern Bitmapset *ecm_fit_attnums(Oid relation, char **names, int nnames,
								  Bitmapset *attnums, bool *missing);

/*
 * May the role read these columns (none: the whole table) of all rows?  The
 * second raises an ERROR that says why not.
 */
extern bool ecm_fit_has_rights(Oid relation, Oid role, const Bitmapset *attnums);
extern void ecm_fit_check_rights(Oid relation, Oid role, const Bitmapset *attnums);

/* The index whose columns are the key of shapes of the table, if any. */
extern Oid	ecm_fit_key_index(Relation rel);

/*
 * The table's leaves that must get REPLICA IDENTITY FULL before a shape can be
 * made; and the commands for that.  ERROR if it is not for us to do that.  The
 * leaves are locked as 'lockmode' says; with NoLock nothing is waited for.
 */
extern List *ecm_fit_leaves_to_alter(Oid relation, const EcmShapeNeeds *needs,
									 Oid owner, LOCKMODE lockmode);
extern char *ecm_fit_identity_commands(List *leaves);

/*
 * ERROR if a partition is unlogged; they are locked as above.
 */
extern void ecm_fit_check_partitions(Oid relation, LOCKMODE lockmode);

/*
 * For shape_verify.c.  A relation without a lock, NULL if it is gone; the
 * attribute numbers of an index's key columns, in its order, and how many they
 * are; why the replica identity of a table, a leaf of 'root', is not enough for
 * the shape, or NULL.
 */
extern Relation ecm_fit_open_unlocked(Oid relid);
extern int	ecm_fit_index_columns(Oid index, AttrNumber *attnums);
extern const char *ecm_fit_identity_lacks(Relation leaf, Relation root,
										  const EcmShapeNeeds *needs);

/* ---- shape_verify.c ---- */

/*
 * These tables have been altered: deletes their shapes, and those of their
 * ancestors, that don't go with them any more.  Returns the tables whose names
 * are not those that their shapes go by: that matters at the commit.
 */
extern List *ecm_shapes_verify(List *changed);

/* Deletes the shapes of these tables, and of those in the schemas, likewise. */
extern void ecm_shapes_verify_names(List *tables, List *schemas);

/*
 * Deletes the followed shapes of tables that are not published any more: of
 * these, and of what is below and above them; of all.  The first returns which
 * of those below it are, and sets *above to what they are below of: the others
 * are locked, so that nobody creates a shape.
 */
extern List *ecm_shapes_verify_published(List *changed, List **above);
extern void ecm_shapes_verify_publication(void);

/*
 * Deletes the shapes with a column whose type is this one, or has this one
 * inside; values of it look different from now on.  False: no column has it.
 */
extern bool ecm_shapes_invalidate_type(Oid type, const char *reason);

/*
 * At the commit, after ecm_barrier_hold(): those that others have declared
 * since; of tables that were not published for a while.
 */
extern void ecm_shapes_invalidate_type_of_others(Oid type, const char *reason);
extern void ecm_shapes_invalidate_unpublished_of_others(List *relids);

/* ---- shape_fate.c ---- */

/* What is known of a shape's row. */
typedef struct EcmShapeFate
{
	bool		exists;			/* when that transaction is over */
	bool		changed;		/* it is one that changes the row, or deletes it */
	bool		in_doubt;		/* another one does, and may yet be undone */
	Oid			owner;			/* if it exists */
} EcmShapeFate;

typedef struct EcmFates
{
	TransactionId xid;
	Relation	rel;
	Relation	index;
	TupleTableSlot *slot;
} EcmFates;

/*
 * Looks at shapes' rows as they are once transaction xid (or invalid) has been
 * committed, though it may not be for others yet.  Within a transaction that
 * has a snapshot.  False, only without 'wait': the table is locked.
 */
extern bool ecm_fates_begin(EcmFates *fates, TransactionId xid, bool wait);
extern EcmShapeFate ecm_fate_of(EcmFates *fates, int64 id);
extern void ecm_fates_end(EcmFates *fates);

/*
 * Has transaction xid noted that it would have deleted the shape?  Within a
 * transaction that has a snapshot.
 */
extern bool ecm_fate_is_lost(TransactionId xid, int64 id);

/* ---- unpublish.c ---- */

/* For a session that is about to publish a table: keeps it as it is. */
extern void ecm_hold_published(Oid relation);

/*
 * Within ecm_spi_begin/end: it has been added by us; and has it ever been, so
 * that it may be again?
 */
extern void ecm_note_published(Oid relation);
extern bool ecm_was_published(Oid relation);

/* A table without shapes leaves the publication: that concerns nobody. */
extern bool ecm_is_unpublishing;

/*
 * A table may have lost its replica identity, or loses this index; takes those
 * that have none any more out of the publication, if we have added them.
 */
extern void ecm_unpublish_note(Oid relation);
extern void ecm_unpublish_note_index(Oid index);
extern void ecm_unpublish_keyless(void);
extern void ecm_unpublish_forget(void);

/* ---- shape_owner.c ---- */

/* Deletes the shapes of a role. */
extern void ecm_shapes_invalidate_owner(Oid owner, const char *reason);

/* Gives a role's shapes to another one, or deletes those it can't have. */
extern void ecm_shapes_reassign(Oid from, Oid to);

/* ---- shape_log.c ---- */

/* The size of a log or of some part of it. */
typedef struct EcmLogTotals
{
	int64		entries;
	int64		bytes;			/* of packed data */
} EcmLogTotals;

/*
 * Inserts chunk tuples into _electric_cm.shape_log without logical decoding.
 * Needs an open transaction; one writer serves any number of chunks in it.
 * put adds the chunk to the running totals, and stores them with it; put_bytes
 * does so without making a copy.
 */
typedef struct EcmLogWriter EcmLogWriter;

extern EcmLogWriter *ecm_log_writer_begin(void);
extern void ecm_log_writer_put(EcmLogWriter *writer, int64 shape,
							   XLogRecPtr first_lsn, int64 first_op,
							   int32 entries, FullTransactionId captured_xid,
							   const char *data, Size len,
							   EcmLogTotals *totals);
extern void ecm_log_writer_put_bytes(EcmLogWriter *writer, int64 shape,
									 XLogRecPtr first_lsn, int64 first_op,
									 int32 entries, FullTransactionId captured_xid,
									 bytea *bytes, EcmLogTotals *totals);
extern void ecm_log_writer_end(EcmLogWriter *writer);

/*
 * An entry's op is a number in its lower half.  In the upper half, the rows
 * that a log begins with have an identity: two servers may make different ones
 * of the same log, and who has read half of the one must not go on in the
 * other.  Identities have the bit set that comes next to the sign; entries of
 * the stream don't.  Since all of the history that the first timeline has is
 * the same everywhere, snapshots that are taken in it have none.
 */
#define ECM_IDENTITY_SHIFT	32
#define ECM_IDENTITY_BIT	(UINT64CONST(1) << 30)
#define ecm_op_number(op)	((uint32) (uint64) (op))
#define ecm_op_is_base(op)	(((uint64) (op) >> ECM_IDENTITY_SHIFT & ECM_IDENTITY_BIT) != 0)

extern int64 ecm_new_base_identity(void);	/* an op with a new one, number 0 */
extern int64 ecm_new_snapshot_identity(void);

/* Collects rows in chunks: row n is an insert at <lsn>_<op + n>. */
typedef struct EcmRowPacker EcmRowPacker;

extern EcmRowPacker *ecm_row_packer_begin(EcmLogWriter *writer, int64 shape,
										  XLogRecPtr lsn, int64 op);
extern void ecm_row_packer_put(EcmRowPacker *packer, const EcmValue *values,
							   int nvalues);
extern int64 ecm_row_packer_end(EcmRowPacker *packer);	/* how many they were */

/* Where a log begins: see _electric_cm.shape_base. */
typedef struct EcmLogBase
{
	XLogRecPtr	lsn;
	int64		op;
	EcmLogTotals origin;
} EcmLogBase;

extern void ecm_log_base(int64 shape, Snapshot snapshot, EcmLogBase *base);

/* The offset of a log's last entry; false if it has none. */
extern bool ecm_log_last_offset(int64 shape, Snapshot snapshot, uint64 *lsn,
								uint64 *op);

/* The running totals of what the stream has brought, as of now. */
extern EcmLogTotals ecm_log_stream_totals(int64 shape);

/*
 * The size of a log, by two looks at its index: of its base, and of what has
 * come since.
 */
extern void ecm_log_sizes(int64 shape, const EcmLogBase *base, Snapshot snapshot,
						  EcmLogTotals *base_size, EcmLogTotals *stream_size);

/* Deletes all chunks of a shape in the current transaction; returns how many. */
extern int64 ecm_log_delete(int64 shape);

/*
 * Likewise up to *max_chunks, which becomes less by as many as are deleted, or
 * until this session has written WAL up to there (pgWalUsage.wal_bytes).
 * Returns whether there are no more.
 */
extern bool ecm_log_delete_some(int64 shape, int64 *max_chunks, uint64 wal_end);

/*
 * The captured chunks of a shape that is about to be live: deletes those whose
 * xid is visible in the snapshot (a pg_snapshot as text), keeps the others.
 * Returns what is to be taken off the stream's running totals from now on.
 */
extern EcmLogTotals ecm_log_settle_captured(int64 shape, const char *snapshot);

/* ---- shape_creation.c: the manager calls these; they never wait ---- */

extern void ecm_creations_init(int stack_index);

/*
 * Reads which shapes are being created, and frees what dropped ones have left
 * behind; at the start of each stream.
 */
extern void ecm_creations_scan(void);

/* One of our own messages was met in the stream: an EcmFeedMessageCallback. */
extern void ecm_creations_message(const EcmStreamMessage *message,
								  TransactionId xid, XLogRecPtr after);

/*
 * Moves everything on that can move.  received_lsn: end of the last complete
 * transaction fed to the consumers; applied_lsn: how far they all are.
 */
extern void ecm_creations_poll(EcmTime now, XLogRecPtr received_lsn,
							   XLogRecPtr applied_lsn);
/* When to be called again at the latest, or 0. */
extern EcmTime ecm_creations_deadline(void);

/* The stream was lost: forget what is in flight (a scan follows). */
extern void ecm_creations_forget(void);

#endif							/* ECM_SHAPE_H */
