/*-------------------------------------------------------------------------
 *
 * shape.h
 *	  A shape as the catalog has it.
 *
 * Types only; each file of this folder has a header of its own.
 *
 * The stack's internal orders travel in the replication stream itself, as
 * transactional logical messages.  Anybody may emit such messages, so ours are
 * known by a prefix that is a secret of this database, ecm_message_prefix().
 * It is in the WAL, however, and whoever decodes that knows it.  So an order is
 * obeyed only if the catalog agrees: the shape's row has the transaction that
 * has given the last order to capture it, or to end its creation (order_xid);
 * what is to be dropped is gone, or goes with that very transaction; the owner
 * is taken from the row.
 *
 *	 create <id> <relation> <handle>	a shape was declared (create_shape)
 *	 capture <number> {<id> <generation>}...	from here on, log their changes
 *					(pool); the number is the manager's
 *	 live <snapshot> {<id> <generation>}...	their snapshot is committed (pool)
 *	 fail <id> <generation> <SQLSTATE>: <reason>	it can't be created (pool)
 *	 unsendable <relation> <column>	of a change that could not be sent
 *					(walsender)
 *	 drop <handle> <id>,... <reason>	these shapes are gone; the handle is the
 *					first one's
 *	 lost <handle> <id>,... <reason>	so are these, but somebody else has
 *					their rows locked
 *	 owner <id> <oid>			it has another owner
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_H
#define ECM_SHAPE_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "shape/shape_filter.h"

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

/* Prefix of the stack's own messages; in a transaction; palloc'd. */
extern char *ecm_message_prefix(void);

/* A longer one is none of ours. */
#define ECM_MAX_MESSAGE		(1024 * 1024)

/*
 * A larger row or message leaves a walsender, and libpq, with buffers as large,
 * which shrink only with the connection.  The walsender tells of the messages
 * that it drops by one of our own.
 */
#define ECM_GIANT_BYTES		(16 * 1024 * 1024)
#define ECM_GIANT_MESSAGE	"giant"
#define ECM_UNSENDABLE_MESSAGE	"unsendable "

/* Emits one in the current transaction. */
extern void ecm_emit_message(const char *text);

/* An error as it is kept of a shape, palloc'd: see ecm_error_public_text(). */
extern char *ecm_tag_error(const char *sqlstate, const char *message);

#endif							/* ECM_SHAPE_H */
