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

/* Where a server may be found.  Both NULL: where the conninfo says. */
typedef struct EcmCandidate
{
	const char *host;
	const char *hostaddr;
} EcmCandidate;

/* A connection that is wanted */
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

/* libpq is started with these */
typedef struct EcmConnParameters
{
	const char **keywords;		/* both end with NULL */
	const char **values;
	bool		any_role;		/* not the bootstrap superuser, perhaps */
	bool		has_service;
	bool		prefers_tls;	/* sslmode is "prefer", given or by default */
	bool		sslmode_given;
	bool		without_tls;	/* as asked for, if TLS is only preferred */
} EcmConnParameters;

/* libpq must not see the postmaster's PG* variables; to be called first. */
extern void ecm_conninfo_clean_environment(void);

/*
 * Fills the candidates, of which there may be none; allocates in the current
 * context.  False: libpq does not understand the string, and *problem says why
 * (NULL: it is out of memory).
 */
extern bool ecm_conninfo_find_candidates(EcmConninfo *info, char **problem);

/*
 * The parameters for that candidate; allocates in the current context.  False: out
 * of memory.
 */
extern bool ecm_conninfo_parameters(const EcmConninfo *info, int candidate,
									bool without_tls,
									EcmConnParameters *parameters);

/* Looks the loopback user's name up again; true if it has been renamed. */
extern bool ecm_loopback_user_renamed(void);

/*
 * Where a connection string leads, without following it.  Strings are palloc'd;
 * NULL: not given.  The password, if there is one, is not among them.
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

/* False: libpq does not understand it. */
extern bool ecm_conn_target(const char *conninfo, EcmConnTarget *target);

#endif							/* ECM_CONNINFO_H */
