/*-------------------------------------------------------------------------
 *
 * settings.h
 *	  The extension's settings (GUCs), and names derived from them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SETTINGS_H
#define ECM_SETTINGS_H

#include "postgres.h"

#define ECM_LIBRARY_NAME		"electric_cm"

/* Upper bounds that size shared memory. */
#define ECM_MAX_MANAGERS		1000
#define ECM_MAX_POOL_SIZE		32
#define ECM_MAX_SHAPE_WORKERS	16

extern char *ecm_databases;
extern int	ecm_max_managers;
extern int	ecm_max_awaited_shapes;
extern bool ecm_enabled;
extern char *ecm_stack_id;
extern char *ecm_connection;
extern char *ecm_pooled_connection;
extern char *ecm_slot_name;
extern char *ecm_publication_name;
extern bool ecm_slot_temporary;
extern bool ecm_failover;
extern bool ecm_create_publication;
extern bool ecm_manual_table_publishing;
extern bool ecm_set_replica_identity;
extern int	ecm_pool_size;
extern int	ecm_pool_idle_timeout;	/* ms */
extern int	ecm_connect_timeout;	/* ms */
extern int	ecm_reconnect_initial_delay;	/* ms */
extern int	ecm_reconnect_max_delay;	/* ms */
extern int	ecm_status_check_interval;	/* ms */
extern int	ecm_consumer_stall_timeout; /* ms */
extern int	ecm_shape_stall_timeout;	/* ms; 0: off */
extern int	ecm_wal_report_interval;	/* ms */
extern int	ecm_retained_wal_warning;	/* MB, -1: off; so are the next two */
extern int	ecm_retained_wal_limit;
extern int	ecm_min_wal_free_space;
extern int	ecm_retained_wal_history_size;	/* samples */
extern bool ecm_break_abandoned_lock;
extern int	ecm_shape_workers;
extern int	ecm_max_shapes;
extern int	ecm_shape_log_retention;	/* kB; 0: the default, -1: for ever */
extern int	ecm_shape_expiry;	/* s; 0: never */
extern int	ecm_reader_retention;	/* kB; -1: without limit */
extern int	ecm_debug_piece_rows;

/* Defines all settings; called once from _PG_init. */
extern void ecm_define_settings(void);

/*
 * Names that apply in this process, palloc'd: the setting, or the default if
 * it is empty.  The default of the slot's name is "electric_cm_<database>" in
 * lower case, with "_" for all characters that a slot's name can't have,
 * truncated to NAMEDATALEN - 1 bytes; of the stack's id, the database's name.
 */
extern char *ecm_effective_slot_name(const char *datname);
extern char *ecm_default_slot_name(const char *datname);
extern char *ecm_effective_stack_id(const char *datname);

/*
 * Does a setting's value in this process come from ALTER DATABASE or ALTER ROLE
 * rather than from the server's configuration?
 */
extern bool ecm_setting_is_of_database(const char *name);

/*
 * Does its value come from a place that may differ between sessions of one
 * database: ALTER ROLE, the connection's options, SET, a function?
 */
extern bool ecm_setting_is_of_session(const char *name);

/* Is the database named in electric_cm.databases ("*" names all)? */
extern bool ecm_database_is_listed(const char *datname);

/*
 * The i-th of our settings as it is in effect in this process, for the view
 * electric_cm_options: its name, its value as SHOW prints it (for the slot's
 * name and the stack's id, after applying defaults; palloc'd), and the source
 * of the value.  False: there are not that many.
 */
extern bool ecm_setting_at(int i, const char *datname, const char **name,
						   char **value, const char **source);

#endif							/* ECM_SETTINGS_H */
