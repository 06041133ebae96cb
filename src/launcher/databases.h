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
	const char *unwanted;		/* why no stack may run there, or NULL; a
								 * constant */
	bool		may_look;		/* a manager can connect, to look whether
								 * there is a slot of ours; matters if
								 * unwanted */
} EcmDatabase;

extern void ecm_databases_init(void);

/*
 * Reads pg_database, in a transaction of its own, and clears the request to do so.
 * Pointers that ecm_database_find() and the like have returned are invalid then.
 */
extern void ecm_databases_scan(void);

/* When the next scan is due; and whether it is, or somebody has requested one. */
extern EcmTime ecm_databases_scan_due(void);
extern bool ecm_databases_scan_is_due(EcmTime now);

/* Makes a scan due at once, since the settings have changed. */
extern void ecm_databases_forget_scan(void);

/* NULL: there is no such database, as of the last scan. */
extern EcmDatabase *ecm_database_find(Oid dboid);
extern const char *ecm_database_name(Oid dboid);

/*
 * Notes that a database needs no look until again_at, since the last one has failed;
 * 0: for good, since it has no extension.  If somebody asks for a stack there,
 * forget_known makes that void.
 */
extern void ecm_database_note_known(Oid dboid, EcmTime again_at);
extern void ecm_database_forget_known(Oid dboid);

/*
 * If a session has asked for a stack but found no entry free (reprobe_all_requested):
 * forgets all that is known, so that its database is looked into when there is one.
 */
extern void ecm_databases_forget_known_if_requested(void);

/* Is it unknown what is in this database, and does it matter? */
extern bool ecm_database_needs_look(const EcmDatabase *database, EcmTime now);

/*
 * A database that needs a look and has no entry; with_slot: and has a slot.  NULL:
 * there is none.
 */
extern EcmDatabase *ecm_database_next_to_look(EcmTime now, bool with_slot);

#endif							/* ECM_DATABASES_H */
