/*-------------------------------------------------------------------------
 *
 * waitset.h
 *	  The manager's one wait: latch, sockets that come and go, a deadline.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_WAITSET_H
#define ECM_WAITSET_H

#include "postgres.h"

#include "base/clock.h"
#include "connection/conn.h"

/* Once per round: collect the connections to wait for ... */
extern void ecm_waitset_begin(void);
extern void ecm_waitset_add(const EcmConn *conn);	/* NULL is ignored */

/* For a connection that must not be read from now: waits for its end only. */
extern void ecm_waitset_add_end(const EcmConn *conn);

/*
 * ... and wait until any of them is ready, the latch is set, or the deadline (0:
 * none) has passed.  Ends the process if the postmaster dies.  Resets the latch, so
 * the caller has to look at everything afterwards.  True if the other side has
 * closed the connection that ecm_waitset_add_end() named; on a platform that can't
 * tell, never.
 */
extern bool ecm_waitset_wait(EcmTime deadline);

#endif							/* ECM_WAITSET_H */
