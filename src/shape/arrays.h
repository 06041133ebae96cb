/*-------------------------------------------------------------------------
 *
 * arrays.h
 *	  Conversions between C arrays or lists and SQL arrays of one dimension
 *	  without nulls.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_ARRAYS_H
#define ECM_ARRAYS_H

#include "postgres.h"

#include "nodes/bitmapset.h"
#include "nodes/pg_list.h"

/*
 * Make an oid[], int8[], int4[], pg_lsn[], text[] or int2[].  Those of int8, int4
 * and pg_lsn take Datums.
 */
extern Datum ecm_array_of_oids(const Oid *oids, int n);
extern Datum ecm_array_of_oid_list(const List *oids);
extern Datum ecm_array_of_int8(Datum *elems, int n);
extern Datum ecm_array_of_int4(Datum *elems, int n);
extern Datum ecm_array_of_lsn(Datum *elems, int n);
extern Datum ecm_array_of_names(char **names, int n);
extern Datum ecm_array_of_attnums(const Bitmapset *attnums);

/*
 * The elements of a text[], an oid[] or an int2[], palloc'd; *n becomes their
 * number.
 */
extern char **ecm_array_names(Datum array, int *n);
extern Oid *ecm_array_oids(Datum array, int *n);
extern int16 *ecm_array_int2(Datum array, int *n);

#endif							/* ECM_ARRAYS_H */
