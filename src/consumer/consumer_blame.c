/*-------------------------------------------------------------------------
 *
 * consumer_blame.c
 *	  The shapes that a consumer's end is blamed on become errored.
 *
 * A consumer that ends by an ERROR, or whose predecessor has died, does this in
 * transactions of its own, as the one that it was at is gone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "base/bgworker.h"
#include "base/errors.h"
#include "base/partition.h"
#include "base/waiters.h"
#include "consumer/consumer_blame.h"
#include "consumer/shape_orders.h"
#include "shape/shape_catalog.h"

static int	consumer_number;

void
ecm_consumer_blame_init(int worker)
{
	consumer_number = worker;
}

typedef struct FaultArg
{
	int64		shape;
	const char *message;		/* tagged, see errors.h */
	char		handle[64];		/* set by record_fault(); "": the shape is
								 * gone */
} FaultArg;

/* Makes the shape errored, in a transaction. */
static void
record_fault(void *arg)
{
	FaultArg   *fault = arg;
	EcmShapeDef *def = ecm_shape_by_id(fault->shape);

	if (def == NULL)
		return;
	strlcpy(fault->handle, def->handle, sizeof(fault->handle));
	ecm_shape_set_errored(fault->shape, def->generation, fault->message);
}

/*
 * Makes a shape errored, in a transaction of its own, and tells its readers: it
 * would raise the error each time, and hold all others back for ever.  False: the
 * catalog could not be written.
 */
static bool
blame_shape(int64 shape, const char *message)
{
	FaultArg	fault = {shape, message, ""};
	EcmError	err;

	if (!ecm_worker_try(record_fault, &fault, &err))
		return false;
	if (fault.handle[0] == '\0')
		return true;
	ecm_waiters_wake(MyDatabaseId, &shape, 1);
	ecm_shape_report_errored(fault.handle, fault.message);
	return true;
}

typedef struct AccusedArg
{
	EcmBlame	blame;			/* which shapes to look for */
	EcmPlace	place;			/* where the consumer has died */
	Oid			owner;			/* invalid: anybody's */
	List	   *ids;			/* of int64, in TopMemoryContext */
} AccusedArg;

static void
add_accused(const EcmShapeDef *def, void *arg)
{
	AccusedArg *accused = arg;
	MemoryContext old;
	int64	   *id;

	if (OidIsValid(accused->owner) && def->owner != accused->owner)
		return;
	old = MemoryContextSwitchTo(TopMemoryContext);
	id = palloc(sizeof(int64));
	*id = def->id;
	accused->ids = lappend(accused->ids, id);
	MemoryContextSwitchTo(old);
}

/*
 * Lists, in a transaction, the shapes to blame: the one at work; or all that its
 * owner has of its table; or all of the relation at work and of its ancestors.
 */
static void
find_accused(void *arg)
{
	AccusedArg *accused = arg;
	EcmShapeDef *def = ecm_shape_by_id(accused->place.shape);
	List	   *relations = NIL;
	ListCell   *lc;

	if (accused->blame == ECM_BLAME_TABLE)
		relations = lappend_oid(ecm_partition_ancestors(accused->place.relation),
								accused->place.relation);
	else if (def == NULL)
		return;
	else if (accused->blame == ECM_BLAME_OWNER)
	{
		accused->owner = def->owner;
		relations = list_make1_oid(def->relation);
	}
	else
		add_accused(def, accused);
	foreach(lc, relations)
		ecm_shapes_of_worker(consumer_number, lfirst_oid(lc), add_accused, accused);
}

/*
 * Makes all shapes errored that are to blame for the death of this process or of
 * its predecessor.  Usually that is the second one at this place (shape_blame.c):
 * without this, each further consumer would die there, too.
 */
void
ecm_consumer_blame_death(EcmBlame blame, const EcmPlace *place, const char *message)
{
	AccusedArg	accused = {.blame = blame, .place = *place};
	EcmError	err;
	ListCell   *lc;

	if (blame == ECM_BLAME_NOBODY || !ecm_worker_try(find_accused, &accused, &err))
		return;
	foreach(lc, accused.ids)
	{
		if (!blame_shape(*(int64 *) lfirst(lc), message))
			return;
	}
	ecm_blame_settled(place);
}

/*
 * Blames an error that ends the consumer.  If it is certainly the fault of the shape
 * at work, that becomes errored at once.  In doubt, as when memory was short, the
 * error counts as a death, see shape_blame.c.
 */
void
ecm_consumer_blame_error(int64 shape, const char *sqlstate, const char *message)
{
	EcmFault	fault = ecm_error_fault(sqlstate, message, ECM_WORK_FOLLOW);
	const char *text = ecm_tag_error(sqlstate, message);
	EcmPlace	place;
	EcmBlame	blame;

	if (fault == ECM_FAULT_OF_IT && shape != 0)
		(void) blame_shape(shape, text);
	else if (fault != ECM_FAULT_OF_NONE)
	{
		blame = ecm_blame_death(&place);
		ecm_consumer_blame_death(blame, &place, text);
	}
}
