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
	XLogRecPtr	base_lsn;
	uint64		end_lsn;
	uint64		end_op;
	MemoryContext context;		/* the completer's */
	MemoryContext walk_context; /* what is noted for the current walk */
	MemoryContext chunk_context;	/* the chunk that is looked at */

	Wanted	   *wanted;			/* ascending */
	int			nwanted;
	int			max_wanted;
	int			turn;			/* index of the next one to be filled */

	/* how far the present walk has come, if it is done in pieces */
	bool		noting;			/* on its way forwards, for inserts */
	XLogRecPtr	next_lsn;		/* forwards: the first chunk to look at */
	int64		next_op;		/* backwards: those before it */
	uint64		first_lsn;		/* the insert that the walk is for */
	uint64		first_op;
	int64		entries_left;	/* of max_entries; 0: no limit */
	int			next_wanted;	/* the next one to be met on the way back */
	Oid			relfilenode;	/* of the table where the places are */

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
					XLogRecPtr base_lsn, uint64 end_lsn, uint64 end_op)
{
	EcmCompleter *c = palloc0(sizeof(EcmCompleter));

	c->shape = shape;
	c->snapshot = snapshot;
	c->base_lsn = base_lsn;
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

/*
 * Notes the inserts that lack values, from the first one on, in about max_bytes
 * of the log.  True: that is all, or as many as one walk is for.
 */
static bool
note_inserts(EcmCompleter *c, int64 max_bytes)
{
	EcmValue   *new_values = palloc(c->shape->ncolumns * sizeof(EcmValue));
	EcmValue   *old_values = palloc(c->shape->ncolumns * sizeof(EcmValue));
	EcmChunkScan cs;
	bool		enough = false;
	bool		more = true;

	ecm_chunk_scan_begin(&cs, c->shape->id, BTGreaterEqualStrategyNumber,
						 c->next_lsn, c->next_op, c->snapshot, AccessShareLock);
	ecm_chunk_scan_one_base(&cs, c->base_lsn);
	while (!enough && max_bytes > 0 && (more = ecm_chunk_scan_next(&cs)))
	{
		MemoryContext old;
		EcmChunkReader r;

		MemoryContextReset(c->chunk_context);
		old = MemoryContextSwitchTo(c->chunk_context);
		max_bytes -= ecm_chunk_scan_bytes(&cs);
		c->next_lsn = cs.first_lsn;
		c->next_op = cs.first_op + 1;
		ecm_chunk_scan_read(&cs, &r, new_values, old_values, c->shape->ncolumns);
		while (!enough && ecm_entry_next(c->shape, &cs, &r))
		{
			if (ecm_offset_cmp(r.lsn, r.opno, c->first_lsn, c->first_op) < 0)
				continue;
			enough = ecm_offset_cmp(r.lsn, r.opno, c->end_lsn, c->end_op) > 0;
			if (enough)
				break;
			if (r.op == ECM_OP_INSERT &&
				ecm_entry_missing(r.new_values, c->shape->ncolumns) > 0)
				note_wanted(c, &r);
			enough = --c->entries_left == 0 ||
				MemoryContextMemAllocated(c->walk_context, false) >= MAX_NOTED_BYTES;
		}
		MemoryContextSwitchTo(old);
	}
	ecm_chunk_scan_end(&cs);
	pfree(new_values);
	pfree(old_values);
	return enough || !more;
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

/* The scan may stay open: places are fetched by it. */
static void
begin_scan_before(EcmCompleter *c, XLogRecPtr lsn, uint64 op)
{
	Oid			relfilenode;

	ecm_chunk_scan_begin(&c->cs, c->shape->id, BTLessStrategyNumber, lsn, op,
						 c->snapshot, AccessShareLock);
	ecm_chunk_scan_one_base(&c->cs, c->base_lsn);
	c->scanning = true;
	relfilenode = c->cs.rel->rd_rel->relfilenode;
	if (c->relfilenode == InvalidOid)
		c->relfilenode = relfilenode;
	else if (c->relfilenode != relfilenode)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("the shape logs have been rewritten while one was being read")));
}

static void
begin_walk_back(EcmCompleter *c)
{
	Wanted	   *last = &c->wanted[c->nwanted - 1];

	c->noting = false;
	c->next_lsn = last->lsn;
	c->next_op = (int64) last->op + 1;
	c->next_wanted = c->nwanted - 1;
	c->relfilenode = InvalidOid;
	c->nbuckets = pg_nextpower2_32(Max(c->nwanted, 16));
	c->buckets = MemoryContextAllocZero(c->walk_context,
										c->nbuckets * sizeof(Wanted *));
	c->nlooking = 0;
	c->at_insert = NULL;
}

/*
 * Walks back through about max_bytes of the log.  True: all places have been
 * found.
 */
static bool
walk_back(EcmCompleter *c, int64 max_bytes)
{
	Wanted	   *last = &c->wanted[c->nwanted - 1];
	bool		more = true;

	begin_scan_before(c, c->next_lsn, c->next_op);
	while ((c->next_wanted >= 0 || c->nlooking > 0 || c->at_insert != NULL) &&
		   max_bytes > 0 && (more = ecm_chunk_scan_next(&c->cs)))
	{
		max_bytes -= ecm_chunk_scan_bytes(&c->cs);
		c->next_lsn = c->cs.first_lsn;
		c->next_op = c->cs.first_op;
		decode_chunk(c);
		for (int i = c->chunk.nentries - 1; i >= 0; i--)
		{
			const LogEntry *entry = &c->chunk.entries[i];
			Wanted	   *wanted = NULL;

			if (ecm_offset_cmp(entry->lsn, entry->opno, last->lsn, last->op) > 0)
				continue;
			if (c->next_wanted >= 0 &&
				c->wanted[c->next_wanted].lsn == entry->lsn &&
				c->wanted[c->next_wanted].op == entry->opno)
				wanted = &c->wanted[c->next_wanted--];
			look_at_entry(c, i, wanted);
		}
	}
	if (more && (c->next_wanted >= 0 || c->nlooking > 0 || c->at_insert != NULL))
		return false;
	share_places(c);
	pfree(c->buckets);
	return true;
}

static void
forget_wanted(EcmCompleter *c)
{
	end_scan(c);
	MemoryContextReset(c->walk_context);
	c->wanted = NULL;
	c->nwanted = c->max_wanted = c->turn = 0;
}

static void
begin_noting(EcmCompleter *c, XLogRecPtr chunk_lsn, int64 chunk_op,
			 uint64 lsn, uint64 op, int64 max_entries)
{
	forget_wanted(c);
	c->noting = true;
	c->next_lsn = chunk_lsn;
	c->next_op = chunk_op;
	c->first_lsn = lsn;
	c->first_op = op;
	c->entries_left = max_entries;
}

/* The walk in both directions.  True: it has come to its end. */
static bool
walk_some(EcmCompleter *c, int64 max_bytes)
{
	if (c->noting)
	{
		if (!note_inserts(c, max_bytes))
			return false;
		if (c->nwanted == 0)
			ecm_entry_report_corrupt(c->shape, c->first_lsn, c->first_op);
		begin_walk_back(c);
	}
	return walk_back(c, max_bytes);
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
		if (!c->scanning)
			begin_scan_before(c, w->lsn, w->op);
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

/* What is noted for the reader's current entry; NULL: nothing. */
static const Wanted *
wanted_by(EcmCompleter *c, const EcmChunkReader *r)
{
	const Wanted *w;

	while (c->turn < c->nwanted &&
		   ecm_offset_cmp(c->wanted[c->turn].lsn, c->wanted[c->turn].op,
						  r->lsn, r->opno) < 0)
		c->turn++;
	if (c->turn == c->nwanted)
		return NULL;
	w = &c->wanted[c->turn];
	if (w->lsn != r->lsn || w->op != r->opno)
		ecm_entry_report_corrupt(c->shape, r->lsn, r->opno);
	return w;
}

void
ecm_completer_fill(EcmCompleter *c, const EcmChunkScan *cs,
				   const EcmChunkReader *r, int64 max_entries)
{
	MemoryContext caller_context = MemoryContextSwitchTo(c->context);
	const Wanted *w = wanted_by(c, r);

	if (w == NULL)
	{
		begin_noting(c, cs->first_lsn, cs->first_op, r->lsn, r->opno, max_entries);
		(void) walk_some(c, PG_INT64_MAX);
		w = wanted_by(c, r);
		if (w == NULL)
			ecm_entry_report_corrupt(c->shape, r->lsn, r->opno);
	}
	for (int i = 0; i < w->nplaces; i++)
		fetch_value(c, w, &w->places[i], &r->new_values[w->places[i].column],
					caller_context);
	MemoryContextSwitchTo(caller_context);
}

/* ----------------------------------------------------------------
 * In pieces
 * ----------------------------------------------------------------
 */

bool
ecm_completer_knows(EcmCompleter *c, const EcmChunkReader *r)
{
	return wanted_by(c, r) != NULL;
}

void
ecm_completer_walk_begin(EcmCompleter *c, XLogRecPtr chunk_lsn, int64 chunk_op,
						 uint64 lsn, uint64 op)
{
	begin_noting(c, chunk_lsn, chunk_op, lsn, op, 0);
}

bool
ecm_completer_walk(EcmCompleter *c, int64 max_bytes)
{
	MemoryContext caller_context = MemoryContextSwitchTo(c->context);
	bool		done = walk_some(c, max_bytes);

	end_scan(c);
	MemoryContextSwitchTo(caller_context);
	return done;
}

void
ecm_completer_suspend(EcmCompleter *c)
{
	end_scan(c);
	MemoryContextReset(c->chunk_context);
}

void
ecm_completer_go_on(EcmCompleter *c, Snapshot snapshot)
{
	c->snapshot = snapshot;
}
