/*-------------------------------------------------------------------------
 *
 * pool.c
 *	  Loopback sessions opened on demand, and the queue of jobs for them.
 *
 * A callback may submit and cancel jobs, and may even close the pool.  So no
 * pointer to a job or session is valid after a callback has been called: the
 * loops below start from the array, or from the head of the queue, again.
 *
 * If a session can't be opened and there is no other one, the jobs that wait
 * get the error, so that their owners can retry with a backoff of their own.
 * If other sessions are at work, the pool stays smaller than it might be
 * (max_connections is reached, say), and tries again later.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/backoff.h"
#include "base/event.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "connection/pool.h"

/*
 * After this number of failed attempts in a row, a pool without sessions is
 * dead.
 */
#define DEAD_RETRIES	3

typedef struct Job
{
	dlist_node	node;			/* in the queue, while it waits */
	uint64		id;
	char	   *sql;
	int			timeout_ms;
	EcmPoolCallback callback;
	void	   *arg;
} Job;

typedef struct Session
{
	EcmConn    *conn;			/* NULL: closed */
	bool		opened;			/* the connection was established */
	bool		in_callback;	/* a callback reads its rows; don't close it */
	Job		   *job;			/* NULL: none runs */
	EcmTime		idle_since;
} Session;

typedef struct Pool
{
	MemoryContext context;		/* NULL: there is no pool */
	char	   *dbname;
	Session		sessions[ECM_MAX_POOL_SIZE];
	EcmError	errors[ECM_MAX_POOL_SIZE];	/* each place's last; sqlstate "":
											 * none */
	bool		polling;

	/* jobs that wait */
	dlist_head	queue;
	int			nqueued;
	uint64		last_job_id;
	uint64		generation;		/* changes when the pool is closed, so that a
								 * loop notices that a callback has done so */

	/* opening sessions */
	EcmBackoff	backoff;
	EcmTime		retry_at;		/* no new session before; 0: at once */
	bool		has_last_error; /* last_error is set, and no session has been
								 * opened since */
	EcmError	last_error;
} Pool;

/* The manager's pool; no other process has one. */
static Pool pool;

void
ecm_pool_init(const char *dbname)
{
	ecm_pool_close();
	pool.context = AllocSetContextCreate(TopMemoryContext, "electric_cm pool",
										 ALLOCSET_DEFAULT_SIZES);
	pool.dbname = MemoryContextStrdup(pool.context, dbname);
	dlist_init(&pool.queue);
	ecm_backoff_init(&pool.backoff, ecm_reconnect_initial_delay,
					 ecm_reconnect_max_delay);
	pool.retry_at = 0;
	pool.has_last_error = false;
	memset(pool.errors, 0, sizeof(pool.errors));
}

uint64
ecm_pool_submit(const char *sql, int timeout_ms,
				EcmPoolCallback callback, void *arg)
{
	Job		   *job = MemoryContextAlloc(pool.context, sizeof(Job));

	job->id = ++pool.last_job_id;
	job->sql = MemoryContextStrdup(pool.context, sql);
	job->timeout_ms = timeout_ms;
	job->callback = callback;
	job->arg = arg;
	dlist_push_tail(&pool.queue, &job->node);
	pool.nqueued++;
	return job->id;
}

static Job *
dequeue(void)
{
	Job		   *job = dlist_container(Job, node, dlist_pop_head_node(&pool.queue));

	pool.nqueued--;
	return job;
}

static void
free_job(Job *job)
{
	pfree(job->sql);
	pfree(job);
}

/* Ends a job; the caller has taken it off the queue or its session. */
static void
finish_job(Job *job, EcmConn *conn, const EcmError *err)
{
	EcmPoolCallback callback = job->callback;
	void	   *arg = job->arg;

	free_job(job);
	callback(arg, conn, err);
}

static void
close_session(Session *session)
{
	EcmConn    *conn = session->conn;

	Assert(session->job == NULL);
	memset(session, 0, sizeof(Session));
	if (conn != NULL)
		ecm_conn_close(conn);
}

/* Closes a session in the middle of its job, whose callback is not called. */
static void
abandon_session(Session *session)
{
	if (session->job != NULL)
	{
		ecm_conn_cancel(session->conn);
		free_job(session->job);
		session->job = NULL;
	}
	close_session(session);
}

void
ecm_pool_cancel(uint64 id)
{
	dlist_iter	iter;

	if (pool.context == NULL)
		return;
	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
	{
		if (pool.sessions[i].job != NULL && pool.sessions[i].job->id == id)
		{
			abandon_session(&pool.sessions[i]);
			return;
		}
	}
	dlist_foreach(iter, &pool.queue)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);

		if (job->id == id)
		{
			dlist_delete(&job->node);
			pool.nqueued--;
			free_job(job);
			return;
		}
	}
}

static bool
session_is_free(const Session *session)
{
	return session->conn != NULL && session->opened &&
		session->job == NULL && !session->in_callback &&
		ecm_conn_state(session->conn) == ECM_CONN_IDLE;
}

/* Fails the jobs that wait now, but not those that the callbacks submit. */
static void
fail_queue(const EcmError *err)
{
	uint64		last = pool.last_job_id;
	uint64		generation = pool.generation;

	while (generation == pool.generation && !dlist_is_empty(&pool.queue) &&
		   dlist_head_element(Job, node, &pool.queue)->id <= last)
		finish_job(dequeue(), NULL, err);
}

/* The session's connection has failed: keeps the reason for the views. */
static void
note_session_error(const Session *session)
{
	pool.errors[session - pool.sessions] = *ecm_conn_error(session->conn);
}

/* Says, once, that the pool has to do with fewer sessions than it wants. */
static void
report_small_pool(const EcmError *err)
{
	if (pool.has_last_error && strcmp(err->sqlstate, pool.last_error.sqlstate) == 0)
		return;
	ecm_event_in(MyDatabaseId, pool.dbname, ECM_EVENT_CONNECTION_ERROR, err->hint,
				 "could not open another pool session: %s", err->message);
}

/*
 * A session could not be opened.  Its error gets the hint for errors of
 * opening a connection here, since the owner of a job, which is given the
 * error, does not know that it was not the job that has failed.
 */
static void
open_failed(Session *session, EcmTime now)
{
	EcmError	err = *ecm_conn_error(session->conn);
	const char *hint = ecm_error_hint(&err, ECM_CONTEXT_CONNECT);
	bool		alone = true;	/* there is no other session, open or being
								 * opened */
	bool		working = false;

	if (hint != NULL && err.hint[0] == '\0')
		strlcpy(err.hint, hint, sizeof(err.hint));
	note_session_error(session);
	close_session(session);
	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
	{
		if (pool.sessions[i].conn != NULL)
			alone = false;
		if (pool.sessions[i].opened)
			working = true;
	}
	if (working)
		report_small_pool(&err);
	pool.last_error = err;
	pool.has_last_error = true;

	/* several attempts that fail at the same time count as one */
	if (pool.retry_at <= now)
		pool.retry_at = ecm_backoff_fail(&pool.backoff, now);

	if (alone)
		fail_queue(&err);
}

/* The session's job is over, or the session is. */
static void
job_over(Session *session, EcmTime now)
{
	EcmConn    *conn = session->conn;
	Job		   *job = session->job;
	uint64		generation = pool.generation;

	session->job = NULL;
	if (ecm_conn_state(conn) != ECM_CONN_IDLE)
	{
		EcmError	err = *ecm_conn_error(conn);

		if (ecm_conn_state(conn) != ECM_CONN_FAILED)
			ecm_error_set(&err, "XX000", "unexpected replication stream",
						  NULL, NULL);
		else
			note_session_error(session);
		close_session(session);
		finish_job(job, NULL, &err);
		return;
	}

	session->in_callback = true;
	finish_job(job, conn, ecm_conn_ok(conn) ? NULL : ecm_conn_error(conn));
	if (generation != pool.generation)
	{
		/* the callback has closed the pool, but not the connection it read */
		ecm_conn_close(conn);
		return;
	}
	session->in_callback = false;
	session->idle_since = now;
	if (!ecm_conn_idle_in_no_transaction(conn))
		close_session(session);
}

/* Returns true if the session has changed its state. */
static bool
poll_session(Session *session, EcmTime now)
{
	EcmConnState state;

	if (session->conn == NULL || session->in_callback)
		return false;
	state = ecm_conn_poll(session->conn);
	if (state == ECM_CONN_CONNECTING || state == ECM_CONN_BUSY)
		return false;

	if (!session->opened)
	{
		if (state == ECM_CONN_FAILED)
		{
			open_failed(session, now);
			return true;
		}
		session->opened = true;
		session->idle_since = now;
		ecm_backoff_reset(&pool.backoff, now);
		pool.retry_at = 0;
		pool.has_last_error = false;
		return true;
	}
	if (session->job != NULL)
	{
		job_over(session, now);
		return true;
	}
	if (state == ECM_CONN_FAILED)
	{
		note_session_error(session);
		close_session(session);
		return true;
	}
	return false;
}

/* Gives the queue's head to the first free session, if there are both. */
static bool
start_job(void)
{
	if (dlist_is_empty(&pool.queue))
		return false;
	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
	{
		if (session_is_free(&pool.sessions[i]))
		{
			Job		   *job;

			if (!ecm_conn_has_backend(pool.sessions[i].conn))
			{
				close_session(&pool.sessions[i]);	/* its backend has ended,
													 * and we have not been
													 * told */
				continue;
			}
			job = dequeue();

			pool.sessions[i].job = job;
			ecm_conn_send(pool.sessions[i].conn, job->sql, job->timeout_ms);
			return true;
		}
	}
	return false;
}

/*
 * A free place for one more session, or NULL.  One more is wanted if more jobs
 * wait than sessions are idle or being opened, as long as there are fewer than
 * electric_cm.pool_size.
 */
static Session *
session_wanted(void)
{
	Session    *vacant = NULL;
	int			nsessions = 0;
	int			nexpected = 0;

	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
	{
		if (pool.sessions[i].conn == NULL)
		{
			if (vacant == NULL)
				vacant = &pool.sessions[i];
			continue;
		}
		nsessions++;
		if (!pool.sessions[i].opened || session_is_free(&pool.sessions[i]))
			nexpected++;
	}
	if (pool.nqueued <= nexpected || nsessions >= ecm_pool_size)
		return NULL;
	return vacant;
}

static bool
open_session(EcmTime now)
{
	Session    *session = session_wanted();
	EcmConnParams params;
	char		application_name[NAMEDATALEN];

	if (session == NULL || pool.retry_at > now)
		return false;

	snprintf(application_name, sizeof(application_name),
			 "electric_cm pool %d", (int) (session - pool.sessions) + 1);
	memset(&params, 0, sizeof(params));
	if (ecm_pooled_connection && ecm_pooled_connection[0])
	{
		params.conninfo = ecm_pooled_connection;
		params.setting = "electric_cm.pooled_connection";
	}
	else
	{
		params.conninfo = ecm_connection;
		params.setting = "electric_cm.connection";
	}
	params.dbname = pool.dbname;
	params.application_name = application_name;
	params.connect_timeout_ms = ecm_connect_timeout;
	session->conn = ecm_conn_start(&params);
	return true;
}

static void
close_idle_sessions(EcmTime now)
{
	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
	{
		if (session_is_free(&pool.sessions[i]) &&
			now >= ecm_later(pool.sessions[i].idle_since,
							 ecm_pool_idle_timeout))
			close_session(&pool.sessions[i]);
	}
}

void
ecm_pool_poll(EcmTime now)
{
	uint64		generation = pool.generation;
	bool		progress;

	if (pool.context == NULL || pool.polling)
		return;
	pool.polling = true;
	do
	{
		progress = false;
		for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
		{
			if (poll_session(&pool.sessions[i], now))
				progress = true;
			if (generation != pool.generation)
				goto closed;
		}
		while (start_job())
			progress = true;
		while (open_session(now))
			progress = true;
	} while (progress);
	close_idle_sessions(now);

closed:
	pool.polling = false;
}

EcmConn *
ecm_pool_session(int ordinal)
{
	return pool.sessions[ordinal].conn;
}

static void
keep_earlier(EcmTime *deadline, EcmTime other)
{
	if (other != 0 && (*deadline == 0 || other < *deadline))
		*deadline = other;
}

/*
 * When ecm_pool_poll() has to be called even if no socket is ready.  A time in
 * the past means at once: a job has been submitted since the last call.
 */
EcmTime
ecm_pool_deadline(void)
{
	EcmTime		deadline = 0;

	if (pool.context == NULL)
		return 0;
	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
	{
		Session    *session = &pool.sessions[i];

		if (session->conn == NULL)
			continue;
		if (ecm_conn_state(session->conn) == ECM_CONN_FAILED)
			keep_earlier(&deadline, 1);
		keep_earlier(&deadline, ecm_conn_deadline(session->conn));
		if (session_is_free(session))
			keep_earlier(&deadline, pool.nqueued > 0 ? 1 :
						 ecm_later(session->idle_since,
								   ecm_pool_idle_timeout));
	}
	if (session_wanted() != NULL)
		keep_earlier(&deadline, Max(pool.retry_at, 1));
	return deadline;
}

const char *
ecm_pool_session_state(int ordinal)
{
	Session    *session = &pool.sessions[ordinal];

	if (session->conn == NULL)
		return "closed";
	switch (ecm_conn_state(session->conn))
	{
		case ECM_CONN_CONNECTING:
			return "connecting";
		case ECM_CONN_IDLE:
			return (session->job != NULL) ? "busy" : "idle";
		case ECM_CONN_FAILED:
			return "closed";
		default:
			return "busy";
	}
}

const EcmError *
ecm_pool_session_error(int ordinal)
{
	const EcmError *err = &pool.errors[ordinal];

	return err->sqlstate[0] != '\0' ? err : NULL;
}

bool
ecm_pool_is_dead(EcmError *err)
{
	if (pool.context == NULL || !pool.has_last_error || pool.backoff.retries < DEAD_RETRIES)
		return false;
	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
		if (pool.sessions[i].opened)
			return false;
	*err = pool.last_error;
	return true;
}

void
ecm_pool_check(void)
{
	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
		if (pool.sessions[i].conn != NULL && pool.sessions[i].job != NULL)
			ecm_conn_check(pool.sessions[i].conn);
}

void
ecm_pool_close(void)
{
	if (pool.context == NULL)
		return;
	for (int i = 0; i < ECM_MAX_POOL_SIZE; i++)
	{
		/* job_over() closes the one whose callback has called us */
		if (pool.sessions[i].in_callback)
			memset(&pool.sessions[i], 0, sizeof(Session));
		else
			abandon_session(&pool.sessions[i]);
	}
	MemoryContextDelete(pool.context);
	pool.context = NULL;
	dlist_init(&pool.queue);
	pool.nqueued = 0;
	pool.generation++;
}
