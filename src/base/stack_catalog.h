/*-------------------------------------------------------------------------
 *
 * stack_catalog.h
 *	  What the stack remembers about the server and the database it was last
 *	  seen in, and how far the logs of its shapes are.
 *
 * The one row of _electric_cm.stack, which only these functions write.  The
 * manager writes no table itself while it streams: the functions that end in
 * _sql make statements for a session of its pool.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STACK_CATALOG_H
#define ECM_STACK_CATALOG_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "base/server_info.h"
#include "base/shmem.h"

/* The row of _electric_cm.stack. */
typedef struct EcmStackRow
{
	Oid			database_oid;
	bool		known;			/* the next two are set: a stack has run
								 * before */
	uint64		system_identifier;
	uint32		timeline_id;
	bool		stopped;		/* by electric_cm_stop(), or never started */
	bool		stopped_for_upgrade;	/* ... only as long as this is the
										 * same server */
	XLogRecPtr	clean_stop_lsn; /* the slot's position at the last end;
								 * invalid: the stack runs, or has ended
								 * otherwise than in good order */
	XLogRecPtr	seen_lsn;		/* WAL before this is known to have been
								 * written with our library loaded, see
								 * server_runs.c; invalid: nobody has looked
								 * yet */
	bool		owns_slot;		/* the stack has created the slot slot_name */
	NameData	slot_name;
	bool		slot_unfinished;	/* its creation has not ended */
	NameData	publication;	/* that the stream was last read by; empty:
								 * there was no stream yet */
	bool		publication_dropped;	/* by us, since then */
	char		message_prefix[64];
} EcmStackRow;

/* Reads the row; within a transaction.  ERROR if there is none. */
extern void ecm_stack_row_read(EcmStackRow *remembered);

/*
 * The prefix of the stack's own messages in the stream, palloc'd; within a
 * transaction.
 */
extern char *ecm_message_prefix(void);

/*
 * Is this another server than the remembered one, or another history
 * (timeline) of it?
 */
extern bool ecm_stack_row_is_of_other_history(const EcmStackRow *remembered,
											  const EcmReplicationInfo *info);

/*
 * Everything before this is in the logs of all shapes that have one, as rows say
 * that are visible now; PG_UINT64_MAX: no shape has a log.  In a transaction.
 */
extern XLogRecPtr ecm_stack_logged_lsn(void);

/*
 * Nothing is in a log, or recorded of one, that is beyond this; a consumer that is at
 * work may delay the answer.  In a transaction.
 */
extern XLogRecPtr ecm_stack_newest_lsn(void);

/*
 * The transactions that have written the rows of progress, palloc'd; returns how
 * many.  marker_only: the marker's.  In a transaction.
 */
extern int	ecm_stack_progress_xids(bool marker_only, TransactionId **xids);

/*
 * The statement that records, by the marker, that all logs have everything before
 * that position.  It never takes back what another one has recorded.
 */
extern char *ecm_stack_mark_sql(XLogRecPtr lsn);

/*
 * Statements that record the present server and database in the row.  With a
 * mismatch, they order the resync of all shapes first, in the same transaction.  NULL:
 * the row is up to date.
 */
extern char *ecm_stack_row_record_sql(const EcmStackRow *remembered,
									  const EcmReplicationInfo *info,
									  Oid database_oid, const char *mismatch);

/*
 * Statements that record a failover, or an upgrade of the cluster: the former history was
 * left at that position, and an epoch begins, so that readers of what came there later
 * are told, also if the shapes are resynced.  What is not live yet begins again, as its
 * log may be another one here than readers have seen there.
 */
extern char *ecm_stack_begin_epoch_sql(XLogRecPtr switch_lsn, int32 epoch);

/*
 * Changes of the row, and reads of single columns.  In a transaction.
 * electric_cm_check() alone reads the row by itself, since it must not wait for a
 * lock.
 */

/* Records that the stack was stopped, and is to stay so. */
extern void ecm_stack_row_stopped(void);

/* The same, but only until pg_upgrade has made another server of this one. */
extern void ecm_stack_row_stopped_for_upgrade(void);

/*
 * Records that the stack is to run, and for this database.  True: the row said
 * otherwise before.
 */
extern bool ecm_stack_row_started(void);

/*
 * Records that slot and publication, which the stack had created, are dropped: to be
 * called before they are, so that the hooks know that no shape has to end for that.
 */
extern void ecm_stack_row_forget_created(void);

/*
 * Records that the slot of that name does not belong to the stack any more; the
 * second one returns the statement.
 */
extern void ecm_stack_row_disown_slot(const char *name);
extern char *ecm_stack_row_disown_slot_sql(const char *name);

/*
 * Statements to record that the stack has created a slot (own), or a publication.  NULL
 * instead of a name: the slot is a temporary one, which is not remembered.  unfinished:
 * a slot that is there, whosever, is not to be used yet.
 */
extern char *ecm_stack_row_own_slot_sql(bool own, const char *name, bool unfinished);
extern char *ecm_stack_row_own_publication_sql(const char *name);

/*
 * Records that our library was loaded whenever the WAL before this moment was
 * written (seen_lsn).
 */
extern void ecm_stack_row_seen_all(void);

/*
 * The publication that the stream was last read by, palloc'd; NULL: there was
 * no stream yet.  As of now, also in a REPEATABLE READ transaction.
 */
extern char *ecm_stack_row_publication(void);

/*
 * Records a clean stop, with the last position that was acknowledged to the
 * slot.  If the slot has moved on from there when the stack runs again,
 * somebody else has consumed changes.  With for_upgrade the stack is to stay
 * stopped until pg_upgrade.
 */
extern void ecm_stack_row_record_stop(XLogRecPtr lsn, bool for_upgrade);

/*
 * Drops the publications that the stack has created (not one that the user has
 * made later under such a name); within ecm_spi_begin() and _end().
 */
extern void ecm_drop_own_publications(void);

#endif							/* ECM_STACK_CATALOG_H */
