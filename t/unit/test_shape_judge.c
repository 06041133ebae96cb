/*-------------------------------------------------------------------------
 *
 * test_shape_judge.c
 *	  A small world: transactions change a table while its rows are read in
 *	  pieces, and a consumer lags behind.  In the end the log has to replay to
 *	  the table.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <string.h>

#include "shape/shape_judge.h"
#include "unit.h"

#define KEYS			12
#define ACTIVE			4
#define MAX_XIDS		400
#define MAX_ENTRIES		8000
#define MAX_EVENTS		2000
#define MAX_PIECES		64
#define MAX_REQUESTS	64
#define UNCHANGED		(-1)

/* What is done wrong, to see whether it is found. */
typedef enum Fault
{
	NO_FAULT,
	ONE_SNAPSHOT,				/* the last piece's snapshot counts for all */
	BORDER_OFF,					/* a key is taken to be a piece further */
	NOT_AGAIN,					/* no key is read again */
	BY_POSITION,				/* a transaction is seen if the stream has
								 * brought it before the piece */
	LATE_MARK					/* judged entries are not judged again, though
								 * some were left */
} Fault;

typedef struct Row
{
	bool		exists;
	int			a;
	int			t;				/* TOASTed: not in the stream if unchanged */
} Row;

typedef struct Entry
{
	EcmOp		op;
	uint64_t	lsn;
	uint64_t	opno;
	uint64_t	xid;
	int			key;
	int			a;
	int			t;				/* or UNCHANGED */
	bool		gone;
} Entry;

typedef struct Transaction
{
	bool		active;
	bool		committed;		/* in the WAL, but not visible yet */
	uint64_t	xid;
	Entry		entries[64];
	int			n;
	bool		locked[KEYS];
} Transaction;

typedef enum EventKind
{
	TRANSACTION, PIECE, AGAIN
} EventKind;

typedef struct Event
{
	EventKind	kind;
	int			first;			/* transaction: entries in world.stream */
	int			n;
	int			piece;
	int			request;		/* again: those below are answered */
} Event;

typedef struct Snapshot
{
	bool		sees[MAX_XIDS];
} Snapshot;

typedef struct Request
{
	uint64_t	lsn;
	uint64_t	op;
	int			key;
	bool		answered;
	bool		done;
	Row			row;
} Request;

static struct
{
	Fault		fault;
	Row			current[KEYS];	/* with what is not committed */
	Row			visible[KEYS];
	Snapshot	now;			/* what a snapshot would see */
	Transaction transactions[ACTIVE];
	uint64_t	next_xid;
	uint64_t	lsn;
	int			value;

	Entry		stream[MAX_ENTRIES];
	int			nstream;
	Event		events[MAX_EVENTS];
	int			nevents;

	/* the pool session */
	bool		reading;		/* in a transaction */
	int			npieces;
	int			upto[MAX_PIECES + 1];
	Snapshot	snapshots[MAX_PIECES + 1];
	uint64_t	read_at[MAX_PIECES + 1];	/* LSN */
	bool		all_read;
	Snapshot	again;

	/* the consumer */
	int			next_event;
	int			obeyed;			/* the last piece's number */
	Row			base[KEYS];
	Entry		log[MAX_ENTRIES];
	int			nlog;
	int			mark;
	Request		requests[MAX_REQUESTS];
	int			nrequests;
	int			answering;		/* requests that the open transaction answers */
	int			lacking;		/* how many keys were read again, in all
								 * rounds */
	const char *error;
}			w;

/* ---------------------------------------------------------------- table -- */

static void
add_entry(Transaction *x, EcmOp op, int key, int a, int t)
{
	Entry	   *e = &x->entries[x->n];

	memset(e, 0, sizeof(*e));
	e->op = op;
	e->opno = (uint64_t) x->n++;
	e->xid = x->xid;
	e->key = key;
	e->a = a;
	e->t = t;
}

/* Locks a key, unless another transaction has it. */
static bool
lock_key(Transaction *x, int key)
{
	int			i;

	for (i = 0; i < ACTIVE; i++)
		if (w.transactions[i].active && &w.transactions[i] != x &&
			w.transactions[i].locked[key])
			return false;
	x->locked[key] = true;
	return true;
}

static void
change_row(Transaction *x)
{
	int			key = (int) random_below(KEYS);
	int			other = (int) random_below(KEYS);
	Row		   *row = &w.current[key];

	if (x->n > 60 || !lock_key(x, key))
		return;
	if (!row->exists)
	{
		*row = (Row)
		{
			true, ++w.value, ++w.value
		};
		add_entry(x, ECM_OP_INSERT, key, row->a, row->t);
		return;
	}
	switch (random_below(5))
	{
		case 0:
			row->exists = false;
			add_entry(x, ECM_OP_DELETE, key, 0, 0);
			break;
		case 1:
			row->a = ++w.value;
			add_entry(x, ECM_OP_UPDATE, key, row->a, UNCHANGED);
			break;
		case 2:
			row->t = ++w.value;
			row->a = ++w.value;
			add_entry(x, ECM_OP_UPDATE, key, row->a, row->t);
			break;
		default:
			if (!lock_key(x, other) || w.current[other].exists)
				return;
			w.current[other] = *row;
			w.current[other].a = ++w.value;
			row->exists = false;
			add_entry(x, ECM_OP_DELETE, key, 0, 0);
			add_entry(x, ECM_OP_INSERT, other, w.value, UNCHANGED);
	}
}

static void
commit(Transaction *x)
{
	Event	   *event = &w.events[w.nevents++];
	int			i;

	x->committed = true;
	w.lsn++;
	event->kind = TRANSACTION;
	event->first = w.nstream;
	event->n = x->n;
	for (i = 0; i < x->n; i++)
	{
		w.stream[w.nstream] = x->entries[i];
		w.stream[w.nstream++].lsn = w.lsn;
	}
}

static void
become_visible(Transaction *x)
{
	int			key;

	for (key = 0; key < KEYS; key++)
		if (x->locked[key])
			w.visible[key] = w.current[key];
	w.now.sees[x->xid] = true;
	memset(x, 0, sizeof(*x));
}

static void
roll_back(Transaction *x)
{
	int			key;

	for (key = 0; key < KEYS; key++)
		if (x->locked[key])
			w.current[key] = w.visible[key];
	memset(x, 0, sizeof(*x));
}

static void
step_of_writer(bool may_begin)
{
	Transaction *x = &w.transactions[random_below(ACTIVE)];

	if (!x->active)
	{
		if (may_begin && w.next_xid < MAX_XIDS - 1)
		{
			x->active = true;
			x->xid = ++w.next_xid;
		}
	}
	else if (x->committed)
		become_visible(x);		/* it has waited for a standby */
	else
		switch (may_begin ? random_below(8) : 7)
		{
			case 0:
				roll_back(x);
				break;
			case 6:
				commit(x);
				break;
			case 7:
				commit(x);
				become_visible(x);
				break;
			default:
				change_row(x);
		}
}

/* ----------------------------------------------------------------- pool -- */

static void
read_piece(int max_rows)
{
	int			number = ++w.npieces;
	int			from = number == 1 ? 0 : w.upto[number - 1] + 1;
	int			key;
	int			nrows = 0;

	w.reading = true;
	w.snapshots[number] = w.now;
	for (key = from; key < KEYS && nrows < max_rows; key++)
	{
		if (w.visible[key].exists)
			nrows++;
		w.base[key] = w.visible[key];
		w.upto[number] = key;
	}
	/* the border is a row's key, and there is none beyond the last piece */
	w.all_read = nrows < max_rows || number == MAX_PIECES;
	if (w.all_read)
	{
		for (; key < KEYS; key++)
			w.base[key] = w.visible[key];
		w.upto[number] = KEYS;
	}
}

static void
step_of_pool(void)
{
	Event	   *event = &w.events[w.nevents];
	int			i;

	if (w.reading)
	{
		w.reading = false;
		w.nevents++;
		w.lsn++;
		w.read_at[w.npieces] = w.lsn;
		if (w.answering > 0)
		{
			event->kind = AGAIN;
			event->request = w.answering;
		}
		else
		{
			event->kind = PIECE;
			event->piece = w.npieces;
		}
	}
	else if (!w.all_read)
		read_piece(1 + (int) random_below(4));
	else if (w.obeyed == w.npieces && w.answering == 0)
	{
		w.again = w.now;
		for (i = 0; i < w.nrequests; i++)
			if (!w.requests[i].done)
			{
				w.requests[i].answered = true;
				w.requests[i].row = w.visible[w.requests[i].key];
				w.answering = w.nrequests;
				w.reading = true;
			}
	}
}

/* ------------------------------------------------------------- consumer -- */

static bool
sees(void *arg, int piece, uint64_t xid)
{
	const EcmPieceSource *source = arg;

	if (w.fault == ONE_SNAPSHOT)
		piece = source->last;
	if (w.fault == BY_POSITION)
	{
		for (int i = 0; i < w.nstream; i++)
			if (w.stream[i].xid == xid)
				return w.stream[i].lsn < w.read_at[piece];
	}
	CHECK(piece >= 1 && piece <= source->last);
	return w.snapshots[piece].sees[xid];
}

static bool
is_beyond(void *arg, int piece, const EcmChunkReader *entry)
{
	const EcmPieceSource *source = arg;
	int			key = (int) (entry->op == ECM_OP_DELETE ? entry->old_values : entry->new_values)->len;

	CHECK(piece >= 1 && piece < source->last + (w.all_read ? 0 : 1));
	if (w.fault == BORDER_OFF && piece > 1)
		piece--;
	return key > w.upto[piece];
}

/* An entry as a chunk's reader gives it. */
static void
read_entry(const Entry *e, EcmChunkReader *r, EcmValue *values)
{
	memset(r, 0, sizeof(*r));
	memset(values, 0, 3 * sizeof(EcmValue));
	values[0].kind = values[1].kind = ECM_VALUE_TEXT;
	values[0].len = (uint32_t) e->key;
	values[2].kind = e->t == UNCHANGED ? ECM_VALUE_UNCHANGED : ECM_VALUE_TEXT;
	r->op = e->op;
	r->lsn = e->lsn;
	r->opno = e->opno;
	r->xid = e->xid;
	r->new_values = r->old_values = values;
	r->n_new = e->op == ECM_OP_DELETE ? 0 : 3;
	r->n_old = e->op == ECM_OP_DELETE ? 3 : 0;
}

static void
request(const Entry *e)
{
	Request    *r = &w.requests[w.nrequests];

	if (w.fault == NOT_AGAIN || w.nrequests == MAX_REQUESTS)
		return;
	w.nrequests++;
	memset(r, 0, sizeof(*r));
	r->lsn = e->lsn;
	r->op = e->opno;
	r->key = e->key;
	w.lacking++;
}

static void
obey_piece(int number)
{
	EcmJudge	judge = {0};
	EcmHalves	halves = {0};
	int			mark = -1;
	int			i;

	judge.source.last = number;
	judge.source.arg = &judge.source;
	judge.source.sees = sees;
	judge.source.is_beyond = is_beyond;
	if (random_below(4) == 0 && w.fault != LATE_MARK)
		w.mark = 0;				/* a consumer that has started anew */
	for (i = w.mark; i < w.nlog; i++)
	{
		Entry	   *e = &w.log[i];
		EcmValue	values[3];
		EcmChunkReader r;
		EcmVerdict	verdict;

		if (e->gone)
			continue;
		verdict = ecm_judge_transaction(&judge, e->xid);
		if (verdict == ECM_STAYS && mark < 0)
			mark = i;
		if (verdict == ECM_BY_ENTRY)
		{
			read_entry(e, &r, values);
			verdict = ecm_judge_entry(&judge, &r);
			if (ecm_judge_lacks(&halves, &r, verdict))
				request(e);
		}
		e->gone = verdict == ECM_GOES;
	}
	w.mark = mark < 0 || w.fault == LATE_MARK ? w.nlog : mark;
	w.obeyed = number;
}

static void
obey_again(int nrequests)
{
	EcmHalves	halves = {0};
	int			i;
	int			j;

	for (i = 0; i < w.nlog; i++)
	{
		Entry	   *e = &w.log[i];
		EcmValue	values[3];
		EcmChunkReader r;
		EcmVerdict	verdict = ECM_STAYS;

		if (e->gone || !w.again.sees[e->xid])
			continue;
		read_entry(e, &r, values);
		for (j = 0; j < nrequests; j++)
		{
			Request    *q = &w.requests[j];

			if (q->done || q->key != e->key)
				continue;
			/* requests for one key: the first offset counts */
			verdict = ecm_judge_again(q->lsn, q->op, &r);
			if (verdict == ECM_REPLACED)
			{
				e->a = q->row.a;
				e->t = q->row.t;
				e->gone = !q->row.exists;
			}
			else if (verdict == ECM_GOES)
				e->gone = true;
			if (verdict != ECM_STAYS)
				break;
		}
		if (ecm_judge_lacks(&halves, &r, verdict))
			request(e);
	}
	for (j = 0; j < nrequests; j++)
		w.requests[j].done = true;
	w.answering = 0;
}

static void
step_of_consumer(void)
{
	const Event *event = &w.events[w.next_event];

	if (w.next_event == w.nevents)
		return;
	w.next_event++;
	switch (event->kind)
	{
		case TRANSACTION:
			memcpy(&w.log[w.nlog], &w.stream[event->first], event->n * sizeof(Entry));
			w.nlog += event->n;
			break;
		case PIECE:
			/* an order may be missed, but for the last */
			if (event->piece == w.npieces || random_below(4) > 0)
				obey_piece(event->piece);
			break;
		case AGAIN:
			obey_again(event->request);
	}
}

/* --------------------------------------------------------------- replay -- */

/* Replays the log strictly, and compares; the first error is noted. */
static void
compare(void)
{
	const Entry *before = NULL;
	Row			deleted = {0};
	int			i;

	for (i = 0; i < w.nlog && w.error == NULL; i++)
	{
		const Entry *e = &w.log[i];
		Row		   *row = &w.base[e->key];

		if (e->gone)
			continue;
		if (row->exists != (e->op != ECM_OP_INSERT))
			w.error = "an entry is out of place";
		if (e->op == ECM_OP_DELETE)
		{
			deleted = *row;
			row->exists = false;
		}
		else
		{
			row->exists = true;
			row->a = e->a;
			if (e->t != UNCHANGED)
				row->t = e->t;
			else if (e->op == ECM_OP_INSERT)
			{
				row->t = deleted.t;
				if (before == NULL || before->op != ECM_OP_DELETE ||
					before->lsn != e->lsn || before->opno + 1 != e->opno)
					w.error = "an insert lacks a value";
			}
		}
		before = e;
	}
	for (i = 0; i < KEYS && w.error == NULL; i++)
	{
		const Row  *row = &w.current[i];

		if (row->exists != w.base[i].exists ||
			(row->exists && (row->a != w.base[i].a || row->t != w.base[i].t)))
			w.error = "a row differs";
	}
}

/* Plays one history; NULL: the log replays to the table. */
static const char *
play(Fault fault)
{
	int			step;

	memset(&w, 0, sizeof(w));
	w.fault = fault;
	for (step = 0; step < 40; step++)
		step_of_writer(step < 25);
	for (step = 0; step < ACTIVE; step++)
		if (w.transactions[step].active && !w.transactions[step].committed)
			roll_back(&w.transactions[step]);
		else if (w.transactions[step].active)
			become_visible(&w.transactions[step]);	/* the barrier */
	w.nevents = w.next_event = w.nstream = 0;

	for (step = 0; step < 1200; step++)
		switch (random_below(12))
		{
			case 0:
				step_of_pool();
				break;
			case 1:
			case 2:
			case 3:
				step_of_consumer();
				break;
			default:
				step_of_writer(true);
		}
	/* all come to their end */
	for (step = 0; step < 3000; step++)
	{
		step_of_writer(false);
		step_of_pool();
		step_of_consumer();
	}
	CHECK(w.all_read && w.next_event == w.nevents && w.obeyed == w.npieces);
	compare();
	return w.error;
}

static int
failures(Fault fault, int rounds, int *lacking)
{
	int			n = 0;
	int			i;

	for (i = 0; i < rounds; i++)
	{
		const char *error = play(fault);

		if (error != NULL && n++ == 0 && fault == NO_FAULT)
			printf("# history %d: %s\n", i, error);
		*lacking += w.lacking;
	}
	return n;
}

/* ------------------------------------------------------------ the search -- */

static int	threshold;

static bool
sees_from(void *arg, int piece, uint64_t xid)
{
	const EcmPieceSource *source = arg;

	(void) xid;
	CHECK(piece >= 1 && piece <= source->last);
	return piece >= threshold;
}

static void
test_search(void)
{
	EcmJudge	judge = {0};
	uint64_t	xid = 0;

	judge.source.arg = &judge.source;
	judge.source.sees = sees_from;
	for (judge.source.last = 1; judge.source.last < 40; judge.source.last++)
		for (int i = 0; i < 200; i++)
		{
			EcmVerdict	verdict;

			threshold = 1 + (int) random_below((uint32_t) judge.source.last + 1);
			verdict = ecm_judge_transaction(&judge, ++xid);
			CHECK(judge.first == threshold);
			CHECK(verdict == (threshold == 1 ? ECM_GOES :
							  threshold > judge.source.last ? ECM_STAYS : ECM_BY_ENTRY));
			CHECK(ecm_judge_transaction(&judge, xid) == verdict);
		}
	checked("the first piece that sees a transaction");
}

void
test_shape_judge(void)
{
	int			lacking = 0;
	int			ignored = 0;

	random_start(20);
	test_search();
	is_int(failures(NO_FAULT, 3000, &lacking), 0, "logs of pieces replay to the table");
	checked("and all was asked for as it may be");
	ok(lacking > 100, "keys were read again");
	printf("# %d keys were read again\n", lacking);
	ok(failures(ONE_SNAPSHOT, 300, &ignored) > 0, "found: one snapshot for all pieces");
	ok(failures(BORDER_OFF, 300, &ignored) > 0, "found: a wrong border");
	ok(failures(NOT_AGAIN, 300, &ignored) > 0, "found: no key is read again");
	ok(failures(BY_POSITION, 300, &ignored) > 0, "found: positions in place of snapshots");
	ok(failures(LATE_MARK, 300, &ignored) > 0, "found: entries that are not judged again");
}
