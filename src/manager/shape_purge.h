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
 * The end of a shape was met in the stream, in the transaction after the one that ends
 * at 'after': has its log deleted when all consumers have applied it.
 */
extern void ecm_purges_add(int64 id, XLogRecPtr after);

/*
 * A transaction has dropped shapes, perhaps the last ones of their tables: has such
 * tables taken out of the publication, some time after it is visible.
 */
extern void ecm_purges_leaver(TransactionId xid);

/*
 * Shapes have ended whose rows were locked (message "lost", in the transaction after
 * 'after'): has them deleted when that is possible.  'after' invalid: there may be
 * such shapes from before.
 */
extern void ecm_purges_gone(XLogRecPtr after);

/*
 * Reports that 'n' shapes have ended, one of which has that handle, once their
 * transaction is complete.  Those that one transaction ends for the same reason make
 * one event.
 */
extern void ecm_purges_report(const char *handle, int n, const char *reason,
							  XLogRecPtr after);

/* At the start of a stream: has logs, states and so on deleted that have no shape. */
extern void ecm_purges_scan(void);

/* Called by ecm_creations_poll() and ecm_creations_deadline(); see there. */
extern void ecm_purges_poll(EcmTime now, XLogRecPtr received_lsn,
							XLogRecPtr applied_lsn);
extern EcmTime ecm_purges_deadline(void);

/* The stream was lost; ecm_purges_scan() follows. */
extern void ecm_purges_forget(void);

#endif							/* ECM_SHAPE_PURGE_H */
