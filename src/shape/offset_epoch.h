/*-------------------------------------------------------------------------
 *
 * offset_epoch.h
 *	  Which epoch an LSN is in, and whether an offset has the epoch of its LSN.
 *
 * Pure: no server, memory is the caller's.  Compiled into the extension and
 * into the unit tests.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_OFFSET_EPOCH_H
#define ECM_OFFSET_EPOCH_H

#include <stdint.h>

/* An epoch's number is random, from 1 to ECM_MAX_EPOCH; 0: before the first one. */
#define ECM_EPOCH_BITS	29
#define ECM_MAX_EPOCH	((UINT32_C(1) << ECM_EPOCH_BITS) - 1)

typedef struct EcmEpoch
{
	uint64_t	began_at;		/* LSN; until where the next one began */
	uint32_t	number;
} EcmEpoch;

/* The epochs must ascend by their LSNs. */
extern uint32_t ecm_epoch_at(const EcmEpoch *epochs, int n, uint64_t lsn);

/* What is to be said of an offset of the stream, by its LSN and its epoch's number. */
typedef enum EcmEpochVerdict
{
	ECM_EPOCH_RIGHT,
	ECM_EPOCH_OTHER,			/* not the one of its LSN, and never will be */
	ECM_EPOCH_UNKNOWN			/* not the one of its LSN, as far as is known;
								 * but one may be added that has this number */
} EcmEpochVerdict;

extern EcmEpochVerdict ecm_epoch_judge(const EcmEpoch *epochs, int n, uint64_t lsn,
									   uint32_t number);

#endif							/* ECM_OFFSET_EPOCH_H */
