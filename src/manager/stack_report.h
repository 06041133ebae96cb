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
 * The name of the slot, whether we have created it, and where the WAL ended
 * when it was there; also of a stack that does not run but has left one.  unique:
 * not if another stack has that name already; false then.
 */
extern bool ecm_report_slot(int stack_index, const char *slot_name, bool owned,
							XLogRecPtr seen_lsn, bool unique);

/* The slot that we have made under a former name; "": none. */
extern void ecm_report_former_slot(int stack_index, const char *slot_name,
								   XLogRecPtr seen_lsn);

/* Names, and a clean slate, at start. */
extern void ecm_report_init(int stack_index);

/* The effective settings, for electric_cm_options. */
extern void ecm_report_options(void);

/* Status, step, retries; wakes whoever waits for a change. */
extern void ecm_report_state(const EcmState *state, const char *waiting_for,
							 int blocking_pid);
extern void ecm_report_error(const EcmError *err);
extern void ecm_report_lookup(const EcmReplicationInfo *info);

/* The replication connection (NULL: closed), and the pool's. */
extern void ecm_report_connections(const EcmConn *replication);

extern void ecm_report_positions(XLogRecPtr received, XLogRecPtr flushed,
								 XLogRecPtr acknowledged,
								 TimestampTz last_commit_at);
extern void ecm_report_shape_log_size(void);

#endif							/* ECM_STACK_REPORT_H */
