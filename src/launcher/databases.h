/*-------------------------------------------------------------------------
 *
 * databases.h
 *	  The databases of this server, as far as the launcher knows them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_DATABASES_H
#define ECM_DATABASES_H

#include "postgres.h"

#include "base/clock.h"

/* A database, as of the last look at pg_database. */
typedef struct EcmDatabase
{
	Oid			dboid;
	NameData	datname;
	const char *unwanted;		/* why no stack may run there, or NULL */
	bool		may_look;		/* if so: a manager can say what is there */
} EcmDatabase;

extern void ecm_databases_init(void);

/*
 * Looks at pg_database, in a transaction of its own.  What ecm_database_find()
 * has returned before is not valid any more.
 */
extern void ecm_databases_scan(void);

/* When that is due again; and whether it is, or somebody has asked for it. */
extern EcmTime ecm_databases_scan_due(void);
extern bool ecm_databases_scan_is_due(EcmTime now);

/* It is due at once: the settings have changed. */
extern void ecm_databases_forget_scan(void);

/* NULL: there is no such database. */
extern EcmDatabase *ecm_database_find(Oid dboid);
extern const char *ecm_database_name(Oid dboid);

/*
 * A database that has been looked into, and has no extension (again_at 0), or
 * could not be looked into, is left alone: until then, or until somebody asks for
 * a stack there.
 */
extern void ecm_database_note_known(Oid dboid, EcmTime again_at);
extern void ecm_database_forget_known(Oid dboid);

/* A session could not allocate its entry: forget all that is known. */
extern void ecm_databases_forget_known_if_requested(void);

/* Does nobody know what is in that database, though somebody should? */
extern bool ecm_database_needs_look(const EcmDatabase *database, EcmTime now);

/*
 * The next database to look into, of those that have no entry; with_slot: of
 * those that have a slot.  NULL: there is none.
 */
extern EcmDatabase *ecm_database_next_to_look(EcmTime now, bool with_slot);

#endif							/* ECM_DATABASES_H */
