/*-------------------------------------------------------------------------
 *
 * pgoutput.c
 *	  The server's own pgoutput, with a hook for our walsender.
 *
 * pgoutput raises an error for a change that it cannot send, such as one whose
 * text exceeds 1 GB.  The error ends the stream, at the same change each time,
 * and core has no hook there.  This library loads the server's pgoutput and
 * lets walsender/unsendable.c put callbacks of ours around those of pgoutput,
 * which send such a change without its large values, or leave it out.
 *
 * Our walsender asks for the plugin "pgoutput" like any other. unsendable.c
 * has set its dynamic_library_path, so that the folder of this library is
 * searched first.  No other process loads it, and where it is not installed our
 * walsender gets the server's pgoutput.
 *
 * The library is small, and apart from electric_cm, since each walsender loads
 * it from disk when it starts: after an upgrade on disk, it runs with the
 * electric_cm that the server was started with.  The two share nothing but the
 * rendezvous variable.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "replication/output_plugin.h"

#include "base/compat.h"
#include "base/settings.h"
#include "base/version.h"

ECM_MODULE_MAGIC("electric_cm pgoutput");

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
