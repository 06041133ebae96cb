/*-------------------------------------------------------------------------
 *
 * shape_settings.h
 *	  The settings that count for shapes, whatever session asks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_SETTINGS_H
#define ECM_SHAPE_SETTINGS_H

#include "postgres.h"

/*
 * The publication by which this database's stack reads the stream, or read it
 * when it last ran; palloc'd.  In a transaction.
 */
extern char *ecm_own_publication_name(void);

/*
 * Other settings: the stack's value, unless a superuser has set another value
 * for this session, its role, or the function that runs.
 */
extern bool ecm_publishes_manually(void);
extern bool ecm_may_set_identity(void);
extern int	ecm_shapes_allowed(void);

#endif							/* ECM_SHAPE_SETTINGS_H */
