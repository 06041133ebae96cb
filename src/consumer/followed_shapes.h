/*-------------------------------------------------------------------------
 *
 * followed_shapes.h
 *	  The shapes that a consumer follows, by table.
 *
 * A table's shapes without a where clause want each row.  Shapes whose clause has
 * a condition "column = constant", or IN, are found by the column's value in a
 * hash table: a change costs the same with one of them and with a hundred
 * thousand.  Of all others each where clause is evaluated: shape_match.c.
 *
 * A shape is either noted (only its id and table are known) or taken up (it has an
 * EcmShape, by which changes find it); a consumer follows both.
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
#include "shape/shape_captured.h"
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
	bool		filtered;		/* some where clause refers to it; if so, the
								 * next four are in use */
	FmgrInfo	input;			/* the type's input function */
	Oid			typioparam;		/* for that */

	/* of the tuple that is being matched */
	bool		read;			/* the table's slot has its value */
	const char *unreadable;		/* why the slot can't have it: the input
								 * function's error, tagged; or NULL */
} EcmTableColumn;

/*
 * Columns, key, and the columns that the where clause refers to.  Many shapes of a
 * table have the same, and share one layout.
 */
typedef struct EcmLayout
{
	int			number;			/* its index in the table's list */
	int			ncolumns;
	int		   *columns;		/* in the log's order; of the table's columns */
	char	  **names;			/* of 'columns'; belong to the table */
	bool		whole;			/* these are all the table's, in its order */
	int			nkeys;
	int16	   *keys;			/* positions in columns */
	int			nfilter_columns;
	int		   *filter_columns; /* of the table's columns: those that the
								 * where clause refers to */
} EcmLayout;

typedef struct EcmTable
{
	Oid			relid;			/* hash key; a table or a partitioned one */
	MemoryContext context;		/* of all that the table points to, but for
								 * its shapes */
	int			nshapes;		/* taken up; without any the table is freed */

	/* columns that shapes have had use for; none is ever removed */
	int			ncolumns;
	int			max_columns;	/* allocated */
	EcmTableColumn *columns;
	List	   *layouts;		/* of EcmLayout; none is ever removed */
	int			max_shape_columns;	/* the most that a layout has */

	/* each shape that was taken up is in one of these three */
	dlist_head	unfiltered;		/* no where clause; by EcmShape.node */
	dlist_head	scanned;		/* where clauses to be evaluated for each
								 * tuple; by EcmShape.node */
	List	   *indexes;		/* of EcmEqualityIndex: all others */
	bool		any_filter;		/* some shape has, or had, a where clause */

	/*
	 * For evaluating where clauses, by shape_match.c.  All NULL: to be made
	 * anew, as the table has got another column.
	 */
	TupleDesc	desc;			/* attribute n is columns[n - 1] */
	TupleTableSlot *slot;		/* the tuple that is being matched, as far as
								 * its values were read */
	ExprContext *econtext;
	const EcmValue *values;		/* that tuple, as text; by column */
	EcmLowerCase *lower_case;	/* its columns in lower case, for ILIKE */
} EcmTable;

/* A shape that is followed. */
typedef struct EcmShape
{
	int64		id;				/* hash key */
	int			generation;		/* number of the attempt to create it */
	XLogRecPtr	skip_until;		/* transactions that commit before it are in
								 * the log: another consumer wrote them, see
								 * assign.c; invalid: none are */
	Oid			owner;			/* whose rights its where clause is evaluated
								 * with */
	EcmTable   *table;			/* NULL, like the next two: it is gone */
	EcmLayout  *layout;
	EcmFilter  *filter;			/* NULL: no where clause */
	dlist_node	node;			/* among unfiltered, scanned, or those gone */
	uint64		marks[2];		/* by EcmWhich: the last change
								 * (apply_change.c's number) whose tuple
								 * matched */
	uint64		failed_in;		/* the last upstream transaction, by
								 * shape_match.c's count, that it has failed
								 * in */
	EcmCapturedMark judged;		/* while capturing: what precedes it in the
								 * log has been judged for good, see
								 * judge_captured.c */
	EcmShapeBuffer buffer;		/* its entries; log_batch.c's lists refer to
								 * it */
} EcmShape;

/*
 * A constant that a shape asks for; with IN (...) a shape has several.  Those whose
 * constants have the same hash value form a chain.
 */
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

/* Equalities of one column with the same operator and collation. */
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
 * Grows whenever a table comes or goes, or gets a column or layout.  A binding of
 * relation.c that was made for another version is stale.
 */
extern uint32 ecm_tables_version;

/*
 * At start, in a transaction: takes up the consumer's shapes that are being
 * captured, and notes those that are live.  'worker' is its number.  ERROR as for
 * ecm_follow_shape().
 */
extern void ecm_followed_start(int worker);

/* An upstream transaction begins; to be called after log_batch.c knows of it. */
extern void ecm_followed_begin(void);

/*
 * Takes a shape up, in a transaction.  'def' is copied.  ERROR if its where clause
 * does not compile any more: the shape is named as the one at work then
 * (current_shape.h), and is to blame.
 */
extern void ecm_follow_shape(const EcmShapeDef *def);

/*
 * Are there shapes of the table that are only noted?  If so, ecm_follow_table()
 * has to take them up before a change of the table is matched.  It needs a
 * transaction; for errors see ecm_follow_shape().
 */
extern bool ecm_follow_is_due(Oid relation);
extern void ecm_follow_table(Oid relation);

/*
 * A shape that was taken up matches nothing from now on, and its entries that are
 * not written yet are dropped.  May free the shape's table.  The struct itself
 * stays, since lists of log_batch.c may still have its buffer, until
 * ecm_followed_free_gone() is called at a time when they are empty.
 */
extern void ecm_unfollow(EcmShape *shape);
extern void ecm_followed_free_gone(void);

/* Forgets a noted shape; nothing happens if the shape is not noted. */
extern void ecm_unfollow_noted(int64 shape);

/* The number of shapes, noted or taken up. */
extern int	ecm_followed_count(void);

/* A shape that was taken up, and a table that has any such; NULL: none. */
extern EcmShape *ecm_followed_find(int64 id);
extern EcmTable *ecm_followed_table(Oid relid);

/*
 * The shapes of the table that were taken up and have this layout (NULL: any), as
 * a list of EcmShape in the current context.  Goes through all shapes.
 */
extern List *ecm_followed_list(const EcmTable *table, const EcmLayout *layout);

#endif							/* ECM_FOLLOWED_SHAPES_H */
