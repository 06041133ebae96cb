/*-------------------------------------------------------------------------
 *
 * shape_entry.h
 *	  Entries of shape logs: decoded and checked.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_ENTRY_H
#define ECM_SHAPE_ENTRY_H

#include "postgres.h"

#include "base/compat.h"
#include "shape/shape.h"
#include "shape/shape_chunk.h"
#include "shape/shape_log.h"

/* XX001, naming the offset. */
pg_noreturn extern void ecm_entry_report_corrupt(const EcmShapeDef *shape,
												 uint64 lsn, uint64 op);

/*
 * The next entry of a chunk; false at its end.  An entry that comes out has what
 * its operation should have: the tuples it needs, with all the shape's columns.
 */
extern bool ecm_entry_next(const EcmShapeDef *shape, const EcmChunkScan *cs,
						   EcmChunkReader *r);

/*
 * A key column of an entry: the new one; the old one in a delete, and where
 * an update of a row with a TOASTed, unchanged key leaves the new one out.
 * old_values may be NULL.
 */
extern const EcmValue *ecm_entry_key_column(EcmOp op, const EcmValue *new_values,
											const EcmValue *old_values,
											int column);

/*
 * Why nobody could read an entry that has these tuples (NULL: no such one), as
 * the operation's value and old value; or NULL.  The text names no values.
 */
extern const char *ecm_entry_unreadable(EcmOp op, char *const *names, int ncolumns,
										const EcmValue *new_values,
										const EcmValue *old_values);

/* The same, as an ERROR 54000. */
extern void ecm_entry_check_readable(EcmOp op, const EcmShapeDef *shape,
									 const EcmValue *new_values,
									 const EcmValue *old_values);

/* Is it a change from one value to the same? */
static inline bool
ecm_same_value(const EcmValue *a, const EcmValue *b)
{
	return a->kind == b->kind && a->len == b->len &&
		(a->len == 0 || memcmp(a->text, b->text, a->len) == 0);
}

/* How many of the values were not sent. */
extern int	ecm_entry_missing(const EcmValue *values, int nvalues);

#endif							/* ECM_SHAPE_ENTRY_H */
