/*-------------------------------------------------------------------------
 *
 * pinned_settings.h
 *	  Settings that our processes do not take from databases and roles.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_PINNED_SETTINGS_H
#define ECM_PINNED_SETTINGS_H

#include "postgres.h"

#include "lib/stringinfo.h"

/*
 * How values are written as text, how literals are read, and what names look
 * like: the same in every process that decodes, stores or filters, since what
 * one has written another one reads.  Name and value as SHOW has them; ends
 * with a NULL name.
 */
extern const char *const ecm_text_settings[][2];

/*
 * In force until AtEOXact_GUC() of the caller's nest level, with names being
 * resolved in pg_catalog only.
 */
extern void ecm_pin_text_settings(void);

/*
 * Between these two, what ALTER DATABASE and ALTER ROLE say is not applied to
 * this process; but for our own settings.
 */
extern void ecm_shelter_settings(void);
extern void ecm_unshelter_settings(void);

/*
 * Appends "-c name=value" for each setting that ALTER DATABASE or ALTER ROLE
 * give a new session in this database, with the value that it has without
 * them.  Roles other than the bootstrap superuser only if any_role.  In a
 * transaction of a process with sheltered settings.  False, and nothing, if
 * the catalog is locked.
 */
extern bool ecm_append_server_settings(StringInfo options, bool any_role);

/* Appends "-c name=value", escaped as a startup packet's options want it. */
extern void ecm_append_setting(StringInfo options, const char *name,
							   const char *value);

#endif							/* ECM_PINNED_SETTINGS_H */
