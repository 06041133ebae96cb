/*-------------------------------------------------------------------------
 *
 * manager_settings.c
 *	  The settings that a manager was started with, and their changes.
 *
 * A server process takes the settings of its database (ALTER DATABASE ... SET) when
 * it connects, and never again.  So a manager reads them from the catalog, at each
 * reload.  Some settings can't change under a running stack, such as the slot's
 * name.  Those form a text, the signature; when it has changed, the manager asks
 * the launcher for a successor.
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
#include "slot/slot.h"

/* The argument of read_database_settings(). */
typedef struct SettingsText
{
	char	   *text;			/* result: a line "name=value" per setting */
	MemoryContext context;		/* where the text goes */
	bool		disabled;		/* result: electric_cm.enabled is off; left as
								 * it is if the database does not set it */
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

/* After find_database_settings(): is the setting among them? */
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

/*
 * In a transaction: gives this process the values that the catalog has.  arg: bool,
 * set if a value that this process has from its database is not there any more.
 */
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
 * Between the start of this process and its first look at the catalog the settings
 * may have changed.  Without this, the signature would be noted as of the new ones
 * while the process has the old ones, and no reload would find a difference.
 */
bool
ecm_manager_catch_up_with_settings(EcmError *err, bool *one_is_gone)
{
	*one_is_gone = false;
	return ecm_worker_try(apply_database_settings, one_is_gone, err);
}

/* In a transaction: reads the database's settings as one text. */
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
 * catalog can't be read now.  All settings of the database are in it, also those
 * that could change under a running stack: this process can't take them.
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
	return psprintf("%d|%s|%s|%s|%s|%s|%d|%d|%d|%d|%s",
					ecm_enabled, ecm_stack_id, ecm_connection,
					ecm_pooled_connection, ecm_slot_name,
					ecm_publication_name, ecm_slot_temporary, ecm_slot_is_for_failover(),
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

/* Keeps a signature beyond the round. */
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
 * Reads the configuration again.  For a change that needs a new manager, asks the
 * launcher for one, which ends this one.  The signature is noted all the same, lest
 * each further reload ask again.  All other changes take effect by themselves, and
 * the machine hears of the reload, since a stack that has failed tries again then.
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
