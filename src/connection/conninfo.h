/*-------------------------------------------------------------------------
 *
 * conninfo.h
 *	  Connection strings, and libpq's parameters that are made of them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_CONNINFO_H
#define ECM_CONNINFO_H

#include "postgres.h"

#define ECM_MAX_CANDIDATES	3	/* socket directory, ::1, 127.0.0.1 */

/* A place to look for the server.  Both NULL: the conninfo names it. */
typedef struct EcmCandidate
{
	const char *host;
	const char *hostaddr;
} EcmCandidate;

/* A connection to be made. */
typedef struct EcmConninfo
{
	char	   *conninfo;		/* user's, or "" for loopback */
	char	   *dbname;
	char	   *application_name;
	bool		replication;
	int			wal_sender_timeout_ms;	/* 0: the server's setting */

	EcmCandidate candidates[ECM_MAX_CANDIDATES];
	int			ncandidates;
} EcmConninfo;

/* The parameters for PQconnectStartParams(), and what they tell about it. */
typedef struct EcmConnParameters
{
	const char **keywords;		/* both end with NULL */
	const char **values;
	bool		any_role;		/* the role may be another one than the
								 * bootstrap superuser */
	bool		has_service;
	bool		prefers_tls;	/* sslmode is "prefer", given or by default */
	bool		sslmode_given;
	bool		without_tls;	/* sslmode is "disable" because the caller has
								 * asked for that, and TLS is only preferred */
} EcmConnParameters;

/*
 * Removes the postmaster's PG* variables from this process's environment, lest
 * libpq use them.  To be called before all else.
 */
extern void ecm_conninfo_clean_environment(void);

/*
 * Fills info->candidates; there may be none.  Allocates in the current
 * context.  False: libpq can't parse the string, for the reason *problem
 * (NULL: out of memory).
 */
extern bool ecm_conninfo_find_candidates(EcmConninfo *info, char **problem);

/*
 * The parameters for that candidate; allocates in the current context.  False: out
 * of memory.
 */
extern bool ecm_conninfo_parameters(const EcmConninfo *info, int candidate,
									bool without_tls,
									EcmConnParameters *parameters);

/*
 * Looks up the bootstrap superuser's name again.  True: the role has been
 * renamed since.
 */
extern bool ecm_loopback_user_renamed(void);

/*
 * Where a connection string leads, by its text alone.  Strings are palloc'd;
 * NULL: not given.  The password is left out, on purpose.
 */
typedef struct EcmConnTarget
{
	bool		loopback;		/* we look for the server by ourselves */
	bool		has_password;
	bool		has_password_file;	/* or a service, which may have one */
	char	   *service;
	char	   *host;
	char	   *hostaddr;
	char	   *port;
	char	   *user;
	char	   *dbname;
} EcmConnTarget;

/* False: libpq can't parse the string. */
extern bool ecm_conn_target(const char *conninfo, EcmConnTarget *target);

#endif							/* ECM_CONNINFO_H */
