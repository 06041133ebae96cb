/*-------------------------------------------------------------------------
 *
 * shape_epoch.c
 *	  The rows of _electric_cm.epoch.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "base/compat.h"
#include "base/table_writer.h"
#include "shape/shape_epoch.h"
#include "shape/shape_log.h"

/* columns of _electric_cm.epoch */
#define EPOCH_BEGAN_AT	1
#define EPOCH_NUMBER	2

typedef struct Epochs
{
	EcmEpoch   *epochs;			/* in the order of their LSNs */
	int			n;
} Epochs;

/* What this process has loaded. */
static Epochs loaded;

int32
ecm_new_epoch(void)
{
	return (int32) Max(ecm_random_identity() & ECM_MAX_EPOCH, 1);
}

/* In the current memory context. */
static Epochs
read_epochs(Snapshot snapshot)
{
	Relation	rel = table_open(ecm_own_relid("epoch"), AccessShareLock);
	Relation	index = index_open(ecm_own_relid("epoch_pkey"), AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	IndexScanDesc scan = ecm_index_beginscan(rel, index, snapshot, 0);
	int			max = 8;
	Epochs		result = {.epochs = palloc(sizeof(EcmEpoch) * max)};

	index_rescan(scan, NULL, 0, NULL, 0);
	while (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		slot_getallattrs(slot);
		if (result.n == max)
		{
			max *= 2;
			result.epochs = repalloc(result.epochs, sizeof(EcmEpoch) * max);
		}
		result.epochs[result.n].began_at = DatumGetLSN(slot->tts_values[EPOCH_BEGAN_AT - 1]);
		result.epochs[result.n++].number = (uint32)
			DatumGetInt32(slot->tts_values[EPOCH_NUMBER - 1]);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(rel, NoLock);
	return result;
}

void
ecm_epochs_load(Snapshot snapshot)
{
	Epochs		epochs = read_epochs(snapshot);
	Size		size = sizeof(EcmEpoch) * Max(epochs.n, 1);
	EcmEpoch   *copy = MemoryContextAlloc(TopMemoryContext, size);

	memcpy(copy, epochs.epochs, sizeof(EcmEpoch) * epochs.n);
	pfree(epochs.epochs);
	if (loaded.epochs != NULL)
		pfree(loaded.epochs);
	loaded.epochs = copy;
	loaded.n = epochs.n;
}

int64
ecm_epoch_first_op(XLogRecPtr commit_lsn)
{
	return (int64) ((uint64) ecm_epoch_at(loaded.epochs, loaded.n, commit_lsn)
					<< ECM_IDENTITY_SHIFT);
}

EcmEpochVerdict
ecm_epoch_judge_offset(Snapshot snapshot, XLogRecPtr lsn, uint64 op)
{
	Epochs		known = read_epochs(snapshot);
	EcmEpochVerdict verdict = ecm_epoch_judge(known.epochs, known.n, lsn,
											  (uint32) (op >> ECM_IDENTITY_SHIFT));

	pfree(known.epochs);
	return verdict;
}

int64
ecm_epoch_cut_op(Snapshot snapshot, XLogRecPtr lsn)
{
	Epochs		known = read_epochs(snapshot);
	uint32		number = ecm_epoch_at(known.epochs, known.n, lsn);

	pfree(known.epochs);
	return (int64) ((uint64) number << ECM_IDENTITY_SHIFT | ECM_CUT_NUMBER);
}
