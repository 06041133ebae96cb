/*-------------------------------------------------------------------------
 *
 * version.c
 *	  The library's version, and whether the extension's goes with it.
 *
 * The library is the server's, and changes when that is restarted; what CREATE
 * EXTENSION has made is the database's, and changes with ALTER EXTENSION ...
 * UPDATE.  So for a while they are of two versions, in either order.  Of newer
 * ones this knows nothing, not even whether they would do: nothing is touched
 * then but _electric_cm.stack, whose columns keep names and types for ever, so
 * that the slot is looked after.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

#include "base/version.h"

/*
 * All versions that the extension has had up to this library's, and whether
 * stacks run with them as they are.  The last one always do.
 */
static const struct
{
	const char *version;
	bool		runs;
}			sql_versions[] =
{
	{"1.0", true}
};

const char *
ecm_library_version(void)
{
	return ECM_VERSION;
}

EcmSqlFit
ecm_sql_fit_of(const char *version)
{
	if (version == NULL)
		return ECM_SQL_NONE;
	for (size_t i = 0; i < lengthof(sql_versions); i++)
		if (strcmp(version, sql_versions[i].version) == 0)
			return sql_versions[i].runs ? ECM_SQL_FITS : ECM_SQL_OUTDATED;
	return ECM_SQL_UNKNOWN;
}

char *
ecm_sql_version(Snapshot snapshot, Oid *extension)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *version = NULL;

	*extension = InvalidOid;
	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("electric_cm"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, Anum_pg_extension_extversion,
										 RelationGetDescr(rel), &isnull);

		*extension = ((Form_pg_extension) GETSTRUCT(tuple))->oid;
		version = isnull ? pstrdup("") : TextDatumGetCString(value);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return version;
}

EcmSqlFit
ecm_sql_fit(void)
{
	Oid			extension;
	char	   *version = ecm_sql_version(NULL, &extension);
	EcmSqlFit	fit = ecm_sql_fit_of(version);

	if (version != NULL)
		pfree(version);
	return fit;
}

void
ecm_require_sql_fit(void)
{
	Oid			extension;
	char	   *version = ecm_sql_version(NULL, &extension);
	EcmSqlFit	fit = ecm_sql_fit_of(version);

	if (fit == ECM_SQL_OUTDATED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("version %s of the extension electric_cm is too old for the library that the server has loaded, %s",
						version, ECM_VERSION),
				 errhint("ALTER EXTENSION electric_cm UPDATE")));
	if (fit == ECM_SQL_UNKNOWN)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("version %s of the extension electric_cm is not known to the library that the server has loaded, %s",
						version, ECM_VERSION),
				 errhint("Install the library of that version, or a newer one, and restart the server.")));
	if (version != NULL)
		pfree(version);
}
