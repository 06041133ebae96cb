/*-------------------------------------------------------------------------
 *
 * shape_worker.c
 *	  The consumers of a database: their number, and the lock on the progress
 *	  of each.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lock.h"

#include "base/shmem.h"
#include "shape/shape_worker.h"

/* A class of advisory locks that SQL's functions don't use. */
#define CONSUMER_LOCK_CLASS	3

void
ecm_shape_lock_progress(int worker, bool until_exit)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, worker, CONSUMER_LOCK_CLASS);
	(void) LockAcquire(&tag, ExclusiveLock, until_exit, false);
}

void
ecm_shape_lock_all_progress(void)
{
	for (int i = 0; i < ECM_MAX_SHAPE_WORKERS; i++)
		ecm_shape_lock_progress(i, false);
}

int
ecm_shape_workers_running(void)
{
	int			index = ecm_stack_find(MyDatabaseId);
	int			n;

	if (index < 0)
		return 1;
	ecm_lock(LW_SHARED);
	n = ecm_stack_at(index)->nconsumers;
	ecm_unlock();
	return Max(n, 1);
}
