/*-------------------------------------------------------------------------
 *
 * check_version.c
 *	  electric_cm_check(): do the library that the server has loaded, the
 *	  extension in this database and what is installed go together?
 *
 * They change at different times: the files with a package, the library with a
 * restart, the extension with ALTER EXTENSION.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/guc.h"

#include "base/version.h"
#include "functions/check.h"

#define UPDATE_EXTENSION	"ALTER EXTENSION electric_cm UPDATE"

/* What is installed, of another version than what is in the database. */
static void
judge_installed(const char *version, const char *installed, EcmFinding *f)
{
	if (ecm_sql_fit_of(installed) == ECM_SQL_UNKNOWN)
		ecm_check_warn(f, pstrdup(ONLY_RESTART),
					   "version %s is installed, and the library that the server has loaded, %s, does not know it; a restart loads the other one, then: " UPDATE_EXTENSION,
					   installed, ecm_library_version());
	else
		ecm_check_warn(f, pstrdup(UPDATE_EXTENSION),
					   "the extension's version here is %s, the installed one is %s",
					   version, installed);
}

/*
 * pg_available_extensions does not look where Debian's servers may be told to
 * look for extensions instead.
 */
static bool
lists_all_extensions(void)
{
	const char *elsewhere = GetConfigOption("extension_destdir", true, false);

	return elsewhere == NULL || elsewhere[0] == '\0';
}

void
ecm_check_version(const EcmSituation *s pg_attribute_unused(), EcmFinding *f)
{
	const char *server = GetConfigOption("server_version", false, false);
	const char *library = ecm_library_version();
	const char *version;
	const char *installed;
	int			n;
	char	  **v = ecm_check_query(2, &n,
									"SELECT e.extversion, a.default_version FROM pg_extension e"
									" LEFT JOIN pg_available_extensions a ON a.name = e.extname"
									" WHERE e.extname = 'electric_cm'");

	version = n > 0 ? v[0] : NULL;
	installed = n > 0 ? v[1] : NULL;
	if (version == NULL)
		ecm_check_warn(f, NULL, "the extension is not in this database");
	else if (ecm_sql_fit_of(version) == ECM_SQL_UNKNOWN)
		ecm_check_fail(f, pstrdup(ONLY_RESTART),
					   "the extension's version here is %s, which the library that the server has loaded, %s, does not know: no stack runs until one is installed that does, and the server restarted",
					   version, library);
	else if (ecm_sql_fit_of(version) == ECM_SQL_OUTDATED)
		ecm_check_fail(f, pstrdup(UPDATE_EXTENSION),
					   "the extension's version here is %s, which is too old for the library that the server has loaded, %s",
					   version, library);
	else if (installed == NULL && lists_all_extensions())
		ecm_check_warn(f, NULL,
					   "the files of electric_cm are not installed any more: the server will not start with electric_cm in shared_preload_libraries");
	else if (installed != NULL && strcmp(version, installed) != 0)
		judge_installed(version, installed, f);
	else
		ecm_check_pass(f, "PostgreSQL %s, electric_cm %s", server, version);
}
