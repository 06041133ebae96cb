/*-------------------------------------------------------------------------
 *
 * pgoutput.c
 *	  The server's own pgoutput, with a hook for our walsender.
 *
 * An error in an output plugin ends the stream, at the same change each time,
 * and nothing else can be hooked there.  Our walsender looks for libraries
 * where this one is, before others (see src/walsender/unsendable.c), so that it
 * gets this when it asks for the slot's plugin, pgoutput.  No other process
 * does, and where this is not installed it gets the server's.
 *
 * Small, and apart from the rest, since it is loaded afresh by each walsender:
 * it must go with any electric_cm that the server has been started with.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "replication/output_plugin.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_output_plugin_init(OutputPluginCallbacks *callbacks);

typedef void (*InitFunction) (OutputPluginCallbacks *callbacks);

void
_PG_output_plugin_init(OutputPluginCallbacks *callbacks)
{
	InitFunction init;
	void	  **wrap;

	/*
	 * By its whole path: from 18 on "$libdir/pgoutput" is looked for where
	 * "pgoutput" is, and that finds this one, which would call itself.
	 */
	init = (InitFunction) load_external_function(psprintf("%s/pgoutput", pkglib_path),
												 "_PG_output_plugin_init",
												 true, NULL);
	init(callbacks);
	wrap = find_rendezvous_variable("electric_cm_output_plugin");
	if (*wrap != NULL)
		((InitFunction) *wrap) (callbacks);
}
