/*-------------------------------------------------------------------------
 *
 * electric_cm.c
 *	  The library's entry point.
 *
 * Loaded into a backend by one of its functions, the library has settings and
 * nothing else.  The rest needs shared memory, and so shared_preload_libraries.
 * Under pg_upgrade nothing but settings either: a launcher would create slots
 * in the new cluster.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"

#include "base/settings.h"
#include "base/shmem.h"
#include "electric_cm.h"
#include "hooks/database_commands.h"
#include "hooks/hooks.h"
#include "hooks/own_tables.h"
#include "launcher/launcher.h"
#include "slot/retained_wal_history.h"
#include "slot/slot_inactive.h"

PG_MODULE_MAGIC;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static void
request_shmem(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	ecm_shmem_request();
	ecm_history_request();
	ecm_slot_activity_request();
}

static void
startup_shmem(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();
	ecm_shmem_startup();
	ecm_history_startup();
	ecm_slot_activity_startup();
}

void
_PG_init(void)
{
	ecm_define_settings();

	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;

	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shmem;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;

	ecm_database_commands_init();
	ecm_hooks_init();
	ecm_own_tables_init();
	ecm_launcher_register();
}
