/*-------------------------------------------------------------------------
 *
 * shape_control.c
 *	  What owners do with shapes that are there: electric_cm_drop_shape(),
 *	  electric_cm_resync(), electric_cm_grant_shape(), electric_cm_revoke_shape().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "base/shmem.h"
#include "base/spi.h"
#include "base/version.h"
#include "shape/shape.h"
#include "shape/shape_catalog.h"
#include "shape/shape_rights.h"

PG_FUNCTION_INFO_V1(electric_cm_drop_shape);
PG_FUNCTION_INFO_V1(electric_cm_resync);
PG_FUNCTION_INFO_V1(electric_cm_grant_shape);
PG_FUNCTION_INFO_V1(electric_cm_revoke_shape);

/* ERROR if there is no such shape, or it is not the user's. */
static EcmShapeDef *
own_shape(text * handle)
{
	EcmShapeDef *def = ecm_shape_by_handle(text_to_cstring(handle));

	if (def == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("shape \"%s\" does not exist", text_to_cstring(handle))));
	ecm_shape_check_owner(def);
	return def;
}

/*
 * electric_cm_drop_shape(handle text) RETURNS void
 *
 * Errors: 55000 not preloaded; 42704 no such shape; 42501 not its owner.
 */
Datum
electric_cm_drop_shape(PG_FUNCTION_ARGS)
{
	EcmShapeDef *def;
	EcmSpiState spi;

	ecm_require_shared();
	ecm_require_sql_fit();
	def = own_shape(PG_GETARG_TEXT_PP(0));
	ecm_spi_begin(&spi);
	ecm_shape_delete(def->id, "dropped by electric_cm_drop_shape()");
	ecm_spi_end(&spi);
	PG_RETURN_VOID();
}

/*
 * electric_cm_resync(handle text DEFAULT NULL) RETURNS void
 *
 * Has a shape's log compared with its table, or all logs with theirs (NULL), from the
 * commit on, for somebody who doubts them: what differs is appended to the log.  The
 * event shape_resynced tells how much that was.  Rows that are changed by others before
 * the log is compared count as different.
 *
 * Errors: 55000 not preloaded; 42704 no such shape; 42501 not its owner, or, for all
 * shapes, no superuser.
 */
Datum
electric_cm_resync(PG_FUNCTION_ARGS)
{
	Oid			type = INT8OID;
	Datum		id = (Datum) 0;
	EcmSpiState spi;

	ecm_require_shared();
	ecm_require_sql_fit();
	if (!PG_ARGISNULL(0))
		id = Int64GetDatum(own_shape(PG_GETARG_TEXT_PP(0))->id);
	else if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to have all shapes resynced")));
	ecm_spi_begin(&spi);
	(void) ecm_shapes_resync(PG_ARGISNULL(0) ? "true" : "s.id = $1", PG_ARGISNULL(0) ? 0 : 1,
							 &type, &id, NULL, "electric_cm_resync() was called");
	ecm_spi_end(&spi);
	PG_RETURN_VOID();
}

/*
 * electric_cm_grant_shape(handle text, role text) RETURNS void
 *
 * Lets a role (a name as it is, without quotes; 'public': everybody) read a shape as its
 * owner does.
 *
 * Errors: 55000 not preloaded; 42704 no such shape, or role; 42501 not its owner.
 */
Datum
electric_cm_grant_shape(PG_FUNCTION_ARGS)
{
	EcmShapeDef *shape;

	ecm_require_shared();
	ecm_require_sql_fit();
	shape = own_shape(PG_GETARG_TEXT_PP(0));
	ecm_shape_grant(shape, ecm_grantee(text_to_cstring(PG_GETARG_TEXT_PP(1))));
	PG_RETURN_VOID();
}

/*
 * electric_cm_revoke_shape(handle text, role text) RETURNS void
 *
 * Takes that back; no error if there was nothing.
 *
 * Errors: as electric_cm_grant_shape().
 */
Datum
electric_cm_revoke_shape(PG_FUNCTION_ARGS)
{
	EcmShapeDef *shape;

	ecm_require_shared();
	ecm_require_sql_fit();
	shape = own_shape(PG_GETARG_TEXT_PP(0));
	ecm_shape_revoke(shape, ecm_grantee(text_to_cstring(PG_GETARG_TEXT_PP(1))));
	PG_RETURN_VOID();
}
