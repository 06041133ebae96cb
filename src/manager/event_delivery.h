/*-------------------------------------------------------------------------
 *
 * event_delivery.h
 *	  Events reach those who are not looking: a table that survives the
 *	  server's end, and NOTIFY electric_cm.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_EVENT_DELIVERY_H
#define ECM_EVENT_DELIVERY_H

#include "postgres.h"

#include "base/clock.h"
#include "base/errors.h"

/*
 * Has a pool session deliver what has happened in this database since the last
 * time.  For the manager, while its pool works.
 */
extern void ecm_events_poll(int stack_index, EcmTime now);

/* Whatever was on its way is forgotten: the pool was closed. */
extern void ecm_events_forget(void);

/*
 * Stores, in this very process, what has not been stored yet: for a manager's
 * end.  Notifies nobody; the next manager does.  False: err says why.
 */
extern bool ecm_events_store(EcmError *err);

#endif							/* ECM_EVENT_DELIVERY_H */
