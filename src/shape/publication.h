/*-------------------------------------------------------------------------
 *
 * publication.h
 *	  Is a table in the stack's publication, and does that publish all there is?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_PUBLICATION_H
#define ECM_PUBLICATION_H

#include "postgres.h"

#include "storage/lockdefs.h"

/*
 * For a session that has seen a shape, and asks what is published: from here on
 * it reads the catalogs.  A transaction's rows can be seen a moment before the
 * caches of others are told what it has changed, and in that moment the table
 * that it has taken out of the publication seems to be in it.
 */
extern void ecm_forget_catalogs(void);

/*
 * Is the table in our publication, by itself or with an ancestor, its schema
 * or everything?  Within ecm_spi_begin/end.
 */
extern bool ecm_is_published(Oid relation);

/*
 * Does it have a row filter or a column list for the table, one of its ancestors
 * or what is below it?
 */
extern bool ecm_is_filtered(Oid relation);

/*
 * Is there our publication, and does it publish all kinds of changes, and name
 * the table that each is of?  Where it doesn't, even for a moment, changes are missing from
 * the stream.
 */
extern bool ecm_publishes_everything(void);

/* For a session that is about to publish a table: keeps it as it is. */
extern void ecm_hold_published(Oid relation);

/*
 * Within ecm_spi_begin/end: it has been added by us; and has it ever been, so
 * that it may be again?
 */
extern void ecm_note_published(Oid relation);
extern bool ecm_was_published(Oid relation);

/*
 * Until the transaction ends: keeps sessions of the pool from publishing the
 * table (ExclusiveLock), or from taking it out (ShareLock).  False, only with
 * 'dont_wait': somebody else has such a lock.
 */
extern bool ecm_lock_publishing(Oid relation, LOCKMODE mode, bool dont_wait);

/*
 * Takes a table out of a publication; by the OID of its row in
 * pg_publication_rel.  False: somebody is about to do the same, or to drop the
 * table or the publication.
 */
extern bool ecm_unpublish_member(Oid member);

#endif							/* ECM_PUBLICATION_H */
