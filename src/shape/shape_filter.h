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

/*
 * A where clause as it is stored.  The text is deparsed, so it is a normal form;
 * it has bare column names, which the arrays describe, and needs nothing but
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
 * The values of reg... types and access control lists have names in their text
 * form, and reading that is a look into the catalogs: what it finds there later
 * may be something else, or nothing.
 */
extern bool ecm_type_has_names(Oid type);

/*
 * Checks a where clause for a table, on which the caller holds a lock.  The
 * rules are those of a publication's row filter.  *attnums: the columns that
 * it refers to, as attribute numbers.
 *
 * Errors, with the position in the clause: 42601 not an expression; 42703 no
 * such column; 42804 not boolean; 0A000 it has what a row filter may not have;
 * and what evaluating its constant parts raises.
 */
extern EcmFilterDef *ecm_filter_parse(Relation rel, const char *clause,
									  Bitmapset **attnums);

/*
 * Ready for evaluation.  "column = constant" and "column IN (constants)", by
 * itself or ANDed with anything, is taken apart, so that the caller can look
 * for the constant instead of evaluating.
 */
typedef struct EcmFilter
{
	AttrNumber	equal_attno;	/* of the caller's tuple; 0: no equality */
	Oid			equal_operator; /* with the column on its left */
	Oid			equal_collation;
	bool		equals_byval;
	int			nequals;
	Datum	   *equals;			/* the constants */
	List	   *quals;			/* what else must be true; implicitly ANDed */
	ExprState  *state;			/* of quals, once it was needed */
	MemoryContext context;		/* of these two, if there are any */
} EcmFilter;

/*
 * Compiles it into 'context', in a transaction; no table is touched.  Column i
 * of def is attribute attnos[i] of the tuples to come.  Errors: whatever the
 * parser raises, if something that the clause needs is gone.
 */
extern EcmFilter *ecm_filter_compile(const EcmFilterDef *def,
									 const AttrNumber *attnos,
									 MemoryContext context);
extern void ecm_filter_free(EcmFilter *filter);

/*
 * Is the rest of the clause, beside the equality, true (not null) for
 * econtext's scan tuple?  Evaluated in the name of 'owner', who may do nothing
 * else meanwhile.  In a transaction with a snapshot, whose abort restores the
 * user if an error is raised; what is allocated goes into the current context.
 */
extern bool ecm_filter_rest_matches(EcmFilter *filter, ExprContext *econtext,
									Oid owner);

#endif							/* ECM_SHAPE_FILTER_H */
