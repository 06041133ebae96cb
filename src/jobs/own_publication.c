/*-------------------------------------------------------------------------
 *
 * own_publication.c
 *	  Makes the publication that a stack has created go with the extension.
 *
 * The manager calls it by SQL on its replication connection, right after
 * CREATE PUBLICATION.  Without it, DROP EXTENSION would leave the publication
 * behind.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_publication.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(electric_cm_own_publication);

/*
 * _electric_cm.own_publication(name name) RETURNS void
 *
 * Makes a publication that we have created go with the extension, as
 * ALTER ... DEPENDS ON EXTENSION does for the kinds of objects that it knows.
 * The publication can still be dropped by itself, and pg_dump dumps it.
 *
 * 42704: there is no such publication.
 */
Datum
electric_cm_own_publication(PG_FUNCTION_ARGS)
{
	ObjectAddress publication;
	ObjectAddress extension;

	ObjectAddressSet(publication, PublicationRelationId,
					 get_publication_oid(NameStr(*PG_GETARG_NAME(0)), false));
	ObjectAddressSet(extension, ExtensionRelationId,
					 get_extension_oid("electric_cm", false));
	if (!list_member_oid(getAutoExtensionsOfObject(PublicationRelationId,
												   publication.objectId),
						 extension.objectId))
		recordDependencyOn(&publication, &extension, DEPENDENCY_AUTO_EXTENSION);
	PG_RETURN_VOID();
}
