/*-------------------------------------------------------------------------
 *
 * pinned_settings.c
 *	  Settings that our processes do not take from databases and roles.
 *
 * ALTER DATABASE ... SET and ALTER ROLE ... SET apply to background workers
 * and to the stack's sessions as to any others, and whoever owns a database
 * can use the former.  The values may be meant for applications (role,
 * DateStyle), be harmful to us (exit_on_error, temp_file_limit), or be
 * something that nobody has thought of.  So none of them is taken.  Our
 * processes run with the server's configuration, and with the settings that
 * are pinned by name, here and in bgworker.c and conninfo.c.
 *
 * A worker does so by ecm_shelter_settings() while it connects.  A session of
 * ours is opened by libpq, and is told the server's own values as options of
 * its startup packet: ecm_append_server_settings().
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

/*
 * Room for settings in a startup packet, in bytes.  The server refuses packets
 * of more than 10,000 bytes, and the options are not all that is in one.
 */
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

/* A setting's sources from before ecm_shelter_settings(). */
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
 * A setting is set only if its value differs.  Most sessions have most of these
 * values already, and setting one can be expensive: timezone_abbreviations
 * reads a file.
 */
void
ecm_pin_how_values_are_read(void)
{
	for (int i = 0; ecm_text_settings[i][0] != NULL; i++)
	{
		const char *value = GetConfigOption(ecm_text_settings[i][0], false, false);

		if (value == NULL || strcmp(value, ecm_text_settings[i][1]) != 0)
			set_locally(ecm_text_settings[i][0], ecm_text_settings[i][1]);
	}
}

void
ecm_pin_text_settings(void)
{
	set_locally("search_path", "pg_catalog, pg_temp");
	ecm_pin_how_values_are_read();
}

/*
 * Can ALTER DATABASE set this parameter, and is it none of ours?  Our own are
 * meant to be set for a database. client_encoding is set by whoever starts the
 * process.
 */
static bool
is_foreign_setting(const struct config_generic *setting)
{
	if (setting->context != PGC_USERSET && setting->context != PGC_SUSET &&
		setting->context != PGC_BACKEND && setting->context != PGC_SU_BACKEND)
		return false;
	return strncmp(setting->name, "electric_cm.", strlen("electric_cm.")) != 0 &&
		strcmp(setting->name, "client_encoding") != 0;
}

/*
 * Makes all settings claim that their value comes from PGC_S_OVERRIDE, a
 * source above ALTER DATABASE and ALTER ROLE.  The server ignores a value from
 * a lower source than the present one, so what it reads from
 * pg_db_role_setting has no effect.
 *
 * Setting the right values afterwards instead would be too late: the unwanted
 * ones, such as a "role", would have been in force for a moment.
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

/*
 * Gives the settings their sources back.  From here on a reload of the server's
 * configuration changes them again, as it should.
 */
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

/*
 * Finds a setting by its name in pg_db_role_setting, in any case of letters.
 * NULL: there is none of that name, it is ours, or a session can't be given it
 * by its startup packet.
 */
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

/*
 * Appends the settings of one row of pg_db_role_setting, each with the value
 * that it has in this process.  *names has the settings that are in the options
 * already; settings for which there is no room are left out.
 */
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
