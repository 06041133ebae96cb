/*-------------------------------------------------------------------------
 *
 * test_shape_chunk.c
 *	  Packing and unpacking of shape-log entries, offsets, transaction ids.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shape/shape_chunk.h"
#include "unit.h"

#define MAX_VALUES	300
#define BUFFER_SIZE	(16 * 1024 * 1024)

static char *buffer;
static EcmValue new_values[MAX_VALUES];
static EcmValue old_values[MAX_VALUES];

static EcmValue
text_value(const char *text, size_t len)
{
	EcmValue	v = {ECM_VALUE_TEXT, text, (uint32_t) len};

	return v;
}

static EcmValue
other_value(EcmValueKind kind)
{
	EcmValue	v = {kind, NULL, 0};

	return v;
}

static bool
same_values(const EcmValue *a, const EcmValue *b, int n)
{
	int			i;

	for (i = 0; i < n; i++)
	{
		if (a[i].kind != b[i].kind || a[i].len != b[i].len)
			return false;
		if (a[i].len > 0 && memcmp(a[i].text, b[i].text, a[i].len) != 0)
			return false;
	}
	return true;
}

/* A reader over memory of exactly that size, watched by a sanitizer. */
static char *
start_reading(EcmChunkReader *r, const char *data, size_t len, int max_values)
{
	char	   *copy = malloc(len > 0 ? len : 1);

	memcpy(copy, data, len);
	ecm_chunk_reader_init(r, copy, len, new_values, old_values, max_values);
	return copy;
}

static void
test_format(void)
{
	static const char expected[] =
	"T\x08\x07\x06\x05\x04\x03\x02\x01"
	"\x2A\0\0\0\0\0\0\0"
	"\x05\0\0\0\0\0\0\0"
	"U\x05\x00\x01\x06" "ab" "\x02\x03"
	"\x01\x04";
	EcmValue	values[5];
	EcmValue	old;
	char	   *end;

	values[0] = other_value(ECM_VALUE_NULL);
	values[1] = other_value(ECM_VALUE_UNCHANGED);
	values[2] = text_value("ab", 2);
	values[3] = other_value(ECM_VALUE_ABSENT);
	values[4] = other_value(ECM_VALUE_GONE);
	old = text_value("", 0);
	end = ecm_chunk_put_txn(buffer, UINT64_C(0x0102030405060708), 42, 5);
	is_int(end - buffer, ECM_CHUNK_TXN_SIZE, "a transaction record's size");
	end = ecm_chunk_put_op(end, ECM_OP_UPDATE);
	end = ecm_chunk_put_values(end, values, 5);
	end = ecm_chunk_put_values(end, &old, 1);
	ok((size_t) (end - buffer) == sizeof(expected) - 1 &&
	   memcmp(buffer, expected, sizeof(expected) - 1) == 0,
	   "the bytes are those that shape_chunk.h describes");
}

/* One text of each size around the points where the varint grows. */
static void
test_sizes(void)
{
	static const uint32_t bounds[][2] = {
		{0, 3}, {120, 135}, {16376, 16395}, {500000, 500001}
	};
	char	   *text = malloc(BUFFER_SIZE);
	size_t		i;
	uint32_t	len;

	random_start(11);
	for (i = 0; i < BUFFER_SIZE; i++)
		text[i] = (char) random_uint64();

	for (i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++)
		for (len = bounds[i][0]; len <= bounds[i][1]; len++)
		{
			EcmValue	v = text_value(text, len);
			EcmChunkReader r;
			char	   *start;
			char	   *end;
			char	   *copy;

			start = ecm_chunk_put_txn(buffer, 1, 2, 0);
			start = ecm_chunk_put_op(start, ECM_OP_INSERT);
			end = ecm_chunk_put_values(start, &v, 1);
			CHECK(ecm_chunk_values_size(&v, 1) == (size_t) (end - start));

			copy = start_reading(&r, buffer, end - buffer, 1);
			CHECK(ecm_chunk_next(&r) == ECM_CHUNK_ENTRY);
			CHECK(r.n_new == 1 && r.n_old == 0);
			CHECK(same_values(&v, new_values, 1));
			CHECK(ecm_chunk_next(&r) == ECM_CHUNK_END);
			free(copy);
		}
	checked("texts of every size around the varint's steps come back whole");

	{
		EcmValue	v = text_value(text, UINT32_MAX);

		is_int((int64_t) ecm_chunk_values_size(&v, 1),
			   INT64_C(1) + 5 + UINT32_MAX, "the longest text's size is right");
	}
	free(text);
}

static int
random_values(EcmValue *values, const char *text)
{
	int			n = (int) random_below(random_below(10) == 0 ? MAX_VALUES : 6);
	int			i;

	for (i = 0; i < n; i++)
	{
		uint32_t	kind = random_below(7);

		if (kind < ECM_VALUE_TEXT)
			values[i] = other_value((EcmValueKind) kind);
		else
		{
			uint32_t	len = random_below(kind == ECM_VALUE_TEXT ? 300 : 12);

			values[i] = text_value(text + random_below(100), len);
		}
	}
	return n;
}

/* A sequence of random transactions and entries is read as it was written. */
static void
test_round_trips(void)
{
	static const EcmOp ops[] = {ECM_OP_INSERT, ECM_OP_UPDATE, ECM_OP_DELETE};
	static EcmValue wrote_new[50][MAX_VALUES];
	static EcmValue wrote_old[50][MAX_VALUES];
	char		text[400];
	int			round;
	size_t		i;

	random_start(5);
	for (i = 0; i < sizeof(text); i++)
		text[i] = (char) random_uint64();

	for (round = 0; round < 300; round++)
	{
		struct
		{
			EcmOp		op;
			uint64_t	lsn,
						xid,
						opno;
			int			n_new,
						n_old;
		}			wrote[50];
		int			n = (int) random_below(50);
		uint64_t	lsn = 0,
					xid = 0,
					opno = 0;
		EcmChunkReader r;
		char	   *to = buffer;
		char	   *copy;
		int			e;

		for (e = 0; e < n; e++)
		{
			char	   *start;

			if (e == 0 || random_below(4) == 0)
			{
				lsn = random_uint64();
				xid = random_uint64();
				opno = random_uint64();
				opno >>= random_below(64);
				to = ecm_chunk_put_txn(to, lsn, xid, opno);
			}
			if (random_below(3) == 0)
			{
				uint64_t	nops = 1 + (uint32_t) random_uint64() % UINT32_MAX;

				nops = (nops >> random_below(32)) | 1;
				start = to;
				to = ecm_chunk_put_skip(to, nops);
				CHECK(ecm_chunk_skip_size(nops) == (size_t) (to - start));
				opno += nops;
			}
			wrote[e].op = ops[random_below(3)];
			wrote[e].lsn = lsn;
			wrote[e].xid = xid;
			wrote[e].opno = opno++;
			wrote[e].n_new = 0;
			wrote[e].n_old = 0;
			to = ecm_chunk_put_op(to, wrote[e].op);
			if (wrote[e].op != ECM_OP_DELETE)
			{
				wrote[e].n_new = random_values(wrote_new[e], text);
				start = to;
				to = ecm_chunk_put_values(to, wrote_new[e], wrote[e].n_new);
				CHECK(ecm_chunk_values_size(wrote_new[e], wrote[e].n_new) ==
					  (size_t) (to - start));
			}
			if (wrote[e].op != ECM_OP_INSERT)
			{
				wrote[e].n_old = random_values(wrote_old[e], text);
				start = to;
				to = ecm_chunk_put_values(to, wrote_old[e], wrote[e].n_old);
				CHECK(ecm_chunk_values_size(wrote_old[e], wrote[e].n_old) ==
					  (size_t) (to - start));
			}
		}

		copy = start_reading(&r, buffer, to - buffer, MAX_VALUES);
		for (e = 0; e < n; e++)
		{
			CHECK(ecm_chunk_next(&r) == ECM_CHUNK_ENTRY);
			CHECK(r.op == wrote[e].op);
			CHECK(r.lsn == wrote[e].lsn && r.xid == wrote[e].xid &&
				  r.opno == wrote[e].opno);
			CHECK(r.n_new == wrote[e].n_new && r.n_old == wrote[e].n_old);
			CHECK(same_values(new_values, wrote_new[e], r.n_new));
			CHECK(same_values(old_values, wrote_old[e], r.n_old));
		}
		CHECK(ecm_chunk_next(&r) == ECM_CHUNK_END);
		CHECK(ecm_chunk_next(&r) == ECM_CHUNK_END);
		free(copy);
	}
	checked("random chunks are read as they were written");
}

static EcmChunkResult
read_all(const char *data, size_t len, int max_values, int *entries)
{
	EcmChunkReader r;
	EcmChunkResult result;
	char	   *copy = start_reading(&r, data, len, max_values);
	uint64_t	sum = 0;

	*entries = 0;
	while ((result = ecm_chunk_next(&r)) == ECM_CHUNK_ENTRY)
	{
		int			i;

		(*entries)++;
		CHECK(r.n_new >= 0 && r.n_new <= max_values);
		CHECK(r.n_old >= 0 && r.n_old <= max_values);

		/* touch every byte, for the sanitizer */
		for (i = 0; i < r.n_new; i++)
			if (new_values[i].len > 0)
				sum += (unsigned char) new_values[i].text[0] +
					(unsigned char) new_values[i].text[new_values[i].len - 1];
		for (i = 0; i < r.n_old; i++)
			if (old_values[i].len > 0)
				sum += (unsigned char) old_values[i].text[0] +
					(unsigned char) old_values[i].text[old_values[i].len - 1];
	}
	CHECK(sum < UINT64_MAX);
	CHECK(ecm_chunk_next(&r) == result);
	free(copy);
	return result;
}

static void
is_corrupt(const char *after_txn, size_t len, int max_values, const char *name)
{
	char		data[256];
	char	   *to = ecm_chunk_put_txn(data, 1, 2, 3);
	int			entries;

	memcpy(to, after_txn, len);
	ok(read_all(data, ECM_CHUNK_TXN_SIZE + len, max_values, &entries) ==
	   ECM_CHUNK_CORRUPT && entries == 0, name);
}

static void
test_corrupt(void)
{
	int			entries;

	ok(read_all("", 0, 4, &entries) == ECM_CHUNK_END,
	   "an empty chunk has no entries");
	ok(read_all("I\0", 2, 4, &entries) == ECM_CHUNK_CORRUPT,
	   "an entry before the first transaction record is corrupt");
	ok(read_all("T1234567", 8, 4, &entries) == ECM_CHUNK_CORRUPT,
	   "half a transaction record is corrupt");
	is_corrupt("X\0", 2, 4, "an unknown entry type is corrupt");
	is_corrupt("\0", 1, 4, "a zero byte is corrupt");
	is_corrupt("I", 1, 4, "an entry without a column count is corrupt");
	is_corrupt("I\5\0\0\0\0\0", 7, 4, "more columns than there is room for");
	is_corrupt("I\1", 2, 4, "a column without a tag is corrupt");
	is_corrupt("I\1\6a", 4, 4, "a text that ends too early is corrupt");
	is_corrupt("U\0", 2, 4, "an update without old values is corrupt");
	is_corrupt("I\1\x80", 3, 4, "half a varint is corrupt");
	is_corrupt("I\1\x82\0a", 5, 4, "a varint longer than need be is corrupt");
	is_corrupt("I\1\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 14, 4,
			   "a varint without an end is corrupt");
	is_corrupt("I\1\xFF\xFF\xFF\xFF\x7F", 7, 4,
			   "a length beyond 32 bits is corrupt");
	is_corrupt("I\xFF\xFF\xFF\xFF\x0F", 6, 4,
			   "a count beyond 31 bits is corrupt");
	is_corrupt("I\1\2", 3, 0, "a reader without room takes no columns");
	is_corrupt("I\0", 2, -1, "a reader with less than no room takes nothing");
}

/* Cut short at every byte, a chunk gives its whole entries and no more. */
static void
test_truncated(void)
{
	EcmValue	values[4];
	size_t		ends[20];
	char	   *to;
	size_t		len;
	int			i;

	values[0] = text_value("hello", 5);
	values[1] = other_value(ECM_VALUE_NULL);
	values[2] = text_value(buffer + BUFFER_SIZE / 2, 200);
	values[3] = other_value(ECM_VALUE_UNCHANGED);
	to = ecm_chunk_put_txn(buffer, 100, 200, 0);
	for (i = 0; i < 20; i++)
	{
		to = ecm_chunk_put_op(to, ECM_OP_UPDATE);
		to = ecm_chunk_put_values(to, values, 4);
		to = ecm_chunk_put_values(to, values, i % 5);
		ends[i] = to - buffer;
	}
	for (len = 0; len <= (size_t) (to - buffer); len++)
	{
		int			whole = 0;
		int			entries;
		bool		at_end = (len == 0 || len == ECM_CHUNK_TXN_SIZE);
		EcmChunkResult result = read_all(buffer, len, 4, &entries);

		while (whole < 20 && ends[whole] <= len)
			at_end |= (ends[whole++] == len);
		CHECK(entries == whole);
		CHECK(result == (at_end ? ECM_CHUNK_END : ECM_CHUNK_CORRUPT));
	}
	checked("a truncated chunk gives its whole entries, then says so");
}

static void
test_fuzz(void)
{
	static const char likely[] = "TIUD\0\1\2\3\4\x7F\x80\xFF";
	char		data[600];
	int			ends = 0;
	int			corrupt = 0;
	int			round;

	random_start(7);
	for (round = 0; round < 200000; round++)
	{
		size_t		len = random_below(sizeof(data) / 2);
		size_t		i;
		int			entries;
		char	   *to = data;

		/* half of them get past the first check */
		if (random_below(2) == 0)
			to = ecm_chunk_put_txn(data, 1, 2, random_uint64());
		for (i = 0; i < len; i++)
		{
			if (random_below(4) > 0)
				*to++ = likely[random_below(sizeof(likely) - 1)];
			else
				*to++ = (char) random_uint64();
		}
		if (read_all(data, to - data, (int) random_below(20), &entries) ==
			ECM_CHUNK_END)
			ends++;
		else
			corrupt++;
	}
	CHECK(ends > 100 && corrupt > 1000);
	checked("random bytes do no harm");

	/* a good chunk with a few bytes changed */
	for (round = 0; round < 100000; round++)
	{
		EcmValue	values[3];
		char	   *to;
		int			entries;
		int			i;

		values[0] = text_value("some text", 9);
		values[1] = other_value(ECM_VALUE_NULL);
		values[2] = text_value(buffer + BUFFER_SIZE / 2, 130);
		to = ecm_chunk_put_txn(data, 1, 2, 3);
		for (i = 0; i < 3; i++)
		{
			to = ecm_chunk_put_op(to, ECM_OP_INSERT);
			to = ecm_chunk_put_values(to, values, 3);
		}
		for (i = (int) random_below(4); i >= 0; i--)
		{
			uint32_t	at = random_below((uint32_t) (to - data));

			data[at] = (char) random_uint64();
		}
		read_all(data, to - data, 3, &entries);
		CHECK(entries <= (to - data) / 2);
	}
	checked("flipped bytes do no harm");
}

static void
test_offsets(void)
{
	static const char *const garbage[] = {
		"", "-", "-2", "-1_0", "-01", "- 1", "--1", "_", "1", "1_", "_1", "a_b",
		"1_2_3", "1_2 ", " 1_2", "+1_2", "1_+2", "1_-2", "-1 ", "1__2", "0x1_2",
		"18446744073709551616_0", "0_18446744073709551616", "1.0_2", "1_2\n",
		"99999999999999999999_0", "184467440737095516150_0",
		"0_99999999999999999999999999999999999999999999"
	};
	static const uint64_t numbers[] = {
		0, 1, 9, 10, 99, 100, UINT32_MAX, UINT64_C(1) << 32,
		INT64_MAX, UINT64_C(1) << 63, UINT64_MAX - 1, UINT64_MAX
	};
	EcmOffset	o;
	char		text[ECM_OFFSET_LEN];
	size_t		i,
				j;

	ok(ecm_offset_parse("-1", &o) && o.before_all, "-1 is before everything");
	ok(ecm_offset_parse("0_0", &o) && !o.before_all && o.lsn == 0 && o.op == 0,
	   "0_0 is an offset like any other");

	for (i = 0; i < sizeof(garbage) / sizeof(garbage[0]); i++)
		if (!CHECK(!ecm_offset_parse(garbage[i], &o)))
			printf("#   accepted \"%s\"\n", garbage[i]);
	checked("nothing else than an offset is taken for one");

	for (i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		for (j = 0; j < sizeof(numbers) / sizeof(numbers[0]); j++)
		{
			char		expected[64];

			memset(text, 'x', sizeof(text));
			ecm_offset_format(text, numbers[i], numbers[j]);
			snprintf(expected, sizeof(expected), "%llu_%llu",
					 (unsigned long long) numbers[i],
					 (unsigned long long) numbers[j]);
			CHECK(strcmp(text, expected) == 0);
			CHECK(ecm_offset_parse(text, &o) && !o.before_all);
			CHECK(o.lsn == numbers[i] && o.op == numbers[j]);
			CHECK(ecm_offset_cmp(numbers[i], 5, numbers[j], 5) ==
				  (i > j) - (i < j));
			CHECK(ecm_offset_cmp(5, numbers[i], 5, numbers[j]) ==
				  (i > j) - (i < j));
			CHECK(ecm_offset_cmp(numbers[i], 9, numbers[j], 1) ==
				  (i >= j) - (i < j));
		}
	checked("offsets are formatted, parsed and ordered over the whole range");

	ecm_offset_format(text, UINT64_MAX, UINT64_MAX);
	is_str(text, "18446744073709551615_18446744073709551615",
		   "the largest offset fits");
}

static void
test_xids(void)
{
	static const int64_t distances[] = {
		0, 1, 2, 3, 100, 65536, INT32_MAX - INT64_C(1), INT32_MAX
	};
	static const uint64_t epochs[] = {1, 2, 3, 1000, UINT32_MAX};
	size_t		e,
				d;
	int			near;

	for (e = 0; e < sizeof(epochs) / sizeof(epochs[0]); e++)
		for (near = -3; near <= 3; near++)
			for (d = 0; d < sizeof(distances) / sizeof(distances[0]); d++)
			{
				uint64_t	reference = (epochs[e] << 32) + (uint64_t) near;
				uint64_t	after = reference + (uint64_t) distances[d];
				uint64_t	before = reference - (uint64_t) distances[d];

				CHECK(ecm_widen_xid((uint32_t) after, reference) == after);
				CHECK(ecm_widen_xid((uint32_t) before, reference) == before);
			}
	checked("xids are widened on both sides of a wraparound");

	random_start(13);
	for (d = 0; d < 100000; d++)
	{
		uint64_t	reference = random_uint64();
		uint64_t	xid;

		reference >>= random_below(30);
		xid = reference + random_below(UINT32_C(1) << 31);
		if (reference < UINT64_C(1) << 62)
			CHECK(ecm_widen_xid((uint32_t) xid, reference) == xid);
		xid = reference - random_below(UINT32_C(1) << 31);
		if (reference > UINT64_C(1) << 31)
			CHECK(ecm_widen_xid((uint32_t) xid, reference) == xid);
	}
	checked("and so are random ones");

	is_int((int64_t) ecm_widen_xid(3, 10), 3, "an older xid in epoch 0");
	is_int((int64_t) ecm_widen_xid(UINT32_C(0xFFFFFFF0), 10),
		   INT64_C(0xFFFFFFF0), "there is no epoch before 0");
	is_int((int64_t) ecm_widen_xid(UINT32_MAX, 0), UINT32_MAX,
		   "not even from reference 0");
	is_int((int64_t) ecm_widen_xid(UINT32_C(0x80000000), 0),
		   INT64_C(0x80000000), "nor at the very distance of 2^31");
	is_int((int64_t) ecm_widen_xid(UINT32_C(0x80000000), UINT64_C(1) << 33),
		   INT64_C(0x180000000), "which otherwise counts as the past");
	is_int((int64_t) ecm_widen_xid(5, UINT64_C(0xFFFFFFFF)),
		   INT64_C(0x100000005), "a younger xid in the next epoch");
}

void
test_shape_chunk(void)
{
	buffer = calloc(1, BUFFER_SIZE);
	test_format();
	test_sizes();
	test_round_trips();
	test_corrupt();
	test_truncated();
	test_fuzz();
	test_offsets();
	test_xids();
	free(buffer);
}
