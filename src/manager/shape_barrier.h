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

/* Zeroed: nobody. */
typedef struct EcmBarrier
{
	VirtualTransactionId *writers;
	int			nwriters;
	int			max_writers;
} EcmBarrier;

/*
 * Notes everybody who may have written to the relation or its partitions, or
 * changed what it is made of, and isn't done.  False: err says why it could not.
 */
extern bool ecm_barrier_start(EcmBarrier *barrier, Oid relation, EcmError *err);

/* Looks who is still there (nwriters); true if there are fewer than before. */
extern bool ecm_barrier_poll(EcmBarrier *barrier);

/* Names them; palloc'd in the current context. */
extern char *ecm_barrier_text(const EcmBarrier *barrier);

extern void ecm_barrier_end(EcmBarrier *barrier);

#endif							/* ECM_SHAPE_BARRIER_H */
