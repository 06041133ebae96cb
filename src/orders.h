/*-------------------------------------------------------------------------
 *
 * orders.h
 *	  Orders: what is to be done to shapes where the transaction that is
 *	  coming in commits.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_ORDERS_H
#define ECM_ORDERS_H

#include "postgres.h"

/* At start; 'worker': whose shapes are meant. */
extern void ecm_orders_init(int worker);

/*
 * Adds one, as in a message from the stream (shape.h), or one of the
 * consumer's own: "mismatch TABLE LAYOUT" and "truncate TABLE".
 */
extern void ecm_orders_add(const char *text);

/* Are there any? */
extern bool ecm_orders_any(void);

/* Does what they say, in the local transaction that this is committed with. */
extern void ecm_orders_obey(void);

/* The transaction has been committed, or has been lost. */
extern void ecm_orders_forget(void);

/* In a transaction: readers of the shape's log get 'reason'. */
extern void ecm_shape_set_errored(int64 shape, int generation, const char *reason);

#endif							/* ECM_ORDERS_H */
