/*-------------------------------------------------------------------------
 *
 * shape_reading.h
 *	  The manager's part in creating shapes: tables that are read in pieces.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_READING_H
#define ECM_SHAPE_READING_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "base/clock.h"
#include "base/stream_message.h"
#include "manager/shape_batch.h"

extern void ecm_readings_init(int stack_index);

/* How many bytes of rows may be written to logs now, lest the slot get near a limit. */
extern int64 ecm_readings_max_bytes(void);

/* An active batch goes on as a reading, which has that number in the catalog. */
extern void ecm_reading_start(EcmBatch *b, int64 reading);

/* A message "piece" or "again" was met in the stream. */
extern void ecm_readings_message(const EcmStreamMessage *message, TransactionId xid,
								 XLogRecPtr after);

/* At the start of each stream: readings that nobody needs are to be deleted. */
extern void ecm_readings_scan(void);

/* Called by ecm_creations_poll() and ecm_creations_deadline(); see there. */
extern void ecm_readings_poll(EcmTime now, XLogRecPtr received_lsn,
							  XLogRecPtr applied_lsn);
extern EcmTime ecm_readings_deadline(void);

/* The stream was lost. */
extern void ecm_readings_forget(void);

#endif							/* ECM_SHAPE_READING_H */
