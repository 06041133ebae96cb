/*-------------------------------------------------------------------------
 *
 * event_name.h
 *	  What can happen to a stack: the names of events, their severities and
 *	  their meanings.
 *
 * Pure: one table.  Each row has one severity.  Where the same name is more
 * serious in one case than in another, it has two rows, such as
 * MANAGER_RESTARTING (by request) and MANAGER_RESTARTING_AFTER_FAILURE.  To add
 * an event, add a row here, one in event_name.c and one in the documentation.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_EVENT_NAME_H
#define ECM_EVENT_NAME_H

typedef enum EcmSeverity
{
	ECM_SEVERITY_LOG,
	ECM_SEVERITY_WARNING,
	ECM_SEVERITY_ERROR
} EcmSeverity;

typedef enum EcmEventName
{
	ECM_EVENT_CONFIG_ERROR,
	ECM_EVENT_CONNECTION_ERROR,
	ECM_EVENT_CONNECTION_LOCK_ACQUIRED,
	ECM_EVENT_CONSUMER_RESUMED,
	ECM_EVENT_CONSUMER_STALLED,
	ECM_EVENT_FAILED_TO_ACQUIRE_CONNECTION_LOCK,
	ECM_EVENT_LOCK_HOLDER_TERMINATED,
	ECM_EVENT_MANAGER_HANGS,
	ECM_EVENT_MANAGER_RESTARTING,	/* by request */
	ECM_EVENT_MANAGER_RESTARTING_AFTER_FAILURE, /* it has ended by itself */
	ECM_EVENT_MANAGER_RESUMED,
	ECM_EVENT_MANAGER_STOPPED,
	ECM_EVENT_NO_FREE_WORKER,
	ECM_EVENT_PG_INFO_LOOKED_UP,
	ECM_EVENT_READER_LOST,
	ECM_EVENT_READY,
	ECM_EVENT_REPLICATION_SLOT_CREATED,
	ECM_EVENT_REPLICATION_SLOT_CREATION_BLOCKED,
	ECM_EVENT_REPLICATION_SLOT_DROPPED,
	ECM_EVENT_REPLICATION_SLOT_REPLACED,	/* ... as was to be expected */
	ECM_EVENT_REPLICATION_SLOT_LEFT,
	ECM_EVENT_REPLICATION_SLOT_LOST,
	ECM_EVENT_REPLICATION_SLOT_UNRESERVED,
	ECM_EVENT_RETAINED_WAL_LIMIT,
	ECM_EVENT_RETAINED_WAL_LIMIT_SPARED,	/* dropping the slot would free
											 * nothing */
	ECM_EVENT_RETAINED_WAL_WARNING,
	ECM_EVENT_RETAINED_WAL_WARNING_OVER,
	ECM_EVENT_SETTINGS_CHANGED,
	ECM_EVENT_SHAPE_CREATION_FAILED,
	ECM_EVENT_SHAPE_ERRORED,
	ECM_EVENT_SHAPE_INVALIDATED,
	ECM_EVENT_SHAPE_LOG_FOLDED,
	ECM_EVENT_SHAPE_RESYNCED,
	ECM_EVENT_SHAPES_KEPT,
	ECM_EVENT_SHAPES_RESYNCING,
	ECM_EVENT_NO_SHAPES_RESYNCING,	/* there are none */
	ECM_EVENT_SLOT_NAME_TAKEN,
	ECM_EVENT_STACK_PAUSED,
	ECM_EVENT_STACK_RESTARTING,
	ECM_EVENT_STACK_RESUMED,
	ECM_EVENT_STREAM_GIVEN_UP,
	ECM_EVENT_TOO_MANY_STACKS,
	ECM_EVENT_UNKNOWN_MESSAGE,
	ECM_EVENT_VERSION_MISMATCH,
	ECM_EVENT_WAITING_FOR_CONNECTION_LOCK,
	ECM_EVENT_WAL_FREE_SPACE_LIMIT,
	ECM_EVENT_WAL_FREE_SPACE_LIMIT_SPARED,	/* likewise */
	ECM_EVENT_WAL_FREE_SPACE_LOW,
	ECM_EVENT_WAL_FREE_SPACE_OVER,
	ECM_EVENT_WARNING			/* anything that has no name of its own */
} EcmEventName;

#define ECM_EVENT_COUNT		(ECM_EVENT_WARNING + 1)

extern const char *ecm_severity_name(EcmSeverity severity);

/* The name that users see, and the event's severity. */
extern const char *ecm_event_name(EcmEventName event);
extern EcmSeverity ecm_event_severity(EcmEventName event);

/*
 * The text of the event's notification.  Any role that can log in can LISTEN,
 * so it is fixed, and the message and detail of the event, which may quote a
 * row, a where clause or another database's name, are not sent.
 */
extern const char *ecm_event_meaning(EcmEventName event);

#endif							/* ECM_EVENT_NAME_H */
