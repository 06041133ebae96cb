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
	char	   *relation_name;	/* quoted, the first part of every key */
	int			ncolumns;
	char	  **column_names;
	Oid		   *column_types;
	int			nkeys;
	int16	   *key_positions;	/* 0-based positions in column_names */
	EcmFilterDef *filter;		/* NULL: no where clause */
	int			worker;
	XLogRecPtr	skip_until;		/* a former worker has logged what precedes */
	EcmShapeState state;
	int			generation;
	int			capturing;		/* generation that is captured for, 0: none */
	int			snapshot_generation;	/* 0: none */
	char	   *last_error;		/* or NULL */
} EcmShapeDef;

#endif							/* ECM_SHAPE_H */
