/*-------------------------------------------------------------------------
 *
 * shape_creation.h
 *	  The manager's part in creating shapes, from the message "create" to the
 *	  message "live", and in ending them.  None of these functions waits.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_CREATION_H
#define ECM_SHAPE_CREATION_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "base/clock.h"
#include "base/stream_message.h"

extern void ecm_creations_init(int stack_index);

/*
 * At the start of each stream: looks in the catalog for shapes that are being created,
 * and for what dropped ones have left behind.  What earlier streams had told of these
 * is forgotten.
 */
extern void ecm_creations_scan(void);

/* A message of our own was met in the stream: an EcmStreamMessageCallback. */
extern void ecm_creations_message(const EcmStreamMessage *message,
								  TransactionId xid, XLogRecPtr after);

/*
 * Moves everything on that can move.  received_lsn: end of the last complete
 * transaction fed to the consumers; applied_lsn: how far they all are.
 */
extern void ecm_creations_poll(EcmTime now, XLogRecPtr received_lsn,
							   XLogRecPtr applied_lsn);

/* When ecm_creations_poll() has to be called again at the latest; 0: no matter. */
extern EcmTime ecm_creations_deadline(void);

/* The stream was lost: forget what is in flight (a scan follows). */
extern void ecm_creations_forget(void);

#endif							/* ECM_SHAPE_CREATION_H */
