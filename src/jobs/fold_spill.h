/*-------------------------------------------------------------------------
 *
 * fold_spill.h
 *	  Lists of bytes in one temporary file, which outlives transactions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_FOLD_SPILL_H
#define ECM_FOLD_SPILL_H

#include "postgres.h"

typedef struct EcmSpill EcmSpill;

/*
 * Creates empty lists 0 .. nlists - 1.  All memory is the current context's, and
 * the file goes with it, also after an ERROR.
 */
extern EcmSpill *ecm_spill_create(int nlists);

extern void ecm_spill_append(EcmSpill *spill, int list, const void *data, Size len);
extern int64 ecm_spill_bytes(const EcmSpill *spill, int list);

/* Empties a list; its space is used again. */
extern void ecm_spill_clear(EcmSpill *spill, int list);

/* Exchanges the contents of two lists. */
extern void ecm_spill_swap(EcmSpill *spill, int a, int b);

/* Reads a list from its beginning, where 'position' is 0; ERROR beyond its end. */
extern void ecm_spill_read(EcmSpill *spill, int list, int64 *position,
						   void *to, Size len);

/*
 * Entries of logs, in a list: put at its end; read from a position on, which is moved.
 * What is read is the current context's.
 */
extern void ecm_spill_put_entry(EcmSpill *spill, int list, int member, const bytea *key,
								const bytea *entry);
extern void ecm_spill_get_entry(EcmSpill *spill, int list, int64 *position, int *member,
								bytea **key, bytea **entry);

#endif							/* ECM_FOLD_SPILL_H */
