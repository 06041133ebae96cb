/*-------------------------------------------------------------------------
 *
 * server_info.h
 *	  What a stack finds out about its server and its slot when it connects.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SERVER_INFO_H
#define ECM_SERVER_INFO_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"

/* Each member is valid once the step that finds it out is done. */
typedef struct EcmReplicationInfo
{
	uint64		system_identifier;
	uint32		timeline_id;
	int			server_version_num;
	TimestampTz looked_up_at;
	bool		slot_created;	/* by this process, so the shapes are stale */
	XLogRecPtr	confirmed_flush_lsn;	/* of the slot, before streaming */
} EcmReplicationInfo;

#endif							/* ECM_SERVER_INFO_H */
