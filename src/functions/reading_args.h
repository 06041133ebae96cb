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

/*
 * Takes an argument that is a list of handles, and says how it is called.
 *
 * Errors: likewise.
 */
extern char **ecm_handles_arg(FunctionCallInfo fcinfo, int argno, const char *name, int *n);

/* Takes max_entries; 0: NULL, no limit.  ERROR 22023 if it is not above 0. */
extern int	ecm_max_entries_arg(FunctionCallInfo fcinfo, int argno);

#endif							/* ECM_READING_ARGS_H */
