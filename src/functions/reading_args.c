/*-------------------------------------------------------------------------
 *
 * reading_args.c
 *	  The arguments of functions that read, or wait for, many shapes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "functions/offset_type.h"
#include "functions/reading_args.h"

/* The elements of an argument. */
static Datum *
elements(FunctionCallInfo fcinfo, int argno, const char *name, int *n)
{
	ArrayType  *array;
	int16		len;
	bool		by_value;
	char		align;
	Datum	   *values;

	if (PG_ARGISNULL(argno))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
	array = PG_GETARG_ARRAYTYPE_P(argno);
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("%s must have one dimension", name)));
	if (array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not have null elements", name)));
	get_typlenbyvalalign(ARR_ELEMTYPE(array), &len, &by_value, &align);
	deconstruct_array(array, ARR_ELEMTYPE(array), len, by_value, align, &values, NULL, n);
	return values;
}

static int
compare_handles(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

static void
check_distinct(char **handles, int n)
{
	char	  **sorted = palloc(n * sizeof(char *));

	memcpy(sorted, handles, n * sizeof(char *));
	qsort(sorted, n, sizeof(char *), compare_handles);
	for (int i = 1; i < n; i++)
		if (strcmp(sorted[i - 1], sorted[i]) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("handle \"%s\" is there more than once", sorted[i])));
	pfree(sorted);
}

char **
ecm_handles_arg(FunctionCallInfo fcinfo, int argno, const char *name, int *n)
{
	Datum	   *values = elements(fcinfo, argno, name, n);
	char	  **handles = palloc(Max(*n, 1) * sizeof(char *));

	for (int i = 0; i < *n; i++)
		handles[i] = TextDatumGetCString(values[i]);
	check_distinct(handles, *n);
	return handles;
}

int
ecm_max_entries_arg(FunctionCallInfo fcinfo, int argno)
{
	int			max_entries;

	if (PG_ARGISNULL(argno))
		return 0;
	max_entries = PG_GETARG_INT32(argno);
	if (max_entries <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_entries must be greater than zero")));
	return max_entries;
}

void
ecm_reading_args(FunctionCallInfo fcinfo, EcmReadingArgs *args)
{
	int			noffsets;
	Datum	   *offsets;

	args->handles = ecm_handles_arg(fcinfo, 0, "handles", &args->n);
	offsets = elements(fcinfo, 1, "after_offsets", &noffsets);
	if (noffsets != args->n)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("there are %d handles, and %d offsets", args->n, noffsets),
				 errhint("Pass one offset for each handle; the offset before all entries is \"-1\".")));
	args->after = palloc(Max(args->n, 1) * sizeof(EcmOffset));
	for (int i = 0; i < args->n; i++)
		args->after[i] = ecm_datum_offset(offsets[i]);
}
