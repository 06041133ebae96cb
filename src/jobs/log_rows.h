/*-------------------------------------------------------------------------
 *
 * log_rows.h
 *	  What the logs of shapes come to, by ranges of keys, while the table is
 *	  read in pieces.
 *
 * A session makes this once for a reading, in steps, and keeps it: each piece is
 * another transaction.  A session that has not made it begins anew.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_LOG_ROWS_H
#define ECM_LOG_ROWS_H

#include "postgres.h"

#include "jobs/fold.h"
#include "jobs/read_table.h"

typedef struct EcmLogRows EcmLogRows;

/*
 * Readings whose rows a session keeps.  If more of them took turns, each one would find
 * that its rows are gone, and begin anew for ever.
 */
#define ECM_MAX_KEPT_LOGS	3

/*
 * For the shapes of a reading, whose logs have a gap.  NULL: it is not complete yet; this
 * has taken a step, of a second perhaps.
 */
extern EcmLogRows *ecm_log_rows_get(int64 reading, EcmReadShape *shapes, int n);

/*
 * How far a piece may go that begins after a key (NULL: with the first): upto (NULL: to
 * the end), or a key before that.
 */
extern char **ecm_log_rows_limit(EcmLogRows *rows, char **after, char **upto);

/* Puts the entries of that range into a sort. */
extern void ecm_log_rows_put(EcmLogRows *rows, char **after, char **upto, EcmFoldSort *sort);

/* The reading is over, for this session. */
extern void ecm_log_rows_forget(int64 reading);

#endif							/* ECM_LOG_ROWS_H */
