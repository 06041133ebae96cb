/*-------------------------------------------------------------------------
 *
 * stack_catalog.h
 *	  What the stack remembers about the server and the database it was last
 *	  seen in, and whether its shapes still belong there.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STACK_CATALOG_H
#define ECM_STACK_CATALOG_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "base/server_info.h"
#include "base/shmem.h"

/* The row of _electric_cm.stack. */
typedef struct EcmRemembered
{
	Oid			database_oid;
	bool		known;			/* the next two are set */
	uint64		system_identifier;
	uint32		timeline_id;
	bool		stopped;
	XLogRecPtr	clean_stop_lsn; /* invalid: the last end was not a clean one */
	XLogRecPtr	seen_lsn;		/* see server_runs.c; invalid: never looked */
	bool		owns_slot;		/* we created a slot ... */
	NameData	slot_name;
	NameData	publication;	/* that the stream was read by; empty: none yet */
	char		message_prefix[64];
} EcmRemembered;

/* Reads the row; within a transaction.  ERROR if there is none. */
extern void ecm_timeline_read(EcmRemembered *remembered);

/*
 * The prefix of the stack's own messages in the stream, palloc'd; within a
 * transaction.
 */
extern char *ecm_message_prefix(void);

/*
 * Why the shapes do not belong to the stream that is about to start, or NULL.
 * Looks at nothing but this and electric_cm.publication_name.
 */
extern const char *ecm_timeline_mismatch(const EcmRemembered *remembered,
										 const EcmReplicationInfo *info,
										 Oid database_oid);

/*
 * Is this another server, or another history of the same one?  A slot that is
 * there nevertheless has come with a copy of the data directory, as it was at
 * some moment of the old history: the WAL that it needs need not be here.  Pure.
 */
extern bool ecm_timeline_left(const EcmRemembered *remembered,
							  const EcmReplicationInfo *info);

/*
 * The statements that record the present, after throwing the shapes away if
 * there is a reason to; NULL if there is nothing to write.
 */
extern char *ecm_timeline_record_sql(const EcmRemembered *remembered,
									 const EcmReplicationInfo *info,
									 Oid database_oid, const char *mismatch);

/*
 * Records the last acknowledged LSN of a clean stop, in the current
 * transaction.
 */
extern void ecm_timeline_record_stop(XLogRecPtr lsn);

/*
 * Drops the publications that the stack has created (not one that the user has
 * made later under such a name); within ecm_spi_begin() and _end().
 */
extern void ecm_timeline_drop_publications(void);

#endif							/* ECM_STACK_CATALOG_H */
