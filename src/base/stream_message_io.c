/*-------------------------------------------------------------------------
 *
 * stream_message_io.c
 *	  Emits the stack's own messages, and reads those that were met.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "replication/message.h"

#include "base/compat.h"
#include "base/stack_catalog.h"
#include "base/stream_message_io.h"

char *
ecm_message_text(const EcmStreamMessage *message)
{
	Size		len = ecm_message_write(message, NULL, 0);
	char	   *text = palloc(len + 1);

	Assert(message->nshapes <= ECM_MESSAGE_SHAPES);
	(void) ecm_message_write(message, text, len + 1);

	/* only the text of an error, which may quote a value, can be that long */
	if (len > ECM_MAX_MESSAGE)
		text[pg_mbcliplen(text, len, ECM_MAX_MESSAGE)] = '\0';
	return text;
}

void
ecm_message_emit(const EcmStreamMessage *message)
{
	(void) ecm_log_message(ecm_message_prefix(), ecm_message_text(message));
}

EcmStreamMessage *
ecm_message_read(const char *data, Size len)
{
	int			max_shapes;
	EcmStreamMessage *message;
	EcmMessageShape *shapes;
	char	   *text;

	if (len > ECM_MAX_MESSAGE || strnlen(data, len) < len)
		return NULL;
	max_shapes = ecm_message_max_shapes(data, len);
	message = palloc(MAXALIGN(sizeof(EcmStreamMessage)) +
					 sizeof(EcmMessageShape) * max_shapes + len + 1);
	shapes = (EcmMessageShape *) ((char *) message + MAXALIGN(sizeof(EcmStreamMessage)));
	text = (char *) &shapes[max_shapes];
	memcpy(text, data, len);
	text[len] = '\0';
	if (ecm_message_parse(text, shapes, message))
		return message;
	pfree(message);
	return NULL;
}

EcmStreamMessage *
ecm_message_copy(const EcmStreamMessage *message)
{
	char	   *text = ecm_message_text(message);
	EcmStreamMessage *copy = ecm_message_read(text, strlen(text));

	pfree(text);
	return copy;
}
