/*-------------------------------------------------------------------------
 *
 * server_identity.h
 *	  Does a connection lead back into this server and this database?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SERVER_IDENTITY_H
#define ECM_SERVER_IDENTITY_H

#include "postgres.h"

#include "base/failure.h"
#include "connection/conn.h"

/*
 * ecm_whereabouts_sql() is a query that tells which server and database a
 * connection leads to. ecm_leads_here() looks at its answer.  False: the
 * connection leads elsewhere, and *failure, which is FATAL, says so.
 */
extern const char *ecm_whereabouts_sql(void);
extern bool ecm_leads_here(const EcmConn *conn, EcmStepFailure *failure);

#endif							/* ECM_SERVER_IDENTITY_H */
