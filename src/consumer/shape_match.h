/*-------------------------------------------------------------------------
 *
 * shape_match.h
 *	  The shapes that a consumer follows, and which of them want a row.
 *
 * Shapes are kept by table.  Those that ask for "column = constant" are found
 * by the column's value in a hash table, so that a change costs the same with
 * one of them and with a hundred thousand; of the others, each where clause is
 * evaluated.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_MATCH_H
#define ECM_SHAPE_MATCH_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "lib/ilist.h"
#include "nodes/execnodes.h"
#include "nodes/pg_list.h"

#include "consumer/log_batch.h"
#include "shape/shape.h"
#include "shape/shape_chunk.h"

/*
 * A column of a table that some shape has use for.  Told apart by name and
 * type: shapes from before and after a change of the table exist side by side
 * for a moment.
 */
typedef struct EcmTableColumn
{
	char	   *name;
	Oid			type;
	bool		filtered;		/* some where clause refers to it; then: */
	FmgrInfo	input;
	Oid			typioparam;
	bool		read;			/* the table's slot has the tuple's value ... */
	const char *unreadable;		/* ... or why it can't have it */
} EcmTableColumn;

/* What many shapes of a table have in common. */
typedef struct EcmLayout
{
	int			number;			/* in the table's list */
	int			ncolumns;
	int		   *columns;		/* in the log's order; of the table's columns */
	char	  **names;			/* theirs */
	bool		whole;			/* these are all the table's, in its order */
	int			nkeys;
	int16	   *keys;			/* positions in columns */
	int			nfilter_columns;
	int		   *filter_columns; /* that the where clause refers to */
} EcmLayout;

typedef struct EcmTable
{
	Oid			relid;			/* hash key; a table or a partitioned one */
	MemoryContext context;
	int			nshapes;
	int			ncolumns;
	int			max_columns;
	EcmTableColumn *columns;
	List	   *layouts;		/* of EcmLayout; they only ever get more */
	dlist_head	unfiltered;		/* shapes, by their node */
	dlist_head	scanned;		/* where clauses to be evaluated each time */
	List	   *indexes;		/* of EqualityIndex */
	bool		any_filter;
	TupleDesc	desc;			/* for evaluation; NULL: to be made anew */
	TupleTableSlot *slot;
	ExprContext *econtext;
	const EcmValue *values;		/* what the slot is filled from */
} EcmTable;

/* A shape that is followed. */
typedef struct EcmShape
{
	int64		id;				/* hash key */
	int			generation;
	XLogRecPtr	skip_until;		/* transactions before it are in the log */
	Oid			owner;
	EcmTable   *table;
	EcmLayout  *layout;
	EcmFilter  *filter;			/* NULL: no where clause */
	dlist_node	node;			/* among unfiltered, scanned, or those gone */
	uint64		marks[2];		/* last change whose tuple matched */
	uint64		failed_in;		/* upstream transaction, by our count, in
								 * which it has failed */
	EcmShapeBuffer buffer;
} EcmShape;

/* Changes with the tables, their columns and layouts: what was bound is stale. */
extern uint32 ecm_tables_version;

/*
 * When a shape has failed, since its where clause has raised an error or by
 * ecm_match_fail(), it matches nothing until the next call of
 * ecm_match_begin(); 'failed' sees to it that it is gone by then, and returns.
 */
extern void ecm_match_init(void (*failed) (EcmShape *shape, const char *message));

/* An upstream transaction begins, for the first time or again. */
extern void ecm_match_begin(void);

/* How many shapes are followed. */
extern int	ecm_match_nshapes(void);

/*
 * Takes a shape up, in a transaction; def may go afterwards.  ERROR: its where
 * clause can't be compiled.
 */
extern EcmShape *ecm_match_add(const EcmShapeDef *def);

/* NULL: it is not followed (any more). */
extern EcmShape *ecm_match_find(int64 id);

/*
 * It matches nothing from now on.  Its struct stays until nobody refers to its
 * buffer any more: ecm_match_free_gone().
 */
extern void ecm_match_remove(EcmShape *shape);
extern void ecm_match_free_gone(void);

/* NULL: nobody follows it. */
extern EcmTable *ecm_match_table(Oid relid);

/*
 * The shapes of the table that a tuple belongs to; 'values' has the table's
 * columns.  The result is good until the next call with the same 'which'.  A
 * shape that is in it has marks[which] == change.  In a local transaction, if
 * there are where clauses.
 */
typedef enum EcmWhich
{
	ECM_OLD_TUPLE,
	ECM_NEW_TUPLE
} EcmWhich;

extern EcmShape **ecm_match_tuple(EcmTable *table, const EcmValue *values,
								  EcmWhich which, uint64 change, int *n);

/*
 * The shape's log can't be continued.  In a local transaction.  And: has it
 * been said before, in this upstream transaction?
 */
extern void ecm_match_fail(EcmShape *shape, const char *message);
extern bool ecm_match_has_failed(const EcmShape *shape);

/*
 * Has the shape a use for the column of a row that came with a change after
 * that one?  If its where clause looks at it, that can't be told; of a row that
 * it has no more, it needs the key only.
 */
extern bool ecm_match_lacks(const EcmShape *shape, const char *column, uint64 since);

/* Calls fn for each shape of the table that has this layout. */
extern void ecm_match_foreach(EcmTable *table, EcmLayout *layout,
							  void (*fn) (EcmShape *shape));

#endif							/* ECM_SHAPE_MATCH_H */
