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
 * Takes a sample of the slot.  The struct passed in holds the previous sample
 * (or zeros): once the slot is lost the server forgets its position, and the
 * last known sizes are worth more than none, so they stay.  Everything about
 * the slot is reset if there is none.  Returns whether the slot exists.
 *
 * flush_lag_us and decoding are left to others.
 */
extern bool ecm_slot_sample(const char *slot_name, EcmWalSample *sample);

/*
 * The end of WAL: written, or, on a standby, received or replayed, whichever
 * is more.
 */
extern XLogRecPtr ecm_current_lsn(void);

/* max_slot_wal_keep_size in bytes; -1: no limit. */
extern int64 ecm_max_slot_wal_keep_bytes(void);

/* A slot of the server, ours or not, as pg_replication_slots has it. */
typedef struct EcmSlotRow
{
	char		name[NAMEDATALEN];
	char		plugin[NAMEDATALEN];	/* "": a physical slot */
	Oid			database;
	bool		temporary;
	int			active_pid;		/* 0: not active */
	const char *wal_status;		/* "": it holds nothing back */
	XLogRecPtr	restart_lsn;
	XLogRecPtr	confirmed_flush_lsn;
	int64		retained_wal_bytes;
	int64		safe_wal_size;	/* -1: unlimited */
	int32		xmin_age;		/* -1: holds nothing back */
	int32		catalog_xmin_age;
	TimestampTz inactive_since; /* 0: active, or this version doesn't know */
} EcmSlotRow;

/* Reads all slots into an array of max_replication_slots; returns how many. */
extern int	ecm_slots_read(EcmSlotRow *rows);

typedef struct EcmSlotFacts
{
	bool		exists;			/* if not, nothing else is set */
	bool		logical;
	bool		temporary;
	bool		two_phase;
	bool		invalidated;
	Oid			database;		/* InvalidOid: a physical slot */
	char		plugin[NAMEDATALEN];
	int			active_pid;		/* 0: not active */
	XLogRecPtr	restart_lsn;
	XLogRecPtr	confirmed_flush_lsn;
} EcmSlotFacts;

/* Looks a slot up by name; returns facts->exists. */
extern bool ecm_slot_lookup(const char *name, EcmSlotFacts *facts);

/*
 * Could a stack of that database use the slot, or have made it, by what never
 * changes in a slot?  (A temporary one goes with its session.)
 */
extern bool ecm_slot_is_of_our_kind(const EcmSlotFacts *facts, Oid dboid);

/* Is there a slot in that database which a stack of it could use? */
extern bool ecm_database_has_slot(Oid dboid);

/*
 * Drops a slot from a worker that is in no transaction, without waiting.
 * False: it could not be dropped, as when somebody uses it; err says why.
 */
extern bool ecm_slot_drop(const char *name, EcmError *err);

/*
 * Is the WAL file with that position missing, on every timeline that leads
 * here?  So it is with a slot that a copied data directory or pg_resetwal has
 * left behind: PostgreSQL itself does not see that such a slot is of no use.
 */
extern bool ecm_slot_wal_is_gone(XLogRecPtr lsn);

/*
 * The end of the last WAL record.  The insert position of a server at rest may
 * be behind the header of a page that no record has reached yet; nothing that
 * is streamed ever gets there, so it counts as the page's beginning.
 */
extern XLogRecPtr ecm_end_of_wal(void);

#endif							/* ECM_SLOT_H */
