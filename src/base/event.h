/*-------------------------------------------------------------------------
 *
 * event.h
 *	  Events: what has happened to a stack, for people who watch it.
 *
 * Events are kept in a ring in shared memory.  The manager of the event's
 * database has a pool session deliver them (deliver_events.c): it stores
 * warnings and errors in a table, and notifies LISTENers of all events.
 * Warnings and errors are in the server's log as well.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_EVENT_H
#define ECM_EVENT_H

#include "postgres.h"

#include "base/event_name.h"
#include "base/shmem.h"

/*
 * Records an event: appends it to the ring, wakes the database's manager,
 * which delivers it, and writes it to the server's log if it is a warning
 * (level WARNING) or an error (level LOG, since the caller must not be
 * interrupted).  The caller must not hold the lock of shared memory. detail may
 * be NULL.
 *
 * ecm_event_in() is for callers that have no entry of shared memory at hand.
 * dboid is InvalidOid for an event that concerns no database; datname may be
 * NULL.
 */
extern void ecm_event(const EcmStack *stack, EcmEventName event,
					  const char *detail, const char *message_fmt,...)
			pg_attribute_printf(4, 5);
extern void ecm_event_in(Oid dboid, const char *datname, EcmEventName event,
						 const char *detail, const char *message_fmt,...)
			pg_attribute_printf(5, 6);

/*
 * Copies the events of a database (InvalidOid: of all) that the ring still has
 * and whose number is at least 'from', the oldest first. 'copy' must have room
 * for ECM_MAX_EVENTS.  Returns their number; *end becomes the number that the
 * next event will get, for the next call to go on from.
 */
extern int	ecm_events_copy(Oid dboid, uint64 from, EcmEventRecord *copy,
							uint64 *end);

#endif							/* ECM_EVENT_H */
