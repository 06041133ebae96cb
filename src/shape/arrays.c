/*-------------------------------------------------------------------------
 *
 * arrays.c
 *	  Conversions between C arrays or lists and SQL arrays of one dimension
 *	  without nulls.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlogdefs.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "shape/arrays.h"

/* ------------------------------------------------------------ to an array -- */

Datum
ecm_array_of_oids(const Oid *oids, int n)
{
	Datum	   *elems = palloc(sizeof(Datum) * Max(n, 1));

	for (int i = 0; i < n; i++)
		elems[i] = ObjectIdGetDatum(oids[i]);
	return PointerGetDatum(construct_array(elems, n, OIDOID, sizeof(Oid), true,
										   TYPALIGN_INT));
}

Datum
ecm_array_of_oid_list(const List *oids)
{
	Oid		   *elems = palloc(sizeof(Oid) * Max(list_length(oids), 1));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, oids)
		elems[n++] = lfirst_oid(lc);
	return ecm_array_of_oids(elems, n);
}

Datum
ecm_array_of_int8(Datum *elems, int n)
{
	return PointerGetDatum(construct_array(elems, n, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

Datum
ecm_array_of_lsn(Datum *elems, int n)
{
	return PointerGetDatum(construct_array(elems, n, LSNOID, sizeof(XLogRecPtr),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

Datum
ecm_array_of_int4(Datum *elems, int n)
{
	return PointerGetDatum(construct_array(elems, n, INT4OID, sizeof(int32), true,
										   TYPALIGN_INT));
}

Datum
ecm_array_of_names(char **names, int n)
{
	Datum	   *elems = palloc(sizeof(Datum) * Max(n, 1));

	for (int i = 0; i < n; i++)
		elems[i] = CStringGetTextDatum(names[i]);
	return PointerGetDatum(construct_array(elems, n, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

Datum
ecm_array_of_attnums(const Bitmapset *attnums)
{
	Datum	   *elems = palloc(sizeof(Datum) * (bms_num_members(attnums) + 1));
	int			n = 0;
	int			attnum = -1;

	while ((attnum = bms_next_member(attnums, attnum)) >= 0)
		elems[n++] = Int16GetDatum(attnum);
	return PointerGetDatum(construct_array(elems, n, INT2OID, sizeof(int16), true,
										   TYPALIGN_SHORT));
}

/* ---------------------------------------------------------- from an array -- */

char **
ecm_array_names(Datum array, int *n)
{
	Datum	   *elems;
	char	  **names;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &elems, NULL, n);
	names = palloc(sizeof(char *) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
		names[i] = TextDatumGetCString(elems[i]);
	return names;
}

Oid *
ecm_array_oids(Datum array, int *n)
{
	Datum	   *elems;
	Oid		   *oids;

	deconstruct_array(DatumGetArrayTypeP(array), OIDOID, sizeof(Oid), true,
					  TYPALIGN_INT, &elems, NULL, n);
	oids = palloc(sizeof(Oid) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
		oids[i] = DatumGetObjectId(elems[i]);
	return oids;
}

int16 *
ecm_array_int2(Datum array, int *n)
{
	Datum	   *elems;
	int16	   *numbers;

	deconstruct_array(DatumGetArrayTypeP(array), INT2OID, sizeof(int16), true,
					  TYPALIGN_SHORT, &elems, NULL, n);
	numbers = palloc(sizeof(int16) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
		numbers[i] = DatumGetInt16(elems[i]);
	return numbers;
}
