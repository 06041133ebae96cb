/*-------------------------------------------------------------------------
 *
 * shape_batch.h
 *	  The manager's part in creating shapes: shapes of one table that go that
 *	  way together.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_BATCH_H
#define ECM_SHAPE_BATCH_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "lib/ilist.h"

#include "base/backoff.h"
#include "base/clock.h"
#include "base/errors.h"
#include "manager/shape_barrier.h"
#include "manager/shape_requests.h"

/* Where a batch is: see the head of shape_creation.c. */
typedef enum EcmCreationStep
{
	ECM_CREATION_NEW,			/* not started; begins with publish */
	ECM_CREATION_PUBLISHED,		/* not started; begins with capture, as the
								 * table is published */
	ECM_CREATION_PUBLISH,		/* job publish_table() runs */
	ECM_CREATION_CAPTURE,		/* job capture_shapes() runs */
	ECM_CREATION_CAPTURED,		/* until all consumers have met the message */
	ECM_CREATION_BARRIER,		/* until the writers have ended; no job */
	ECM_CREATION_SNAPSHOT,		/* job take_snapshot() runs */

	/* of a reading: see the head of shape_reading.c */
	ECM_CREATION_READ,			/* until it is its turn; no job */
	ECM_CREATION_PIECE,			/* job read_piece() runs */
	ECM_CREATION_LAST,			/* until all consumers have met its message */
	ECM_CREATION_FINISH			/* job finish_reading() runs */
} EcmCreationStep;

/* So many messages are kept that may be a batch's capture message. */
#define ECM_MAX_EARLY			8

/* Where a message was met in the stream. */
typedef struct EcmMet
{
	TransactionId xid;			/* of its transaction */
	XLogRecPtr	after;			/* end of the transaction before that */
} EcmMet;

/*
 * Shapes of one table that are created together.
 *
 * A message, such as "capture", comes back by the stream, and the answer of the job
 * that has emitted it, which says in which transaction it is, by the pool session;
 * either may come first.  Somebody who reads the WAL may forge a message with the
 * batch's number.  So messages that come before the answer are kept, and the one that
 * counts is the one in the right transaction.
 */
typedef struct EcmBatch
{
	dlist_node	node;			/* in one of shape_batch.c's lists */
	int64		number;			/* in its capture message; of this attempt */
	EcmCreationStep step;
	int			place;			/* index in the entry's creations, where it is
								 * shown; -1: it is not */
	uint64		job;			/* running pool job, 0: none */
	Oid			relation;
	int			nshapes;		/* more than 0, but for a new batch */
	EcmShapeRequest **shapes;

	int64		reading;		/* number of the reading; 0: it is none */
	uint64		turn;			/* when its last piece was begun; 0: none yet */
	bool		keeps_logs;		/* sessions keep what its logs come to */
	int64		log_bytes;		/* the size of those logs */
	bool		counted;		/* among the table's batches under way */

	TransactionId message_xid;	/* the message's; invalid: no answer yet */
	bool		met;			/* the message has come by the stream ... */
	XLogRecPtr	message_after;	/* ... in the transaction after this one */
	int			nearly;			/* messages with the batch's number that came
								 * before the answer; forged perhaps */
	EcmMet		early[ECM_MAX_EARLY];	/* those */
	XLogRecPtr	message_lsn;	/* end of the message's transaction, when that
								 * has come; else invalid */

	EcmBarrier	barrier;		/* whom step BARRIER waits for */
	EcmBackoff	backoff;		/* of attempts that have failed */
	EcmTime		retry_at;		/* in the list of those that retry, and in
								 * step READ: the next attempt; in step
								 * BARRIER: the next look */
} EcmBatch;

extern void ecm_batches_init(int stack_index);

/*
 * The list of active batches.  Go through it with dlist_foreach_modify(): the batch
 * at hand may end, or fail.
 */
extern dlist_head *ecm_batches_active(void);

/*
 * Makes the next batch active, and returns it, at step NEW or PUBLISHED, for the caller
 * to start: one that has waited for that, or one made of new requests.  NULL: there
 * is none, or MAX_WORKING others are at work.
 */
extern EcmBatch *ecm_batches_start_next(EcmTime now);

/* Moves batches whose time for another attempt has come to those to be started. */
extern void ecm_batches_poll_retries(EcmTime now);

/* When a batch needs another look or attempt, at the latest; 0: none does. */
extern EcmTime ecm_batches_deadline(void);

/* The stream was lost: forgets all batches and the requests in them. */
extern void ecm_batches_forget(void);

/* A new batch, in no list, with room for so many shapes; and adds a shape to it. */
extern EcmBatch *ecm_batch_create(Oid relation, int max_shapes);
extern void ecm_batch_put(EcmBatch *b, EcmShapeRequest *request);

/*
 * Waiting for a message of the batch's: expect, before the job that emits it; met, for
 * each one that comes by the stream and may be it; expects, when the job has answered
 * in which transaction it is.  False: it may be among those that were not kept, so
 * the job has to be run again.  has_come: have all consumers come to it?
 */
extern void ecm_batch_expect(EcmBatch *b);
extern void ecm_batch_met(EcmBatch *b, TransactionId xid, XLogRecPtr after);
extern bool ecm_batch_expects(EcmBatch *b, TransactionId xid);
extern bool ecm_batch_has_come(EcmBatch *b, XLogRecPtr received_lsn,
							   XLogRecPtr applied_lsn);

/*
 * Counts the batch no more among those of its table that are under way, so that it keeps
 * no others waiting.
 */
extern void ecm_batch_uncount(EcmBatch *b);

/* An active batch is done: ends its requests, and frees it. */
extern void ecm_batch_end(EcmBatch *b);

/*
 * An active batch has failed.  If one shape in it may be the cause, it is split in two,
 * and freed; else it will be tried again; a reading, from where it is.
 */
extern void ecm_batch_fail(EcmBatch *b, const EcmError *err);

/*
 * Tries a batch again, from the beginning, with backoff; 'reason' is shown meanwhile.
 * The caller has taken it off its list.
 */
extern void ecm_batch_retry_later(EcmBatch *b, const char *reason);

/* Leaves out the shapes that are not in this batch any more: NULL in 'shapes'. */
extern void ecm_batch_close_gaps(EcmBatch *b);

/* A shape is gone: ends its request, and its batch if that has no other. */
extern void ecm_batch_drop_shape(int64 id);

/*
 * For the view electric_cm_shapes: gives a batch one of the ECM_MAX_CREATIONS places in
 * the entry, if one is left; and shows what the batch waits for, if it has a place.
 */
extern void ecm_batch_make_place(EcmBatch *b);
extern void ecm_batch_show(EcmBatch *b, const char *waiting_for);

#endif							/* ECM_SHAPE_BATCH_H */
