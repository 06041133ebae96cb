/*-------------------------------------------------------------------------
 *
 * reader.h
 *	  Named readers, as their rows have them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_READER_H
#define ECM_READER_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "fmgr.h"

#include "shape/shape_chunk.h"

typedef struct EcmReader
{
	int64		id;
	char	   *name;
	EcmOffset	position;		/* in the order of the stream */
} EcmReader;

typedef struct EcmReaderShape
{
	int64		shape;
	char	   *handle;
	bool		initial;		/* the rows that its log begins with have not
								 * been acknowledged yet */
	bool		is_own;			/* it has a position of its own: */
	EcmOffset	position;		/* ... or else the reader's */
	bool		is_lost;
} EcmReaderShape;

/* What the reader is looked up for. */
typedef enum EcmReaderUse
{
	ECM_READER_READ,
	ECM_READER_CHANGE			/* its row is locked, too */
} EcmReaderUse;

/*
 * Looks up a reader by a function's argument, and waits for other sessions that use it.
 * They wait for this transaction then; on a standby nobody waits.
 *
 * Errors: 22004 the name is NULL; 42704 no such reader; 42501 the user is neither its owner
 * nor a member of that role.
 */
extern void ecm_reader_arg(FunctionCallInfo fcinfo, int argno, EcmReaderUse use, EcmReader *reader);

/* Some of a reader's shapes. */
typedef enum EcmReaderPart
{
	ECM_READER_ALL,
	ECM_READER_FOLLOWED,		/* neither lost nor ended */
	ECM_READER_INITIAL,			/* of these, the initial ones */
	ECM_READER_OWN				/* with a position of their own, but not
								 * initial */
} EcmReaderPart;

/*
 * Those after one (0: the first), up to 'limit', in the order in which they were created.
 */
extern EcmReaderShape *ecm_reader_shapes(const EcmReader *reader, EcmReaderPart part,
										 int64 after, int limit, int *n);

/* NULL: the reader does not have that shape. */
extern EcmReaderShape *ecm_reader_shape(const EcmReader *reader, const char *handle);

/* Has the shape, after the reader's first rows of it, still to come to the reader's position? */
extern bool ecm_reader_catches_up(const EcmReader *reader, const EcmReaderShape *shape);

/* How offsets are compared: before_all comes first. */
extern int	ecm_reader_cmp(const EcmOffset *a, const EcmOffset *b);

/* As columns have positions. */
extern EcmOffset ecm_position_of(XLogRecPtr lsn, int64 op);
extern int64 ecm_position_op(const EcmOffset *position);

#endif							/* ECM_READER_H */
