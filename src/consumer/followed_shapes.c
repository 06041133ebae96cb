/*-------------------------------------------------------------------------
 *
 * followed_shapes.c
 *	  The shapes that a consumer has to follow, taken up when they are needed.
 *
 * To read a hundred thousand definitions, and to compile their where clauses,
 * takes seconds.  A consumer that starts only notes which shapes there are; a
 * table's are taken up when the first change of that table comes in.  Shapes
 * of tables that nobody changes cost an entry in a hash table each.
 *
 * What is noted here is live, and that changes by orders in the stream only.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "consumer/followed_shapes.h"
#include "consumer/log_batch.h"
#include "consumer/shape_match.h"

typedef struct NotedShape
{
	int64		id;				/* hash key */
	Oid			relation;
} NotedShape;

typedef struct NotedTable
{
	Oid			relation;		/* hash key */
	int			nshapes;
} NotedTable;

static int	worker;
static HTAB *shapes;
static HTAB *tables;
static XLogRecPtr bind_again_at;	/* all shapes' changes count from there on */

void
ecm_load_shape(const EcmShapeDef *def)
{
	ecm_gather_work_on(def->id);
	(void) ecm_match_add(def);
	ecm_gather_work_on(0);
	bind_again_at = Max(bind_again_at, def->skip_until);
}

/* What did not fit a shape that skipped it may still not fit. */
void
ecm_load_begin(void)
{
	if (XLogRecPtrIsInvalid(bind_again_at) || ecm_gather_is_past(bind_again_at))
		return;
	ecm_tables_version++;
	bind_again_at = InvalidXLogRecPtr;
}

static void
note_shape(int64 id, Oid relation, bool live, void *arg pg_attribute_unused())
{
	NotedShape *shape;
	NotedTable *table;
	bool		found;

	if (!live)
		return;
	shape = hash_search(shapes, &id, HASH_ENTER, NULL);
	shape->relation = relation;
	table = hash_search(tables, &relation, HASH_ENTER, &found);
	table->nshapes = found ? table->nshapes + 1 : 1;
}

static void
follow_captured(const EcmShapeDef *def, void *arg pg_attribute_unused())
{
	ecm_load_shape(def);
}

void
ecm_load_start(int worker_number)
{
	HASHCTL		ctl = {.keysize = sizeof(int64), .entrysize = sizeof(NotedShape),
	.hcxt = TopMemoryContext};

	worker = worker_number;
	shapes = hash_create("electric_cm noted shapes", 64, &ctl,
						 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(NotedTable);
	tables = hash_create("electric_cm noted tables", 64, &ctl,
						 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ecm_shape_ids_of_worker(worker, note_shape, NULL);
	ecm_shapes_of_worker(worker, InvalidOid, follow_captured, NULL);
}

void
ecm_load_forget(int64 id)
{
	NotedShape *shape = hash_search(shapes, &id, HASH_FIND, NULL);
	NotedTable *table;

	if (shape == NULL)
		return;
	table = hash_search(tables, &shape->relation, HASH_FIND, NULL);
	if (--table->nshapes == 0)
		(void) hash_search(tables, &table->relation, HASH_REMOVE, NULL);
	(void) hash_search(shapes, &id, HASH_REMOVE, NULL);
}

int
ecm_load_count(void)
{
	return ecm_match_nshapes() + (int) hash_get_num_entries(shapes);
}

bool
ecm_load_is_due(Oid relation)
{
	return hash_search(tables, &relation, HASH_FIND, NULL) != NULL;
}

static void
follow_noted(const EcmShapeDef *def, void *arg pg_attribute_unused())
{
	if (hash_search(shapes, &def->id, HASH_FIND, NULL) == NULL)
		return;					/* followed already */
	ecm_load_shape(def);
	ecm_load_forget(def->id);
}

/*
 * Those whose rows are not there any more are gone: the stream will come to
 * that, and has nothing for them until then that anybody could read.
 */
void
ecm_load_table(Oid relation)
{
	HASH_SEQ_STATUS seq;
	NotedShape *shape;

	PushActiveSnapshot(GetLatestSnapshot());
	ecm_shapes_of_worker(worker, relation, follow_noted, NULL);
	PopActiveSnapshot();
	if (!ecm_load_is_due(relation))
		return;
	hash_seq_init(&seq, shapes);
	while ((shape = hash_seq_search(&seq)) != NULL)
		if (shape->relation == relation)
			ecm_load_forget(shape->id);
}
