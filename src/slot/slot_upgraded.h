/*-------------------------------------------------------------------------
 *
 * slot_upgraded.h
 *	  Is a slot the one that pg_upgrade has made for the old cluster's?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SLOT_UPGRADED_H
#define ECM_SLOT_UPGRADED_H

#include "postgres.h"

#include "slot/slot.h"

/*
 * Has nobody committed anything in this database, since the WAL of the cluster began
 * anew, before the slot begins?  False also if its WAL can't be read from there.  In a
 * transaction.
 */
extern bool ecm_slot_begins_cluster(const EcmSlotFacts *facts);

#endif							/* ECM_SLOT_UPGRADED_H */
