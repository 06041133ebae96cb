/*-------------------------------------------------------------------------
 *
 * event_delivery.h
 *	  The manager's part in delivering events: it has a pool session do it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_EVENT_DELIVERY_H
#define ECM_EVENT_DELIVERY_H

#include "postgres.h"

#include "base/clock.h"

/*
 * Has a pool session deliver what has happened in this database since the last
 * time.  For the manager, while its pool works.
 */
extern void ecm_events_poll(int stack_index, EcmTime now);

/* Whatever was on its way is forgotten: the pool was closed. */
extern void ecm_events_forget(void);

#endif							/* ECM_EVENT_DELIVERY_H */
