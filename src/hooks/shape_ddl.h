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

#include "access/attnum.h"

/*
 * The functions that take notes are called in the middle of a command, by hooks.c.  A
 * reason is a constant, which users will read.
 *
 * void: the shapes of the table end in any case, and those of the tables that it is a
 * partition of are resynced.  resync: all of these are resynced.  dropped_column: those
 * that have, or select by, the column are.  perhaps: they are compared with what the table
 * has become, and are resynced, or end, if they don't fit any more.  published: they are
 * resynced if the table, or one below it, is not published as before.  index: perhaps for
 * its table, whose key or replica identity it may be.  identity: a command has set the
 * table's replica identity; perhaps as well.
 */
extern void ecm_ddl_note_void(Oid relid, const char *reason);
extern void ecm_ddl_note_resync(Oid relid, const char *reason);
extern void ecm_ddl_note_dropped_column(Oid relid, AttrNumber column);
extern void ecm_ddl_note_perhaps(Oid relid);
extern void ecm_ddl_note_published(Oid relid);
extern void ecm_ddl_note_index(Oid index);
extern void ecm_ddl_note_identity(Oid relid);

/*
 * A type has changed; row_type: the type that a table or composite type has.  Shapes of
 * tables with a column of that type end.
 */
extern void ecm_ddl_note_row_type(Oid relid);
extern void ecm_ddl_note_type(Oid type, const char *reason);

/* A schema has been altered: its name, perhaps. */
extern void ecm_ddl_note_schema(Oid schema);

/* A schema (row of pg_publication_namespace) leaves a publication. */
extern void ecm_ddl_note_published_schema(Oid member);

/* A publication is created, altered or dropped. */
extern void ecm_ddl_note_publication(Oid publication);

/*
 * A table (row of pg_publication_rel) joins a publication, perhaps with a filter, or
 * leaves it.
 */
extern void ecm_ddl_note_member(Oid member);

/* A role is dropped, or all that it has: its shapes end. */
extern void ecm_ddl_note_owner(Oid role, const char *reason);

/* OAT_POST_ALTER of one of a table's columns, and of a table. */
extern void ecm_ddl_note_column(Oid relid);
extern void ecm_ddl_note_altered(Oid relid);

/*
 * Deals with what has been noted: invalidates the shapes that can't go on, also those
 * declared in this transaction before.  To be called where SQL may be run: before a
 * statement, and after it.  Does nothing outside of a transaction, or in one that has
 * failed.
 */
extern void ecm_ddl_apply(void);

/*
 * The last look, in the callback before the commit: for shapes that other sessions have
 * declared meanwhile, and for names that have become others for good.
 */
extern void ecm_ddl_apply_at_commit(void);

/* A statement, maybe within another one, begins; it ends, in whatever way. */
extern void ecm_ddl_enter_statement(void);
extern void ecm_ddl_leave_statement(void);

/* At the end of a transaction; and of a subtransaction. */
extern void ecm_ddl_forget(void);
extern void ecm_ddl_subxact_end(SubTransactionId subid, SubTransactionId parent,
								bool committed);

/* Is the extension there, and not just being created? */
extern bool ecm_ddl_has_extension(void);

#endif							/* ECM_SHAPE_DDL_H */
