/*-------------------------------------------------------------------------
 *
 * shape_judge.h
 *	  Which captured entries stay in the log of a shape whose rows are read in
 *	  pieces.
 *
 * The rows of a piece were read with a snapshot of the piece's own.  A captured
 * change of one of its keys is in these rows if that snapshot sees the change's
 * transaction; then its entry goes, else it stays.  Keys that no piece has yet
 * will be read with a later snapshot, which sees all that an earlier one sees.
 * So a change of such a key goes if the last piece's snapshot sees it, and else
 * stays until the next piece.
 *
 * A later snapshot sees more.  So with the first piece whose snapshot sees the
 * transaction, one comparison decides about a key: an entry stays if its key is
 * in an earlier piece.  Judging once more, with more pieces, decides likewise
 * about what has stayed, but for keys that no piece had.
 *
 * An update of a key is a delete and an insert, and these may have different
 * fates.  If the delete goes, and the insert stays and lacks values that the
 * update did not change, nobody has these: the new key was read before the
 * update, and the old one behind it.  Such a key has to be read again, with a
 * later snapshot.  All entries of the key whose transaction that snapshot sees
 * then go, from the insert on, and the row that was read takes the insert's
 * place.
 *
 * Pure.  Compiled into the extension and into the unit tests.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_JUDGE_H
#define ECM_SHAPE_JUDGE_H

#include <stdbool.h>
#include <stdint.h>

#include "shape/shape_chunk.h"

/* What becomes of an entry, or of all that one transaction has brought. */
typedef enum EcmVerdict
{
	ECM_STAYS,
	ECM_GOES,
	ECM_BY_ENTRY,				/* of a transaction: see each entry */
	ECM_REPLACED				/* of an entry: by the row that was read again */
} EcmVerdict;

/* The pieces that have been read, as the caller knows them. */
typedef struct EcmPieceSource
{
	int			last;			/* number of the last one, from 1 */
	void	   *arg;			/* for the functions */

	/* Does the snapshot of a piece see the transaction? */
	bool		(*sees) (void *arg, int piece, uint64_t xid);

	/* Is the entry's key greater than all of a piece and those before it? */
	bool		(*is_beyond) (void *arg, int piece, const EcmChunkReader *entry);
} EcmPieceSource;

/* A zeroed judge is ready, once it has its source. */
typedef struct EcmJudge
{
	EcmPieceSource source;
	bool		asked;			/* the next two are known */
	uint64_t	xid;			/* the last transaction */
	int			first;			/* piece whose snapshot is the first to see
								 * it; last + 1: none does */
} EcmJudge;

/*
 * About a transaction: all its entries stay (those of keys that no piece has,
 * for the time being), or go; or it depends on the entry, about which then
 * ecm_judge_entry() has to be asked: stays, or goes.
 */
extern EcmVerdict ecm_judge_transaction(EcmJudge *judge, uint64_t xid);
extern EcmVerdict ecm_judge_entry(const EcmJudge *judge, const EcmChunkReader *entry);

/*
 * About an entry of a key that was read again, of a transaction that its
 * snapshot sees.  The offset is that of the insert that lacks values.
 */
extern EcmVerdict ecm_judge_again(uint64_t lsn, uint64_t op, const EcmChunkReader *entry);

/* Looks out for inserts whose values have gone.  Zeroed at first. */
typedef struct EcmHalves
{
	bool		gone;			/* the entry before was a delete, and goes */
	uint64_t	lsn;			/* its offset */
	uint64_t	op;
} EcmHalves;

/*
 * To be told of each entry and its verdict, in order.  True: the entry is an
 * insert that stays, and lacks values that are in no entry and no piece.
 */
extern bool ecm_judge_lacks(EcmHalves *halves, const EcmChunkReader *entry,
							EcmVerdict verdict);

#endif							/* ECM_SHAPE_JUDGE_H */
