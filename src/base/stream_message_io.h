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

/* The message's text, palloc'd; what is too long of its last part is cut off. */
extern char *ecm_message_text(const EcmStreamMessage *message);

/* Emits it in the current transaction. */
extern void ecm_message_emit(const EcmStreamMessage *message);

/*
 * Reads one that has our prefix, in one palloc'd piece; NULL: nobody is to obey
 * it, see stream_message.h.
 */
extern EcmStreamMessage *ecm_message_read(const char *data, Size len);

/* Likewise, a copy in the current context. */
extern EcmStreamMessage *ecm_message_copy(const EcmStreamMessage *message);

#endif							/* ECM_STREAM_MESSAGE_IO_H */
