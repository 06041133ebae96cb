/*-------------------------------------------------------------------------
 *
 * relation.h
 *	  The relations that the stream has described, and the tables whose
 *	  shapes want their changes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_RELATION_H
#define ECM_RELATION_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "replication/logicalproto.h"

#include "consumer/followed_shapes.h"

/* A table's view of a relation in the stream. */
typedef struct EcmBinding
{
	EcmTable   *table;
	int		   *map;			/* table's column -> relation's, -1: none */
	bool	   *usable;			/* by layout: the relation has what it needs */
} EcmBinding;

typedef struct EcmRelation
{
	LogicalRepRelId relid;		/* hash key */
	MemoryContext context;		/* of all that follows */
	LogicalRepRelation *rel;
	bool		full;			/* old tuples have all columns */
	uint32		tables_version; /* bindings were made for this one */
	MemoryContext bindings_context;
	List	   *bindings;
} EcmRelation;

/* At start, and when the stream begins anew: none is known. */
extern void ecm_relations_forget(void);

/* A relation message. */
extern void ecm_relation_describe(StringInfo in);

/*
 * The relation that a change is of, bound to the tables as they are now.  Shapes
 * that can't be served from it any more get an order that says so.  ERROR: the
 * stream has not described it.
 */
extern EcmRelation *ecm_relation_find(LogicalRepRelId relid);

#endif							/* ECM_RELATION_H */
