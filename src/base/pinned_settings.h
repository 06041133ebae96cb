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
 * The settings that decide how values are written as text, how literals are
 * read, and how names are quoted, each with its value; the last name is NULL.
 * All our processes that decode, store or compare values run with these, since
 * one of them reads what another has written: a date in another style than the
 * walsender's would be another value to a client, and another key.
 */
extern const char *const ecm_text_settings[][2];

/*
 * Sets them, and search_path to pg_catalog and pg_temp, in the present
 * process.  They stay in force until the caller's AtEOXact_GUC() for its nest
 * level.
 */
extern void ecm_pin_text_settings(void);

/* Likewise, without search_path: code of users may run meanwhile. */
extern void ecm_pin_how_values_are_read(void);

/*
 * Between these two, values of ALTER DATABASE and ALTER ROLE are not applied
 * to this process, except those of our own settings.  A worker connects to its
 * database in between.
 */
extern void ecm_shelter_settings(void);
extern void ecm_unshelter_settings(void);

/*
 * Appends "-c name=value" for each setting that ALTER DATABASE or ALTER ROLE
 * would give to a new session in this database.  The value is the one that the
 * setting has without them, so the session runs as if they had not been said.
 * Settings of roles other than the bootstrap superuser are included only if
 * any_role.
 *
 * To be called by a process that has connected with sheltered settings, so
 * that its own values are the server's, in a transaction.  False if
 * pg_db_role_setting is locked; nothing is appended then.
 */
extern bool ecm_append_server_settings(StringInfo options, bool any_role);

/* Appends "-c name=value", escaped as a startup packet's options want it. */
extern void ecm_append_setting(StringInfo options, const char *name,
							   const char *value);

#endif							/* ECM_PINNED_SETTINGS_H */
