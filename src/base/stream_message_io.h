/*-------------------------------------------------------------------------
 *
 * stream_message_io.h
 *	  Emits the stack's own messages, and reads those that were met.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STREAM_MESSAGE_IO_H
#define ECM_STREAM_MESSAGE_IO_H

#include "postgres.h"

#include "base/stream_message.h"

/* The message's text, palloc'd, truncated to ECM_MAX_MESSAGE bytes. */
extern char *ecm_message_text(const EcmStreamMessage *message);

/* Emits a message in the current transaction; it takes effect at its commit. */
extern void ecm_message_emit(const EcmStreamMessage *message);

/*
 * Reads the text of a message that was met with our prefix.  The result is one
 * palloc'd piece.  NULL: it is unknown or malformed, so nobody obeys it (see
 * stream_message.h).
 */
extern EcmStreamMessage *ecm_message_read(const char *data, Size len);

/* A copy of a message, as one palloc'd piece. */
extern EcmStreamMessage *ecm_message_copy(const EcmStreamMessage *message);

#endif							/* ECM_STREAM_MESSAGE_IO_H */
