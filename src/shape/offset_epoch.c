/*-------------------------------------------------------------------------
 *
 * offset_epoch.c
 *	  Which epoch an LSN is in, and whether an offset has the epoch of its LSN.
 *
 * Epochs are only ever added behind the others, where the last of these has been
 * left.  So the epoch of an LSN changes only from that of before to a new one.
 *
 *-------------------------------------------------------------------------
 */
#include "shape/offset_epoch.h"

/* Mostly it is the last one. */
uint32_t
ecm_epoch_at(const EcmEpoch *epochs, int n, uint64_t lsn)
{
	int			i = n;

	while (i > 0 && epochs[i - 1].began_at > lsn)
		i--;
	return i > 0 ? epochs[i - 1].number : 0;
}

EcmEpochVerdict
ecm_epoch_judge(const EcmEpoch *epochs, int n, uint64_t lsn, uint32_t number)
{
	int			i;

	if (ecm_epoch_at(epochs, n, lsn) == number)
		return ECM_EPOCH_RIGHT;
	for (i = 0; i < n && epochs[i].number != number; i++)
		;
	if (number == 0 || i < n || (n > 0 && lsn < epochs[n - 1].began_at))
		return ECM_EPOCH_OTHER;
	return ECM_EPOCH_UNKNOWN;
}
