/*-------------------------------------------------------------------------
 *
 * shape_catalog.h
 *	  Shapes as SQL sees them: looked up, deleted.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_CATALOG_H
#define ECM_SHAPE_CATALOG_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/array.h"
#include "utils/snapshot.h"

#include "shape/shape.h"

/* Lookups; palloc'd in the caller's context.  NULL if there is no such row. */
extern EcmShapeDef *ecm_shape_by_handle(const char *handle);
extern EcmShapeDef *ecm_shape_by_id(int64 id);

/* As it is in a snapshot, in which its log is to be read, too. */
extern EcmShapeDef *ecm_shape_as_of(const char *handle, Snapshot snapshot);

/*
 * Hand over, one after the other, the shapes of a relation that a consumer has
 * to follow (live, or being captured), or all that are being captured
 * (InvalidOid); or those that have these ids (int8[]).  def and what fn
 * allocates are gone after each.
 */
typedef void (*EcmShapeCallback) (const EcmShapeDef *def, void *arg);
extern void ecm_shapes_of_worker(int worker, Oid relation, EcmShapeCallback fn,
								 void *arg);
extern void ecm_shapes_by_ids(ArrayType *ids, EcmShapeCallback fn, void *arg);

/* Only which there are that a consumer may have to follow. */
typedef void (*EcmShapeIdCallback) (int64 id, Oid relation, bool live, void *arg);
extern void ecm_shape_ids_of_worker(int worker, EcmShapeIdCallback fn, void *arg);

extern List *ecm_shapes_of_owner(Oid owner);

/* The tables among these that have shapes, as of now, each once. */
extern List *ecm_tables_with_shapes(List *relids);

/*
 * Deletes the shapes of relations, or all (NIL), in the current transaction,
 * and emits drop messages.  Returns how many there were.
 */
extern int	ecm_shapes_invalidate(List *relations, const char *reason);

/* Deletes one shape, waiting for its row; within ecm_spi_begin/end. */
extern void ecm_shape_delete(int64 shape, const char *reason);

/* Deletes one shape; false if it is gone, or locked by whoever drops it. */
extern bool ecm_shape_invalidate_nowait(int64 id, const char *reason);

/*
 * Within ecm_spi_begin/end, and with a fresh snapshot: a SELECT; an UPDATE; and
 * deletes the shapes (s) that meet a condition, with drop messages for them.
 * Shapes that somebody else has locked are not waited for: they end where their
 * consumer comes to it.  'nulls' as for SPI.  Returns how many there were.
 */
extern void ecm_shapes_query(const char *sql, int nargs, Oid *types, Datum *values);
extern void ecm_shapes_update(const char *sql, int nargs, Oid *types, Datum *values);
extern int	ecm_shapes_delete(const char *condition, int nargs, Oid *types,
							  Datum *values, const char *nulls,
							  const char *reason);

/*
 * Likewise, but those that somebody else has locked are left out altogether.
 * 'from' is a statement's FROM and WHERE, in which s is the table of shapes.
 */
extern int	ecm_shapes_delete_unlocked(const char *from, int nargs, Oid *types,
									   Datum *values, const char *reason);

/* As ecm_shapes_delete(), but for those that have been declared in this transaction. */
extern int	ecm_shapes_delete_others(const char *condition, int nargs, Oid *types,
									 Datum *values, const char *reason);

/* An error as it is kept of a shape, palloc'd: see ecm_error_public_text(). */
extern char *ecm_tag_error(const char *sqlstate, const char *message);

/*
 * Has the shape's consumer mark it as errored, once the current transaction is
 * committed.  ERROR 55P03 if somebody has its row locked.
 */
extern void ecm_shape_emit_failure(const EcmShapeDef *shape, const char *error);

#endif							/* ECM_SHAPE_CATALOG_H */
