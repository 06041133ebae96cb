/*-------------------------------------------------------------------------
 *
 * shape_ddl.h
 *	  What DDL does to shapes: noted while a command runs, dealt with after it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_DDL_H
#define ECM_SHAPE_DDL_H

#include "postgres.h"

/*
 * In the middle of a command.  Reasons are constants.
 *
 * void: the table's shapes, and those of what it is a partition of, can't go
 * on, whatever else is true.  perhaps: they are compared with what the table
 * has become.  published: so is whether the table, and what is below it, is
 * published still.  An index may be a table's key, or its replica identity.
 */
extern void ecm_ddl_note_void(Oid relid, const char *reason);
extern void ecm_ddl_note_perhaps(Oid relid);
extern void ecm_ddl_note_published(Oid relid);
extern void ecm_ddl_note_index(Oid index);

/* The type that each table has, and may be that of another table's column. */
extern void ecm_ddl_note_row_type(Oid relid);
extern void ecm_ddl_note_type(Oid type, const char *reason);

extern void ecm_ddl_note_schema(Oid schema);	/* its name */
extern void ecm_ddl_note_published_schema(Oid member);	/* it is not any more */
extern void ecm_ddl_note_publication(Oid publication);

/* A table joins a publication, perhaps with a filter, or leaves it. */
extern void ecm_ddl_note_member(Oid member);
extern void ecm_ddl_note_owner(Oid role, const char *reason);

/* OAT_POST_ALTER of one of a table's columns, and of a table. */
extern void ecm_ddl_note_column(Oid relid);
extern void ecm_ddl_note_altered(Oid relid);

/*
 * Deals with what has been noted: deletes the shapes that can't go on, those
 * declared in this transaction among them.  At a place where SQL may be run:
 * before a statement, and after it.
 */
extern void ecm_ddl_apply(void);

/* The last look, before the commit. */
extern void ecm_ddl_apply_at_commit(void);

/* Statements within statements: entering one, leaving it in any way. */
extern void ecm_ddl_enter_statement(void);
extern void ecm_ddl_leave_statement(void);

/* At the end of a transaction; and of a subtransaction. */
extern void ecm_ddl_forget(void);
extern void ecm_ddl_subxact_end(SubTransactionId subid, SubTransactionId parent,
								bool committed);

/* Is the extension there, and not just being created? */
extern bool ecm_ddl_has_extension(void);

#endif							/* ECM_SHAPE_DDL_H */
