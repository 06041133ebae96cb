/*-------------------------------------------------------------------------
 *
 * shape_look.h
 *	  A reader's look at a shape: is it there, may he read it, what comes next?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_LOOK_H
#define ECM_SHAPE_LOOK_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "utils/resowner.h"
#include "utils/snapshot.h"

#include "functions/log_cursor.h"
#include "shape/shape.h"
#include "shape/shape_chunk.h"

/* Will the caller wait? */
typedef enum EcmLookWait
{
	ECM_LOOK_NO_WAIT,
	ECM_LOOK_MAY_WAIT,			/* until the shape can be read */
	ECM_LOOK_WILL_WAIT			/* even if it can be */
} EcmLookWait;

/* What is looked at, and in which snapshot. */
typedef struct EcmLookRequest
{
	const char *handle;
	EcmOffset	after;
	bool		is_position;	/* see ecm_log_cursor_begin() */
	EcmLookWait wait;
	bool		first_look;		/* the statement's own snapshot will do */
	Snapshot	snapshot;		/* this one, or NULL */
	XLogRecPtr	logged_lsn;		/* everything before this is known to be in
								 * the log, in that snapshot */
} EcmLookRequest;

/* The result, in a memory context of its own. */
typedef struct EcmLook
{
	MemoryContext context;
	EcmShapeDef *shape;
	bool		readable;
	Snapshot	snapshot;		/* registered with 'owner' */
	ResourceOwner owner;
	EcmLogCursor *cursor;		/* rests; NULL unless readable */
} EcmLook;

/*
 * Calls a function in a subtransaction that is rolled back, so that no lock on our tables
 * is held in a wait.  DROP EXTENSION, for example, would wait for such a lock, and all
 * other sessions behind it.  The caller's memory context stays the current one.
 */
extern void ecm_undone(void (*look) (void *arg), void *arg);

/*
 * Looks at a shape, in such a subtransaction.
 *
 * Errors: 42704 no such shape; 42501 the user may not read it; 55000 it is errored, or
 * waiting for it is impossible; EC001 the offset is not one of its log, or not any more.
 */
extern EcmLook *ecm_look_at_shape(const EcmLookRequest *request);

extern void ecm_look_end(EcmLook *look);

#endif							/* ECM_SHAPE_LOOK_H */
