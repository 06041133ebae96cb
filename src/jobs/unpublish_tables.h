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
 * For the hooks: this session takes tables without shapes out of the
 * publication just now, and that concerns nobody.
 */
extern bool ecm_is_unpublishing;

#endif							/* ECM_UNPUBLISH_TABLES_H */
