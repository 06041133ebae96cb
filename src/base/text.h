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
 * A copy of a text from shared memory that can be shown in this session,
 * palloc'd.  The text may have been written by a process of a database with
 * another encoding.  If it is not valid in this database's encoding (or, in
 * SQL_ASCII, in the client's), a question mark replaces each byte that is not
 * ASCII.
 */
extern char *ecm_valid_text(const char *text);

/* A size as pg_size_pretty() has it, palloc'd. */
extern char *ecm_size_text(int64 bytes);

/*
 * A literal for SQL, palloc'd.  Not for replication commands, whose grammar
 * knows no E'...'.
 */
extern char *ecm_quote_literal(const char *text);

/* "schema"."table", always quoted, palloc'd; NULL: the table is gone. */
extern char *ecm_relation_name(Oid relation);

#endif							/* ECM_TEXT_H */
