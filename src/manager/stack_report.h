/*-------------------------------------------------------------------------
 *
 * stack_report.h
 *	  What the manager shows of itself: copies its process's state into its
 *	  shared entry.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STACK_REPORT_H
#define ECM_STACK_REPORT_H

#include "postgres.h"

#include "base/errors.h"
#include "base/server_info.h"
#include "base/shmem.h"
#include "base/state.h"
#include "connection/conn.h"

/*
 * Shows the name of the stack's slot, whether we have created it (owned), and where
 * the WAL ended when that was last seen (seen_lsn, see slot_owner.c).  Also for a
 * stack that is not to run.  With 'unique' nothing is shown, and the result is
 * false, if another stack shows a slot of that name.
 */
extern bool ecm_report_slot(int stack_index, const char *slot_name, bool owned,
							XLogRecPtr seen_lsn, bool unique);

/* Shows the slot that we have made under a former name; "": there is none. */
extern void ecm_report_former_slot(int stack_index, const char *slot_name,
								   XLogRecPtr seen_lsn);

/* At start: shows the stack's names, and clears what a predecessor has shown. */
extern void ecm_report_init(int stack_index);

/* The effective settings, for electric_cm_options. */
extern void ecm_report_options(void);

/*
 * Shows status, step and retries, if they have changed, and wakes whoever waits for a
 * change.  waiting_for: "" for nothing.
 */
extern void ecm_report_state(const EcmState *state, const char *waiting_for,
							 int blocking_pid);
extern void ecm_report_error(const EcmError *err);
extern void ecm_report_lookup(const EcmReplicationInfo *info);

/* Shows the replication connection (NULL: closed) and the pool's sessions. */
extern void ecm_report_connections(const EcmConn *replication);

extern void ecm_report_positions(XLogRecPtr received, XLogRecPtr flushed,
								 XLogRecPtr acknowledged,
								 TimestampTz last_commit_at);
extern void ecm_report_shape_log_size(void);

#endif							/* ECM_STACK_REPORT_H */
