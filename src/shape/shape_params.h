/*-------------------------------------------------------------------------
 *
 * shape_params.h
 *	  Parameters of where clauses: $1 stands for a value.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_PARAMS_H
#define ECM_SHAPE_PARAMS_H

#include "postgres.h"

#include "nodes/nodes.h"
#include "parser/parse_node.h"

/* The values, as text.  Their types are what the clause takes them for. */
typedef struct EcmParams
{
	int			n;
	char	  **texts;			/* an element may be NULL */
	Oid		   *types;			/* of those that the clause has ... */
	int			ntypes;			/* ... while it is parsed */
} EcmParams;

/*
 * The clause that is about to be parsed may have parameters.
 *
 * Errors: 42P02 the clause has a parameter that has no value; 22023 there are more values.
 */
extern void ecm_params_declare(EcmParams *params, ParseState *pstate, Node *raw_clause);

/*
 * Puts the values in the place of parameters.
 *
 * Errors: 42P18 the clause does not say of which type one is; 0A000 that is a domain; 22P02
 * and others, of a value that its type does not have.
 */
extern Node *ecm_params_replace(const EcmParams *params, ParseState *pstate, Node *expr);

#endif							/* ECM_SHAPE_PARAMS_H */
