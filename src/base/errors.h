/*-------------------------------------------------------------------------
 *
 * errors.h
 *	  What an error means for the stack: retry, recreate or fatal; and for a
 *	  shape: whose fault it is.
 *
 * Pure: tables keyed by SQLSTATE.  Message text is looked at only where the
 * SQLSTATE alone is ambiguous.  Compiled into the extension and into the unit
 * tests.  Nobody else judges an error by its SQLSTATE.
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
	ECM_ERROR_RECREATE,			/* drop slot, invalidate shapes, start over */
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

/* What was being done; the same SQLSTATE can mean different things. */
typedef enum EcmErrorContext
{
	ECM_CONTEXT_CONNECT,		/* opening a loopback connection */
	ECM_CONTEXT_PUBLICATION,	/* looking up or creating the publication */
	ECM_CONTEXT_SLOT,			/* looking up or creating the slot */
	ECM_CONTEXT_STREAM,			/* START_REPLICATION and after */
	ECM_CONTEXT_POOL,			/* a job on a pool session */
	ECM_CONTEXT_OTHER
} EcmErrorContext;

/* Fills an error of our own; the texts are truncated to fit. */
extern void ecm_error_set(EcmError *err, const char *sqlstate,
						  const char *message, const char *detail,
						  const char *hint);

extern EcmErrorKind ecm_error_kind(const EcmError *err,
								   EcmErrorContext context);

/* What was being done for shapes, or for one. */
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

/* Whom an error is blamed on that was raised then. */
typedef enum EcmFault
{
	ECM_FAULT_OF_NONE,			/* it would have hit any other as well */
	ECM_FAULT_OF_IT,			/* the shape, or the change, that was at work */
	ECM_FAULT_IF_AGAIN,			/* ... if it is raised there again */
	ECM_FAULT_IT_IS_GONE		/* it needs no work any more */
} EcmFault;

/*
 * Whose fault is it?  With one shape's the others go on, so what is not listed
 * is blamed on none only where that costs them nothing.
 */
extern EcmFault ecm_error_fault(const char *sqlstate, const char *message,
								EcmShapeWork work);

/*
 * Single kinds.  A connection's role was refused; for want of the right
 * password; nothing has answered, or not any more; a name was not found, which
 * may be one that lacks its schema; a name is taken; a file is missing, of WAL
 * perhaps; no background worker was free, an error of our own.
 */
extern bool ecm_error_is_refusal(const char *sqlstate);
extern bool ecm_error_is_password(const char *sqlstate);
extern bool ecm_error_is_connection(const char *sqlstate);
extern bool ecm_error_is_name_not_found(const char *sqlstate);
extern bool ecm_error_is_name_taken(const char *sqlstate);
extern bool ecm_error_is_file_missing(const char *sqlstate);
extern bool ecm_error_is_no_worker(const char *sqlstate);

#define ECM_SQLSTATE_NO_WORKER	"53000"

/*
 * Of an error in the stream: may it pass by itself?  What is short may become
 * free, and who was ended comes back.  Any other is about what the walsender was
 * at, and will be raised again at the same place.
 */
extern bool ecm_error_may_pass(const EcmError *err);

/*
 * The error's own hint, or else the one that goes with what it is, or NULL.
 * For 28xxx that is NULL: the caller builds the exact pg_hba.conf line itself
 * (it knows the connection).  Not so for a role that is missing or may not log
 * in.
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
 * An error may quote what a row, a where clause or a statement has: "syntax
 * error in tsquery: ...".  What is shown to everybody who watches (events,
 * last_error, views, a repetition in the log) goes by these two.
 *
 * condition: the error's name alone, "division by zero (SQLSTATE 22012)".  For
 * whatever was raised while a shape's rows were read, compared or written.
 *
 * for_public: the message itself if errors of that kind quote nothing but
 * names of the server's own objects, else the condition.  For all other errors.
 *
 * The result may be in a static buffer that the next call overwrites.
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
 * Likewise in place, for what the stream ends with: a type's output function or
 * a conversion may have raised it.
 */
extern void ecm_error_hide_row(EcmError *err);

/*
 * A shape's error is kept as "22012: division by zero", or "00000: ..." if the
 * text is our own and quotes nothing.  Those who may read the shape are told
 * what follows the tag, all others the second.  A text without a tag is for the
 * former only.
 */
#define ECM_ERROR_OWN_TEXT	"00000: "

extern const char *ecm_error_untagged(const char *text);
extern const char *ecm_error_public_text(const char *text);

#endif							/* ECM_ERRORS_H */
