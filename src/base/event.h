/*-------------------------------------------------------------------------
 *
 * event.h
 *	  Events: what has happened to a stack, for people who watch it.
 *
 * They are kept in a ring in shared memory; a pool session stores and sends
 * them (event_delivery.c), and warnings and errors are in the server's log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_EVENT_H
#define ECM_EVENT_H

#include "postgres.h"

#include "base/event_name.h"
#include "base/shmem.h"

/*
 * Appends to the ring, wakes the database's manager, which delivers it, and
 * logs it if it is a warning (WARNING) or worse (LOG: it never raises).  Takes
 * the lock, so don't hold it.  detail may be NULL.
 *
 * The second is for who has no entry at hand: of a database, which datname names
 * (NULL: by its OID alone), or of none (InvalidOid).
 */
extern void ecm_event(const EcmStack *stack, EcmEventName event,
					  const char *detail, const char *message_fmt,...)
			pg_attribute_printf(4, 5);
extern void ecm_event_in(Oid dboid, const char *datname, EcmEventName event,
						 const char *detail, const char *message_fmt,...)
			pg_attribute_printf(5, 6);

/*
 * Copies what the ring still has of a database (InvalidOid: of all), from an
 * event on, the oldest first.  "copy" has room for ECM_MAX_EVENTS.  Returns how
 * many there are; *end becomes the number that the next event will get.
 */
extern int	ecm_events_copy(Oid dboid, uint64 from, EcmEventRecord *copy,
							uint64 *end);

#endif							/* ECM_EVENT_H */
