/*-------------------------------------------------------------------------
 *
 * failure.c
 *	  How a step of the manager ends, and why it has failed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/failure.h"

void
ecm_failure_set(EcmStepFailure *failure, const EcmError *err,
				EcmErrorContext context)
{
	const char *hint = ecm_error_hint(err, context);

	failure->err = *err;
	failure->kind = ecm_error_kind(err, context);
	if (err->hint[0] == '\0' && hint != NULL)
		strlcpy(failure->err.hint, hint, sizeof(failure->err.hint));
}

EcmStepResult
ecm_failure_make(EcmStepFailure *failure, EcmErrorKind kind,
				 const char *sqlstate, const char *message,
				 const char *detail, const char *hint)
{
	ecm_error_set(&failure->err, sqlstate, message, detail, hint);
	failure->kind = kind;
	return ECM_RESULT_FAILED;
}
