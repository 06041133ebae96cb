/*-------------------------------------------------------------------------
 *
 * shape_orders.h
 *	  Orders: what is to be done to shapes where the transaction that is
 *	  coming in commits.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_ORDERS_H
#define ECM_SHAPE_ORDERS_H

#include "postgres.h"

/* At start; 'worker': whose shapes are meant. */
extern void ecm_orders_init(int worker);

/*
 * Adds one of the consumer's own: "mismatch TABLE LAYOUT", "truncate TABLE" or
 * "fail ..."; or one from a message in the stream (shape.h), which may be
 * forged.
 */
extern void ecm_orders_add(const char *text);
extern void ecm_orders_add_from_stream(const char *text);

/* Are there any? */
extern bool ecm_orders_any(void);

/* Does what they say, in the local transaction that this is committed with. */
extern void ecm_orders_obey(void);

/* The transaction has been committed, or has been lost. */
extern void ecm_orders_forget(void);

/*
 * In a transaction: readers of the shape's log get 'reason', less the tag by
 * which others are told what it is about (errors.h).
 */
extern void ecm_shape_set_errored(int64 shape, int generation, const char *reason);

#endif							/* ECM_SHAPE_ORDERS_H */
