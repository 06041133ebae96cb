/*-------------------------------------------------------------------------
 *
 * standbys.h
 *	  What the server's standbys have of its WAL.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STANDBYS_H
#define ECM_STANDBYS_H

#include "postgres.h"

#include "access/xlogdefs.h"

/*
 * Has each standby that may be promoted, as far as this server knows them, flushed the
 * WAL up to there?
 */
extern bool ecm_standbys_have(XLogRecPtr lsn);

/* Does synchronized_standby_slots say which they are?  Then they are to be waited for. */
extern bool ecm_standbys_are_named(void);

#endif							/* ECM_STANDBYS_H */
