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
	int64		shape;			/* that it works on; 0: none in particular */
	Oid			relation;		/* whose change it looks at; invalid: none */
	XLogRecPtr	lsn;			/* of the transaction; invalid: none */
} EcmPlace;

typedef enum EcmBlame
{
	ECM_BLAME_NOBODY,			/* not yet, or not at all */
	ECM_BLAME_SHAPE,
	ECM_BLAME_OWNER,			/* that shape's owner: all that he has of its
								 * table */
	ECM_BLAME_TABLE				/* all shapes of the relation */
} EcmBlame;

/* This process's own place, to be kept up to date; never NULL. */
extern volatile EcmPlace *ecm_here;

/*
 * Goes on with the note of that name.  If the process that kept it before did
 * not end by itself, 'place' is where that was, and the result whom to blame.
 * 'quit' is what handles SIGQUIT in this process.
 */
extern EcmBlame ecm_blame_open(const char *name, pqsigfunc quit, EcmPlace *place);

/* We end here, by an error that may be a shape's fault. */
extern EcmBlame ecm_blame_death(EcmPlace *place);

/* The shapes that were to blame have been put out of the way. */
extern void ecm_blame_settled(const EcmPlace *place);

/* Has a process died at that transaction before?  At that shape? */
extern bool ecm_blame_died_at(XLogRecPtr lsn, int64 shape);

/* A transaction is done with. */
extern void ecm_blame_passed(XLogRecPtr lsn);

/* From here on, up to the end, nothing is any shape's fault. */
extern void ecm_blame_close(void);

#endif							/* ECM_SHAPE_BLAME_H */
