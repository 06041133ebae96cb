/*-------------------------------------------------------------------------
 *
 * shape_chunk.c
 *	  Writes and reads the packed form of shape-log entries.
 *
 * The writing functions run for each change, and trust their caller.  The
 * reading function takes nothing for granted, since chunks have been on disk:
 * whatever the bytes are, the worst result is ECM_CHUNK_CORRUPT.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "shape/shape_chunk.h"

#define TXN_RECORD		'T'
#define SKIP_RECORD		'S'

/* A varint tag is a text's length plus the number of kinds without text. */
#define TEXT_TAG_BASE	4

/* Five groups of seven bits hold the largest tag, UINT32_MAX + 2. */
#define MAX_VARINT_SHIFT	28

static inline size_t
varint_size(uint64_t v)
{
	if (v < (UINT64_C(1) << 7))
		return 1;
	if (v < (UINT64_C(1) << 14))
		return 2;
	if (v < (UINT64_C(1) << 21))
		return 3;
	if (v < (UINT64_C(1) << 28))
		return 4;
	return 5;
}

static inline char *
put_varint(char *to, uint64_t v)
{
	while (v >= 0x80)
	{
		*to++ = (char) (unsigned char) (v | 0x80);
		v >>= 7;
	}
	*to++ = (char) v;
	return to;
}

static inline char *
put_uint64(char *to, uint64_t v)
{
	int			i;

	for (i = 0; i < 8; i++)
		*to++ = (char) (unsigned char) (v >> (8 * i));
	return to;
}

static inline uint64_t
get_uint64(const char *from)
{
	uint64_t	v = 0;
	int			i;

	for (i = 0; i < 8; i++)
		v |= (uint64_t) (unsigned char) from[i] << (8 * i);
	return v;
}

/* The exact number of bytes that ecm_chunk_put_values() will write. */
size_t
ecm_chunk_values_size(const EcmValue *values, int nvalues)
{
	size_t		size = varint_size((uint64_t) nvalues);
	int			i;

	for (i = 0; i < nvalues; i++)
	{
		if (values[i].kind == ECM_VALUE_TEXT)
			size += varint_size((uint64_t) values[i].len + TEXT_TAG_BASE) +
				values[i].len;
		else
			size++;
	}
	return size;
}

char *
ecm_chunk_put_txn(char *to, uint64_t lsn, uint64_t xid, uint64_t first_op)
{
	*to++ = TXN_RECORD;
	to = put_uint64(to, lsn);
	to = put_uint64(to, xid);
	return put_uint64(to, first_op);
}

char *
ecm_chunk_put_op(char *to, EcmOp op)
{
	*to++ = (char) op;
	return to;
}

size_t
ecm_chunk_skip_size(uint64_t nops)
{
	return 1 + varint_size(nops);
}

char *
ecm_chunk_put_skip(char *to, uint64_t nops)
{
	*to++ = SKIP_RECORD;
	return put_varint(to, nops);
}

char *
ecm_chunk_put_values(char *to, const EcmValue *values, int nvalues)
{
	int			i;

	to = put_varint(to, (uint64_t) nvalues);
	for (i = 0; i < nvalues; i++)
	{
		const EcmValue *v = &values[i];

		if (v->kind != ECM_VALUE_TEXT)
		{
			*to++ = (char) v->kind;
			continue;
		}
		to = put_varint(to, (uint64_t) v->len + TEXT_TAG_BASE);
		if (v->len > 0)
		{
			memcpy(to, v->text, v->len);
			to += v->len;
		}
	}
	return to;
}

void
ecm_chunk_reader_init(EcmChunkReader *r, const char *data, size_t len,
					  EcmValue *new_values, EcmValue *old_values,
					  int max_values)
{
	memset(r, 0, sizeof(*r));
	r->pos = data;
	r->end = len > 0 ? data + len : data;
	r->max_values = max_values;
	r->new_values = new_values;
	r->old_values = old_values;
}

/*
 * Reads a varint at *pos.  False if it is cut off, longer than any that we
 * write, or not the shortest form of its number.
 */
static inline bool
get_varint(const char **pos, const char *end, uint64_t *v)
{
	const char *p = *pos;
	uint64_t	result = 0;
	int			shift;

	for (shift = 0; shift <= MAX_VARINT_SHIFT && p < end; shift += 7)
	{
		unsigned char c = (unsigned char) *p++;

		result |= (uint64_t) (c & 0x7F) << shift;
		if (c < 0x80)
		{
			if (c == 0 && shift > 0)
				return false;
			*pos = p;
			*v = result;
			return true;
		}
	}
	return false;
}

static bool
get_values(const char **pos, const char *end, EcmValue *values,
		   int max_values, int *nvalues)
{
	uint64_t	n;
	int			i;

	if (!get_varint(pos, end, &n) || max_values < 0 ||
		n > (uint64_t) max_values)
		return false;

	for (i = 0; i < (int) n; i++)
	{
		uint64_t	tag;
		uint64_t	len;

		if (!get_varint(pos, end, &tag))
			return false;
		if (tag < TEXT_TAG_BASE)
		{
			values[i].kind = (EcmValueKind) tag;
			values[i].text = NULL;
			values[i].len = 0;
			continue;
		}
		len = tag - TEXT_TAG_BASE;
		if (len > UINT32_MAX || len > (uint64_t) (end - *pos))
			return false;
		values[i].kind = ECM_VALUE_TEXT;
		values[i].text = *pos;
		values[i].len = (uint32_t) len;
		*pos += len;
	}
	*nvalues = (int) n;
	return true;
}

/*
 * r->pos advances only past an entry that has been read in full.  So if the
 * chunk is corrupt there, each further call says so again.
 */
EcmChunkResult
ecm_chunk_next(EcmChunkReader *r)
{
	while (r->pos < r->end)
	{
		const char *pos = r->pos;
		char		type = *pos++;
		bool		has_new = (type == ECM_OP_INSERT || type == ECM_OP_UPDATE);
		bool		has_old = (type == ECM_OP_UPDATE || type == ECM_OP_DELETE);

		if (type == TXN_RECORD)
		{
			if (r->end - r->pos < ECM_CHUNK_TXN_SIZE)
				return ECM_CHUNK_CORRUPT;
			r->lsn = get_uint64(pos);
			r->xid = get_uint64(pos + 8);
			r->next_op = get_uint64(pos + 16);
			r->in_txn = true;
			r->pos += ECM_CHUNK_TXN_SIZE;
			continue;
		}

		if (type == SKIP_RECORD)
		{
			uint64_t	nops;

			if (!r->in_txn || !get_varint(&pos, r->end, &nops) || nops == 0)
				return ECM_CHUNK_CORRUPT;
			r->next_op += nops;
			r->pos = pos;
			continue;
		}

		if ((!has_new && !has_old) || !r->in_txn)
			return ECM_CHUNK_CORRUPT;
		r->n_new = 0;
		r->n_old = 0;
		if (has_new && !get_values(&pos, r->end, r->new_values,
								   r->max_values, &r->n_new))
			return ECM_CHUNK_CORRUPT;
		if (has_old && !get_values(&pos, r->end, r->old_values,
								   r->max_values, &r->n_old))
			return ECM_CHUNK_CORRUPT;
		r->op = (EcmOp) type;
		r->opno = r->next_op++;
		r->pos = pos;
		return ECM_CHUNK_ENTRY;
	}
	return ECM_CHUNK_END;
}

/* Reads one or more digits; false on none, or on overflow. */
static bool
parse_decimal(const char **pos, uint64_t *v)
{
	const char *p = *pos;
	uint64_t	result = 0;

	for (; *p >= '0' && *p <= '9'; p++)
	{
		uint64_t	digit = (uint64_t) (*p - '0');

		if (result > (UINT64_MAX - digit) / 10)
			return false;
		result = result * 10 + digit;
	}
	if (p == *pos)
		return false;
	*pos = p;
	*v = result;
	return true;
}

bool
ecm_offset_parse(const char *text, EcmOffset *offset)
{
	memset(offset, 0, sizeof(*offset));
	if (strcmp(text, "-1") == 0)
	{
		offset->before_all = true;
		return true;
	}
	if (!parse_decimal(&text, &offset->lsn) || *text++ != '_')
		return false;
	return parse_decimal(&text, &offset->op) && *text == '\0';
}

static char *
format_decimal(char *to, uint64_t v)
{
	char		digits[20];
	int			n = 0;

	do
	{
		digits[n++] = (char) ('0' + v % 10);
		v /= 10;
	} while (v > 0);
	while (n > 0)
		*to++ = digits[--n];
	return to;
}

/* 'to' has room for ECM_OFFSET_LEN bytes. */
void
ecm_offset_format(char *to, uint64_t lsn, uint64_t op)
{
	to = format_decimal(to, lsn);
	*to++ = '_';
	to = format_decimal(to, op);
	*to = '\0';
}

int
ecm_offset_cmp(uint64_t lsn1, uint64_t op1, uint64_t lsn2, uint64_t op2)
{
	if (lsn1 != lsn2)
		return lsn1 < lsn2 ? -1 : 1;
	if (op1 != op2)
		return op1 < op2 ? -1 : 1;
	return 0;
}

uint64_t
ecm_widen_xid(uint32_t xid, uint64_t reference)
{
	uint32_t	ahead = xid - (uint32_t) reference;
	uint32_t	behind = (uint32_t) reference - xid;

	if (ahead < UINT32_C(0x80000000))
		return reference + ahead;

	/* an xid that would be before epoch 0 can't be older than the reference */
	return behind > reference ? xid : reference - behind;
}
