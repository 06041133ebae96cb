/*-------------------------------------------------------------------------
 *
 * shape_pieces.c
 *	  The pieces that a shape's rows have been read in, for judging captured
 *	  entries.
 *
 * A large table has very many pieces, and a snapshot may have the ids of a
 * thousand transactions.  So pieces are not kept in memory: the judge looks at
 * few, which are near each other.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/xid8.h"

#include "base/compat.h"
#include "base/spi.h"
#include "shape/arrays.h"
#include "shape/shape_key_cmp.h"
#include "shape/shape_pieces.h"

/* Pieces that are kept, each at the place of its number modulo this. */
#define KEPT_PIECES		32

typedef struct Piece
{
	int			number;			/* 0: none is kept here */
	MemoryContext context;		/* of the next two; reset for another one */
	Datum		snapshot;
	Datum	   *upto;			/* NULL: there is no end */
} Piece;

typedef struct Pieces
{
	EcmJudge	judge;
	const EcmShapeDef *shape;
	int64		reading;
	EcmKeyCmp  *cmp;
	Piece		kept[KEPT_PIECES];
	MemoryContext entry_context;	/* reset after each comparison */
} Pieces;

pg_noreturn static void
report_missing(const Pieces *pieces, int number)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("piece %d of the rows of shape \"%s\" is missing, or is malformed",
					number, pieces->shape->handle)));
}

static void
load_piece(Pieces *pieces, Piece *piece, int number)
{
	static struct _SPI_plan *plan;
	Oid			types[2] = {INT8OID, INT4OID};
	Datum		values[2] = {Int64GetDatum(pieces->reading), Int32GetDatum(number)};
	Datum		upto = (Datum) 0;
	bool		no_end = false;
	bool		isnull;
	EcmSpiState spi;
	MemoryContext old;

	piece->number = 0;
	if (piece->context == NULL)
		piece->context = AllocSetContextCreate(GetMemoryChunkContext(pieces),
											   "electric_cm piece", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(piece->context);
	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&plan, "SELECT snapshot, upto FROM _electric_cm.reading_piece"
					 " WHERE reading = $1 AND number = $2", SPI_OK_SELECT, 2, types, values, NULL);
	if (SPI_processed != 1)
		report_missing(pieces, number);
	old = MemoryContextSwitchTo(piece->context);
	piece->snapshot = datumCopy(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
											  1, &isnull), false, -1);
	upto = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &no_end);
	if (!no_end)
		upto = PointerGetDatum(PG_DETOAST_DATUM_COPY(upto));
	MemoryContextSwitchTo(old);
	ecm_spi_end(&spi);

	/* the input functions run with the consumer's own settings */
	piece->upto = NULL;
	if (!no_end)
	{
		int			n;
		char	  **texts;

		old = MemoryContextSwitchTo(piece->context);
		if (array_contains_nulls(DatumGetArrayTypeP(upto)))
			report_missing(pieces, number);
		texts = ecm_array_names(upto, &n);
		if (n != pieces->shape->nkeys)
			report_missing(pieces, number);
		piece->upto = ecm_key_from_texts(pieces->cmp, texts);
		MemoryContextSwitchTo(old);
	}
	piece->number = number;
}

static Piece *
get_piece(Pieces *pieces, int number)
{
	Piece	   *piece = &pieces->kept[number % KEPT_PIECES];

	if (piece->number != number)
		load_piece(pieces, piece, number);
	return piece;
}

static bool
is_visible(Datum snapshot, uint64 xid)
{
	return DatumGetBool(DirectFunctionCall2(pg_visible_in_snapshot,
											FullTransactionIdGetDatum(FullTransactionIdFromU64(xid)),
											snapshot));
}

static bool
piece_sees(void *arg, int number, uint64_t xid)
{
	return is_visible(get_piece(arg, number)->snapshot, xid);
}

static bool
is_beyond_piece(void *arg, int number, const EcmChunkReader *entry)
{
	Pieces	   *pieces = arg;
	Piece	   *piece = get_piece(pieces, number);
	MemoryContext old;
	int			cmp;

	if (piece->upto == NULL)
		report_missing(pieces, number); /* only the last piece has no end */
	old = MemoryContextSwitchTo(pieces->entry_context);
	cmp = ecm_key_compare(pieces->cmp, ecm_key_from_entry(pieces->cmp, entry), piece->upto);
	MemoryContextSwitchTo(old);
	MemoryContextReset(pieces->entry_context);
	return cmp > 0;
}

static int
last_piece(const Pieces *pieces)
{
	static struct _SPI_plan *plan;
	Oid			type = INT8OID;
	Datum		value = Int64GetDatum(pieces->reading);
	EcmSpiState spi;
	bool		isnull = true;
	int			number = 0;

	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&plan, "SELECT max(number) FROM _electric_cm.reading_piece WHERE reading = $1",
					 SPI_OK_SELECT, 1, &type, &value, NULL);
	if (SPI_processed == 1)
		number = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
											 1, &isnull));
	if (isnull)
		report_missing(pieces, 1);
	ecm_spi_end(&spi);
	return number;
}

EcmJudge *
ecm_pieces_judge(const EcmShapeDef *shape, int64 reading, int last)
{
	Pieces	   *pieces = palloc0(sizeof(Pieces));

	pieces->shape = shape;
	pieces->reading = reading;
	pieces->cmp = ecm_key_cmp_begin(shape);
	pieces->entry_context = AllocSetContextCreate(CurrentMemoryContext,
												  "electric_cm compared keys",
												  ALLOCSET_DEFAULT_SIZES);
	pieces->judge.source = (EcmPieceSource)
	{
		.last = last, .arg = pieces, .sees = piece_sees, .is_beyond = is_beyond_piece
	};
	if (last == 0)
	{
		pieces->judge.source.last = last_piece(pieces);
		if (get_piece(pieces, pieces->judge.source.last)->upto != NULL)
			report_missing(pieces, pieces->judge.source.last + 1);
	}
	return &pieces->judge;
}

static bool
snapshot_sees(void *arg, int number pg_attribute_unused(), uint64_t xid)
{
	return is_visible(PointerGetDatum(arg), xid);
}

EcmJudge *
ecm_snapshot_judge(const char *snapshot)
{
	EcmJudge   *judge = palloc0(sizeof(EcmJudge));

	judge->source.last = 1;
	judge->source.arg = DatumGetPointer(DirectFunctionCall1(pg_snapshot_in,
															CStringGetDatum(snapshot)));
	judge->source.sees = snapshot_sees;
	return judge;
}
