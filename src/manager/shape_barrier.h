/*-------------------------------------------------------------------------
 *
 * shape_barrier.h
 *	  Who was writing to a table at a moment, and who of them still is.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_BARRIER_H
#define ECM_SHAPE_BARRIER_H

#include "postgres.h"

#include "storage/lock.h"

#include "base/errors.h"

/* The transactions that are waited for.  Zeroed: there are none. */
typedef struct EcmBarrier
{
	VirtualTransactionId *writers;	/* in TopMemoryContext */
	int			nwriters;
	int			max_writers;	/* room in 'writers' */
} EcmBarrier;

/*
 * Notes all transactions that may have written to the relation or its partitions, or
 * changed what it is made of, and have not ended.  Later ones don't count.  False:
 * the catalog could not be read (err).
 */
extern bool ecm_barrier_start(EcmBarrier *barrier, Oid relation, EcmError *err);

/* Leaves out those that have ended; true if there are any.  nwriters 0: all have. */
extern bool ecm_barrier_poll(EcmBarrier *barrier);

/* Names those that are left, as a sentence, in the current context. */
extern char *ecm_barrier_text(const EcmBarrier *barrier);

extern void ecm_barrier_end(EcmBarrier *barrier);

#endif							/* ECM_SHAPE_BARRIER_H */
