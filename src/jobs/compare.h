/*-------------------------------------------------------------------------
 *
 * compare.h
 *	  Compares the rows that logs come to with those of their table, and
 *	  writes to the logs what differs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_COMPARE_H
#define ECM_COMPARE_H

#include "postgres.h"

#include "jobs/fold.h"
#include "jobs/read_table.h"

typedef struct EcmCompare EcmCompare;

/* For shapes that one query reads, each of which has a gap. */
extern EcmCompare *ecm_compare_begin(EcmReadShape **shapes, int n);

/* The log of the shape with that number, from 0, as a whole: up to its gap. */
extern void ecm_compare_log(EcmCompare *compare, int member);

/* Or some of its entries, in their order: to be put here, with the member set. */
extern EcmFoldSort *ecm_compare_entries(EcmCompare *compare);

/* A row of the table.  For EcmReadRange.put; arg: the EcmCompare. */
extern void ecm_compare_row(void *arg, int member, const EcmValue *values);

/*
 * Compares, and writes: from the commit on, the gaps are closed as far as these rows are
 * concerned.
 */
extern void ecm_compare_end(EcmCompare *compare);

/* Instead: nothing has been written. */
extern void ecm_compare_cancel(EcmCompare *compare);

/* What a log has up to its gap, for those who read it in parts. */
extern void ecm_compare_fold(const EcmShapeDef *def, Snapshot snapshot, EcmFold *fold);

/* The sizes of the logs of some shapes (bytes), all in all. */
extern int64 ecm_compare_log_bytes(EcmReadShape **shapes, int n);

#endif							/* ECM_COMPARE_H */
