/*-------------------------------------------------------------------------
 *
 * stream_message.h
 *	  The stack's own messages in the replication stream.
 *
 * The stack's internal orders travel in the stream itself, as transactional
 * logical messages: each is met where its transaction commits, by whoever
 * follows the stream, and again if the stream is read again.
 *
 *	message		written by				read by				says
 *	create		create_shape()			manager				a shape was declared
 *	capture		pool, capture_shapes()	manager, consumers	log their changes from here on
 *	live		pool, take_snapshot()	consumers			their snapshot is committed
 *	fail		pool, likewise, or fold	consumers			the shape has an error, and ends
 *	drop		whoever deletes shapes	manager, consumers	these shapes are gone
 *	lost		likewise				manager, consumers	so are these, but somebody else has
 *														their rows locked
 *	owner		REASSIGN OWNED			consumers			the shape has another owner
 *	unsendable	our walsender			consumers			of a change that could not be sent
 *	giant		our walsender			manager				a message was dropped that was huge
 *
 * Anybody may emit such messages, so ours are known by a prefix that is a secret
 * of this database, ecm_message_prefix().  It is in the WAL, however, and
 * whoever decodes that knows it.  So an order is obeyed only if the catalog
 * agrees: the shape's row has the transaction that has given the last order to
 * capture it, or to end its creation (order_xid); what is to be dropped is gone,
 * or goes with that very transaction; the owner is taken from the row.  The
 * walsender's two are never in the WAL, and those that are there it drops.
 *
 * For the same reason a message that is unknown or malformed is never an error:
 * a stranger could end consumers with it, again each time that they come to it.
 * Everybody ignores it, and the manager says so, once, with an event.
 *
 * Pure; stream_message_io.h emits and reads.  A text has one form only: what
 * can be parsed is written as the same text again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STREAM_MESSAGE_H
#define ECM_STREAM_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A longer one is none of ours, nor is one that names more shapes. */
#define ECM_MAX_MESSAGE		(1024 * 1024)
#define ECM_MESSAGE_SHAPES	1000

/*
 * A larger row or message leaves a walsender, and libpq, with buffers as large,
 * which shrink only with the connection.  The walsender tells of the messages
 * that it drops by one of our own, "giant".
 */
#define ECM_GIANT_BYTES		(16 * 1024 * 1024)

/* A handle's room, with its NUL; they are shorter. */
#define ECM_HANDLE_LEN		40

typedef enum EcmMessageKind
{
	ECM_MESSAGE_CREATE,			/* create <id> <relation> <handle> */
	ECM_MESSAGE_CAPTURE,		/* capture <number>{ <id> <generation>}... */
	ECM_MESSAGE_LIVE,			/* live <snapshot>{ <id> <generation>}... */
	ECM_MESSAGE_FAIL,			/* fail <id> <generation> <reason> */
	ECM_MESSAGE_DROP,			/* drop <handle> <id>{,<id>}... <reason> */
	ECM_MESSAGE_LOST,			/* lost, likewise */
	ECM_MESSAGE_OWNER,			/* owner <id> <owner> */
	ECM_MESSAGE_UNSENDABLE,		/* unsendable <relation> <column> */
	ECM_MESSAGE_GIANT			/* giant */
} EcmMessageKind;

/* A shape that a message names. */
typedef struct EcmMessageShape
{
	int64_t		id;
	int32_t		generation;		/* of capture, live, fail; else 0 */
} EcmMessageShape;

/*
 * Texts of a message that was parsed point into what it was parsed from.  What
 * a kind has no use for is ignored, and 0 or NULL after parsing.
 */
typedef struct EcmStreamMessage
{
	EcmMessageKind kind;

	/* create, fail and owner: one; capture, live, drop and lost: 1 and more */
	int			nshapes;
	EcmMessageShape *shapes;

	int64_t		number;			/* capture: the manager's, of the attempt */
	uint32_t	relation;		/* create, unsendable */
	uint32_t	owner;			/* owner */
	char		handle[ECM_HANDLE_LEN]; /* create; drop and lost: of the first
										 * shape */
	const char *snapshot;		/* live: a pg_snapshot's text, not terminated */
	size_t		snapshot_len;

	/*
	 * fail: as the shape's error is kept, see errors.h; drop and lost: why,
	 * "" if that has been said before; unsendable: the column, "" for the row
	 */
	const char *text;
} EcmStreamMessage;

/*
 * How many shapes a text, which need not be terminated, names at most, if it is
 * one of ours.
 */
extern int	ecm_message_max_shapes(const char *text, size_t len);

/*
 * Parses a text.  *shapes has room for as many as that.  False: it is none of
 * ours, or malformed.
 */
extern bool ecm_message_parse(const char *text, EcmMessageShape *shapes,
							  EcmStreamMessage *message);

/*
 * Writes a message's text, as far as there is room for it and for a NUL.
 * Returns how long it is altogether, without that.
 */
extern size_t ecm_message_write(const EcmStreamMessage *message, char *to,
								size_t size);

/*
 * Does this, which need not be terminated, begin like a message that the
 * walsender alone may send?
 */
extern bool ecm_message_is_walsenders(const char *text, size_t len);

#endif							/* ECM_STREAM_MESSAGE_H */
