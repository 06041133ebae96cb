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

/* Where a batch is: see shape_creation.c. */
typedef enum EcmCreationStep
{
	ECM_CREATION_NEW,			/* first of all, the table must be published */
	ECM_CREATION_PUBLISHED,		/* ... it is */
	ECM_CREATION_PUBLISH,
	ECM_CREATION_CAPTURE,
	ECM_CREATION_CAPTURED,		/* until the consumers have met the message */
	ECM_CREATION_BARRIER,
	ECM_CREATION_SNAPSHOT
} EcmCreationStep;

/* Messages that look like a batch's capture message: so many are kept. */
#define ECM_MAX_EARLY			8

typedef struct EcmMet
{
	TransactionId xid;
	XLogRecPtr	after;
} EcmMet;

typedef struct EcmBatch
{
	dlist_node	node;			/* in one of shape_batch.c's lists */
	int64		number;			/* in its capture message */
	EcmCreationStep step;
	int			place;			/* index in the shared array, -1: none */
	uint64		job;			/* running pool job, 0: none */
	Oid			relation;
	int			nshapes;
	EcmShapeRequest **shapes;
	TransactionId capture_xid;	/* of the capture message, once it is known */
	bool		met;			/* the message was, in the stream ... */
	XLogRecPtr	capture_after;	/* ... in the transaction after this one */
	int			nearly;			/* met before its transaction was known: */
	EcmMet		early[ECM_MAX_EARLY];	/* with its number, forged perhaps */
	XLogRecPtr	capture_lsn;	/* end of its transaction */
	EcmBarrier	barrier;
	EcmBackoff	backoff;
	EcmTime		retry_at;
} EcmBatch;

extern void ecm_batches_init(int stack_index);

/* Batches at some step; one may end, or fail, while the list is gone through. */
extern dlist_head *ecm_batches_active(void);

/*
 * Makes the next batch active, and returns it to be started: one that has waited
 * for that, or one of new requests.  NULL: there is none, or others have to come
 * on first.
 */
extern EcmBatch *ecm_batches_start_next(EcmTime now);

/* Has batches whose time for another attempt has come wait to be started. */
extern void ecm_batches_poll_retries(EcmTime now);

/* When something is to be done about any of them at the latest, or 0. */
extern EcmTime ecm_batches_deadline(void);

/* The stream was lost: all of them are gone, and their requests. */
extern void ecm_batches_forget(void);

/* A new one, in no list, with room for so many shapes. */
extern EcmBatch *ecm_batch_create(Oid relation, int max_shapes);
extern void ecm_batch_put(EcmBatch *b, EcmShapeRequest *request);

/*
 * An active one's way is over: all its shapes are dealt with; by an error, of
 * which one shape may be the cause.
 */
extern void ecm_batch_end(EcmBatch *b);
extern void ecm_batch_fail(EcmBatch *b, const EcmError *err);

/* Another attempt, later.  The caller has taken it off its list. */
extern void ecm_batch_retry_later(EcmBatch *b, const char *reason);

/* Leaves out the shapes that are not in this batch any more: NULL in 'shapes'. */
extern void ecm_batch_close_gaps(EcmBatch *b);

/* A shape that is gone needs no creation any more. */
extern void ecm_batch_drop_shape(int64 id);

/*
 * For electric_cm_shapes: a place among the batches that are shown, if there is
 * one left, and what it waits for.
 */
extern void ecm_batch_make_place(EcmBatch *b);
extern void ecm_batch_show(EcmBatch *b, const char *waiting_for);

#endif							/* ECM_SHAPE_BATCH_H */
