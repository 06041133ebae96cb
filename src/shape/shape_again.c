/*-------------------------------------------------------------------------
 *
 * shape_again.c
 *	  Keys that are read again, for entries that lack values (see
 *	  shape_judge.h).
 *
 * A consumer asks by a row in _electric_cm.reading_again.  When all pieces have
 * been read and judged, a pool session reads the rows with these keys, and puts
 * them there, too.  Its message "again" brings the consumer here.
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
#include "utils/pg_lsn.h"
#include "utils/xid8.h"

#include "base/spi.h"
#include "shape/arrays.h"
#include "shape/shape_again.h"
#include "shape/shape_entry.h"
#include "shape/shape_key_cmp.h"

/* A key that was read again. */
typedef struct Answer
{
	uint64		lsn;			/* of the insert that lacks values */
	uint64		op;
	Datum	   *key;
	const EcmValue *row;		/* NULL: there is no such row */
} Answer;

typedef struct Again
{
	const EcmShapeDef *shape;
	EcmKeyCmp  *cmp;
	Datum		snapshot;		/* of all answers */
	Answer	   *answers;		/* by key, and of each key the first offset
								 * only */
	int			n;
	uint64		from;			/* LSN of the first */
	EcmHalves	halves;
	MemoryContext entry_context;	/* reset after each entry */
} Again;

void
ecm_again_ask(const EcmShapeDef *shape, const EcmChunkReader *insert)
{
	static struct _SPI_plan *plan;
	Oid			types[] = {INT8OID, LSNOID, INT8OID, INT4OID, TEXTARRAYOID};
	char	  **key = palloc(sizeof(char *) * shape->nkeys);
	Datum		values[5];
	EcmSpiState spi;

	for (int i = 0; i < shape->nkeys; i++)
	{
		const EcmValue *value = &insert->new_values[shape->key_positions[i]];

		if (value->kind != ECM_VALUE_TEXT)
			ecm_entry_report_corrupt(shape, insert->lsn, insert->opno);
		key[i] = pnstrdup(value->text, value->len);
	}
	values[0] = Int64GetDatum(shape->id);
	values[1] = LSNGetDatum(insert->lsn);
	values[2] = Int64GetDatum((int64) insert->opno);
	values[3] = Int32GetDatum(shape->generation);
	values[4] = ecm_array_of_names(key, shape->nkeys);
	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&plan, "INSERT INTO _electric_cm.reading_again (shape, lsn, op, generation, key)"
					 " VALUES ($1, $2, $3, $4, $5)", SPI_OK_INSERT, 5, types, values, NULL);
	ecm_spi_end(&spi);
}

pg_noreturn static void
report_malformed(const EcmShapeDef *shape)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("a row of shape \"%s\" that was read again is malformed", shape->handle)));
}

/* The values of a row, which is packed as a chunk with one insert. */
static const EcmValue *
unpack_row(const EcmShapeDef *shape, Datum data)
{
	bytea	   *bytes = DatumGetByteaPCopy(data);
	EcmValue   *values = palloc(sizeof(EcmValue) * shape->ncolumns);
	EcmChunkReader r;

	ecm_chunk_reader_init(&r, VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes), values, NULL,
						  shape->ncolumns);
	if (ecm_chunk_next(&r) != ECM_CHUNK_ENTRY || r.op != ECM_OP_INSERT ||
		r.n_new != shape->ncolumns || ecm_entry_missing(values, r.n_new) > 0)
		report_malformed(shape);
	return values;
}

static void
take_answer(Again *again, HeapTuple tuple, TupleDesc desc)
{
	Answer	   *answer = &again->answers[again->n++];
	const EcmShapeDef *shape = again->shape;
	Datum		data;
	Datum		snapshot;
	char	  **texts;
	int			n;
	bool		isnull;
	bool		no_snapshot;

	answer->lsn = DatumGetLSN(SPI_getbinval(tuple, desc, 1, &isnull));
	answer->op = (uint64) DatumGetInt64(SPI_getbinval(tuple, desc, 2, &isnull));
	texts = ecm_array_names(SPI_getbinval(tuple, desc, 3, &isnull), &n);
	snapshot = SPI_getbinval(tuple, desc, 4, &no_snapshot);
	data = SPI_getbinval(tuple, desc, 5, &isnull);
	if (n != shape->nkeys || no_snapshot)
		report_malformed(shape);
	if (again->n == 1)
	{
		again->snapshot = PointerGetDatum(PG_DETOAST_DATUM_COPY(snapshot));
		again->from = answer->lsn;
	}
	else if (!datumIsEqual(again->snapshot, PointerGetDatum(PG_DETOAST_DATUM(snapshot)),
						   false, -1))
		report_malformed(shape);
	answer->row = isnull ? NULL : unpack_row(shape, data);
	answer->key = ecm_key_from_texts(again->cmp, texts);
}

static int
compare_answers(const void *a, const void *b, void *arg)
{
	const Answer *answer1 = a;
	const Answer *answer2 = b;
	int			cmp = ecm_key_compare(((Again *) arg)->cmp, answer1->key, answer2->key);

	return cmp != 0 ? cmp :
		ecm_offset_cmp(answer1->lsn, answer1->op, answer2->lsn, answer2->op);
}

/*
 * All that is behind the first insert of a key, and that the snapshot sees, goes,
 * and with it the key's other inserts that were asked for.
 */
static void
keep_first_of_each_key(Again *again)
{
	int			n = 0;

	qsort_arg(again->answers, again->n, sizeof(Answer), compare_answers, again);
	for (int i = 0; i < again->n; i++)
		if (n == 0 || ecm_key_compare(again->cmp, again->answers[n - 1].key,
									  again->answers[i].key) != 0)
			again->answers[n++] = again->answers[i];
	again->n = n;
}

#define ANSWERS_SQL \
	"SELECT lsn, op, key, snapshot, data FROM _electric_cm.reading_again" \
	" WHERE shape = $1 AND generation = $2 AND order_xid::xid = $3 ORDER BY lsn, op"

/* The memory of all that is loaded is the current context's. */
static void
load_answers(Again *again, TransactionId xid)
{
	static struct _SPI_plan *plan;
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID, INT4OID, XIDOID};
	Datum		values[] = {Int64GetDatum(again->shape->id),
	Int32GetDatum(again->shape->generation), TransactionIdGetDatum(xid)};
	EcmSpiState spi;
	SPITupleTable *table;
	uint64		n;

	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&plan, ANSWERS_SQL, SPI_OK_SELECT, 3, types, values, NULL);
	table = SPI_tuptable;
	n = SPI_processed;
	MemoryContextSwitchTo(context);
	again->answers = palloc(sizeof(Answer) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
		take_answer(again, table->vals[i], table->tupdesc);
	ecm_spi_end(&spi);
	MemoryContextSwitchTo(context);
}

/* The answer for an entry's key; NULL: the key was not read again. */
static const Answer *
find_answer(Again *again, const EcmChunkReader *entry)
{
	MemoryContext old = MemoryContextSwitchTo(again->entry_context);
	Datum	   *key = ecm_key_from_entry(again->cmp, entry);
	int			low = 0;
	int			high = again->n;
	const Answer *found = NULL;

	while (low < high && found == NULL)
	{
		int			middle = low + (high - low) / 2;
		int			cmp = ecm_key_compare(again->cmp, key, again->answers[middle].key);

		if (cmp == 0)
			found = &again->answers[middle];
		else if (cmp < 0)
			high = middle;
		else
			low = middle + 1;
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(again->entry_context);
	return found;
}

static EcmVerdict
judge_transaction(void *arg, uint64 xid)
{
	Again	   *again = arg;
	bool		sees = DatumGetBool(DirectFunctionCall2(pg_visible_in_snapshot,
														FullTransactionIdGetDatum(FullTransactionIdFromU64(xid)),
														again->snapshot));

	return sees ? ECM_BY_ENTRY : ECM_STAYS;
}

/*
 * Whatever becomes of an entry that was asked for, the question goes with the entry: the
 * answer to one that is there no more would make later changes of its key go.
 */
static void
forget_question(const EcmShapeDef *shape, const EcmChunkReader *entry)
{
	static struct _SPI_plan *plan;
	Oid			types[] = {INT8OID, LSNOID, INT8OID};
	Datum		values[] = {Int64GetDatum(shape->id), LSNGetDatum(entry->lsn),
	Int64GetDatum((int64) entry->opno)};
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&plan, "DELETE FROM _electric_cm.reading_again"
					 " WHERE shape = $1 AND lsn = $2 AND op = $3",
					 SPI_OK_DELETE, 3, types, values, NULL);
	ecm_spi_end(&spi);
}

static EcmVerdict
judge_entry(void *arg, const EcmChunkReader *entry, const EcmValue **row)
{
	Again	   *again = arg;
	const Answer *answer = find_answer(again, entry);
	EcmVerdict	verdict = ECM_STAYS;

	if (answer != NULL)
		verdict = ecm_judge_again(answer->lsn, answer->op, entry);
	if (verdict != ECM_STAYS && entry->op == ECM_OP_INSERT)
		forget_question(again->shape, entry);
	if (verdict == ECM_REPLACED)
	{
		if (entry->op != ECM_OP_INSERT)
			ecm_entry_report_corrupt(again->shape, entry->lsn, entry->opno);
		*row = answer->row;
		if (answer->row == NULL)
			verdict = ECM_GOES;
	}
	if (ecm_judge_lacks(&again->halves, entry, verdict))
		ecm_again_ask(again->shape, entry);
	return verdict;
}

bool
ecm_again_use(const EcmShapeDef *shape, TransactionId xid)
{
	Again		again = {.shape = shape, .cmp = ecm_key_cmp_begin(shape)};
	EcmCapturedRules rules = {.arg = &again, .transaction = judge_transaction,
	.entry = judge_entry};
	EcmCapturedMark mark = {0};

	load_answers(&again, xid);
	if (again.n == 0)
		return false;
	keep_first_of_each_key(&again);
	again.entry_context = AllocSetContextCreate(CurrentMemoryContext,
												"electric_cm compared keys",
												ALLOCSET_DEFAULT_SIZES);
	mark.lsn = again.from;
	(void) ecm_captured_judge(shape->id, shape, &rules, &mark);
	return true;
}

bool
ecm_again_waits(int64 shape, int generation)
{
	static struct _SPI_plan *plan;
	Oid			types[] = {INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(shape), Int32GetDatum(generation)};
	EcmSpiState spi;
	bool		any;

	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&plan, "SELECT FROM _electric_cm.reading_again"
					 " WHERE shape = $1 AND generation = $2 LIMIT 1",
					 SPI_OK_SELECT, 2, types, values, NULL);
	any = SPI_processed > 0;
	ecm_spi_end(&spi);
	return any;
}
