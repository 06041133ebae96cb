/*-------------------------------------------------------------------------
 *
 * shape_readers.h
 *	  Named readers: what they have acknowledged of a shape's log.
 *
 * A reader has a position in the order of the stream.  A shape that is new to the reader
 * has a position of its own, until it has come to the reader's.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_READERS_H
#define ECM_SHAPE_READERS_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "shape/shape_chunk.h"
#include "shape/shape_log.h"

/*
 * The lowest position that named readers have in a shape's log, if they have not more of
 * it to acknowledge than 'retention' (bytes; below 0: any number).  False: there is no
 * such reader, or all of them have read nothing yet.
 */
extern bool ecm_readers_position(int64 shape, int64 retention, EcmOffset *position);

/*
 * The log is to begin with a new base.  Readers who have not acknowledged all that was
 * folded have lost the shape: returns their number.  ERROR 55P03 if one of these has not
 * more to acknowledge than the retention, or is just about to acknowledge a part of the
 * old base.
 */
extern int	ecm_readers_pass(int64 shape, int64 retention, XLogRecPtr lsn, int64 op);

/* Until the transaction ends, the shape's log does not get a new base. */
extern void ecm_readers_keep_base(int64 shape);

/*
 * Until the transaction ends, nobody else reads and acknowledges as that reader.  Waits for
 * others who do.
 */
extern void ecm_reader_lock(int64 reader);

/* Whose readers they are goes, in ecm_spi_begin/end; is gone; gives them to somebody else. */
extern void ecm_readers_delete_of(Oid owner);
extern void ecm_readers_purge(void);
extern void ecm_readers_reassign(Oid from, Oid to);

/*
 * About how many bytes (packed) of a shape's log come after a position.  *first, if asked
 * for: about the LSN of the first of them; invalid if there are none, or it is not known.
 */
extern int64 ecm_log_bytes_after(int64 shape, const EcmOffset *position, XLogRecPtr *first);

#endif							/* ECM_SHAPE_READERS_H */
