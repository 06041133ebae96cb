/*-------------------------------------------------------------------------
 *
 * log_cursor.h
 *	  Reads one shape's log forwards, an entry at a time.
 *
 * A cursor is at an entry, or at the end.  It can rest: then it keeps nothing but memory,
 * no lock, no pin, no resource of a transaction, so that it outlives a subtransaction,
 * and there can be thousands.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_LOG_CURSOR_H
#define ECM_LOG_CURSOR_H

#include "postgres.h"

#include "utils/snapshot.h"

#include "shape/shape.h"
#include "shape/shape_chunk.h"
#include "shape/shape_complete.h"
#include "shape/shape_log.h"

typedef struct EcmLogCursor
{
	const EcmShapeDef *shape;
	Snapshot	snapshot;		/* the caller's, registered */
	EcmLogBase	base;
	EcmOffset	after;
	MemoryContext context;		/* of all that follows */

	bool		known;			/* the log has come up to 'after' */
	bool		found;			/* the cursor is at an entry: */
	uint64		lsn;
	uint64		op;

	/* unless it rests */
	bool		open;
	EcmChunkScan scan;
	EcmChunkReader reader;
	MemoryContext chunk_context;
	EcmCompleter *completer;	/* or NULL */

	/* the entry's chunk */
	XLogRecPtr	chunk_lsn;
	int64		chunk_op;
} EcmLogCursor;

/* Columns of a row that is made of an entry. */
#define ECM_ENTRY_COLUMNS	6

/*
 * Goes to the first entry after an offset.  If the log, in this snapshot, does not come up
 * to the offset, 'known' is false.  With is_position, the offset is a position in the order of
 * the stream that this server has kept: no entry need be there.  The shape and the snapshot
 * have to stay until the end.
 * ERROR EC001 if entries after the offset have been folded.
 */
extern EcmLogCursor *ecm_log_cursor_begin(const EcmShapeDef *shape, Snapshot snapshot,
										  const EcmOffset *after, bool is_position);

/* Is the entry one of the rows that the log begins with? */
extern bool ecm_log_cursor_is_in_base(const EcmLogCursor *cursor);

/* Goes to the next entry; false: there is none. */
extern bool ecm_log_cursor_next(EcmLogCursor *cursor);

/*
 * Makes a row of the entry: log_offset, operation, key, value, old_value, xid.
 * more: how many entries the caller will read from here on; 0: all.
 */
extern void ecm_log_cursor_row(EcmLogCursor *cursor, int64 more, Datum *values, bool *nulls);

extern void ecm_log_cursor_rest(EcmLogCursor *cursor);
extern void ecm_log_cursor_end(EcmLogCursor *cursor);

#endif							/* ECM_LOG_CURSOR_H */
