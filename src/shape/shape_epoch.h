/*-------------------------------------------------------------------------
 *
 * shape_epoch.h
 *	  Epochs: the failovers that logs have survived, in the offsets of their
 *	  entries.
 *
 * A server that takes over goes on with the logs from where the former primary's
 * timeline was left.  What that one committed beyond may have been read, but never
 * happened here; and other transactions may commit here at the same LSNs.  So each
 * takeover begins an epoch, with a random number, which is in the ops of all that
 * commits since (see shape_log.h for where).  The table _electric_cm.epoch has them.
 * An offset of the lost history is then none of this log, whoever reads on with it.
 *
 * An epoch depends on the LSN of a commit alone: what is decoded again gets the same
 * offset.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_EPOCH_H
#define ECM_SHAPE_EPOCH_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "utils/snapshot.h"

#include "shape/offset_epoch.h"

/*
 * A number for a new epoch.  Its row has to be committed before a consumer starts: these
 * read the table once.
 */
extern int32 ecm_new_epoch(void);

/* For who writes entries of the stream: reads the table, in a transaction, for ... */
extern void ecm_epochs_load(Snapshot snapshot);

/* ... the op of a transaction's first entry, by the LSN of its commit record. */
extern int64 ecm_epoch_first_op(XLogRecPtr commit_lsn);

/* The op of a cut at an LSN: see shape_log.h. */
extern int64 ecm_epoch_cut_op(Snapshot snapshot, XLogRecPtr lsn);

/* For readers: an offset of the stream; 'op' with its epoch in the upper half. */
extern EcmEpochVerdict ecm_epoch_judge_offset(Snapshot snapshot, XLogRecPtr lsn, uint64 op);

#endif							/* ECM_SHAPE_EPOCH_H */
