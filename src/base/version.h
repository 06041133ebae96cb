/*-------------------------------------------------------------------------
 *
 * version.h
 *	  The library's version, and whether the extension's goes with it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_VERSION_H
#define ECM_VERSION_H

#include "postgres.h"

#include "utils/snapshot.h"

/* The library's, as in META.json. */
#define ECM_VERSION		"1.0.0"

/* What the objects that the extension has in a database are to this library. */
typedef enum EcmSqlFit
{
	ECM_SQL_NONE,				/* there is no extension */
	ECM_SQL_FITS,
	ECM_SQL_OUTDATED,			/* they have to be updated first */
	ECM_SQL_UNKNOWN				/* of a newer library, as far as one can tell */
} EcmSqlFit;

extern const char *ecm_library_version(void);

/* Of a version of the extension; NULL: of none. */
extern EcmSqlFit ecm_sql_fit_of(const char *version);

/*
 * The extension's version in this database, palloc'd, or NULL; as it is in a
 * snapshot, or now (NULL).
 */
extern char *ecm_sql_version(Snapshot snapshot, Oid *extension);
extern EcmSqlFit ecm_sql_fit(void);

/* ERROR 55000 if the library must not touch the extension's tables. */
extern void ecm_require_sql_fit(void);

#endif							/* ECM_VERSION_H */
