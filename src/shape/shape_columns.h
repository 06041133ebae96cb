/*-------------------------------------------------------------------------
 *
 * shape_columns.h
 *	  The columns of shapes, when their table has others.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_COLUMNS_H
#define ECM_SHAPE_COLUMNS_H

#include "postgres.h"

/*
 * Gives shapes of a table (int8[]), whose changes are captured from here on, the columns
 * that the table has now, as far as they want them.  Columns keep their places: one that
 * is gone stays, marked as such, since the log has its values, and new ones come last.
 * Their where clauses are as before, for columns that may have other types.  The caller
 * has a lock on the table, and on the shapes' rows.
 *
 * ERROR, as of ecm_filter_parse(), if a where clause can't be with these types.
 */
extern void ecm_shapes_renew_columns(Oid relation, Datum shapes);

#endif							/* ECM_SHAPE_COLUMNS_H */
