/*-------------------------------------------------------------------------
 *
 * event_name.c
 *	  What can happen to a stack: the names of events, their severities and
 *	  their meanings.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>

#include "base/event_name.h"

#define LOG			ECM_SEVERITY_LOG
#define WARNING		ECM_SEVERITY_WARNING
#define ERROR		ECM_SEVERITY_ERROR

static const struct
{
	const char *name;
	EcmSeverity severity;
	const char *meaning;
}			events[ECM_EVENT_COUNT] =

{
	[ECM_EVENT_CONFIG_ERROR] = {"config_error", ERROR,
	"the stack has failed"},
	[ECM_EVENT_CONNECTION_ERROR] = {"connection_error", WARNING,
	"a connection of the stack has failed"},
	[ECM_EVENT_CONNECTION_LOCK_ACQUIRED] = {"connection_lock_acquired", LOG,
	"the stack holds its exclusive lock"},
	[ECM_EVENT_CONSUMER_RESUMED] = {"consumer_resumed", LOG,
	"a consumer makes progress again"},
	[ECM_EVENT_CONSUMER_STALLED] = {"consumer_stalled", WARNING,
	"a consumer makes no progress"},
	[ECM_EVENT_FAILED_TO_ACQUIRE_CONNECTION_LOCK] = {"failed_to_acquire_connection_lock", WARNING,
	"the stack's exclusive lock could not be acquired"},
	[ECM_EVENT_LOCK_HOLDER_TERMINATED] = {"lock_holder_terminated", WARNING,
	"who held the stack's exclusive lock was terminated"},
	[ECM_EVENT_MANAGER_HANGS] = {"manager_hangs", WARNING,
	"the stack's manager does not move"},
	[ECM_EVENT_MANAGER_RESTARTING] = {"manager_restarting", LOG,
	"the stack's manager is started again"},
	[ECM_EVENT_MANAGER_RESTARTING_AFTER_FAILURE] = {"manager_restarting", WARNING,
	"the stack's manager is started again"},
	[ECM_EVENT_MANAGER_RESUMED] = {"manager_resumed", LOG,
	"the stack's manager moves again"},
	[ECM_EVENT_MANAGER_STOPPED] = {"manager_stopped", LOG,
	"the stack's manager has stopped"},
	[ECM_EVENT_NO_FREE_WORKER] = {"no_free_worker", WARNING,
	"no background worker is free for the stack"},
	[ECM_EVENT_PG_INFO_LOOKED_UP] = {"pg_info_looked_up", LOG,
	"the server's version and timeline are known"},
	[ECM_EVENT_READER_LOST] = {"reader_lost", WARNING,
	"named readers have lost a shape"},
	[ECM_EVENT_READY] = {"ready", LOG,
	"streaming"},
	[ECM_EVENT_REPLICATION_SLOT_CREATED] = {"replication_slot_created", LOG,
	"the replication slot was created"},
	[ECM_EVENT_REPLICATION_SLOT_CREATION_BLOCKED] = {"replication_slot_creation_blocked_by_pending_transactions", WARNING,
	"the replication slot's creation waits for open transactions"},
	[ECM_EVENT_REPLICATION_SLOT_DROPPED] = {"replication_slot_dropped", WARNING,
	"the replication slot was dropped"},
	[ECM_EVENT_REPLICATION_SLOT_REPLACED] = {"replication_slot_dropped", LOG,
	"the replication slot was dropped"},
	[ECM_EVENT_REPLICATION_SLOT_LEFT] = {"replication_slot_left", WARNING,
	"a replication slot stays behind"},
	[ECM_EVENT_REPLICATION_SLOT_LOST] = {"replication_slot_lost", ERROR,
	"the replication slot has lost WAL that it needs"},
	[ECM_EVENT_REPLICATION_SLOT_UNRESERVED] = {"replication_slot_unreserved", WARNING,
	"the replication slot is about to lose WAL that it needs"},
	[ECM_EVENT_RETAINED_WAL_LIMIT] = {"retained_wal_limit", ERROR,
	"the replication slot retains more WAL than it may"},
	[ECM_EVENT_RETAINED_WAL_LIMIT_SPARED] = {"retained_wal_limit", WARNING,
	"the replication slot retains more WAL than it may"},
	[ECM_EVENT_RETAINED_WAL_WARNING] = {"retained_wal_warning", WARNING,
	"the replication slot retains much WAL"},
	[ECM_EVENT_RETAINED_WAL_WARNING_OVER] = {"retained_wal_warning_over", LOG,
	"the replication slot does not retain much WAL any more"},
	[ECM_EVENT_SETTINGS_CHANGED] = {"settings_changed", LOG,
	"settings have changed"},
	[ECM_EVENT_SHAPE_CREATION_FAILED] = {"shape_creation_failed", WARNING,
	"a shape could not be created yet"},
	[ECM_EVENT_SHAPE_ERRORED] = {"shape_errored", WARNING,
	"a shape is errored"},
	[ECM_EVENT_SHAPE_INVALIDATED] = {"shape_invalidated", LOG,
	"shapes are gone"},
	[ECM_EVENT_SHAPE_LOG_FOLDED] = {"shape_log_folded", LOG,
	"a shape's log was folded"},
	[ECM_EVENT_SHAPE_RESYNCED] = {"shape_resynced", LOG,
	"shapes were compared with their table"},
	[ECM_EVENT_SHAPES_KEPT] = {"shapes_kept", WARNING,
	"the shapes go on after a failover, or an upgrade of the cluster"},
	[ECM_EVENT_SHAPES_RESYNCING] = {"shapes_resyncing", WARNING,
	"all shapes are compared with their tables"},
	[ECM_EVENT_NO_SHAPES_RESYNCING] = {"shapes_resyncing", LOG,
	"all shapes are compared with their tables"},
	[ECM_EVENT_SLOT_NAME_TAKEN] = {"slot_name_taken", LOG,
	"the replication slot's name is another database's"},
	[ECM_EVENT_STACK_PAUSED] = {"stack_paused", LOG,
	"the stack makes way for a command"},
	[ECM_EVENT_STACK_RESTARTING] = {"stack_restarting", WARNING,
	"the stack starts afresh"},
	[ECM_EVENT_STACK_RESUMED] = {"stack_resumed", LOG,
	"the stack comes back after a command"},
	[ECM_EVENT_STREAM_GIVEN_UP] = {"stream_given_up", ERROR,
	"the stream fails at one place, and begins anew behind it"},
	[ECM_EVENT_TOO_MANY_STACKS] = {"too_many_stacks", WARNING,
	"there are more databases than electric_cm.max_managers"},
	[ECM_EVENT_UNKNOWN_MESSAGE] = {"unknown_message", WARNING,
	"a message in the stream was ignored"},
	[ECM_EVENT_VERSION_MISMATCH] = {"version_mismatch", ERROR,
	"the extension's version does not go with the library's"},
	[ECM_EVENT_WAITING_FOR_CONNECTION_LOCK] = {"waiting_for_connection_lock", LOG,
	"the stack waits for its exclusive lock"},
	[ECM_EVENT_WAL_FREE_SPACE_LIMIT] = {"wal_free_space_limit", ERROR,
	"there is less free space for WAL than there must be"},
	[ECM_EVENT_WAL_FREE_SPACE_LIMIT_SPARED] = {"wal_free_space_limit", WARNING,
	"there is less free space for WAL than there must be"},
	[ECM_EVENT_WAL_FREE_SPACE_LOW] = {"wal_free_space_low", WARNING,
	"free space for WAL is low"},
	[ECM_EVENT_WAL_FREE_SPACE_OVER] = {"wal_free_space_over", LOG,
	"there is enough free space for WAL again"},
	[ECM_EVENT_WARNING] = {"warning", WARNING,
	"see electric_cm_events"}
};

#undef LOG
#undef WARNING
#undef ERROR

const char *
ecm_severity_name(EcmSeverity severity)
{
	switch (severity)
	{
		case ECM_SEVERITY_LOG:
			return "log";
		case ECM_SEVERITY_WARNING:
			return "warning";
		case ECM_SEVERITY_ERROR:
			return "error";
	}
	return NULL;
}

const char *
ecm_event_name(EcmEventName event)
{
	return events[event].name;
}

EcmSeverity
ecm_event_severity(EcmEventName event)
{
	return events[event].severity;
}

const char *
ecm_event_meaning(EcmEventName event)
{
	return events[event].meaning;
}
