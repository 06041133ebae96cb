/*-------------------------------------------------------------------------
 *
 * slot_name.c
 *	  The name of this database's slot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"

#include "base/settings.h"
#include "slot/slot.h"
#include "slot/slot_name.h"

char *
ecm_slot_name_of_stack(const EcmStackRow *remembered, const char *datname)
{
	if (ecm_slot_name[0] != '\0')
		return pstrdup(ecm_slot_name);
	return ecm_default_slot_name_of_stack(remembered, datname);
}

char *
ecm_default_slot_name_of_stack(const EcmStackRow *remembered,
							   const char *datname)
{
	EcmSlotFacts facts;
	char		taken_by[NAMEDATALEN];
	char	   *name = ecm_default_slot_name(datname);

	if (remembered->owns_slot &&
		ecm_slot_lookup(NameStr(remembered->slot_name), &facts) &&
		facts.logical && facts.database == MyDatabaseId)
		return pstrdup(NameStr(remembered->slot_name));

	/*
	 * Another database's stack may use the name, though perhaps without a
	 * slot yet: the database had this one's name before it was renamed, or
	 * their names differ only in characters that a slot's name can't have.
	 * Then the database's OID is appended.
	 */
	if (ecm_slot_name_is_taken(name, taken_by) ||
		(ecm_slot_lookup(name, &facts) && facts.logical &&
		 facts.database != MyDatabaseId && strcmp(facts.plugin, "pgoutput") == 0))
	{
		char	   *suffix = psprintf("_%u", MyDatabaseId);

		return psprintf("%.*s%s", NAMEDATALEN - 1 - (int) strlen(suffix), name,
						suffix);
	}
	return name;
}

char *
ecm_own_slot_name(const EcmStack *stack)
{
	EcmStackRow remembered;

	if (stack != NULL && stack->slot.name[0] != '\0')
		return pstrdup(stack->slot.name);
	ecm_stack_row_read(&remembered);
	return ecm_slot_name_of_stack(&remembered, get_database_name(MyDatabaseId));
}
