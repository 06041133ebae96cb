/*-------------------------------------------------------------------------
 *
 * offset_type.h
 *	  The SQL type electric_cm_offset: a position in shapes' logs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_OFFSET_TYPE_H
#define ECM_OFFSET_TYPE_H

#include "postgres.h"

#include "shape/shape_chunk.h"

/* palloc'd */
extern Datum ecm_offset_datum(const EcmOffset *offset);
extern EcmOffset ecm_datum_offset(Datum datum);

#endif							/* ECM_OFFSET_TYPE_H */
