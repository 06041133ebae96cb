/*-------------------------------------------------------------------------
 *
 * read_table.h
 *	  Reads rows of a table for shapes, by one query, into their logs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_READ_TABLE_H
#define ECM_READ_TABLE_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "jobs/key_order.h"
#include "shape/shape.h"
#include "shape/shape_filter.h"
#include "shape/shape_log.h"

/* The size of a piece that is aimed at: bytes of log, time. */
#define ECM_PIECE_BYTES		(INT64CONST(8) * 1024 * 1024)
#define ECM_PIECE_MS		1000

/* A shape whose rows are to be read. */
typedef struct EcmReadShape
{
	EcmShapeDef *def;
	EcmFilter  *filter;			/* NULL: no where clause */
	EcmRowPacker *packer;
	int64		rows;			/* of its log so far, once they are read */
	bool		done;
} EcmReadShape;

/*
 * Looks up a shape that is to be read.  False: it is gone, or another attempt to
 * create it has begun.
 */
extern bool ecm_read_find(int64 id, int generation, EcmReadShape *shape);

/*
 * Can one query read the rows of both, i.e. do they look for constants in the same
 * column?
 */
extern bool ecm_read_together(const EcmReadShape *a, const EcmReadShape *b);

/* ERROR if the table, whose shapes these are, has left the publication meanwhile. */
extern void ecm_read_check_table(const EcmShapeDef *def);

/* What to read; zeros: all of the table, whatever its size. */
typedef struct EcmReadRange
{
	char	  **after;			/* the key after which it begins; NULL: none */
	char	  **upto;			/* the last key; NULL: none */
	bool		ordered;		/* read it in the order of the key, so that it
								 * may end before */
	int64		max_bytes;		/* what is enough; 0: everything */
	int			max_ms;			/* likewise */
	double		max_cost;		/* as the planner sees it, and max_bytes too;
								 * 0: whatever it thinks */

	/*
	 * gets each row, for the shape with that index; NULL: it is appended to
	 * the base of that shape's log
	 */
	void		(*put) (void *arg, int shape, const EcmValue *values);
	void	   *put_arg;
} EcmReadRange;

typedef enum EcmReadEnd
{
	ECM_READ_ALL,				/* all rows have been read */
	ECM_READ_DEAR,				/* none, as it would cost more than max_cost */
	ECM_READ_ENOUGH				/* ordered: all rows up to 'last'; else some
								 * of them, so the caller has to roll back */
} EcmReadEnd;

typedef struct EcmReadResult
{
	EcmReadEnd	end;
	int64		rows;			/* that were read */
	int64		bytes;			/* of their values */
	int64		planned_rows;	/* of the query, by the planner ... */
	int64		planned_bytes;
	char	  **last;			/* ECM_READ_ENOUGH, ordered: the last row's
								 * key */
} EcmReadResult;

/* Reads the table as the shapes' owner.  In a REPEATABLE READ transaction. */
extern void ecm_read_rows(EcmReadShape **shapes, int n, const EcmReadRange *range,
						  EcmReadResult *result);

/*
 * The key of the row that comes so many rows after a key (NULL: the first ones), as
 * the shape's owner sees the table.  NULL: there are fewer.
 */
extern char **ecm_read_border(const EcmShapeDef *shape, char **after, int64 rows);

/*
 * The row that has this key, packed as a chunk with one insert at the offset.  NULL:
 * the shape has no such row.
 */
extern bytea *ecm_read_row(EcmReadShape *shape, char **key, XLogRecPtr lsn, int64 op);

/* Can the table be read in the order of its key? */
extern bool ecm_read_is_ordered(const EcmShapeDef *shape);

/* The number of the table's rows, as the planner estimates it. */
extern int64 ecm_read_estimate(const EcmShapeDef *shape);

#endif							/* ECM_READ_TABLE_H */
