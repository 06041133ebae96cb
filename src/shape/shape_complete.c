/*-------------------------------------------------------------------------
 *
 * shape_complete.c
 *	  Finds the values that inserts in a shape's log lack.
 *
 * When an UPDATE changes a row's key, the log has a delete of the old key,
 * directly followed by an insert of the new one.  The stream does not send
 * values that are TOASTed and unchanged, so the insert lacks them.  The log
 * has them in earlier entries of the row, under its old key, and the latest of
 * these is the one that counts.  So we walk back from the insert: over that
 * delete, then to the entries of the old key, the latest one first.  If the
 * first entry of that key is again such an insert, the walk goes on with the
 * key that the row had before.
 *
 * One walk serves all such inserts that the reader will come to next.  It
 * keeps a table of the keys that are looked for at the present point, and
 * notes where the values are, not the values themselves, which are fetched
 * when the reader comes to the insert.
 *
 * At any point of the walk at most one insert looks for a key.  For between
 * two lives of one key there is the insert with which the later life began.
 * There, the insert that has been looking for the key has found its values, or
 * goes on with the key before, or waits for what the walk will find for that
 * insert.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/itemptr.h"
#include "utils/memutils.h"

#include "shape/shape.h"
#include "shape/shape_chunk.h"
#include "shape/shape_complete.h"
#include "shape/shape_entry.h"
#include "shape/shape_log.h"

/* Limit of the notes of a walk, in bytes; more inserts need another walk. */
#define MAX_NOTED_BYTES		(16 * 1024 * 1024)

/* Values are allocated in blocks of at least this number. */
#define BLOCK_VALUES		1024

/* Where a value is. */
typedef struct Place
{
	int16		column;
	bool		found;
	bool		in_old;			/* among the entry's old values */
	int32		number;			/* of the entry within its chunk */
	ItemPointerData chunk;
} Place;

/* An insert that lacks values. */
typedef struct Wanted
{
	uint64		lsn;
	uint64		op;
	int			nplaces;
	int			nmissing;		/* not found yet */
	Place	   *places;			/* by column */
	struct Wanted *same;		/* an earlier insert that lacks the values
								 * that this one still lacks; or NULL */

	/* while it looks for a key */
	EcmValue   *key;
	uint32		hash;
	struct Wanted *next;		/* in the same bucket */
} Wanted;

/* An entry of a decoded chunk; the texts are the chunk's. */
typedef struct LogEntry
{
	EcmOp		op;
	uint64		lsn;
	uint64		opno;
	EcmValue   *new_values;		/* NULL: none */
	EcmValue   *old_values;		/* NULL: none */
} LogEntry;

typedef struct DecodedChunk
{
	LogEntry   *entries;
	int			nentries;
} DecodedChunk;

struct EcmCompleter
{
	const EcmShapeDef *shape;
	Snapshot	snapshot;
	uint64		end_lsn;
	uint64		end_op;
	MemoryContext context;		/* the completer's */
	MemoryContext walk_context; /* what is noted for the current walk */
	MemoryContext chunk_context;	/* the chunk that is looked at */

	Wanted	   *wanted;			/* ascending */
	int			nwanted;
	int			max_wanted;
	int			turn;			/* index of the next one to be filled */

	/* only while walking: the inserts that look for a key, by its hash */
	Wanted	  **buckets;
	uint32		nbuckets;		/* a power of two */
	int			nlooking;
	Wanted	   *at_insert;		/* the walk is at an insert of a key update:
								 * this is who goes on with the delete before
								 * it, whose offset follows */
	uint64		delete_lsn;
	uint64		delete_op;

	/* fetching */
	bool		scanning;
	EcmChunkScan cs;
	ItemPointerData fetched;	/* tuple of the chunk in chunk_context; or
								 * invalid */
	DecodedChunk chunk;
};

EcmCompleter *
ecm_completer_begin(const EcmShapeDef *shape, Snapshot snapshot,
					uint64 end_lsn, uint64 end_op)
{
	EcmCompleter *c = palloc0(sizeof(EcmCompleter));

	c->shape = shape;
	c->snapshot = snapshot;
	c->end_lsn = end_lsn;
	c->end_op = end_op;
	c->context = AllocSetContextCreate(CurrentMemoryContext,
									   "electric_cm completer",
									   ALLOCSET_DEFAULT_SIZES);
	c->walk_context = AllocSetContextCreate(c->context, "electric_cm walk back",
											ALLOCSET_DEFAULT_SIZES);
	c->chunk_context = AllocSetContextCreate(c->context,
											 "electric_cm chunk walked back",
											 ALLOCSET_DEFAULT_SIZES);
	return c;
}

static void
end_scan(EcmCompleter *c)
{
	if (c->scanning)
		ecm_chunk_scan_end(&c->cs);
	c->scanning = false;
	ItemPointerSetInvalid(&c->fetched);
}

void
ecm_completer_end(EcmCompleter *c)
{
	end_scan(c);
	MemoryContextDelete(c->context);
	pfree(c);
}

/* ----------------------------------------------------------------
 * Which inserts lack values
 * ----------------------------------------------------------------
 */

static void
note_wanted(EcmCompleter *c, const EcmChunkReader *r)
{
	MemoryContext old = MemoryContextSwitchTo(c->walk_context);
	int			ncolumns = c->shape->ncolumns;
	Wanted	   *w;

	if (c->nwanted == c->max_wanted)
	{
		c->max_wanted = Max(2 * c->max_wanted, 64);
		c->wanted = c->wanted == NULL ?
			palloc(c->max_wanted * sizeof(Wanted)) :
			repalloc_huge(c->wanted, c->max_wanted * sizeof(Wanted));
	}
	w = &c->wanted[c->nwanted++];
	memset(w, 0, sizeof(Wanted));
	w->lsn = r->lsn;
	w->op = r->opno;
	w->nplaces = w->nmissing = ecm_entry_missing(r->new_values, ncolumns);
	w->places = palloc0(w->nplaces * sizeof(Place));
	for (int column = 0, i = 0; column < ncolumns; column++)
		if (r->new_values[column].kind == ECM_VALUE_UNCHANGED)
			w->places[i++].column = column;
	MemoryContextSwitchTo(old);
}

/* Notes the inserts that lack values, from the one at hand on. */
static void
note_inserts(EcmCompleter *c, XLogRecPtr chunk_lsn, int64 chunk_op,
			 const EcmChunkReader *first, int64 max_entries)
{
	EcmValue   *new_values = palloc(c->shape->ncolumns * sizeof(EcmValue));
	EcmValue   *old_values = palloc(c->shape->ncolumns * sizeof(EcmValue));
	EcmChunkScan cs;
	int64		entries = 0;
	bool		enough = false;

	ecm_chunk_scan_begin(&cs, c->shape->id, BTGreaterEqualStrategyNumber,
						 chunk_lsn, chunk_op, c->snapshot, AccessShareLock);
	while (!enough && ecm_chunk_scan_next(&cs))
	{
		MemoryContext old;
		EcmChunkReader r;

		MemoryContextReset(c->chunk_context);
		old = MemoryContextSwitchTo(c->chunk_context);
		ecm_chunk_scan_read(&cs, &r, new_values, old_values, c->shape->ncolumns);
		while (!enough && ecm_entry_next(c->shape, &cs, &r))
		{
			if (ecm_offset_cmp(r.lsn, r.opno, first->lsn, first->opno) < 0)
				continue;
			enough = ecm_offset_cmp(r.lsn, r.opno, c->end_lsn, c->end_op) > 0;
			if (enough)
				break;
			if (r.op == ECM_OP_INSERT &&
				ecm_entry_missing(r.new_values, c->shape->ncolumns) > 0)
				note_wanted(c, &r);
			enough = ++entries == max_entries ||
				MemoryContextMemAllocated(c->walk_context, false) >= MAX_NOTED_BYTES;
		}
		MemoryContextSwitchTo(old);
	}
	ecm_chunk_scan_end(&cs);
}

/* ----------------------------------------------------------------
 * The walk back
 * ----------------------------------------------------------------
 */

/* Decodes the scan's chunk as a whole, since that can only be done forwards. */
static void
decode_chunk(EcmCompleter *c)
{
	MemoryContext old;
	EcmChunkReader r;
	EcmValue   *block = NULL;
	int			ncolumns = c->shape->ncolumns;
	int			left = 0;		/* values left in the block */
	int			max = 64;
	DecodedChunk *chunk = &c->chunk;

	MemoryContextReset(c->chunk_context);
	old = MemoryContextSwitchTo(c->chunk_context);
	chunk->nentries = 0;
	chunk->entries = palloc(max * sizeof(LogEntry));
	ecm_chunk_scan_read(&c->cs, &r, NULL, NULL, ncolumns);
	for (;;)
	{
		LogEntry   *entry;

		if (left < 2 * ncolumns)
		{
			left = Max(BLOCK_VALUES, 2 * ncolumns);
			block = palloc(left * sizeof(EcmValue));
		}
		r.new_values = block;
		r.old_values = block + ncolumns;
		if (!ecm_entry_next(c->shape, &c->cs, &r))
			break;
		if (chunk->nentries == max)
		{
			max *= 2;
			chunk->entries = repalloc(chunk->entries, max * sizeof(LogEntry));
		}
		entry = &chunk->entries[chunk->nentries++];
		entry->op = r.op;
		entry->lsn = r.lsn;
		entry->opno = r.opno;
		entry->new_values = r.n_new > 0 ? r.new_values : NULL;
		entry->old_values = r.n_old > 0 ? r.old_values : NULL;
		block += 2 * ncolumns;
		left -= 2 * ncolumns;
	}
	MemoryContextSwitchTo(old);
}

/* The hash of an entry's key; false if it has none that could be looked for. */
static bool
hash_key(const EcmShapeDef *shape, const LogEntry *entry, uint32 *hash)
{
	*hash = 0;
	for (int i = 0; i < shape->nkeys; i++)
	{
		const EcmValue *column = ecm_entry_key_column(entry->op, entry->new_values,
													  entry->old_values,
													  shape->key_positions[i]);

		if (column->kind != ECM_VALUE_TEXT)
			return false;
		*hash = hash_combine(*hash, hash_bytes((const unsigned char *) column->text,
											   (int) column->len));
	}
	return true;
}

static bool
entry_has_key(const EcmShapeDef *shape, const LogEntry *entry,
			  const EcmValue *key)
{
	for (int i = 0; i < shape->nkeys; i++)
	{
		const EcmValue *column = ecm_entry_key_column(entry->op, entry->new_values,
													  entry->old_values,
													  shape->key_positions[i]);

		if (column->len != key[i].len ||
			memcmp(column->text, key[i].text, key[i].len) != 0)
			return false;
	}
	return true;
}

/*
 * Finds the insert that looks for the key of an entry.  Returns the pointer to
 * it in its bucket's list, for removing it; NULL: there is none.
 */
static Wanted **
find_looking(EcmCompleter *c, const LogEntry *entry)
{
	uint32		hash;
	Wanted	  **link;

	if (c->nlooking == 0 || !hash_key(c->shape, entry, &hash))
		return NULL;
	for (link = &c->buckets[hash & (c->nbuckets - 1)]; *link != NULL;
		 link = &(*link)->next)
		if ((*link)->hash == hash && entry_has_key(c->shape, entry, (*link)->key))
			return link;
	return NULL;
}

static void
stop_looking(EcmCompleter *c, Wanted **link)
{
	Wanted	   *w = *link;

	*link = w->next;
	for (int i = 0; i < c->shape->nkeys; i++)
		pfree(unconstify(char *, w->key[i].text));
	pfree(w->key);
	w->key = NULL;
	c->nlooking--;
}

/* From here on, w looks for the key that the entry has deleted. */
static void
start_looking(EcmCompleter *c, Wanted *w, const LogEntry *entry)
{
	MemoryContext old = MemoryContextSwitchTo(c->walk_context);
	const EcmShapeDef *shape = c->shape;

	if (!hash_key(shape, entry, &w->hash) || find_looking(c, entry) != NULL)
		ecm_entry_report_corrupt(shape, entry->lsn, entry->opno);
	w->key = palloc(shape->nkeys * sizeof(EcmValue));
	for (int i = 0; i < shape->nkeys; i++)
	{
		w->key[i] = entry->old_values[shape->key_positions[i]];
		w->key[i].text = pnstrdup(w->key[i].text, w->key[i].len);
	}
	w->next = c->buckets[w->hash & (c->nbuckets - 1)];
	c->buckets[w->hash & (c->nbuckets - 1)] = w;
	c->nlooking++;
	MemoryContextSwitchTo(old);
}

/* Notes where values are: those that w still lacks, and that an entry has. */
static void
note_places(EcmCompleter *c, Wanted *w, const EcmValue *values, bool in_old,
			int number)
{
	for (int i = 0; i < w->nplaces; i++)
	{
		Place	   *place = &w->places[i];

		if (place->found || values[place->column].kind == ECM_VALUE_UNCHANGED)
			continue;
		place->found = true;
		place->in_old = in_old;
		place->number = number;
		place->chunk = c->cs.slot->tts_tid;
		w->nmissing--;
	}
}

/* The walk has met an insert of a key update: w goes on with the key before. */
static void
expect_delete(EcmCompleter *c, Wanted *w, const LogEntry *insert)
{
	if (ecm_op_number(insert->opno) == 0)
		ecm_entry_report_corrupt(c->shape, insert->lsn, insert->opno);
	c->at_insert = w;
	c->delete_lsn = insert->lsn;
	c->delete_op = insert->opno - 1;
}

/*
 * Looks at one entry on the way back. wanted: the entry is itself an insert
 * that lacks values; or NULL.
 */
static void
look_at_entry(EcmCompleter *c, int number, Wanted *wanted)
{
	const LogEntry *entry = &c->chunk.entries[number];
	Wanted	  **link;
	Wanted	   *w;

	if (c->at_insert != NULL)
	{
		/* the delete of the same key update */
		w = c->at_insert;
		c->at_insert = NULL;
		if (entry->op != ECM_OP_DELETE || entry->lsn != c->delete_lsn ||
			entry->opno != c->delete_op)
			ecm_entry_report_corrupt(c->shape, w->lsn, w->op);
		note_places(c, w, entry->old_values, true, number);
		if (w->nmissing > 0)
			start_looking(c, w, entry);
		return;
	}

	link = find_looking(c, entry);
	if (link != NULL)
	{
		w = *link;

		/*
		 * the walk is between a delete of the key and the insert before that,
		 * where there can't be another delete
		 */
		if (entry->op == ECM_OP_DELETE)
			ecm_entry_report_corrupt(c->shape, entry->lsn, entry->opno);
		note_places(c, w, entry->new_values, false, number);
		if (w->nmissing == 0 || entry->op == ECM_OP_INSERT)
			stop_looking(c, link);
		if (w->nmissing > 0 && entry->op == ECM_OP_INSERT)
		{
			if (wanted != NULL)
				w->same = wanted;
			else
				expect_delete(c, w, entry);
		}
	}
	if (wanted != NULL)
		expect_delete(c, wanted, entry);
}

/*
 * Where an insert waits for what an earlier one has found (same), takes the
 * places from there.
 */
static void
share_places(EcmCompleter *c)
{
	for (int n = 0; n < c->nwanted; n++)
	{
		Wanted	   *w = &c->wanted[n];
		int			from = 0;

		for (int i = 0; i < w->nplaces && w->same != NULL; i++)
		{
			Place	   *place = &w->places[i];

			while (from < w->same->nplaces &&
				   w->same->places[from].column < place->column)
				from++;
			if (place->found || from == w->same->nplaces ||
				w->same->places[from].column != place->column ||
				!w->same->places[from].found)
				continue;
			*place = w->same->places[from];
			w->nmissing--;
		}
		if (w->nmissing > 0)
			ecm_entry_report_corrupt(c->shape, w->lsn, w->op);
	}
}

static void
walk_back(EcmCompleter *c)
{
	Wanted	   *last = &c->wanted[c->nwanted - 1];
	int			next = c->nwanted - 1;	/* the next one to be met */

	c->nbuckets = pg_nextpower2_32(Max(c->nwanted, 16));
	c->buckets = MemoryContextAllocZero(c->walk_context,
										c->nbuckets * sizeof(Wanted *));
	c->nlooking = 0;
	c->at_insert = NULL;

	ecm_chunk_scan_begin(&c->cs, c->shape->id, BTLessEqualStrategyNumber,
						 last->lsn, last->op, c->snapshot, AccessShareLock);
	c->scanning = true;
	while ((next >= 0 || c->nlooking > 0 || c->at_insert != NULL) &&
		   ecm_chunk_scan_next(&c->cs))
	{
		decode_chunk(c);
		for (int i = c->chunk.nentries - 1; i >= 0; i--)
		{
			const LogEntry *entry = &c->chunk.entries[i];
			Wanted	   *wanted = NULL;

			if (ecm_offset_cmp(entry->lsn, entry->opno, last->lsn, last->op) > 0)
				continue;
			if (next >= 0 && c->wanted[next].lsn == entry->lsn &&
				c->wanted[next].op == entry->opno)
				wanted = &c->wanted[next--];
			look_at_entry(c, i, wanted);
		}
	}
	share_places(c);
	pfree(c->buckets);
}

/* ----------------------------------------------------------------
 * Fetching
 * ----------------------------------------------------------------
 */

static void
fetch_value(EcmCompleter *c, const Wanted *w, const Place *place,
			EcmValue *value, MemoryContext result_context)
{
	const LogEntry *entry;
	const EcmValue *values;

	if (!ItemPointerIsValid(&c->fetched) ||
		!ItemPointerEquals(&c->fetched, unconstify(ItemPointerData *, &place->chunk)))
	{
		ItemPointerSetInvalid(&c->fetched);
		if (!ecm_chunk_scan_fetch(&c->cs, unconstify(ItemPointerData *, &place->chunk)))
			ecm_entry_report_corrupt(c->shape, w->lsn, w->op);
		decode_chunk(c);
		c->fetched = place->chunk;
	}
	if (place->number >= c->chunk.nentries)
		ecm_entry_report_corrupt(c->shape, w->lsn, w->op);
	entry = &c->chunk.entries[place->number];
	values = place->in_old ? entry->old_values : entry->new_values;
	if (values == NULL)
		ecm_entry_report_corrupt(c->shape, w->lsn, w->op);

	*value = values[place->column];
	if (value->kind == ECM_VALUE_TEXT)
	{
		char	   *text = MemoryContextAllocHuge(result_context, Max(value->len, 1));

		memcpy(text, value->text, value->len);
		value->text = text;
	}
}

void
ecm_completer_fill(EcmCompleter *c, const EcmChunkScan *cs,
				   const EcmChunkReader *r, int64 max_entries)
{
	MemoryContext caller_context = MemoryContextSwitchTo(c->context);
	const Wanted *w;

	while (c->turn < c->nwanted &&
		   ecm_offset_cmp(c->wanted[c->turn].lsn, c->wanted[c->turn].op,
						  r->lsn, r->opno) < 0)
		c->turn++;
	if (c->turn == c->nwanted)
	{
		end_scan(c);
		MemoryContextReset(c->walk_context);
		c->wanted = NULL;
		c->nwanted = c->max_wanted = c->turn = 0;
		note_inserts(c, cs->first_lsn, cs->first_op, r, max_entries);
		if (c->nwanted == 0)
			ecm_entry_report_corrupt(c->shape, r->lsn, r->opno);
		walk_back(c);
	}

	w = &c->wanted[c->turn];
	if (w->lsn != r->lsn || w->op != r->opno)
		ecm_entry_report_corrupt(c->shape, r->lsn, r->opno);
	for (int i = 0; i < w->nplaces; i++)
		fetch_value(c, w, &w->places[i], &r->new_values[w->places[i].column],
					caller_context);
	MemoryContextSwitchTo(caller_context);
}
