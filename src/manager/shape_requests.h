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

/*
 * A shape to be created.  First it is in its table's queue, then in a batch.  It ends
 * when the shape is on its way to "live", or is gone.
 */
typedef struct EcmShapeRequest
{
	int64		id;				/* hash key */
	char		handle[40];
	Oid			relation;
	TransactionId created_by;	/* who has declared the shape; invalid: that
								 * transaction is known to be visible to all */
	int64		reading;		/* by which the table is being read for it; 0:
								 * none has been begun */
	bool		queued;			/* it is in its table's queue, by 'node' */
	bool		again;			/* a scan has met it meanwhile: when it ends,
								 * there is to be another one */
	dlist_node	node;

	/* for shape_batch.c and shape_creation.c, once it is taken */
	struct EcmBatch *batch;		/* that it is in */
	int			generation;		/* that is being captured */
} EcmShapeRequest;

extern void ecm_requests_init(const char *datname);

/*
 * Adds a request, to its table's queue; nothing happens if there is one for that id.
 * created_by, reading: see there.
 */
extern void ecm_request_add(int64 id, Oid relation, const char *handle,
							TransactionId created_by, int64 reading);
extern EcmShapeRequest *ecm_request_find(int64 id); /* NULL: there is none */
extern void ecm_request_end(EcmShapeRequest *request);	/* frees it */

/* The number of batches of a table that are under way has changed by that much. */
extern void ecm_request_batches(Oid relation, int change);

/*
 * Takes up to 'max' requests of one table, which has fewer batches under way than
 * max_batches, out of its queue; all of them have the same reading, or none.  The tables
 * take turns.  Returns how many they are; 0: no table has any that can be created now.
 */
extern int	ecm_requests_take(EcmTime now, int max_batches,
							  EcmShapeRequest **taken, int max);

/* At the start of a stream: begins to read which shapes are being created. */
extern void ecm_requests_scan(void);

/* At some other time: there are others now. */
extern void ecm_requests_rescan(void);

/* Goes on with that.  And when it has to be called again, at the latest; or 0. */
extern void ecm_requests_poll(EcmTime now);
extern EcmTime ecm_requests_deadline(void);

/*
 * The stream was lost: forgets all requests that the scan at the start of the next one
 * finds again.  Batches, with the requests that were taken, are gone by then.
 */
extern void ecm_requests_forget(void);

#endif							/* ECM_SHAPE_REQUESTS_H */
