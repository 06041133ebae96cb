/*-------------------------------------------------------------------------
 *
 * manager_settings.c
 *	  The settings that a manager was started with, and their changes.
 *
 * A running worker does not see changes of its database's own settings (ALTER
 * DATABASE ... SET), so those are read from the catalog.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/memutils.h"

#include "base/bgworker.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "manager/manager.h"
#include "manager/stack_report.h"
#include "slot/retained_wal.h"

typedef struct SettingsText
{
	char	   *text;
	MemoryContext context;
	bool		disabled;
} SettingsText;

/* Our settings in ALTER DATABASE ... SET, as "name=value"; within SPI. */
static void
find_database_settings(void)
{
	if (SPI_execute("SELECT c FROM pg_db_role_setting s, unnest(s.setconfig) c"
					" WHERE (s.setdatabase, s.setrole) ="
					" ((SELECT oid FROM pg_database WHERE datname = current_database()), 0::oid)"
					" AND starts_with(c, 'electric_cm.') ORDER BY c",
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the database's settings");
}

static bool
is_set_for_database(const char *name)
{
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *setting = SPI_getvalue(SPI_tuptable->vals[i],
										   SPI_tuptable->tupdesc, 1);

		if (pg_strncasecmp(setting, name, strlen(name)) == 0 &&
			setting[strlen(name)] == '=')
			return true;
	}
	return false;
}

static void
apply_database_settings(void *arg)
{
	bool	   *one_is_gone = arg;
	EcmSpiState spi;
	const char *name;
	const char *source;
	char	   *value;

	ecm_spi_begin(&spi);
	find_database_settings();
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *setting = SPI_getvalue(SPI_tuptable->vals[i],
										   SPI_tuptable->tupdesc, 1);

		value = strchr(setting, '=');
		if (value == NULL)
			continue;
		*value++ = '\0';
		(void) set_config_option(setting, value, PGC_SUSET, PGC_S_DATABASE,
								 GUC_ACTION_SET, true, WARNING, false);
	}
	for (int i = 0; ecm_setting_at(i, "", &name, &value, &source); i++)
		if (strcmp(source, GucSource_Names[PGC_S_DATABASE]) == 0 &&
			!is_set_for_database(name))
			*one_is_gone = true;
	ecm_spi_end(&spi);
}

/*
 * The settings that this process was started with may have changed before it
 * could read the catalog; a later reload would find no difference then.
 */
bool
ecm_manager_catch_up_with_settings(EcmError *err, bool *one_is_gone)
{
	*one_is_gone = false;
	return ecm_worker_try(apply_database_settings, one_is_gone, err);
}

/*
 * A running worker does not see changes of the database's own settings, so
 * they are read from the catalog.
 */
static void
read_database_settings(void *arg)
{
	SettingsText *result = arg;
	EcmSpiState spi;
	StringInfoData text;

	initStringInfo(&text);
	ecm_spi_begin(&spi);
	find_database_settings();
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *setting = SPI_getvalue(SPI_tuptable->vals[i],
										   SPI_tuptable->tupdesc, 1);
		const char *enabled = "electric_cm.enabled=";
		bool		value;

		appendStringInfo(&text, "%s\n", setting);
		if (strncmp(setting, enabled, strlen(enabled)) == 0 &&
			parse_bool(setting + strlen(enabled), &value))
			result->disabled = !value;
	}
	result->text = MemoryContextStrdup(result->context, text.data);
	ecm_spi_end(&spi);
}

/*
 * The effective settings whose change needs a new manager, as one text; NULL: the
 * catalog can't be read now.
 */
static char *
settings_signature(const Manager *m)
{
	SettingsText database = {NULL, CurrentMemoryContext, false};
	EcmError	err;

	if (!ecm_worker_try(read_database_settings, &database, &err))
	{
		ereport(WARNING,
				(errmsg("could not read the settings of database \"%s\": %s",
						m->stack->datname, err.message)));
		return NULL;
	}
	return psprintf("%d|%s|%s|%s|%s|%s|%d|%d|%d|%s",
					ecm_enabled, ecm_stack_id, ecm_connection,
					ecm_pooled_connection, ecm_slot_name,
					ecm_publication_name, ecm_slot_temporary,
					ecm_create_publication, ecm_shape_workers, database.text);
}

bool
ecm_manager_is_disabled(void)
{
	SettingsText database = {NULL, CurrentMemoryContext, !ecm_enabled};
	EcmError	err;

	return ecm_worker_try(read_database_settings, &database, &err) &&
		database.disabled;
}

/* Keeps it beyond the round. */
static void
keep_signature(Manager *m, const char *signature)
{
	if (m->settings_signature != NULL)
		pfree(m->settings_signature);
	m->settings_signature = MemoryContextStrdup(TopMemoryContext, signature);
}

void
ecm_manager_note_settings(Manager *m)
{
	char	   *signature = settings_signature(m);

	keep_signature(m, signature ? signature : "");
}

/*
 * Changes that need a new manager are left to the launcher; all others take
 * effect by themselves.
 */
bool
ecm_manager_reload(Manager *m, EcmTime now pg_attribute_unused(), RoundInput *in)
{
	char	   *signature;

	if (!ConfigReloadPending)
		return false;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	signature = settings_signature(m);
	m->reload_again = signature == NULL;
	if (signature != NULL && strcmp(signature, m->settings_signature) != 0)
	{
		ecm_manager_event(m, ECM_EVENT_SETTINGS_CHANGED, "",
						  "settings have changed: the stack restarts");
		keep_signature(m, signature);
		(void) ecm_stack_request(MyDatabaseId, ECM_REQUEST_RESTART);
		return false;
	}
	ecm_report_options();
	ecm_retained_wal_publish_settings(m->stack_index);
	m->wal.sample_at = 0;
	m->too_many_recreations = false;
	in->type = ECM_INPUT_RELOAD;
	return true;
}
