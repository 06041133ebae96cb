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

/* At start; 'worker': whose shapes are meant. */
extern void ecm_orders_init(int stack_index, int worker);

/*
 * Adds one that the consumer gives to itself, on what it has met in the stream:
 * a table was truncated; a layout of a table's shapes does not fit what the
 * stream has of the table; following a shape has raised an error ('reason' as
 * for ecm_shape_set_errored()).
 */
extern void ecm_orders_add_truncated(Oid table);
extern void ecm_orders_add_mismatch(Oid table, int layout);
extern void ecm_orders_add_errored(int64 shape, int generation,
								   const char *reason);

/* Adds one from a message in the stream, which may be forged. */
extern void ecm_orders_add_message(const EcmStreamMessage *message);

/* Are there any? */
extern bool ecm_orders_any(void);

/* Does what they say, in the local transaction that this is committed with. */
extern void ecm_orders_obey(void);

/* The transaction has been committed; or it has been lost. */
extern void ecm_orders_committed(void);
extern void ecm_orders_forget(void);

/*
 * In a transaction: readers of the shape's log get 'reason', less the tag by
 * which others are told what it is about (errors.h).
 */
extern void ecm_shape_set_errored(int64 shape, int generation, const char *reason);

/* Tells those who watch; after the commit. */
extern void ecm_shape_report_errored(const char *handle, const char *reason);

#endif							/* ECM_SHAPE_ORDERS_H */
