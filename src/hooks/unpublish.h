/*-------------------------------------------------------------------------
 *
 * unpublish.h
 *	  Tables without a replica identity leave the publication.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_UNPUBLISH_H
#define ECM_UNPUBLISH_H

#include "postgres.h"

/*
 * In the middle of a command: notes a table that may have lost its replica identity, or
 * have one that cannot be published, or
 * the table of an index that is being dropped.
 */
extern void ecm_unpublish_note(Oid relation);
extern void ecm_unpublish_note_index(Oid index);

/*
 * After a command, where SQL may be run: takes those of the noted tables that have no
 * replica identity any more out of the publication, if we have added them.
 */
extern void ecm_unpublish_keyless(void);

/* At the end of a transaction. */
extern void ecm_unpublish_forget(void);

#endif							/* ECM_UNPUBLISH_H */
