/*-------------------------------------------------------------------------
 *
 * consumer_queue.h
 *	  The format of the queues between a manager and its consumers, and what
 *	  a consumer is given when it is started.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_CONSUMER_QUEUE_H
#define ECM_CONSUMER_QUEUE_H

#include "postgres.h"

/*
 * A queue (shm_mq) carries the messages of pgoutput as the walsender has sent
 * them.  A message that starts with one of the following bytes, none of which
 * pgoutput uses, is a control frame: an EcmControlFrame that the manager
 * addresses to the consumer itself.
 *
 * RESET: the stream was lost and will start again.  The consumer forgets the
 * transaction that it has received in part, forgets the relations that
 * pgoutput has described, commits the transactions that are complete, and
 * reports the frame's number as reset_done.  Until then the manager must not
 * start the stream again: the consumer could not tell messages of the old
 * stream from those of the new one.
 *
 * FLUSH: the consumer does nothing.  The manager sends it at the end of a
 * burst, since shm_mq makes small messages visible to the receiver only with a
 * message that asks for it; without it, the last messages would stay unseen
 * until more come.
 *
 * PIECE: the bytes after the frame are a piece of a message whose total length
 * is the number.  The receiver's end of shm_mq never gives back the memory that
 * the largest message has needed, so messages larger than ECM_PIECE_BYTES are
 * sent in pieces.
 */
#define ECM_FRAME_RESET		'\001'
#define ECM_FRAME_FLUSH		'\002'
#define ECM_FRAME_PIECE		'\003'

#define ECM_PIECE_BYTES		(128 * 1024)

/*
 * A RESET or a FLUSH is a frame and nothing else, and has the size of shm_mq's
 * unit of allocation.  So it is either sent or not, never in part, and the
 * manager may replace a frame that did not fit by another one before it tries
 * again.
 */
typedef struct EcmControlFrame
{
	char		type;
	char		padding[3];
	uint32		number;			/* RESET: of the reset; PIECE: bytes of the
								 * whole message; FLUSH: not used */
} EcmControlFrame;

StaticAssertDecl(sizeof(EcmControlFrame) == MAXIMUM_ALIGNOF,
				 "a control frame must be one unit of shm_mq");

/* Size of a consumer's queue, in bytes. */
#define ECM_QUEUE_SIZE		(1024 * 1024)

/* What a consumer worker gets in bgw_extra. */
typedef struct EcmConsumerArgs
{
	int			stack_index;	/* of the stack's entry, see shmem.h */
	int			worker;			/* number of the consumer, from 0 */
	uint32		generation;		/* of its EcmConsumerSlot; if that has another
								 * one, the consumer was replaced already */
} EcmConsumerArgs;

#endif							/* ECM_CONSUMER_QUEUE_H */
