/*-------------------------------------------------------------------------
 *
 * reading_args.h
 *	  The arguments of functions that read, or wait for, many shapes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_READING_ARGS_H
#define ECM_READING_ARGS_H

#include "postgres.h"

#include "fmgr.h"

#include "shape/shape_chunk.h"

typedef struct EcmReadingArgs
{
	int			n;
	char	  **handles;
	EcmOffset  *after;
} EcmReadingArgs;

/*
 * Takes handles text[] and after_offsets electric_cm_offset[], the first two arguments.
 *
 * Errors: 22004 an array, or an element, is NULL; 2202E one has several dimensions, or
 * they differ in length; 22023 a handle is there twice.
 */
extern void ecm_reading_args(FunctionCallInfo fcinfo, EcmReadingArgs *args);

#endif							/* ECM_READING_ARGS_H */
