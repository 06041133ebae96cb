/*-------------------------------------------------------------------------
 *
 * shape_purge.h
 *	  The manager's part in freeing what dropped shapes leave behind.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_PURGE_H
#define ECM_SHAPE_PURGE_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "base/clock.h"

extern void ecm_purges_init(int stack_index);

/*
 * A shape's end was met in the stream, in the transaction after 'after': frees
 * its log in good time.
 */
extern void ecm_purges_add(int64 id, XLogRecPtr after);

/* A transaction has dropped shapes, perhaps the last ones of their tables. */
extern void ecm_purges_leaver(TransactionId xid);

/* Shapes that can't be deleted yet, since their rows are locked, are gone. */
extern void ecm_purges_gone(XLogRecPtr after);

/*
 * The end of 'n' shapes, one of which has that handle, was met.  Shapes that one
 * transaction ends for the same reason make one event.
 */
extern void ecm_purges_report(const char *handle, int n, const char *reason,
							  XLogRecPtr after);

/* Looks for what belongs to no shape, at the start of a stream. */
extern void ecm_purges_scan(void);

/* As ecm_creations_poll() and ecm_creations_deadline(). */
extern void ecm_purges_poll(EcmTime now, XLogRecPtr received_lsn,
							XLogRecPtr applied_lsn);
extern EcmTime ecm_purges_deadline(void);

/* The stream was lost; ecm_purges_scan() follows. */
extern void ecm_purges_forget(void);

#endif							/* ECM_SHAPE_PURGE_H */
