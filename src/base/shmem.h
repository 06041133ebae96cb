/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  The one shared struct, its lock and condition variables.
 *
 * One entry per stack, in parts, each of which says who writes it: the stack's
 * manager (the launcher while there is none), the launcher, a consumer, or
 * anybody (requests).  No process-local pointer is ever stored.  An entry, once
 * allocated for a database, stays at its index until the launcher frees it, and
 * its condition variable is valid for ever.
 *
 * One LWLock protects everything.  Nobody writes without it, but for the fields
 * marked so.  These may be read without it:
 *
 *	- by a writer, what nobody else writes: it can't change meanwhile;
 *	- by a manager, its consumers and pool sessions, the entry's dboid and
 *	  datname: an entry that has a manager is not freed, and ALTER DATABASE
 *	  RENAME waits until nobody is in the database;
 *	- nstacks, made_at, and first_lsn once a launcher has started: they don't
 *	  change any more;
 *	- a bool or an int of the requests, the pause or the lifecycle, as a hint: it
 *	  is read in one piece, and who sets it wakes the reader, who looks again;
 *	- the fields that their writers write without it ("volatile").
 *
 * All others take copies, through the accessors below.  An index that was found
 * under the lock is good until the lock is released; later the entry may be
 * another database's, so whoever is not a process of the stack starts from the
 * database's OID each time.
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
#define ECM_MAX_READS		8192	/* shapes whose last read is known */

/* Why a standby's stacks are stopped. */
#define ECM_STANDBY_REASON	"a standby has no stack: it starts at promotion"

typedef struct EcmEventRecord
{
	uint64		number;			/* since shared memory was made */
	Oid			dboid;
	char		datname[NAMEDATALEN];
	TimestampTz occurred_at;
	EcmEventName event;
	char		message[ECM_TEXT_LEN];
	char		detail[ECM_TEXT_LEN];
} EcmEventRecord;

/* pool sessions and the replication connection, as shown in the view */
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
	uint32		generation;		/* grows with each start of this worker */
	dsm_handle	segment;		/* its queue */
	uint32		restarts;

	/* written by the consumer */
	int			pid;			/* 0: not running */
	bool		attached;		/* ready to be fed */
	uint32		reset_done;		/* number of the last RESET it has obeyed */
	uint32		shapes;
	XLogRecPtr	received_lsn;	/* end of the last transaction it was fed */
	XLogRecPtr	applied_lsn;	/* ... that is committed locally */
	XLogRecPtr	durable_lsn;	/* ... and flushed: may be acknowledged */
	int64		transactions;
	int64		changes;
	int64		matched_changes;
	TimestampTz last_progress_at;

	/*
	 * Shapes whose logs have grown a good deal.  Their consumer adds to them,
	 * the manager takes them away.
	 */
	int			ngrown;
	int64		grown[ECM_MAX_GROWN];

	/*
	 * What it has ended with; "" if it has not said.  Anybody may read this,
	 * so the text is the error's only where such errors quote no data.
	 */
	char		last_error[ECM_TEXT_LEN];
	char		last_error_sqlstate[6];
	TimestampTz last_error_at;

	/*
	 * Written by the consumer without the lock, message by message.  Readers
	 * see whether the first one moves, and make a guess from the second.
	 */
	volatile uint64 processed;	/* messages taken from the queue */
	volatile int64 working_on;	/* shape id; 0: none in particular */
} EcmConsumerSlot;

/* shapes on their way from "creating" to "live", for waiting_for */
typedef struct EcmCreation
{
	bool		used;
	Oid			relation;
	int64		first;			/* shape ids: those of the relation between */
	int64		last;			/* them, unless they are in a smaller range */
	char		waiting_for[ECM_TEXT_LEN];
} EcmCreation;

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
 * retained-WAL sample.  What is unknown is -1, or as it says.
 */
typedef struct EcmWalSample
{
	TimestampTz sampled_at;		/* 0: none yet */
	EcmTime		taken_at;		/* the same by the other clock */
	XLogRecPtr	current_lsn;
	int64		wal_free_bytes; /* free space for pg_wal ... */
	int64		data_free_bytes;	/* ... and for the data directory */

	/* only if there is a slot */
	bool		slot_exists;
	bool		active;
	int			active_pid;
	char		wal_status[16]; /* reserved, extended, unreserved, lost */
	bool		sizes_known;	/* the next five are of now, or of the last
								 * time before the slot was lost */
	XLogRecPtr	restart_lsn;
	XLogRecPtr	confirmed_flush_lsn;
	int64		retained_wal_bytes;
	int64		flush_lag_bytes;
	int64		flush_lag_us;
	int64		safe_wal_size;	/* -1: unlimited */
	TransactionId catalog_xmin;
	int32		catalog_xmin_age;
	EcmDecoding decoding;
} EcmWalSample;

/*
 * The settings of ours that sampling needs, as of the database: INT_MIN means
 * the server's own, so that the launcher, which doesn't see the database's,
 * can go on where a manager has ended.
 */
typedef struct EcmWalSettings
{
	bool		known;
	int			report_interval;	/* ms */
	int			warning;		/* MB */
	int			limit;			/* MB */
	int			min_free;		/* MB */
} EcmWalSettings;

/* What others want of a stack.  Anybody sets these, the addressee clears them. */
typedef struct EcmStackRequests
{
	bool		stop;			/* stays set until start: launcher honours it */
	bool		drop_slot;		/* with stop: drop slot and publication */
	bool		restart;		/* cleared by the launcher */
	bool		reprobe;		/* cleared by the launcher */
	bool		adopt;			/* electric_cm_start(): overrides STOPPED,
								 * NOT_STARTED and CLONED; cleared by the
								 * manager once the database's table says that
								 * it runs */
	bool		drop_on_stop;	/* drop_replication_slot_on_stop(); cleared
								 * when the manager ends */
	bool		sample;			/* cleared by who takes the sample */
	bool		check;			/* look whether the extension is still there;
								 * cleared by the manager */
	XLogRecPtr	await_lsn;		/* somebody waits for flushed_lsn to reach it */
} EcmStackRequests;

/*
 * Commands that need the stack out of the way.  Each backend takes back what it
 * has added.
 */
typedef struct EcmStackPause
{
	int			count;			/* how many such commands run ... */
	char		command[32];	/* ... and the latest one's name */
	bool		drained;		/* all that others have written has been
								 * consumed, and what the stack itself writes
								 * from here on will be skipped */
} EcmStackPause;

typedef struct EcmStackEvents
{
	uint64		last;			/* number of the next event after the last
								 * one; written by whoever records one of this
								 * database */
	uint64		delivered;		/* events before this one have been delivered;
								 * written by the session that does */
} EcmStackEvents;

/* What the launcher decides about a stack; it alone writes this. */
typedef struct EcmStackLifecycle
{
	EcmEndReason end_reason;	/* reset when a manager is started */
	bool		no_worker;		/* too few background workers were free;
								 * cleared by who asks for another attempt,
								 * too */
	bool		look_only;		/* the manager is to say what there is, and
								 * end, for there is no room for its consumers */
	bool		paused;			/* no manager has been started since a pause */
	bool		hangs;			/* the manager does not go round: it is said,
								 * and its slot looked after */
	uint64		stopped_runs;	/* number of managers that have ended */
	int			restarts;		/* after failures and by request */
} EcmStackLifecycle;

/* The manager itself: it writes this, and the launcher while there is none. */
typedef struct EcmStackManager
{
	EcmProbe	probe;			/* UNKNOWN from each start of a manager until
								 * it knows */
	int			shape_workers;	/* consumers that it needs; 0: not known yet */
	bool		gave_way;		/* it has ended since it got no consumers */
	int			pid;			/* 0: no manager */
	Latch	   *latch;			/* the manager's, in shared memory; or NULL */
	volatile EcmTime alive_at;	/* when it last went round; without the lock */
	uint64		runs;			/* number of managers started so far */
	TimestampTz started_at;
} EcmStackManager;

/* What the stack shows of itself; writer as of EcmStackManager. */
typedef struct EcmStackReport
{
	char		stack_id[NAMEDATALEN];
	char		publication_name[NAMEDATALEN];
	EcmStatus	status;
	char		phase[24];
	char		step[32];
	TimestampTz status_since;
	EcmTime		status_at;		/* the same by the other clock */
	EcmTime		failing_at;		/* since when it has had to retry, 0: it
								 * hasn't */
	char		waiting_for[ECM_TEXT_LEN];
	int			blocking_pid;	/* with waiting_for, 0: unknown */
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

/* The server as its stack has found it; the manager writes. */
typedef struct EcmStackServer
{
	int			version_num;	/* 0: not looked up yet */
	uint64		system_identifier;
	uint32		timeline_id;
	TimestampTz looked_up_at;
} EcmStackServer;

/* How far the stream has come; the manager writes. */
typedef struct EcmStackProgress
{
	XLogRecPtr	received_lsn;
	XLogRecPtr	flushed_lsn;	/* everything before it is in the shape logs */
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
	bool		owned;			/* we have created the slot of that name */
	XLogRecPtr	seen_lsn;		/* end of WAL when it was last seen, or
								 * before: see slot_owner.c */
	EcmWalSample sample;
	EcmWalGuard guard;
	bool		drop_reported;	/* that the slot is to be dropped */
	char		pinned_by[ECM_TEXT_LEN];	/* what pins it, or "" */
	TimestampTz pinned_since;
	EcmTime		pinned_at;		/* the same by the other clock */
} EcmWatchedSlot;

/* A consumer that has work and does not move; the manager writes. */
typedef struct EcmStackStall
{
	char		text[ECM_TEXT_LEN]; /* "consumer 1 (PID 123), ...", or "" */
	int			pid;
	EcmTime		at;
} EcmStackStall;

/* All shapes were thrown away; the manager writes. */
typedef struct EcmStackLoss
{
	int64		count;			/* of the shapes, -1: unknown */
	EcmTime		at;				/* 0: they weren't */
	char		reason[ECM_TEXT_LEN];
} EcmStackLoss;

typedef struct EcmStack
{
	/* identity; who allocates the entry writes it, the launcher a new name */
	bool		in_use;
	Oid			dboid;
	char		datname[NAMEDATALEN];
	bool		registered;		/* somebody asked for a stack (and wrote
								 * this), or one ran: else the launcher is
								 * only having a look */

	EcmStackRequests requests;
	EcmStackPause pause;
	EcmStackEvents events;
	EcmStackLifecycle lifecycle;
	EcmStackManager manager;
	EcmStackReport report;
	EcmStackServer server;
	EcmStackProgress progress;
	EcmWatchedSlot slot;
	EcmWatchedSlot former;		/* from before electric_cm.slot_name was
								 * changed */
	EcmWalSettings wal_settings;	/* the manager writes */
	EcmStackStall stall;
	EcmStackLoss lost;

	/* the head ends here: see ecm_stack_copy_head() */

	/* the manager writes (the launcher clears them when it has ended) */
	EcmConnInfo conns[1 + ECM_MAX_POOL_SIZE];	/* [0] is replication */
	EcmCreation creations[ECM_MAX_CREATIONS];
	EcmOption	options[ECM_MAX_OPTIONS];
	int			noptions;
	int			nconsumers;

	/* each written by its consumer, but for what the manager gives it */
	EcmConsumerSlot consumers[ECM_MAX_SHAPE_WORKERS];

	/* broadcast after every change that somebody may be waiting for */
	ConditionVariable cv;
} EcmStack;

/* A slot of a stack whose extension has been dropped. */
typedef struct EcmLeftSlot
{
	Oid			dboid;			/* its database */
	char		slot_name[NAMEDATALEN];
	XLogRecPtr	lsn;			/* end of WAL and time of that: whatever is */
	EcmTime		at;				/* newer is another slot of the same name */
	bool		reported;		/* that it is in use; the launcher writes */
} EcmLeftSlot;

/*
 * When a shape was read last.  A place may be another shape's by now: what is
 * forgotten is shown as unknown.
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
	volatile EcmTime launcher_alive_at; /* it writes that without the lock */
	Latch	   *launcher_latch;
	XLogRecPtr	first_lsn;		/* end of WAL when the first launcher started */
	pg_atomic_uint32 run_marked;	/* WAL says that we are loaded; anybody
									 * sets */
	bool		rescan_requested;	/* look at pg_database again */
	bool		reprobe_all_requested;	/* look again into databases without
										 * the extension */

	/* anybody adds, the launcher takes away what it has dropped */
	int			nleft_slots;
	EcmLeftSlot left_slots[ECM_MAX_LEFT_SLOTS];

	EcmTime		made_room_at;	/* when a slot was last dropped for the sake
								 * of free space; anybody writes */

	TimestampTz made_at;		/* with this, event numbers are unique for
								 * ever */

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

/* Those lines, palloc'd, as a hint. */
extern char *ecm_preload_hint(void);

/* The entry of a database, or -1.  Takes the lock itself. */
extern int	ecm_stack_find(Oid dboid);

/*
 * The same for callers that hold the lock (alloc and free: exclusively).  A
 * new entry has status WAITING, since somebody is about to start a manager;
 * alloc returns -1 if all are in use.  It finds the entry if there is one.
 */
extern int	ecm_stack_find_locked(Oid dboid);
extern int	ecm_stack_alloc(Oid dboid, const char *datname);
extern void ecm_stack_free(int index);

/* Is that the slot of another database's stack?  Then *datname is its name. */
extern bool ecm_slot_name_is_taken(const char *slot_name, char datname[NAMEDATALEN]);

/*
 * A manager goes round at least that often (ms), and the launcher as well; one
 * that has not for so long hangs.
 */
#define ECM_MANAGER_ROUND_MS	5000
#define ECM_MANAGER_HANGS_MS	15000
#define ECM_LAUNCHER_ROUND_MS	10000
#define ECM_LAUNCHER_HANGS_MS	40000

extern bool ecm_manager_hangs(const EcmStack *stack);
extern bool ecm_launcher_hangs(void);

/*
 * Copies the current database's entry, and returns its index, or -1.  What a
 * manager that hangs has said last is no longer so: all copies say that it
 * hangs.  The head is what comes before conns.
 */
extern int	ecm_own_stack(EcmStack *copy);
extern int	ecm_own_stack_head(EcmStack *copy);

/* Its flushed_lsn, if it has one; else invalid. */
extern XLogRecPtr ecm_own_flushed_lsn(void);

/*
 * Copy of an entry (its cv is not meaningful in the copy); of the head only:
 * what comes before conns.
 */
extern bool ecm_stack_copy(int index, EcmStack *copy);
extern bool ecm_stack_copy_head(int index, EcmStack *copy);

/* What one can ask of a stack. */
typedef enum EcmStackRequest
{
	ECM_REQUEST_START,			/* though it was stopped, or never started */
	ECM_REQUEST_STOP,			/* and nothing that was requested before */
	ECM_REQUEST_UNSTOP,			/* a stop has not happened: see what is wanted */
	ECM_REQUEST_RESTART,		/* a new manager */
	ECM_REQUEST_REPROBE,		/* see what is wanted */
	ECM_REQUEST_SAMPLE,			/* of the slot */
	ECM_REQUEST_CHECK			/* whether the extension is still there */
} EcmStackRequest;

/*
 * Asks for that, and wakes who has to see to it: the launcher, or the manager.
 * False: the database has no entry.  The second one is for callers that hold the
 * lock, exclusively, and wake afterwards.
 */
extern bool ecm_stack_request(Oid dboid, EcmStackRequest request);
extern void ecm_stack_set_request(EcmStack *stack, EcmStackRequest request);

/* Asks the stack to flush up to there, and to say so soon. */
extern void ecm_stack_request_flush(Oid dboid, XLogRecPtr lsn);

/* For a manager: has a check been requested?  That is cleared. */
extern bool ecm_stack_take_check(int index);

/* Has this stack events that nobody has delivered yet? */
extern bool ecm_stack_has_events(int index);

/* How far somebody waits for flushed_lsn to come; invalid: nobody does. */
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
 * For a manager.  Claim, before it even reads dboid: sets pid, latch, runs and
 * started_at, and has them undone and the launcher woken at exit (by
 * before_shmem_exit, after all callbacks registered later).  False if the entry
 * is free or has a manager already: exit then, with code 0, and don't touch it.
 * Set_probe wakes the launcher, too.
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
 * A shape of this database is being read; and when one was last (0: unknown).
 * A standby's server may not have preloaded us: then nothing is known.
 */
extern void ecm_note_read(int64 shape);
extern TimestampTz ecm_last_read(int64 shape);

extern void ecm_stack_wake(int index);	/* sets the manager's latch */
extern void ecm_launcher_wake(void);

/* Has the launcher look at pg_database again. */
extern void ecm_launcher_request_scan(void);

extern int	ecm_launcher_pid(void); /* 0: not running */

/* The end of WAL when the server's first launcher started. */
extern XLogRecPtr ecm_first_lsn(void);

#endif							/* ECM_SHMEM_H */
