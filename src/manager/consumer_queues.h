/*-------------------------------------------------------------------------
 *
 * consumer_queues.h
 *	  The manager's side of its consumers: starts them, feeds them the
 *	  stream, knows how far they are.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_CONSUMER_QUEUES_H
#define ECM_CONSUMER_QUEUES_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"

#include "base/clock.h"
#include "base/failure.h"
#include "base/stream_message.h"

extern void ecm_queues_init(int stack_index, const char *datname);

/*
 * The SQL to be run, before the first consumer starts, to make them share the
 * shapes; NULL: they run already.
 */
extern char *ecm_queues_assign_sql(void);

/*
 * Starts what is missing, tells the survivors to forget the half-received
 * transaction; done when all are attached and have obeyed.
 */
extern void ecm_queues_start(void);
extern EcmStepResult ecm_queues_poll_start(EcmStepFailure *failure);

/*
 * Has one of them died?  Looks at the workers, not at shared memory; why it
 * did, as far as it has said, is in err then.
 */
extern bool ecm_queues_consumer_died(EcmError *err);

/*
 * Looks for a consumer that has work, but has made no progress since an earlier
 * look at least 'timeout_ms' ago.  False: there is none.  To be called now and
 * then.
 */
typedef struct EcmStalledConsumer
{
	int			worker;			/* from 0 */
	int			pid;
	int64		shape;			/* that it seems to work on; 0: unknown */
	EcmTime		since;
} EcmStalledConsumer;

extern bool ecm_queues_find_stalled(EcmTime now, int timeout_ms,
									EcmStalledConsumer *stalled);

/*
 * The one that is farthest behind, if any has work to do; *durable: how far its
 * logs are.
 */
extern bool ecm_queues_find_last(EcmTime now, EcmStalledConsumer *last,
								 XLogRecPtr *durable);

/*
 * Hands a pgoutput message to the consumers.  False: a queue is full; the
 * message is kept, and nothing else may be fed until ecm_queues_flush() says
 * true.
 */
extern bool ecm_queues_feed(const char *data, int len);
extern bool ecm_queues_flush(void);

/* The stream is gone: half-received transactions must be dropped. */
extern void ecm_queues_stream_lost(void);

/* Where the stream has to start so that no consumer misses anything. */
extern XLogRecPtr ecm_queues_start_lsn(void);

/*
 * Everything before this is durable in all shape logs it belongs to.
 * keepalive_lsn counts only if nothing is on its way to a consumer.
 */
extern XLogRecPtr ecm_queues_durable_lsn(XLogRecPtr keepalive_lsn);

/* End of the last transaction that every consumer has applied. */
extern XLogRecPtr ecm_queues_applied_lsn(void);

/* End of the last complete transaction fed, and its commit time. */
extern XLogRecPtr ecm_queues_received_lsn(void);
extern TimestampTz ecm_queues_last_commit_at(void);
extern bool ecm_queues_in_transaction(void);

/*
 * The last giant (see ECM_GIANT_BYTES) of this stream is before this; invalid:
 * there was none.
 */
extern XLogRecPtr ecm_queues_giant_lsn(void);

/*
 * Transactional messages of ours that were met in the stream are handed to
 * this callback, with the xid of their transaction and the end of the one
 * before: theirs is complete once ecm_queues_received_lsn() is beyond that.
 */
typedef void (*EcmStreamMessageCallback) (const EcmStreamMessage *message,
										  TransactionId xid, XLogRecPtr after);
extern void ecm_queues_set_message_callback(const char *prefix,
											EcmStreamMessageCallback callback);

/* Ends all consumers (they finish what is complete) and frees the queues. */
extern void ecm_queues_stop(void);

#endif							/* ECM_CONSUMER_QUEUES_H */
