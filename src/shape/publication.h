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
 * Discards the caches of the catalogs.  To be called by a session that has
 * seen a shape's row and is about to ask what is published.  The rows of a
 * committed transaction are visible a moment before other sessions receive its
 * invalidation messages.  In that moment, a table that the transaction has
 * taken out of the publication would still seem to be in it.
 */
extern void ecm_forget_catalogs(void);

/*
 * Is the table in our publication: by itself, by an ancestor, by its schema,
 * or because all tables are?  Within ecm_spi_begin() and ecm_spi_end().
 */
extern bool ecm_is_published(Oid relation);

/*
 * Is it, or the table that it is a partition of, an exception from our publication
 * FOR ALL TABLES?  Then nobody can add it.
 */
extern bool ecm_is_excepted(Oid relation);

/*
 * Does our publication have a row filter or a column list for the table, one
 * of its ancestors, or a table below it?
 */
extern bool ecm_is_filtered(Oid relation);

/*
 * Does our publication exist, does it publish all kinds of changes and of
 * columns, and under
 * the names of the leaves (not publish_via_partition_root)?  If not, even for
 * a moment, changes are missing from the stream.
 */
extern bool ecm_publishes_everything(void);

/*
 * Has walsenders look up anew whether a table and those below it are published, from the
 * end of the current command on.  ALTER TABLE SET SCHEMA of a partitioned table makes
 * them do so for that table only, and changes of its partitions would be missing from
 * the stream for as long as it lasts.  Not by InvalidatePublicationRels(): that fails
 * for a table which somebody is dropping.
 */
extern void ecm_tell_published_below(Oid relation);

/*
 * For a session that relies on the table's being published: until its
 * transaction ends, no pool session takes the table, or an ancestor, out of
 * the publication.
 */
extern void ecm_hold_published(Oid relation);

/*
 * note: records that we have added the table to the publication. was: has it
 * been added by us at any time, so that it may be added again?  Within
 * ecm_spi_begin() and ecm_spi_end().
 */
extern void ecm_note_published(Oid relation);
extern bool ecm_was_published(Oid relation);

/*
 * Until the transaction ends, keeps pool sessions from publishing the table
 * (mode ExclusiveLock), or from taking it out (mode ShareLock).  False, only
 * with 'dont_wait': another session has a lock that conflicts.
 */
extern bool ecm_lock_publishing(Oid relation, LOCKMODE mode, bool dont_wait);

/*
 * Takes a table out of a publication. 'member' is the OID of the row in
 * pg_publication_rel.  False: somebody else has done so, or is about to, or is
 * about to drop the table or the publication.
 */
extern bool ecm_unpublish_member(Oid member);

#endif							/* ECM_PUBLICATION_H */
