/*-------------------------------------------------------------------------
 *
 * test_event_name.c
 *	  Each event has a name, a severity and a meaning.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "base/event_name.h"
#include "unit.h"

static int
compare(EcmEventName a, EcmEventName b)
{
	return strcmp(ecm_event_name(a), ecm_event_name(b));
}

void
test_event_name(void)
{
	int			i;
	int			j;

	for (i = 0; i < ECM_EVENT_COUNT; i++)
	{
		const char *name = ecm_event_name((EcmEventName) i);

		CHECK(name != NULL && strlen(name) > 0 && strlen(name) < 64 &&
			  strspn(name, "abcdefghijklmnopqrstuvwxyz_") == strlen(name));
		CHECK(ecm_event_meaning((EcmEventName) i) != NULL &&
			  ecm_event_meaning((EcmEventName) i)[0] != '\0');
		CHECK(ecm_severity_name(ecm_event_severity((EcmEventName) i)) != NULL);
	}
	checked("every event has a name, a severity and a meaning");

	for (i = 0; i < ECM_EVENT_COUNT; i++)
		for (j = i + 1; j < ECM_EVENT_COUNT; j++)
			CHECK(compare((EcmEventName) i, (EcmEventName) j) != 0 ||
				  ecm_event_severity((EcmEventName) i) !=
				  ecm_event_severity((EcmEventName) j));
	checked("... and no two have the same name and severity");

	is_str(ecm_severity_name(ECM_SEVERITY_LOG), "log", "severities have names");
	is_str(ecm_severity_name(ECM_SEVERITY_WARNING), "warning", "... such as warning");
	is_str(ecm_severity_name(ECM_SEVERITY_ERROR), "error", "... and error");
}
