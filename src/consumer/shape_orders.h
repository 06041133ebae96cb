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

#include "base/stream_message.h"

/* At start.  'worker': this consumer's number. */
extern void ecm_orders_init(int stack_index, int worker);

/*
 * Adds an order that the consumer gives to itself, on what it has met in the
 * stream: a table was truncated; a relation lacks what shapes of a layout need
 * (relation.c); a change lacks a value that a shape needs, of a column; following a shape
 * has raised an error ('reason' as for ecm_shape_set_errored()).
 */
extern void ecm_orders_add_truncated(Oid table);
extern void ecm_orders_add_mismatch(Oid table, int layout, Oid relation);
extern void ecm_orders_add_lacking(int64 shape, int generation, const char *column);
extern void ecm_orders_add_errored(int64 shape, int generation,
								   const char *reason);

/* Adds the order of a message in the stream, which may be forged.  Copies it. */
extern void ecm_orders_add_message(const EcmStreamMessage *message);

/* Has the upstream transaction that is coming in any orders? */
extern bool ecm_orders_any(void);

/*
 * Obeys all orders, where their upstream transaction commits: in the local
 * transaction that commits its entries, too.  An ERROR undoes both, and the
 * upstream transaction comes again.
 */
extern void ecm_orders_obey(void);

/* The local transaction is committed: reports what came of the orders. */
extern void ecm_orders_committed(void);

/* The upstream transaction is lost with the stream. */
extern void ecm_orders_forget(void);

/*
 * Makes a shape errored, in a transaction.  'reason' is tagged (errors.h): those
 * who may read the shape get it without the tag, others a text without data.
 */
extern void ecm_shape_set_errored(int64 shape, int generation, const char *reason);

/* Records the event about it; to be called after the commit. */
extern void ecm_shape_report_errored(const char *handle, const char *reason);

#endif							/* ECM_SHAPE_ORDERS_H */
