/*-------------------------------------------------------------------------
 *
 * shape_chunk.h
 *	  The packed form of shape-log entries: one chunk is one heap tuple.
 *
 * A chunk holds entries of one shape in order.  It is self-contained: it
 * starts with a transaction record, and each upstream transaction in it
 * starts with one.
 *
 *	 transaction record:  'T', lsn (8 bytes), xid (8 bytes), first op (8 bytes)
 *	 entry:               'I', 'U' or 'D', then its column values
 *	 skip:                'S', varint: so many ops are not the next entry's
 *
 * All integers are little-endian.  An entry's offset is <lsn>_<op>, with op
 * counting up from the transaction record's first op, one per entry; a skip stands
 * for changes of the transaction that were none to this shape.
 *
 *	 'I': new values.  'D': old values.  'U': new values, old values.
 *
 * Values are a varint count of columns and then, per column, a varint tag and
 * the text: tag 0 is null, 1 is "not sent" (an unchanged TOASTed value, or a
 * column that is not part of the replica identity), 2 is a column that the
 * table does not have any more, 3 is one that had a value in this row, n + 4 is a
 * text of n bytes.  A count of 0 means that there is no such tuple.  Columns that
 * the shape has got since are left out.
 *
 * Pure: no server, memory is the caller's.  Compiled into the extension and
 * into the unit tests.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_CHUNK_H
#define ECM_SHAPE_CHUNK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum EcmOp
{
	ECM_OP_INSERT = 'I',
	ECM_OP_UPDATE = 'U',
	ECM_OP_DELETE = 'D'
} EcmOp;

/* One column's value; text need not be NUL-terminated. */
typedef enum EcmValueKind
{
	ECM_VALUE_NULL = 0,
	ECM_VALUE_UNCHANGED = 1,	/* not sent */
	ECM_VALUE_ABSENT = 2,		/* there is, or was, no such column */
	ECM_VALUE_GONE = 3,			/* likewise, but it had a value once, which
								 * readers may have */
	ECM_VALUE_TEXT = 4
} EcmValueKind;

typedef struct EcmValue
{
	EcmValueKind kind;
	const char *text;
	uint32_t	len;
} EcmValue;

/* The exact number of bytes that the writing functions below need. */
#define ECM_CHUNK_TXN_SIZE	25
extern size_t ecm_chunk_values_size(const EcmValue *values, int nvalues);

/* Write at 'to', and return the address of the byte after what was written. */
extern char *ecm_chunk_put_txn(char *to, uint64_t lsn, uint64_t xid,
							   uint64_t first_op);
extern char *ecm_chunk_put_op(char *to, EcmOp op);

/* nops: from 1 to 2^32 - 1. */
extern size_t ecm_chunk_skip_size(uint64_t nops);
extern char *ecm_chunk_put_skip(char *to, uint64_t nops);
extern char *ecm_chunk_put_values(char *to, const EcmValue *values,
								  int nvalues);

/* A reader walks over a chunk. */
typedef struct EcmChunkReader
{
	const char *pos;
	const char *end;
	int			max_values;		/* size of the arrays below */
	EcmValue   *new_values;		/* caller's arrays */
	EcmValue   *old_values;
	bool		in_txn;			/* a transaction record was seen */
	uint64_t	next_op;

	/* the current entry; texts point into the chunk */
	EcmOp		op;
	uint64_t	lsn;
	uint64_t	xid;
	uint64_t	opno;
	int			n_new;			/* number of new values; 0: there is no new
								 * tuple */
	int			n_old;			/* ... and of old ones */
} EcmChunkReader;

extern void ecm_chunk_reader_init(EcmChunkReader *r, const char *data,
								  size_t len, EcmValue *new_values,
								  EcmValue *old_values, int max_values);

typedef enum EcmChunkResult
{
	ECM_CHUNK_END,
	ECM_CHUNK_ENTRY,
	ECM_CHUNK_CORRUPT			/* truncated, unknown tag, too many values */
} EcmChunkResult;

extern EcmChunkResult ecm_chunk_next(EcmChunkReader *r);

/*
 * Shape-log offsets as text: "-1" (before everything), "<lsn>_<op>", both
 * decimal.  Parse returns false for anything else (also overflow, signs,
 * blanks); "-1" gives before_all = true.
 */
typedef struct EcmOffset
{
	bool		before_all;
	uint64_t	lsn;
	uint64_t	op;
} EcmOffset;

extern bool ecm_offset_parse(const char *text, EcmOffset *offset);
#define ECM_OFFSET_LEN	44
extern void ecm_offset_format(char *to, uint64_t lsn, uint64_t op);
extern int	ecm_offset_cmp(uint64_t lsn1, uint64_t op1,
						   uint64_t lsn2, uint64_t op2);

/*
 * Widens a 32-bit xid that lies within 2^31 of the 64-bit reference xid.
 * (pgoutput's Begin carries 32 bits, a pg_snapshot 64.)
 */
extern uint64_t ecm_widen_xid(uint32_t xid, uint64_t reference);

#endif							/* ECM_SHAPE_CHUNK_H */
