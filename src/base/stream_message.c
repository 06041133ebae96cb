/*-------------------------------------------------------------------------
 *
 * stream_message.c
 *	  The stack's own messages in the replication stream, as texts.
 *
 * Any user may emit a logical message, so the parser takes nothing for
 * granted.  It accepts one form of each message only: numbers in their shortest
 * form, one blank between two fields.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "base/stream_message.h"

#define LENGTHOF(array)	((int) (sizeof(array) / sizeof((array)[0])))

/* The word that a message begins with, by EcmMessageKind. */
static const char *const words[] = {
	"create", "capture", "piece", "again", "live", "fail", "drop", "lost", "resync", "owner",
	"unsendable", "giant"
};

/* --------------------------------------------------------------- parsing -- */

/*
 * The take_*() functions parse one field.  They advance *p past it; false: the
 * text has something else there.
 */
static bool
take(const char **p, char c)
{
	if (**p != c)
		return false;
	(*p)++;
	return true;
}

/* A number up to 'max', without sign and without leading zeros. */
static bool
take_number(const char **p, uint64_t max, uint64_t *number)
{
	const char *digits = *p;

	*number = 0;
	while (**p >= '0' && **p <= '9')
	{
		unsigned	digit = (unsigned) (**p - '0');

		if (*number > (max - digit) / 10)
			return false;
		*number = *number * 10 + digit;
		(*p)++;
	}
	return *p > digits && (*digits != '0' || *p == digits + 1);
}

static bool
take_int64(const char **p, int64_t *number)
{
	bool		negative = take(p, '-');
	uint64_t	value;

	if (!take_number(p, (uint64_t) INT64_MAX + (negative ? 1 : 0), &value) ||
		(negative && value == 0))
		return false;
	if (negative)
		*number = -(int64_t) (value - 1) - 1;
	else
		*number = (int64_t) value;
	return true;
}

static bool
take_oid(const char **p, uint32_t *oid)
{
	uint64_t	value;

	if (!take_number(p, UINT32_MAX, &value) || value == 0)
		return false;
	*oid = (uint32_t) value;
	return true;
}

/* A shape's id, from 1 on, and, if it has one, its generation, from 0 on. */
static bool
take_shape(const char **p, bool has_generation, EcmStreamMessage *message)
{
	EcmMessageShape *shape = &message->shapes[message->nshapes];
	uint64_t	id;
	uint64_t	generation = 0;

	if (message->nshapes == ECM_MESSAGE_SHAPES)
		return false;
	if (!take_number(p, INT64_MAX, &id) || id == 0)
		return false;
	if (has_generation &&
		(!take(p, ' ') || !take_number(p, INT32_MAX, &generation)))
		return false;
	shape->id = (int64_t) id;
	shape->generation = (int32_t) generation;
	message->nshapes++;
	return true;
}

/* One or more shapes with generations, to the end of the text. */
static bool
take_shapes(const char **p, EcmStreamMessage *message)
{
	do
	{
		if (!take(p, ' ') || !take_shape(p, true, message))
			return false;
	} while (**p != '\0');
	return true;
}

/* One or more ids, separated by commas. */
static bool
take_ids(const char **p, EcmStreamMessage *message)
{
	do
	{
		if (!take_shape(p, false, message))
			return false;
	} while (take(p, ','));
	return true;
}

/* The rest of the text, which may be empty. */
static bool
take_text(const char **p, EcmStreamMessage *message)
{
	message->text = *p;
	*p += strlen(*p);
	return true;
}

static bool
take_handle(const char **p, EcmStreamMessage *message)
{
	size_t		len = 0;

	while ((unsigned char) (*p)[len] > ' ')
		len++;
	if (len == 0 || len >= ECM_HANDLE_LEN)
		return false;
	memcpy(message->handle, *p, len);
	message->handle[len] = '\0';
	*p += len;
	return true;
}

/* A reading's number, from 1 on. */
static bool
take_reading(const char **p, EcmStreamMessage *message)
{
	return take_int64(p, &message->reading) && message->reading > 0;
}

/* A piece's number, from 1 on. */
static bool
take_piece(const char **p, EcmStreamMessage *message)
{
	return take_int64(p, &message->number) &&
		message->number > 0 && message->number <= INT32_MAX;
}

static bool
take_snapshot(const char **p, EcmStreamMessage *message)
{
	message->snapshot = *p;
	message->snapshot_len = strspn(*p, "0123456789:,");
	*p += message->snapshot_len;
	return message->snapshot_len > 0;
}

/*
 * The kind of a message by its first word, which ends at a blank or at the end
 * of the text; -1: no kind has that word.
 */
static int
find_kind(const char *text, size_t len)
{
	int			i;

	for (i = 0; i < LENGTHOF(words); i++)
	{
		size_t		n = strlen(words[i]);

		if (len >= n && memcmp(text, words[i], n) == 0 &&
			(len == n || text[n] == ' '))
			return i;
	}
	return -1;
}

/* The fields after the word. */
static bool
take_contents(const char **p, EcmStreamMessage *message)
{
	switch (message->kind)
	{
		case ECM_MESSAGE_CREATE:
			return take(p, ' ') && take_shape(p, false, message) &&
				take(p, ' ') && take_oid(p, &message->relation) &&
				take(p, ' ') && take_handle(p, message);
		case ECM_MESSAGE_CAPTURE:
			return take(p, ' ') && take_int64(p, &message->number) &&
				take_shapes(p, message);
		case ECM_MESSAGE_PIECE:
			return take(p, ' ') && take_reading(p, message) &&
				take(p, ' ') && take_piece(p, message) &&
				take_shapes(p, message);
		case ECM_MESSAGE_AGAIN:
			return take(p, ' ') && take_reading(p, message) &&
				take_shapes(p, message);
		case ECM_MESSAGE_LIVE:
			return take(p, ' ') && take_snapshot(p, message) &&
				take_shapes(p, message);
		case ECM_MESSAGE_FAIL:
			return take(p, ' ') && take_shape(p, true, message) &&
				take(p, ' ') && take_text(p, message);
		case ECM_MESSAGE_DROP:
		case ECM_MESSAGE_LOST:
		case ECM_MESSAGE_RESYNC:
			return take(p, ' ') && take_handle(p, message) &&
				take(p, ' ') && take_ids(p, message) &&
				take(p, ' ') && take_text(p, message);
		case ECM_MESSAGE_OWNER:
			return take(p, ' ') && take_shape(p, false, message) &&
				take(p, ' ') && take_oid(p, &message->owner);
		case ECM_MESSAGE_UNSENDABLE:
			return take(p, ' ') && take_oid(p, &message->relation) &&
				take(p, ' ') && take_text(p, message);
		case ECM_MESSAGE_GIANT:
			return true;
	}
	return false;
}

int
ecm_message_max_shapes(const char *text, size_t len)
{
	int			n = 1;

	for (; len > 0 && n < ECM_MESSAGE_SHAPES; text++, len--)
		if (*text == ' ' || *text == ',')
			n++;
	return n;
}

bool
ecm_message_parse(const char *text, EcmMessageShape *shapes,
				  EcmStreamMessage *message)
{
	int			kind = find_kind(text, strlen(text));
	const char *p = text;

	memset(message, 0, sizeof(*message));
	message->shapes = shapes;
	if (kind < 0)
		return false;
	message->kind = (EcmMessageKind) kind;
	p += strlen(words[kind]);
	return take_contents(&p, message) && *p == '\0';
}

bool
ecm_message_is_walsenders(const char *text, size_t len)
{
	int			kind = find_kind(text, len);

	return kind == ECM_MESSAGE_GIANT || kind == ECM_MESSAGE_UNSENDABLE;
}

/* --------------------------------------------------------------- writing -- */

typedef struct Output
{
	char	   *to;
	size_t		size;
	size_t		len;			/* of the whole text, also of the part that
								 * did not fit */
} Output;

static void
put_bytes(Output *out, const char *bytes, size_t n)
{
	if (out->len < out->size)
		memcpy(out->to + out->len, bytes,
			   n < out->size - out->len ? n : out->size - out->len);
	out->len += n;
}

static void
put_text(Output *out, const char *text)
{
	if (text != NULL)
		put_bytes(out, text, strlen(text));
}

static void
put_number(Output *out, uint64_t number)
{
	char		digits[20];
	size_t		n = sizeof(digits);

	do
	{
		digits[--n] = (char) ('0' + number % 10);
		number /= 10;
	} while (number > 0);
	put_bytes(out, digits + n, sizeof(digits) - n);
}

static void
put_int64(Output *out, int64_t number)
{
	if (number < 0)
		put_bytes(out, "-", 1);
	put_number(out, number < 0 ? UINT64_C(0) - (uint64_t) number : (uint64_t) number);
}

static void
put_shapes(Output *out, const EcmStreamMessage *message, bool with_generations,
		   const char *before_others)
{
	int			i;

	for (i = 0; i < message->nshapes; i++)
	{
		put_text(out, i > 0 ? before_others : " ");
		put_int64(out, message->shapes[i].id);
		if (!with_generations)
			continue;
		put_text(out, " ");
		put_int64(out, message->shapes[i].generation);
	}
}

static void
put_contents(Output *out, const EcmStreamMessage *message)
{
	switch (message->kind)
	{
		case ECM_MESSAGE_CREATE:
			put_shapes(out, message, false, " ");
			put_text(out, " ");
			put_number(out, message->relation);
			put_text(out, " ");
			put_text(out, message->handle);
			break;
		case ECM_MESSAGE_CAPTURE:
			put_text(out, " ");
			put_int64(out, message->number);
			put_shapes(out, message, true, " ");
			break;
		case ECM_MESSAGE_PIECE:
			put_text(out, " ");
			put_int64(out, message->reading);
			put_text(out, " ");
			put_int64(out, message->number);
			put_shapes(out, message, true, " ");
			break;
		case ECM_MESSAGE_AGAIN:
			put_text(out, " ");
			put_int64(out, message->reading);
			put_shapes(out, message, true, " ");
			break;
		case ECM_MESSAGE_LIVE:
			put_text(out, " ");
			put_bytes(out, message->snapshot, message->snapshot_len);
			put_shapes(out, message, true, " ");
			break;
		case ECM_MESSAGE_FAIL:
			put_shapes(out, message, true, " ");
			put_text(out, " ");
			put_text(out, message->text);
			break;
		case ECM_MESSAGE_DROP:
		case ECM_MESSAGE_LOST:
		case ECM_MESSAGE_RESYNC:
			put_text(out, " ");
			put_text(out, message->handle);
			put_shapes(out, message, false, ",");
			put_text(out, " ");
			put_text(out, message->text);
			break;
		case ECM_MESSAGE_OWNER:
			put_shapes(out, message, false, " ");
			put_text(out, " ");
			put_number(out, message->owner);
			break;
		case ECM_MESSAGE_UNSENDABLE:
			put_text(out, " ");
			put_number(out, message->relation);
			put_text(out, " ");
			put_text(out, message->text);
			break;
		case ECM_MESSAGE_GIANT:
			break;
	}
}

size_t
ecm_message_write(const EcmStreamMessage *message, char *to, size_t size)
{
	Output		out = {to, size > 0 ? size - 1 : 0, 0};

	put_text(&out, words[message->kind]);
	put_contents(&out, message);
	if (size > 0)
		to[out.len < out.size ? out.len : out.size] = '\0';
	return out.len;
}
