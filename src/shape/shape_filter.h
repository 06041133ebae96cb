/*-------------------------------------------------------------------------
 *
 * shape_filter.h
 *	  A shape's where clause: checked, stored as text, compiled, evaluated.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_FILTER_H
#define ECM_SHAPE_FILTER_H

#include "postgres.h"

#include "access/attnum.h"
#include "nodes/bitmapset.h"
#include "nodes/execnodes.h"
#include "nodes/pg_list.h"
#include "utils/relcache.h"

#include "shape/lower_case.h"
#include "shape/shape_params.h"

/*
 * A where clause as it is stored.  The text has been deparsed from the parsed
 * clause, so two ways to write the same clause have one text.  Column names
 * are not qualified; the arrays describe them.  All other names are in
 * pg_catalog.
 */
typedef struct EcmFilterDef
{
	char	   *clause;
	int			ncolumns;
	char	  **names;			/* of the columns that it refers to */
	Oid		   *types;
	Oid		   *collations;
} EcmFilterDef;

/*
 * Do values of the type have names of objects in their text form?  Those of
 * reg... types and access control lists do.  Reading such a text is a look
 * into the catalogs, which may later find another object, or none.
 */
extern bool ecm_type_has_names(Oid type);

/*
 * Checks a where clause for a table, on which the caller holds a lock.  The
 * rules are those of a publication's row filter.  *attnums becomes the set of
 * columns that it refers to, as attribute numbers.  params NULL: it may have no parameters.
 *
 * Errors of ecm_params_replace(); and, with their position in the clause: 42601 it is not an expression;
 * 42703 there is no such column; 42804 it is not boolean; 0A000 it has
 * something that a row filter may not have; and those that evaluating its
 * constant parts raises.
 */
extern EcmFilterDef *ecm_filter_parse(Relation rel, const char *clause, EcmParams *params,
									  Bitmapset **attnums);

/*
 * A where clause that is ready for evaluation.  If it is, or has ANDed with
 * other conditions, "column = constant" or "column IN (constants)", that
 * equality is kept apart, so that the caller can find the shape by the row's
 * value instead of evaluating each shape's clause.
 */
typedef struct EcmFilter
{
	AttrNumber	equal_attno;	/* of the caller's tuple; 0: no equality */
	Oid			equal_operator; /* with the column on its left */
	Oid			equal_collation;
	bool		equals_byval;
	int			nequals;
	Datum	   *equals;			/* the constants */
	List	   *quals;			/* the other conditions; implicitly ANDed */
	ExprState  *state;			/* for evaluating quals; made when first
								 * needed */
	MemoryContext context;		/* has quals and state; NULL: there are none */

	/* the same, with columns in lower case */
	EcmLowerCase *lower_case;	/* NULL: no condition has ILIKE */
	Bitmapset  *lowered;		/* which columns */
	List	   *lowered_quals;
	ExprState  *lowered_state;
} EcmFilter;

/*
 * Compiles a stored clause; the result is allocated in 'context'.  In a
 * transaction; no table is touched.  Column i of def is attribute attnos[i] of
 * the tuples to be evaluated.  lower_case: what the table's other clauses use, to be
 * told of each row; NULL: evaluate ILIKE as it is.  Errors: those of the parser, if an object that
 * the clause needs is gone.
 */
extern EcmFilter *ecm_filter_compile(const EcmFilterDef *def,
									 const AttrNumber *attnos,
									 MemoryContext context,
									 EcmLowerCase *lower_case);
extern void ecm_filter_free(EcmFilter *filter);

/*
 * Are the conditions of the clause other than the equality true (not null) for
 * econtext's scan tuple?  They are evaluated as user 'owner', in a restricted
 * security context.  In a transaction with a snapshot: if an ERROR is raised,
 * its abort restores the user.  Allocates in the current memory context.
 */
extern bool ecm_filter_rest_matches(EcmFilter *filter, ExprContext *econtext,
									Oid owner);

#endif							/* ECM_SHAPE_FILTER_H */
