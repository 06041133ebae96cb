/*-------------------------------------------------------------------------
 *
 * pinned_settings.c
 *	  Settings that our processes do not take from databases and roles.
 *
 * ALTER DATABASE ... SET and ALTER ROLE ... SET apply to background workers
 * and to our sessions as to any others, and whoever owns a database can say
 * the former.  It may be meant for applications (role, DateStyle), be harmful
 * (exit_on_error, temp_file_limit), or nothing that anybody has thought of.  So
 * none of it is taken: what counts is the server's configuration, and beyond
 * that what is pinned by name, here or in bgworker.c and conninfo.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "base/pinned_settings.h"

/* A startup packet has room for 10,000 bytes, and there is more in it. */
#define MAX_OPTIONS_BYTES	7500

const char *const ecm_text_settings[][2] = {
	{"DateStyle", "ISO, MDY"},
	{"IntervalStyle", "postgres"},
	{"TimeZone", "UTC"},
	{"timezone_abbreviations", "Default"},
	{"extra_float_digits", "1"},
	{"bytea_output", "hex"},
	{"lc_monetary", "C"},
	{"xmlbinary", "base64"},
	{"xmloption", "content"},
	{"array_nulls", "on"},
	{"standard_conforming_strings", "on"},
	{"backslash_quote", "safe_encoding"},
	{"transform_null_equals", "off"},
	{"quote_all_identifiers", "off"},
	{NULL, NULL}
};

typedef struct ShelteredSetting
{
	struct config_generic *setting;
	GucSource	source;
	GucSource	reset_source;
} ShelteredSetting;

static ShelteredSetting *sheltered = NULL;
static int	nsheltered = 0;

static void
set_locally(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Most sessions have most of it already, and some of it is read from a file.
 */
void
ecm_pin_text_settings(void)
{
	set_locally("search_path", "pg_catalog, pg_temp");
	for (int i = 0; ecm_text_settings[i][0] != NULL; i++)
	{
		const char *value = GetConfigOption(ecm_text_settings[i][0], false, false);

		if (value == NULL || strcmp(value, ecm_text_settings[i][1]) != 0)
			set_locally(ecm_text_settings[i][0], ecm_text_settings[i][1]);
	}
}

/* Can ALTER DATABASE give it a value, and is that none of our own? */
static bool
is_foreign_setting(const struct config_generic *setting)
{
	if (setting->context != PGC_USERSET && setting->context != PGC_SUSET &&
		setting->context != PGC_BACKEND && setting->context != PGC_SU_BACKEND)
		return false;
	return strncmp(setting->name, "electric_cm.", strlen("electric_cm.")) != 0 &&
		strcmp(setting->name, "client_encoding") != 0;	/* set at start */
}

/*
 * A setting from the catalog has no effect on one that has been set at a higher
 * place already: so all of them say meanwhile that they have been.  Nothing is
 * set, since an attempt to undo might come too late: the setting would have
 * been in force for a moment, as with role.
 */
void
ecm_shelter_settings(void)
{
	int			nvars;
	struct config_generic **vars = ecm_guc_variables(&nvars);

	sheltered = MemoryContextAlloc(TopMemoryContext,
								   sizeof(ShelteredSetting) * nvars);
	nsheltered = 0;
	for (int i = 0; i < nvars; i++)
	{
		ShelteredSetting *s = &sheltered[nsheltered];

		if (!is_foreign_setting(vars[i]) || vars[i]->source >= PGC_S_OVERRIDE)
			continue;
		s->setting = vars[i];
		s->source = vars[i]->source;
		s->reset_source = vars[i]->reset_source;
		vars[i]->source = vars[i]->reset_source = PGC_S_OVERRIDE;
		nsheltered++;
	}
}

/* A reload of the server's configuration has its effect again. */
void
ecm_unshelter_settings(void)
{
	for (int i = 0; i < nsheltered; i++)
	{
		sheltered[i].setting->source = sheltered[i].source;
		sheltered[i].setting->reset_source = sheltered[i].reset_source;
	}
	pfree(sheltered);
	sheltered = NULL;
	nsheltered = 0;
}

void
ecm_append_setting(StringInfo options, const char *name, const char *value)
{
	appendStringInfo(options, " -c %s=", name);
	for (; *value; value++)
	{
		if (isspace((unsigned char) *value) || *value == '\\')
			appendStringInfoChar(options, '\\');
		appendStringInfoChar(options, *value);
	}
}

/* By name, as the catalog has it; NULL if a session can't be given it. */
static struct config_generic *
find_foreign_setting(struct config_generic **vars, int nvars, const char *name)
{
	for (int i = 0; i < nvars; i++)
		if (pg_strcasecmp(vars[i]->name, name) == 0)
			return is_foreign_setting(vars[i]) &&
				(vars[i]->flags & (GUC_CUSTOM_PLACEHOLDER | GUC_DISALLOW_IN_FILE)) == 0 ?
				vars[i] : NULL;
	return NULL;
}

/* One row of pg_db_role_setting; the names that are there already in names. */
static void
append_from_array(StringInfo options, List **names, ArrayType *array)
{
	int			nvars;
	struct config_generic **vars = ecm_guc_variables(&nvars);
	Datum	   *elements;
	bool	   *nulls;
	int			nelements;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &nelements);
	for (int i = 0; i < nelements; i++)
	{
		struct config_generic *setting;
		char	   *name;
		const char *value;

		if (nulls[i])
			continue;
		name = TextDatumGetCString(elements[i]);
		name[strcspn(name, "=")] = '\0';
		setting = find_foreign_setting(vars, nvars, name);
		if (setting == NULL || list_member_ptr(*names, setting))
			continue;
		value = GetConfigOption(setting->name, true, false);
		if (value == NULL ||
			options->len + strlen(name) + 2 * strlen(value) > MAX_OPTIONS_BYTES)
			continue;
		*names = lappend(*names, setting);
		ecm_append_setting(options, setting->name, value);
	}
}

bool
ecm_append_server_settings(StringInfo options, bool any_role)
{
	List	   *names = NIL;
	Relation	catalog;
	SysScanDesc scan;
	HeapTuple	tuple;

	/* the manager must not wait behind somebody's lock */
	if (!ConditionalLockRelationOid(DbRoleSettingRelationId, AccessShareLock))
		return false;
	catalog = table_open(DbRoleSettingRelationId, NoLock);
	scan = systable_beginscan(catalog, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_db_role_setting form = (Form_pg_db_role_setting) GETSTRUCT(tuple);
		bool		isnull;
		Datum		config;

		if ((form->setdatabase != InvalidOid && form->setdatabase != MyDatabaseId) ||
			(form->setrole != InvalidOid && form->setrole != BOOTSTRAP_SUPERUSERID &&
			 !any_role))
			continue;
		config = heap_getattr(tuple, Anum_pg_db_role_setting_setconfig,
							  RelationGetDescr(catalog), &isnull);
		if (!isnull)
			append_from_array(options, &names, DatumGetArrayTypeP(config));
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	list_free(names);
	return true;
}
