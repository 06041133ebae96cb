/*-------------------------------------------------------------------------
 *
 * deliver_events.h
 *	  Delivers events: to a table that survives the server's end, and by
 *	  NOTIFY electric_cm.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_DELIVER_EVENTS_H
#define ECM_DELIVER_EVENTS_H

#include "postgres.h"

#include "base/errors.h"

/*
 * Stores, in this process, the events that have not been stored yet.  For a
 * manager that ends, whose pool is closed.  Notifies nobody, since the next
 * manager will.  False: they could not be stored; err says why.
 */
extern bool ecm_events_store(EcmError *err);

#endif							/* ECM_DELIVER_EVENTS_H */
