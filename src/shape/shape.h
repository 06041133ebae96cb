/*-------------------------------------------------------------------------
 *
 * shape.h
 *	  A shape as the catalog has it.
 *
 * Types only; each file of this folder has a header of its own.
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
	char	   *relation_name;	/* "schema"."table": each key begins with it */
	int			ncolumns;
	char	  **column_names;	/* also of columns that are gone; new ones
								 * come last */
	Oid		   *column_types;	/* InvalidOid: the column is gone */
	int			nkeys;
	int16	   *key_positions;	/* 0-based positions in column_names */
	EcmFilterDef *filter;		/* NULL: no where clause */
	int			worker;			/* number of the consumer that follows it */
	XLogRecPtr	skip_until;		/* a former consumer has logged all
								 * transactions that commit before this, see
								 * assign.c */
	EcmShapeState state;
	int			generation;		/* number of the latest attempt to create it */
	int			snapshot_generation;	/* attempt whose snapshot is
										 * committed; 0: none */
	bool		noted;			/* it has a row of shape_state */
	XLogRecPtr	gap_lsn;		/* being resynced: the log is complete up to
								 * there, and may be read; invalid: it is not */
	XLogRecPtr	live_lsn;		/* LSN at which readers got the log; invalid:
								 * they have not yet */
	char	   *last_error;		/* with its tag, see errors.h; or NULL */
} EcmShapeDef;

#define ecm_column_is_gone(def, i)	(!OidIsValid((def)->column_types[i]))

/* Is there a log that may be read?  If there is a gap, up to that. */
#define ecm_shape_is_readable(def) \
	((def)->state == ECM_SHAPE_LIVE || \
	 ((def)->state == ECM_SHAPE_CREATING && !XLogRecPtrIsInvalid((def)->gap_lsn)))

#endif							/* ECM_SHAPE_H */
