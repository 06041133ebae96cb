/*-------------------------------------------------------------------------
 *
 * stack_decision.h
 *	  Should a database have a stack now, and if not, why not?
 *	  (facts) -> decision, for each turn that a stack's life can take.
 *
 * Pure: no server, no I/O, the clock is passed in (microseconds).  Compiled into
 * the extension and into the unit tests, which hold it to the table at the top
 * of stack_decision.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_STACK_DECISION_H
#define ECM_STACK_DECISION_H

#include <stdbool.h>
#include <stdint.h>

#include "base/stack_lifecycle.h"

/*
 * The first decision, for each entry in each round: should it have a manager?
 */

typedef struct EcmStackFacts
{
	/* the database, as of the last look at pg_database */
	bool		database_exists;
	const char *unwanted;		/* why no stack may run there, or NULL */
	bool		may_look;		/* a manager may look there all the same */

	/* what others want: see EcmStackRequests, EcmStackPause */
	bool		registered;		/* somebody asked for a stack, or one ran */
	bool		stop_requested;
	bool		for_upgrade;	/* ... until the cluster has been upgraded */
	bool		restart_requested;
	bool		reprobe_requested;
	bool		paused;			/* a command needs the stack out of its way */

	/* the manager */
	bool		running;		/* there is one, or a worker that is to become
								 * one */
	bool		asked_to_end;
	EcmEndReason end_reason;	/* what for; NONE: only since it hangs */
	EcmProbe	probe;			/* the last manager's verdict */

	int64_t		now;			/* microseconds, as the next one */
	int64_t		retry_at;		/* earliest next start, unless one is
								 * requested */
} EcmStackFacts;

typedef enum EcmStackAction
{
	ECM_STACK_LEAVE,			/* there is nothing to do */
	ECM_STACK_WAIT,				/* ... before retry_at */
	ECM_STACK_START,			/* a manager is wanted: see EcmStartFacts */
	ECM_STACK_END,				/* ask the manager to end, for end_reason */
	ECM_STACK_GRANT,			/* clear the request: what it asks for is the
								 * case */
	ECM_STACK_STOPPED,			/* no manager runs, and "reason" says why */
	ECM_STACK_PAUSED,			/* no manager is in the command's way; with a
								 * reason, the stack is stopped anyway */
	ECM_STACK_FREE				/* nobody needs the entry */
} EcmStackAction;

typedef struct EcmStackDecision
{
	EcmStackAction action;
	EcmEndReason end_reason;	/* of END */
	const char *reason;			/* of STOPPED, and of PAUSED perhaps; a
								 * constant, or the facts' unwanted */
} EcmStackDecision;

extern EcmStackDecision ecm_stack_decide(const EcmStackFacts *facts);

/*
 * The second one: a manager is to be started, and needs background workers.
 */

typedef struct EcmStartFacts
{
	int			needed;			/* workers for the manager and its consumers */
	int			free;			/* workers that are free, less those that
								 * running stacks may still need; maybe
								 * negative */
	int			looking;		/* workers in use only for a look: soon free */
	int			reserve;		/* workers to be left for the next look: 0 or
								 * 1 */
	bool		unseen;			/* it is not known what is in the database */
} EcmStartFacts;

typedef enum EcmStartAction
{
	ECM_START_RUN,				/* start it */
	ECM_START_LOOK,				/* start it, but only to say what there is */
	ECM_START_SOON,				/* as soon as a look has ended */
	ECM_START_LATER				/* there are too few workers: with backoff */
} EcmStartAction;

extern EcmStartAction ecm_start_decide(const EcmStartFacts *facts);

/*
 * The third one: a manager has ended.  Was that a failure?
 */

typedef struct EcmEndFacts
{
	bool		registered;
	bool		stop_requested;
	bool		restart_requested;
	bool		reprobe_requested;
	EcmEndReason end_reason;	/* what it was asked to end for */
	EcmProbe	probe;			/* what it has left as its verdict */
	bool		gave_way;		/* it got no workers for its consumers */
	bool		has_run;		/* it got as far as to claim its entry */
	int64_t		ran_for;		/* microseconds since it was started */
} EcmEndFacts;

typedef enum EcmEndAction
{
	ECM_ENDED_AS_WANTED,		/* ecm_stack_decide() knows what comes next */
	ECM_ENDED_BY_REQUEST,		/* the next one is started at once */
	ECM_ENDED_WITHOUT_WORKERS,	/* the next one is started when there are */
	ECM_ENDED_NO_EXTENSION,		/* there is nothing to look after: free the
								 * entry */
	ECM_ENDED_UNSEEN,			/* a look has failed, at what nobody asked
								 * for: free the entry, and look again later */
	ECM_ENDED_FAILED			/* the next one is started with backoff */
} EcmEndAction;

typedef struct EcmEndDecision
{
	EcmEndAction action;
	bool		forget_failures;	/* those before this: backoff begins anew */
} EcmEndDecision;

extern EcmEndDecision ecm_end_decide(const EcmEndFacts *facts);

/*
 * The fourth one: a manager does not go round.  After so long it is asked to end.
 */

#define ECM_HANG_PATIENCE_US	INT64_C(60000000)

typedef struct EcmHangFacts
{
	bool		hangs;			/* now */
	bool		reported;		/* that it hangs */
	bool		asked_to_end;
	int64_t		now;
	int64_t		since;			/* when it was first seen to hang, 0: it was
								 * not */
} EcmHangFacts;

typedef struct EcmHangDecision
{
	bool		report;			/* say that it hangs, or that it goes on */
	bool		end;			/* ask it to end: another one may do better */
	int64_t		since;			/* the next facts' since */
} EcmHangDecision;

extern EcmHangDecision ecm_hang_decide(const EcmHangFacts *facts);

/* Don't library and extension go together? */
extern bool ecm_probe_is_of_version(EcmProbe probe);

/* The verdict of a manager that did not want to run, in words, or NULL. */
extern const char *ecm_probe_reason(EcmProbe probe);

#endif							/* ECM_STACK_DECISION_H */
