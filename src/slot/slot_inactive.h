/*-------------------------------------------------------------------------
 *
 * slot_inactive.h
 *	  Since when each replication slot of the server has been inactive.
 *
 * PostgreSQL itself knows that from 17 on; before, it is as of whoever looked
 * first: a manager or the launcher taking a sample, or somebody at the view.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SLOT_INACTIVE_H
#define ECM_SLOT_INACTIVE_H

#include "postgres.h"

#include "slot/slot.h"

extern void ecm_slot_activity_request(void);	/* shmem_request_hook */
extern void ecm_slot_activity_startup(void);	/* shmem_startup_hook */

/*
 * Takes note of all slots (as ecm_slots_read() returns them), and fills in
 * since when those that are inactive have been so.
 */
extern void ecm_slot_activity_note(EcmSlotRow *rows, int nrows);

#endif							/* ECM_SLOT_INACTIVE_H */
