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

/*
 * Each member is valid once the step of the manager that finds it out is done:
 * pg_info, identify_system, create_slot.
 */
typedef struct EcmReplicationInfo
{
	uint64		system_identifier;
	uint32		timeline_id;
	int			server_version_num;
	TimestampTz looked_up_at;
	bool		slot_created;	/* this manager has created the slot, so
								 * shapes from before have missed changes */
	XLogRecPtr	confirmed_flush_lsn;	/* the slot's, before the stream is
										 * started */
} EcmReplicationInfo;

#endif							/* ECM_SERVER_INFO_H */
