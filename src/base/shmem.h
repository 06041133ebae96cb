/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  The shared memory of the extension: one struct, its lock and condition
 *	  variables.
 *
 * The struct has one entry for each stack.  An entry consists of parts, and
 * each part says at its declaration who writes it: the stack's manager (the
 * launcher while there is none), the launcher, a consumer, or any process
 * (requests).  No pointer to a process's own memory is ever stored.  An entry
 * that has been allocated for a database stays at its index until the launcher
 * frees it, and its condition variable is valid for ever.
 *
 * One LWLock protects everything.  Nobody writes without it, except the fields
 * that are marked so.  These may be read without it:
 *
 *	- by a writer, the fields that nobody else writes: they can't change
 *	  meanwhile;
 *	- by a manager, its consumers and pool sessions, the entry's dboid and
 *	  datname: an entry that has a manager is not freed, and ALTER DATABASE
 *	  RENAME waits until nobody is in the database;
 *	- nstacks, made_at, and first_lsn once a launcher has started: they don't
 *	  change any more;
 *	- a bool or an int of the requests, the pause or the lifecycle, as a hint: it
 *	  is read in one piece, and who sets it wakes the reader, who looks again;
 *	- the fields that their writers write without it ("volatile").
 *
 * For everything else, readers take copies through the accessors below.  An
 * index that was found under the lock is valid until the lock is released.
 * Later the entry may be another database's, so a process that does not belong
 * to the stack has to start from the database's OID each time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHMEM_H
#define ECM_SHMEM_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/dsm.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/spin.h"

#include "base/clock.h"
#include "base/errors.h"
#include "base/event_name.h"
#include "base/settings.h"
#include "base/stack_lifecycle.h"
#include "base/state.h"
#include "slot/retained_wal_guard.h"

#define ECM_TEXT_LEN		256
#define ECM_MAX_OPTIONS		40
#define ECM_MAX_EVENTS		512
#define ECM_MAX_CREATIONS	16	/* batches of shapes being created */
#define ECM_MAX_LEFT_SLOTS	32	/* slots waiting to be dropped */
#define ECM_MAX_GROWN		16	/* shape logs to look at, by consumer */
#define ECM_MAX_READS		8192	/* shapes whose last read is remembered */

/* Why a standby's stacks are stopped. */
#define ECM_STANDBY_REASON	"a standby has no stack: it starts at promotion"

typedef struct EcmEventRecord
{
	uint64		number;			/* counts from 0 when shared memory is made */
	Oid			dboid;
	char		datname[NAMEDATALEN];
	TimestampTz occurred_at;
	EcmEventName event;
	char		message[ECM_TEXT_LEN];
	char		detail[ECM_TEXT_LEN];
} EcmEventRecord;

/*
 * A pool session, or the replication connection, as the view shows it.  The
 * manager writes.
 */
typedef struct EcmConnInfo
{
	bool		used;
	char		state[16];
	int			backend_pid;
	bool		ssl;
	char		address[128];
	TimestampTz connected_since;
	char		last_error[ECM_TEXT_LEN];
} EcmConnInfo;

/*
 * A consumer's slot.  The manager fills "given" before it starts the worker;
 * the worker writes the rest.  Both under the lock.
 */
typedef struct EcmConsumerSlot
{
	/* given by the manager */
	bool		used;
	uint32		generation;		/* grows with each start of this worker; a
								 * consumer that finds another one than its
								 * own has been replaced, and writes nothing */
	dsm_handle	segment;		/* its queue */
	uint32		restarts;

	/* written by the consumer */
	int			pid;			/* 0: not running */
	bool		attached;		/* it has attached to its queue, and reads */
	uint32		reset_done;		/* number of the last RESET it has obeyed */
	uint32		shapes;
	XLogRecPtr	received_lsn;	/* end of the last transaction it was fed */
	XLogRecPtr	applied_lsn;	/* ... that is committed locally */
	XLogRecPtr	durable_lsn;	/* ... and flushed */
	XLogRecPtr	recorded_lsn;	/* ... and said so by a row of
								 * _electric_cm.progress, also flushed ... */
	XLogRecPtr	recorded_end;	/* ... by a commit that ends there */
	int64		transactions;
	int64		changes;
	int64		matched_changes;
	TimestampTz last_progress_at;
	uint32		gaps;			/* grows when gaps have begun in logs of its
								 * shapes: these are to be resynced */

	/*
	 * Shapes whose logs have grown by much since the manager was told last,
	 * so that it may be time to fold them.  The consumer adds to the list,
	 * the manager takes from it.
	 */
	int			ngrown;
	int64		grown[ECM_MAX_GROWN];

	/*
	 * The error that the consumer has ended with; "" if it could not say.
	 * Every user may read it in a view, so it has the error's message only if
	 * such errors quote no data (see ecm_error_for_public()).
	 */
	char		last_error[ECM_TEXT_LEN];
	char		last_error_sqlstate[6];
	TimestampTz last_error_at;

	/*
	 * The consumer writes these without the lock, at each message.  Readers
	 * compare "processed" with an earlier value, to see whether the consumer
	 * makes progress, and guess from "working_on" which shape it is busy
	 * with.
	 */
	volatile uint64 processed;	/* messages taken from the queue */
	volatile int64 working_on;	/* shape id; 0: none in particular */
	volatile int64 busy_with;	/* the shape that has taken most of its time
								 * lately; 0: none */
	volatile EcmTime busy_at;	/* as of this time */
	volatile int64 deaf;		/* the shape whose work goes on though it was
								 * cancelled; 0: none */

	/*
	 * The manager writes this one without the lock: the shape that the
	 * consumer has to give up at once, 0: none.
	 */
	volatile int64 give_up;
} EcmConsumerSlot;

/*
 * Shapes of a table on their way from "creating" to "live": a batch, for the
 * column waiting_for.  The manager writes.
 */
typedef struct EcmCreation
{
	bool		used;
	Oid			relation;
	int64		first;			/* lowest and highest shape id of the batch
								 * ... */
	int64		last;			/* ... (if a shape of the table is in the
								 * ranges of two batches, the smaller range
								 * counts) */
	char		waiting_for[ECM_TEXT_LEN];
} EcmCreation;

/* A setting as the manager has it, for the view electric_cm_options. */
typedef struct EcmOption
{
	char		name[64];
	char		setting[ECM_TEXT_LEN];
	char		source[32];
} EcmOption;

/* What a slot has decoded, as in pg_stat_replication_slots. */
typedef struct EcmDecoding
{
	bool		known;
	int64		spill_txns;
	int64		spill_bytes;
	int64		stream_txns;
	int64		stream_bytes;
	int64		total_txns;
	int64		total_bytes;
	TimestampTz stats_reset;	/* 0: never */
} EcmDecoding;

/*
 * A sample of a slot and the WAL that it retains.  A number that is unknown is
 * -1, unless its comment says otherwise.
 */
typedef struct EcmWalSample
{
	TimestampTz sampled_at;		/* 0: none yet */
	EcmTime		taken_at;		/* the same moment, by ecm_now() */
	XLogRecPtr	current_lsn;	/* the end of WAL */
	int64		wal_free_bytes; /* free space for pg_wal ... */
	int64		data_free_bytes;	/* ... and for the data directory */

	/* only if there is a slot */
	bool		slot_exists;
	bool		active;
	int			active_pid;
	char		wal_status[16]; /* reserved, extended, unreserved, lost */
	bool		sizes_known;	/* the next five are set; once the slot is
								 * lost, as they were when it was last sampled */
	XLogRecPtr	restart_lsn;
	XLogRecPtr	confirmed_flush_lsn;
	int64		retained_wal_bytes;
	int64		flush_lag_bytes;
	int64		flush_lag_us;	/* age of the WAL at confirmed_flush_lsn */
	int64		safe_wal_size;	/* -1: unlimited */
	TransactionId catalog_xmin;
	int32		catalog_xmin_age;
	EcmDecoding decoding;
} EcmWalSample;

/*
 * Our settings about retained WAL, as ALTER DATABASE has set them for the
 * stack's database; INT_MIN: the server's configuration applies.  A manager
 * leaves them here for the launcher, which samples the slot when the manager
 * has ended, and cannot see the settings of a database.
 */
typedef struct EcmWalSettings
{
	bool		known;			/* a manager has filled the others */
	int			report_interval;	/* ms */
	int			warning;		/* MB */
	int			limit;			/* MB */
	int			min_free;		/* MB */
} EcmWalSettings;

/*
 * Requests to a stack.  Any process sets them and wakes the addressee, which
 * clears them; both do so under the lock.
 */
typedef struct EcmStackRequests
{
	bool		stop;			/* to the launcher: run no manager; stays set
								 * until a start is requested */
	bool		drop_slot;		/* with stop: drop slot and publication */
	bool		upgrade;		/* with stop: until pg_upgrade has been run */
	bool		restart;		/* to the launcher: start a new manager */
	bool		reprobe;		/* to the launcher: find out anew whether the
								 * stack is wanted */
	bool		adopt;			/* to the manager, by electric_cm_start(): run
								 * even if the probe says STOPPED, NOT_STARTED
								 * or CLONED; cleared once the table of the
								 * database says that the stack runs */
	bool		drop_on_stop;	/* to the manager, by
								 * drop_replication_slot_on_stop(): drop the
								 * slot at the end; cleared when it has ended */
	bool		sample;			/* to the manager, or the launcher: sample the
								 * slot now */
	bool		check;			/* to the manager: look whether the extension
								 * is still there */
	XLogRecPtr	await_lsn;		/* to the manager: somebody waits for
								 * flushed_lsn to reach this.  Cleared at each
								 * status check; who still waits sets it again */
} EcmStackRequests;

/*
 * Commands, such as DROP DATABASE, that make the stack end for as long as they
 * run (see database_commands.c).  A backend that runs one counts it here, and
 * takes it off again at the end, also after an error.
 */
typedef struct EcmStackPause
{
	int			count;			/* how many such commands run ... */
	char		command[32];	/* ... and the latest one's name */
	bool		drained;		/* the consumers have all changes that others
								 * have made; the slot is moved past the WAL
								 * that the stack still writes itself */
} EcmStackPause;

/* Which events of this database are still to be delivered. */
typedef struct EcmStackEvents
{
	uint64		last;			/* number of the database's latest event, plus
								 * one; written by the process that records
								 * the event */
	uint64		delivered;		/* events with lower numbers have been
								 * delivered; written by the pool session that
								 * has delivered them */
} EcmStackEvents;

/* What the launcher has decided about a stack.  The launcher writes. */
typedef struct EcmStackLifecycle
{
	EcmEndReason end_reason;	/* reset when a manager is started */
	bool		no_worker;		/* too few background workers were free; also
								 * cleared by a request to start or restart */
	bool		look_only;		/* the manager shall only probe the database
								 * and end, since no workers are free for its
								 * consumers */
	bool		paused;			/* the manager was ended for a command, and no
								 * other one has been started since */
	bool		hangs;			/* the manager hangs: an event has said so,
								 * and the launcher samples its slot meanwhile */
	uint64		stopped_runs;	/* number of managers that have ended */
	int			restarts;		/* after failures and by request */
} EcmStackLifecycle;

/*
 * The manager itself.  The manager writes; while there is none, the launcher
 * does.
 */
typedef struct EcmStackManager
{
	EcmProbe	probe;			/* UNKNOWN from each start of a manager until
								 * it knows */
	int			shape_workers;	/* consumers that it needs; 0: not known yet */
	bool		gave_way;		/* it has ended because no workers were free
								 * for its consumers */
	int			pid;			/* 0: no manager */
	Latch	   *latch;			/* the manager's, in shared memory; or NULL */
	volatile EcmTime alive_at;	/* when its loop last went round; written
								 * without the lock */
	volatile bool expects_progress; /* consumers shall wake it when they have
									 * come farther; likewise */
	uint64		runs;			/* number of managers started so far */
	TimestampTz started_at;
} EcmStackManager;

/*
 * The stack's state as views and functions show it.  The manager writes; while
 * there is none, the launcher does.
 */
typedef struct EcmStackReport
{
	char		stack_id[NAMEDATALEN];
	char		publication_name[NAMEDATALEN];
	EcmStatus	status;
	char		phase[24];
	char		step[32];
	TimestampTz status_since;
	EcmTime		status_at;		/* the same moment, by ecm_now() */
	EcmTime		failing_at;		/* since when the stack has been retrying; 0:
								 * it is not */
	char		waiting_for[ECM_TEXT_LEN];
	int			blocking_pid;	/* process that waiting_for names; 0: unknown */
	char		last_error[ECM_TEXT_LEN];
	char		last_error_hint[ECM_TEXT_LEN];
	char		last_error_sqlstate[6];
	TimestampTz last_error_at;
	int			retry_count;
	TimestampTz next_retry_at;	/* 0: none */
	int64		total_retry_us;
	bool		lock_acquired;
	bool		pool_up;
	bool		consumers_up;
	bool		streaming_up;
} EcmStackReport;

/* The server as the manager has found it when it connected.  It writes. */
typedef struct EcmStackServer
{
	int			version_num;	/* 0: not looked up yet */
	uint64		system_identifier;
	uint32		timeline_id;
	TimestampTz looked_up_at;
} EcmStackServer;

/* How far the stream has come.  The manager writes. */
typedef struct EcmStackProgress
{
	XLogRecPtr	received_lsn;	/* end of the last complete transaction */
	XLogRecPtr	flushed_lsn;	/* all changes before it are in the shape
								 * logs, and flushed */
	XLogRecPtr	acknowledged_lsn;	/* last sent to the walsender */
	TimestampTz last_commit_at; /* commit time of the last transaction fed */
	int64		shape_log_bytes;	/* on disk; -1: not looked at yet */
} EcmStackProgress;

/*
 * A slot that the stack looks after: the one it uses, or the one that it has
 * left behind under a former name.  Written by the manager, and by the launcher
 * while there is none, or while the manager hangs.
 */
typedef struct EcmWatchedSlot
{
	char		name[NAMEDATALEN];	/* "": none */
	bool		owned;			/* the stack has created the slot of that name */
	XLogRecPtr	seen_lsn;		/* the slot existed when the end of WAL was
								 * here, see slot_owner.c */
	EcmWalSample sample;
	EcmWalGuard guard;
	bool		drop_reported;	/* an event has said that the slot is to be
								 * dropped, so it is not said again */
	char		pinned_by[ECM_TEXT_LEN];	/* the slot's holder, in words;
											 * "": none */
	TimestampTz pinned_since;
	EcmTime		pinned_at;		/* the same moment, by ecm_now() */
} EcmWatchedSlot;

/* A consumer that has work, and makes no progress.  The manager writes. */
typedef struct EcmStackStall
{
	char		text[ECM_TEXT_LEN]; /* "consumer 1 (PID 123), ...", or "" */
	int			pid;			/* of the consumer */
	EcmTime		at;				/* since when it has made no progress */
} EcmStackStall;

typedef struct EcmStack
{
	/*
	 * Identity.  Whoever allocates the entry writes it; after ALTER DATABASE
	 * RENAME, the launcher writes the new name.
	 */
	bool		in_use;
	Oid			dboid;
	char		datname[NAMEDATALEN];
	bool		registered;		/* a stack has been asked for, or the
								 * extension was found; until then the
								 * launcher only looks whether the database
								 * has the extension, and views don't show the
								 * entry.  Written by whoever asks, or the
								 * manager */

	EcmStackRequests requests;
	EcmStackPause pause;
	EcmStackEvents events;
	EcmStackLifecycle lifecycle;
	EcmStackManager manager;
	EcmStackReport report;
	EcmStackServer server;
	EcmStackProgress progress;
	EcmWatchedSlot slot;
	EcmWatchedSlot former;		/* the one that electric_cm.slot_name named
								 * before it was changed, until it is dropped */
	EcmWalSettings wal_settings;	/* the manager writes */
	EcmStackStall stall;

	/* the head ends here: see ecm_stack_copy_head() */

	/* The manager writes these; the launcher clears them when it has ended. */
	EcmConnInfo conns[1 + ECM_MAX_POOL_SIZE];	/* [0] is the replication
												 * connection */
	EcmCreation creations[ECM_MAX_CREATIONS];
	EcmOption	options[ECM_MAX_OPTIONS];
	int			noptions;
	int			nconsumers;

	/* How often shapes have changed hands; written by who does that. */
	uint64		assignments;

	/* Since when it is noted here who reads; the first manager writes it. */
	TimestampTz reads_since;

	/* Each consumer writes its own, except what the manager gives it. */
	EcmConsumerSlot consumers[ECM_MAX_SHAPE_WORKERS];

	/*
	 * Broadcast after every change that somebody may be waiting for.  Whoever
	 * reuses the entry leaves it alone, since processes may still sleep on
	 * it.
	 */
	ConditionVariable cv;
} EcmStack;

/*
 * A slot whose stack is gone, since its extension has been dropped.  The
 * launcher drops it as soon as nobody uses it.
 */
typedef struct EcmLeftSlot
{
	Oid			dboid;			/* its database */
	char		slot_name[NAMEDATALEN];
	XLogRecPtr	lsn;			/* end of WAL when the slot was left: a slot
								 * that begins later is another one of that
								 * name */
	EcmTime		at;				/* when it was left; tells one entry of the
								 * list from a later one of the same name */
	bool		reported;		/* an event has said that somebody uses it;
								 * the launcher writes */
} EcmLeftSlot;

/*
 * When a shape was read last.  A shape's place in the table is given by a hash,
 * so another shape may have taken it since; the time of the former one is then
 * forgotten, and shown as unknown.
 */
typedef struct EcmShapeRead
{
	slock_t		mutex;			/* protects the others; anybody writes */
	Oid			dboid;
	int64		shape;
	TimestampTz at;
} EcmShapeRead;

typedef struct EcmShared
{
	LWLock	   *lock;
	int			launcher_pid;	/* 0: not running */
	volatile EcmTime launcher_alive_at; /* when the launcher's loop last went
										 * round; written without the lock */
	Latch	   *launcher_latch;
	XLogRecPtr	first_lsn;		/* end of WAL when the first launcher started */
	pg_atomic_uint32 run_marked;	/* this run of the server is marked in WAL
									 * as one with our library, see
									 * server_runs.c; anybody sets it */
	XLogRecPtr	unseen_lsn;		/* end of the last mark of this run that it
								 * could not look at something; anybody sets */

	/* Requests to the launcher, which clears them. */
	bool		rescan_requested;	/* look at pg_database again */
	bool		reprobe_all_requested;	/* probe again the databases that had
										 * no extension */

	/* Any process adds to these; the launcher removes those it has dropped. */
	int			nleft_slots;
	EcmLeftSlot left_slots[ECM_MAX_LEFT_SLOTS];

	EcmTime		made_room_at;	/* when a slot was last dropped because free
								 * space was short; who drops it writes */

	TimestampTz made_at;		/* when shared memory was made: together with
								 * this, an event's number is unique for ever */

	/* ring of events: the n-th event is at events[n % ECM_MAX_EVENTS] */
	uint64		nevents;
	EcmEventRecord events[ECM_MAX_EVENTS];

	EcmShapeRead reads[ECM_MAX_READS];	/* each has its own mutex */

	int			nstacks;		/* = electric_cm.max_managers */
	EcmStack	stacks[FLEXIBLE_ARRAY_MEMBER];
} EcmShared;

/* NULL unless the library is in shared_preload_libraries. */
extern EcmShared *ecm_shared;

extern void ecm_shmem_request(void);	/* shmem_request_hook */
extern void ecm_shmem_startup(void);	/* shmem_startup_hook */

/* ERROR 55000 with the lines for postgresql.conf unless preloaded. */
extern void ecm_require_shared(void);

/* The lines for postgresql.conf that preload the library, as a hint, palloc'd. */
extern char *ecm_preload_hint(void);

/* The entry of a database, or -1.  Takes the lock itself. */
extern int	ecm_stack_find(Oid dboid);

/*
 * The same for callers that hold the lock (alloc and free: exclusively).
 *
 * alloc returns the database's entry, or makes one; -1: all are in use.  A new
 * entry has status WAITING, since the launcher, which is told, is about to
 * start a manager.  After free, the caller broadcasts the entry's condition
 * variable once it has released the lock.
 */
extern int	ecm_stack_find_locked(Oid dboid);
extern int	ecm_stack_alloc(Oid dboid, const char *datname);
extern void ecm_stack_free(int index);

/*
 * Is that the name of the slot of another database's stack?  Then *datname
 * becomes that database's name.
 */
extern bool ecm_slot_name_is_taken(const char *slot_name, char datname[NAMEDATALEN]);

/*
 * The loops of managers and of the launcher go round at least every
 * ..._ROUND_MS, however little there is to do, and note that they have
 * (alive_at).  A process that has not gone round for ..._HANGS_MS is said to
 * hang: it may be stopped, or be in a system call that does not return.
 */
#define ECM_MANAGER_ROUND_MS	5000
#define ECM_MANAGER_HANGS_MS	15000
#define ECM_LAUNCHER_ROUND_MS	10000
#define ECM_LAUNCHER_HANGS_MS	40000

extern bool ecm_manager_hangs(const EcmStack *stack);
extern bool ecm_launcher_hangs(void);

/*
 * Copies the entry of the current database.  Returns its index, or -1, and
 * leaves *copy alone, if there is none. ecm_own_stack_head() copies only the
 * members before conns: the rest is most of an entry's size, and the lock is
 * held meanwhile.
 *
 * If the manager hangs, the last status that it has written is not true any
 * more.  All functions that copy an entry put into the copy that it hangs.
 */
extern int	ecm_own_stack(EcmStack *copy);
extern int	ecm_own_stack_head(EcmStack *copy);

/* flushed_lsn of the current database's stack; invalid: there is none. */
extern XLogRecPtr ecm_own_flushed_lsn(void);

/*
 * applied_lsn of each consumer of the current database's stack; invalid: not known, or there
 * is none.  lsns has room for ECM_MAX_SHAPE_WORKERS.  Returns the number of assignments: if it
 * is another one when a snapshot has been taken, what was read may be of former consumers.
 */
extern uint64 ecm_own_applied_lsns(XLogRecPtr *lsns);

/*
 * For who makes shapes change hands, before that is committed and when no consumer runs:
 * what has been applied is not known until the next consumers start.
 */
extern void ecm_own_forget_applied_lsns(void);

/*
 * Copies the entry at an index, or its head (the members before conns).  False:
 * the entry is free.  The condition variable is of no use in a copy.
 */
extern bool ecm_stack_copy(int index, EcmStack *copy);
extern bool ecm_stack_copy_head(int index, EcmStack *copy);

/* What can be requested of a stack. */
typedef enum EcmStackRequest
{
	ECM_REQUEST_START,			/* run, even if it was stopped or never
								 * started */
	ECM_REQUEST_STOP,			/* stop; cancels the earlier requests to
								 * start, restart or probe */
	ECM_REQUEST_UNSTOP,			/* cancel a stop (its transaction was rolled
								 * back), and probe the database again */
	ECM_REQUEST_RESTART,		/* start a new manager */
	ECM_REQUEST_REPROBE,		/* find out anew whether a stack is wanted */
	ECM_REQUEST_SAMPLE,			/* sample the slot */
	ECM_REQUEST_CHECK			/* look whether the extension is still there */
} EcmStackRequest;

/*
 * ecm_stack_request() makes a request and wakes the process that it is for,
 * the manager or the launcher.  False: the database has no entry.
 *
 * ecm_stack_set_request() only makes the request, for callers that hold the
 * lock exclusively; they wake that process when they have released it.
 */
extern bool ecm_stack_request(Oid dboid, EcmStackRequest request);
extern void ecm_stack_set_request(EcmStack *stack, EcmStackRequest request);

/*
 * Asks the stack to write all changes before that position to the shape logs
 * and flush them soon, rather than when it next would.
 */
extern void ecm_stack_request_flush(Oid dboid, XLogRecPtr lsn);

/* For a manager: has a check been requested?  Clears the request. */
extern bool ecm_stack_take_check(int index);

/* Has this stack events that nobody has delivered yet? */
extern bool ecm_stack_has_events(int index);

/* The position that somebody waits for flushed_lsn to reach; invalid: none. */
extern XLogRecPtr ecm_stack_awaited_lsn(int index);

/*
 * In-place access: see the top of this file for what may be read, and written,
 * with the lock and without.
 */
#define ecm_lock(mode)	LWLockAcquire(ecm_shared->lock, (mode))
#define ecm_unlock()	LWLockRelease(ecm_shared->lock)

static inline EcmStack *
ecm_stack_at(int index)
{
	Assert(index >= 0 && index < ecm_shared->nstacks);
	return &ecm_shared->stacks[index];
}

/* electric_cm.max_managers as of the server's start */
static inline int
ecm_stack_count(void)
{
	return ecm_shared->nstacks;
}

/*
 * For a manager.
 *
 * ecm_stack_claim() makes this process the manager of an entry.  A manager
 * calls it before it reads anything of the entry, even dboid.  It sets pid,
 * latch, runs and started_at; at exit, a before_shmem_exit callback takes them
 * back and wakes the launcher, after all callbacks that are registered later.
 * False: the entry has been freed, or has a manager already; the process must
 * then exit with code 0, and leave the entry alone.
 *
 * ecm_stack_set_probe() reports the result of the probe, and wakes the
 * launcher.
 */
extern bool ecm_stack_claim(int index);
extern void ecm_stack_set_probe(int index, EcmProbe probe);

/*
 * Sets status and waiting_for, keeping status_since if the status stays the
 * same.  The caller is the entry's writer, holds the lock, and broadcasts the
 * condition variable when it has released it.
 */
extern void ecm_stack_set_status(EcmStack *stack, EcmStatus status,
								 const char *waiting_for);

/*
 * ecm_note_read() notes that a shape of this database is being read now;
 * ecm_last_read() says when a shape was read last (0: unknown).  On a standby,
 * which need not have preloaded the library, the former does nothing, and the
 * latter knows nothing.  Named readers have the negative of their ids here.
 *
 * Several shapes share a place: the last one of them that was read has it.
 * ecm_last_read_there() says when that was, whichever it is: if it is long ago,
 * none of them has been read since.
 */
extern void ecm_note_read(int64 shape);
extern TimestampTz ecm_last_read(int64 shape);
extern TimestampTz ecm_last_read_there(int64 shape);

extern void ecm_stack_wake(int index);	/* sets the manager's latch */
extern void ecm_launcher_wake(void);

/* Has the launcher look at pg_database again. */
extern void ecm_launcher_request_scan(void);

extern int	ecm_launcher_pid(void); /* 0: not running */

/* The end of WAL when the server's first launcher started. */
extern XLogRecPtr ecm_first_lsn(void);

#endif							/* ECM_SHMEM_H */
