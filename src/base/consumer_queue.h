/*-------------------------------------------------------------------------
 *
 * consumer_queue.h
 *	  What the manager and its consumer workers have agreed on.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_CONSUMER_QUEUE_H
#define ECM_CONSUMER_QUEUE_H

#include "postgres.h"

/*
 * A queue carries pgoutput messages as they are.  A message that starts with
 * one of these bytes, which pgoutput does not use, is an order of the
 * manager's:
 *
 * RESET: forget the half-received transaction and the relation cache, commit
 * what is complete, and report the number back as reset_done.
 *
 * FLUSH: nothing.  It ends a burst: shm_mq makes small messages visible to the
 * receiver only with a message that asks for it.
 *
 * PIECE: what follows is a piece of a message whose length is the number.  The
 * receiver's end of shm_mq never gives back the memory that it needed for the
 * largest message, so larger ones than ECM_PIECE_BYTES come in pieces.
 */
#define ECM_FRAME_RESET		'\001'
#define ECM_FRAME_FLUSH		'\002'
#define ECM_FRAME_PIECE		'\003'

#define ECM_PIECE_BYTES		(128 * 1024)

/*
 * All orders have one size, and that is the queue's unit of allocation.  So an
 * order is either sent or not, never in part, and one that did not fit can be
 * replaced by another before it is tried again.
 */
typedef struct EcmControlFrame
{
	char		type;
	char		padding[3];
	uint32		number;			/* not FLUSH's */
} EcmControlFrame;

StaticAssertDecl(sizeof(EcmControlFrame) == MAXIMUM_ALIGNOF,
				 "a control frame must be one unit of shm_mq");

/* Size of a consumer's queue. */
#define ECM_QUEUE_SIZE		(1024 * 1024)

/* What a consumer worker gets in bgw_extra. */
typedef struct EcmConsumerArgs
{
	int			stack_index;
	int			worker;
	uint32		generation;
} EcmConsumerArgs;

#endif							/* ECM_CONSUMER_QUEUE_H */
