/*-------------------------------------------------------------------------
 *
 * shape_rights.c
 *	  Who may read a shape.
 *
 * A superuser's process reads the rows of a shape, and hands them to users who
 * have the role that owns the shape.  The server checks no rights then, so it
 * is checked here, at each reading, that the owner and the reader could select
 * those rows themselves.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rls.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/spi.h"
#include "shape/shape.h"
#include "shape/shape_catalog.h"
#include "shape/shape_requirements.h"
#include "shape/shape_rights.h"

PG_FUNCTION_INFO_V1(electric_cm_shape_error);

/* ------------------------------------------------------- rights on tables -- */

static bool
may_select(Oid relation, Oid role, const Bitmapset *attnums)
{
	int			attnum = -1;

	if (ecm_table_acl_select(relation, role))
		return true;
	if (bms_is_empty(attnums))
		return false;
	while ((attnum = bms_next_member(attnums, attnum)) >= 0)
		if (pg_attribute_aclcheck(relation, attnum, role, ACL_SELECT) != ACLCHECK_OK)
			return false;
	return true;
}

/*
 * A role without USAGE on the schema can't select from the table, whatever its
 * rights on that.
 */
static bool
may_use_schema(Oid relation, Oid role)
{
	return ecm_schema_acl_usage(get_rel_namespace(relation), role);
}

bool
ecm_may_read_columns(Oid relation, Oid role, const Bitmapset *attnums)
{
	return SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relation)) &&
		may_use_schema(relation, role) &&
		may_select(relation, role, attnums) &&
		check_enable_rls(relation, role, true) != RLS_ENABLED;
}

/*
 * The rows of a shape are read by a superuser's process, so everything that
 * would have filtered them for the role itself must be refused.
 */
void
ecm_check_may_read_columns(Oid relation, Oid role, const Bitmapset *attnums)
{
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relation)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the shape's table does not exist any more")));
	if (!may_use_schema(relation, role))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_SCHEMA,
					   get_namespace_name(get_rel_namespace(relation)));
	if (!may_select(relation, role, attnums))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, get_rel_name(relation));
	if (check_enable_rls(relation, role, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("row-level security applies to role \"%s\" on table \"%s\"",
						GetUserNameFromId(role, false), get_rel_name(relation)),
				 errdetail("A shape would show rows that the policies hide."),
				 errhint("Let a role that the policies don't apply to own the shape.")));
}

/* ------------------------------------------------------ rights on shapes -- */

void
ecm_shape_check_owner(const EcmShapeDef *shape)
{
	if (!has_privs_of_role(GetUserId(), shape->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for shape \"%s\"", shape->handle),
				 errhint("Only its owner, and members of that role, may use a shape. Its owner may share it by electric_cm_grant_shape().")));
}

/* Has its owner shared the shape with the current user? */
static bool
is_granted(int64 shape)
{
	static struct _SPI_plan *plan;
	Oid			type = INT8OID;
	Datum		value = Int64GetDatum(shape);
	Oid			user = GetUserId();
	bool		granted = false;
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_spi_run_kept(&plan, "SELECT role FROM _electric_cm.shape_grant WHERE shape = $1",
					 SPI_OK_SELECT, 1, &type, &value, NULL);
	for (uint64 i = 0; i < SPI_processed && !granted; i++)
	{
		bool		isnull;
		Oid			role = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
														  SPI_tuptable->tupdesc, 1, &isnull));

		granted = !OidIsValid(role) || has_privs_of_role(user, role);
	}
	ecm_spi_end(&spi);
	return granted;
}

/*
 * The columns that a shape shows, and those of its where clause, about whose
 * values it tells something.  NULL if one of them is gone: then the right to
 * select from the whole table is required.
 */
static Bitmapset *
columns_read(const EcmShapeDef *shape)
{
	bool		missing = false;
	Bitmapset  *attnums;

	attnums = ecm_column_attnums(shape->relation, shape->column_names,
								 shape->ncolumns, NULL, &missing);
	if (shape->filter != NULL)
		attnums = ecm_column_attnums(shape->relation, shape->filter->names,
									 shape->filter->ncolumns, attnums, &missing);
	return missing ? NULL : attnums;
}

bool
ecm_shape_may_read(const EcmShapeDef *shape, Oid role)
{
	return ecm_may_read_columns(shape->relation, role, columns_read(shape));
}

/* Is the current user a member of the owner's role, and might read the table? */
static bool
is_able_member(const EcmShapeDef *shape)
{
	return has_privs_of_role(GetUserId(), shape->owner) && ecm_shape_may_read(shape, GetUserId());
}

void
ecm_shape_check_read(const EcmShapeDef *shape)
{
	bool		may = GetUserId() == shape->owner || superuser() ||
	is_able_member(shape) || is_granted(shape->id);

	if (!may)
		ecm_shape_check_owner(shape);
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(shape->owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the owner of shape \"%s\" does not exist any more",
						shape->handle),
				 errhint("Create a shape of your own with electric_cm_create_shape().")));
	ecm_check_may_read_columns(shape->relation, shape->owner, columns_read(shape));

	/*
	 * a member of a role does not inherit its BYPASSRLS, so the reader is
	 * checked, too
	 */
	if (!may)
		ecm_check_may_read_columns(shape->relation, GetUserId(), columns_read(shape));
}

EcmShapeDef *
ecm_readable_shape(const char *handle)
{
	EcmShapeDef *shape = ecm_shape_by_handle(handle);

	if (shape == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("shape \"%s\" does not exist", handle),
				 errhint("Create it with electric_cm_create_shape().")));
	ecm_shape_check_read(shape);
	return shape;
}

bool
ecm_shape_may_know(int64 id)
{
	EcmShapeDef *shape;

	if (has_privs_of_role(GetUserId(), ROLE_PG_MONITOR))
		return true;
	shape = ecm_shape_by_id(id);
	return shape != NULL && (has_privs_of_role(GetUserId(), shape->owner) || is_granted(id));
}

/* ---------------------------------------------------------- shared shapes -- */

Oid
ecm_grantee(const char *name)
{
	return strcmp(name, "public") == 0 ? InvalidOid : get_role_oid(name, false);
}

/* The role is locked, as by a dependency: DROP ROLE waits, and does not overlook this. */
void
ecm_shape_grant(const EcmShapeDef *shape, Oid role)
{
	Oid			types[] = {INT8OID, OIDOID};
	Datum		values[] = {Int64GetDatum(shape->id), ObjectIdGetDatum(role)};
	EcmSpiState spi;

	/*
	 * else a member could grant it to himself, and see what policies hide
	 * from him
	 */
	if (GetUserId() != shape->owner && !superuser())
		ecm_check_may_read_columns(shape->relation, GetUserId(), columns_read(shape));
	if (OidIsValid(role))
	{
		LockSharedObject(AuthIdRelationId, role, 0, AccessShareLock);
		if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role)))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("role %u was concurrently dropped", role)));
	}
	ecm_spi_begin(&spi);
	ecm_spi_run("INSERT INTO _electric_cm.shape_grant (shape, role) VALUES ($1, $2) ON CONFLICT DO NOTHING",
				SPI_OK_INSERT, 2, types, values, NULL);
	ecm_spi_end(&spi);
}

void
ecm_shape_revoke(const EcmShapeDef *shape, Oid role)
{
	Oid			types[] = {INT8OID, OIDOID};
	Datum		values[] = {Int64GetDatum(shape->id), ObjectIdGetDatum(role)};
	EcmSpiState spi;

	ecm_spi_begin(&spi);
	ecm_spi_run("DELETE FROM _electric_cm.shape_grant WHERE shape = $1 AND role = $2",
				SPI_OK_DELETE, 2, types, values, NULL);
	ecm_spi_end(&spi);
}

void
ecm_grants_delete_of(Oid role)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(role);

	ecm_spi_run("DELETE FROM _electric_cm.shape_grant WHERE (shape, role) IN"
				" (SELECT shape, role FROM _electric_cm.shape_grant WHERE role = $1 FOR UPDATE SKIP LOCKED)",
				SPI_OK_DELETE, 1, &type, &value, NULL);
}

void
ecm_grants_purge(void)
{
	ecm_spi_run("DELETE FROM _electric_cm.shape_grant WHERE (shape, role) IN"
				" (SELECT shape, role FROM _electric_cm.shape_grant g WHERE"
				"  NOT EXISTS (SELECT FROM _electric_cm.shape s WHERE s.id = g.shape)"
				"  OR (role <> 0 AND NOT EXISTS (SELECT FROM pg_catalog.pg_authid a WHERE a.oid = g.role))"
				"  FOR UPDATE OF g SKIP LOCKED)",
				SPI_OK_DELETE, 0, NULL, NULL, NULL);
}

/*
 * _electric_cm.shape_error(shape int8, last_error text) RETURNS text
 *
 * What the caller may know of a shape's error: its text may quote a row, and
 * is only for those who may read the shape.
 */
Datum
electric_cm_shape_error(PG_FUNCTION_ARGS)
{
	EcmShapeDef *shape = ecm_shape_by_id(PG_GETARG_INT64(0));
	char	   *error = text_to_cstring(PG_GETARG_TEXT_PP(1));

	if (superuser() ||
		(shape != NULL && ecm_shape_may_read(shape, shape->owner) &&
		 (is_able_member(shape) || is_granted(shape->id))))
		PG_RETURN_TEXT_P(cstring_to_text(ecm_error_untagged(error)));
	PG_RETURN_TEXT_P(cstring_to_text(ecm_error_public_text(error)));
}
