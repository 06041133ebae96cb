/*-------------------------------------------------------------------------
 *
 * shape.h
 *	  Shapes: their catalog, snapshot, creation and log.
 *
 * shape_catalog.c	declares, looks up and drops shapes (SQL side)
 * shape_create.c	the manager's part in creating a shape: publish, capture,
 *					barrier, snapshot
 * shape_snapshot.c	a pool session's part: the snapshot's rows
 * shape_filter.c	where clauses
 * shape_fit.c		do a shape and its table (still) go together?
 * shape_owner.c	what becomes of shapes when their owners go
 * shape_log.c		writes chunks, reads them back
 * shape_chunk.c	the packed form of entries (pure)
 *
 * The stack's internal orders travel in the replication stream itself, as
 * transactional logical messages.  Anybody may emit such messages, so ours are
 * known by a prefix that is a secret of this database, ecm_message_prefix():
 *
 *	 create <handle>			a shape was declared (create_shape)
 *	 capture <id> <generation>	from here on, log its changes (pool)
 *	 live <id> <generation> <snapshot>	the snapshot is committed (pool)
 *	 fail <id> <generation> <reason>	it can't be created (pool)
 *	 drop <id> <handle> <reason>	the shape is gone
 *	 owner <id> <oid>			it has another owner
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
#include "shape_chunk.h"
#include "shape_filter.h"
#include "storage/lockdefs.h"
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

/* Prefix of the stack's own messages; in a transaction; palloc'd. */
extern char *ecm_message_prefix(void);

/* Emits one in the current transaction. */
extern void ecm_emit_message(const char *text);

/* Lookups; palloc'd in the caller's context.  NULL if there is no such row. */
extern EcmShapeDef *ecm_shape_by_handle(const char *handle);
extern EcmShapeDef *ecm_shape_by_id(int64 id);

/* All shapes that a consumer has to follow: live, or being captured. */
extern List *ecm_shapes_of_worker(int worker);

extern List *ecm_shapes_of_owner(Oid owner);

/* Is there any shape? */
extern bool ecm_shapes_exist(void);

/*
 * Deletes the shapes of a relation, or all (InvalidOid), in the current
 * transaction, and emits a drop message for each.  Returns how many there were.
 */
extern int	ecm_shapes_invalidate(Oid relation, const char *reason);

/* Deletes one shape; false if it is gone, or locked by whoever drops it. */
extern bool ecm_shape_invalidate_nowait(int64 id, const char *reason);

/*
 * Within ecm_spi_begin/end, and with a fresh snapshot: a SELECT; an UPDATE; and
 * deletes the shapes (s) that meet a condition, with a drop message for each.
 * 'nulls' as for SPI.  Returns how many there were.
 */
extern void ecm_shapes_query(const char *sql, int nargs, Oid *types, Datum *values);
extern void ecm_shapes_update(const char *sql, int nargs, Oid *types, Datum *values);
extern int	ecm_shapes_delete(const char *condition, int nargs, Oid *types,
							  Datum *values, const char *nulls,
							  const char *reason);

/*
 * Is the table in our publication, by itself or with an ancestor, its schema
 * or everything?  Within ecm_spi_begin/end.
 */
extern bool ecm_is_published(Oid relation);

/* "schema"."table", always quoted, palloc'd. */
extern char *ecm_relation_name(Relation rel);

/* Has the role the rights on the table that it takes to own the shape? */
extern bool ecm_shape_may_read(const EcmShapeDef *shape, Oid role);

/* ERROR unless the current user may read the shape (owner, rights, RLS). */
extern void ecm_shape_check_read(const EcmShapeDef *shape);

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
 * A table was altered in this transaction: deletes its shapes, and those of
 * its ancestors, that don't go with it any more.
 */
extern void ecm_shapes_verify(Oid relation);

/* Likewise all shapes of tables in a schema. */
extern void ecm_shapes_verify_schema(Oid schema);

/*
 * Deletes the shapes with a column whose type is this one, or has this one
 * inside; values of it look different from now on.
 */
extern void ecm_shapes_invalidate_type(Oid type, const char *reason);

/* ---- shape_owner.c ---- */

/* Deletes the shapes of a role. */
extern void ecm_shapes_invalidate_owner(Oid owner, const char *reason);

/* Gives a role's shapes to another one, or deletes those it can't have. */
extern void ecm_shapes_reassign(Oid from, Oid to);

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

/* One of our own messages was met in the stream. */
extern void ecm_creations_message(const char *text, TransactionId xid);

/*
 * Moves everything on that can move.  received_lsn: end of the last complete
 * transaction fed to the consumers (invalid while one is coming in);
 * applied_lsn: how far they all are.
 */
extern void ecm_creations_poll(TimestampTz now, XLogRecPtr received_lsn,
							   XLogRecPtr applied_lsn);
/* When to be called again at the latest, or 0. */
extern TimestampTz ecm_creations_deadline(void);

/* The stream was lost: forget what is in flight (a scan follows). */
extern void ecm_creations_forget(void);

#endif							/* ECM_SHAPE_H */
