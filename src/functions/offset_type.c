/*-------------------------------------------------------------------------
 *
 * offset_type.c
 *	  The SQL type electric_cm_offset: a position in shapes' logs.
 *
 * Its text is "-1", before everything, or "<lsn>_<op>", both decimal, as Electric has
 * them. As texts, offsets would not be in their order. The order of the type is that
 * of the stream: by the LSN of the transaction's commit, and by op.
 *
 * The layout is stored in users' tables: it must not change.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "fmgr.h"
#include "libpq/pqformat.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"

#include "base/compat.h"
#include "functions/offset_type.h"
#include "shape/shape_chunk.h"

/* The stored form. */
typedef struct OffsetValue
{
	uint64		lsn;
	int64		op;				/* -1, with lsn 0: before everything */
} OffsetValue;

#define BEFORE_ALL	(-1)

PG_FUNCTION_INFO_V1(electric_cm_offset_in);
PG_FUNCTION_INFO_V1(electric_cm_offset_out);
PG_FUNCTION_INFO_V1(electric_cm_offset_recv);
PG_FUNCTION_INFO_V1(electric_cm_offset_send);
PG_FUNCTION_INFO_V1(electric_cm_offset_lt);
PG_FUNCTION_INFO_V1(electric_cm_offset_le);
PG_FUNCTION_INFO_V1(electric_cm_offset_eq);
PG_FUNCTION_INFO_V1(electric_cm_offset_ne);
PG_FUNCTION_INFO_V1(electric_cm_offset_ge);
PG_FUNCTION_INFO_V1(electric_cm_offset_gt);
PG_FUNCTION_INFO_V1(electric_cm_offset_cmp);
PG_FUNCTION_INFO_V1(electric_cm_offset_larger);
PG_FUNCTION_INFO_V1(electric_cm_offset_smaller);
PG_FUNCTION_INFO_V1(electric_cm_offset_hash);
PG_FUNCTION_INFO_V1(electric_cm_offset_hash_extended);
PG_FUNCTION_INFO_V1(electric_cm_offset_lsn);

#define PG_GETARG_OFFSET(n) ((const OffsetValue *) PG_GETARG_POINTER(n))

Datum
ecm_offset_datum(const EcmOffset *offset)
{
	OffsetValue *value = palloc(sizeof(OffsetValue));

	value->lsn = offset->before_all ? 0 : offset->lsn;
	value->op = offset->before_all ? BEFORE_ALL : (int64) offset->op;
	return PointerGetDatum(value);
}

EcmOffset
ecm_datum_offset(Datum datum)
{
	const OffsetValue *value = (const OffsetValue *) DatumGetPointer(datum);
	EcmOffset	offset = {0};

	offset.before_all = value->op == BEFORE_ALL;
	if (!offset.before_all)
	{
		offset.lsn = value->lsn;
		offset.op = (uint64) value->op;
	}
	return offset;
}

/* Is this a value that its text can have? */
static bool
is_valid(const OffsetValue *value)
{
	return value->op >= 0 || (value->op == BEFORE_ALL && value->lsn == 0);
}

static int
compare(const OffsetValue *a, const OffsetValue *b)
{
	/* BEFORE_ALL is below all others: no entry is at LSN 0 with a smaller op */
	if (a->lsn != b->lsn)
		return a->lsn < b->lsn ? -1 : 1;
	if (a->op != b->op)
		return a->op < b->op ? -1 : 1;
	return 0;
}

/*
 * electric_cm_offset_in(cstring) -> electric_cm_offset
 *
 * Errors: 22P02 neither "-1" nor "<lsn>_<op>", both decimal, op below 2^63.
 */
Datum
electric_cm_offset_in(PG_FUNCTION_ARGS)
{
	const char *text = PG_GETARG_CSTRING(0);
	EcmOffset	offset;

	if (!ecm_offset_parse(text, &offset) || offset.op > PG_INT64_MAX)
		ereturn(fcinfo->context, (Datum) 0,
				(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
				 errmsg("invalid shape log offset: \"%s\"", text),
				 errhint("Pass the log_offset of the last entry received, or \"-1\" to begin.")));
	PG_RETURN_DATUM(ecm_offset_datum(&offset));
}

Datum
electric_cm_offset_out(PG_FUNCTION_ARGS)
{
	const OffsetValue *value = PG_GETARG_OFFSET(0);
	char	   *text;

	if (value->op == BEFORE_ALL)
		PG_RETURN_CSTRING(pstrdup("-1"));
	text = palloc(ECM_OFFSET_LEN);
	ecm_offset_format(text, value->lsn, (uint64) value->op);
	PG_RETURN_CSTRING(text);
}

/*
 * electric_cm_offset_recv(internal) -> electric_cm_offset: lsn and op, 8 bytes each
 *
 * Errors: 22P03 op is negative, and it is not the offset before everything.
 */
Datum
electric_cm_offset_recv(PG_FUNCTION_ARGS)
{
	StringInfo	buffer = (StringInfo) PG_GETARG_POINTER(0);
	OffsetValue *value = palloc(sizeof(OffsetValue));

	value->lsn = (uint64) pq_getmsgint64(buffer);
	value->op = pq_getmsgint64(buffer);
	if (!is_valid(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("invalid shape log offset")));
	PG_RETURN_POINTER(value);
}

Datum
electric_cm_offset_send(PG_FUNCTION_ARGS)
{
	const OffsetValue *value = PG_GETARG_OFFSET(0);
	StringInfoData buffer;

	pq_begintypsend(&buffer);
	pq_sendint64(&buffer, value->lsn);
	pq_sendint64(&buffer, (uint64) value->op);
	PG_RETURN_BYTEA_P(pq_endtypsend(&buffer));
}

Datum
electric_cm_offset_lt(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(PG_GETARG_OFFSET(0), PG_GETARG_OFFSET(1)) < 0);
}

Datum
electric_cm_offset_le(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(PG_GETARG_OFFSET(0), PG_GETARG_OFFSET(1)) <= 0);
}

Datum
electric_cm_offset_eq(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(PG_GETARG_OFFSET(0), PG_GETARG_OFFSET(1)) == 0);
}

Datum
electric_cm_offset_ne(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(PG_GETARG_OFFSET(0), PG_GETARG_OFFSET(1)) != 0);
}

Datum
electric_cm_offset_ge(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(PG_GETARG_OFFSET(0), PG_GETARG_OFFSET(1)) >= 0);
}

Datum
electric_cm_offset_gt(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(PG_GETARG_OFFSET(0), PG_GETARG_OFFSET(1)) > 0);
}

Datum
electric_cm_offset_cmp(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(compare(PG_GETARG_OFFSET(0), PG_GETARG_OFFSET(1)));
}

Datum
electric_cm_offset_larger(PG_FUNCTION_ARGS)
{
	PG_RETURN_DATUM(PG_GETARG_DATUM(compare(PG_GETARG_OFFSET(0), PG_GETARG_OFFSET(1)) >= 0 ? 0 : 1));
}

Datum
electric_cm_offset_smaller(PG_FUNCTION_ARGS)
{
	PG_RETURN_DATUM(PG_GETARG_DATUM(compare(PG_GETARG_OFFSET(0), PG_GETARG_OFFSET(1)) <= 0 ? 0 : 1));
}

Datum
electric_cm_offset_hash(PG_FUNCTION_ARGS)
{
	return hash_any((const unsigned char *) PG_GETARG_POINTER(0), sizeof(OffsetValue));
}

Datum
electric_cm_offset_hash_extended(PG_FUNCTION_ARGS)
{
	return hash_any_extended((const unsigned char *) PG_GETARG_POINTER(0), sizeof(OffsetValue),
							 (uint64) PG_GETARG_INT64(1));
}

/*
 * electric_cm_offset_lsn(electric_cm_offset) -> pg_lsn: that of the transaction's
 * commit; 0/0 for "-1"
 */
Datum
electric_cm_offset_lsn(PG_FUNCTION_ARGS)
{
	PG_RETURN_LSN(PG_GETARG_OFFSET(0)->lsn);
}
