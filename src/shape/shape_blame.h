/*-------------------------------------------------------------------------
 *
 * shape_blame.h
 *	  Which shape is to blame for the death of a process.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_BLAME_H
#define ECM_SHAPE_BLAME_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "libpq/pqsignal.h"

/* Where a process is. */
typedef struct EcmPlace
{
	int64		shape;			/* the shape that it works on; 0: none in
								 * particular */
	Oid			relation;		/* table of the change that it looks at;
								 * invalid: none */
	XLogRecPtr	lsn;			/* commit of the change's transaction;
								 * invalid: none */
} EcmPlace;

/* Which shapes are to blame for a process's death, and have to end. */
typedef enum EcmBlame
{
	ECM_BLAME_NOBODY,			/* none, or none yet */
	ECM_BLAME_SHAPE,			/* the shape of the place */
	ECM_BLAME_OWNER,			/* all shapes that the shape's owner has of
								 * its table */
	ECM_BLAME_TABLE				/* all shapes of the relation */
} EcmBlame;

/* This process's place, which it keeps up to date; never NULL. */
extern volatile EcmPlace *ecm_here;

/*
 * Opens the note of that name.  If the process that kept it before has died,
 * *place becomes where that was, and the result is who is to blame. 'quit' is
 * this process's SIGQUIT handler, which is called after ours.
 */
extern EcmBlame ecm_blame_open(const char *name, pqsigfunc quit, EcmPlace *place);

/*
 * This process ends by an error that may be a shape's fault: counts that as a
 * death at its place.
 */
extern EcmBlame ecm_blame_death(EcmPlace *place);

/* The shapes that were to blame for a death at that place have been ended. */
extern void ecm_blame_settled(const EcmPlace *place);

/*
 * Has a process died at that transaction before: at that shape, or (shape is
 * 0) at any?
 */
extern bool ecm_blame_died_at(XLogRecPtr lsn, int64 shape);

/* The transaction has been processed: deaths up to there don't count any more. */
extern void ecm_blame_passed(XLogRecPtr lsn);

/*
 * Closes the note.  From here on until the process ends, nothing is any
 * shape's fault.
 */
extern void ecm_blame_close(void);

#endif							/* ECM_SHAPE_BLAME_H */
