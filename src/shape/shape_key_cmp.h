/*-------------------------------------------------------------------------
 *
 * shape_key_cmp.h
 *	  The order of a shape's keys, in which its rows are read in pieces.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SHAPE_KEY_CMP_H
#define ECM_SHAPE_KEY_CMP_H

#include "postgres.h"

#include "shape/shape.h"
#include "shape/shape_chunk.h"

/*
 * Can the shape's keys be ordered, by every process alike?  False: its rows have
 * to be read in one piece.
 *
 * The order is that of the types' default operator classes for btree, with the
 * columns' own collations, which is that of ORDER BY and of a comparison of rows.
 * All of it is built in, and so are the types, or enums: a consumer compares keys
 * as the bootstrap superuser, and must run nobody's function.
 */
extern bool ecm_keys_comparable(const EcmShapeDef *shape);

typedef struct EcmKeyCmp EcmKeyCmp;

/* In a transaction, in the current context.  ERROR 0A000 if there is none. */
extern EcmKeyCmp *ecm_key_cmp_begin(const EcmShapeDef *shape);

/*
 * Makes a key of its columns' texts, or of the key columns of an entry.  ERROR of
 * a type's input function; XX001 if the entry has no key.  Allocates in the current
 * context.
 */
extern Datum *ecm_key_from_texts(EcmKeyCmp *cmp, char **texts);

/*
 * Likewise; NULL if a text is none of the column's type, which may be another one than
 * when the text was logged.
 */
extern Datum *ecm_key_or_null(EcmKeyCmp *cmp, char **texts);
extern Datum *ecm_key_from_entry(EcmKeyCmp *cmp, const EcmChunkReader *entry);

extern int	ecm_key_compare(EcmKeyCmp *cmp, const Datum *a, const Datum *b);

#endif							/* ECM_SHAPE_KEY_CMP_H */
