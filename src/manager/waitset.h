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

/* Collect what to wait for ... */
extern void ecm_waitset_begin(void);
extern void ecm_waitset_add(const EcmConn *conn);	/* NULL is ignored */

/* For a connection that must not be read from now: its end only. */
extern void ecm_waitset_add_end(const EcmConn *conn);

/*
 * ... and wait until any of it is ready, the latch is set, or the deadline (0:
 * none) has passed.  Exits if the postmaster dies.  Resets the latch.  True if
 * the other side has closed the connection that ecm_waitset_add_end() named,
 * where the platform can tell.
 */
extern bool ecm_waitset_wait(EcmTime deadline);

#endif							/* ECM_WAITSET_H */
