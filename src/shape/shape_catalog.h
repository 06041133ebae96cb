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

/* The shape as the snapshot sees it, by which its log will be read, too. */
/* The ids of shapes, in the order of their handles; 0: there is no such shape. */
extern int64 *ecm_shape_ids(char **handles, int n);

extern EcmShapeDef *ecm_shape_as_of(const char *handle, Snapshot snapshot);

/*
 * Call fn for each of some shapes. ecm_shapes_of_worker(): those of a relation
 * that a consumer has to follow (live, or being captured), or, with
 * InvalidOid, all of the consumer's that are being captured.
 * ecm_shapes_by_ids(): those that have these ids (int8[]). def, and everything
 * that fn allocates, is freed after each call.
 */
typedef void (*EcmShapeCallback) (const EcmShapeDef *def, void *arg);
extern void ecm_shapes_of_worker(int worker, Oid relation, EcmShapeCallback fn,
								 void *arg);
extern void ecm_shapes_by_ids(ArrayType *ids, EcmShapeCallback fn, void *arg);

/*
 * Calls fn for each shape that a consumer may have to follow, with its id
 * only: for a start with very many shapes.
 */
typedef void (*EcmShapeIdCallback) (int64 id, Oid relation, bool live, void *arg);
extern void ecm_shape_ids_of_worker(int worker, EcmShapeIdCallback fn, void *arg);

/* The definitions of the shapes that a role owns. */
extern List *ecm_shapes_of_owner(Oid owner);

/* Those of the tables that have shapes now, each once. */
extern List *ecm_tables_with_shapes(List *relids);

/*
 * Deletes the shapes of some relations in the current transaction, and emits drop
 * messages for them.  Returns their number.
 */
extern int	ecm_shapes_invalidate(List *relations, const char *reason);

/*
 * Has shapes (alias s) that meet a condition resynced from where the current transaction
 * commits, by a message "resync": once, however many commands of the transaction ask for
 * that.  Within ecm_spi_begin/end.  Returns their number.
 */
extern int	ecm_shapes_resync(const char *condition, int nargs, Oid *types, Datum *values,
							  const char *nulls, const char *reason);

/* Deletes one shape, waiting for its row; within ecm_spi_begin/end. */
extern void ecm_shape_delete(int64 shape, const char *reason);

/*
 * Within ecm_spi_begin() and ecm_spi_end(), with the latest snapshot.
 *
 * ecm_shapes_query() and ecm_shapes_update() run a SELECT, or an UPDATE.
 * ecm_shapes_delete() deletes the shapes (alias s) that meet a condition, and
 * emits drop messages for them.  It does not wait for shapes that somebody
 * else has locked: it emits a message "lost" for them, and they end where
 * their consumer comes to it. 'nulls' is as for SPI.  Returns the number of
 * shapes.
 */
extern void ecm_shapes_query(const char *sql, int nargs, Oid *types, Datum *values);
extern void ecm_shapes_update(const char *sql, int nargs, Oid *types, Datum *values);
extern int	ecm_shapes_delete(const char *condition, int nargs, Oid *types,
							  Datum *values, const char *nulls,
							  const char *reason);

/*
 * Likewise, but leaves out the shapes that somebody else has locked. 'from'
 * has the FROM and WHERE clauses of a statement in which s is the table of
 * shapes.
 */
extern int	ecm_shapes_delete_unlocked(const char *from, int nargs, Oid *types,
									   Datum *values, const char *reason);

/* An error with its tag, as a shape keeps it; palloc'd.  See errors.h. */
extern char *ecm_tag_error(const char *sqlstate, const char *message);

/*
 * Has the shape's consumer mark it as errored, once the current transaction is
 * committed.  ERROR 55P03 if somebody has its row locked.
 */
extern void ecm_shape_emit_failure(const EcmShapeDef *shape, const char *error);

#endif							/* ECM_SHAPE_CATALOG_H */
