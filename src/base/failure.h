/*-------------------------------------------------------------------------
 *
 * failure.h
 *	  How a step of the manager ends, and why it has failed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_FAILURE_H
#define ECM_FAILURE_H

#include "postgres.h"

#include "base/errors.h"

typedef enum EcmStepResult
{
	ECM_RESULT_PENDING,
	ECM_RESULT_DONE,
	ECM_RESULT_FAILED			/* the step's failure is filled */
} EcmStepResult;

typedef struct EcmStepFailure
{
	EcmError	err;
	EcmErrorKind kind;
} EcmStepFailure;

/* An error by what was being done: fills kind, and the hint if there is none. */
extern void ecm_failure_set(EcmStepFailure *failure, const EcmError *err,
							EcmErrorContext context);

/* A failure of our own.  Always ECM_RESULT_FAILED, for a step to return. */
extern EcmStepResult ecm_failure_make(EcmStepFailure *failure, EcmErrorKind kind,
									  const char *sqlstate, const char *message,
									  const char *detail, const char *hint);

#endif							/* ECM_FAILURE_H */
