/*-------------------------------------------------------------------------
 *
 * unpublish_tables.h
 *	  Tables that have no shape any more leave the publication.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_UNPUBLISH_TABLES_H
#define ECM_UNPUBLISH_TABLES_H

#include "postgres.h"

/*
 * For the hooks: this session is taking tables without shapes out of the
 * publication.  They need not look for shapes that this would invalidate.
 */
extern bool ecm_is_unpublishing;

#endif							/* ECM_UNPUBLISH_TABLES_H */
