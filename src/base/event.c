/*-------------------------------------------------------------------------
 *
 * event.c
 *	  Events: what has happened to a stack, for people who watch it.
 *
 * Any process records events: the manager, the launcher, consumers, a user's
 * session whose command concerns a stack.  Nothing here may raise an ERROR,
 * since some of them do so while they exit.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <stdarg.h>

#include "storage/latch.h"

#include "base/clock.h"
#include "base/event.h"
#include "base/text.h"

/* Puts an event into the ring, in place of the oldest one if it is full. */
static void
append(Oid dboid, const char *datname, EcmEventName event, const char *message,
	   const char *detail)
{
	EcmEventRecord *record;
	int			index;

	ecm_lock(LW_EXCLUSIVE);
	record = &ecm_shared->events[ecm_shared->nevents % ECM_MAX_EVENTS];
	record->number = ecm_shared->nevents;
	record->dboid = dboid;
	strlcpy(record->datname, datname, sizeof(record->datname));
	record->occurred_at = ecm_wall_clock();
	record->event = event;
	ecm_copy_text(record->message, sizeof(record->message), message);
	ecm_copy_text(record->detail, sizeof(record->detail), detail);
	ecm_shared->nevents++;
	index = ecm_stack_find_locked(dboid);
	if (index >= 0)
	{
		EcmStack   *stack = ecm_stack_at(index);

		stack->events.last = ecm_shared->nevents;
		if (stack->manager.latch != NULL)
			SetLatch(stack->manager.latch); /* it has something to deliver */
	}
	ecm_unlock();
}

pg_attribute_printf(5, 0)
static void
record(Oid dboid, const char *datname, EcmEventName event, const char *detail,
	   const char *message_fmt, va_list args)
{
	char		message[1024];
	EcmSeverity severity = ecm_event_severity(event);

	pg_vsnprintf(message, sizeof(message), message_fmt, args);
	if (datname == NULL)
		datname = "";
	append(dboid, datname, event, message, detail);
	if (severity == ECM_SEVERITY_LOG)
		return;
	ereport(severity == ECM_SEVERITY_ERROR ? LOG : WARNING,
			(datname[0] != '\0' ?
			 errmsg("electric_cm in database \"%s\": %s", datname, message) :
			 errmsg("electric_cm: %s", message),
			 (detail != NULL && detail[0] != '\0') ?
			 errdetail_internal("%s", detail) : 0));
}

void
ecm_event(const EcmStack *stack, EcmEventName event, const char *detail,
		  const char *message_fmt,...)
{
	va_list		args;

	va_start(args, message_fmt);
	record(stack->dboid, stack->datname, event, detail, message_fmt, args);
	va_end(args);
}

void
ecm_event_in(Oid dboid, const char *datname, EcmEventName event,
			 const char *detail, const char *message_fmt,...)
{
	va_list		args;

	va_start(args, message_fmt);
	record(dboid, datname, event, detail, message_fmt, args);
	va_end(args);
}

int
ecm_events_copy(Oid dboid, uint64 from, EcmEventRecord *copy, uint64 *end)
{
	int			n = 0;

	ecm_lock(LW_SHARED);
	*end = ecm_shared->nevents;
	if (*end > ECM_MAX_EVENTS)
		from = Max(from, *end - ECM_MAX_EVENTS);
	for (uint64 i = from; i < *end; i++)
	{
		const EcmEventRecord *record = &ecm_shared->events[i % ECM_MAX_EVENTS];

		if (!OidIsValid(dboid) || record->dboid == dboid)
			copy[n++] = *record;
	}
	ecm_unlock();
	return n;
}
