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
 * A table may have lost its replica identity, or loses this index; takes those
 * that have none any more out of the publication, if we have added them.
 */
extern void ecm_unpublish_note(Oid relation);
extern void ecm_unpublish_note_index(Oid index);
extern void ecm_unpublish_keyless(void);
extern void ecm_unpublish_forget(void);

#endif							/* ECM_UNPUBLISH_H */
