/*-------------------------------------------------------------------------
 *
 * shape_settings.c
 *	  The settings that count for shapes, whatever session asks.
 *
 * ALTER DATABASE ... SET affects the stack as soon as its manager has started
 * anew, but sessions that are there keep the old values.  If a session went by
 * its own value, it would, for example, look into another publication than the
 * stack reads from.  So sessions look in shared memory for the values that the
 * stack has.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "base/settings.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "base/stack_catalog.h"
#include "shape/shape_settings.h"

char *
ecm_own_publication_name(void)
{
	char		name[NAMEDATALEN] = "";
	char	   *recorded;
	int			index;

	if (ecm_shared != NULL)
	{
		ecm_lock(LW_SHARED);
		index = ecm_stack_find_locked(MyDatabaseId);
		if (index >= 0)
			strlcpy(name, ecm_stack_at(index)->report.publication_name, sizeof(name));
		ecm_unlock();
	}
	if (name[0] != '\0')
		return pstrdup(name);
	recorded = ecm_stack_row_publication();
	return recorded != NULL ? recorded : pstrdup(ecm_publication_name);
}

/* A setting as the stack has shown it; false: there is no stack. */
static bool
setting_of_stack(const char *name, char *value, size_t size)
{
	bool		found = false;
	int			index;

	if (ecm_shared == NULL)
		return false;
	ecm_lock(LW_SHARED);
	index = ecm_stack_find_locked(MyDatabaseId);
	if (index >= 0)
	{
		const EcmStack *stack = ecm_stack_at(index);

		for (int i = 0; i < stack->noptions && !found; i++)
			if (strcmp(stack->options[i].name, name) == 0)
			{
				strlcpy(value, stack->options[i].setting, size);
				found = true;
			}
	}
	ecm_unlock();
	return found;
}

static bool
bool_setting(const char *name, bool of_session)
{
	char		text[ECM_TEXT_LEN];
	bool		value;

	if (!setting_of_stack(name, text, sizeof(text)) ||
		!parse_bool(text, &value) || value == of_session ||
		ecm_setting_is_of_session(name))
		return of_session;
	return value;
}

bool
ecm_publishes_manually(void)
{
	return bool_setting("electric_cm.manual_table_publishing",
						ecm_manual_table_publishing);
}

bool
ecm_may_set_identity(void)
{
	return bool_setting("electric_cm.set_replica_identity",
						ecm_set_replica_identity);
}

int
ecm_shapes_allowed(void)
{
	char		text[ECM_TEXT_LEN];
	int			value;

	if (!setting_of_stack("electric_cm.max_shapes", text, sizeof(text)))
		return ecm_max_shapes;
	value = atoi(text);
	return value == ecm_max_shapes ||
		ecm_setting_is_of_session("electric_cm.max_shapes") ? ecm_max_shapes : value;
}
