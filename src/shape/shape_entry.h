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

/* Raises ERROR XX001, which names the offset. */
pg_noreturn extern void ecm_entry_report_corrupt(const EcmShapeDef *shape,
												 uint64 lsn, uint64 op);

/*
 * Reads the next entry of a chunk; false: there are no more.  The entry has
 * the tuples that its operation needs, each with all of the shape's columns;
 * otherwise the log is corrupt, and an ERROR is raised.
 */
extern bool ecm_entry_next(const EcmShapeDef *shape, const EcmChunkScan *cs,
						   EcmChunkReader *r);

/*
 * The value of a key column in an entry.  That is the new value, except in a
 * delete, and in an update of a row whose key is TOASTed and unchanged, so
 * that the new value was not sent: there it is the old value. old_values may
 * be NULL.
 */
extern const EcmValue *ecm_entry_key_column(EcmOp op, const EcmValue *new_values,
											const EcmValue *old_values,
											int column);

/*
 * The reason why no reader could be given an entry with these tuples (NULL:
 * the entry does not have that tuple), because its value or old value would be
 * too large; NULL: it can be read.  The text quotes no values.
 */
extern const char *ecm_entry_unreadable(EcmOp op, char *const *names, int ncolumns,
										const EcmValue *new_values,
										const EcmValue *old_values);

/* The same, as an ERROR 54000. */
extern void ecm_entry_check_readable(EcmOp op, const EcmShapeDef *shape,
									 const EcmValue *new_values,
									 const EcmValue *old_values);

/* Are the two values the same? */
static inline bool
ecm_same_value(const EcmValue *a, const EcmValue *b)
{
	return a->kind == b->kind && a->len == b->len &&
		(a->len == 0 || memcmp(a->text, b->text, a->len) == 0);
}

/* Is there something that readers get?  A null is. */
static inline bool
ecm_value_is_shown(const EcmValue *value)
{
	return value->kind == ECM_VALUE_NULL || value->kind == ECM_VALUE_TEXT;
}

/* The number of values that were not sent. */
extern int	ecm_entry_missing(const EcmValue *values, int nvalues);

#endif							/* ECM_SHAPE_ENTRY_H */
