/*-------------------------------------------------------------------------
 *
 * order_shapes.h
 *	  The shapes that an order names, and which of them it is meant for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_ORDER_SHAPES_H
#define ECM_ORDER_SHAPES_H

#include "postgres.h"

#include "base/stream_message.h"

/* Shapes and generations that an order names, or those that obey it. */
typedef struct EcmOrderShapes
{
	int			n;
	Datum	   *ids;
	Datum	   *generations;
	int64	   *readings;		/* as the shapes' rows have them; 0: none, or
								 * not known */
} EcmOrderShapes;

extern EcmOrderShapes ecm_order_shapes_create(int max);
extern void ecm_order_shapes_add(EcmOrderShapes *list, int64 id, int generation,
								 int64 reading);

/* The shapes that a message names. */
extern EcmOrderShapes ecm_order_shapes_named(const EcmStreamMessage *message);

/*
 * Those of the shapes that a message names for which it is meant, as the catalog
 * says: the order was given by this upstream transaction, to the same generation.
 * All others are a forger's, or their creation has been tried again since.
 *
 * Messages "piece" and "again" are told by other rows than the shape's, see
 * stream_message.h; whether there is an answer for a shape, ecm_again_use() says.
 */
extern EcmOrderShapes ecm_order_shapes_meant(const EcmStreamMessage *message);

/* Runs an INSERT for all shapes of a list: ids, generations and the transaction's LSN are $1 to $3. */
struct _SPI_plan;
extern void ecm_order_shapes_set_states(struct _SPI_plan **plan, const char *sql,
										const EcmOrderShapes *list);

#endif							/* ECM_ORDER_SHAPES_H */
