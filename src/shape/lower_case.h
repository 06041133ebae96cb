/*-------------------------------------------------------------------------
 *
 * lower_case.h
 *	  Columns in lower case, once per row, for all where clauses with ILIKE.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_LOWER_CASE_H
#define ECM_LOWER_CASE_H

#include "postgres.h"

#include "nodes/bitmapset.h"
#include "nodes/execnodes.h"
#include "nodes/pg_list.h"

/* The columns of one table's rows that its clauses want in lower case. */
typedef struct EcmLowerCase EcmLowerCase;

extern EcmLowerCase *ecm_lower_case_create(MemoryContext context);

/*
 * The conditions with each "column ILIKE constant" put as "column in lower case LIKE
 * constant in lower case", in which the column is one of the inner tuple.  *used becomes
 * the set of these columns, in the current context.
 */
extern List *ecm_lower_case_replace(EcmLowerCase *rows, List *quals, Bitmapset **used);

/* There is another row, or none: what was made is freed. */
extern void ecm_lower_case_next_row(EcmLowerCase *rows);

/*
 * Makes the columns of a set, as far as this row's are not made, out of econtext's scan
 * tuple, and puts them into its inner tuple.  False: one is too large for that, evaluate
 * the clause as it was.
 */
extern bool ecm_lower_case_make(EcmLowerCase *rows, const Bitmapset *used, ExprContext *econtext);

#endif							/* ECM_LOWER_CASE_H */
