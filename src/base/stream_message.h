/*-------------------------------------------------------------------------
 *
 * stream_message.h
 *	  The stack's own messages in the replication stream.
 *
 * Orders within a stack travel in the stream itself, as transactional logical
 * messages.  So each order is met at the place in the stream where its
 * transaction commits, by every process that follows the stream, and is met
 * again if that part of the stream is read again.
 *
 *	message		written by				read by				says
 *	create		create_shape()			manager				a shape was declared
 *	capture		pool, capture_shapes()	manager, consumers	log their changes from here on
 *	piece		pool, read_piece()		consumers			a piece of their table has been read
 *	again		pool, finish_reading()	consumers			so have rows that lacked a value
 *	live		pool, likewise, or		consumers			their snapshot is committed
 *				take_snapshot()
 *	fail		pool, likewise, or fold	consumers			the shape has an error, and ends
 *	drop		whoever deletes shapes	manager, consumers	these shapes are gone
 *	lost		likewise				manager, consumers	so are these, but somebody else has
 *														their rows locked
 *	resync		likewise				consumers			their logs can't be continued
 *	owner		REASSIGN OWNED			consumers			the shape has another owner
 *	unsendable	our walsender			consumers			of a change that could not be sent
 *	giant		our walsender			manager				a message was dropped that was huge
 *
 * Any user may emit logical messages, so ours are known by a prefix that is a
 * secret of the database, ecm_message_prefix().  The prefix is in the WAL,
 * however, and whoever decodes that knows it.  So an order is obeyed only if
 * the catalog agrees with it:
 *
 * capture, live and fail: the shape's row has the id of the transaction that
 * has given the last such order (order_xid);
 *
 * piece and again: the row of the piece, or of the key that was read again, has
 * the id of the message's transaction (order_xid), and the shape's row the same
 * reading and generation;
 *
 * drop and lost: the shapes are gone, or go with the transaction of the
 * message;
 *
 * resync: there is a row for the shape and the transaction in shape_gap;
 *
 * owner: the new owner is taken from the row, not from the message.
 *
 * unsendable and giant are never in the WAL, since our walsender makes them
 * while it sends.  It drops messages of these kinds that it finds in the WAL.
 *
 * For the same reason, a message of an unknown kind or form is never an error:
 * with one, a stranger could end the consumers, each time that they come to it
 * again.  Everybody ignores it, and the manager reports the first one by an
 * event.
 *
 * Pure. stream_message_io.h has the functions that emit and read.  Each message
 * has one text only: a text that can be parsed is what would be written for
 * the message again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STREAM_MESSAGE_H
#define ECM_STREAM_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Limits of a message: bytes, and shapes that it names.  A larger one is none
 * of ours.
 */
#define ECM_MAX_MESSAGE		(1024 * 1024)
#define ECM_MESSAGE_SHAPES	1000

/*
 * Size of a giant: a row or message from which on it pays to open the
 * replication connection anew.  The buffers of the walsender and of libpq have
 * grown to that size with it, and shrink only with the connection.  Our
 * walsender drops logical messages that are not ours, so the manager does not
 * see those that are giants; the walsender tells of them by a message "giant".
 */
#define ECM_GIANT_BYTES		(16 * 1024 * 1024)

/* Room for a shape's handle, with its NUL. */
#define ECM_HANDLE_LEN		40

typedef enum EcmMessageKind
{
	ECM_MESSAGE_CREATE,			/* create <id> <relation> <handle> */
	ECM_MESSAGE_CAPTURE,		/* capture <number>{ <id> <generation>}... */
	ECM_MESSAGE_PIECE,			/* piece <reading> <number>{ <id>
								 * <generation>}... */
	ECM_MESSAGE_AGAIN,			/* again <reading>{ <id> <generation>}... */
	ECM_MESSAGE_LIVE,			/* live <snapshot>{ <id> <generation>}... */
	ECM_MESSAGE_FAIL,			/* fail <id> <generation> <reason> */
	ECM_MESSAGE_DROP,			/* drop <handle> <id>{,<id>}... <reason> */
	ECM_MESSAGE_LOST,			/* lost, likewise */
	ECM_MESSAGE_RESYNC,			/* resync, likewise */
	ECM_MESSAGE_OWNER,			/* owner <id> <owner> */
	ECM_MESSAGE_UNSENDABLE,		/* unsendable <relation> <column> */
	ECM_MESSAGE_GIANT			/* giant */
} EcmMessageKind;

/* A shape that a message names. */
typedef struct EcmMessageShape
{
	int64_t		id;
	int32_t		generation;		/* of capture, piece, again, live, fail; else
								 * 0 */
} EcmMessageShape;

/*
 * A message.  The texts of a parsed message point into the text that it was
 * parsed from.  Members that a kind has no use for are 0 or NULL after parsing,
 * and ignored when writing.
 */
typedef struct EcmStreamMessage
{
	EcmMessageKind kind;

	/* unsendable, giant: none; create, fail, owner: one; else one or more */
	int			nshapes;
	EcmMessageShape *shapes;

	int64_t		number;			/* capture: that the manager has given to this
								 * attempt to create them; piece: the piece's */
	int64_t		reading;		/* piece, again: see the table reading_piece */
	uint32_t	relation;		/* create, unsendable */
	uint32_t	owner;			/* owner */
	char		handle[ECM_HANDLE_LEN]; /* create; drop, lost, resync: of the
										 * first shape */
	const char *snapshot;		/* live: a pg_snapshot's text, not terminated */
	size_t		snapshot_len;

	/*
	 * fail: the shape's error, with its tag (see errors.h). drop, lost: the
	 * reason, "" if an event has given it already. unsendable: the column, ""
	 * for the whole row.
	 */
	const char *text;
} EcmStreamMessage;

/*
 * The largest number of shapes that a text can name if it is a message: for
 * the caller of ecm_message_parse(), to allocate them.  The text need not be
 * terminated.
 */
extern int	ecm_message_max_shapes(const char *text, size_t len);

/*
 * Parses a text. 'shapes' has room for ecm_message_max_shapes() of them.
 * False: the text is of no kind that we know, or malformed.
 */
extern bool ecm_message_parse(const char *text, EcmMessageShape *shapes,
							  EcmStreamMessage *message);

/*
 * Writes a message's text into 'size' bytes, truncated if it does not fit with
 * its NUL.  Returns the length of the whole text, without the NUL, like
 * snprintf().
 */
extern size_t ecm_message_write(const EcmStreamMessage *message, char *to,
								size_t size);

/*
 * Does the text begin like a message of a kind that only our walsender may
 * send?  The text need not be terminated.
 */
extern bool ecm_message_is_walsenders(const char *text, size_t len);

#endif							/* ECM_STREAM_MESSAGE_H */
