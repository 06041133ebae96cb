/*-------------------------------------------------------------------------
 *
 * check.h
 *	  What the checks of electric_cm_check() have in common.
 *
 * check.c			the table of checks, and most of them
 * check_budget.c	does the server have room for all stacks?
 * check_access.c	may the stack's connections log in?
 * check_slot.c		the exclusive lock, slots and publications
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

/* A setting as a manager that started now would see it. */
typedef struct EcmCheckSetting
{
	char	   *name;
	char	   *value;
	char	   *owner;			/* what an ALTER must name to change it, such
								 * as "DATABASE app" */
} EcmCheckSetting;

/*
 * What all checks start from.
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
	bool		has_stack;		/* the database has an entry: */
	EcmStack   *stack;			/* a copy of it, or zeros */
	bool		runs;			/* its manager does, and is to go on */
} EcmSituation;

typedef void (*EcmCheckFunction) (const EcmSituation *s, EcmFinding *f);

/* Verdicts; fix is NULL or palloc'd. */
extern void ecm_check_pass(EcmFinding *f, const char *fmt,...) pg_attribute_printf(2, 3);
extern void ecm_check_warn(EcmFinding *f, char *fix, const char *fmt,...) pg_attribute_printf(3, 4);
extern void ecm_check_fail(EcmFinding *f, char *fix, const char *fmt,...) pg_attribute_printf(3, 4);

/*
 * Runs a query as the bootstrap superuser; returns the rows' values as text,
 * one after the other, palloc'd in the caller's context, and their number of
 * rows.  NULL values are NULL.
 */
extern char **ecm_check_query(int ncolumns, int *nrows, const char *fmt,...) pg_attribute_printf(3, 4);

/*
 * Calls fn(arg) in a subtransaction.  Returns NULL, or the message of the error
 * it has raised, palloc'd.  Only a request to cancel goes through.
 */
extern char *ecm_check_guarded(void (*fn) (void *arg), void *arg);

/* The extension's schema, quoted. */
extern char *ecm_check_schema(void);

/* The effective value of one of our settings, without "electric_cm.". */
extern const char *ecm_check_setting(const EcmSituation *s, const char *name);

/* The command that gives it another value. */
extern char *ecm_check_set(const EcmSituation *s, const char *name, const char *value);

/* Is there anything that could be lost? */
extern bool ecm_check_has_shapes(void);

/* The command that starts the stack. */
extern char *ecm_check_start(const EcmSituation *s);

/* The same of one that is on or off, or a number (of at least 1). */
extern bool ecm_check_bool(const EcmSituation *s, const char *name, bool otherwise);
extern int	ecm_check_int(const EcmSituation *s, const char *name);

/* The remedy for a setting of the server's that is too low. */
extern char *ecm_check_raise(const char *name, int value);

/* What is to be done after ALTER SYSTEM and the like, or instead of it. */
#define THEN_RELOAD			" -- then SELECT pg_reload_conf()"
#define THEN_RESTART		" -- then restart the server"
#define ONLY_RESTART		"-- restart the server"

/* An entry's slot, by its published or default name. */
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

/* check_slot.c */
extern void ecm_check_lock(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_slot(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_other_slots(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_slot_wal_limit(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_publication(const EcmSituation *s, EcmFinding *f);
extern void ecm_check_other_publications(const EcmSituation *s, EcmFinding *f);

#endif							/* ECM_CHECK_H */
