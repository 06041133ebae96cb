/*-------------------------------------------------------------------------
 *
 * shape_look.c
 *	  A reader's look at a shape: is it there, may he read it, what comes next?
 *
 * The caller's rights are those on the shape's table; the table that has the logs is
 * nobody's to read.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/shmem.h"
#include "functions/log_cursor.h"
#include "functions/shape_look.h"
#include "functions/wait_shape.h"
#include "shape/shape.h"
#include "shape/shape_catalog.h"
#include "shape/shape_offset.h"
#include "shape/shape_rights.h"

/*
 * ERROR unless a shape, as it was found in a snapshot, exists, is not errored, and may be
 * read by the current user.
 */
static void
check_shape(const char *handle, const EcmShapeDef *shape)
{
	/* an older snapshot may have a shape whose table is gone by now */
	if (shape == NULL ||
		!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(shape->relation)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("shape \"%s\" does not exist", handle),
				 errhint("Create it again with electric_cm_create_shape().")));
	ecm_shape_check_read(shape);

	if (shape->state == ECM_SHAPE_ERRORED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("shape \"%s\" is errored", handle),
				 shape->last_error != NULL ?
				 errdetail("%s", ecm_error_untagged(shape->last_error)) : 0,
				 errhint("Drop it with electric_cm_drop_shape() and create it again with electric_cm_create_shape().")));
}

/*
 * ERROR 55000 if the wait might never end, as the stack waits for the caller's own
 * transaction: to create a shape it waits for transactions that could have written to
 * the table, and a log has nothing of a transaction before that commits.  So it is if
 * the transaction has an xid, or a lock on the table that is stronger than a plain
 * SELECT's; and above READ COMMITTED it would not see what comes.
 */
static void
check_may_wait(const EcmShapeDef *shape)
{
	LOCKTAG		tag;
	bool		locked = false;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, shape->relation);
	for (LOCKMODE mode = RowShareLock; mode <= AccessExclusiveLock; mode++)
		locked = locked || ecm_lock_held_by_me(&tag, mode);

	if (IsolationUsesXactSnapshot() || locked ||
		TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot wait for shape \"%s\" in this transaction",
						shape->handle),
				 ecm_shape_is_readable(shape) ?
				 errdetail("What comes next may have to wait for this transaction, or could not be seen by it.") :
				 errdetail("The shape is being created, which may have to wait for this transaction, or could not be seen by it."),
				 errhint("Commit first.")));
}

/*
 * Finds the shape and the snapshot to read its log in (registered with the
 * look's owner).  NULL: there is no such shape.  The two have to be of the same moment.
 * In a snapshot that has the shape readable, its log is complete, even if somebody folds or
 * drops it meanwhile; with a shape of now and a log of then, entries might be missing.
 *
 * The statement's own snapshot is used if possible, so that a statement sees the same
 * in all logs that it reads.  That is not possible after a wait, as it does not see
 * what has come, nor for a shape that has become live since.
 */
static EcmShapeDef *
find_shape(const EcmLookRequest *request, EcmLook *look)
{
	EcmShapeDef *shape = NULL;
	bool		given = request->snapshot != NULL || IsolationUsesXactSnapshot();

	if (given || (request->first_look && ActiveSnapshotSet()))
	{
		look->snapshot = RegisterSnapshotOnOwner(request->snapshot != NULL ? request->snapshot :
												 ActiveSnapshotSet() ? GetActiveSnapshot() :
												 GetTransactionSnapshot(), look->owner);
		shape = ecm_shape_as_of(request->handle, look->snapshot);
		if (given || (shape != NULL && ecm_shape_is_readable(shape)))
			return shape;
		UnregisterSnapshotFromOwner(look->snapshot, look->owner);
		look->snapshot = NULL;
	}

	look->snapshot = RegisterSnapshotOnOwner(GetLatestSnapshot(), look->owner);
	return ecm_shape_as_of(request->handle, look->snapshot);
}

typedef struct LookCall
{
	const EcmLookRequest *request;
	EcmLook    *look;
} LookCall;

static void
take_look(void *arg)
{
	const EcmLookRequest *request = ((LookCall *) arg)->request;
	EcmLook    *look = ((LookCall *) arg)->look;
	EcmShapeDef *shape = find_shape(request, look);

	check_shape(request->handle, shape);
	look->shape = shape;
	look->readable = ecm_shape_is_readable(shape);
	if (request->wait == ECM_LOOK_WILL_WAIT ||
		(request->wait == ECM_LOOK_MAY_WAIT && !look->readable))
		check_may_wait(shape);
	ecm_note_read(shape->id);
	if (!look->readable)
		return;

	look->cursor = ecm_log_cursor_begin(shape, look->snapshot, &request->after,
										request->is_position);
	ecm_log_cursor_rest(look->cursor);
	if (!look->cursor->known)
	{
		ecm_offset_check_may_come(shape, look->snapshot, &look->cursor->base,
								  &request->after, request->logged_lsn);
		if (request->wait != ECM_LOOK_NO_WAIT)
			check_may_wait(shape);
	}
}

void
ecm_undone(void (*look) (void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		look(arg);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		ecm_log_wait_check_extension(); /* if it is gone, say that instead */
		ReThrowError(edata);
	}
	PG_END_TRY();

	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

EcmLook *
ecm_look_at_shape(const EcmLookRequest *request)
{
	MemoryContext caller_context = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "electric_cm look",
												  ALLOCSET_SMALL_SIZES);
	EcmLook    *result = MemoryContextAllocZero(context, sizeof(EcmLook));
	LookCall	call = {request, result};

	result->context = context;
	result->owner = CurrentResourceOwner;
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		ecm_undone(take_look, &call);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller_context);
		/* the error's data are in its own context */
		ecm_look_end(result);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller_context);
	return result;
}

void
ecm_look_end(EcmLook *look)
{
	if (look->cursor != NULL)
		ecm_log_cursor_rest(look->cursor);
	if (look->snapshot != NULL)
		UnregisterSnapshotFromOwner(look->snapshot, look->owner);
	MemoryContextDelete(look->context);
}
