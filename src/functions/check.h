/*-------------------------------------------------------------------------
 *
 * check.h
 *	  What the checks of electric_cm_check() have in common.
 *
 * check.c			the table of checks, and most of them
 * check_budget.c	does the server have room for all stacks?
 * check_access.c	may the stack's connections log in?
 * check_version.c	do library, extension and what is installed go together?
 * check_slot.c		the exclusive lock, slots and publications
 * check_failover.c	could a standby take over without a gap?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_CHECK_H
#define ECM_CHECK_H

#include "postgres.h"

#include "base/shmem.h"

typedef enum EcmVerdict
{
	ECM_VERDICT_PASS,
	ECM_VERDICT_WARN,
	ECM_VERDICT_FAIL
} EcmVerdict;

/* A row of the result, palloc'd. */
typedef struct EcmFinding
{
	EcmVerdict	verdict;
	char	   *detail;
	char	   *fix;			/* NULL: none */
} EcmFinding;

/* One of our settings, as a manager that started now would have it. */
typedef struct EcmCheckSetting
{
	char	   *name;			/* with "electric_cm." */
	char	   *value;
	char	   *owner;			/* the object that ALTER ... SET has to name
								 * to change it, such as "DATABASE app" */
} EcmCheckSetting;

/*
 * The facts that all checks start from; collected once per call.
 */
typedef struct EcmSituation
{
	char	   *datname;
	char	   *schema;			/* the extension's, quoted */
	int			nsettings;
	EcmCheckSetting *settings;
	const char *slot_name;
	const char *publication_name;

	/* from shared memory */
	bool		preloaded;
	bool		has_stack;		/* the database has an entry */
	EcmStack   *stack;			/* a copy of that, or zeros */
	bool		runs;			/* a manager runs, and nobody has asked it to
								 * stop */
} EcmSituation;

typedef void (*EcmCheckFunction) (const EcmSituation *s, EcmFinding *f);

/* Verdicts; fix is NULL or palloc'd. */
extern void ecm_check_pass(EcmFinding *f, const char *fmt,...) pg_attribute_printf(2, 3);
extern void ecm_check_warn(EcmFinding *f, char *fix, const char *fmt,...) pg_attribute_printf(3, 4);
extern void ecm_check_fail(EcmFinding *f, char *fix, const char *fmt,...) pg_attribute_printf(3, 4);

/*
 * Runs a query as the bootstrap superuser, with a lock_timeout of a second.  Returns the
 * values of its rows as text, row after row, palloc'd in the caller's context; a NULL is
 * NULL.  *nrows: the number of rows.
 */
extern char **ecm_check_query(int ncolumns, int *nrows, const char *fmt,...) pg_attribute_printf(3, 4);

/*
 * Calls fn(arg) in a subtransaction.  Returns NULL, or the message of the ERROR that it
 * has raised, palloc'd.  Only a query cancel is raised again.
 */
extern char *ecm_check_guarded(void (*fn) (void *arg), void *arg);

/* The extension's schema, quoted. */
extern char *ecm_check_schema(void);

/* The value of one of our settings; name: without "electric_cm.". */
extern const char *ecm_check_setting(const EcmSituation *s, const char *name);

/* The command that gives a setting another value, where it is set now. */
extern char *ecm_check_set(const EcmSituation *s, const char *name, const char *value);

/* Does this database have any shapes, which a remedy could cost? */
extern bool ecm_check_has_shapes(void);

/* The command that starts the stack. */
extern char *ecm_check_start(const EcmSituation *s);

/*
 * The value of a setting that is on or off (otherwise: if it can't be parsed), or of one
 * that is a number (at least 1).
 */
extern bool ecm_check_bool(const EcmSituation *s, const char *name, bool otherwise);
extern int	ecm_check_int(const EcmSituation *s, const char *name);

/* The command that raises a setting of the server's, which needs a restart. */
extern char *ecm_check_raise(const char *name, int value);

/* Comments for the end of a fix: what is to be done after its command, or instead. */
#define THEN_RELOAD			" -- then SELECT pg_reload_conf()"
#define THEN_RESTART		" -- then restart the server"
#define ONLY_RESTART		"-- restart the server"

/* The name of an entry's slot, as the entry shows it, or else the default name. */
extern const char *ecm_check_slot_name(const EcmStack *stack);

/*
 * Is there room for this database's stack, by the limits of the server?  If
 * not, what is lacking, palloc'd.
 */
extern bool ecm_check_room(char **detail, char **fix);

/* check_budget.c */
extern void ecm_check_replication_slots(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_wal_senders(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_worker_processes(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_connections(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_stacks(const EcmSituation *s, EcmFinding *f);

/* check_access.c */
extern void ecm_check_connection(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_role(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_pg_hba(const EcmSituation *s, EcmFinding *f);

/* check_version.c; for electric_cm_health(), too */
extern void ecm_check_version(const EcmSituation *s, EcmFinding *f);

/* check_failover.c; for electric_cm_health(), too */
typedef struct EcmFailover
{
	bool		known;			/* if not, all but the reason is unset */
	bool		standby;		/* this server is one */
	bool		ready;			/* this standby, or one of the primary's and
								 * each that synchronized_standby_slots names,
								 * could take over without a gap */
	bool		lasts;			/* what is not ready is not just coming, or
								 * gone for a moment */
	int			standbys;		/* those that are connected or named */
	int			ready_standbys;
	char	   *reason;			/* why not; NULL: ready */
	char	   *fix;			/* NULL: none */
} EcmFailover;

extern void ecm_failover_look(const char *slot_name, EcmFailover *failover);
extern void ecm_check_failover(const EcmSituation *s, EcmFinding *f);

/* check_slot.c */
extern void ecm_check_lock(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_slot(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_other_slots(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_slot_wal_limit(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_output_plugin(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_idle_slot_timeout(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_publication(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_other_publications(const EcmSituation *s, EcmFinding *f);

#endif							/* ECM_CHECK_H */
