/*-------------------------------------------------------------------------
 *
 * shape_requests.h
 *	  The manager's part in creating shapes: which are to be created.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_REQUESTS_H
#define ECM_SHAPE_REQUESTS_H

#include "postgres.h"

#include "lib/ilist.h"

#include "base/clock.h"

/* A shape to be created. */
typedef struct EcmShapeRequest
{
	int64		id;				/* hash key */
	char		handle[40];
	Oid			relation;
	TransactionId created_by;	/* invalid: that is known to be over */
	bool		queued;			/* not taken yet; else: */
	dlist_node	node;			/* in its table's queue */
	struct EcmBatch *batch;		/* shape_creation.c's, as is */
	int			generation;
} EcmShapeRequest;

extern void ecm_requests_init(const char *datname);

/* Nothing happens if it is there already. */
extern void ecm_request_add(int64 id, Oid relation, const char *handle,
							TransactionId created_by);
extern EcmShapeRequest *ecm_request_find(int64 id);
extern void ecm_request_end(EcmShapeRequest *request);

/* How many batches of a table are under way has changed. */
extern void ecm_request_batches(Oid relation, int change);

/*
 * Takes up to 'max' requests of a table that has fewer batches under way than
 * max_batches.  Returns how many; 0: there is nothing to be done now.
 */
extern int	ecm_requests_take(EcmTime now, int max_batches,
							  EcmShapeRequest **taken, int max);

/* Reads from the catalog which shapes are being created. */
extern void ecm_requests_scan(void);

extern void ecm_requests_poll(EcmTime now);
extern EcmTime ecm_requests_deadline(void);

/* The stream was lost (a scan follows); those that were taken are gone, too. */
extern void ecm_requests_forget(void);

#endif							/* ECM_SHAPE_REQUESTS_H */
