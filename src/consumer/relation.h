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

/*
 * A table's view of a relation in the stream.  The table, which has shapes, is the
 * relation itself or a partitioned table above it.
 */
typedef struct EcmBinding
{
	EcmTable   *table;
	int		   *map;			/* table's column -> relation's, -1: none */
	bool	   *usable;			/* by layout number: the relation has what
								 * shapes of this layout need */
} EcmBinding;

typedef struct EcmRelation
{
	LogicalRepRelId relid;		/* hash key; the OID in this database */
	MemoryContext context;		/* of all that follows */
	LogicalRepRelation *rel;	/* as the stream has described it last */
	bool		full;			/* replica identity FULL: old tuples have all
								 * columns, else the key's only */
	uint32		tables_version; /* ecm_tables_version when the bindings were
								 * made; another one: they are stale */
	MemoryContext bindings_context; /* of 'bindings' */
	List	   *bindings;		/* of EcmBinding, one per table concerned */
} EcmRelation;

/*
 * Forgets all descriptions: at start, and when the stream begins anew, as pgoutput
 * then describes each relation again.
 */
extern void ecm_relations_forget(void);

/*
 * Takes a relation's description, pgoutput's message behind its first byte, in
 * place of an earlier one.  Bindings are made when the next change comes.
 */
extern void ecm_relation_describe(StringInfo in);

/*
 * The relation that a change is of, bound to the followed tables as they are now;
 * valid until the next description of it, or a reset.  Shapes that it lacks
 * something for get an order to be resynced (ecm_orders_add_mismatch()).  May open the
 * local transaction, to take up noted shapes.  ERROR if the stream has not
 * described the relation, or if a shape that is taken up is at fault.
 */
extern EcmRelation *ecm_relation_find(LogicalRepRelId relid);

#endif							/* ECM_RELATION_H */
