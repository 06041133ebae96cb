/*-------------------------------------------------------------------------
 *
 * slot_name.h
 *	  The name of this database's slot.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SLOT_NAME_H
#define ECM_SLOT_NAME_H

#include "postgres.h"

#include "base/shmem.h"
#include "base/stack_catalog.h"

/*
 * The name of this database's slot, palloc'd: the setting's, or that of the
 * slot which the stack has created (its database may have had another name
 * then), or the one that is made of the database's name.
 */
extern char *ecm_timeline_slot_name(const EcmRemembered *remembered,
									const char *datname);

/* The same where electric_cm.slot_name is empty; needs the slot's name only. */
extern char *ecm_timeline_default_slot_name(const EcmRemembered *remembered,
											const char *datname);

/*
 * The slot's name as this database's stack (NULL: whatever there is) uses it,
 * or would use it; palloc'd.
 */
extern char *ecm_own_slot_name(const EcmStack *stack);

#endif							/* ECM_SLOT_NAME_H */
