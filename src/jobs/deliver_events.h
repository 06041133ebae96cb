/*-------------------------------------------------------------------------
 *
 * deliver_events.h
 *	  Events reach those who are not looking: a table that survives the
 *	  server's end, and NOTIFY electric_cm.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_DELIVER_EVENTS_H
#define ECM_DELIVER_EVENTS_H

#include "postgres.h"

#include "base/errors.h"

/*
 * Stores, in this very process, what has not been stored yet: for a manager's
 * end.  Notifies nobody; the next manager does.  False: err says why.
 */
extern bool ecm_events_store(EcmError *err);

#endif							/* ECM_DELIVER_EVENTS_H */
