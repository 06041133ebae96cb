/*-------------------------------------------------------------------------
 *
 * waiters.c
 *	  The sessions that wait for new entries in shape logs.
 *
 * A waiter puts itself on a list, in the bucket that a hash of database and
 * shape selects.  Whoever commits entries wakes the waiters of that shape and
 * takes them off the list, so that a second commit before they have looked
 * costs nothing.
 *
 * No commit can be missed.  A waiter puts itself on the list before it takes
 * the snapshot by which it looks into the log, and a consumer looks at the
 * list after its commit.  So either the snapshot sees the commit, or the
 * consumer sees the waiter.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#include "base/compat.h"
#include "base/settings.h"
#include "base/waiters.h"

#define NBUCKETS		4096	/* a power of two */
#define NOBODY			ECM_NO_PLACE

/*
 * Latches are set in groups of this size, without a spinlock: setting one can make a system
 * call.
 */
#define WAKE_GROUP		64

/*
 * A place.  The first ones are the backends' own, by their index in allProcs; then come
 * those that a backend can take.  While a place is on no list, only its backend writes it;
 * while it is on one, the bucket's spinlock protects it.  The members for "its backend's"
 * are only that backend's, or those of nobody, by the spinlock of free places.
 */
typedef struct Waiter
{
	int			proc;			/* its backend */
	Oid			dboid;
	int64		shape;
	int			bucket;			/* whose list it is, or was last, on; NOBODY:
								 * it has never been on one */
	volatile bool listed;
	int			previous;
	int			next;
	int			next_own;		/* its backend's next place; or next free one */
	int			previous_own;
} Waiter;

typedef struct Bucket
{
	slock_t		mutex;
	volatile int first;			/* first waiter of the list, or NOBODY */
} Bucket;

typedef struct Waiters
{
	pg_atomic_uint32 count;		/* places whose backends wait */
	int			nbackends;		/* places that are backends' own */
	slock_t		free_mutex;
	int			first_free;		/* or NOBODY */
	Bucket		buckets[NBUCKETS];
	Waiter		waiters[FLEXIBLE_ARRAY_MEMBER];
} Waiters;

static Waiters *shared;
static bool joined = false;		/* this backend is included in the count */
static int	first_own = NOBODY; /* places that this backend has taken */
static bool exit_callback_registered = false;

Size
ecm_waiters_size(void)
{
	return add_size(offsetof(Waiters, waiters),
					mul_size(add_size(MaxBackends, ecm_max_awaited_shapes), sizeof(Waiter)));
}

void
ecm_waiters_attach(void *space, bool found)
{
	shared = space;
	if (found)
		return;

	pg_atomic_init_u32(&shared->count, 0);
	shared->nbackends = MaxBackends;
	SpinLockInit(&shared->free_mutex);
	shared->first_free = NOBODY;
	for (int i = 0; i < NBUCKETS; i++)
	{
		SpinLockInit(&shared->buckets[i].mutex);
		shared->buckets[i].first = NOBODY;
	}
	for (int i = MaxBackends + ecm_max_awaited_shapes - 1; i >= 0; i--)
	{
		memset(&shared->waiters[i], 0, sizeof(Waiter));
		shared->waiters[i].bucket = NOBODY;
		shared->waiters[i].proc = i;
		if (i < MaxBackends)
			continue;
		shared->waiters[i].next_own = shared->first_free;
		shared->first_free = i;
	}
}

static Bucket *
bucket_of(Oid dboid, int64 shape)
{
	uint32		hash = hash_combine(murmurhash32((uint32) shape),
									murmurhash32(dboid));

	return &shared->buckets[hash % NBUCKETS];
}

/* Takes a waiter off its list; the caller has the bucket's lock. */
static void
unlist(Bucket *bucket, Waiter *waiter)
{
	if (waiter->previous == NOBODY)
		bucket->first = waiter->next;
	else
		shared->waiters[waiter->previous].next = waiter->next;
	if (waiter->next != NOBODY)
		shared->waiters[waiter->next].previous = waiter->previous;
	waiter->listed = false;
}

static void
unlist_self(Waiter *waiter)
{
	Bucket	   *bucket;

	if (waiter->bucket == NOBODY)
		return;
	bucket = &shared->buckets[waiter->bucket];
	SpinLockAcquire(&bucket->mutex);
	if (waiter->listed)
		unlist(bucket, waiter);
	SpinLockRelease(&bucket->mutex);
}

static void
leave_at_exit(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	ecm_waiters_leave();
	while (first_own != NOBODY)
		ecm_waiters_remove(first_own);
}

/* This backend's number; its places are given back when it ends. */
static int
my_number(void)
{
	int			number = ecm_my_proc_number();

	if (number < 0 || number >= shared->nbackends)
		elog(ERROR, "process has no place among those who may wait");
	if (!exit_callback_registered)
	{
		on_shmem_exit(leave_at_exit, 0);
		exit_callback_registered = true;
	}
	return number;
}

/* Puts a place that is on no list on that of a shape. */
static void
put_on_list(int place, int64 shape)
{
	Waiter	   *waiter = &shared->waiters[place];
	Bucket	   *bucket = bucket_of(MyDatabaseId, shape);

	waiter->dboid = MyDatabaseId;
	waiter->shape = shape;
	waiter->bucket = (int) (bucket - shared->buckets);
	SpinLockAcquire(&bucket->mutex);
	waiter->previous = NOBODY;
	waiter->next = bucket->first;
	if (waiter->next != NOBODY)
		shared->waiters[waiter->next].previous = place;
	bucket->first = place;
	waiter->listed = true;
	SpinLockRelease(&bucket->mutex);
	pg_memory_barrier();
}

void
ecm_waiters_join(int64 shape)
{
	int			number = my_number();

	unlist_self(&shared->waiters[number]);
	if (!joined)
		pg_atomic_fetch_add_u32(&shared->count, 1);
	joined = true;
	put_on_list(number, shape);
}

bool
ecm_waiters_woken(void)
{
	Waiter	   *waiter = &shared->waiters[ecm_my_proc_number()];
	Bucket	   *bucket = &shared->buckets[waiter->bucket];
	bool		listed;

	Assert(joined);
	SpinLockAcquire(&bucket->mutex);
	listed = waiter->listed;
	SpinLockRelease(&bucket->mutex);
	return !listed;
}

void
ecm_waiters_leave(void)
{
	if (!joined)
		return;
	unlist_self(&shared->waiters[ecm_my_proc_number()]);
	pg_atomic_fetch_sub_u32(&shared->count, 1);
	joined = false;
}

int
ecm_waiters_add(int64 shape)
{
	int			number = my_number();
	int			place;
	Waiter	   *waiter;

	SpinLockAcquire(&shared->free_mutex);
	place = shared->first_free;
	if (place != NOBODY)
		shared->first_free = shared->waiters[place].next_own;
	SpinLockRelease(&shared->free_mutex);
	if (place == NOBODY)
		return ECM_NO_PLACE;

	waiter = &shared->waiters[place];
	waiter->proc = number;
	waiter->previous_own = NOBODY;
	waiter->next_own = first_own;
	if (first_own != NOBODY)
		shared->waiters[first_own].previous_own = place;
	first_own = place;
	pg_atomic_fetch_add_u32(&shared->count, 1);
	put_on_list(place, shape);
	return place;
}

/*
 * Without the lock: the bucket's spinlock would be taken for each of thousands of places.
 * Who takes a place off its list sets the latch after that.
 */
bool
ecm_waiters_listed(int place)
{
	return shared->waiters[place].listed;
}

void
ecm_waiters_renew(int place)
{
	if (!shared->waiters[place].listed)
		put_on_list(place, shared->waiters[place].shape);
}

void
ecm_waiters_remove(int place)
{
	Waiter	   *waiter = &shared->waiters[place];

	unlist_self(waiter);
	if (waiter->previous_own == NOBODY)
		first_own = waiter->next_own;
	else
		shared->waiters[waiter->previous_own].next_own = waiter->next_own;
	if (waiter->next_own != NOBODY)
		shared->waiters[waiter->next_own].previous_own = waiter->previous_own;
	pg_atomic_fetch_sub_u32(&shared->count, 1);

	SpinLockAcquire(&shared->free_mutex);
	waiter->next_own = shared->first_free;
	shared->first_free = place;
	SpinLockRelease(&shared->free_mutex);
}

void
ecm_waiters_count(Oid dboid, int *sessions, int *shapes)
{
	bool	   *seen = palloc0(sizeof(bool) * shared->nbackends);

	*sessions = *shapes = 0;
	for (int i = 0; i < shared->nbackends + ecm_max_awaited_shapes; i++)
	{
		const Waiter *waiter = &shared->waiters[i];
		int			proc = waiter->proc;

		if (!waiter->listed || waiter->dboid != dboid)
			continue;
		*shapes += 1;
		if (!seen[proc])
			*sessions += 1;
		seen[proc] = true;
	}
	pfree(seen);
}

bool
ecm_waiters_any(Oid dboid, int64 shape)
{
	Bucket	   *bucket = bucket_of(dboid, shape);
	bool		any = false;

	SpinLockAcquire(&bucket->mutex);
	for (int i = bucket->first; i != NOBODY && !any; i = shared->waiters[i].next)
		any = shared->waiters[i].dboid == dboid && shared->waiters[i].shape == shape;
	SpinLockRelease(&bucket->mutex);
	return any;
}

/*
 * Backends whose latches are to be set. Not before all places that a commit concerns are off
 * their lists, if they are not too many: who waits for several of its shapes is to find all
 * of them.
 */
typedef struct Woken
{
	int			n;
	int			procs[WAKE_GROUP];
} Woken;

/*
 * A backend may have exited meanwhile: another one in its place is woken for nothing then,
 * which does no harm.
 */
static void
set_latches(Woken *woken)
{
	for (int i = 0; i < woken->n; i++)
		SetLatch(&ProcGlobal->allProcs[woken->procs[i]].procLatch);
	woken->n = 0;
}

/* Takes a bucket's waiters for a shape, or, with shape 0, for any, off its list. */
static void
wake_bucket(Bucket *bucket, Oid dboid, int64 shape, Woken *woken)
{
	bool		more;

	do
	{
		int			next;

		if (bucket->first == NOBODY)
			return;

		more = false;
		SpinLockAcquire(&bucket->mutex);
		for (int i = bucket->first; i != NOBODY; i = next)
		{
			Waiter	   *waiter = &shared->waiters[i];

			next = waiter->next;
			if (waiter->dboid != dboid || (shape != 0 && waiter->shape != shape))
				continue;
			more = woken->n == WAKE_GROUP;
			if (more)
				break;
			woken->procs[woken->n++] = waiter->proc;
			unlist(bucket, waiter);
		}
		SpinLockRelease(&bucket->mutex);
		if (more)
			set_latches(woken);
	} while (more);
}

/*
 * Does any backend wait?  The barrier pairs with that of ecm_waiters_join():
 * the caller's commit must be visible before it looks here, or both sides
 * could miss each other.
 */
static bool
anybody_waits(void)
{
	pg_memory_barrier();
	return shared != NULL && pg_atomic_read_u32(&shared->count) > 0;
}

void
ecm_waiters_wake(Oid dboid, const int64 *shapes, int nshapes)
{
	Woken		woken = {0};

	if (nshapes == 0 || !anybody_waits())
		return;
	for (int i = 0; i < nshapes; i++)
		wake_bucket(bucket_of(dboid, shapes[i]), dboid, shapes[i], &woken);
	set_latches(&woken);
}

void
ecm_waiters_wake_all(Oid dboid)
{
	Woken		woken = {0};

	if (!anybody_waits())
		return;
	for (int i = 0; i < NBUCKETS; i++)
		wake_bucket(&shared->buckets[i], dboid, 0, &woken);
	set_latches(&woken);
}
