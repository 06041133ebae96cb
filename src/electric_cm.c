/*-------------------------------------------------------------------------
 *
 * electric_cm.c
 *	  The library's entry point.
 *
 * In shared_preload_libraries, the library is loaded by the postmaster: it asks for
 * shared memory, installs its hooks and registers the launcher.  Without that, a
 * session may still load it, by calling one of its functions.  Then it defines its
 * settings and nothing else, as all the rest needs shared memory.  Under pg_upgrade it
 * does no more either: a launcher would create slots in the new cluster, which
 * pg_upgrade does not expect.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"

#include "base/compat.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/version.h"
#include "electric_cm.h"
#include "hooks/database_commands.h"
#include "hooks/hooks.h"
#include "hooks/own_tables.h"
#include "launcher/launcher.h"
#include "slot/retained_wal_history.h"
#include "slot/slot_inactive.h"
#include "standby/standby.h"

ECM_MODULE_MAGIC("electric_cm");

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

/* shmem_request_hook: asks for room in shared memory. */
static void
request_shmem(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	ecm_shmem_request();
	ecm_history_request();
	ecm_slot_activity_request();
}

/* shmem_startup_hook: sets that room up. */
static void
startup_shmem(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();
	ecm_shmem_startup();
	ecm_history_startup();
	ecm_slot_activity_startup();
}

/*
 * The hooks of database_commands.c come before those of hooks.c, see
 * ecm_database_commands_init().
 */
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
	ecm_standby_register();
}
