/*-------------------------------------------------------------------------
 *
 * slot.h
 *	  How much WAL a replication slot retains, and facts about slots.
 *
 * Read from shared memory in the calling process: works without SQL, without
 * a transaction and without a manager, and waits for nothing.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SLOT_H
#define ECM_SLOT_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "base/shmem.h"

/*
 * Takes a sample of a slot.  *sample must have the previous sample, or zeros:
 * when a slot is lost, the server forgets its positions, and the last known
 * sizes stay in the sample, since they are worth more than none.  If there is
 * no slot, everything about it is reset.  Returns whether the slot exists.
 *
 * The caller fills in flush_lag_us and decoding.
 */
extern bool ecm_slot_sample(const char *slot_name, EcmWalSample *sample);

/*
 * The end of WAL: written, or, on a standby, received or replayed, whichever
 * is more.
 */
extern XLogRecPtr ecm_current_lsn(void);

/* max_slot_wal_keep_size in bytes; -1: no limit. */
extern int64 ecm_max_slot_wal_keep_bytes(void);

/* idle_replication_slot_timeout in seconds; 0: the server has none. */
extern int	ecm_idle_slot_timeout_s(void);

/* A slot of the server, ours or not, as pg_replication_slots has it. */
typedef struct EcmSlotRow
{
	char		name[NAMEDATALEN];
	char		plugin[NAMEDATALEN];	/* "": a physical slot */
	Oid			database;
	bool		temporary;
	int			active_pid;		/* 0: not active */
	const char *wal_status;		/* "": the slot retains no WAL */
	XLogRecPtr	restart_lsn;
	XLogRecPtr	confirmed_flush_lsn;
	int64		retained_wal_bytes;
	int64		safe_wal_size;	/* -1: unlimited */
	int32		xmin_age;		/* -1: the slot has no such xmin */
	int32		catalog_xmin_age;
	TimestampTz inactive_since; /* 0: the slot is active, or (before 17) the
								 * server does not know */
	const char *invalidation;	/* NULL: none */
} EcmSlotRow;

/* Reads all slots into an array of ecm_total_slots(); returns how many. */
extern int	ecm_slots_read(EcmSlotRow *rows);

/* A slot's properties that decide whether a stack can use it, and who does. */
typedef struct EcmSlotFacts
{
	bool		exists;			/* if not, nothing else is set */
	bool		logical;
	bool		temporary;
	bool		two_phase;
	bool		failover;		/* standbys may keep it in step */
	bool		synced;			/* it was made by that, here; it stays so
								 * after a promotion */
	const char *invalidation;	/* as pg_replication_slots has it; NULL: none */
	Oid			database;		/* InvalidOid: a physical slot */
	char		plugin[NAMEDATALEN];
	int			active_pid;		/* 0: not active */
	XLogRecPtr	restart_lsn;
	XLogRecPtr	confirmed_flush_lsn;
	XLogRecPtr	moves_at;		/* once this is acknowledged, the slot retains
								 * less WAL; invalid: nothing is known to
								 * depend on that */
} EcmSlotFacts;

/* Looks a slot up by name; returns facts->exists. */
extern bool ecm_slot_lookup(const char *name, EcmSlotFacts *facts);

/* A sentence about the cause of a slot's invalidation, as 'invalidation' has it. */
extern const char *ecm_slot_invalidation_text(const char *invalidation);

/*
 * Could a stack of that database use the slot, or have made it?  Goes by
 * properties that never change: the slot exists, is logical, is in that
 * database, and has plugin pgoutput.  (A temporary slot can be of our kind,
 * too, but ends with its session.)
 */
extern bool ecm_slot_is_of_our_kind(const EcmSlotFacts *facts, Oid dboid);

/* Are standbys to keep our slot in step, by the settings and this server's version? */
extern bool ecm_slot_is_for_failover(void);

/* Is there any slot in that database that its stack could use? */
extern bool ecm_database_has_slot(Oid dboid);

/*
 * Drops a slot.  The caller is a worker of ours, in no transaction.  Waits for
 * nobody: if somebody uses the slot, or it can't be dropped for another
 * reason, the result is false, and err has the reason.
 */
extern bool ecm_slot_drop(const char *name, EcmError *err);

/*
 * Advances a slot, without decoding the WAL up to there, which must be flushed; in memory
 * and on the disk.  The first one is for the slot that this process has acquired; the
 * second one is called and answers as ecm_slot_drop().
 */
extern void ecm_slot_advance_acquired(XLogRecPtr lsn);
extern bool ecm_slot_advance(const char *name, XLogRecPtr lsn, EcmError *err);

/*
 * Is the WAL file that has that position missing, on every timeline of the
 * server's history?  A slot that has come with a copy of the data directory,
 * or has outlived pg_resetwal, can need such a file.  PostgreSQL itself does
 * not notice that the slot is of no use until something reads from it.
 */
extern bool ecm_slot_wal_is_gone(XLogRecPtr lsn);

/*
 * The end of the last WAL record.  The insert position of a server at rest may
 * be behind the header of a page that has no record yet.  No position in a
 * stream ever gets there, so whoever waited for it would wait for ever; the
 * beginning of that page is returned instead.
 */
extern XLogRecPtr ecm_end_of_wal(void);

#endif							/* ECM_SLOT_H */
