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
	ECM_RESULT_PENDING,			/* the step waits for something; poll again */
	ECM_RESULT_DONE,
	ECM_RESULT_FAILED			/* the step has filled its EcmStepFailure */
} EcmStepResult;

typedef struct EcmStepFailure
{
	EcmError	err;
	EcmErrorKind kind;
} EcmStepFailure;

/*
 * Makes a failure of an error that was met in a context: sets its kind by the
 * rules of errors.c, and their hint if the error has none.
 */
extern void ecm_failure_set(EcmStepFailure *failure, const EcmError *err,
							EcmErrorContext context);

/*
 * Makes a failure that we have found ourselves, whose kind the caller knows.
 * Returns ECM_RESULT_FAILED always, so that a step can end with "return
 * ecm_failure_make(...)".
 */
extern EcmStepResult ecm_failure_make(EcmStepFailure *failure, EcmErrorKind kind,
									  const char *sqlstate, const char *message,
									  const char *detail, const char *hint);

#endif							/* ECM_FAILURE_H */
