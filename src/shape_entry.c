/*-------------------------------------------------------------------------
 *
 * shape_entry.c
 *	  Entries of shape logs: decoded and checked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "shape_entry.h"

void
ecm_entry_report_corrupt(const EcmShapeDef *shape, uint64 lsn, uint64 op)
{
	char		offset[ECM_OFFSET_LEN];

	ecm_offset_format(offset, lsn, op);
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("log of shape \"%s\" is corrupt at or after offset %s",
					shape->handle, offset),
			 errhint("Drop the shape with electric_cm_drop_shape() and create it again with electric_cm_create_shape().")));
}

bool
ecm_entry_next(const EcmShapeDef *shape, const EcmChunkScan *cs, EcmChunkReader *r)
{
	uint64		lsn = r->in_txn ? r->lsn : cs->first_lsn;
	uint64		op = r->in_txn ? r->next_op : (uint64) cs->first_op;
	EcmChunkResult result = ecm_chunk_next(r);

	if (result == ECM_CHUNK_END)
		return false;

	if (result == ECM_CHUNK_CORRUPT ||
		(r->n_new != 0 && r->n_new != shape->ncolumns) ||
		(r->n_old != 0 && r->n_old != shape->ncolumns) ||
		(r->op == ECM_OP_DELETE ? r->n_old : r->n_new) == 0)
		ecm_entry_report_corrupt(shape, lsn, op);

	return true;
}

const EcmValue *
ecm_entry_key_column(EcmOp op, const EcmValue *new_values,
					 const EcmValue *old_values, int column)
{
	if (op != ECM_OP_DELETE &&
		(new_values[column].kind != ECM_VALUE_UNCHANGED || old_values == NULL))
		return &new_values[column];
	return &old_values[column];
}

int
ecm_entry_missing(const EcmValue *values, int nvalues)
{
	int			missing = 0;

	for (int i = 0; i < nvalues; i++)
	{
		if (values[i].kind == ECM_VALUE_UNCHANGED)
			missing++;
	}
	return missing;
}
