/*-------------------------------------------------------------------------
 *
 * read_guard.c
 *	  What happens to a shape whose rows can't be read.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/clock.h"
#include "base/errors.h"
#include "base/event.h"
#include "jobs/read_guard.h"
#include "shape/shape_blame.h"
#include "shape/shape_catalog.h"
#include "shape/shape_stall.h"

/* An error's message is cut to this many bytes. */
#define MAX_REASON		512

void
ecm_read_check_session(void)
{
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to take a shape's snapshot")));
	if (!IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("a shape's snapshot must be taken in a REPEATABLE READ transaction")));
}

static void
begin_dangerous(const EcmShapeDef *shape, bool last_word)
{
	EcmPlace	place;

	if (ecm_blame_open(psprintf("%u.s" INT64_FORMAT, MyDatabaseId, shape->id),
					   quickdie, &place) == ECM_BLAME_NOBODY)
	{
		ecm_here->shape = shape->id;
		return;
	}
	if (last_word)
		ecm_blame_settled(&place);
	ecm_blame_close();
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("the server crashed twice while it read the table for this shape")));
}

static void
end_dangerous(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	ecm_stall_stop();
	ecm_blame_close();
}

/* As long as it does not stay at one row for too long. */
static void
read_watched(EcmReadCallback fn, void *arg)
{
	MemoryContext context = CurrentMemoryContext;

	ecm_stall_watch_reading();
	PG_TRY();
	{
		fn(arg);
	}
	PG_CATCH();
	{
		ecm_stall_rethrow(context);
	}
	PG_END_TRY();
}

void
ecm_read_blamed(const EcmShapeDef *shape, bool last_word, EcmReadCallback fn, void *arg)
{
	begin_dangerous(shape, last_word);
	PG_ENSURE_ERROR_CLEANUP(end_dangerous, (Datum) 0);
	{
		read_watched(fn, arg);
		ecm_blame_passed(PG_UINT64_MAX);
	}
	PG_END_ENSURE_ERROR_CLEANUP(end_dangerous, (Datum) 0);
	end_dangerous(0, (Datum) 0);
}

/*
 * Is a further attempt to read the table of no use after this error?  If it has run into
 * statement_timeout at last, its where clause must be slow: each attempt reads fewer rows.
 * Somebody may also have cancelled it.
 */
static bool
is_final(const ErrorData *edata, bool last_attempt, EcmTime began)
{
	EcmFault	fault;

	if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED && last_attempt && StatementTimeout > 0 &&
		ecm_has_passed(began, ecm_now(), StatementTimeout / 10 * 9))
		return true;
	fault = ecm_error_fault(unpack_sql_state(edata->sqlerrcode),
							edata->message, ECM_WORK_SNAPSHOT);
	return fault == ECM_FAULT_OF_IT || (fault == ECM_FAULT_IF_AGAIN && last_attempt);
}

/*
 * Tells the shape's consumer, by the message "fail", that the shape ends with
 * an error: only consumers change the state of a shape.  The error may quote a
 * row, so it goes right into the message, and is never part of a statement,
 * which views and the log would show.
 */
static void
emit_failure(const EcmShapeDef *def, const ErrorData *edata)
{
	char	   *text = ecm_tag_error(unpack_sql_state(edata->sqlerrcode), edata->message);
	const char *attempt = XLogRecPtrIsInvalid(def->gap_lsn) ? "create" : "resync";

	text[pg_mbcliplen(text, strlen(text), MAX_REASON)] = '\0';
	ecm_shape_emit_failure(def, text);
	ereport(LOG,
			(errcode(edata->sqlerrcode),
			 errmsg("could not %s shape %s: %s", attempt, def->handle,
					ecm_error_untagged(text))));
	ecm_event_in(MyDatabaseId, get_database_name(MyDatabaseId), ECM_EVENT_SHAPE_ERRORED, ecm_error_public_text(text),
				 "could not %s shape %s", attempt, def->handle);
}

bool
ecm_read_or_fail(int64 id, int generation, bool last_attempt, EcmReadCallback fn, void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile edata = NULL;
	EcmTime		began = ecm_now();
	EcmShapeDef *def;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		fn(arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (edata == NULL)
		return true;

	if (!is_final(edata, last_attempt, began))
		ReThrowError(edata);
	def = ecm_shape_by_id(id);
	if (def != NULL && def->generation == generation)
		emit_failure(def, edata);
	return false;
}
