/*-------------------------------------------------------------------------
 *
 * followed_shapes.h
 *	  The shapes that a consumer follows, by table.
 *
 * Shapes that ask for "column = constant" are found by the column's value in a
 * hash table, so that a change costs the same with one of them and with a hundred
 * thousand.  Of all others each where clause is evaluated: shape_match.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_FOLLOWED_SHAPES_H
#define ECM_FOLLOWED_SHAPES_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "fmgr.h"
#include "lib/ilist.h"
#include "nodes/execnodes.h"
#include "nodes/pg_list.h"
#include "utils/hsearch.h"

#include "consumer/log_batch.h"
#include "shape/shape.h"
#include "shape/shape_chunk.h"
#include "shape/shape_filter.h"

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

/* Columns and key: many shapes of a table have the same. */
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
	List	   *indexes;		/* of EcmEqualityIndex */
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

/* A shape that asks for a constant in a column; chained by hash value. */
typedef struct EcmIndexMember
{
	struct EcmIndexMember *next;
	Datum		constant;		/* the filter's */
	EcmShape   *shape;
} EcmIndexMember;

typedef struct EcmIndexEntry
{
	uint32		hash;			/* hash key */
	EcmIndexMember *members;
} EcmIndexEntry;

/* Equalities of one column that look for the same in the same way. */
typedef struct EcmEqualityIndex
{
	AttrNumber	attno;
	Oid			operator;
	Oid			collation;
	FmgrInfo	equal;
	FmgrInfo	hash_column;
	FmgrInfo	hash_constant;
	HTAB	   *entries;
} EcmEqualityIndex;

/*
 * Changes with the tables, their columns and layouts: what was bound before is
 * stale.
 */
extern uint32 ecm_tables_version;

/*
 * At start, in a transaction: takes up those that are being captured, and
 * notes all others of this worker.
 */
extern void ecm_followed_start(int worker);

/* An upstream transaction begins. */
extern void ecm_followed_begin(void);

/*
 * Takes one up, in a transaction; def may go afterwards.  ERROR: its where clause
 * does not compile, and that is the fault of the shape that is worked on.
 */
extern void ecm_follow_shape(const EcmShapeDef *def);

/*
 * Are there any of the table that have not been taken up?  Do that, in a
 * transaction; for errors see ecm_follow_shape().
 */
extern bool ecm_follow_is_due(Oid relation);
extern void ecm_follow_table(Oid relation);

/*
 * A shape that was taken up matches nothing from now on.  Its struct stays until
 * no list of log_batch.c has its buffer any more: ecm_followed_free_gone().  A
 * shape that was only noted is forgotten; nothing happens if it was not.
 */
extern void ecm_unfollow(EcmShape *shape);
extern void ecm_unfollow_noted(int64 shape);
extern void ecm_followed_free_gone(void);

/* How many there are, noted or taken up. */
extern int	ecm_followed_count(void);

/* Of those that were taken up; NULL: there is none. */
extern EcmShape *ecm_followed_find(int64 id);
extern EcmTable *ecm_followed_table(Oid relid);

/* The shapes of the table that have this layout, or all (NULL). */
extern List *ecm_followed_list(const EcmTable *table, const EcmLayout *layout);

#endif							/* ECM_FOLLOWED_SHAPES_H */
