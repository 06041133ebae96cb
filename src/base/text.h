/*-------------------------------------------------------------------------
 *
 * text.h
 *	  Texts: copied into fields, made fit to be shown, quoted.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_TEXT_H
#define ECM_TEXT_H

#include "postgres.h"

/* strlcpy that doesn't cut a multibyte character in two; NULL is "". */
extern void ecm_copy_text(char *to, size_t size, const char *from);

/*
 * The text as it can be shown here, palloc'd: it may come from a database with
 * another encoding.  If it isn't valid in ours, or in the client's where
 * nothing is converted, its non-ASCII characters are replaced.
 */
extern char *ecm_valid_text(const char *text);

/* A size as pg_size_pretty() has it, palloc'd. */
extern char *ecm_size_text(int64 bytes);

/*
 * A literal for SQL, palloc'd.  Not for replication commands, whose grammar
 * knows no E'...'.
 */
extern char *ecm_quote_literal(const char *text);

/* "schema"."table", always quoted, palloc'd; NULL: it is gone. */
extern char *ecm_relation_name(Oid relation);

#endif							/* ECM_TEXT_H */
