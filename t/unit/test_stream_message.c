/*-------------------------------------------------------------------------
 *
 * test_stream_message.c
 *	  The stack's own messages: what is written is read, and nothing else is.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <string.h>

#include "base/stream_message.h"
#include "unit.h"

#define LENGTHOF(array)	((int) (sizeof(array) / sizeof((array)[0])))

#define MAX_TEXT	8192
#define MAX_SHAPES	(MAX_TEXT + 1)

static EcmMessageShape read_shapes[MAX_SHAPES];
static EcmStreamMessage read;
static char written[MAX_TEXT];

static bool
parse(const char *text)
{
	return ecm_message_max_shapes(text, strlen(text)) <= MAX_SHAPES &&
		ecm_message_parse(text, read_shapes, &read);
}

static bool
same_text(const char *a, const char *b)
{
	return (a == NULL || b == NULL) ? a == b : strcmp(a, b) == 0;
}

static bool
same(const EcmStreamMessage *a, const EcmStreamMessage *b)
{
	int			i;

	if (a->kind != b->kind || a->nshapes != b->nshapes || a->number != b->number ||
		a->reading != b->reading || a->relation != b->relation || a->owner != b->owner ||
		strcmp(a->handle, b->handle) != 0 || !same_text(a->text, b->text) ||
		a->snapshot_len != b->snapshot_len ||
		(a->snapshot_len > 0 &&
		 memcmp(a->snapshot, b->snapshot, a->snapshot_len) != 0))
		return false;
	for (i = 0; i < a->nshapes; i++)
		if (a->shapes[i].id != b->shapes[i].id ||
			a->shapes[i].generation != b->shapes[i].generation)
			return false;
	return true;
}

static EcmMessageShape one[] =
{
	{
		1, 0
	}
};
static EcmMessageShape last[] =
{
	{
		INT64_MAX, 0
	}
};
static EcmMessageShape one_generation[] =
{
	{
		7, 1
	}
};
static EcmMessageShape generations[] =
{
	{
		1, 0
	},
	{
		INT64_MAX, INT32_MAX
	},
	{
		42, 10
	}
};
static EcmMessageShape ids[] =
{
	{
		1, 0
	},
	{
		INT64_MAX, 0
	},
	{
		42, 0
	},
	{
		42, 0
	}
};

#define SHAPES(list)	.nshapes = LENGTHOF(list), .shapes = (list)
#define SNAPSHOT(s)		.snapshot = (s), .snapshot_len = sizeof(s) - 1

static const struct
{
	EcmStreamMessage message;
	const char *text;
}			messages[] =
{
	{{.kind = ECM_MESSAGE_CREATE, SHAPES(one), .relation = 1, .handle = "h"},
	"create 1 1 h"},
	{{.kind = ECM_MESSAGE_CREATE, SHAPES(last), .relation = UINT32_MAX,
	.handle = "4294967295-1234567890123456789012345678"},
	"create 9223372036854775807 4294967295 4294967295-1234567890123456789012345678"},
	{{.kind = ECM_MESSAGE_CAPTURE, SHAPES(one_generation)}, "capture 0 7 1"},
	{{.kind = ECM_MESSAGE_CAPTURE, SHAPES(generations), .number = INT64_MAX},
	"capture 9223372036854775807 1 0 9223372036854775807 2147483647 42 10"},
	{{.kind = ECM_MESSAGE_CAPTURE, SHAPES(one_generation), .number = INT64_MIN},
	"capture -9223372036854775808 7 1"},
	{{.kind = ECM_MESSAGE_PIECE, SHAPES(one_generation), .reading = 1, .number = 1},
	"piece 1 1 7 1"},
	{{.kind = ECM_MESSAGE_PIECE, SHAPES(generations), .reading = INT64_MAX,
	.number = INT32_MAX},
	"piece 9223372036854775807 2147483647 1 0 9223372036854775807 2147483647 42 10"},
	{{.kind = ECM_MESSAGE_AGAIN, SHAPES(one_generation), .reading = 1}, "again 1 7 1"},
	{{.kind = ECM_MESSAGE_AGAIN, SHAPES(generations), .reading = INT64_MAX},
	"again 9223372036854775807 1 0 9223372036854775807 2147483647 42 10"},
	{{.kind = ECM_MESSAGE_LIVE, SHAPES(one_generation), SNAPSHOT("3:3:")},
	"live 3:3: 7 1"},
	{{.kind = ECM_MESSAGE_LIVE, SHAPES(generations), SNAPSHOT("750:760:751,755")},
	"live 750:760:751,755 1 0 9223372036854775807 2147483647 42 10"},
	{{.kind = ECM_MESSAGE_FAIL, SHAPES(one_generation), .text = "22012: division by zero"},
	"fail 7 1 22012: division by zero"},
	{{.kind = ECM_MESSAGE_FAIL, SHAPES(one_generation), .text = ""}, "fail 7 1 "},
	{{.kind = ECM_MESSAGE_FAIL, SHAPES(one_generation), .text = " fail 7 1 \n\t\"\xc3\xa4\xff, "},
	"fail 7 1  fail 7 1 \n\t\"\xc3\xa4\xff, "},
	{{.kind = ECM_MESSAGE_DROP, SHAPES(one), .handle = "12-1", .text = "the table was dropped"},
	"drop 12-1 1 the table was dropped"},
	{{.kind = ECM_MESSAGE_DROP, SHAPES(ids), .handle = "12-1", .text = ""},
	"drop 12-1 1,9223372036854775807,42,42 "},
	{{.kind = ECM_MESSAGE_LOST, SHAPES(ids), .handle = "12-1", .text = "1,2 ,3"},
	"lost 12-1 1,9223372036854775807,42,42 1,2 ,3"},
	{{.kind = ECM_MESSAGE_RESYNC, SHAPES(ids), .handle = "12-1", .text = "the table was truncated"},
	"resync 12-1 1,9223372036854775807,42,42 the table was truncated"},
	{{.kind = ECM_MESSAGE_OWNER, SHAPES(last), .owner = 10},
	"owner 9223372036854775807 10"},
	{{.kind = ECM_MESSAGE_UNSENDABLE, .relation = 16384, .text = "a column"},
	"unsendable 16384 a column"},
	{{.kind = ECM_MESSAGE_UNSENDABLE, .relation = UINT32_MAX, .text = ""},
	"unsendable 4294967295 "},
	{{.kind = ECM_MESSAGE_GIANT}, "giant"}
};

static void
test_round_trip(void)
{
	bool		seen[ECM_MESSAGE_GIANT + 1] = {false};
	int			i;

	for (i = 0; i < LENGTHOF(messages); i++)
	{
		const EcmStreamMessage *message = &messages[i].message;
		size_t		len = strlen(messages[i].text);

		CHECK(ecm_message_write(message, written, sizeof(written)) == len);
		if (!CHECK(strcmp(written, messages[i].text) == 0))
			printf("#   %s\n#   %s\n", written, messages[i].text);
		CHECK(parse(messages[i].text) && same(&read, message));
		seen[message->kind] = true;
	}
	for (i = 0; i <= ECM_MESSAGE_GIANT; i++)
		CHECK(seen[i]);
	checked("every kind of message is written, and read as it was");
}

static void
test_room(void)
{
	int			i;
	size_t		size;

	for (i = 0; i < LENGTHOF(messages); i++)
		for (size = 0; size <= strlen(messages[i].text) + 2; size++)
		{
			size_t		len = strlen(messages[i].text);
			size_t		fits = size == 0 ? 0 : len < size - 1 ? len : size - 1;

			memset(written, '#', sizeof(written));
			CHECK(ecm_message_write(&messages[i].message, written, size) == len);
			CHECK(memcmp(written, messages[i].text, fits) == 0);
			CHECK(size == 0 || written[fits] == '\0');
			CHECK(written[size] == '#');
		}
	checked("no more is written than there is room for");
}

/* What is read is written as the same text, and bears what its users rely on. */
static bool
is_sane(const char *text)
{
	int			i;
	bool		generations = read.kind == ECM_MESSAGE_CAPTURE ||
	read.kind == ECM_MESSAGE_PIECE || read.kind == ECM_MESSAGE_AGAIN ||
	read.kind == ECM_MESSAGE_LIVE || read.kind == ECM_MESSAGE_FAIL;
	bool		one_shape = read.kind == ECM_MESSAGE_CREATE ||
	read.kind == ECM_MESSAGE_FAIL || read.kind == ECM_MESSAGE_OWNER;
	bool		none = read.kind == ECM_MESSAGE_UNSENDABLE || read.kind == ECM_MESSAGE_GIANT;
	bool		has_text = read.kind == ECM_MESSAGE_FAIL || read.kind == ECM_MESSAGE_DROP ||
	read.kind == ECM_MESSAGE_LOST || read.kind == ECM_MESSAGE_RESYNC ||
	read.kind == ECM_MESSAGE_UNSENDABLE;

	if (ecm_message_write(&read, written, sizeof(written)) != strlen(text) ||
		strcmp(written, text) != 0)
		return false;
	if (none ? read.nshapes != 0 : one_shape ? read.nshapes != 1 : read.nshapes < 1)
		return false;
	if (read.nshapes > ecm_message_max_shapes(text, strlen(text)))
		return false;
	for (i = 0; i < read.nshapes; i++)
		if (read.shapes[i].id <= 0 || read.shapes[i].generation < 0 ||
			(!generations && read.shapes[i].generation != 0))
			return false;
	if ((read.reading > 0) != (read.kind == ECM_MESSAGE_PIECE || read.kind == ECM_MESSAGE_AGAIN) ||
		(read.kind == ECM_MESSAGE_PIECE && (read.number < 1 || read.number > INT32_MAX)))
		return false;
	return (read.text != NULL) == has_text &&
		(read.snapshot_len > 0) == (read.kind == ECM_MESSAGE_LIVE);
}

static void
test_truncation(void)
{
	int			i;
	size_t		len;
	char		text[MAX_TEXT];

	for (i = 0; i < LENGTHOF(messages); i++)
	{
		const EcmStreamMessage *message = &messages[i].message;
		size_t		full = strlen(messages[i].text);

		for (len = 0; len < full; len++)
		{
			bool		good;

			memcpy(text, messages[i].text, len);
			text[len] = '\0';
			good = parse(text);
			CHECK(!good || is_sane(text));
			/* only what people are to read may be shorter */
			CHECK(message->text == NULL || good == (len >= full - strlen(message->text)));
		}
	}
	checked("a message that is cut off is refused, or another one in good order");

	for (i = 0; i < LENGTHOF(messages); i++)
		for (len = 0; len < strlen(messages[i].text); len++)
		{
			int			c;

			strcpy(text, messages[i].text);
			for (c = 1; c < 256; c++)
			{
				text[len] = (char) c;
				if (parse(text))
					CHECK(is_sane(text));
			}
			/* left out, and doubled */
			strcpy(text, messages[i].text);
			memmove(text + len, text + len + 1, strlen(text + len));
			if (parse(text))
				CHECK(is_sane(text));
			strcpy(text, messages[i].text);
			memmove(text + len + 1, text + len, strlen(text + len) + 1);
			if (parse(text))
				CHECK(is_sane(text));
		}
	checked("... and so is one with any byte changed, left out or doubled");
}

static const char *const malformed[] = {
	"", " ", "giant ", "giants", "gian", "GIANT", "giant\n", " giant", "foo", "foo 1",
	"truncate 16384", "mismatch 16384 0",
	"create", "create ", "create 1", "create 1 1", "create 1 1 ", "create 0 1 h", "create 1 0 h",
	"create -1 1 h", "create +1 1 h", "create 01 1 h", "create  1 1 h", "create 1 1 h ",
	"create 1 1 h x", "create 1 1 h\n", "create 9223372036854775808 1 h",
	"create 1 4294967296 h", "create 99999999999999999999999 1 h", "create 1 1x h",
	"create 1 1 1234567890123456789012345678901234567890",
	"capture", "capture 1", "capture 1 ", "capture 1 1", "capture 1 1 ", "capture 1 1 x",
	"capture 1 x 1", "capture x 1 1", "capture 1 1 1 ", "capture 1 1 1 2", "capture - 1 1",
	"capture -0 1 1", "capture 1 1 -1", "capture 1 1 2147483648", "capture 1 1 1,2 1",
	"capture 9223372036854775808 1 1", "capture -9223372036854775809 1 1", "capture 1 0 1",
	"piece", "piece ", "piece 1", "piece 1 1", "piece 1 1 ", "piece 1 1 1", "piece 1 1 1 x",
	"piece 0 1 1 1", "piece 1 0 1 1", "piece -1 1 1 1", "piece 1 -1 1 1", "piece 1 1 0 1",
	"piece 1 2147483648 1 1", "piece 9223372036854775808 1 1 1", "piece 1 1 1 1 ",
	"piece 1 01 1 1", "again", "again ", "again 1", "again 1 1", "again 1 1 1 ",
	"again 0 1 1", "again -1 1 1", "again 1 0 1", "again 1 1 1 1",
	"live", "live ", "live x", "live 1:1:", "live 1:1: ", "live 1:1: 1", "live  1 1",
	"live 1:1:x 1 1", "live 1:1: 1 1 ", "live 1:1: 1 x", "live 1 1 1 1",
	"fail", "fail ", "fail 1", "fail 1 1", "fail 1 x ", "fail x 1 y", "fail 0 1 x", "fail 1 01 x",
	"drop", "drop ", "drop x", "drop x ", "drop x 1", "drop x 1,", "drop x 1, reason",
	"drop x ,1 reason", "drop x 1,,2 reason", "drop x 1;2 reason", "drop x reason",
	"drop  1 reason", "drop x 0 reason", "lost", "lost x", "lost x 1", "lost x 1,,, ",
	"owner", "owner 1", "owner 1 ", "owner 1 0", "owner 1 10 ", "owner 1 -1", "owner x 1",
	"unsendable", "unsendable ", "unsendable 1", "unsendable x y", "unsendable 0 y",
	"unsendable -1 y"
};

static void
test_malformed(void)
{
	int			i;

	for (i = 0; i < LENGTHOF(malformed); i++)
		if (!CHECK(!parse(malformed[i])))
			printf("#   \"%s\"\n", malformed[i]);
	checked("what is malformed is refused");
}

static void
test_garbage(void)
{
	static const char *const pieces[] = {
		"create", "capture", "piece", "again", "live", "fail", "drop", "lost", "owner",
		"unsendable", "giant",
		" ", " ", " ", " ", ",", "1", "0", "42", "1:1:", "9223372036854775807", "-", "x", "\n"
	};
	char		text[MAX_TEXT];
	int			accepted = 0;
	int			i;
	int			j;

	random_start(4711);
	for (i = 0; i < 200000; i++)
	{
		int			n = (int) random_below(12);

		text[0] = '\0';
		for (j = 0; j < n; j++)
			strcat(text, pieces[random_below(LENGTHOF(pieces))]);
		if (!parse(text))
			continue;
		accepted++;
		if (!CHECK(is_sane(text)))
			printf("#   \"%s\"\n", text);
	}
	CHECK(accepted > 100);
	for (i = 0; i < 100000; i++)
	{
		int			n = (int) random_below(40);

		for (j = 0; j < n; j++)
			text[j] = (char) (1 + random_below(255));
		text[n] = '\0';
		if (parse(text))
			CHECK(is_sane(text));
	}
	checked("garbage is refused, or in good order");
}

static void
test_many_shapes(void)
{
	static EcmMessageShape shapes[ECM_MESSAGE_SHAPES + 1];
	EcmStreamMessage message = {.kind = ECM_MESSAGE_DROP, .nshapes = ECM_MESSAGE_SHAPES,
	.shapes = shapes, .handle = "x", .text = "reason"};
	int			i;

	for (i = 0; i < LENGTHOF(shapes); i++)
		shapes[i].id = i + 1;
	CHECK(ecm_message_write(&message, written, sizeof(written)) < sizeof(written));
	CHECK(parse(written) && same(&read, &message));
	message.kind = ECM_MESSAGE_CAPTURE;
	message.handle[0] = '\0';
	message.text = NULL;
	message.number = 1;
	for (i = 0; i < LENGTHOF(shapes); i++)
		shapes[i].generation = i % 10;
	CHECK(ecm_message_write(&message, written, sizeof(written)) < sizeof(written));
	CHECK(parse(written) && same(&read, &message));
	checked("a thousand shapes in one message");

	message.nshapes++;
	CHECK(ecm_message_write(&message, written, sizeof(written)) < sizeof(written));
	CHECK(ecm_message_max_shapes(written, strlen(written)) == ECM_MESSAGE_SHAPES &&
		  !parse(written));
	message.kind = ECM_MESSAGE_LOST;
	strcpy(message.handle, "x");
	message.text = "reason";
	CHECK(ecm_message_write(&message, written, sizeof(written)) < sizeof(written));
	CHECK(!parse(written));
	checked("... and no more, nor room for more");
}

static void
test_walsenders(void)
{
	char		text[] = "giant unsendable 1 x";

	ok(ecm_message_is_walsenders("giant", 5) &&
	   ecm_message_is_walsenders("unsendable 1 x", 14) &&
	   ecm_message_is_walsenders("unsendable", 10) &&
	   ecm_message_is_walsenders(text, 5) && ecm_message_is_walsenders(text, 6) &&
	   !ecm_message_is_walsenders(text, 4) &&
	   !ecm_message_is_walsenders("giants", 6) &&
	   !ecm_message_is_walsenders("unsendables 1", 13) &&
	   !ecm_message_is_walsenders("drop x 1 giant", 14) &&
	   !ecm_message_is_walsenders("", 0),
	   "what only the walsender may send is known by its first word");
}

void
test_stream_message(void)
{
	test_round_trip();
	test_room();
	test_truncation();
	test_malformed();
	test_garbage();
	test_many_shapes();
	test_walsenders();
}
