/*-------------------------------------------------------------------------
 *
 * slot_inactive.h
 *	  Since when each replication slot of the server has been inactive.
 *
 * PostgreSQL itself knows it from version 17 on.  Before that, it is the time
 * when the slot was first seen inactive: by a manager or the launcher that
 * took a sample, or by a user of the view.
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
 * Notes which of all slots of the server (as ecm_slots_read() returns them)
 * are inactive, and fills in their inactive_since.
 */
extern void ecm_slot_activity_note(EcmSlotRow *rows, int nrows);

#endif							/* ECM_SLOT_INACTIVE_H */
