/*-------------------------------------------------------------------------
 *
 * consumer_queues.h
 *	  The manager's side of its consumers: starts them, feeds them the
 *	  stream, knows how far they are.
 *
 * The life of a stream: ecm_queues_start() until ecm_queues_poll_start() says DONE; then
 * ecm_queues_feed() for each message; ecm_queues_stream_lost() at its end, whatever
 * the reason.  None of the functions blocks.
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
 * The SQL that makes the consumers share the shapes.  It must have run before the
 * first of them is started.  NULL: some run already, and nothing has to be done.
 */
extern char *ecm_queues_assign_sql(void);

/*
 * Starts the consumers that don't run.  poll_start is DONE when all are attached, and
 * those that ran before have obeyed the last RESET; only then is what
 * ecm_queues_start_lsn() says final.
 */
extern void ecm_queues_start(void);

/* Has any consumer been started, and not been stopped since? */
extern bool ecm_queues_any(void);

extern EcmStepResult ecm_queues_poll_start(EcmStepFailure *failure);

/*
 * Has a consumer ended, for whatever reason?  Then err says why, as far as the
 * consumer has left that in shared memory.
 */
extern bool ecm_queues_consumer_died(EcmError *err);

/*
 * Looks for a consumer that has work, and has made no progress for timeout_ms.  False:
 * there is none.  Progress is what has changed from one call to the next, of this
 * function or ecm_queues_find_last(), so 'since' is as precise as the calls are
 * frequent.
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
 * The consumer that is farthest behind, of those that have work.  *durable: everything
 * before this is in its logs.  False: none has work.
 */
extern bool ecm_queues_find_last(EcmTime now, EcmStalledConsumer *last,
								 XLogRecPtr *durable);

/*
 * Hands a message of pgoutput's to all consumers; 'data' is copied.  False: a queue is
 * full.  The message is kept for that consumer, and none may be fed before
 * ecm_queues_flush() has returned true.
 */
extern bool ecm_queues_feed(const char *data, int len);

/*
 * Sends what is kept and what is ordered, and makes all that was sent visible to the
 * consumers.  To be called at the end of each burst of messages, and each time round
 * while it returns false: then a queue is full still.
 */
extern bool ecm_queues_flush(void);

/* Wakes all consumers: a session waits for what they have put off (log_batch.c). */
extern void ecm_queues_poke(void);

/*
 * The stream is gone: orders all consumers to forget the transaction that was coming
 * in (RESET).  Forgets its positions, too.
 */
extern void ecm_queues_stream_lost(void);

/* Where the stream has to start so that no consumer misses anything. */
extern XLogRecPtr ecm_queues_start_lsn(void);

/*
 * Everything before this is durable in all shape logs it belongs to.  keepalive_lsn:
 * the walsender has sent all before it.  If all of that is durable, too, the result
 * is keepalive_lsn: there is nothing for us in between.
 */
extern XLogRecPtr ecm_queues_durable_lsn(XLogRecPtr keepalive_lsn);

/*
 * Everything before this is in all logs, and flushed rows say so: the consumers' own,
 * or the marker, which counts for each of them.
 */
extern XLogRecPtr ecm_queues_recorded_lsn(XLogRecPtr marker);

/* The end of the WAL that says so; marker_end: of what says the marker. */
extern XLogRecPtr ecm_queues_recorded_end(XLogRecPtr marker, XLogRecPtr marker_end);

/* End of the last transaction that every consumer has applied. */
extern XLogRecPtr ecm_queues_applied_lsn(void);

/*
 * Something waits for the consumers in this round.  They wake the manager only when
 * that is so, or they have news of their own (log_batch.c); else progress is looked at
 * with whatever wakes it next.
 */
extern void ecm_queues_expect_progress(void);

/* For each round, before all else and before the wait: false, go round once more. */
extern void ecm_queues_begin_round(void);
extern bool ecm_queues_end_round(void);

/* A number that grows when consumers have begun gaps in logs. */
extern uint32 ecm_queues_gaps(void);

/*
 * End of the last complete transaction that this stream has fed (invalid: none yet),
 * its commit time, and whether another one is coming in.
 */
extern XLogRecPtr ecm_queues_received_lsn(void);
extern TimestampTz ecm_queues_last_commit_at(void);
extern bool ecm_queues_in_transaction(void);

/*
 * The last giant (see ECM_GIANT_BYTES) of this stream is before this; invalid:
 * there was none.
 */
extern XLogRecPtr ecm_queues_giant_lsn(void);

/*
 * Our own messages in the stream, which may be forged, are handed to this callback
 * while their transaction is still coming in.  xid: that transaction's.  after: the end
 * of the transaction before it; so the message takes effect once
 * ecm_queues_received_lsn() is beyond 'after'.  The message is freed afterwards.
 */
typedef void (*EcmStreamMessageCallback) (const EcmStreamMessage *message,
										  TransactionId xid, XLogRecPtr after);
extern void ecm_queues_set_message_callback(const char *prefix,
											EcmStreamMessageCallback callback);

/*
 * Sends all consumers SIGTERM and frees their queues, without waiting.  What they have
 * not committed comes again with the next stream.
 */
extern void ecm_queues_stop(void);

#endif							/* ECM_CONSUMER_QUEUES_H */
