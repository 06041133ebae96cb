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
extern char *ecm_slot_name_of_stack(const EcmStackRow *remembered,
									const char *datname);

/*
 * The name that applies where electric_cm.slot_name is empty.  Of *remembered,
 * only owns_slot and slot_name are used.
 */
extern char *ecm_default_slot_name_of_stack(const EcmStackRow *remembered,
											const char *datname);

/*
 * The name of the slot that this database's stack uses, or would use if it ran
 * (stack is NULL, or has none yet); palloc'd.  In a transaction.
 */
extern char *ecm_own_slot_name(const EcmStack *stack);

#endif							/* ECM_SLOT_NAME_H */
