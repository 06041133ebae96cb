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
 * At start.  'failed' is called when a shape has failed: its where clause has
 * raised an error, or ecm_match_fail() was called.  The shape matches nothing in
 * the rest of this upstream transaction; 'failed' sees to it that the shape is
 * not followed any more after that.  'message' is tagged, see errors.h.
 */
extern void ecm_match_init(void (*failed) (EcmShape *shape, const char *message));

/*
 * An upstream transaction begins, for the first time or again: no shape has failed
 * in it yet.
 */
extern void ecm_match_begin(void);

/*
 * The shapes of the table that a tuple belongs to, and their number in *n.  'values'
 * has the table's columns, as text, and must stay valid until the next call.  The
 * result is valid until the next call with the same 'which'.  A shape has
 * marks[which] == change afterwards if and only if it is in the result, so
 * 'change' has to be greater in each change than in the one before.
 *
 * If the table has any where clause (any_filter), the caller has called
 * ecm_log_batch_enter_transaction() in this message: an error of a clause, which
 * becomes its shape's failure, is rolled back to there.  ERROR if it may be no
 * shape's fault, such as a want of memory.
 */
typedef enum EcmWhich
{
	ECM_OLD_TUPLE,
	ECM_NEW_TUPLE
} EcmWhich;

extern EcmShape **ecm_match_tuple(EcmTable *table, const EcmValue *values,
								  EcmWhich which, uint64 change, int *n);

/*
 * Says that the shape's log can't be continued; 'message' is tagged.  The caller is
 * in a local transaction.
 */
extern void ecm_match_fail(EcmShape *shape, const char *message);

/*
 * Leaves the shape out of the rest of this upstream transaction, as if it had failed: the
 * caller sees to it that its log is not continued after that.
 */
extern void ecm_match_leave_out(EcmShape *shape);

/* Has the shape failed in this upstream transaction? */
extern bool ecm_match_has_failed(const EcmShape *shape);

/*
 * Does the shape miss a value that was left out of the last change?  Yes, if the
 * new row is in the shape and it has the column.  Of a row that has left it, the
 * shape needs the key only.  If its where clause refers to the column, it can't
 * be told whether the row is in the shape, so the answer is yes.  'since': the
 * number of the change before.
 */
extern bool ecm_match_lacks(const EcmShape *shape, const char *column, uint64 since);

#endif							/* ECM_SHAPE_MATCH_H */
