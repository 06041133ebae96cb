/*-------------------------------------------------------------------------
 *
 * errors.h
 *	  What an error means for the stack: retry, recreate or fatal; and for a
 *	  shape: whose fault it is.
 *
 * Pure: tables keyed by SQLSTATE.  The message's text is looked at only where
 * the SQLSTATE alone is ambiguous.  Compiled into the extension and into the
 * unit tests.
 *
 * No other file compares SQLSTATEs in order to decide what to do: such a
 * judgement ends shapes or stacks for good, and only here does a unit test
 * hold it to a table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_ERRORS_H
#define ECM_ERRORS_H

#include <stdbool.h>

#define ECM_ERROR_TEXT_LEN	512

typedef enum EcmErrorKind
{
	ECM_ERROR_RETRY,			/* try the same step again, with backoff */
	ECM_ERROR_RECREATE,			/* drop slot, resync shapes, start over */
	ECM_ERROR_FATAL				/* no retry can mend it: status "failed" */
} EcmErrorKind;

/* An error as a server, libpq or we ourselves reported it. */
typedef struct EcmError
{
	char		sqlstate[6];	/* "" when unknown */
	char		message[ECM_ERROR_TEXT_LEN];	/* primary message, no
												 * severity */
	char		detail[ECM_ERROR_TEXT_LEN];
	char		hint[ECM_ERROR_TEXT_LEN];
} EcmError;

/* What the manager was doing; the same SQLSTATE can mean different things. */
typedef enum EcmErrorContext
{
	ECM_CONTEXT_CONNECT,		/* opening a loopback connection */
	ECM_CONTEXT_PUBLICATION,	/* looking up or creating the publication */
	ECM_CONTEXT_SLOT,			/* looking up or creating the slot */
	ECM_CONTEXT_STREAM,			/* START_REPLICATION and after */
	ECM_CONTEXT_POOL,			/* a job on a pool session */
	ECM_CONTEXT_OTHER
} EcmErrorContext;

/*
 * Fills *err.  NULL stands for an empty text; texts that are too long are
 * truncated.
 */
extern void ecm_error_set(EcmError *err, const char *sqlstate,
						  const char *message, const char *detail,
						  const char *hint);

/* What the manager has to do about an error, by what it was doing. */
extern EcmErrorKind ecm_error_kind(const EcmError *err,
								   EcmErrorContext context);

/* What a process was doing for shapes, or for one shape, and which process. */
typedef enum EcmShapeWork
{
	ECM_WORK_PUBLISH,			/* pool: their table is added to the
								 * publication */
	ECM_WORK_CREATE,			/* pool: what else it takes to create some */
	ECM_WORK_SNAPSHOT,			/* pool: one shape's rows are read */
	ECM_WORK_FOLLOW,			/* consumer: a change is matched, or logged */
	ECM_WORK_SEND,				/* walsender: pgoutput makes a change's
								 * message */
	ECM_WORK_FOLD,				/* pool: a log is folded, as the manager sees
								 * it */
	ECM_WORK_FOLD_LOG			/* pool: ... and as the session does */
} EcmShapeWork;

/* What an error is blamed on that was raised during such work. */
typedef enum EcmFault
{
	ECM_FAULT_OF_NONE,			/* no shape: any other would have met the
								 * error as well */
	ECM_FAULT_OF_IT,			/* the shape (SEND: the change) that was being
								 * worked on */
	ECM_FAULT_IF_AGAIN,			/* ... but only if the same work fails again */
	ECM_FAULT_IT_IS_GONE,		/* nothing: the shape has gone meanwhile, and
								 * needs no work any more */
	ECM_FAULT_TOO_EARLY			/* nothing: the same work can be done in a
								 * while */
} EcmFault;

/*
 * Whose fault is an error?  An error that is blamed on a shape ends that shape
 * alone, and the others go on; one that is blamed on no shape is met again by
 * all of them.  So for errors that nobody has thought of, no shape is blamed
 * only where trying again costs the others nothing.
 *
 * 'message' may be NULL.
 */
extern EcmFault ecm_error_fault(const char *sqlstate, const char *message,
								EcmShapeWork work);

/* Single kinds of errors. */

/* The server has refused the role of a connection (28xxx). */
extern bool ecm_error_is_refusal(const char *sqlstate);

/* ... because the password is wrong or missing. */
extern bool ecm_error_is_password(const char *sqlstate);

/* The connection could not be opened, or was lost. */
extern bool ecm_error_is_connection(const char *sqlstate);

/*
 * A table, function or other object was not found, perhaps because its name
 * lacks the schema.
 */
extern bool ecm_error_is_name_not_found(const char *sqlstate);

/* There is an object of that name already. */
extern bool ecm_error_is_name_taken(const char *sqlstate);

/* A file is missing; in the stream, it may be one of WAL. */
extern bool ecm_error_is_file_missing(const char *sqlstate);

/* No background worker was free: an error that we raise ourselves. */
extern bool ecm_error_is_no_worker(const char *sqlstate);

#define ECM_SQLSTATE_NO_WORKER	"53000"

/*
 * A shape has held up the others: work for it was cancelled (shape_stall.c).  An
 * error that we raise ourselves.
 */
#define ECM_SQLSTATE_SHAPE_STALLED	"EC002"

/*
 * May an error of the stream go away by itself?  A resource that was short may
 * become free, and a walsender that was ended is replaced.  Any other error is
 * about the change that the walsender was decoding or sending, so it will be
 * raised again at the same place.
 */
extern bool ecm_error_may_pass(const EcmError *err);

/*
 * The error's own hint, or else the hint of the rule that applies to it, or
 * NULL.
 *
 * A refused role (28xxx) has a hint here only if the role does not exist or
 * may not log in, or if the password or certificate is at fault.  Otherwise the
 * result is NULL, and the caller builds the exact line for pg_hba.conf, since
 * it knows the connection.
 */
extern const char *ecm_error_hint(const EcmError *err,
								  EcmErrorContext context);

/*
 * Parses libpq's connection error in verbose form, "FATAL:  28P01: text", into
 * err.  Text without an SQLSTATE is libpq's own: 08001 if the connection could
 * not be opened, 28P01 if there is no password to send, F0000 if the
 * connection string is wrong, else 08006.
 */
extern void ecm_error_from_libpq(EcmError *err, const char *text);

/*
 * An error's message may quote a value of a row, a where clause or a
 * statement, as in "syntax error in tsquery: ...".  Events, last_error, the
 * views and the server's log are read by people who may not read the table, so
 * they get the result of one of these.
 *
 * condition: the error's name alone, "division by zero (SQLSTATE 22012)".  For
 * errors that were raised while a shape's rows were read, compared or written.
 *
 * for_public: the message itself if errors with that SQLSTATE quote nothing
 * but names of the server's own objects, else the condition.  For all other
 * errors.
 *
 * The result may be in a static buffer, which the next call overwrites.
 */
extern const char *ecm_error_condition(const char *sqlstate);
extern const char *ecm_error_for_public(const char *sqlstate,
										const char *message);

/*
 * Like ecm_error_for_public(), for an error of a session that was reading rows.
 * The functions of an extension's type run then, and some of them raise even
 * internal errors (class XX) that quote the value.
 */
extern const char *ecm_error_of_rows_for_public(const char *sqlstate,
												const char *message);

/*
 * Replaces, in place, the message of an error that has ended the stream by its
 * condition, and removes detail and hint, if a type's output function or a
 * conversion of encoding may have raised it.
 */
extern void ecm_error_hide_row(EcmError *err);

/*
 * The error that a shape has ended with is kept with a tag, the SQLSTATE:
 * "22012: division by zero", or "00000: ..." if the text is our own and quotes
 * nothing.
 *
 * untagged: the text without its tag, for those who may read the shape.
 * public_text: for all others, the condition, or the text itself if it is our
 * own.  A text without a tag is for the former only; for the others it becomes
 * "an error".
 */
#define ECM_ERROR_OWN_TEXT	"00000: "

extern const char *ecm_error_untagged(const char *text);
extern const char *ecm_error_public_text(const char *text);

#endif							/* ECM_ERRORS_H */
