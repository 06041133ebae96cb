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
 * Part of each round while the pool works: if there are events that nobody has
 * delivered yet, has a pool session store them in the table and notify listeners.
 */
extern void ecm_events_poll(int stack_index, EcmTime now);

/* The pool was closed, and a delivery with it: the next poll starts another. */
extern void ecm_events_forget(void);

#endif							/* ECM_EVENT_DELIVERY_H */
