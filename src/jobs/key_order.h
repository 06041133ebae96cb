/*-------------------------------------------------------------------------
 *
 * key_order.h
 *	  The order of a shape's key, in SQL: conditions on ranges of keys.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_KEY_ORDER_H
#define ECM_KEY_ORDER_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/relcache.h"

#include "shape/shape.h"

/*
 * How the columns of a shape's key are compared: as the default btree operator
 * class of their types does, with the collations of the columns.
 */
typedef struct EcmKeyOrder
{
	int			n;				/* of columns */
	char	   *columns[INDEX_MAX_KEYS];	/* "t.name", quoted */
	Oid			types[INDEX_MAX_KEYS];	/* base types, of parameters */
} EcmKeyOrder;

/*
 * False: no index has the table's rows in that order, so that each look for the
 * next key would have to sort all of them.
 */
extern bool ecm_key_order(const EcmShapeDef *shape, Relation rel, EcmKeyOrder *order);

/* Appends "t.a, t.b". */
extern void ecm_key_order_list(const EcmKeyOrder *order, StringInfo sql);

typedef enum EcmKeyCondition
{
	ECM_KEY_GREATER,
	ECM_KEY_LESS_EQUAL,
	ECM_KEY_EQUAL
} EcmKeyCondition;

/* Appends a condition on the key, whose values are the parameters from $first on. */
extern void ecm_key_order_condition(const EcmKeyOrder *order, EcmKeyCondition condition,
									int first, StringInfo sql);

/* The values of a key as parameters; 'values' are the texts that the columns have. */
extern void ecm_key_order_params(const EcmKeyOrder *order, char **values,
								 Oid *types, Datum *params);

#endif							/* ECM_KEY_ORDER_H */
