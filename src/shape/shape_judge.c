/*-------------------------------------------------------------------------
 *
 * shape_judge.c
 *	  Which captured entries stay in the log of a shape whose rows are read in
 *	  pieces.
 *
 *-------------------------------------------------------------------------
 */
#include "shape/shape_judge.h"

static bool
sees(const EcmJudge *judge, int piece, uint64_t xid)
{
	return judge->source.sees(judge->source.arg, piece, xid);
}

/*
 * The first piece whose snapshot sees the transaction; last + 1: none.
 * Transactions come in the order of their commits, so the answer is mostly that
 * for the one before, or near it: the search begins there, with steps that
 * double.  The snapshots of far pieces need not be loaded then.
 */
static int
first_to_see(const EcmJudge *judge, uint64_t xid)
{
	int			last = judge->source.last;
	int			unseen;			/* the greatest known not to see it */
	int			seen;			/* the least known to see it */
	int			step = 1;

	if (!sees(judge, last, xid))
		return last + 1;
	if (judge->asked && judge->first <= last)
		seen = judge->first;
	else
		seen = last;
	unseen = 0;
	if (!sees(judge, seen, xid))
	{
		unseen = seen;
		for (seen = unseen + step; seen < last && !sees(judge, seen, xid); seen = unseen + step)
		{
			unseen = seen;
			step *= 2;
		}
		if (seen > last)
			seen = last;
	}
	else
	{
		for (unseen = seen - step; unseen > 0 && sees(judge, unseen, xid); unseen = seen - step)
		{
			seen = unseen;
			step *= 2;
		}
		if (unseen < 0)
			unseen = 0;
	}
	while (seen - unseen > 1)
	{
		int			middle = unseen + (seen - unseen) / 2;

		if (sees(judge, middle, xid))
			seen = middle;
		else
			unseen = middle;
	}
	return seen;
}

EcmVerdict
ecm_judge_transaction(EcmJudge *judge, uint64_t xid)
{
	if (!judge->asked || judge->xid != xid)
	{
		judge->first = first_to_see(judge, xid);
		judge->xid = xid;
		judge->asked = true;
	}
	if (judge->first > judge->source.last)
		return ECM_STAYS;
	return judge->first == 1 ? ECM_GOES : ECM_BY_ENTRY;
}

EcmVerdict
ecm_judge_entry(const EcmJudge *judge, const EcmChunkReader *entry)
{
	return judge->source.is_beyond(judge->source.arg, judge->first - 1, entry) ?
		ECM_GOES : ECM_STAYS;
}

EcmVerdict
ecm_judge_again(uint64_t lsn, uint64_t op, const EcmChunkReader *entry)
{
	int			cmp = ecm_offset_cmp(entry->lsn, entry->opno, lsn, op);

	if (cmp < 0)
		return ECM_STAYS;
	return cmp == 0 ? ECM_REPLACED : ECM_GOES;
}

bool
ecm_judge_lacks(EcmHalves *halves, const EcmChunkReader *entry, EcmVerdict verdict)
{
	bool		follows = halves->gone && entry->lsn == halves->lsn &&
	entry->opno == halves->op + 1;
	int			i;

	halves->gone = verdict == ECM_GOES && entry->op == ECM_OP_DELETE;
	halves->lsn = entry->lsn;
	halves->op = entry->opno;
	if (!follows || verdict != ECM_STAYS || entry->op != ECM_OP_INSERT)
		return false;
	for (i = 0; i < entry->n_new; i++)
		if (entry->new_values[i].kind == ECM_VALUE_UNCHANGED)
			return true;
	return false;
}
