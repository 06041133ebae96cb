/*-------------------------------------------------------------------------
 *
 * shape_match.h
 *	  Which of the shapes that a consumer follows want a row.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_MATCH_H
#define ECM_SHAPE_MATCH_H

#include "postgres.h"

#include "consumer/followed_shapes.h"
#include "shape/shape_chunk.h"

/*
 * When a shape has failed, since its where clause has raised an error or by
 * ecm_match_fail(), it matches nothing until the next call of
 * ecm_match_begin(); 'failed' sees to it that it is gone by then, and returns.
 */
extern void ecm_match_init(void (*failed) (EcmShape *shape, const char *message));

/* An upstream transaction begins, for the first time or again. */
extern void ecm_match_begin(void);


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

#endif							/* ECM_SHAPE_MATCH_H */
