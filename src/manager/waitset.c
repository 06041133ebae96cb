/*-------------------------------------------------------------------------
 *
 * waitset.c
 *	  The manager's one wait: latch, sockets that come and go, a deadline.
 *
 * A WaitEventSet can't forget a socket, so it is made anew when the sockets have
 * changed.  Usually they have not, and the set of the last round is kept.  A socket's
 * number can't tell, as the kernel gives it to the next connection: a set with the
 * old socket would never wake up.  Hence ecm_conn_socket_id().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/wait_event.h"
#include "connection/pool.h"
#include "manager/waitset.h"

#define MAX_SOCKETS		(1 + ECM_MAX_POOL_SIZE)
#define FIRST_SOCKET	2		/* position in the set: after latch and death */

typedef struct WaitItem
{
	uint64		id;				/* ecm_conn_socket_id() */
	pgsocket	fd;
	int			events;			/* WL_SOCKET_... */
} WaitItem;

typedef struct WaitSet
{
	WaitItem	wanted[MAX_SOCKETS];	/* in this round */
	int			nwanted;
	WaitItem	current[MAX_SOCKETS];	/* in 'events', as of the last round */
	int			ncurrent;
	WaitEventSet *events;		/* NULL: not made yet */
} WaitSet;

/* There is one in a process: the manager's. */
static WaitSet set;

void
ecm_waitset_begin(void)
{
	set.nwanted = 0;
}

static void
add(const EcmConn *conn, int events)
{
	WaitItem   *item = &set.wanted[set.nwanted];

	if (conn == NULL || ecm_conn_socket(conn) == PGINVALID_SOCKET || events == 0)
		return;
	Assert(set.nwanted < MAX_SOCKETS);
	item->id = ecm_conn_socket_id(conn);
	item->fd = ecm_conn_socket(conn);
	item->events = events;
	set.nwanted++;
}

void
ecm_waitset_add(const EcmConn *conn)
{
	add(conn, conn ? ecm_conn_wait_events(conn) : 0);
}

void
ecm_waitset_add_end(const EcmConn *conn)
{
	add(conn, WaitEventSetCanReportClosed() ? WL_SOCKET_CLOSED : 0);
}

static bool
same_sockets(void)
{
	if (set.events == NULL || set.nwanted != set.ncurrent)
		return false;
	for (int i = 0; i < set.nwanted; i++)
		if (set.wanted[i].id != set.current[i].id || set.wanted[i].fd != set.current[i].fd)
			return false;
	return true;
}

static void
build_set(void)
{
	if (set.events != NULL)
		FreeWaitEventSet(set.events);
	set.events = ecm_create_wait_event_set(FIRST_SOCKET + MAX_SOCKETS);
	AddWaitEventToSet(set.events, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set.events, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < set.nwanted; i++)
		AddWaitEventToSet(set.events, set.wanted[i].events, set.wanted[i].fd, NULL, NULL);
}

bool
ecm_waitset_wait(EcmTime deadline)
{
	WaitEvent	event;
	long		timeout_ms = -1;
	int			n;

	if (!same_sockets())
		build_set();
	else
		for (int i = 0; i < set.nwanted; i++)
			if (set.wanted[i].events != set.current[i].events)
				ModifyWaitEvent(set.events, FIRST_SOCKET + i, set.wanted[i].events, NULL);
	memcpy(set.current, set.wanted, sizeof(set.wanted));
	set.ncurrent = set.nwanted;

	if (deadline != 0)
		timeout_ms = ecm_ms_until(ecm_now(), deadline);

	n = WaitEventSetWait(set.events, timeout_ms, &event, 1,
						 ecm_wait_event(ECM_WAIT_MANAGER_MAIN));
	ResetLatch(MyLatch);
	return n > 0 && (event.events & WL_SOCKET_CLOSED) != 0;
}
